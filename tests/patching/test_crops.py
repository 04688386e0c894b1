"""A crop of a picture that is sampled as a picture of its own, as detailers and upscalers in tiles do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import torch
from torch import Tensor

from ..relevance.test_record import freeze, maps
from ..support.drawn import Colours, thing
from ..support.graphs import SIZE, prompt, references, sample
from .test_evaluated_crops import LEFT, regional
from .test_steering import applied

pytestmark = pytest.mark.usefixtures("host")


@pytest.fixture
def queued() -> Iterator[None]:
    """A prompt of its own, as the host's queue gives it to the nodes."""
    from comfy_execution.utils import CurrentNodeContext

    with CurrentNodeContext(str(uuid4()), "sampler"):
        yield


def again(model: Any, start: Tensor, steps: int = 4, **options: Any) -> Tensor:
    """A second sampling that starts from a picture, as detailers and hires fix do."""
    import comfy.sample

    with torch.inference_mode():
        noise = comfy.sample.prepare_noise(start, 3)
        conds = prompt("a cat beside a red coffee cup"), prompt("blurry")
        return comfy.sample.sample(
            model,
            noise,
            steps,
            4.0,
            "euler",
            "normal",
            *conds,
            start,
            denoise=0.4,
            disable_pbar=True,
            seed=3,
            **options,
        )


def resized(latent: Tensor, height: int, width: int) -> Tensor:
    return torch.nn.functional.interpolate(latent, size=(height, width), mode="bicubic")


def scene(batch: int = 1, seed: int = 5) -> Tensor:
    """A latent with a layout: the tiny model's own results are noise."""
    coarse = torch.randn(batch, 4, 6, 6, generator=torch.Generator().manual_seed(seed))
    return resized(coarse, *SIZE) * 3


def lone(**each: list) -> tuple:
    return references(("cat",), **each)


SECOND = {
    "the same": (regional, regional),
    "the same, without regions": (references, references),
    "another": (references, references),
    "another, with regions": (references, regional),
    "another, of one object": (regional, lone),
    "another, of one object with a region": (references, lambda: lone(region=[LEFT])),
}


@pytest.mark.usefixtures("queued")
@pytest.mark.parametrize("which", SECOND)
def test_a_crop_that_is_sampled_as_a_picture_of_its_own(which: str, caplog) -> None:
    """Through the model of the first picture or another MIP Apply's: it is known by what it shows."""
    from mip_adapter.relevance.report import relevance_report

    chains = [make() for make in SECOND[which]]
    model, record = applied(chains[0])
    other, own = (model, record) if which.startswith("the same") else applied(chains[1])
    placed = any(each.region is not None for each in chains[1])

    first = again(model, scene(2))
    assert not record.cropped  # the first run may start from any picture
    for silent in (resized(first, 24, 24), first[1:], resized(first, 24, 20), scene(1, seed=6)):
        again(other, silent, steps=2)
        assert not own.cropped and "crop" not in relevance_report(own, own.shares()) + caplog.text
    for crop in (first[..., :8, :8], first[..., 6:14, 4:12], first[..., 2:10, 1:13]):
        caplog.clear()
        again(other, resized(crop, 2 * crop.shape[-2], 2 * crop.shape[-1]), steps=2)
        assert own.cropped and own.snapshot().cropped
        report = relevance_report(own, own.shares())
        assert "started from a crop of a picture that an earlier sampling" in report
        assert ("the right way to detail that object" in report) == (len(chains[1]) == 1 and not placed)
        assert ("Every object was looked for in it" in report) == (len(chains[1]) == 2 and not placed)
        assert ("Regions and frozen maps are stretched" in report) == placed
        assert ("Regions and frozen maps are stretched" in caplog.text) == placed
    sample(other)
    assert not own.cropped  # from noise alone


@pytest.mark.usefixtures("queued")
def test_frozen_maps_on_a_crop(caplog) -> None:
    """Through a second MIP Apply, which freezes what the first recorded."""
    model, record = applied()
    first = again(model, scene())
    frozen, own = applied(frozen=freeze(record, first))
    again(frozen, first)
    assert not own.cropped and "crop" not in caplog.text
    again(frozen, resized(first[..., 6:14, 4:12], *SIZE))
    assert own.cropped and "Regions and frozen maps are stretched" in caplog.text


def test_results_of_another_prompt_are_forgotten() -> None:
    from mip_adapter.relevance.same_run import Results

    results, picture = Results(), scene()
    assert not results.cropped("one", picture)
    crop = resized(picture[..., 6:14, 4:12], *SIZE)
    results.add("one", picture)
    assert results.cropped("one", crop) and not results.cropped("two", crop)
    results.add("two", scene(seed=6))
    assert not results.cropped("one", crop) and not results.cropped("two", crop)
    results.add("two", torch.zeros_like(picture))  # what it resembles is nothing
    assert not results.cropped("two", torch.zeros_like(picture) + 1)
    assert not results.cropped("two", scene()[:, :3])  # another model's latent
    results.add(None, picture)  # who queues nothing has no prompt
    assert not results.cropped(None, crop)


def decoded(latent: Tensor) -> Tensor:
    """Pictures of a latent, whose colours are nearly linear in its channels."""
    mixed = torch.einsum("bchw,ck->bhwk", latent, torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    return resized((mixed * 0.1).sigmoid().movedim(-1, 1), 64, 64).clamp(0, 1).movedim(1, -1)


def test_maps_of_a_crop_are_not_drawn_over_the_whole_picture() -> None:
    model, record = applied()
    first = again(model, scene())
    assert maps(record, decoded(first))[0].shape[0] == 3
    crop = again(model, resized(first[..., 6:14, 4:12], *SIZE))
    assert maps(record, decoded(crop))[0].shape[0] == 3
    with pytest.raises(ValueError, match="of another sampling than the maps.* detailer's crop.* MIP Freeze Relevance"):
        maps(record, decoded(first))
    assert maps(freeze(record, first), decoded(first))[0].shape[0] == 3


def test_the_binding_report_asks_for_the_pictures_of_its_maps() -> None:
    """Or for some of them: of the best picture alone it takes the mean of the batch."""
    from mip_adapter.evaluation.detection.detections import Detections
    from mip_adapter.nodes.binding import MIPBindingReport

    model, record = applied()
    texts, boxes = tuple(each.text for each in references()), ((0, 0, 30, 30), (32, 32, 62, 62))

    def report(images: Tensor, maps: Any) -> str:
        found = Detections(texts, 64, 64, (tuple((thing(box),) for box in boxes),) * len(images))
        return MIPBindingReport.execute(images, references(), found, Colours(), maps).args[3]

    first = again(model, scene(2))
    for images in (decoded(first), decoded(first)[1:]):
        assert "places mixed while sampling" in report(images, record)
    crop = again(model, resized(first[..., 6:14, 4:12], *SIZE))
    assert "places mixed while sampling" in report(decoded(crop), record)
    with pytest.raises(ValueError, match="of another sampling than the maps.* MIP Freeze Relevance"):
        report(decoded(first), record)
    assert "places mixed while sampling" in report(decoded(first), freeze(record, first))


def test_a_second_pass_of_the_same_picture_is_drawn_over_either() -> None:
    model, record = applied()
    first = again(model, scene(2))
    second = again(model, resized(first, 24, 24))
    for latent in (first, second):
        assert maps(record, decoded(latent))[0].shape[0] == 6
