"""Training by the official script's rules, each against the rule written down again: crops, shapes, latents, heads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ..support.training_world import PlainModel, small_adapter, small_recipe

Boxes = dict[str, tuple[tuple[float, float, float, float], float]]  # by label: the box, the detector's confidence


def write_picture(folder: Path, size: tuple[int, int], boxes: Boxes) -> Path:
    """One picture in the training-data layout, every object a rectangle that fills its box but for a column."""
    for part in ("images", "masks", "jsons"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    mask = np.zeros((size[1], size[0]), np.uint8)
    entries: list[dict] = [{"value": 0, "label": "background"}]
    for value, (label, (box, logit)) in enumerate(boxes.items(), 1):
        x0, y0, x1, y1 = (round(edge) for edge in box)
        mask[y0:y1, x0 + 1 : x1] = value
        entries.append({"value": value, "label": label, "box": list(box), "logit": logit})
    Image.fromarray(np.stack([mask * 40] * 3, -1)).save(folder / "images" / "0.png")
    Image.fromarray(mask).save(folder / "masks" / "0.png")
    text = "a " + " and a ".join(boxes)
    (folder / "jsons" / "0.json").write_text(
        json.dumps({"text": text, "original_size": list(size), "final_masks": entries})
    )
    return folder


def samples(folder: Path, count: int, **changes):
    from mip_adapter.training.dataset import SubjectFolder

    opened = SubjectFolder(folder, small_recipe(**changes))
    return [opened[index] for index in range(count)]


def corners(size: tuple[int, int], boxes: Boxes, labels: str) -> set[tuple[int, int]]:
    """Every (top, left) at which a square of the short side holds these boxes, edges cut to whole pixels; else the
    middle."""
    (width, height), side = size, min(size)
    edges = [tuple(int(edge) for edge in box) for label, (box, _) in boxes.items() if label in labels]
    fits = {
        (y, x)
        for x in range(width - side + 1)
        for y in range(height - side + 1)
        if all(x <= x0 and x1 <= x + side and y <= y0 and y1 <= y + side for x0, y0, x1, y1 in edges)
    }
    return fits or {((height - side) // 2, (width - side) // 2)}


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("unused", [(88.4, 20, 99.7, 40), (5, 20, 12, 40)])
def test_the_crop_holds_all_boxes_of_the_picture(tmp_path: Path, unused, upright: bool) -> None:
    """Also one that the filters leave out; where they do not fit together, it is the middle."""
    size, boxes = (140, 80), {"cat": ((24, 10, 54, 70), 0.9), "dog": ((60, 12, 86, 66), 0.8), "leaf": (unused, 0.1)}
    if upright:
        size = (80, 140)
        boxes = {label: ((y0, x0, y1, x1), logit) for label, ((x0, y0, x1, y1), logit) in boxes.items()}
    folder = write_picture(tmp_path, size, boxes)
    seen = samples(folder, 200)
    assert {sample.corner for sample in seen} == corners(size, boxes, "cat dog leaf")
    assert {sample.names for sample in seen} == {("cat", "dog")}
    before = {sample.corner for sample in samples(folder, 400, crop_holds="used")}
    assert before == corners(size, boxes, "cat dog") != corners(size, boxes, "cat dog leaf")


@pytest.mark.parametrize("aspect", ["h/w", "w/h"])
@pytest.mark.parametrize("upright", [False, True])
def test_what_the_crop_leaves_of_a_box_counts_by_height_over_width(tmp_path: Path, aspect: str, upright: bool) -> None:
    """31 × 96 pixels: h/w is 3.1, not below 3; 96 × 31: it is 0.32, above 0.3."""
    from mip_adapter.training.filters import Filters

    size = (200, 100)
    boxes: Boxes = {
        "cat": ((20, 2, 81, 98), 0.9),
        "dog": ((90, 10, 140, 60), 0.8),
        "leaf": ((100, 62, 145, 98), 0.7),
    }
    if not upright:
        size = (100, 200)
        boxes = {label: ((y0, x0, y1, x1), logit) for label, ((x0, y0, x1, y1), logit) in boxes.items()}
    folder = write_picture(tmp_path, size, boxes)
    (sample,) = samples(folder, 1, max_objects=3, filters=Filters(cropped_aspect=aspect))  # pyright: ignore[reportArgumentType]
    left_out = upright == (aspect == "h/w")
    assert sample.names == (("dog", "leaf") if left_out else ("cat", "dog", "leaf"))


def test_the_official_limits_after_the_crop() -> None:
    """More than 200 of 512² pixels, and h/w strictly between 0.3 and 3: a box of 100 × 320 is dropped."""
    from mip_adapter.training.filters import Filters, fits_after_crop

    assert not fits_after_crop((0, 0, 100, 320), 512, Filters())
    for width in range(0, 500, 7):
        for height in range(0, 500, 7):
            fits = fits_after_crop((7, 5, 7 + width, 5 + height), 512, Filters())
            assert fits == (height * width > 200 and 0.3 < height / width < 3), (width, height)
    assert fits_after_crop((0, 0, 8, 8), 256, Filters())  # 256 of 512² pixels
    with pytest.raises(ValueError, match="cropped_aspect is 'wide'; choose one of h/w, w/h"):
        Filters(cropped_aspect="wide")  # pyright: ignore[reportArgumentType]


def test_a_new_head_begins_as_torch_begins_a_linear_layer() -> None:
    """The official head is torch's own layer from C to 1 without a bias, which a file without a head leaves alone."""
    from mip_adapter.common.rng import seed_of
    from mip_adapter.training.trainable import TrainableAdapter

    adapter = small_adapter(sites=((1, 64), (3, 640)))
    rows = TrainableAdapter(adapter, small_recipe(seed=7)).adapter().head
    with torch.random.fork_rng(devices=[]):
        for number, row in rows.items():
            torch.manual_seed(seed_of(7, "fusion head", number))
            layer = torch.nn.Linear(len(row), 1, bias=False)
            torch.testing.assert_close(row, layer.weight[0])
            assert 0.9 < float(row.detach().abs().max()) * len(row) ** 0.5 <= 1
    other = TrainableAdapter(adapter, small_recipe(seed=8)).adapter().head
    assert not torch.equal(rows[1], other[1])
    assert not any(
        row.any() for row in TrainableAdapter(adapter, small_recipe(head_start="zeros")).adapter().head.values()
    )
    own = small_adapter(head=True)
    assert torch.equal(TrainableAdapter(own, small_recipe()).adapter().head[1], own.head[1])


def test_offset_noise_is_one_more_number_for_each_channel() -> None:
    """ε + s · ε' with ε' of [B, C, 1, 1], in what is added and in what the model is to predict."""
    from types import SimpleNamespace

    from mip_adapter.training.objective import draw_noise

    batch = SimpleNamespace(indices=range(500), latents=torch.zeros(500, 4, 8, 8))
    plain, steps = draw_noise(batch, small_recipe(), 1000)  # pyright: ignore[reportArgumentType]
    shifted, same = draw_noise(batch, small_recipe(noise_offset=0.1), 1000)  # pyright: ignore[reportArgumentType]
    extra = (shifted - plain) / 0.1
    assert torch.equal(steps, same)
    torch.testing.assert_close(extra, extra[..., :1, :1].expand_as(extra), rtol=0, atol=1e-4)
    numbers = extra[..., 0, 0]  # [B, C]
    assert abs(float(numbers.mean())) < 0.1 and 0.9 < float(numbers.std()) < 1.1
    assert torch.corrcoef(numbers.T).fill_diagonal_(0).abs().max() < 0.2
    alone = SimpleNamespace(indices=[3], latents=torch.zeros(1, 4, 8, 8))
    assert torch.equal(draw_noise(alone, small_recipe(noise_offset=0.1), 1000)[0], shifted[3:4])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="noise_offset is -0.1; it must be 0 or more"):
        small_recipe(noise_offset=-0.1)


def test_shares_normalised_by_the_mean_are_of_relevance_alone(tmp_path: Path) -> None:
    """As where pictures are made. What they are is written down in `test_one_step_equals_the_recipe_written_down`."""
    from mip_adapter.training.objective import Objective
    from mip_adapter.training.trainable import TrainableAdapter

    boxes: Boxes = {"cat": ((10, 10, 40, 70), 0.9), "dog": ((44, 12, 76, 66), 0.8)}
    drawn = samples(write_picture(tmp_path, (80, 80), boxes), 2, drop_image=0, drop_text=0, drop_both=0)
    losses = {}
    for merge in ("relevance", "uniform"):
        for normalization in ("sum", "mean"):
            recipe, model = small_recipe(merge=merge, normalization=normalization), PlainModel()
            objective = Objective(TrainableAdapter(small_adapter(head=True), recipe), model, recipe)
            losses[merge, normalization] = float(objective(model.encode(drawn, None)).detach())
    assert losses["relevance", "sum"] != losses["relevance", "mean"]
    assert losses["uniform", "sum"] == losses["uniform", "mean"]
    with pytest.raises(ValueError, match="normalization is 'max'; choose one of sum, mean"):
        small_recipe(normalization="max")


# ---- the host's VAE ----


@pytest.fixture(scope="module")
def vae(host):
    """A small one of SDXL's kind, with a spread that shows."""
    import comfy.sd

    config = {"double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32}
    config |= {"ch_mult": [1, 1, 1, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    from comfy.ldm.models.autoencoder import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = AutoencoderKL(ddconfig=config, embed_dim=4)
        weights = {name: 0.1 * torch.randn(tensor.shape) for name, tensor in made.state_dict().items()}
    return comfy.sd.VAE(sd=weights, config={"params": {"ddconfig": config, "embed_dim": 4}}, dtype=torch.float32)


def test_latents_are_drawn_from_the_posterior(vae) -> None:
    """μ + exp(½ log σ²) ε with log σ² within −30 and 20, from the encoder's eight channels; then the model's scale."""
    from mip_adapter.common.rng import generator
    from mip_adapter.training.comfy_latents import sampled_latents

    with torch.inference_mode():
        pictures = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(1))
        got = sampled_latents(vae, pictures, [5, 9, 5], seed=4)
        inside = vae.first_stage_model
        moments = inside.quant_conv(inside.encoder(pictures.movedim(-1, 1) * 2 - 1))
        mean, spread = moments[:, :4], torch.exp(0.5 * torch.clamp(moments[:, 4:], -30.0, 20.0))
        noise = [torch.randn(4, 8, 8, generator=generator(4, "posterior", each)) for each in (5, 9, 5)]
        torch.testing.assert_close(got, mean + spread * torch.stack(noise), rtol=1e-4, atol=1e-4)
        assert (got - mean).abs().mean() > 0.1  # else this would not show
        torch.testing.assert_close(vae.encode(pictures), mean, rtol=1e-4, atol=1e-4)  # the host's nodes take the mean
        assert not inside.regularization._forward_hooks
        alone = sampled_latents(vae, pictures[1:2], [9], seed=4)
        torch.testing.assert_close(alone, got[1:2], rtol=1e-4, atol=1e-4)


def test_a_vae_that_encodes_in_tiles_gives_the_mean_and_says_so(vae, caplog) -> None:
    """As the host does by itself where memory runs out."""
    from types import SimpleNamespace

    from mip_adapter.training.comfy_latents import sampled_latents

    def tiled(pictures):
        return vae.encode_tiled(pictures, tile_x=32, tile_y=32, overlap=8)

    with torch.inference_mode():
        pictures = torch.rand(1, 64, 64, 3)
        short = SimpleNamespace(first_stage_model=vae.first_stage_model, encode=tiled)
        assert torch.equal(sampled_latents(short, pictures, [0], seed=0), tiled(pictures))
    assert "had to encode in tiles" in caplog.text


def test_the_recipe_says_whether_latents_are_drawn(vae, host, tmp_path: Path) -> None:
    """As the trainer asks for them; the miniature's VAE has no posterior, so both are the same there."""
    from mip_adapter.miniature import comfy_bundle
    from mip_adapter.research.miniature import seeded
    from mip_adapter.training.comfy_model import HostModel
    from mip_adapter.weights.adapter import build_adapter

    boxes: Boxes = {"cat": ((10, 10, 40, 70), 0.9), "dog": ((44, 12, 76, 66), 0.8)}
    drawn = samples(write_picture(tmp_path, (80, 80), boxes), 2)
    adapter = build_adapter(seeded.base_adapter(), "seeded")
    with torch.inference_mode():
        model, clip, own, vision = comfy_bundle.load()

    def latents(which, **changes):
        return HostModel(model, clip, which, vision, small_recipe(**changes)).encode(drawn, adapter).latents

    mean = latents(vae, latents="mean")
    with torch.inference_mode():
        shown = torch.stack([sample.image for sample in drawn]).movedim(1, -1)
        wanted = model.model.process_latent_in(vae.encode(shown))
    torch.testing.assert_close(mean, wanted.float())
    assert not torch.equal(latents(vae), mean) and torch.equal(latents(vae), latents(vae))
    assert not torch.equal(latents(vae), latents(vae, seed=1))
    assert torch.equal(latents(own), latents(own, latents="mean"))
