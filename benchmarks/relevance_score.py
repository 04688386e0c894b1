"""Object relevance score on the miniature: does noise by relevance meet its object more than uniform noise does?

    python mip.py relevance --prompts 32 --output score.json

Runs the shipped workflow “object relevance score” on a real server, once a prompt: objects of the miniature's world,
named as in its training, the first of them the target; the mean over a batch of pictures is the prompt's score.
A prompt's two scores belong together, so the interval of their difference is a paired bootstrap over prompts.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from copy import deepcopy
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..launcher import comfyui
from ..launcher.environment import Problem
from ..launcher.server import Server, device_arguments

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = ROOT / "tests" / "api" / "object relevance score.json"
MODES = ("uniform", "relevance")
RESAMPLES = 9999
LEAST = 3  # prompts: fewer give no interval
PATIENCE_S = 1800  # for one prompt


class Prompt(NamedTuple):
    words: str
    objects: tuple[str, ...]  # the first is the target
    seed: int


class Row(NamedTuple):
    """One prompt's scores, or why it has none."""

    prompt: str
    target: str
    seed: int
    uniform: float | None = None
    relevance: float | None = None
    left_out: str = ""


def prompts(count: int, seed: int) -> list[Prompt]:
    """Captions of scenes with two or three objects, without the pairs of kinds that training never saw."""
    from ..miniature import world, world_words

    rng, scenes = random.Random(seed), world.sample(count, seed, (2, 3))
    made = []
    for scene in range(count):
        kinds = scenes.present(scene)
        names = tuple(world_words.object_text(kind) for kind in kinds)
        made.append(Prompt(world_words.caption(kinds, rng), names, seed * 100_003 + scene))
    return made


def graph(workflow: dict[str, Any], prompt: Prompt, batch_size: int, strength: float, steps: int) -> dict[str, Any]:
    """The workflow in API format for one prompt. It outputs both scores in place of pictures and reports.

    batch_size: pictures that are made.
    strength: of the noise.
    """
    made = {number: node for number, node in deepcopy(workflow).items() if not node["class_type"].startswith("Preview")}
    titled = {node["_meta"]["title"]: node["inputs"] for node in made.values()}
    titled["Prompt"]["text"] = prompt.words
    titled["Objects"]["value"], titled["Target"]["value"] = ", ".join(prompt.objects), prompt.objects[0]
    titled["Seed of all three"]["value"] = prompt.seed
    titled["Picture size"]["batch_size"] = batch_size
    for node in made.values():
        if node["class_type"] == "MIPTextNoise":
            node["inputs"] |= {"strength": strength, "seed": prompt.seed}
        elif node["class_type"] == "KSampler":
            node["inputs"]["steps"] = steps
    for mode in MODES:
        number = next(n for n, node in made.items() if node["_meta"]["title"] == f"Score: {mode}")
        made[mode] = {"class_type": "PreviewAny", "inputs": {"source": [number, 0]}, "_meta": {"title": mode}}
    return made


def run(server: str, prompt: Prompt, posted: dict[str, Any]) -> Row:
    """Posts one graph and waits for its scores.

    posted: from `graph`.

    Raises RuntimeError for any failure, except that a score is not defined: then the row says why.
    """
    body = json.dumps({"prompt": posted}).encode()
    number = _ask(urllib.request.Request(f"{server}/prompt", body, {"Content-Type": "application/json"}))["prompt_id"]
    deadline = time.monotonic() + PATIENCE_S
    while not (found := _ask(f"{server}/history/{number}")):
        if time.monotonic() > deadline:
            raise RuntimeError(f"The server did not finish “{prompt.words}” in {PATIENCE_S} seconds.")
        time.sleep(0.1)
    done = found[number]
    row = Row(prompt.words, prompt.objects[0], prompt.seed)
    if done["status"]["status_str"] == "success":
        return row._replace(**{mode: float(done["outputs"][mode]["text"][0]) for mode in MODES})
    failed = next(about for kind, about in done["status"]["messages"] if kind == "execution_error")
    said = failed["exception_message"].strip()
    if failed["exception_type"].endswith(".Undefined"):  # evaluation/relevance_score/score.py
        return row._replace(left_out=said)
    raise RuntimeError(f"“{prompt.words}” failed in {failed['node_type']}: {said}")


def _ask(request: str | urllib.request.Request) -> Any:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the server is local: use no proxy
    try:
        with direct.open(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"The server refused: {error.read().decode(errors='replace')[:500]}") from error


def summary(rows: Sequence[Row], seed: int = 0) -> dict[str, Any]:
    """Means over prompts with 95 % intervals, from a bias-corrected and accelerated bootstrap.

    The bootstraps of difference and factor are paired.

    Raises RuntimeError for fewer than LEAST scored prompts.
    """
    from scipy.stats import bootstrap

    scored = [(row.uniform, row.relevance) for row in rows if row.uniform is not None and row.relevance is not None]
    if len(scored) < LEAST:
        raise RuntimeError(
            f"Only {len(scored)} of {len(rows)} prompts have a score, and an interval needs {LEAST}. Raise --prompts "
            "or --pictures."
        )
    uniform, relevance = np.array(scored).T
    said: dict[str, Any] = {"prompts": len(rows), "scored": len(scored)}
    for name, samples, statistic in (
        ("uniform", (uniform,), lambda a, axis: a.mean(axis)),
        ("relevance", (relevance,), lambda a, axis: a.mean(axis)),
        ("difference", (relevance, uniform), lambda a, b, axis: (a - b).mean(axis)),
        # The geometric mean of the ratios. A few pictures with a still background do not decide it alone.
        ("factor", (relevance, uniform), lambda a, b, axis: np.exp(np.log(a / b).mean(axis))),
    ):
        found = bootstrap(
            samples, statistic, paired=len(samples) > 1, n_resamples=RESAMPLES, rng=np.random.default_rng(seed)
        ).confidence_interval
        interval = [float(found.low), float(found.high)]
        said[name] = {"mean": float(statistic(*samples, axis=0)), "interval": interval}
    said["higher"] = int((relevance > uniform).sum())
    return said


def line(said: dict[str, Any]) -> str:
    def value(name: str) -> str:
        low, high = said[name]["interval"]
        return f"{said[name]['mean']:.2f} [{low:.2f}, {high:.2f}]"

    return (
        f"Object relevance score over {said['scored']} of {said['prompts']} prompts: relevance {value('relevance')}, "
        f"uniform {value('uniform')}, difference {value('difference')}, factor {value('factor')}; relevance is higher "
        f"in {said['higher']}. Means with 95 % bootstrap intervals."
    )


def main(argv: Sequence[str]) -> int:
    try:
        return _measure(argv)
    except (RuntimeError, Problem) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _measure(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="mip.py relevance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=4, help="a prompt; their mean is the prompt's score")
    parser.add_argument("--strength", type=float, default=0.5, help="of the noise, in standard deviations of Z_text")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--server", help="a running ComfyUI with this pack; without it one is started")
    parser.add_argument("--output", type=Path, help="where the JSON goes")
    given = parser.parse_args(arguments)
    if given.prompts < LEAST:
        parser.error(f"--prompts {given.prompts}: an interval needs {LEAST} or more")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped
    workflow = json.loads(WORKFLOW.read_text("utf-8"))
    with ExitStack() as stack:
        server = given.server.rstrip("/") if given.server else _started(stack)
        rows: list[Row] = []
        for prompt in prompts(given.prompts, given.seed):
            rows.append(run(server, prompt, graph(workflow, prompt, given.pictures, given.strength, given.steps)))
            last = rows[-1]
            told = last.left_out or f"uniform {last.uniform:.2f}, relevance {last.relevance:.2f}"
            print(f"{len(rows):4d}  {last.prompt} ({last.target}): {told}", flush=True)
    said = summary(rows)
    print(line(said))
    settings = {name: getattr(given, name) for name in ("pictures", "strength", "steps", "seed")}
    if given.output:
        result = {"date": date.today().isoformat(), **settings, **said, "rows": [row._asdict() for row in rows]}
        given.output.parent.mkdir(parents=True, exist_ok=True)
        draft = given.output.with_name(given.output.name + ".part")
        draft.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
        draft.replace(given.output)
    return 0


def _started(stack: ExitStack) -> str:
    host = comfyui.given_host() or comfyui.unpacked_host_folder()
    base = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    server = Server(sys.executable, host, base, device_arguments(sys.executable))
    return stack.enter_context(server).url
