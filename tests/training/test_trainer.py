"""The loop over a small frozen model in plain torch: what is learnt, resuming, stopping, failing, several processes."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from ..support.paths import TRAINING_PROCESS
from ..support.subprocesses import finished
from ..support.training_world import BEFORE, LATER, PlainModel, make_early, small_adapter, small_recipe, write_folder

BLUE = (0x1C, 0x7E, 0xD6)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors of a few hundred numbers: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"), 8)


def run(data: Path, folder: Path | None = None, adapter=None, model=None, on_step=None, asked=None, **changes):
    from mip_adapter.training.dataset import SubjectFolder
    from mip_adapter.training.trainer import train

    more = {} if asked is None else {"asked_to_stop": asked}
    more |= {"interrupts": changes.pop("interrupts")} if "interrupts" in changes else {}
    recipe = small_recipe(**changes)
    samples = SubjectFolder(data, recipe)
    return train(
        model or PlainModel(), samples, adapter or small_adapter(), recipe, folder=folder, on_step=on_step, **more
    )


def flat(adapter) -> dict[str, torch.Tensor]:
    from mip_adapter.training.trainable import flat_tensors

    return flat_tensors(adapter)


def equal(a, b) -> bool:
    a, b = flat(a), flat(b)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    "train, gate, learnt",
    [
        ("adapter", "image", ("to_k_ip", "to_v_ip", "text_to_weight")),
        ("adapter", "off", ("to_k_ip", "to_v_ip")),
        ("head", "image", ("text_to_weight",)),
        ("head", "text", ("text_to_weight",)),
        ("all", "image", ("to_k_ip", "to_v_ip", "text_to_weight", "image_proj")),
    ],
)
def test_only_what_should_differ_differs(data: Path, train: str, gate: str, learnt: tuple[str, ...]) -> None:
    adapter, model = small_adapter(head=gate != "off"), PlainModel()
    before, frozen = {k: v.clone() for k, v in flat(adapter).items()}, {k: v.clone() for k, v in model.weights.items()}
    outcome = run(data, adapter=adapter, model=model, train=train, gate=gate)
    after = flat(outcome.adapter)
    assert after.keys() == before.keys() and len(outcome.losses) == 4
    for key in before:
        assert torch.equal(after[key], before[key]) != any(part in key for part in learnt), key
    assert all(torch.equal(model.weights[key], frozen[key]) for key in frozen)
    assert all(torch.equal(flat(adapter)[key], before[key]) for key in before)  # the start itself is untouched


@pytest.mark.parametrize("head_start", ["random", "zeros"])
def test_a_head_grows_where_there_was_none(data: Path, head_start: str) -> None:
    from mip_adapter.training.trainable import TrainableAdapter

    recipe = small_recipe(head_start=head_start)
    assert not small_adapter().spec.has_head
    rows = TrainableAdapter(small_adapter(), recipe).adapter().head.values()
    assert all(bool(row.any()) == (head_start == "random") for row in rows)
    outcome = run(data, head_start=head_start)
    assert outcome.adapter.spec.has_head and all(row.any() for row in outcome.adapter.head.values())


def test_it_learns(data: Path) -> None:
    losses = run(data, steps=40, train="all").losses
    assert sum(losses[-16:]) < 0.9 * sum(losses[:16])


@pytest.mark.parametrize("changes", [{}, {"ema": 0.9, "accumulate": 2, "warmup": 3, "clip_norm": 0.1}])
def test_resuming_equals_not_stopping_bit_by_bit(data: Path, tmp_path: Path, changes: dict) -> None:
    """Stopped by an exception after step 3, killed (its last checkpoint lost) and resumed: the same in the end."""
    whole = run(data, tmp_path / "whole", steps=7, save_every=2, workers=2, **changes)

    def stop(progress) -> None:
        if progress.step == 3:
            raise RuntimeError("enough")

    part = run(data, tmp_path / "part", on_step=stop, steps=7, save_every=2, **changes)
    assert isinstance(part.stopped, RuntimeError) and len(part.losses) == 3
    (tmp_path / "part" / "checkpoints" / "step-00000003.pt").unlink()
    (tmp_path / "part" / "checkpoints" / ".step-00000004.pt.1.tmp").write_bytes(b"half")
    model = PlainModel()
    rest = run(data, tmp_path / "part", model=model, steps=7, save_every=2, **changes)
    assert rest.losses == whole.losses and equal(rest.adapter, whole.adapter)
    assert len(model.seen) == 5 * 2 * changes.get("accumulate", 1)  # steps 3 to 7 only
    for name in ("loss.csv", "loss.png"):
        assert (tmp_path / "part" / name).read_bytes()[:8] == (tmp_path / "whole" / name).read_bytes()[:8]
    assert (tmp_path / "part" / "loss.csv").read_text().splitlines()[0::7] == ["step,loss", f"7,{whole.losses[-1]!r}"]
    left = sorted(path.name for path in (tmp_path / "part" / "checkpoints").iterdir())
    assert left == ["step-00000006.pt", "step-00000007.pt"]  # nothing of the write that was killed


class Interrupt(BaseException):
    """As newer hosts' interrupt: `except Exception` does not catch it."""


@pytest.mark.parametrize("where", ["after a step", "in the middle of one"])
def test_an_interrupt_keeps_the_steps_before_it(data: Path, tmp_path: Path, where: str) -> None:
    class Interrupted(PlainModel):
        def predict(self, noisy, steps, batch, merging):
            if where == "in the middle of one" and len(self.seen) > 2 * 2:
                raise Interrupt
            return super().predict(noisy, steps, batch, merging)

    def stop(progress) -> None:
        if where == "after a step" and progress.step == 2:
            raise Interrupt

    part = run(data, tmp_path, model=Interrupted(), on_step=stop, steps=4, interrupts=(Interrupt,))
    assert isinstance(part.stopped, Interrupt) and len(part.losses) == 2
    rest, whole = run(data, tmp_path, steps=4), run(data, steps=4)
    assert rest.losses == whole.losses and equal(rest.adapter, whole.adapter)


def test_the_curve_needs_pillow_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mip_adapter.training.loss_curve import SIZE, write_curve

    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    losses = [1 / (step + 1) for step in range(60)]
    write_curve(tmp_path, losses, small_recipe(steps=100))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.csv", "loss.png"]
    with Image.open(tmp_path / "loss.png") as picture:
        drawn = [x for x in range(SIZE[0]) if any(picture.getpixel((x, y)) == BLUE for y in range(40, SIZE[1]))]
    assert picture.size == SIZE and drawn[0] < 100 and SIZE[0] * 0.5 < drawn[-1] < SIZE[0] * 0.7  # 60 of 100 steps


def test_another_recipe_does_not_resume(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path, steps=2)
    assert len(run(data, tmp_path, steps=3).losses) == 3  # more steps are no other recipe
    with pytest.raises(ValueError, match="another recipe .learning_rate 0.01 -> 0.001."):
        run(data, tmp_path, learning_rate=1e-3)
    other = small_adapter()
    other.site_weights[1].v_weight.add_(1)
    with pytest.raises(ValueError, match="over another starting adapter"):
        run(data, tmp_path, adapter=other)
    with pytest.raises(ValueError, match="another adapter|another recipe"):
        run(data, tmp_path, adapter=small_adapter(head=True), train="all")


def test_a_run_from_before_the_official_rules_goes_on_by_its_own(data: Path, tmp_path: Path) -> None:
    from mip_adapter.training.checkpoints import recipe_to_resume
    from mip_adapter.training.filters import Filters

    before = BEFORE | {"filters": Filters(cropped_aspect="w/h")}
    whole = run(data, **before)
    run(data, tmp_path, steps=2, **before)
    make_early(tmp_path)
    for steps in (3, 4):  # the checkpoint of step 3 names the settings
        recipe = recipe_to_resume(tmp_path, small_recipe())
        assert recipe == small_recipe(**before)
        going_on = {name: getattr(recipe, name) for name in (*LATER, "filters")}
        rest = run(data, tmp_path, steps=steps, **going_on)
    assert rest.losses == whole.losses and equal(rest.adapter, whole.adapter)
    assert run(data).losses != whole.losses  # the rules of today
    asked = recipe_to_resume(tmp_path, small_recipe(noise_offset=0.5))
    with pytest.raises(ValueError, match="another recipe .noise_offset 0.0 -> 0.5"):
        run(data, tmp_path, **(going_on | {"noise_offset": asked.noise_offset}))
    fresh = tmp_path / "fresh"
    assert recipe_to_resume(fresh, small_recipe()) == small_recipe()
    run(data, fresh)
    assert recipe_to_resume(fresh, small_recipe()) == small_recipe()


def test_fewer_steps_than_are_trained_are_refused(data: Path, tmp_path: Path) -> None:
    """The longer training must not be saved as what the shorter recipe gives."""
    run(data, tmp_path, steps=3)
    with pytest.raises(ValueError, match="trained for 3 steps already, and steps is 2. Set steps to 3 or more"):
        run(data, tmp_path, steps=2)
    assert len(run(data, tmp_path, steps=3).losses) == 3


def test_pictures_that_were_added_or_removed_count_from_there_on(tmp_path: Path, caplog) -> None:
    """Of twenty pictures one is broken, which is not too much; it is removed, and would be too much of what remains."""
    from mip_adapter.training.dataset import SubjectFolder

    data, out, model = write_folder(tmp_path / "data", 20), tmp_path / "out", PlainModel()
    picture = data / "images" / "004.png"
    picture.write_bytes(picture.read_bytes()[:-60])
    run(data, out, steps=10)
    assert "sample 004 is broken" in caplog.text
    for number in (0, 2, 4):
        (data / "jsons" / f"{number:03}.json").unlink()
    for kind, ending in (("images", "png"), ("masks", "png"), ("jsons", "json")):
        (data / kind / f"new.{ending}").write_bytes((data / kind / f"001.{ending}").read_bytes())
    caplog.clear()
    changed = run(data, out, model=model, steps=19)
    assert "after step 10 with another dataset: from here on, 18 pictures" in caplog.text
    samples = SubjectFolder(data, small_recipe())
    assert len(changed.losses) == 19 and model.seen == [samples[index].id for index in range(2 * 10, 2 * 19)]
    assert "new" in model.seen and not {"000", "002", "004"} & set(model.seen)
    caplog.clear()
    run(data, out, steps=20)
    assert "another dataset" not in caplog.text


def test_asked_to_stop_saves_and_stops(data: Path, tmp_path: Path) -> None:
    model = PlainModel()
    outcome = run(data, tmp_path, model=model, asked=lambda: len(model.seen) >= 4)
    assert len(outcome.losses) == 2 and "step 2" in str(outcome.stopped)
    assert (tmp_path / "checkpoints" / "step-00000002.pt").is_file()


def test_no_number_stops_and_keeps_the_last_good_checkpoint(data: Path, tmp_path: Path) -> None:
    class Diverging(PlainModel):
        def predict(self, noisy, steps, batch, merging):
            return super().predict(noisy, steps, batch, merging) * (float("nan") if len(self.seen) > 6 else 1)

    model = Diverging()
    with pytest.raises(ValueError, match=r"loss is nan at step 4 \(samples ") as caught:
        run(data, tmp_path, model=model, steps=9, save_every=1)
    assert all(name in str(caught.value) for name in (*model.seen[-2:], "step-00000003.pt"))
    assert all(torch.isfinite(t).all() for t in torch.load(tmp_path / "checkpoints" / "step-00000003.pt")["trained"])


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(data: Path, tmp_path: Path, monkeypatch) -> None:
    from mip_adapter.training import checkpoints

    real, calls = torch.save, []

    def full(content, file) -> None:
        calls.append(content["step"])
        if content["step"] == 2:
            file.write(b"some of it")
            raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos: No space left on device")
        real(content, file)

    monkeypatch.setattr(checkpoints.torch, "save", full)
    outcome = run(data, tmp_path, save_every=1, keep=9)
    assert calls == [1, 2, 3, 4] and len(outcome.losses) == 4
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["step-00000001.pt", "step-00000003.pt", "step-00000004.pt"]

    def always_full(*_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", always_full)
    assert len(run(data, tmp_path, steps=5).losses) == 5  # complete: the adapter itself is kept
    with pytest.raises(ValueError, match="last checkpoint cannot be written .*No space left"):
        run(data, tmp_path, steps=9, asked=lambda: True)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == left


def test_the_wrong_adapter(data: Path) -> None:
    with pytest.raises(ValueError, match="is an adapter for .* and this model is"):
        run(data, adapter=small_adapter(sites=((1, 16), (3, 32))))


def test_fp16_scales_the_loss_and_skips_a_step_that_overflows(data: Path, tmp_path: Path) -> None:
    """The scale is a power of two: without an overflow the result is the same to the last bit."""

    class Half(PlainModel):
        dtype = torch.float16
        overflow = False

        def predict(self, noisy, steps, batch, merging):
            out = super().predict(noisy, steps, batch, merging)
            if self.overflow and len(self.seen) == 2:
                out.register_hook(lambda gradient: gradient * float("inf"))
            return out

    assert equal(run(data, model=Half()).adapter, run(data).adapter)
    model = Half()
    model.overflow = True
    outcome = run(data, tmp_path, model=model)
    state = torch.load(tmp_path / "checkpoints" / "step-00000004.pt")
    assert state["scaler"]["scale"] == 2.0**15  # halved once
    assert all(step["step"] == 3 for step in state["optimizers"][0]["state"].values())
    assert all(torch.isfinite(tensor).all() for tensor in flat(outcome.adapter).values())


def test_matrices_by_muon_the_rest_by_adamw_and_resumed_to_the_bit(data: Path, tmp_path: Path) -> None:
    whole = run(data, tmp_path / "whole", matrix_rate=0.02, steps=4)
    state = torch.load(tmp_path / "whole" / "checkpoints" / "step-00000004.pt")
    adamw, muon = state["optimizers"]
    assert adamw["param_groups"][0]["lr"] != muon["param_groups"][0]["lr"] == 0.02
    assert {key.rsplit(".", 2)[1] for key in state["keys"]} >= {"to_k_ip", "to_v_ip", "text_to_weight"}
    assert len(muon["state"]) == 4 and len(adamw["state"]) == 2  # k and v of two sites; their heads
    run(data, tmp_path / "part", matrix_rate=0.02, steps=2)
    again = run(data, tmp_path / "part", matrix_rate=0.02, steps=4)
    assert all(
        torch.equal(a, b) for a, b in zip(flat(whole.adapter).values(), flat(again.adapter).values(), strict=True)
    )


def test_validation_sees_the_averaged_adapter(data: Path) -> None:
    from mip_adapter.training.dataset import SubjectFolder
    from mip_adapter.training.trainer import train

    recipe, seen = small_recipe(validate_every=2, ema=0.5), []
    outcome = train(
        PlainModel(), SubjectFolder(data, recipe), small_adapter(), recipe, validate=lambda *each: seen.append(each)
    )
    assert [step for step, _ in seen] == [2, 4]
    assert equal(seen[1][1], outcome.adapter) and not equal(seen[0][1], outcome.adapter)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("a"), ValueError("b")]
)
def test_validation_that_fails_costs_itself(data: Path, caplog, error: Exception) -> None:
    from mip_adapter.training.dataset import SubjectFolder
    from mip_adapter.training.trainer import train

    def fail(*_) -> None:
        raise error

    recipe = small_recipe(validate_every=2)
    assert len(train(PlainModel(), SubjectFolder(data, recipe), small_adapter(), recipe, validate=fail).losses) == 4
    assert f"pictures of step 4 cannot be made: {error}" in caplog.text


def two_processes(data: Path, output: Path, **environment: str) -> set[str]:
    """What `accelerate launch` with two processes on the CPU prints: rank, count, steps and what ended the run."""
    pytest.importorskip("accelerate")
    script = TRAINING_PROCESS
    # --multi_gpu is accelerate's word for several processes of its own; the script asks for the CPU.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    line = [*launch, str(script), str(data), str(output), "2", "3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = finished(line, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return set(done.stdout.splitlines())


def test_two_processes_equal_one(data: Path, tmp_path: Path) -> None:
    """The losses of one process with the same global batch."""
    two = tmp_path / "two"
    assert {"0 2 3 None", "1 2 3 None"} <= two_processes(data, two)
    one = run(data, steps=3, batch_size=4, accumulate=2)
    state = torch.load(two / "checkpoints" / "step-00000003.pt")
    torch.testing.assert_close(state["losses"], torch.tensor(one.losses, dtype=torch.float64), rtol=1e-5, atol=0)
    learnt = {key: flat(one.adapter)[key] for key in state["keys"]}
    for key, tensor in zip(state["keys"], state["trained"], strict=True):
        torch.testing.assert_close(tensor, learnt[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("step", [2, 3])
def test_an_error_in_one_process_ends_all_after_the_same_step(data: Path, tmp_path: Path, step: int) -> None:
    """None is left waiting for the gradients of one that is gone, be it the last step or not."""
    said = two_processes(data, tmp_path, MIP_FAIL_AT=str(step))
    assert {f"0 2 {step} No space left on device", f"1 2 {step} stopped at step {step}, as asked"} <= said
