"""Train the miniature, one stage at a time, as long as there is time: `python research/miniature/train.py`

    train.py --stage vae --minutes 60        go on from the last checkpoint for an hour
    train.py --quick                         a few steps of every stage, from nothing, to see it work
    train.py --stage all --minutes 400 --gate 128 --export miniature      everything, to the loader's files
    train.py --stage adapters --minutes 300  all adapters and seeds that are not finished yet
    train.py --stage mip --seed 1            one of them
    train.py --gate 128                      does the base draw what it is told, and where?

Checkpoints and loss curves are kept in output/miniature (or --work); docs/miniature-training.md has the recipe.
"""

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

STAGES = ("vae", "encoders", "base", "places")
LATER = ("vision",)  # continues the image encoder, which the base does not depend on
EDIT = "edit"  # a stand-in of another structure, which nothing else is trained on
UNAIDED = "unaided"  # in place of what `places` taught; in a --work of its own, since adapters are trained on it there
# Trained on the finished base.
ADAPTERS = ("stock", "mip", "uniform-trained", "one-object-trained", "head-only", "stock-plus", "mip-plus")
ROOT = Path(__file__).resolve().parents[2]


def pack(module: str) -> Any:
    """A module of the pack, imported as the pack's commands import it."""
    spec = importlib.util.spec_from_file_location("package", ROOT / "launcher" / "package.py")
    assert spec and spec.loader
    package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    return package.load_package(module)


def main(arguments: list[str]) -> None:
    given = _parser().parse_args(arguments)
    recipe = pack("research.miniature.stages.comfy_recipe")
    name = given.stage or ("all" if given.quick else None)
    stages = {"all": (*STAGES, *LATER, *ADAPTERS), "adapters": ADAPTERS, None: ()}.get(name, (name,))
    if given.pack:
        for stage in stages or (*STAGES, *LATER, EDIT):
            if (given.work / f"{stage}.pt").is_file():
                print(pack("research.miniature.stages.packing").pack(stage, given.work))
        return
    for stage in stages:
        if stage not in ADAPTERS:
            recipe.train((stage,), given.work, given.minutes, given.threads, given.quick)
    work = given.work / "quick" if given.quick else given.work
    passes = not given.gate or recipe.check(work, given.gate, given.threads)
    if adapters := tuple(stage for stage in stages if stage in ADAPTERS):
        seeds = given.seed or ((0,) if given.quick else pack("research.miniature.trained").SEEDS)
        recipe.prepare(given.threads)
        pack("research.miniature.stages.comfy_adapters").train_all(
            adapters, seeds, given.work, given.minutes, given.threads, given.quick, given.steps, given.ungated
        )
    if given.export:
        own = given.export.resolve() == ROOT / "miniature"
        logs = pack("research.miniature.trained").logs(None if own else given.export)
        recipe.export_files(work, given.export, logs)
        for file in pack("research.miniature.stages.comfy_adapters").export(work, None if own else given.export):
            print(file)
    sys.exit(not passes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    stages = (*STAGES, *LATER, UNAIDED, EDIT, "adapters", *ADAPTERS, "all")
    parser.add_argument("--stage", choices=stages, help="what to train")
    parser.add_argument("--minutes", type=float, default=60, help="how long each stage trains at most")
    parser.add_argument("--work", type=Path, default=ROOT / "output" / "miniature", help="checkpoints, curves")
    parser.add_argument(
        "--quick", action="store_true", help="a few steps a stage, from nothing; without --stage, of all"
    )
    parser.add_argument("--gate", type=int, metavar="N", help="put the base to the gate, N scenes, before any adapter")
    parser.add_argument("--pack", action="store_true", help="do not train: write checkpoints into the repository")
    parser.add_argument("--export", type=Path, metavar="DIR", help="at last, write the loader's files there")
    parser.add_argument("--threads", type=int, default=2, help="1 where other programs keep the machine busy")
    parser.add_argument("--seed", type=int, action="append", help="of an adapter; without it 0, 1 and 2")
    parser.add_argument("--steps", type=int, help="of an adapter; without it the recipe's")
    parser.add_argument("--ungated", action="store_true", help="adapters over a base that did not pass its gate")
    return parser


if __name__ == "__main__":
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    main(sys.argv[1:])
