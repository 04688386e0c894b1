"""The miniature's adapters: trained over drawn scenes, cut and resumed, written where loaders find them."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mip_adapter.miniature import config, world
from mip_adapter.research.ablation import arms
from mip_adapter.research.miniature import clip, seeded, trained
from mip_adapter.training.config import TrainConfig
from mip_adapter.training.earlier_rules import with_every_setting
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ..support.paths import ROOT
from ..support.subprocesses import finished

SMALL = {"steps": 10, "batch_size": 4, "warmup": 1, "ema": 0.5, "save_every": 3}


@pytest.fixture(scope="module")
def bundle(host):
    from mip_adapter.miniature import comfy_bundle

    with torch.inference_mode():
        return comfy_bundle.load()


class Words:
    """What `base.Conditioner` gives, from the host's own CLIP."""

    device = torch.device("cpu")

    def __init__(self, bundle):
        self.model, self.clip = bundle[0], bundle[1]

    def __call__(self, captions):
        with torch.inference_mode():
            pairs = [self.clip.encode_from_tokens(self.clip.tokenize(c), return_pooled=True) for c in captions]
            context, pooled = (torch.cat(each) for each in zip(*pairs, strict=True))
            noise = torch.zeros(1, 4, 16, 16)
            vector = self.model.model.encode_adm(pooled_output=pooled, noise=noise, device=pooled.device)
        return context.float().clone(), vector.clone()


@pytest.fixture(scope="module")
def parts(bundle):
    """An untrained miniature, as the stages before leave a trained one."""
    from mip_adapter.training.comfy_model import release_inference_tensors

    torch.manual_seed(0)
    vae, vision = nn.Module(), clip.Vision(config.CLIP_VISION).requires_grad_(False)
    vae.taesd_encoder = nn.Conv2d(3, 4, 8, stride=8)
    vae.requires_grad_(False)
    unet = bundle[0].model.diffusion_model
    release_inference_tensors(unet)
    return {"unet": unet, "vae": vae, "vision": vision, "condition": Words(bundle)}


# ---- scenes with references ----


def paired(parts, folder, **changes):
    from mip_adapter.research.miniature.stages.paired import Paired

    return Paired(parts["vae"], parts["vision"], folder, TrainConfig(**{"batch_size": 2, **changes}), shards=1, size=12)


def test_features_are_those_of_the_scenes_own_references(parts, tmp_path):
    scenes = paired(parts, tmp_path, min_objects=1, max_objects=3)
    drawn, row = scenes.scenes[0], 7
    pictures = world.references(drawn, int(drawn.kinds.sum()))
    own = slice(row * world.OBJECTS, row * world.OBJECTS + len(drawn.present(row)))
    images = world.render(pictures, config.CLIP_VISION["image_size"]).images[own]
    hidden, embeds = parts["vision"](clip.normalised(images))
    assert torch.allclose(scenes.features([row], "image_embeds"), embeds, atol=1e-2)
    assert torch.allclose(scenes.features([row], "penultimate_hidden_states"), hidden, atol=1e-2)
    assert scenes.features([3, row], "image_embeds").shape[0] == len(drawn.present(3)) + len(drawn.present(row))
    again = paired(parts, tmp_path, min_objects=1, max_objects=3)
    again._see = None  # from disk now
    assert torch.equal(again.embeds, scenes.embeds)


def test_encoding_ends_where_it_is_asked_to_and_goes_on_from_there(parts, tmp_path):
    from mip_adapter.research.miniature.stages.paired import Paired
    from mip_adapter.training.trainer import Stopped

    asked = iter([False, True])
    given = parts["vae"], parts["vision"], tmp_path, TrainConfig()
    cut = Paired(*given, shards=3, size=4, asked_to_stop=lambda: next(asked))
    with pytest.raises(Stopped, match="before shard 2 of the scenes' embeds"):
        _ = cut.embeds
    (kept,) = tmp_path.rglob("embeds-*.pt")
    written = kept.stat().st_mtime_ns
    assert len(Paired(*given, shards=3, size=4).embeds) == 3 * 4 * 2
    assert kept.stat().st_mtime_ns == written and len([*tmp_path.rglob("embeds-*.pt")]) == 3


def test_captions_and_texts_name_kinds_only(parts, tmp_path):
    from mip_adapter.miniature.world_looks import COLOURS, PATTERNS

    scenes = paired(parts, tmp_path)
    said = " ".join(" ".join((scenes[i].caption, *scenes[i].names)) for i in range(60))
    assert not set(said.replace(",", "").split()) & {*COLOURS, *PATTERNS}
    for i in range(12):
        assert len(scenes[i].names) == 2 and all(name in scenes[i].caption for name in scenes[i].names)


def test_an_epoch_shows_every_scene_once_and_leaves_some_out(parts, tmp_path):
    scenes = paired(parts, tmp_path, drop_text=0.2, drop_image=0.2, drop_both=0.1)
    assert sorted(scenes[i].row for i in range(24)) == sorted([*range(12)] * 2)
    assert [scenes[i].row for i in range(12)] != [scenes[i].row for i in range(12, 24)]
    assert scenes[5] == paired(parts, tmp_path, drop_text=0.2, drop_image=0.2, drop_both=0.1)[5]
    rows = [scenes[i] for i in range(2000)]
    for share, got in ((0.3, [r.drop_text for r in rows]), (0.3, [r.drop_image for r in rows]),
                       (0.1, [r.drop_text and r.drop_image for r in rows])):  # fmt: skip
        assert abs(sum(got) / len(got) - share) < 0.03


# ---- the frozen model ----


def test_what_is_trained_is_what_the_nodes_sample(bundle, parts, tmp_path, monkeypatch):
    """One look at noisy latents: training's merge over a batch against MIP Apply's, picture by picture."""
    from mip_adapter.attention.options import Merge
    from mip_adapter.attention.reference import make_reference
    from mip_adapter.patching.apply import apply_references
    from mip_adapter.patching.object_text import encode_object_text
    from mip_adapter.research.miniature.stages import comfy_frozen
    from mip_adapter.training.site import Merging, RowObjects
    from mip_adapter.weights.adapter import build_adapter
    from mip_adapter.weights.projection import project

    model, encoder, _, vision = bundle
    adapter = build_adapter(seeded.base_adapter(), "seeded")
    trials = arms.make_trials(2, 2, arms.SEED_TEST)
    monkeypatch.setattr(comfy_frozen, "activations", lambda _: torch.float32)  # float32, to compare closely
    frozen = comfy_frozen.Frozen(parts["unet"], parts["vision"], parts["condition"], paired(parts, tmp_path))
    noisy, steps = torch.randn(2, 4, 16, 16), torch.tensor([300, 300])
    sigma = model.get_model_object("model_sampling").sigmas[300]
    ours, theirs = [], []
    with torch.inference_mode():
        features = vision.encode_image(trials.references.flatten(0, 1).movedim(1, -1))["image_embeds"].float()
        texts = [[encode_object_text(encoder, text, adapter) for text in trials.texts(i)] for i in range(2)]
        context, vector = frozen.words(trials.prompts)
        objects = RowObjects.gather(project(adapter, features), texts)
        batch = SimpleNamespace(context=context, vector=vector)
        merging = Merging(adapter.site_weights, objects, Merge("relevance"), "image", scale=1.0)
        ours = frozen.predict(noisy, steps, batch, merging)
        for i in range(2):
            pictures = trials.references[i].movedim(1, -1)
            chain = tuple(make_reference(p[None], t) for p, t in zip(pictures, trials.texts(i), strict=True))
            patched = apply_references(model, encoder, vision, adapter, chain, scale=1.0, merge=Merge("relevance"))
            options = {**patched.model_options["transformer_options"], "cond_or_uncond": [0], "sigmas": sigma[None]}
            given = noisy[i : i + 1], steps[:1].float()
            theirs.append(
                model.model.diffusion_model(
                    *given, context=context[i : i + 1], y=vector[i : i + 1], transformer_options=options
                )
            )
        plain = frozen.predict(noisy, steps, batch, replace(merging, scale=0.0))
    difference = (ours - torch.cat(theirs)).norm() / torch.cat(theirs).norm()
    assert difference < 1e-4
    assert (plain - ours).norm() / ours.norm() > 0.02


# ---- runs ----


@pytest.fixture
def stage(parts, monkeypatch):
    """`train_all` over the untrained parts, with small recipes."""
    from mip_adapter.research.miniature.stages import comfy_adapters

    monkeypatch.setattr(comfy_adapters, "prepare", lambda threads: torch.device("cpu"))
    monkeypatch.setattr(comfy_adapters, "_parts", lambda work, device: parts)
    monkeypatch.setattr(comfy_adapters, "QUICK", SMALL)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(comfy_adapters, "unet", parts["unet"], raising=False)
    return comfy_adapters


def test_every_kind_trains_and_lowers_the_loss_on_scenes_held_out(stage, tmp_path):
    from mip_adapter.weights.adapter import load_adapter

    stage.train_all([*trained.KINDS], [0], tmp_path, 60, 1, quick=True)
    runs = stage.runs_of(stage.unet, tmp_path / "quick")
    files = {kind: stage.result(kind, 0, runs) for kind in trained.KINDS}
    for kind, file in files.items():
        held_out = json.loads(file.with_suffix(".json").read_text())["held_out"]
        assert held_out["after"] < held_out["before"], kind
        spec = load_adapter(file).spec
        gated = trained.KINDS[kind].recipe.gate != "off"
        assert (spec.family, spec.has_head) == ("plus" if "plus" in kind else "base", gated)
        assert spec.site_widths == config.sites() and spec.context_dim == config.CONTEXT_DIM
    changed = changes(files["stock"], files["mip"])
    assert not any(key.startswith("image_proj") for key in changed) and any("to_k_ip" in key for key in changed)
    assert all("text_to_weight" in key for key in changes(files["stock"], files["head-only"]))
    assert changes(files["mip"], files["uniform-trained"])


def same(some, others) -> bool:
    return some.keys() == others.keys() and all(torch.equal(value, others[key]) for key, value in some.items())


def changes(before, after) -> list[str]:
    old, new = load_file(before), load_file(after)
    return [key for key, value in new.items() if key not in old or not torch.equal(value, old[key])]


def test_a_run_that_was_cut_goes_on_as_if_it_had_not_been(stage, tmp_path, monkeypatch):
    run = partial(stage.train_all, ["stock"], [1], ungated=True)
    whole, cut = (stage.runs_of(stage.unet, tmp_path / name) for name in ("whole", "cut"))
    stock = trained.KINDS["stock"]
    monkeypatch.setitem(trained.KINDS, "stock", stock._replace(recipe=replace(stock.recipe, **SMALL)))
    drawn = partial(stage.Paired, shards=1, size=8)
    monkeypatch.setattr(stage, "Paired", lambda *given, **more: drawn(*given, **{**more, "shards": 1, "size": 8}))
    run(tmp_path / "whole", 60, 1)
    run(tmp_path / "cut", 60, 1, steps=5)  # finished, and then the recipe got more steps
    short = load_file(stage.result("stock", 1, cut))
    once = stage.train
    monkeypatch.setattr(stage, "train", lambda *given, **more: once(*given, **{**more, "asked_to_stop": lambda: True}))
    for _ in range(4):
        run(tmp_path / "cut", 60, 1)
        assert same(short, load_file(stage.result("stock", 1, cut)))
    monkeypatch.setattr(stage, "train", once)
    run(tmp_path / "cut", 60, 1)
    assert not changes(*(stage.result("stock", 1, runs) for runs in (whole, cut)))
    written = stage.export(tmp_path / "cut", tmp_path / "pack")
    assert written == [trained.file("stock", 1, tmp_path / "pack")] and trained.seeds("stock", tmp_path / "pack") == (
        1,
    )
    curve = (tmp_path / "pack" / "checkpoints" / "adapters" / "stock-1.csv").read_text()
    assert curve.startswith("step,loss")


# ---- in the host ----


def test_the_pack_lists_its_own_adapters_after_the_users(host, monkeypatch, tmp_path):
    from mip_adapter.nodes.adapter import MIPAdapterLoader
    from mip_adapter.weights import comfy_files

    ours, users = tmp_path / "ours", tmp_path / "models"
    for folder, name in ((ours, "miniature_mip"), (users, "zebra"), (users, "miniature_mine")):
        folder.mkdir(exist_ok=True)
        save_file(seeded.base_adapter(), folder / f"{name}.safetensors")
    import folder_paths

    monkeypatch.setattr(comfy_files, "MINIATURE", str(ours))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {"mip_adapter": ([str(users)], {".safetensors"})})
    comfy_files.register_folders()
    names = comfy_files.adapter_names()
    users_own = [name for name in names if (users / name).is_file()]  # the host may have files of its own beside them
    assert users_own == ["miniature_mine.safetensors", "zebra.safetensors"]
    assert names[-1] == "miniature_mip.safetensors" and names.index(users_own[-1]) < len(names) - 1
    adapter, about = MIPAdapterLoader.execute("miniature_mip.safetensors").result
    assert about.startswith("MIP-Adapter base for") and "4 tokens, with fusion head; needs" in about
    assert adapter.spec.site_widths == config.sites()
    # What comes with the pack says how to get it back; what is the artist's own does not.
    for folder, name, cured in ((ours, "miniature_mip", True), (users, "zebra", False)):
        (folder / f"{name}.safetensors").write_bytes(b"cut off")
        with pytest.raises(ValueError) as error:
            MIPAdapterLoader.execute(f"{name}.safetensors")
        assert ("train.py --stage adapters" in str(error.value)) == cured and name in str(error.value)
    (ours / "miniature_mip.safetensors").unlink()
    said = MIPAdapterLoader.validate_inputs("miniature_mip.safetensors")
    assert isinstance(said, str) and "git checkout -- miniature/adapters/miniature_mip.safetensors" in said


def test_the_adapters_are_those_of_the_log():
    """Beside each adapter's curve stands how it was trained, over which base, and its file's digest."""
    log = trained.logs() / "adapters"
    there = [(kind, seed) for kind in trained.KINDS for seed in trained.seeds(kind)]
    assert {f"{kind}-{seed}.json" for kind, seed in there} == {file.name for file in log.glob("*.json")}
    for kind, seed in there:
        about = json.loads((log / f"{kind}-{seed}.json").read_text())
        assert about["sha256"] == sha256(trained.file(kind, seed).read_bytes()).hexdigest()
        assert about["steps"] == trained.KINDS[kind].recipe.steps and about["seconds"] > 0


def test_a_training_of_today_would_use_the_recipes_of_the_files():
    """Settings that came later stand as training was before: the same adapters would come of it."""
    for kind, about in trained.KINDS.items():
        for seed in trained.seeds(kind):
            with safe_open(trained.file(kind, seed), "pt") as file:
                saved = json.loads((file.metadata() or {})["recipe"])
            assert with_every_setting(saved) == replace(about.recipe, seed=seed).as_dict(), (kind, seed)


def test_listed_adapters_lie_where_the_host_looks():

    listed = {trained.file(kind, 0).parent for kind, about in trained.KINDS.items() if about.listed}
    assert listed == {ROOT / "miniature" / "adapters"}
    assert "miniature" in {part.name for folder in listed for part in folder.parents}


@pytest.mark.timeout(3600)
def test_quick_training_runs_every_stage(host, tmp_path):
    """The command that CI runs: from nothing to adapters, a few steps a stage."""
    line = [
        sys.executable,
        str(ROOT / "research" / "miniature" / "train.py"),
        *("--quick", "--steps", "2", "--threads", "1", "--work", str(tmp_path)),
    ]
    done = finished([*line, "--export", tmp_path / "made"])
    assert done.returncode == 0, done.stderr
    # The base's loss depends mostly on the noise levels that were drawn, so it is compared at like levels.
    compared = {"vae": "loss", "encoders": "loss", "base": "middle", "places": "middle"}
    for stage, column in {**compared, "vision": "loss"}.items():
        with (tmp_path / "quick" / f"{stage}.csv").open() as rows:
            losses = [float(row[column]) for row in csv.DictReader(rows)]
        assert losses[-1] < losses[0], stage
    (runs,) = (tmp_path / "quick" / "adapters").iterdir()
    for kind in trained.KINDS:
        held_out = json.loads((runs / f"{kind}-0.json").read_text())["held_out"]
        # Over so young a base an adapter learns nothing yet. Over the finished one it does: see the test above.
        assert 0 < held_out["after"] < 1.1 * held_out["before"], kind
    check_export(tmp_path / "made")


def check_export(folder: Path) -> None:
    """What was exported is what the loader reads: a picture with references, by the nodes' code."""
    from mip_adapter.attention.reference import make_reference
    from mip_adapter.miniature import comfy_bundle
    from mip_adapter.patching.apply import apply_references
    from mip_adapter.research import comfy_rows
    from mip_adapter.weights.adapter import load_adapter

    about = json.loads((folder / "weights.json").read_text())
    assert {name: sha256((folder / name).read_bytes()).hexdigest() for name in about} == {
        name: facts["sha256"] for name, facts in about.items()
    }
    with torch.inference_mode():
        model, text, vae, vision = comfy_bundle.load(folder)
        adapter = load_adapter(trained.file("mip", 0, folder))
        references = tuple(make_reference(torch.rand(1, 64, 64, 3), text) for text in ("star", "ring"))
        merged = apply_references(model, text, vision, adapter, references, scale=1.0)
        context, pooled = text.encode_from_tokens(text.tokenize("a star and a ring"), return_pooled=True)
        positive = comfy_rows.conditioning([(context, pooled)])
        latents = comfy_rows.sample(merged, positive, positive, comfy_rows.noise_of([0], 16), 2, 1.0, "euler")
        assert vae.decode(latents).isfinite().all()


def test_adapters_want_a_base_that_passed(stage, parts, tmp_path, monkeypatch):
    from mip_adapter.common.hashing import weights_sha256

    monkeypatch.setattr(stage.packing, "FOLDER", tmp_path / "none")
    with pytest.raises(ValueError, match="not put to its gate yet"):
        stage.train_all(["stock"], [0], tmp_path, 1, 1)
    gate = {"presence": 0.7, "right_word": 0.9, "passes": False, "base_weights_sha256": weights_sha256(parts["unet"])}
    (tmp_path / "gate.json").write_text(json.dumps(gate))
    with pytest.raises(ValueError, match="has not passed its gate .*presence 0.70"):
        stage.train_all(["stock"], [0], tmp_path, 1, 1)
    stage.check_gate(gate["base_weights_sha256"], _passed(tmp_path / "passed", gate))


def _passed(folder: Path, gate: dict) -> Path:
    folder.mkdir()
    (folder / "gate.json").write_text(json.dumps({**gate, "passes": True}))
    return folder
