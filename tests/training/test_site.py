"""The trained site: equal to the official one and to the sampling path, with true gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ..support.golden import read, relative_error
from ..support.training_world import CONTEXT, HEADS, WIDTH, small_adapter, small_recipe


def golden_site(number: int, dtype: torch.dtype = torch.float32):
    """Text attention, queries, weights and objects of a golden site, the golden data and its metadata."""
    from mip_adapter.training.site import RowObjects
    from mip_adapter.weights.adapter import SiteWeights

    data, metadata = read(f"site_{number}")
    data = {key: value.to(dtype) if value.is_floating_point() else value for key, value in data.items()}
    heads, counts = int(metadata["heads"]), data["object_token_counts"].tolist()
    q, k, v = (data[a] @ data[b].T for a, b in (("hidden", "to_q"), ("text", "to_k"), ("text", "to_v")))
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    text = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    texts = [[row[i, 1 : 1 + n] for i, n in enumerate(counts)] for row in data["object_text"]]
    objects = RowObjects.gather(data["image_tokens"].flatten(0, 1), texts)
    weights = SiteWeights(data["to_k_ip"], data["to_v_ip"], data["text_to_weight"][0])
    return text, q, weights, objects, heads, lambda x: x @ data["to_k"].T, data, metadata


@pytest.mark.parametrize("number", range(4))
def test_site_equals_the_official_one(number: int) -> None:
    from mip_adapter.attention.options import Merge
    from mip_adapter.training.site import merge_site

    text, q, weights, objects, heads, to_k, data, metadata = golden_site(number)
    out = merge_site(text, q, weights, objects, heads, to_k, Merge(), "image", float(metadata["scale"]))
    out = F.linear(out, data["to_out_weight"], data["to_out_bias"])
    assert relative_error(out, data["out"]) < 1e-5


@pytest.mark.parametrize("gate", ["image", "text", "off"])
@pytest.mark.parametrize(
    "merge", [("relevance", "sum"), ("relevance", "mean"), ("uniform", "sum"), ("uniform", "mean"), ("sum", "mean")]
)
def test_rows_with_different_numbers_of_objects_equal_the_sampling_path(merge, gate) -> None:
    """Padding leaves no trace: every row alone, through the frozen plan, gives the same."""
    from mip_adapter.attention.options import FusionHead, Merge
    from mip_adapter.attention.plan import EncodedReferences, compile_plans
    from mip_adapter.attention.site import RowGroup, fuse
    from mip_adapter.training.site import RowObjects, merge_site
    from mip_adapter.weights.adapter import Adapter, SiteWeights
    from mip_adapter.weights.sites import Site

    make = torch.Generator().manual_seed(0)
    rows, n, c, x, heads, counts = 3, 12, 16, 10, 4, (2, 1, 3)
    draw = lambda *shape: torch.randn(*shape, generator=make)  # noqa: E731
    text, q, to_k = draw(rows, n, c), 3 * draw(rows, n, c), draw(c, x)
    weights = SiteWeights(draw(c, x), draw(c, x), draw(c))
    tokens = [draw(count, 4, x) for count in counts]
    texts = [[draw(1 + (i + r) % 3, x) for i in range(count)] for r, count in enumerate(counts)]
    options, objects = Merge(*merge), RowObjects.gather(torch.cat(tokens), texts)
    got = merge_site(text, q, weights, objects, heads, lambda e: e @ to_k.T, options, gate, 0.7)

    site = Site(("input", 1, 0), 1, c, heads, x)
    for r in range(rows):
        references = EncodedReferences(("",) * counts[r], tokens[r], tokens[r][0], tuple(texts[r]), (1.0,) * counts[r])
        (plan,) = compile_plans(
            [Adapter("", None, {}, {1: weights})], (site,), [references], scale=0.7, merge=options,
            head=FusionHead({1: weights.head}, gate), device=torch.device("cpu"), dtype=torch.float32,
        )  # fmt: skip
        one = text[r : r + 1].clone()
        compiled = plan.site_plans[site.key]
        keys = compiled.content_tokens @ to_k.T
        want = fuse(one.clone(), one, q[r : r + 1], plan, compiled, (RowGroup(0, 1, True),), lambda keys=keys: keys)
        assert relative_error(got[r : r + 1], want) < 1e-5


def directional_error(function, point: Tensor, width: float) -> float:
    """Relative difference of the gradient and a finite difference of fourth order, along a random direction."""
    point = point.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(point), point)
    along = torch.randn(point.shape, generator=torch.Generator().manual_seed(1), dtype=point.dtype)
    along /= along.norm()
    with torch.no_grad():
        at = lambda step: float(function(point + step * width * along))  # noqa: E731
        numeric = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * width)
    analytic = float((gradient * along).sum())
    return abs(numeric - analytic) / abs(analytic)


@pytest.mark.parametrize("what", ["k_weight", "v_weight", "head", "tokens"])
def test_gradients_are_those_of_finite_differences(what: str) -> None:
    """float64; the relevance does not depend on these, so that its detachment does not show."""
    from dataclasses import replace

    from mip_adapter.attention.options import Merge
    from mip_adapter.training.site import merge_site

    text, q, weights, objects, heads, to_k, data, _ = golden_site(1, torch.float64)
    target = torch.randn(text.shape, generator=torch.Generator().manual_seed(2), dtype=text.dtype)

    def loss(value: Tensor) -> Tensor:
        own = objects if what != "tokens" else replace(objects, tokens=value)
        parts = weights if what == "tokens" else weights._replace(**{what: value})
        return (merge_site(text, q, parts, own, heads, to_k, Merge()) * target).sum()

    start = objects.tokens if what == "tokens" else getattr(weights, what)
    # The head's mean over positions is taken in float32 whatever the input, which a wider step averages out.
    assert directional_error(loss, start, 3e-2 if what == "head" else 1e-3) < (1e-4 if what == "head" else 1e-6)


def test_relevance_gets_no_gradient() -> None:
    """With one position's shares fixed, q acts through the image attention only."""
    from mip_adapter.attention.options import Merge
    from mip_adapter.training.site import merge_site

    text, q, weights, objects, heads, to_k, *_ = golden_site(0)
    seen = []

    def counted(x: Tensor) -> Tensor:
        seen.append(torch.is_grad_enabled())
        return to_k(x)

    q = q.requires_grad_()
    merge_site(text, q, weights, objects, heads, counted, Merge()).sum().backward()
    assert seen == [False] and q.grad is not None and q.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sites_that_are_not_trained_are_kept_in_the_dtype_of_the_activations(dtype: torch.dtype) -> None:
    """Cast once instead of at every site of every step: no bit of the result or of a gradient differs."""
    from mip_adapter.attention.options import Merge
    from mip_adapter.training.site import Merging, RowObjects
    from mip_adapter.training.trainable import TrainableAdapter, flat_tensors

    start, recipe = small_adapter(head=True), small_recipe(train="head")
    objects = RowObjects.gather(torch.randn(4, 4, CONTEXT), [[torch.randn(2, CONTEXT)] * 2] * 2)
    text, q = torch.randn(2, 2, 9, WIDTH, dtype=dtype)
    to_k = lambda x: x @ torch.ones(CONTEXT, WIDTH, dtype=dtype)  # noqa: E731
    found = []
    for kept in (torch.float32, dtype):
        student = TrainableAdapter(start, recipe, kept).to("cpu")
        out = Merging(student.adapter().site_weights, objects, Merge(), "image")(1, HEADS, text, q, to_k)
        out.square().sum().backward()
        found.append((out, student.trained[0].grad))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    dtypes = {(key.split(".")[0], tensor.dtype) for key, tensor in student.frozen.items()}
    assert dtypes == {("image_proj", torch.float32), ("ip_adapter", dtype)}
    assert all(each.dtype == torch.float32 for each in student.trained)
    finished, before = flat_tensors(student.finished(None, {})), flat_tensors(start)
    assert all(finished[key].dtype == before[key].dtype and torch.equal(finished[key], before[key]) for key in before)
