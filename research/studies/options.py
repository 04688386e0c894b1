"""The options that the studies' commands have in common."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...common.bundled import MINIATURE
from ..miniature import trained


def study_parser(command: str, purpose: str, output: Path, written: str) -> argparse.ArgumentParser:
    """A parser for a study with an adapter on the miniature.

    output: the default of --output, the folder of what the study writes.
    written: what that is, for --help.
    """
    parser = argparse.ArgumentParser(prog=f"mip.py {command}", description=purpose)
    parser.add_argument("--output", type=Path, default=output, help=written)
    parser.add_argument("--adapter", type=Path, default=trained.file("mip", 0), help="the miniature's by default")
    parser.add_argument("--miniature", type=Path, default=MINIATURE, help="folder of the model's four files")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1)
    return parser
