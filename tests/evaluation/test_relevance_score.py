"""The object relevance score: the formula, what it says where it is not defined, the picture, the node."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from mip_adapter.evaluation.detection.detections import Detection, Detections
from mip_adapter.evaluation.relevance_score import score
from mip_adapter.evaluation.relevance_score.picture import LEGEND, TITLE, draw_comparison
from mip_adapter.evaluation.relevance_score.score import ObjectRelevance, Undefined, interval
from mip_adapter.evaluation.relevance_score.target import Target, detected, masked

from ..support.sentences import told

PICTURES, HEIGHT, WIDTH = 4, 24, 36


def pictures(seed: int = 0, count: int = PICTURES) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    clean = torch.rand(count, HEIGHT, WIDTH, 3, generator=draws)
    return clean, (clean + 0.1 * torch.randn(clean.shape, generator=draws)).clamp(0, 1)


def boxed(*boxes: tuple[int, int, int, int]) -> torch.Tensor:
    """[B, H, W] with boxes x0, y0, x1, y1 filled."""
    regions = torch.zeros(len(boxes), HEIGHT, WIDTH)
    for region, (x0, y0, x1, y1) in zip(regions, boxes, strict=True):
        region[y0:y1, x0:x1] = 1
    return regions


def on(regions: torch.Tensor, missing: tuple[str, ...] = ()) -> Target:
    return Target("“cat”", regions, missing, "masks")


def object_relevance(clean: torch.Tensor, noised: torch.Tensor, regions: torch.Tensor) -> ObjectRelevance:
    return score.object_relevance(clean, noised, on(regions))


BOXES = boxed((2, 3, 20, 15), (0, 0, 5, 24), (10, 10, 36, 24), (30, 20, 36, 24))


def test_the_formula_for_boxes() -> None:
    clean, noised = pictures()
    got = object_relevance(clean, noised, BOXES)
    ratios = []
    for a, b, region, change in zip(clean.numpy(), noised.numpy(), BOXES.numpy() > 0, got.pictures, strict=True):
        changed = np.abs(a.astype(float) - b)
        assert change.inside == pytest.approx(changed[region].mean(), rel=1e-5)
        assert change.outside == pytest.approx(changed[~region].mean(), rel=1e-5)
        ratios.append(changed[region].mean() / changed[~region].mean())
        assert change.ratio == pytest.approx(ratios[-1], rel=1e-5) and not change.why
    assert got.score == pytest.approx(np.mean(ratios), rel=1e-5)
    alpha = torch.cat([clean, torch.rand(PICTURES, HEIGHT, WIDTH, 1)], -1)
    assert object_relevance(alpha, torch.cat([noised, 1 - alpha[..., 3:]], -1), BOXES).score == got.score


def test_soft_masks_are_weights() -> None:
    clean, noised = pictures()
    soft = torch.rand(1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(9))
    got = object_relevance(clean, noised, soft)
    weight = soft[0].double().numpy()
    for a, b, change in zip(clean.numpy(), noised.numpy(), got.pictures, strict=True):
        changed = np.abs(a.astype(float) - b).mean(-1)
        assert change.inside == pytest.approx(np.average(changed, weights=weight), rel=1e-5)
        assert change.outside == pytest.approx(np.average(changed, weights=1 - weight), rel=1e-5)


def test_noise_on_the_object_scores_high_and_elsewhere_low() -> None:
    clean, _ = pictures()
    noise = 0.2 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    inside, outside, everywhere = (
        object_relevance(clean, clean + noise * each[..., None], BOXES).score
        for each in (BOXES + 0.1, 1.1 - BOXES, torch.ones_like(BOXES))
    )
    assert inside > 8 and outside < 1 / 8 and everywhere == pytest.approx(1, abs=0.1)


def test_the_interval_is_students() -> None:
    from scipy import stats

    ratios = [1.2, 1.9, 1.4, 2.2, 0.8]
    found = stats.ttest_1samp(ratios, 0).confidence_interval(0.95)
    assert interval(ratios) == pytest.approx((found.low, found.high))
    assert interval(ratios[:2]) is None
    assert interval([1.5, 1.5, 1.5]) == pytest.approx((1.5, 1.5))
    clean, noised = pictures()
    scored = object_relevance(clean, noised, BOXES)
    assert scored.interval == interval([change.ratio for change in scored.pictures if change.ratio])


def test_what_is_not_defined_is_named_and_left_out() -> None:
    clean, noised = pictures(count=5)
    noised[3] = clean[3]
    noised[4, 10:] = clean[4, 10:]
    regions = boxed((2, 3, 20, 15), (5, 5, 5, 5), (0, 0, WIDTH, HEIGHT), (2, 3, 20, 15), (0, 0, WIDTH, 10))
    got = object_relevance(clean, noised, regions)
    assert got.score == got.pictures[0].ratio and got.interval is None
    assert [change.ratio is None for change in got.pictures] == [False, True, True, True, True]
    report = got.report(on(regions))
    assert "nan" not in report.lower() and "inf" not in report.lower()
    for sentence in (
        "Object relevance score of “cat”: ",
        "Picture 2 does not count: the object's mask is empty there.",
        "Picture 3 does not count: the object's box or mask covers all of it",
        "Picture 4 does not count: nothing changed at all",
        "Picture 5 does not count: nothing changed outside the object",
    ):
        assert sentence in report


def test_the_difference_to_a_baseline_is_paired() -> None:
    clean, noised = pictures()
    other = pictures(seed=1)[1]
    regions = torch.cat([BOXES[:3], torch.zeros(1, HEIGHT, WIDTH)])
    scored, baseline = (object_relevance(clean, each, regions) for each in (noised, other))
    more = [a.ratio - b.ratio for a, b in zip(scored.pictures[:3], baseline.pictures[:3], strict=True)]  # pyright: ignore
    low, high = interval(more) or (0, 0)
    said = f"the difference is {np.mean(more):+.3f} (95 % interval {low:.3f} to {high:.3f}, 3 pictures)"
    assert said.replace("-", "−") in scored.report(on(regions), baseline)
    one = object_relevance(clean[:1], noised[:1], regions[:1])
    assert "(1 picture; 3 or more give an interval)" in one.report(on(regions), one)
    nowhere = object_relevance(clean[2:], noised[2:], regions[2:])
    elsewhere = object_relevance(clean[2:], noised[2:], regions[2:].flip(0))
    assert "of other pictures" in nowhere.report(on(regions), elsewhere)


def test_nothing_defined_is_one_sentence() -> None:
    clean, noised = pictures(count=1)
    told(lambda: object_relevance(clean, noised, torch.zeros(1, HEIGHT, WIDTH)), "not defined", "mask is empty")
    told(lambda: object_relevance(clean, noised, torch.ones(1, HEIGHT, WIDTH)), "not defined", "no outside")
    told(lambda: object_relevance(clean, clean, BOXES[:1]), "nothing changed at all", "MIP Text Noise")
    clean, noised = pictures()
    told(lambda: object_relevance(clean, noised, torch.ones(1, HEIGHT, WIDTH)), "any of the pictures", "no outside")


def test_what_does_not_belong_together() -> None:
    clean, noised = pictures()
    told(lambda: object_relevance(clean, noised[:3], BOXES), "4 of 36×24", "3 of 36×24", "same latent")
    told(lambda: object_relevance(clean, noised[:, :, :30], BOXES), "36×24", "30×24")
    told(lambda: object_relevance(clean, noised, BOXES[:3]), "4 of 36×24", "3 of 36×24", "one a picture")
    told(lambda: object_relevance(clean, noised, BOXES[:, :20]), "36×24", "36×20")
    told(lambda: object_relevance(clean[0], noised[0], BOXES), "“images”", "[24, 36, 3]")
    told(lambda: object_relevance(clean, noised * math.nan, BOXES), "“noised”", "NaN")


# ---- where the object is ----


def found() -> Detections:
    """A cat in two of three pictures, once with a mask, twice in the last; a cup nowhere."""
    mask = torch.zeros(HEIGHT, WIDTH)
    mask[4:8, 4:8] = 0.7
    cat, soft = Detection((2.2, 3.4, 20.0, 14.6), 0.9), Detection((4, 4, 8, 8), 0.8, mask)
    other = Detection((30, 20, 40, 30), 0.3)
    found = (((), ()), ((cat,), ()), ((soft, other), ()))
    return Detections(("red cat", "cup"), HEIGHT, WIDTH, found, 0.3, ((0.2, 0.0), (0.0, 0.0), (0.0, 0.0)))


@pytest.mark.parametrize("wanted", ["", "red cat", " Red  CAT", "1"])
def test_the_best_detection_is_the_region(wanted: str) -> None:
    name, regions, why, told_by = detected(found(), wanted)
    assert name == "“red cat”" and regions.shape == (3, HEIGHT, WIDTH)
    assert told_by == "the detections' masks (1) and boxes (1)" and "red cat" in why[0] and why[1:] == ("", "")
    assert not regions[0].any() and torch.equal(regions[1], BOXES[0])
    assert float(regions[2].sum()) == pytest.approx(16 * 0.7)


def test_objects_that_were_not_searched() -> None:
    assert not detected(found(), "2").regions.any()
    told(lambda: detected(found(), "dog"), "“dog”", "1 “red cat”, 2 “cup”")
    told(lambda: detected(found(), "3"), "“3”", "2 “cup”")


def test_masks_of_one_object_or_of_all() -> None:
    assert torch.equal(masked(BOXES, "cat", PICTURES).regions, BOXES) and masked(BOXES, "cat", PICTURES).name == "cat"
    assert masked(BOXES[0], "", PICTURES).regions.shape == (1, HEIGHT, WIDTH)
    # Two pictures with two objects each, picture by picture.
    name, second, *_ = masked(BOXES, "2", 2)
    assert name == "object 2" and torch.equal(second, BOXES[[1, 3]])
    assert torch.equal(masked(BOXES, "", 2).regions, BOXES[[0, 2]])
    told(lambda: masked(BOXES, "cat", 2), "2 objects", "“cat”", "1 to 2")
    told(lambda: masked(BOXES, "3", 2), "“3”", "1 to 2")
    told(lambda: masked(BOXES, "", 3), "4 masks", "3 pictures")
    told(lambda: masked(BOXES, "", 0), "4 masks", "0 pictures")


# ---- the picture ----


def test_the_picture_shows_what_was_measured() -> None:
    clean, _ = pictures()
    noised = clean.clone()
    noised[:, 4:8, 4:8] = 1 - noised[:, 4:8, 4:8]
    noised += 1e-3
    regions = boxed(*[(2, 2, 12, 12)] * PICTURES)
    sheets = draw_comparison(clean, noised, on(regions), object_relevance(clean, noised, regions))
    grey = clean[..., :1], noised[..., :1]
    assert draw_comparison(*grey, on(regions), object_relevance(*grey, regions)).shape == sheets.shape
    scale, gap = 8, 10  # 36 pixels become 288
    assert sheets.shape == (PICTURES, HEIGHT * scale + TITLE + LEGEND, 3 * WIDTH * scale + 4 * gap, 3)
    assert float(sheets.min()) >= 0 and float(sheets.max()) <= 1
    panels = [sheets[:, TITLE : TITLE + HEIGHT * scale, gap + i * (WIDTH * scale + gap) :][:, :, : WIDTH * scale]
              for i in range(3)]  # fmt: skip
    middle = [panel[:, scale // 2 :: scale, scale // 2 :: scale] for panel in panels]  # one of each pixel's 8 × 8
    away = 1 - boxed(*[(1, 1, 13, 13)] * PICTURES)[..., None]  # from the outline
    for panel, image in zip(middle, (clean, noised.clamp(0, 1)), strict=False):
        torch.testing.assert_close(panel * away, image * away, atol=1 / 255, rtol=0)
    brightness = middle[2].mean(-1)
    assert float(brightness[:, 5:7, 5:7].mean()) > 2 * float(brightness[:, 15:, 15:].mean())
    edge = panels[0][:, 2 * scale, 4 * scale : 10 * scale]  # the outline's upper side, inside the region
    torch.testing.assert_close(edge, torch.ones_like(edge))
    # Pictures larger than a panel are reduced.
    big, region = (torch.rand(1, 900, 1300, *each) for each in ((3,), ()))
    scored = object_relevance(big, 1 - big, region)
    assert draw_comparison(big, 1 - big, on(region), scored).shape == (1, 443 + TITLE + LEGEND, 3 * 640 + 4 * gap, 3)


def test_the_picture_of_what_is_not_scored() -> None:
    clean, noised = pictures(count=2)
    regions = boxed((2, 2, 12, 12), (0, 0, 0, 0))
    scored = object_relevance(clean, noised, regions)
    assert isinstance(scored, ObjectRelevance)
    sheets = draw_comparison(clean, noised, on(regions), scored)
    assert not torch.equal(sheets[0, -LEGEND:], sheets[1, -LEGEND:])


# ---- the node ----


@pytest.mark.usefixtures("host")
def test_the_node() -> None:
    from mip_adapter.nodes.relevance_score import MIPObjectRelevanceScore

    def score(*args, **places):
        return MIPObjectRelevanceScore.execute(*args, **places).args

    clean, noised = pictures(count=3)
    value, report, sheet = score(clean, noised, "red cat", detections=found())
    target = detected(found(), "1")
    expected = object_relevance(clean, noised, target.regions)
    assert value == expected.score and len(sheet) == 3
    assert "Picture 1 does not count: No “red cat” was found at threshold 0.3 (the best candidate has 0.20)" in report
    assert "told by the detections' masks (1) and boxes (1)." in report
    uniform = pictures(seed=3, count=3)[1]
    told_more = score(clean, noised, "red cat", detections=found(), baseline=uniform)
    compared = object_relevance(clean, uniform, target.regions)
    assert told_more[0] == value and f"Baseline: {compared.score:.3f}; the difference is" in told_more[1]
    assert score(clean, noised, "", masks=BOXES[:3])[0] == object_relevance(clean, noised, BOXES[:3]).score
    told(lambda: score(clean, noised, ""), "neither", "MIP Detect Objects")
    told(lambda: score(clean, noised, "", detections=found(), masks=BOXES[:3]), "both")
    told(lambda: score(clean, noised, "cup", detections=found()), "not defined", "No “cup”", "threshold 0.3", "nothing")
    told(lambda: score(clean[:2], noised[:2], "", detections=found()), "2 of 36×24", "3 of 36×24")


@pytest.mark.usefixtures("host")
def test_what_is_wrong_with_the_baseline_is_said_of_the_baseline() -> None:
    from mip_adapter.nodes.relevance_score import MIPObjectRelevanceScore

    clean, noised = pictures(count=3)

    def score(baseline: torch.Tensor):
        return MIPObjectRelevanceScore.execute(clean, noised, "", detections=found(), baseline=baseline).args

    told(lambda: score(noised[:2]), "“images” are 3 of 36×24", "“baseline” 2 of 36×24")
    said = told(lambda: score(noised * torch.nan), "The input “baseline” contains NaN")
    assert "noised" not in said
    value, report, _ = score(clean)
    assert math.isfinite(value)
    assert "Baseline: The object relevance score of “baseline” is not defined for any of the pictures; of the" in report


def test_a_thing_that_two_texts_find_counts_for_one() -> None:
    """The detector answers “cup” with the cat, less certainly: the cup is not there."""
    cat, as_cup = Detection((2, 3, 20, 15), 0.9), Detection((2, 3, 20, 14.5), 0.6)
    both = Detections(("cat", "cup"), HEIGHT, WIDTH, (((cat,), (as_cup,)),), 0.25)
    assert detected(both, "cat").regions.any()
    cup = detected(both, "cup")
    assert not cup.regions.any() and "“cup” was found only where another object" in cup.missing[0]
    clean, noised = pictures(count=1)
    with pytest.raises(Undefined, match="only where another object"):
        score.object_relevance(clean, noised, cup)
