"""The miniature's trainer: a stretch that was cut goes on as if it had not been."""

from __future__ import annotations

import itertools
import multiprocessing
from types import SimpleNamespace

import pytest
import torch
from mip_adapter.research.miniature.stages import (
    cuda_graph,
    latents,
    noise_schedule,
    packing,
    prefetch,
    stage_trainer,
    vae,
)
from safetensors import safe_open
from torch import nn


class Toy:
    """A stage that is quick: a linear map learns a fixed one."""

    name, rate, total, stop, ema_decay = "toy", 1e-2, 1000, 1000, 0.9

    def __init__(self, matrix_rate=None):
        self.matrix_rate = matrix_rate
        torch.manual_seed(0)
        self.model = nn.Linear(4, 4)

    def batch(self, step):
        return (torch.randn(8, 4, generator=torch.Generator().manual_seed(step)),)

    def loss(self, x):
        loss = (self.model(x) - 2 * x).square().mean()
        return loss, {"again": loss.detach()}


def steps(progress, count):
    for _ in range(count):
        progress.advance()
    return progress


@pytest.mark.parametrize("matrix_rate", [None, 2e-2])
def test_resumed_equals_uninterrupted(tmp_path, matrix_rate):
    whole = steps(stage_trainer.Progress(Toy(matrix_rate)), 60)
    stage_trainer.save(steps(stage_trainer.Progress(Toy(matrix_rate)), 25).state(), tmp_path / "toy.pt")
    again = stage_trainer.Progress(Toy(matrix_rate))
    again.restore(torch.load(tmp_path / "toy.pt", weights_only=True))
    steps(again, 35)
    assert again.step == whole.step == 60
    for kept, other in ((whole.weights, again.weights), (whole.ema, again.ema)):
        assert all(torch.equal(value, other[key]) for key, value in kept.items())


def test_a_stretch_ends_in_time_and_leaves_a_checkpoint_and_a_curve(tmp_path, monkeypatch):
    """By a clock that moves on by a fiftieth of a second whenever it is read, on any machine."""
    ticks = itertools.count()
    monkeypatch.setattr(stage_trainer, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 50))
    progress, file = stage_trainer.Progress(Toy()), tmp_path / "toy.pt"
    stage_trainer.run(progress, file, seconds=1.0, say=lambda _: None, log_every=4)
    assert torch.load(file, weights_only=True)["step"] == progress.step > 8
    rows = (tmp_path / "toy.csv").read_text().splitlines()
    assert rows[0] == "step,seconds,loss,norm,again" and len(rows) == 1 + progress.step // 4
    assert float(rows[-1].split(",")[2]) < float(rows[1].split(",")[2])
    assert sorted(tmp_path.iterdir()) == [tmp_path / "toy.csv", file]  # no temporary file is left


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    state = stage_trainer.Progress(Toy()).state()
    state["ema"] = {"other": torch.zeros(1)}
    with pytest.raises(ValueError, match="of another model"):
        stage_trainer.Progress(Toy()).restore(state)


def test_packed_checkpoints_keep_the_mean(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "FOLDER", tmp_path / "packed")
    progress = steps(stage_trainer.Progress(Toy()), 20)
    stage_trainer.save(progress.state(), tmp_path / "toy.pt")
    file = packing.pack("toy", tmp_path)
    with safe_open(file, "pt") as tensors:
        assert sorted(tensors.keys()) == ["bias", "weight"]
    again = stage_trainer.Progress(Toy())
    again.restore(packing.unpack("toy"))
    assert again.step == 20
    assert torch.allclose(again.weights["weight"], progress.ema["weight"], atol=1e-3)
    assert packing.unpack("another") is None


def test_noise_and_target_give_the_picture_back():
    x0, eps = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    at = torch.tensor([0, 400, 999])
    x, v = noise_schedule.noisy(x0, eps, at)
    a, b = noise_schedule.weights(at)
    assert torch.allclose(a * x - b * v, x0, atol=1e-5) and torch.allclose(a * v + b * x, eps, atol=1e-5)


def test_sampling_with_the_true_answer_arrives():
    x0 = torch.randn(2, 4, 3, 3)

    def predict(x, at):
        a, b = noise_schedule.weights(at)
        return (a * x - x0) / b

    assert torch.allclose(noise_schedule.sample(predict, torch.randn(2, 4, 3, 3), 20), x0, atol=1e-4)


def test_shards_show_every_scene_once_a_pass(tmp_path):
    tiny, convolution = nn.Module(), nn.Conv2d(3, 4, 8, stride=8)
    tiny.taesd_encoder = nn.Sequential(convolution)
    shards = latents.Shards(tiny, tmp_path, torch.device("cpu"), size=16)
    seen = torch.cat([shards.batch(shards.rows_at(start, 4))[0] for start in range(0, 16, 4)]).flatten(1)
    assert len(seen.unique(dim=0)) == 16
    again = latents.Shards(tiny, tmp_path, torch.device("cpu"), size=16)
    first, masks = again.batch(place := again.rows_at(0, 4))
    assert torch.equal(first.flatten(1), seen[:4])
    scenes = again.scenes(place.shard).rows(place.rows)
    assert scenes.counts.ge(1).all() and torch.equal(masks.flatten(2).amax(2) > 0, scenes.kinds >= 0)
    before = latents.weights_checksum(tiny.taesd_encoder)
    convolution.weight.data[0] += 1e-4
    assert latents.weights_checksum(tiny.taesd_encoder) != before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_graph_replays_what_the_loss_would_do():
    toy = Toy()
    toy.model.cuda()
    parameters = list(toy.model.parameters())
    plain, graphed = cuda_graph.Backward(toy.loss, parameters), cuda_graph.GraphBackward(toy.loss, parameters)
    for step in range(5):
        batch = toy.batch(step)[0][: 4 + step % 2].cuda()  # two shapes in turn
        loss, log = plain(batch)
        expected = [each.grad.clone() for each in parameters if each.grad is not None]
        assert len(expected) == len(parameters)
        again, seen = graphed(batch)
        torch.testing.assert_close(again, loss)
        torch.testing.assert_close(seen, log)
        torch.testing.assert_close([each.grad for each in parameters], expected)


def test_steps_prepared_ahead_are_the_steps_that_are_asked_for():
    made = prefetch.Prefetcher(lambda step: torch.tensor([step, 2 * step]), workers=2)
    for step in (3, 4, 5, 6, 4, 5):  # and from another on
        assert made(step).tolist() == [step, 2 * step]
    assert multiprocessing.active_children()
    del made  # no garbage collection may be needed: what a worker has inherited stays open until it ends
    assert not multiprocessing.active_children()


def test_pieces_for_the_autoencoder_have_the_sizes_of_the_recipe():
    for step in (0, 1, vae.SMALL_UNTIL, vae.SMALL_UNTIL + 1):
        pieces = vae.crops(step, 2)
        assert pieces.isfinite().all() and pieces.shape[-1] == pieces.shape[-2]
        assert torch.equal(pieces, vae.crops(step, 2))


def test_the_unaided_base_of_the_repository_is_taken_by_its_own_stage_alone(host, tmp_path):
    from mip_adapter.research.miniature.stages import comfy_recipe

    device = torch.device("cpu")
    assert comfy_recipe.last_of("base", tmp_path) == "base"
    taught = comfy_recipe.finished("base", tmp_path, device).state_dict()
    progress = comfy_recipe.open_stage("unaided", tmp_path, device)
    assert progress.step == progress.stage.stop
    stage_trainer.save(progress.state(), tmp_path / "unaided.pt")  # as a stretch of no minutes does
    assert comfy_recipe.last_of("base", tmp_path) == "unaided"
    unaided = comfy_recipe.finished(comfy_recipe.last_of("base", tmp_path), tmp_path, device).state_dict()
    other = {key for key in taught if not torch.equal(taught[key], unaided[key])}
    assert other and all(".attn2." in key for key in other)
