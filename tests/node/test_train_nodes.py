"""MIPTrainAdapter and MIPSaveAdapter in the host's own process, and through a real server."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open

from ..support import graphs, queueing
from ..support.training_world import BEFORE, make_early, write_folder

ADAPTER, HEAD, ALL = "adapter and head", "head only", "adapter, head and projection"
SETTINGS = {"steps": 4, "learning_rate": 1e-3, "batch_size": 2, "train": ADAPTER, "seed": 3, "resolution": 64}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(host: SimpleNamespace) -> str:
    """The name of a folder below ComfyUI's input."""
    write_folder(host.base / "input" / "pictures", 6)
    return "pictures"


@cache
def vae() -> Any:
    from mip_adapter.miniature import comfy_bundle

    return comfy_bundle.load()[2]


@pytest.fixture(scope="module", autouse=True)
def release() -> Iterator[None]:
    yield
    vae.cache_clear()
    gc.collect()  # the host's models want to go before its modules do


def train(data: str, adapter: Any = None, model: Any = None, **changes: Any) -> tuple[Any, torch.Tensor]:
    """The node, as the host runs it."""
    from mip_adapter.nodes.train import MIPTrainAdapter

    parts = graphs.bundle()
    adapter = adapter or parts.adapters["base"]
    with torch.inference_mode():
        return MIPTrainAdapter.execute(
            model or parts.model, parts.clip, vae(), parts.vision, adapter, data, **(SETTINGS | changes)
        ).args


@pytest.mark.parametrize("part, why", [("clip", "The CLIP is missing"), ("vae", "VAE is invalid")])
def test_a_checkpoint_without_clip_or_vae(data: str, part: str, why: str) -> None:
    """As the host gives them for a file that holds the UNet alone."""
    import comfy.sd
    from mip_adapter.nodes.train import MIPTrainAdapter

    parts = graphs.bundle()
    with torch.inference_mode():
        clip, decoder = (None, vae()) if part == "clip" else (parts.clip, comfy.sd.VAE(sd={}))
        with pytest.raises((ValueError, RuntimeError), match=why):
            MIPTrainAdapter.execute(parts.model, clip, decoder, parts.vision, parts.adapters["base"], data, **SETTINGS)


@pytest.fixture(scope="module")
def trained(data: str) -> tuple[Any, torch.Tensor]:
    return train(data)


def changed(before: Any, after: Any) -> set[str]:
    """Which kinds of tensors differ."""
    from mip_adapter.training.trainable import flat_tensors

    old, new = flat_tensors(before), flat_tensors(after)
    assert old.keys() == new.keys()
    return {
        key.split(".")[-2] if key.startswith("ip_") else "projection" for key in old if not old[key].equal(new[key])
    }


def test_trains_what_it_says(trained: tuple[Any, torch.Tensor]):
    adapter, curve = trained
    assert changed(graphs.bundle().adapters["base"], adapter) == {"to_k_ip", "to_v_ip", "text_to_weight"}
    assert curve.shape[0] == 1 and curve.shape[-1] == 3 and curve.dtype == torch.float32
    assert 0 <= float(curve.min()) < 0.2 and float(curve.max()) == 1.0
    assert all(tensor.isfinite().all() for site in adapter.site_weights.values() for tensor in site[:3])


@pytest.mark.parametrize(
    ("what", "kinds"),
    [
        (HEAD, {"text_to_weight"}),
        (ALL, {"projection", "to_k_ip", "to_v_ip", "text_to_weight"}),
    ],
)
def test_trains_parts(data: str, what: str, kinds: set[str]):
    adapter, _ = train(data, graphs.bundle().adapters["plus"], train=what, steps=2)
    assert changed(graphs.bundle().adapters["plus"], adapter) == kinds


def test_the_model_samples_as_before(data: str):
    before = graphs.sample(graphs.bundle().model)
    train(data, steps=1, seed=11)
    assert torch.equal(graphs.sample(graphs.bundle().model), before)


def test_the_result_is_saved_loaded_and_used(host: SimpleNamespace, trained: tuple[Any, torch.Tensor]):
    from mip_adapter.nodes.adapter import MIPAdapterLoader
    from mip_adapter.nodes.merge import MIPFusionHead
    from mip_adapter.nodes.train import MIPSaveAdapter
    from mip_adapter.weights.comfy_files import adapter_names, register_folders

    register_folders()
    adapter, _ = trained
    first = MIPSaveAdapter.execute(adapter, "mip_adapter/trained").ui.as_dict()["text"][0]
    second = MIPSaveAdapter.execute(adapter, "mip_adapter/trained").ui.as_dict()["text"][0]
    head = MIPSaveAdapter.execute(adapter, "heads/mine", "head only").ui.as_dict()["text"][0]
    folder = host.base / "output" / "mip_adapter"
    names = ["trained.safetensors", "trained_2.safetensors", "heads/mine.safetensors"]
    assert [first, second, head] == [f"Saved {folder / name}" for name in names]
    assert set(names) <= {name.replace("\\", "/") for name in adapter_names()}
    loaded = MIPAdapterLoader.execute("trained_2.safetensors").args[0]
    for number, site in loaded.site_weights.items():
        assert all(torch.equal(a, b.half()) for a, b in zip(site[:3], adapter.site_weights[number][:3], strict=True))
    options = MIPFusionHead.execute(loaded, "image", 1.0, str(Path("heads/mine.safetensors"))).args[0]
    assert {n: tuple(row.shape) for n, row in options.weights.items()} == {n: (w,) for n, w in loaded.spec.site_widths}
    as_saved = _sampled_with(loaded)
    assert not torch.equal(graphs.sample(graphs.apply()), as_saved)
    without = graphs.sample(graphs.bundle().model)  # straight from training, float32; the file is float16
    assert graphs.deviation(_sampled_with(adapter), as_saved, without) < 0.02
    with safe_open(folder / "trained.safetensors", "pt") as file:
        about = file.metadata()
    assert json.loads(about["recipe"])["seed"] == 3 and len(json.loads(about["losses"])) == 4


def _sampled_with(adapter: Any) -> torch.Tensor:
    from mip_adapter.nodes.apply import MIPApply

    parts = graphs.bundle()
    with torch.inference_mode():
        patched = MIPApply.execute(parts.model, parts.clip, parts.vision, adapter, graphs.references(), 1.0, 0.0, 1.0)
    return graphs.sample(patched.args[0])


def test_a_name_that_is_taken_elsewhere_is_not_shadowed(host: SimpleNamespace, trained: tuple[Any, torch.Tensor]):
    """The loader knows files by name: one of models/ would hide ours."""
    from mip_adapter.nodes.train import MIPSaveAdapter
    from mip_adapter.weights.comfy_files import register_folders

    register_folders()
    other = host.base / "models" / "ipadapter" / "style.safetensors"
    other.parent.mkdir(parents=True, exist_ok=True)
    other.write_bytes(b"somebody's")
    said = MIPSaveAdapter.execute(trained[0], "style").ui.as_dict()["text"][0]
    assert said.endswith("style_2.safetensors") and other.read_bytes() == b"somebody's"


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/tmp/out", "mip_adapter/../../out", "", "a//b", "what?"])
def test_names_that_leave_the_folder_are_refused(trained: tuple[Any, torch.Tensor], name: str):
    from mip_adapter.nodes.train import MIPSaveAdapter

    with pytest.raises(ValueError, match="is no name for a file inside"):
        MIPSaveAdapter.execute(trained[0], name)


def test_an_interrupt_keeps_what_was_learnt(
    data: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Interrupted after a step and queued again: the same weights as without the interrupt, and no step twice."""
    import comfy.model_management as management
    import comfy.utils

    seen: list[int] = []

    def hook(value: int, total: int, preview: Any, node_id: Any = None) -> None:
        seen.append(value)
        if seen == [1]:
            management.interrupt_current_processing()
        management.throw_exception_if_processing_interrupted()  # as the server's own hook does

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    settings = {"steps": 2, "seed": 21, "ema": 0.5, "batch_size": 1, "gradient_accumulation": 2}
    with caplog.at_level(logging.INFO), pytest.raises(management.InterruptProcessingException):
        train(data, **settings)
    assert "interrupted after step 1 of 2" in caplog.text and "set steps to 1" in caplog.text
    now, _ = train(data, **(settings | {"steps": 1}))  # what is learnt so far, without a step more
    assert seen == [1]
    resumed, _ = train(data, **settings)
    assert seen == [1, 2]
    folder = max(run_folders(), key=lambda path: path.stat().st_mtime)
    folder.rename(folder.with_name("elsewhere"))
    whole, _ = train(data, **settings)
    assert not changed(resumed, whole) and changed(now, whole)
    longer, _ = train(data, **(settings | {"steps": 3}))
    assert seen == [1, 2, 1, 2, 3] and changed(longer, whole)


@pytest.mark.parametrize("trained", ["with a LoRA", "without, and a picture with one between"])
def test_a_lora_that_is_loaded_makes_no_other_base(data: str, trained: str):
    """The host puts LoRAs into the weights that all clones of a MODEL share."""
    from mip_adapter.common.hashing import weights_sha256

    plain = graphs.bundle().model
    styled = plain.clone()
    styled.add_patches({"diffusion_model.out.2.weight": (torch.ones(4, 32, 3, 3),)}, 0.5)
    plain.unpatch_model(plain.offload_device)
    base = weights_sha256(plain.model.diffusion_model)
    model = styled if trained == "with a LoRA" else plain
    train(data, model=model, steps=1, seed=31)
    graphs.sample(styled)
    assert weights_sha256(plain.model.diffusion_model) != base
    longer, _ = train(data, model=model, steps=2, seed=31)
    assert len(json.loads(longer.about["losses"])) == 2 and longer.about["base_weights_sha256"] == base


def test_pictures_may_be_added_and_removed(host: SimpleNamespace, caplog: pytest.LogCaptureFixture):
    folder = write_folder(host.base / "input" / "growing", 3)
    train("growing", steps=1, seed=41)
    write_folder(folder, 5)
    (folder / "jsons" / "000.json").unlink()
    longer, _ = train("growing", steps=2, seed=41)
    assert len(json.loads(longer.about["losses"])) == 2 and "from here on, 4 pictures" in caplog.text


def test_fewer_steps_than_are_kept_are_a_training_of_their_own(tmp_path: Path):
    from mip_adapter.training.checkpoints import earlier_losses, last_step, run_folder
    from mip_adapter.training.config import TrainConfig

    folder = run_folder(tmp_path, TrainConfig(steps=10), "adapter")
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("step-00000004.pt", "step-00000012.pt", ".step-00000099.pt.77.tmp"):
        (folder / "checkpoints" / name).touch()
    (folder / "loss.csv").write_text("step,loss\n1,0.5\n2,0.25\n3,0.125\n")
    assert last_step(folder) == 12 and earlier_losses(folder, 2) == [0.5, 0.25] and earlier_losses(tmp_path, 2) == []
    assert run_folder(tmp_path, TrainConfig(steps=12), "adapter") == folder
    assert run_folder(tmp_path, TrainConfig(steps=11), "adapter") == tmp_path / f"{folder.name}-11"


def test_a_training_from_before_the_official_rules_is_found_again(tmp_path: Path):
    """The digests of trainings that were begun before recipes had these settings."""
    from mip_adapter.training.checkpoints import run_folder
    from mip_adapter.training.config import TrainConfig
    from mip_adapter.training.filters import Filters

    assert run_folder(tmp_path, TrainConfig(steps=10), "adapter").name == "adapter-2917b73101ac"
    assert run_folder(tmp_path, TrainConfig(seed=3, ema=0.5), "adapter").name == "adapter-44c265ce0703"
    changes: list[dict[str, Any]] = [
        {}, {"normalization": "mean"}, {"head_start": "zeros"}, {"crop_holds": "used"}, {"latents": "mean"},
        {"noise_offset": 0.1}, {"filters": Filters(cropped_aspect="w/h")}, {"filters": Filters(area_min=0.1)},
    ]  # fmt: skip
    assert len({run_folder(tmp_path, TrainConfig(**each), "adapter") for each in changes}) == len(changes)


def test_a_training_from_before_the_official_rules_goes_on_by_its_own(data: str):
    train(data, steps=1, seed=61)
    newest = max(run_folders(), key=lambda folder: folder.stat().st_mtime)
    make_early(newest)
    longer, _ = train(data, steps=2, seed=61)
    recipe = json.loads(longer.about["recipe"])
    assert len(json.loads(longer.about["losses"])) == 2 and (newest / "checkpoints" / "step-00000002.pt").is_file()
    assert BEFORE.items() <= recipe.items() and recipe["filters"]["cropped_aspect"] == "w/h"


def run_folders() -> list[Path]:
    import folder_paths

    return list(Path(folder_paths.get_output_directory(), "mip_adapter_training").iterdir())


def test_previews_show_the_curve(data: str, monkeypatch: pytest.MonkeyPatch):
    import comfy.utils

    shown: list[Any] = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda v, t, preview, node_id=None: shown.append(preview))
    train(data, steps=2, seed=5)
    kind, picture, size = shown[-1]
    assert kind == "JPEG" and picture.mode == "RGB" and size >= max(picture.size)


def test_other_models_loras_and_settings_have_folders_of_their_own():
    from mip_adapter.training.checkpoints import run_folder
    from mip_adapter.training.comfy_model import model_parts
    from mip_adapter.training.config import TrainConfig

    model = graphs.bundle().model
    base, key = Path("base"), "diffusion_model.out.2.weight"
    patched = model.clone()
    patched.add_patches({key: (torch.ones(4, 32, 3, 3),)}, 0.5)
    weaker = model.clone()
    weaker.add_patches({key: (torch.ones(4, 32, 3, 3),)}, 0.25)
    other = model.clone()
    other.add_patches({key: (torch.zeros(4, 32, 3, 3),)}, 0.5)
    folders = {run_folder(base, TrainConfig(), model_parts(each)) for each in (model, patched, weaker, other)}
    folders.add(run_folder(base, TrainConfig(seed=1), model_parts(model)))
    assert len(folders) == 5
    assert run_folder(base, TrainConfig(steps=7), model_parts(model.clone())) == run_folder(
        base, TrainConfig(), model_parts(model)
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": ""}, "dataset_folder is empty"),
        ({"data": "nowhere"}, "There is no training data at"),
        ({"data": "."}, "expected jsons/ID.json"),
        ({"train": "everything"}, "choose one of: adapter and head"),
        ({"precision": "int3"}, "choose one of auto"),
        ({"resolution": 100}, "multiple of 64"),
        ({"learning_rate": 1e30}, "Lower learning_rate"),
    ],
)
def test_bad_input_gets_a_sentence(data: str, changes: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=".{30,}") as caught:
        train(**({"data": data} | changes))
    assert says in str(caught.value)


def test_the_server_is_told_before_it_runs(data: str):
    from mip_adapter.nodes.train import MIPTrainAdapter

    assert MIPTrainAdapter.validate_inputs(data) is True and MIPTrainAdapter.validate_inputs(None) is True
    assert "no training data at" in str(MIPTrainAdapter.validate_inputs("nowhere"))


def test_through_the_server(server: Any):
    """Queued, interrupted, queued again for the steps that were made, saved, listed by the loader."""
    from mip_adapter.research.miniature.seeded import write_adapters

    base = Path(server.base)
    write_adapters(base / "models" / "mip_adapter")
    write_folder(base / "input" / "pictures", 4)
    first = queueing.queue(server, graph(steps=100_000, checkpoint_every=1))
    runs = base / "output" / "mip_adapter_training"
    queueing.wait_for(lambda: [*runs.glob("adapter-*/checkpoints/step-*.pt")] or queueing.history(server, first))
    queueing.post(server, "interrupt").raise_for_status()
    status = queueing.ended(server, first)["status"]
    assert "execution_interrupted" in [name for name, _ in status["messages"]], status
    step = max(int(path.stem.removeprefix("step-")) for path in runs.glob("adapter-*/checkpoints/step-*.pt"))
    assert 1 <= step < 100_000
    assert f"Training was interrupted after step {step} of 100000" in Path(server.log).read_text("utf-8", "replace")
    outputs = queueing.run(server, graph(steps=step))["outputs"]
    assert outputs["6"]["text"] == [f"Saved {base / 'output' / 'mip_adapter' / 'served.safetensors'}"]
    assert outputs["7"]["images"]
    known = queueing.get(server, "object_info/MIPAdapterLoader").json()["MIPAdapterLoader"]["input"]["required"]
    assert "served.safetensors" in str(known["adapter_name"])
    wrong = queueing.post(server, "prompt", {"prompt": graph(dataset_folder="nowhere")})
    assert wrong.status_code == 400 and "no training data at" in wrong.text


def graph(**settings: Any) -> dict[str, Any]:
    train = {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "clip_vision": ["1", 3], "adapter": ["2", 0]}
    train |= {"dataset_folder": "pictures", **SETTINGS, **settings}
    return {
        "1": {"class_type": "MIPMiniatureLoader", "inputs": {}},
        "2": {"class_type": "MIPAdapterLoader", "inputs": {"adapter_name": "miniature_base.safetensors"}},
        "5": {"class_type": "MIPTrainAdapter", "inputs": train},
        "6": {"class_type": "MIPSaveAdapter", "inputs": {"adapter": ["5", 0], "filename_prefix": "mip_adapter/served"}},
        "7": {"class_type": "PreviewImage", "inputs": {"images": ["5", 1]}},
    }
