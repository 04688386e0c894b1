"""Properties of the merge on random sites: one site's equations against the definition in float64 (direct.py)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mip_adapter.attention.fusion_head import fusion_gate
from mip_adapter.attention.options import STRATEGIES, Merge
from mip_adapter.attention.relevance import raw_relevance, shares
from mip_adapter.attention.site import RowGroup, SiteConstants, fuse
from torch import Tensor

from ..support.random_sites import Case, close


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors of a few KB: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


merges = st.builds(
    Merge,
    st.sampled_from(STRATEGIES),
    st.sampled_from(("sum", "mean")),
    st.sampled_from((0.0, 0.1, 1.0, 7.0)),
    st.sampled_from((1.0, 0.3, 2.0, 5.0)),
    unclaimed=st.sampled_from((0.0, 0.0, 0.6, 1.0)),
)
cases = st.builds(
    Case, seed=st.integers(0, 9999), objects=st.integers(1, 16), tokens=st.sampled_from((1, 4, 16)),
    positions=st.integers(1, 40), heads=st.integers(1, 4), width=st.sampled_from((1, 4, 16)), merge=merges,
    sharp=st.sampled_from((0.1, 1.0, 5.0)), gate=st.sampled_from(("image", "text", "off")),
    strength=st.sampled_from((0.0, 0.5, 1.0, 2.0)), scale=st.floats(0.05, 3.0), regional=st.booleans(),
)  # fmt: skip
branches = st.lists(st.booleans(), min_size=1, max_size=2).map(tuple)


LOGITS_FAR_APART = Case(
    seed=9998, objects=3, tokens=1, positions=3, heads=3, width=1, merge=Merge("concat"), sharp=5.0, strength=0.0,
    scale=1.0, regional=True,
)  # fmt: skip


@settings(max_examples=80)
@example(LOGITS_FAR_APART, (True,))
@given(cases, branches)
def test_a_site_equals_the_definition(case: Case, conditional: tuple[bool, ...]) -> None:
    close(case.fused(conditional), case.defined(conditional))


@pytest.mark.parametrize(
    "objects, tokens", [(m, t) for t in (4, 16, 257) for m in range(1, 17) if t < 257 or m in (1, 3, 16)]
)
def test_every_number_of_objects_and_tokens(objects: int, tokens: int) -> None:
    case = Case(objects=objects, tokens=tokens, positions=9)
    close(case.fused((True, False)), case.defined((True, False)))


@given(cases, st.randoms(use_true_random=False))
def test_permuting_objects_changes_nothing(case: Case, random) -> None:
    order = list(range(case.objects))
    random.shuffle(order)
    close(replace(case, order=tuple(order)).fused(), case.fused())


@given(cases)
def test_splitting_rows_into_calls_changes_nothing(case: Case) -> None:
    together = case.fused((True, False))
    data, (plan, site) = case.numbers(), case.plan()
    given = SiteConstants.from_plan(plan, torch.stack(list(data["regions"])).unsqueeze(1) if case.regional else None)
    for row, conditional in enumerate((True, False)):
        text, q = data["text"][row : row + 1], data["q"][row : row + 1]
        keys = lambda site=site, data=data: site.content_tokens @ data["to_k"].T  # noqa: E731
        alone = fuse(text.clone(), text, q, plan, site, [RowGroup(0, 1, conditional, given)], keys)
        close(alone[0], together[row])


@given(cases)
def test_one_reference_without_head_is_plain_ip_adapter(case: Case) -> None:
    case = replace(case, objects=1, gate="off", regional=False, weights=(1.0,), merge=Merge(case.merge.strategy))
    data = case.numbers()

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (case.heads, -1)).transpose(-2, -3)

    for conditional, tokens in ((True, data["tokens"][0]), (False, data["null"])):
        k, v = (heads((tokens @ data[name].T).expand(2, -1, -1)) for name in ("to_k_ip", "to_v_ip"))
        image = F.scaled_dot_product_attention(heads(data["q"]), k, v).transpose(1, 2).flatten(2)
        close(case.fused((conditional, conditional)), data["text"] + case.scale * image)


@given(cases)
def test_concat_is_one_softmax_over_all_tokens(case: Case) -> None:
    """Plain IP-Adapter with several pictures: the tokens of all objects as those of one."""
    case = replace(case, gate="off", regional=False, weights=(1.0,) * case.objects, merge=Merge("concat"))
    data = case.numbers()
    k, v = (torch.cat(data["tokens"]) @ data[name].T for name in ("to_k_ip", "to_v_ip"))
    qkv = data["q"], k.expand(2, -1, -1), v.expand(2, -1, -1)
    split = [x.unflatten(-1, (case.heads, -1)).transpose(-2, -3) for x in qkv]
    image = F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
    close(case.fused(), data["text"] + case.scale * image)


@given(cases)
def test_uniform_is_the_mean_of_sum(case: Case) -> None:
    case = replace(case, regional=False, gate="off")
    text = case.numbers()["text"]
    summed, uniform = (replace(case, merge=Merge(strategy)).fused() - text for strategy in ("sum", "uniform"))
    close(uniform * case.objects, summed)


@given(cases, st.booleans())
def test_an_objects_weight_multiplies_its_term(case: Case, conditional: bool) -> None:
    """Linear in every weight; at 0 the object still competes for its share, it only adds nothing."""
    case = replace(case, objects=max(case.objects, 2), gate="off")
    text, branch = case.numbers()["text"], (conditional, conditional)
    unit = lambda i, w: tuple(w if j == i else 0.0 for j in range(case.objects))  # noqa: E731
    alone = [replace(case, weights=unit(i, 1.0)).fused(branch) - text for i in range(case.objects)]
    weights = tuple(0.5 * i for i in range(case.objects))
    together = replace(case, weights=weights).fused(branch) - text
    close(together, torch.stack([w * z for w, z in zip(weights, alone, strict=True)]).sum(0))


def test_weight_zero_is_not_absence() -> None:
    two = Case(objects=2, weights=(1.0, 0.0), gate="off")
    one = Case(objects=1, weights=(1.0,), gate="off")
    assert not torch.allclose(two.fused(), one.fused(), atol=1e-2)


@given(cases)
def test_head_of_strength_zero_is_off(case: Case) -> None:
    assert torch.equal(replace(case, strength=0.0).fused((True, False)), replace(case, gate="off").fused((True, False)))


@given(cases)
def test_text_gate(case: Case) -> None:
    """Z = g̃ Z_text + s Σ Ã_i Z_i with g̃ = σ(w·Z_text) over its mean."""
    case = replace(case, gate="text", strength=1.0)
    data = case.numbers()
    g = torch.sigmoid(data["text"] @ (data["head"] / data["head"].norm()))
    gated = (g / g.mean(1, keepdim=True)).unsqueeze(-1) * data["text"]
    close(case.fused(), gated + replace(case, gate="off").fused() - data["text"])


relevances = st.integers(0, 999).map(lambda seed: np.random.default_rng(seed).dirichlet([0.2] * 30, size=(5, 2)))


@given(relevances, merges)
def test_shares(relevance: np.ndarray, merge: Merge) -> None:
    """Ã_i = c a_i^p / (Σ_j a_j^p + β) with a = N A_i; sums to c, or less with a background."""
    merge = replace(merge, strategy="relevance", unclaimed=0.0)
    got = shares(torch.from_numpy(relevance).float().clamp_min(1e-30), merge).double().numpy()
    a = np.maximum(relevance.astype(np.float32), 1e-30).astype(np.float64) * relevance.shape[-1]
    a **= merge.sharpness
    factor = len(relevance) if merge.normalization == "mean" else 1
    np.testing.assert_allclose(got, factor * a / (a.sum(0) + merge.background), rtol=1e-4, atol=1e-6)
    total = got.sum(0)
    assert (total <= factor * (1 + 1e-5)).all() and (merge.background or np.allclose(total, factor, rtol=1e-5))


@given(relevances, merges, st.sampled_from([0.5, 1.0, 10.0]), st.integers(0, 99))
def test_shares_in_regions(relevance: np.ndarray, merge: Merge, sharpness: float, seed: int) -> None:
    """Ã_i = c r_i a_i^p / (Σ_j r_j a_j^p + β) · max_j r_j; 0 outside all regions."""
    merge = replace(merge, strategy="relevance", sharpness=sharpness, unclaimed=0.0)
    region = np.random.default_rng(seed).choice([0.0, 0.25, 1.0], (len(relevance), 1, relevance.shape[-1]))
    given = torch.from_numpy(relevance).float().clamp_min(1e-30)
    got = shares(given, merge, torch.from_numpy(region).float()).double().numpy()
    a = region * (given.double().numpy() * relevance.shape[-1]) ** sharpness
    total = a.sum(0) + merge.background
    expected = np.divide(a, total, out=np.zeros_like(a), where=total > 0) * region.max(0)
    factor = len(relevance) if merge.normalization == "mean" else 1
    np.testing.assert_allclose(got, factor * expected, rtol=1e-4, atol=1e-6)


@given(relevances, merges, st.sampled_from([0.3, 1.0]), st.one_of(st.none(), st.integers(0, 99)))
def test_what_nobody_claims(relevance: np.ndarray, merge: Merge, unclaimed: float, seed: int | None) -> None:
    """One more competitor, u times the geometric mean, over positions where any object may be, of the best of them."""
    merge = replace(merge, strategy="relevance", unclaimed=unclaimed)
    given = torch.from_numpy(relevance).float().clamp_min(1e-30)
    count, pictures, positions = given.shape
    region = np.ones((count, 1, positions))
    if seed is not None:
        region = np.random.default_rng(seed).choice([0.0, 0.5, 1.0], region.shape)
    got = shares(given, merge, None if seed is None else torch.from_numpy(region).float()).double().numpy()
    a = given.double().numpy() * positions
    for picture in range(pictures):
        inside = [n for n in range(positions) if region[:, 0, n].max() > 0]
        best = [max(a[i, picture, n] for i in range(count) if region[i, 0, n] > 0) for n in inside]
        nobody = (unclaimed * np.exp(np.mean(np.log(best)))) ** merge.sharpness
        powers = region[:, 0] * a[:, picture] ** merge.sharpness
        expected = powers / (powers.sum(0) + merge.background + nobody) * region[:, 0].max(0)
        factor = count if merge.normalization == "mean" else 1
        np.testing.assert_allclose(got[:, picture], factor * expected, rtol=2e-4, atol=1e-6)


def test_a_region_that_is_the_same_everywhere_changes_nothing() -> None:
    relevance = torch.rand(2, 3, 50, generator=torch.Generator().manual_seed(0)) / 50
    merge = Merge(unclaimed=1.0, sharpness=2.0)
    close(shares(relevance, merge, torch.ones(2, 3, 1)), shares(relevance, merge))


def test_a_place_that_stands_out_stays_an_objects_own() -> None:
    """What the best object has at a typical position is nobody's by half; ten times as much is the object's."""
    relevance = torch.full((2, 1, 100), 1e-3)
    relevance[0, 0, :10] = 1e-1
    share = shares(relevance / relevance.sum(-1, keepdim=True), Merge(unclaimed=1.0, sharpness=3.0))
    assert share[0, 0, :10].min() > 0.9 and share.sum(0)[0, 10:].max() < 0.6


@pytest.mark.parametrize("competitor", [{}, {"background": 1.0}, {"unclaimed": 1.0}], ids=str)
def test_an_object_without_say_leaves_no_trace(competitor: dict) -> None:
    """However much more it prefers the position, the sharpest merge gives the region to whoever is allowed there."""
    relevance = torch.tensor([2e-2, 1e-6]).view(2, 1, 1).expand(-1, -1, 1000)
    region = torch.tensor([0.0, 1.0]).view(2, 1, 1).expand(-1, -1, 1000)
    merge = Merge(sharpness=10.0, **competitor)
    alone = shares(relevance[1:], merge)
    close(shares(relevance, merge, region), torch.cat([torch.zeros_like(alone), alone]))
    assert competitor or bool((alone == 1).all())


@given(cases)
def test_relevance_sums_to_one_over_positions(case: Case) -> None:
    data, (_, site) = case.numbers(), case.plan()
    keys = (site.content_tokens @ data["to_k"].T).unflatten(-1, (case.heads, -1)).transpose(0, 1)
    queries = data["q"].reshape(-1, case.heads, case.width).permute(1, 2, 0)
    relevance = raw_relevance(queries, keys, site.average, 2)
    assert relevance.shape == (case.objects, 2, case.positions)
    close(relevance.sum(-1), torch.ones(case.objects, 2))


@pytest.mark.parametrize("sharp", [1e-4, 30.0, 1e3])  # at 1e3 logits over √d come near float16's 65504
@pytest.mark.parametrize("gate", ["image", "text", "off"])
@pytest.mark.parametrize(
    "merge", [Merge(), Merge("concat"), Merge(background=1.0, sharpness=8.0), Merge(sharpness=0.2)]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits(dtype: torch.dtype, merge: Merge, gate: str, sharp: float) -> None:
    for regional in (False, True):
        case = Case(objects=3, positions=64, sharp=sharp, dtype=dtype, merge=merge, gate=gate, regional=regional)
        assert torch.isfinite(case.fused((True, False))).all()


@pytest.mark.parametrize("level", [-50.0, -1e3, -3e4, 3e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_head_that_is_shut_everywhere(dtype: torch.dtype, level: float) -> None:
    """g̃ has the mean 1 even where σ underflows."""
    text = torch.full((1, 5, 4), level / 2, dtype=dtype)
    gate = fusion_gate(text, torch.full((4,), 0.5, dtype=dtype))
    assert torch.isfinite(gate).all()
    close(gate.mean(-1), torch.ones(1))
