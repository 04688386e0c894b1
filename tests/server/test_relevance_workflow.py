"""The object relevance score from end to end: the shipped workflow, and benchmarks/relevance_score.py that runs it."""

from __future__ import annotations

import json
from types import ModuleType

import numpy as np
import pytest

WORDS = {"star", "ring", "heart", "cross", "moon", "square", "triangle", "arrow", "drop", "flower", "fish", "mushroom"}


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    from mip_adapter.benchmarks import relevance_score

    return relevance_score


@pytest.fixture(scope="module")
def workflow(bench) -> dict:
    return json.loads(bench.WORKFLOW.read_text("utf-8"))


def test_prompts_name_their_objects(bench) -> None:
    made = bench.prompts(12, 3)
    assert made == bench.prompts(12, 3) and made != bench.prompts(12, 4)
    assert len({prompt.seed for prompt in made}) == 12
    for prompt in made:
        assert 2 <= len(prompt.objects) <= 3 and set(prompt.objects) <= WORDS
        assert all(each in prompt.words for each in prompt.objects)


def test_the_workflow_compares_like_with_like(workflow) -> None:
    """All that differs between the two noises is the mode; all that differs between the samplers is the model."""
    noises, samplers = (
        [node["inputs"] for node in workflow.values() if node["class_type"] == kind]
        for kind in ("MIPTextNoise", "KSampler")
    )
    assert sorted(each.pop("mode") for each in (dict(n) for n in noises)) == ["relevance", "uniform"]
    assert len(noises) == 2 and len(samplers) == 3
    for group, free in ((noises, "mode"), (samplers, "model")):
        rest = [{name: value for name, value in each.items() if name != free} for each in group]
        assert all(each == rest[0] for each in rest)


def test_a_graph_for_one_prompt(bench, workflow) -> None:
    before = json.dumps(workflow)
    made = bench.graph(workflow, bench.Prompt("a moon and a fish", ("fish", "moon"), 9), 3, 0.7, 5)
    assert json.dumps(workflow) == before
    values = [value for node in made.values() for value in node["inputs"].values()]
    assert {"a moon and a fish", "fish, moon", "fish", 9, 3, 0.7, 5} <= {v for v in values if not isinstance(v, list)}
    shown = [node for node in made.values() if node["class_type"].startswith("Preview")]
    sources = [workflow[node["inputs"]["source"][0]]["_meta"]["title"] for node in shown]
    assert sources == ["Score: uniform", "Score: relevance"]


def test_the_summary_is_a_paired_bootstrap(bench) -> None:
    draw = np.random.default_rng(0)
    uniform = draw.uniform(1, 5, 40)
    relevance = uniform * 1.2 + draw.normal(0, 0.1, 40)
    rows = [bench.Row("a", "a", i, u, r) for i, (u, r) in enumerate(zip(uniform, relevance, strict=True))]
    rows.append(bench.Row("b", "b", 99, left_out="not there"))
    said = bench.summary(rows)
    assert (said["prompts"], said["scored"], said["higher"]) == (41, 40, int((relevance > uniform).sum()))
    assert said["difference"]["mean"] == pytest.approx((relevance - uniform).mean())
    assert said["factor"]["mean"] == pytest.approx(np.exp(np.log(relevance / uniform).mean()))
    # By hand: prompts drawn with both of their scores, percentiles of the means.
    more = relevance - uniform
    means = more[draw.integers(0, 40, (9999, 40))].mean(1)
    assert said["difference"]["interval"] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.02)
    low, high = said["difference"]["interval"]
    assert high - low < said["relevance"]["interval"][1] - said["relevance"]["interval"][0]  # pairing narrows it
    assert bench.summary(rows) == said
    assert "over 40 of 41 prompts" in bench.line(said) and "nan" not in bench.line(said)


def test_too_few_scores_are_named(bench) -> None:
    rows = [bench.Row("a", "a", 0, 1.0, 2.0)] * 2 + [bench.Row("b", "b", 1, left_out="not there")]
    with pytest.raises(RuntimeError, match="Only 2 of 3 prompts"):
        bench.summary(rows)


def test_an_object_that_is_not_there_is_left_out_and_not_an_error(bench, server) -> None:
    prompt = bench.Prompt("a star", ("star",), 1)

    def graph(size: int) -> dict:
        blank = {"width": 64, "height": 64, "batch_size": 1, "color": 0xFFFFFF}
        found = {"images": ["blank", 0], "detector": ["detector", 0], "texts": "star", "threshold": 0.3}
        places = {"images": ["blank", 0], "noised": ["noised", 0], "detections": ["found", 0], "object": "star"}
        detector = {"detector_name": "miniature world (pixels)"}
        return {
            "blank": {"class_type": "EmptyImage", "inputs": blank},
            "noised": {"class_type": "EmptyImage", "inputs": {**blank, "width": size}},
            "detector": {"class_type": "MIPDetectorLoader", "inputs": detector},
            "found": {"class_type": "MIPDetectObjects", "inputs": found},
            "score": {"class_type": "MIPObjectRelevanceScore", "inputs": places},
            "shown": {"class_type": "PreviewAny", "inputs": {"source": ["score", 0]}},
        }

    assert "No “star” was found at threshold 0.3" in bench.run(server.url, prompt, graph(64)).left_out
    with pytest.raises(RuntimeError, match="failed in MIPObjectRelevanceScore"):
        bench.run(server.url, prompt, graph(32))


def test_the_workflow_runs_and_relevance_scores_higher(bench, workflow, server) -> None:
    prompt = bench.Prompt("a mushroom and an arrow", ("mushroom", "arrow"), 420)
    row = bench.run(server.url, prompt, bench.graph(workflow, prompt, 4, 0.5, 12))
    assert not row.left_out
    assert row.relevance > row.uniform > 0
