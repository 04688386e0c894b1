"""Added time of the merge at SDXL's cross-attention shapes: text only, official, plain IP-Adapter, ours.

Ours three times: measuring its own relevance as in the paper, and with a pool at a site that only reads it and at one
that also measures. All run in turn, round after round, so that a noisy machine disturbs them alike; of each the fastest
round counts, since interference only ever adds time, and added times are compared as ratios. `--step` measures a whole
UNet step instead, with random weights in the host's own SDXL: plain, with our patch, and with the patch recording the
relevance. `--edit` measures an attention of FLUX.1 Kontext: plain, with the references told apart, and by a dense mask.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from .formulations import Site, official, plain_ip_adapter, text_only
from .measure import flops, operator_calls, peak_memory

ROOT = Path(__file__).resolve().parent.parent
X = 2048
COUNTS = (1, 2, 2, 1)  # content tokens of object texts such as "cat" and "red jacket"
SHAPES = ((4096, 640, 10), (1024, 1280, 20))
CASES = tuple((m, t) for m in (2, 4) for t in (4, 16))
OURS = ("ours", "reads", "measures")
SITES = {4096: 10, 1024: 60}  # of SDXL, by positions


def make_site(n: int, c: int, heads: int, objects: int, tokens: int, device: torch.device, dtype: torch.dtype) -> Site:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, std: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * std).to(device, dtype)

    rows = 2  # uncond and cond
    to_k, to_v, to_k_ip, to_v_ip = (draw(c, X, std=X**-0.5) for _ in range(4))
    return Site(
        heads, 0.75, draw(rows, n, c), draw(rows, 77, c), draw(rows, 77, c), to_k, to_v, to_k_ip, to_v_ip,
        draw(c, std=c**-0.5), draw(rows, objects, tokens, X), draw(rows, objects, 77, X), COUNTS[:objects],
    )  # fmt: skip


def ours(site: Site, name: str = "ours") -> Callable[[Site], Tensor]:
    """The pack's merge at the same site, compiled beforehand as MIPApply does. name: one of `OURS`."""
    from ..attention.merge import split_queries
    from ..attention.options import FusionHead, Merge
    from ..attention.plan import EncodedReferences, compile_plans
    from ..attention.pool import Pool, PoolAccess
    from ..attention.relevance import raw_relevance
    from ..attention.site import RowGroup, fuse
    from ..weights.adapter import Adapter, SiteWeights
    from ..weights.sites import Site as UNetSite

    width = site.q.shape[-1]
    adapter = Adapter("bench", None, {}, {1: SiteWeights(site.to_k_ip, site.to_v_ip, site.head)})  # pyright: ignore[reportArgumentType]
    texts = tuple(site.object_text[1, i, 1 : 1 + n] for i, n in enumerate(site.counts))
    names = tuple(f"object {i}" for i in range(len(texts)))
    key = ("input", 4, 0)
    (plan,) = compile_plans(
        [adapter],
        (UNetSite(key, 1, width, site.heads, X),),
        [EncodedReferences(names, site.image_tokens[1], site.image_tokens[0, 0], texts, (1.0,) * len(texts))],
        scale=site.scale,
        merge=Merge(),
        head=FusionHead({1: site.head}),
        device=site.q.device,
        dtype=site.q.dtype,
    )
    compiled, objects, pool = plan.site_plans[key], tuple(range(len(texts))), None
    keys = compiled.content_tokens @ site.to_k.T  # made once a sampling
    if name != "ours":
        side, numbers = math.isqrt(site.q.shape[1]), torch.zeros(1, dtype=torch.long, device=site.q.device)
        read, write = Pool(objects, 1), Pool(objects, 1) if name == "measures" else None
        split = keys.unflatten(-1, (site.heads, -1)).transpose(0, 1)
        measured = raw_relevance(split_queries(site.q[1:], site.heads), split, compiled.average, 1)
        read.add(key, measured, (side, side), (0,), numbers)
        pool = PoolAccess(read, write, key, (side, side), objects, (0,), numbers)
    parts = RowGroup(0, 1, False), RowGroup(1, 2, True, pool_access=pool)

    def run(site: Site) -> Tensor:
        text = text_only(site)
        return fuse(text, text, site.q, plan, compiled, parts, lambda: keys)

    return run


def same_inputs(site: Site) -> Site:
    """The site with the uncond row that the official code gets: one null token set, and the text ""."""
    tokens, text = site.image_tokens.clone(), site.object_text.clone()
    tokens[0] = tokens[0, :1]
    text[0] = text[0, :1, :1]
    return Site(**{**site.__dict__, "image_tokens": tokens, "object_text": text})


def interleaved(contestants: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """{name: milliseconds of its fastest round}. All contestants run in turn in every round."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):  # the first round warms up
        for name, run in contestants.items():
            _sync(device)
            start = time.perf_counter()
            run()
            _sync(device)
            if turn:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: min(values) for name, values in times.items()}


def _sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    return f"{model}, {torch.get_num_threads()} threads"


def bench_sites(rounds: int, device: torch.device, dtype: torch.dtype) -> list[dict]:
    rows = []
    for n, c, heads in SHAPES:
        for objects, tokens in CASES:
            site = same_inputs(make_site(n, c, heads, objects, tokens, device, dtype))
            run, *pooled = (ours(site, name) for name in OURS)
            error = (run(site).float() - official(site).float()).abs().max() / official(site).float().abs().max()
            contestants = {
                "text": text_only,
                "official": official,
                "ip_adapter": plain_ip_adapter,
                **dict(zip(OURS, (run, *pooled), strict=True)),
            }
            calls = {name: partial(f, site) for name, f in contestants.items()}
            ms = interleaved(calls, rounds, device)
            added = {name: ms[name] - ms["text"] for name in ("official", "ip_adapter", *OURS)}
            extra = {name: flops(calls[name]) - flops(calls["text"]) for name in added}
            operators = {name: operator_calls(calls[name]) - operator_calls(calls["text"]) for name in added}
            memory = {name: peak_memory(calls[name], device) for name in calls}
            rows.append(
                {
                    "positions": n, "channels": c, "objects": objects, "tokens": tokens, "milliseconds": ms,
                    "ours_to_official": added["ours"] / added["official"],
                    "ours_to_ip_adapter": added["ours"] / added["ip_adapter"],
                    "reads_to_ours": added["reads"] / added["ours"],
                    "measures_to_ours": added["measures"] / added["ours"],
                    "added_operator_calls": operators,
                    "added_gflop": {name: value / 1e9 for name, value in extra.items()},
                    "peak_extra_mib": {name: (memory[name] - memory["text"]) / 2**20 for name in added},
                    "error_to_official": float(error),
                }
            )  # fmt: skip
            print(_line(rows[-1]), flush=True)
    return rows


HEADER = (
    "  N × C       M  T  | text ms | added ms: official  IP-Adapter   ours | ours/official  ours/IP-Adapter | "
    "reads/ours  measures/ours | operator calls: official  IP-A  ours  reads  measures | "
    "added GFLOP: official  IP-A  ours | extra MiB: official  IP-A  ours"
)


def _line(row: dict) -> str:
    ms, flop, mib = row["milliseconds"], row["added_gflop"], row["peak_extra_mib"]
    operators = row["added_operator_calls"]
    added = [ms[name] - ms["text"] for name in ("official", "ip_adapter", "ours")]
    return (
        f"{row['positions']:5d} × {row['channels']:<5d}{row['objects']:3d} {row['tokens']:2d}  | {ms['text']:7.2f} | "
        f"{added[0]:18.2f}  {added[1]:10.2f}  {added[2]:5.2f} | "
        f"{row['ours_to_official']:13.2f}  {row['ours_to_ip_adapter']:15.2f} | "
        f"{row['reads_to_ours']:10.2f}  {row['measures_to_ours']:13.2f} | "
        f"{operators['official']:24d} {operators['ip_adapter']:5d} {operators['ours']:5d} {operators['reads']:6d} "
        f"{operators['measures']:9d} | "
        f"{flop['official']:21.2f} {flop['ip_adapter']:5.2f} {flop['ours']:5.2f} | "
        f"{mib['official']:19.1f} {mib['ip_adapter']:5.1f} {mib['ours']:5.1f}"
    )


def call_line(rows: list[dict], objects: int, tokens: int) -> str:
    """What all of SDXL's cross-attentions together add to one UNet call, in text attentions of that call."""
    from ..attention.pool import MEASURING_SITES

    sites = [row for row in rows if (row["objects"], row["tokens"]) == (objects, tokens)]

    def call(name: str) -> float:
        return sum(SITES[row["positions"]] * row["milliseconds"][name] for row in sites)

    # The sites that measure are taken to be of the coarser resolution.
    coarse = min(sites, key=lambda row: row["positions"])["milliseconds"]
    pool = call("reads") + MEASURING_SITES * (coarse["measures"] - coarse["reads"])
    of_text = {name: call(name) / call("text") - 1 for name in ("official", "ip_adapter", "ours")}
    added = pool / call("text") - 1
    said = "  ".join(f"{name} {value:.2f}" for name, value in of_text.items())
    return (
        f"a call, M {objects}, T {tokens}: added to 1 of text attention: {said}  pool {added:.2f}; "
        f"pool/ours {added / of_text['ours']:.2f}"
    )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="mip.py bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds a case (default 15)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", help="default: float32 on the CPU, bfloat16 on a GPU")
    parser.add_argument("--step", action="store_true", help="a whole SDXL UNet step at 1024²: plain, patched, recorded")
    parser.add_argument("--edit", action="store_true", help="an attention of FLUX.1 Kontext, references told apart")
    parser.add_argument("--small", action="store_true", help="with --step: a narrow UNet, where SDXL does not fit")
    parser.add_argument("--pixels", type=int, default=1024, help="with --step or --edit: side of the picture")
    parser.add_argument("--json", type=Path, default=Path("output/bench.json"))
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    dtype = getattr(torch, arguments.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    torch.manual_seed(0)
    about = {"device": device_name(device), "dtype": str(dtype), "torch": torch.__version__, "date": str(date.today())}
    print(", ".join(about.values()) + f", best of {arguments.rounds} rounds")
    with torch.inference_mode():
        if arguments.step:
            from .comfy_step import bench_step

            rows = bench_step(
                interleaved, arguments.rounds, device, dtype, small=arguments.small, pixels=arguments.pixels
            )
        elif arguments.edit:
            from .edit_references import bench_edit

            rows = bench_edit(interleaved, arguments.rounds, device, dtype, pixels=arguments.pixels)
        else:
            print(HEADER)
            rows = bench_sites(arguments.rounds, device, dtype)
            for objects, tokens in CASES:
                print(call_line(rows, objects, tokens))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    unfinished = arguments.json.with_suffix(".part")
    unfinished.write_text(json.dumps({**about, "rows": rows}, indent=1))
    unfinished.replace(arguments.json)
    print(f"written to {arguments.json}")
    return 0
