"""The miniature's drawn world: what it promises to training, to tests and to whoever judges pictures by it."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from mip_adapter.miniature import config, judge, judge_looks, world, world_split, world_words
from mip_adapter.miniature.world_looks import COLOURS, PATTERNS, PLAIN
from mip_adapter.miniature.world_shapes import EXTENT, KINDS, distances, polygon
from mip_adapter.research.miniature import clip, world_files
from mip_adapter.research.miniature.stages import captions, encoders, noise_schedule
from PIL import Image


def assert_same(a: world.Scenes, b: world.Scenes) -> None:
    for name, value in vars(a).items():
        assert torch.equal(value, getattr(b, name)), name


def test_a_seed_gives_the_same_scenes_and_another_seed_others():
    assert_same(world.sample(16, seed=3), world.sample(16, seed=3))
    assert not torch.equal(world.sample(16, seed=3).centres, world.sample(16, seed=4).centres)


@pytest.mark.parametrize("held_out", [False, True])
def test_the_split_keeps_training_and_tests_apart(held_out):
    scenes = world.sample(600, seed=1, held_out=held_out)
    several = scenes.counts > 1
    assert (world_split.has_reserved_pair(scenes.kinds)[several] == held_out).all()
    assert not world_split.has_reserved_pair(scenes.kinds)[~several].any()
    two_coloured = scenes.looks[..., 0] != PLAIN
    assert (world_split.reserved_look(*scenes.looks.unbind(-1))[two_coloured] == held_out).all()


def test_training_leaves_enough_for_tests_and_sees_every_kind_and_colour():
    kept, trained = (world_split.all_pairs(len(KINDS), reserved) for reserved in (True, False))
    assert 8 <= len(kept) < len(trained) / 4
    assert {k for pair in kept for k in pair} >= set(range(len(KINDS))) - {kind_without_reserved_pair()}
    scenes = world.sample(2000, seed=0)
    assert set(scenes.kinds.unique().tolist()) == {-1, *range(len(KINDS))}
    for pattern in range(len(PATTERNS)):
        of_it = scenes.looks[scenes.looks[..., 0] == pattern]
        assert set(of_it[:, 1].tolist()) == set(range(len(COLOURS)))


def kind_without_reserved_pair() -> int:
    partners = {k: 0 for k in range(len(KINDS))}
    for a, b in world_split.all_pairs(len(KINDS), reserved=True):
        partners[a] += 1
        partners[b] += 1
    return min(partners, key=lambda k: partners[k])


def test_objects_are_different_inside_the_picture_and_apart():
    scenes = world.sample(300, seed=2, objects=(2, 3, 4))
    picture = world.render(scenes)
    there = scenes.kinds >= 0
    for row, present in zip(scenes.kinds.tolist(), there, strict=True):
        assert len(set(row[: int(present.sum())])) == int(present.sum())
    assert ((scenes.centres.abs() + scenes.radii[..., None])[there] < 1).all()
    assert ((picture.masks > 0.5).sum(1) <= 1).all()
    sizes = (picture.masks > 0.5).sum((2, 3))[there]
    assert sizes.min() > 150  # pixels of 128 × 128
    assert picture.masks[~there].sum() == 0


def test_pictures_are_in_range_at_any_size():
    scenes = world.sample(40, seed=5)
    for size in (64, 112, 128):
        picture = world.render(scenes, size)
        assert picture.images.shape == (40, 3, size, size) and picture.masks.shape == (40, 4, size, size)
        assert picture.images.isfinite().all() and picture.images.min() >= 0 and picture.images.max() <= 1


def test_boxes_hold_the_masks():
    scenes = world.sample(30, seed=6)
    masks = world.render(scenes).masks
    for mask, box in zip(masks.flatten(0, 1), world.boxes(masks).flatten(0, 1).tolist(), strict=True):
        rows, columns = np.nonzero((mask > 0.5).numpy())
        want = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0, 0, 0, 0]
        assert box == want


def test_a_reference_has_its_objects_kind_and_look_on_white():
    scenes = world.sample(20, seed=7)
    shown = world.references(scenes, seed=8)
    picture = world.render(shown)
    assert torch.equal(shown.kinds, scenes.kinds.reshape(-1, 1))
    assert torch.equal(shown.looks, scenes.looks.reshape(-1, 1, 3))
    assert torch.equal(shown.colours, scenes.colours.reshape(-1, 1, 2, 3))
    outside = (picture.masks.sum(1, keepdim=True) == 0).expand_as(picture.images)
    assert (picture.images[outside] == 1).all()
    assert ((shown.centres.abs() + shown.radii[..., None]) < 1).all()


def test_the_drawn_colours_are_the_looks():
    scenes = replace(world.sample(50, seed=9, objects=(1,)), turns=torch.zeros(50, 4))
    images = world.render(scenes).images
    for i in (scenes.looks[:, 0, 0] == PLAIN).nonzero().flatten().tolist():
        inside = world.render(scenes).masks[i, 0] == 1
        assert torch.allclose(images[i][:, inside].mean(1), scenes.colours[i, 0, 0], atol=0.02)


def test_captions_name_the_kinds_and_nothing_of_the_looks():
    rng = random.Random(0)
    scenes = world.sample(300, seed=10)
    looks = {*COLOURS, *PATTERNS}
    for i, caption in enumerate(scenes.captions(rng)):
        said = caption.replace(",", " ").split()
        assert sorted(w for w in said if w in KINDS) == sorted(KINDS[k] for k in scenes.present(i))
        assert not looks & set(said)
    assert {"beside", "and", "with"} <= {w for c in scenes.captions(rng) for w in c.split()}


def test_captions_vary_the_order():
    rng = random.Random(0)
    said = {world_words.caption((0, 1), rng) for _ in range(100)}
    assert "a star and a ring" in said and "a ring and a star" in said
    assert any(caption.startswith("an arrow") for caption in (world_words.caption((7,), rng) for _ in range(20)))


def test_polygon_distance_of_a_square():
    square = torch.tensor([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
    points = torch.tensor([(0.0, 0.0), (0.5, 0.0), (2.0, 0.0), (2.0, 2.0), (0.0, -3.0)])
    assert torch.allclose(polygon(points, square), torch.tensor([-1.0, -0.5, 1.0, 2**0.5, 2.0]))


def test_every_kind_fits_its_table():
    tables = distances()
    assert tables.isfinite().all() and (tables.amin((1, 2)) < -0.15).all()
    border = torch.cat([tables[:, 0], tables[:, -1], tables[:, :, 0], tables[:, :, -1]], 1)
    assert border.min() > 0.15 and EXTENT > 1


def test_the_judge_reads_drawn_scenes():
    scenes = world.sample(60, seed=11)
    found = judge.judge(world.render(scenes).images)
    right = sum(sorted(f.kind for f in row) == sorted(scenes.present(i)) for i, row in enumerate(found))
    assert right >= 57
    assert judge.judge(torch.full((1, 3, 128, 128), 0.8)) == [[]]


def test_the_training_layout(tmp_path):
    scenes = world.sample(5, seed=12, objects=(2, 3))
    world_files.write(scenes, tmp_path, random.Random(0))
    assert {p.name for p in tmp_path.iterdir()} == {"images", "masks", "jsons"}
    for i in range(5):
        with (
            Image.open(tmp_path / "images" / f"{i:06d}.png") as image,
            Image.open(tmp_path / "masks" / f"{i:06d}.png") as mask,
        ):
            assert image.size == mask.size == (128, 128)
            values = set(np.unique(np.asarray(mask)))
        facts = json.loads((tmp_path / "jsons" / f"{i:06d}.json").read_text())
        labels = [each["label"] for each in facts["final_masks"] if "box" in each]
        assert sorted(labels) == sorted(KINDS[k] for k in scenes.present(i))
        assert all(label in facts["text"] for label in labels)
        assert facts["original_size"] == [128, 128]
        assert values == set(range(len(labels) + 1))


def test_varied_scenes_stay_on_the_training_side():
    scenes = encoders.varied(world.sample(400, seed=13, objects=(1, 2, 3)), 13)
    assert not world_split.has_reserved_pair(scenes.kinds).any()
    two_coloured = (scenes.looks[..., 0] != PLAIN) & (scenes.kinds >= 0)
    assert not world_split.reserved_look(*scenes.looks.unbind(-1))[two_coloured].any()
    assert (scenes.looks[..., 1] == scenes.looks[..., 2])[~two_coloured & (scenes.kinds >= 0)].all()
    changed = encoders.same_meaning(scenes, looks=True)
    assert changed[:200, 200:].diagonal().float().mean() < 0.5


def test_the_schedule_and_words_are_the_hosts(host):
    from comfy.model_sampling import ModelSamplingDiscrete
    from comfy.sdxl_clip import SDXLTokenizer

    sigmas = ((1 - noise_schedule.alphas()) / noise_schedule.alphas()).sqrt().float()
    assert torch.allclose(ModelSamplingDiscrete().sigmas, sigmas, rtol=1e-5)
    tokenizer, rng = SDXLTokenizer(), random.Random(1)
    table = captions.Words(lambda text: [n for n, _ in tokenizer.clip_l.tokenize_with_weights(text)[0]])
    scenes = world.sample(60, seed=14)
    for caption in ["", *scenes.captions(rng), *scenes.captions(rng, with_looks=True)]:
        want = tokenizer.tokenize_with_weights(caption)
        for name, pad in (("l", clip.PAD_L), ("g", clip.PAD_G)):
            assert [n for n, _ in want[name][0]] == table.rows([caption], pad, clip.LENGTH)[0].tolist()


def test_the_plain_encoders_equal_the_hosts(host):
    from comfy.clip_model import CLIPVisionModelProjection
    from comfy.ops import disable_weight_init
    from comfy.sdxl_clip import SDXLClipModel, SDXLTokenizer

    torch.manual_seed(0)
    ours = encoders.Encoders().eval()
    options = {"clip_l_model_config": config.CLIP_L, "clip_g_model_config": config.CLIP_G}
    theirs = SDXLClipModel(dtype=torch.float32, model_options=options)
    theirs.load_state_dict(ours.clip.state_dict(), strict=False)
    tokens = SDXLTokenizer().tokenize_with_weights("a ring, a star and a fish")
    rows = [torch.tensor([[n for n, _ in tokens[name][0]]]) for name in ("l", "g")]
    eye = CLIPVisionModelProjection(config.CLIP_VISION, torch.float32, "cpu", disable_weight_init)
    eye.load_state_dict(ours.vision.state_dict())
    pixels = clip.normalised(world.render(world.sample(2, seed=15), config.CLIP_VISION["image_size"]).images)
    with torch.no_grad():
        context, pooled = theirs.encode_token_weights(tokens)
        hidden, pooled_g, _ = ours.text(*rows)
        assert torch.allclose(hidden, context, atol=1e-4) and torch.allclose(pooled_g, pooled, atol=1e-4)
        _, penultimate, embeds, _ = eye(pixels, intermediate_output=-2)
        again, ours_embeds = ours.vision(pixels)
        assert torch.allclose(again, penultimate, atol=1e-4) and torch.allclose(ours_embeds, embeds, atol=1e-4)


def test_the_judge_reads_looks():
    scenes = world.sample(30, seed=16)
    images = world.render(scenes).images
    read, drawn = [], []
    for i, row in enumerate(judge.judge(images)):
        kinds = scenes.present(i)
        for found in (each for each in row if each.kind in kinds):
            read.append(judge_looks.look(images[i], found))
            drawn.append(tuple(scenes.looks[i, kinds.index(found.kind)].tolist()))
    assert len(read) > 60 and sum(a == b for a, b in zip(read, drawn, strict=True)) >= 0.97 * len(read)
