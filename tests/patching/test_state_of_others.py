"""What other packs keep in the host's dictionaries from step to step stays there, as on a plain model."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch

from ..support import graphs
from ..support.graphs import bundle, guide, sample
from .test_once_a_sampling import noisy

pytestmark = pytest.mark.usefixtures("host")
STEPS = 4
Count = Callable[[dict], None]  # reads and raises the counter in a dictionary


def in_function(name: str, result: str) -> Callable:
    """A counter in one of the functions that a pack puts into model_options."""

    def install(model: Any, count: Count) -> None:
        def function(args: dict) -> Any:
            count(args["model_options"])
            count(args["model_options"]["transformer_options"])
            return args[result] if result else args["input"] - args["cond_denoised"]

        options = model.model_options
        options[name] = [function] if result else function

    return install


def in_wrapper(kind: str, place: int, key: str | None) -> Callable:
    """A counter in a wrapper. place: of the dictionary among the arguments; key: of a dictionary inside."""
    from comfy.patcher_extension import add_wrapper_with_key

    def install(model: Any, count: Count) -> None:
        def wrapper(executor, *args, **more):
            options = args[place]
            count(options)
            if key is not None:
                count(options[key])
            out = executor(*args, **more)
            count(options)  # what was written further in is there on the way out
            return out

        add_wrapper_with_key(kind, "another pack", wrapper, model.model_options, is_model_options=True)

    return install


def in_patch(model: Any, count: Count) -> None:
    """At a site, and before the UNet, where all see the same dictionary."""

    def before(run: Callable, call: dict) -> torch.Tensor:
        options = call["c"]["transformer_options"]
        count(options)
        out = run(call["input"], call["timestep"], **call["c"])
        options["count"] = options.pop("seen", 0) + options["count"]
        count(options)
        return out

    def inside(h, options):
        options["seen"] = options.get("seen", 0) + 1
        return h

    model.set_model_unet_function_wrapper(before)
    model.set_model_input_block_patch(inside)


def places() -> dict[str, Callable]:
    return {
        "post-CFG": in_function("sampler_post_cfg_function", "denoised"),
        "pre-CFG": in_function("sampler_pre_cfg_function", "conds_out"),
        "CFG": in_function("sampler_cfg_function", ""),
        "PREDICT_NOISE": in_wrapper("predict_noise", 2, "transformer_options"),
        "CALC_COND_BATCH": in_wrapper("calc_cond_batch", 4, "transformer_options"),
        "APPLY_MODEL": in_wrapper("apply_model", 5, None),
        "DIFFUSION_MODEL": in_wrapper("diffusion_model", 5, None),
        "patches": in_patch,
    }


def counts(model: Any, install: Callable, **sampling: Any) -> list[int]:
    """What a counter reads while a clone of the model is sampled."""
    read: list[int] = []

    def count(options: dict) -> None:
        read.append(options.get("count", 0))
        options["count"] = options.get("count", 0) + 1

    model = model.clone()
    install(model, count)
    sample(model, STEPS, **sampling)
    return read


@pytest.mark.parametrize("make", [graphs.apply, noisy])
@pytest.mark.parametrize("where", list(range(8)))
def test_counters(make: Callable, where: int) -> None:
    name, install = list(places().items())[where]
    expected = counts(bundle().model, install)
    assert expected[-1] >= (STEPS - 1 if where < 5 else 1), name
    assert counts(make(), install) == expected, name


def test_applied_before_and_behind() -> None:
    """Ours may stand behind the other pack's wrapper, too."""
    for install in places().values():
        read: list[int] = []

        def count(options: dict, read: list[int] = read) -> None:
            read.append(options.get("count", 0))
            options["count"] = options.get("count", 0) + 1

        model = bundle().model.clone()
        install(model, count)
        sample(graphs.apply(model=model), STEPS)
        assert read == counts(bundle().model, install)


def test_a_second_order_guidance() -> None:
    """Momentum of a guidance, kept in model_options: the same picture whether our patch does nothing or is absent."""

    def momentum(args: dict) -> torch.Tensor:
        kept = args["model_options"].setdefault("momentum", torch.zeros_like(args["denoised"]))
        kept.mul_(0.7).add_(args["denoised"] - args["uncond_denoised"])
        return args["uncond_denoised"] + kept

    def sampled(model: Any) -> torch.Tensor:
        model = model.clone()
        model.set_model_sampler_post_cfg_function(momentum)
        return sample(model, STEPS)

    never = graphs.apply(graphs.references(weight=[0.0, 0.0]), head={"gate": "off"})
    assert torch.allclose(sampled(never), sampled(bundle().model), atol=1e-5)


@pytest.mark.parametrize("interrupted", [True, False])
def test_nothing_of_ours_remains(interrupted: bool) -> None:
    from mip_adapter.patching.sampling_state import CALL, EVALUATION, TURN

    """Neither after a sampling nor after one that was interrupted in the UNet."""
    from comfy.patcher_extension import add_wrapper_with_key

    seen: dict[str, dict] = {}

    def predicted(executor, x, timestep, options, seed):
        seen["sampling"] = options["transformer_options"]
        return executor(x, timestep, options, seed)

    def called(run: Callable, call: dict) -> torch.Tensor:
        seen["call"] = call["c"]["transformer_options"]
        return run(call["input"], call["timestep"], **call["c"])

    def in_the_unet(h, options):
        assert "mip_adapter_call" in options
        if interrupted:
            raise KeyboardInterrupt
        return h

    model = graphs.apply()
    add_wrapper_with_key("predict_noise", "watch", predicted, model.model_options, is_model_options=True)
    model.set_model_unet_function_wrapper(called)
    model.set_model_input_block_patch(in_the_unet)
    try:
        sample(model, 2)
    except KeyboardInterrupt:
        assert interrupted
    assert not {TURN, EVALUATION, CALL} & seen["sampling"].keys()
    assert CALL not in seen["call"]


def test_a_copy_of_the_options_inside_a_call_copies_no_model() -> None:
    def copied(h, options):
        again = deepcopy({key: value for key, value in options.items() if key.startswith("mip_adapter")})
        assert again["mip_adapter_call"] is options["mip_adapter_call"]
        return h

    model = graphs.apply()
    model.set_model_input_block_patch(copied)
    assert torch.equal(sample(model), sample(graphs.apply()))


def test_options_without_transformer_options() -> None:
    """A guider may ask for a prediction without any of the host's options."""
    guider = guide(graphs.apply())
    predict = guider.predict_noise
    guider.predict_noise = lambda x, timestep, model_options={}, seed=None: predict(x, timestep, {}, seed)
    assert sample(guider).isfinite().all()
