"""The miniature: its files as the host's own objects, adapters in the official layouts, and the demo."""

import hashlib
import json
import shutil
import time

import pytest
import torch
from mip_adapter.commands import demo
from mip_adapter.common.bundled import MINIATURE
from mip_adapter.miniature import config
from mip_adapter.research.miniature import seeded

from ..support.loops import aside


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    return {path.name: path for path in seeded.write_adapters(tmp_path_factory.mktemp("adapters") / "new")}


@pytest.mark.parametrize("family, tokens", [("base", config.BASE_TOKENS), ("plus", config.PLUS_TOKENS)])
def test_adapters_are_ordinary_ones(adapters, family, tokens):
    from mip_adapter.weights.adapter import load_adapter

    spec = load_adapter(adapters[f"miniature_{family}.safetensors"]).spec
    assert (spec.family, spec.tokens, spec.has_head) == (family, tokens, True)
    assert spec.context_dim == config.CONTEXT_DIM
    assert spec.site_widths == config.sites()


def test_seeded_numbers_depend_on_their_name_alone():
    first = seeded.fill("part", {"a.weight": (3, 4), "b.weight": (3, 4)})
    again = seeded.fill("part", {"b.weight": (3, 4), "new.weight": (2, 2), "a.weight": (3, 4)})
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["a.weight"], first["b.weight"])


@pytest.fixture(scope="module")
def bundle(host):
    from mip_adapter.miniature import comfy_bundle

    with torch.inference_mode():
        yield comfy_bundle.load()


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


# ---- its files ----


@pytest.fixture
def files(host, tmp_path):
    """A copy of the four files."""
    from mip_adapter.miniature import comfy_bundle

    for part in comfy_bundle.MODELS:
        shutil.copy(MINIATURE / f"{part}.safetensors", tmp_path)
    return tmp_path


def test_it_is_small_and_loads_fast(host):
    """All that is shipped, adapters of the arms included; and what an artist waits for."""
    from mip_adapter.miniature import comfy_bundle

    assert sum(file.stat().st_size for file in MINIATURE.rglob("*.safetensors")) <= 60e6
    begun = time.process_time()
    with torch.inference_mode():
        comfy_bundle.load()
    assert time.process_time() - begun < 5


def test_its_files_are_those_of_the_log(host):
    """weights.json says what was trained how; its digests are the files'."""
    from mip_adapter.miniature import comfy_bundle

    log = json.loads((MINIATURE / "weights.json").read_text())
    assert set(log) == {f"{part}.safetensors" for part in comfy_bundle.MODELS}
    for name, about in log.items():
        assert hashlib.sha256((MINIATURE / name).read_bytes()).hexdigest() == about["sha256"]
        assert about["step"] > 500 and about["seconds"] > 0


@pytest.mark.parametrize("harm", ["missing", "cut off", "of another model", "with a key too many"])
@pytest.mark.parametrize("part", ["unet", "clip", "vae", "clip_vision"])
def test_a_bad_file_is_named_with_what_mends_it(files, part, harm):
    from mip_adapter.miniature import comfy_bundle
    from safetensors.torch import load_file, save_file

    file = files / f"{part}.safetensors"
    if harm == "missing":
        file.unlink()
    elif harm == "cut off":
        file.write_bytes(file.read_bytes()[:5000])
    else:
        more = load_file(file) if harm == "with a key too many" else {}
        save_file(more | {"something.weight": torch.zeros(2)}, file)
    with pytest.raises(ValueError) as error:
        comfy_bundle.load(files)
    said = str(error.value)
    assert str(file) in said and all(
        cure in said
        for cure in ("Install the pack again", "train.py --export miniature", f"git checkout -- miniature/{file.name}")
    )


# ---- pictures of its world ----


def test_drawn_objects_show_what_was_asked_for():
    from mip_adapter.miniature import judge, judge_looks
    from mip_adapter.miniature.drawing import draw_object, look_of
    from mip_adapter.miniature.world_shapes import KINDS

    for kind, *look in (
        ("star", "striped", "yellow", "green"),
        ("fish", "dotted", "blue", "red"),
        ("ring", "plain", "teal", "pink"),
    ):
        pictures = [draw_object(kind, *look, pose=pose) for pose in (1, 2)]
        assert not torch.equal(*pictures) and pictures[0].shape == (1, 224, 224, 3)
        for picture in pictures:
            image = picture[0].movedim(-1, 0)
            (found,) = judge.judge(image[None])[0]
            assert KINDS[found.kind] == kind and judge_looks.look(image, found) == look_of(*look)


def test_the_node_draws_and_refuses(host):
    from mip_adapter.nodes.miniature import MIPMiniatureObject

    (picture,) = MIPMiniatureObject.execute("star", "plain", "red", "red", 3).result
    assert picture.shape == (1, 224, 224, 3) and picture.min() >= 0 and picture.max() <= 1
    assert MIPMiniatureObject.validate_inputs("star", "plain", "red", "red") is True
    assert "kind is 'dragon'" in MIPMiniatureObject.validate_inputs("dragon", "plain", "red", "red")


# ---- the demo, against a running server ----


def test_prepare_brings_pictures(tmp_path):
    from PIL import Image

    assert demo.main(["prepare", "--base-directory", str(tmp_path)]) == 0
    for name in demo.PHOTOGRAPHS:
        assert min(Image.open(tmp_path / "input" / name).size) >= 300


def run_demo(server, folder, workflow=None) -> int:
    more = []
    if workflow is not None:
        path = folder / "workflow.json"
        path.write_text(json.dumps(workflow))
        more = ["--workflow", str(path)]
    return main(["run", "--server", server.url, "--output", str(folder / "output"), *more])


def main(arguments: list[str]) -> int:
    """In a thread: where the browser's fixture is alive, this one has an event loop already."""
    return aside(demo.main, arguments)


def test_demo_makes_pictures_with_both_merges(server, tmp_path, capsys):
    from PIL import Image

    assert run_demo(server, tmp_path) == 0
    paths = sorted((tmp_path / "output").glob("miniature*.png"))
    said = capsys.readouterr().out
    assert all(str(path.resolve()) in said for path in paths)
    uniform, relevance, maps = ([p for p in paths if name in p.name] for name in ("uniform", "relevance", "maps"))
    assert (len(uniform), len(relevance), len(maps)) == (4, 4, 12)
    for one, other in zip(uniform, relevance, strict=True):
        assert Image.open(one).size == Image.open(other).size == (128, 128)
        assert Image.open(one).tobytes() != Image.open(other).tobytes()
    assert "of 8 objects" in said and (tmp_path / "output" / demo.SHEET).is_file()


def test_the_demos_picture_counts_who_wears_what(tmp_path):
    """From drawn pictures: above, two pictures with the looks exchanged and one without the fish; below, all right."""
    from mip_adapter.commands import demo_sheet
    from mip_adapter.miniature import world
    from mip_adapter.miniature.world_looks import palette
    from mip_adapter.miniature.world_shapes import KINDS
    from PIL import Image

    workflow = json.loads(demo.WORKFLOW.read_text(encoding="utf-8"))
    objects = demo_sheet.objects_of(workflow)
    assert [each.kind for each in objects] == ["heart", "fish"]
    scenes = world.sample(4, 5, (2,))
    own = torch.tensor([each.look for each in objects])
    for name in ("uniform", "relevance"):
        looks, kinds = own.repeat(4, 1, 1), torch.tensor([[KINDS.index("heart"), KINDS.index("fish")]]).repeat(4, 1)
        if name == "uniform":
            looks[:2], kinds[2, 1] = looks[:2].flip(1), -1
        changes = {"looks": looks, "kinds": kinds, "colours": palette()[looks[..., 1:]]}
        rest = {key: getattr(scenes, key)[:, :2] for key in ("centres", "radii", "turns")}
        drawn = world.render(world.Scenes(**{**vars(scenes), **rest, **changes})).images
        for i, image in enumerate(drawn):
            pixels = (image.movedim(0, -1) * 255).round().byte().numpy()
            Image.fromarray(pixels).save(tmp_path / f"miniature {name}_{i}_.png")
            for m in range(3):
                Image.fromarray(pixels).save(tmp_path / f"miniature maps_{3 * i + m:02}_.png")
    counts = demo.explain(workflow, sorted(tmp_path.iterdir()), tmp_path / "sheet.png")
    assert counts == {"uniform": (3, 8), "relevance": (8, 8)}
    assert Image.open(tmp_path / "sheet.png").width > 1000


def workflow_with(node_title: str, **inputs) -> dict:
    workflow = json.loads(demo.WORKFLOW.read_text(encoding="utf-8"))
    node = next(node for node in workflow.values() if node["_meta"]["title"] == node_title)
    node["inputs"].update(inputs)
    return workflow


@pytest.mark.parametrize(
    "workflow, reasons",
    [
        (workflow_with("Reference 1: heart", text=" "), ["Reference 1: heart", "object text is empty"]),
        (workflow_with("Load MIP Adapter", adapter_name="nothing.safetensors"), ["nothing.safetensors", "refused"]),
        (workflow_with("Sample: uniform", steps=0), ["Sample: uniform", "steps", "refused"]),
        ({"1": {"class_type": "NoSuchNode", "inputs": {}}}, ["NoSuchNode", "refused"]),
        ({}, ["refused"]),
    ],
)
def test_demo_gives_the_servers_reason(server, tmp_path, capsys, workflow, reasons):
    assert run_demo(server, tmp_path, workflow) == 1
    said = capsys.readouterr().err
    assert all(reason in said for reason in reasons), said
    assert "Traceback" not in said


def test_demo_without_a_server(tmp_path, capsys):
    assert main(["run", "--server", "http://127.0.0.1:9", "--output", str(tmp_path)]) == 1
    assert "http://127.0.0.1:9" in capsys.readouterr().err
