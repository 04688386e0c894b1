"""Train the miniature, one stage at a time and in stretches.

python miniature/train.py --stage vae --minutes 60        go on from the last checkpoint for an hour
python miniature/train.py --stage all --quick             every stage for seconds, from nothing, to see it work

Checkpoints and loss curves are kept in output/miniature (or --work); see TRAINING.md for the recipe.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def load_pack():
    """The pack's command line, which knows how to import the pack and where ComfyUI is."""
    if "mip" not in sys.modules:
        spec = importlib.util.spec_from_file_location("mip", ROOT / "mip.py")
        assert spec and spec.loader
        sys.modules["mip"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["mip"])
    return sys.modules["mip"]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=("vae", "encoders", "base", "all"), default="all")
    parser.add_argument("--minutes", type=float, default=60, help="how long each stage trains at most")
    parser.add_argument("--work", type=Path, default=ROOT / "output" / "miniature", help="checkpoints, curves")
    parser.add_argument("--quick", action="store_true", help="seconds a stage, from nothing")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(arguments)
    recipe = load_pack().load_package("miniature.stages.host_recipe")
    recipe.train(given.stage, given.work, given.minutes, given.quick, given.threads)


if __name__ == "__main__":
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT / "miniature"]
    main(sys.argv[1:])
