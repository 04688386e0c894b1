"""Options that several commands have."""

from __future__ import annotations

import argparse


def add_long_run(parser: argparse.ArgumentParser, part: int, fresh: str) -> None:
    """The options of work in parts. part: pictures in one; fresh: what --fresh does, in words."""
    parser.add_argument(
        "--device", help="such as cuda:1 or cpu (default: a GPU of its own for every process, else the CPU)"
    )
    parser.add_argument("--part", type=int, default=part, help=argparse.SUPPRESS)
    parser.add_argument("--fresh", action="store_true", help=fresh)


def check_ranges(
    parser: argparse.ArgumentParser, options: argparse.Namespace, **ranges: tuple[float, float | None]
) -> None:
    """Ends the command with a sentence for a number outside of its range. ranges: lowest and highest; None: any."""
    for name, (low, high) in ranges.items():
        value = getattr(options, name)
        if value is not None and not low <= value <= (float("inf") if high is None else high):
            wanted = f"{low} or more" if high is None else f"{low} to {high}"
            parser.error(f"--{name.replace('_', '-')} is {value}; it must be {wanted}")
