"""The miniature: seeded weights in the official layouts, the host's objects around them, and the demo."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from mip_adapter.miniature import config, demo, seeded


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    return {path.name: path for path in seeded.write_adapters(tmp_path_factory.mktemp("adapters") / "new")}


@pytest.mark.parametrize("family, tokens", [("base", config.BASE_TOKENS), ("plus", config.PLUS_TOKENS)])
def test_adapters_are_ordinary_ones(adapters, family, tokens):
    from mip_adapter.weights.adapter import load_adapter

    spec = load_adapter(adapters[f"miniature_{family}.safetensors"]).spec
    assert (spec.family, spec.tokens, spec.has_head) == (family, tokens, True)
    assert spec.context_dim == config.CONTEXT_DIM
    assert spec.sites == config.sites()


def test_seeded_numbers_depend_on_their_name_alone():
    first = seeded.fill("part", {"a.weight": (3, 4), "b.weight": (3, 4)})
    again = seeded.fill("part", {"b.weight": (3, 4), "new.weight": (2, 2), "a.weight": (3, 4)})
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["a.weight"], first["b.weight"])


@pytest.fixture(scope="module")
def bundle(host):
    from mip_adapter.miniature import host_bundle

    with torch.inference_mode():
        yield host_bundle.load()


def test_sites_are_those_of_the_host_unet(bundle):
    from mip_adapter.weights.sites import unet_sites

    sites = unet_sites(bundle[0].model.diffusion_model)
    assert tuple(sorted((site.number, site.width) for site in sites)) == config.sites()
    assert {site.context_dim for site in sites} == {config.CONTEXT_DIM}


def test_bundle_is_made_of_the_host_classes(bundle):
    from comfy.clip_vision import ClipVisionModel
    from comfy.model_base import SDXL
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE

    model, clip, vae, vision = bundle
    assert [type(part) for part in bundle] == [ModelPatcher, CLIP, VAE, ClipVisionModel]
    assert isinstance(model.model, SDXL)
    assert (vae.latent_channels, vae.downscale_ratio) == (4, 8)
    context = clip.encode_from_tokens(clip.tokenize("a cat and a cup"))
    assert context.shape == (1, 77, config.CONTEXT_DIM)
    seen = vision.encode_image(torch.rand(1, 90, 120, 3))
    side = config.CLIP_VISION["image_size"] // config.CLIP_VISION["patch_size"]
    assert seen["image_embeds"].shape == (1, config.CLIP_VISION["projection_dim"])
    assert seen["penultimate_hidden_states"].shape == (1, side**2 + 1, config.CLIP_VISION["hidden_size"])


def test_pictures_are_in_range_and_follow_words_and_seed(bundle):
    first = picture(bundle, "a cat beside a cup")
    assert first.shape == (1, 128, 128, 3)
    assert torch.isfinite(first).all() and first.min() >= 0 and first.max() <= 1
    assert first.std() > 0.02, "a flat picture"
    assert torch.equal(first, picture(bundle, "a cat beside a cup"))
    assert (first - picture(bundle, "a rocket in the sky")).abs().mean() > 0.01
    assert (first - picture(bundle, "a cat beside a cup", seed=1)).abs().mean() > 0.01


def picture(bundle, prompt: str, seed: int = 420, steps: int = 4) -> torch.Tensor:
    """[1, 128, 128, 3] in 0…1"""
    import comfy.sample

    model, clip, vae, _ = bundle
    conds = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (prompt, "")]
    latent = torch.zeros(1, 4, 16, 16)
    noise = comfy.sample.prepare_noise(latent, seed)
    made = comfy.sample.sample(
        model, noise, steps, 2.0, "euler", "normal", *conds, latent, seed=seed, disable_pbar=True
    )
    return vae.decode(made)


def test_a_trained_file_takes_the_place_of_the_seed(bundle, tmp_path, monkeypatch):
    from mip_adapter.miniature import host_bundle
    from safetensors.torch import save_file

    unet = bundle[0].model.diffusion_model
    trained = {key: torch.full_like(value, 0.25) for key, value in unet.state_dict().items()}
    save_file(trained, tmp_path / "unet.safetensors")
    monkeypatch.setattr(host_bundle, "FOLDER", tmp_path)
    model, clip, *_ = host_bundle.load()
    assert all((value == 0.25).all() for value in model.model.diffusion_model.state_dict().values())
    words = "clip_l.transformer.text_model.embeddings.token_embedding.weight"
    assert torch.equal(clip.cond_stage_model.state_dict()[words], bundle[1].cond_stage_model.state_dict()[words])


# ---- the demo, against a running server ----


def test_prepare_brings_photographs_and_adapters(tmp_path):
    from PIL import Image

    assert demo.main(["prepare", "--base-directory", str(tmp_path)]) == 0
    for name in demo.PHOTOGRAPHS:
        assert min(Image.open(tmp_path / "input" / name).size) >= 300
    assert {path.name for path in (tmp_path / "models/ipadapter").iterdir()} == set(seeded.ADAPTERS)


@pytest.fixture
def prepared(server):
    demo.prepare(server.base)
    return server


def run_demo(server, folder, workflow=None) -> int:
    more = []
    if workflow is not None:
        path = folder / "workflow.json"
        path.write_text(json.dumps(workflow))
        more = ["--workflow", str(path)]
    return main(["run", "--server", server.url, "--output", str(folder / "output"), *more])


def main(arguments: list[str]) -> int:
    """In a thread: where the browser's fixture is alive, this one has an event loop already."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(demo.main, arguments).result()


def test_demo_writes_two_different_pictures(prepared, tmp_path, capsys):
    from PIL import Image

    assert run_demo(prepared, tmp_path) == 0
    paths = sorted((tmp_path / "output").iterdir())
    said = capsys.readouterr().out
    assert all(str(path.resolve()) in said for path in paths)
    assert "not trained" in said
    pictures = [Image.open(path) for path in paths]
    assert [picture.size for picture in pictures] == [(128, 128)] * 2
    assert pictures[0].tobytes() != pictures[1].tobytes()


def workflow_with(node_title: str, **inputs) -> dict:
    workflow = json.loads(demo.WORKFLOW.read_text(encoding="utf-8"))
    node = next(node for node in workflow.values() if node["_meta"]["title"] == node_title)
    node["inputs"].update(inputs)
    return workflow


@pytest.mark.parametrize(
    "workflow, reasons",
    [
        (workflow_with("Reference 1: cat", text=" "), ["Reference 1: cat failed", "object text is empty"]),
        (workflow_with("Load MIP Adapter", adapter_name="nothing.safetensors"), ["nothing.safetensors", "refused"]),
        (workflow_with("Sample: uniform", steps=0), ["Sample: uniform", "steps", "refused"]),
        ({"1": {"class_type": "NoSuchNode", "inputs": {}}}, ["NoSuchNode", "refused"]),
        ({}, ["refused"]),
    ],
)
def test_demo_gives_the_servers_reason(prepared, tmp_path, capsys, workflow, reasons):
    assert run_demo(prepared, tmp_path, workflow) == 1
    said = capsys.readouterr().err
    assert all(reason in said for reason in reasons), said
    assert "Traceback" not in said


def test_demo_without_a_server(tmp_path, capsys):
    assert main(["run", "--server", "http://127.0.0.1:9", "--output", str(tmp_path)]) == 1
    assert "http://127.0.0.1:9" in capsys.readouterr().err
