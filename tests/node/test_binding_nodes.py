"""The nodes of personalisation, binding and seeds, as the host calls them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ..evaluation.test_personalization import Painter
from ..support import graphs
from ..support.drawn import Colours, draw
from ..support.sentences import told
from ..support.tiny_faces import Analyser, numbers, seen

pytestmark = pytest.mark.usefixtures("host")


def binding_report(scene, encoder=None, **more):
    from mip_adapter.nodes.binding import MIPBindingReport

    with torch.inference_mode():
        return MIPBindingReport.execute(
            scene.images, scene.references, scene.detections, encoder or Colours(), **more
        ).args


def test_the_report_node_says_what_the_core_measured():
    from mip_adapter.evaluation.binding.report import measure_binding

    scene = draw(4, pictures=3, looks=[(1, 0, 2), (0, 1, 2), (0, 1, 1)])
    margin, rate, presence, said, matrix, binding = binding_report(scene)
    core = measure_binding(scene.images, scene.references, scene.detections, Colours())
    assert (margin, rate, presence) == (core.margin, core.confusion_rate, 1.0) and 0 < rate < 1
    names = [f"“{reference.text}”" for reference in scene.references]
    assert f"Exchanged in picture 1: {names[0]} and {names[1]} wear each other's looks." in said
    assert f"One takes both in picture 3: {names[1]} and {names[2]} wear the look of {names[1]}." in said
    assert matrix.shape[0] == 3 and matrix.shape[-1] == 3 and float(matrix.min()) >= 0 and float(matrix.max()) == 1
    assert binding.ranking() == [1, 2, 0]


def test_the_seed_picker_sorts_the_batch():
    from mip_adapter.nodes.binding import MIPSeedPicker

    scene = draw(4, pictures=3, looks=[(1, 0, 2), (0, 1, 2), (0, 1, 1)])
    *_, binding = binding_report(scene)
    best, ordered, index, ranking = MIPSeedPicker.execute(scene.images, binding).args
    assert index == 1 and torch.equal(best, scene.images[1:2]) and torch.equal(ordered, scene.images[[1, 2, 0]])
    assert [cell.strip() for cell in ranking.splitlines()[2].split("|")[1:4]] == ["1.", "2", "3 of 3"]
    alone = replace(
        scene, images=scene.images[:1], detections=replace(scene.detections, found=scene.detections.found[:1])
    )
    *_, only = binding_report(alone)
    best, ordered, index, ranking = MIPSeedPicker.execute(alone.images, only).args
    assert index == 0 and torch.equal(best, alone.images) and torch.equal(ordered, best) and ranking.count("\n") == 2
    told(lambda: MIPSeedPicker.execute(scene.images[:2], binding), "2 of 128×128", "3 of 128×128")
    told(lambda: MIPSeedPicker.execute(scene.images[:, :100], binding), "128×100")
    told(lambda: MIPSeedPicker.execute(scene.images, binding, "luck"), "“luck”", "worst object, mean")


def test_the_seed_picker_ranks_by_what_it_is_told():
    from mip_adapter.evaluation.binding.binding import RANKINGS
    from mip_adapter.nodes.binding import MIPSeedPicker

    scene = draw(4, pictures=3, looks=[(1, 0, 2), (0, 1, 2), (0, 1, 1)])
    *_, binding = binding_report(scene)
    for by in RANKINGS:
        _, ordered, index, ranking = MIPSeedPicker.execute(scene.images, binding, by).args
        order = binding.ranking(by)
        assert index == order[0] and torch.equal(ordered, scene.images[order])
        assert [line.split("|")[2].strip() for line in ranking.splitlines()[2:]] == [str(b + 1) for b in order]


def test_nothing_found_gives_the_worst_numbers_not_nan():
    scene = draw(0, objects=2, pictures=2)
    scene = replace(scene, detections=replace(scene.detections, found=(((), ()),) * 2))
    margin, rate, presence, said, matrix, binding = binding_report(scene)
    assert (margin, rate, presence) == (-1.0, 1.0, 0.0) and "None of the objects was found" in said
    assert torch.isfinite(matrix).all() and binding.ranking() == [0, 1]


def test_a_single_reference_has_no_other():
    scene = draw(0, objects=1)
    margin, rate, presence, said, matrix, _ = binding_report(scene)
    assert (margin, rate, presence) == (0.0, 0.0, 1.0) and "single reference" in said and len(matrix) == 1


def test_the_relevance_of_the_sampling_is_heard():
    from mip_adapter.nodes.apply import MIPApply
    from mip_adapter.relevance.record import RelevanceRecord

    scene = draw(4, looks=[(0, 1, 1)])
    parts = graphs.bundle()
    with torch.inference_mode():
        model, record = MIPApply.execute(
            parts.model, parts.clip, parts.vision, parts.adapters["base"], graphs.references(), 1.0, 0.0, 1.0
        ).args
    graphs.sample(model)
    said = binding_report(scene, relevance=record)[3]
    assert "places mixed while sampling" in said and "sharpness in MIP Merge" in said
    silent = binding_report(scene, relevance=RelevanceRecord(("a", "b")))[3]
    assert "while sampling" not in silent and "Lower the" in silent


def test_every_picture_hears_its_own_relevance():
    """Of the best of a batch it hears the batch's mean."""
    from types import SimpleNamespace

    clear, mixed = (torch.tensor([[own, 1 - own], [1 - own, own]]).view(2, 1, 2) for own in (0.9, 0.55))
    told = SimpleNamespace(
        evenness_by_picture=lambda: [0.97, 0.99],
        shares=lambda: torch.stack([clear, mixed], 1),
        of_another_run=lambda images: False,
    )
    *_, said, _, binding = binding_report(draw(4, pictures=2, looks=[(0, 1, 2), (0, 1, 1)]), relevance=told)
    assert [each.places_mixed for each in binding.pictures] == pytest.approx([0.2, 0.9])
    assert "while sampling 55 % (20 %, 90 %)" in said
    said = binding_report(draw(4), relevance=told)[3]
    assert "while sampling 55 %," in said


def test_the_personalization_node_scores_what_is_asked_for():
    from mip_adapter.evaluation.personalization import personalization
    from mip_adapter.nodes.personalization import MIPPersonalizationScore

    scene = draw(0, objects=2, pictures=2, looks=[(0, 1), (1, 0)])
    given = (scene.images, scene.references, "a prompt", Painter())
    core = personalization(*given, Colours(), scene.detections)
    assert core.crops is not None
    for scope, view in (("whole picture", core.whole), ("crops", core.crops)):
        *numbers, said, objects = MIPPersonalizationScore.execute(*given, Colours(), scene.detections, scope).args
        assert objects == 4 and "the mean of all 4 objects; every one was found" in said
        assert numbers == [view.mean(name) for name in ("clip_t", "clip_i", "dino")]
        assert "crop DINO" in said and not np.isnan(numbers).any()
    *numbers, said, objects = MIPPersonalizationScore.execute(*given).args
    assert objects == 4
    assert numbers[2] == 0.0 and "DINO was not measured" in said and "Crops were not measured" in said
    told(lambda: MIPPersonalizationScore.execute(*given, scope="crops"), "no detections", "MIP Detect Objects")
    told(lambda: MIPPersonalizationScore.execute(*given, scope="all"), "“all”", "whole picture, crops")


def test_missing_objects_are_left_out_or_count_0():
    from mip_adapter.nodes.personalization import MIPPersonalizationScore

    scene = draw(0, objects=2, pictures=2)
    (first, second), later = scene.detections.found
    lacking = replace(scene.detections, found=((first, ()), later))
    given = (scene.images, scene.references, "a prompt", Painter(), Colours(), lacking, "crops")
    *left_out, said, found = MIPPersonalizationScore.execute(*given).args
    *counted, told_so, asked = MIPPersonalizationScore.execute(*given, missing_as_zero=True).args
    assert (found, asked) == (3, 4) and counted == pytest.approx([value * 3 / 4 for value in left_out])
    assert "the mean of 3 of 4 objects; what was not found is not counted" in said
    assert "the mean of all 4 objects; 1 not found count 0" in told_so
    assert f"No “{scene.references[1].text}”" in said and f"No “{scene.references[1].text}”" in told_so
    nothing = (*given[:5], replace(lacking, found=(((), ()),) * 2), "crops")
    for missing_as_zero, objects in ((False, 0), (True, 4)):
        *numbers, _, averaged = MIPPersonalizationScore.execute(*nothing, missing_as_zero=missing_as_zero).args
        assert numbers == [0.0] * 3 and averaged == objects


def test_an_interrupt_ends_the_measurement():
    import comfy.model_management as management

    scene = draw(0, objects=2)
    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        binding_report(scene)


def test_with_a_face_analyser_the_report_ends_with_the_faces():
    """Everything else is as without one. The objects' own boxes say whose face is whose."""
    from mip_adapter.attention.reference import of_a_face

    scene = draw(4, pictures=1)
    faces, references = [], []
    for m, reference in enumerate(scene.references):
        left, top, right, bottom = scene.detections.found[0][m][0].box
        faces.append(seen((left + right) / 2, (top + bottom) / 2, 8, numbers(m)))
        references.append(of_a_face(reference, torch.from_numpy(numbers(m))[None], reference.images[:1]))
    scene = replace(scene, references=tuple(references))
    *without, _ = binding_report(scene)
    *got, _ = binding_report(scene, face_analyser=Analyser(faces))
    assert got[:3] == without[:3] and torch.equal(got[4], without[4])
    assert got[3].startswith(without[3]) and "faces: 3 of 3 found" in got[3] and "3 of 3 most like their own" in got[3]
    told(
        lambda: binding_report(scene, face_analyser=object()), "The face analyser is object", "Load Face Analyser (MIP)"
    )
