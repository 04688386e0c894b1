"""Settings of a study, compared over the same prompts by paired bootstrap."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...common.tables import NOTHING, number, table
from ..ablation.table import Ratio, Row

RESAMPLES = 4000


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    title: what a setting is called, such as "style".
    settings: their names.
    differences: by name, the settings (after, before).
    measures: by name, of one picture. The `key` of a picture's row begins with setting and prompt.
    """

    title: str
    settings: Sequence[str]
    differences: Mapping[str, tuple[str, str]]
    measures: Mapping[str, Callable[[Row], Ratio]]

    def summarise(self, rows: Iterable[Row]) -> list[dict[str, Any]]:
        """A line for each setting, then one for each difference, in percent and points.

        Every measure is (value, low, high) with a 95 % bootstrap interval over the prompts that all settings have, or
        None where nothing was counted. A prompt is drawn with all its pictures. All settings have the same draws, so
        that the differences are paired.
        """
        pictures: dict[str, dict[int, list[Row]]] = {name: defaultdict(list) for name in self.settings}
        for row in rows:
            name, prompt, *_ = row["key"]
            pictures[name][prompt].append(row)
        prompts = sorted(set.intersection(*(set(each) for each in pictures.values())))
        often = np.random.default_rng(0).multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), RESAMPLES)
        often = np.concatenate([np.ones((1, len(prompts))), often])
        drawn = {name: self._percents([pictures[name][i] for i in prompts], often) for name in self.settings}
        added = {
            name: {measure: drawn[after][measure] - drawn[before][measure] for measure in self.measures}
            for name, (after, before) in self.differences.items()
        }
        return [
            {self.title: name, "prompts": len(prompts), **{measure: _interval(of) for measure, of in each.items()}}
            for name, each in (drawn | added).items()
        ]

    def _percents(self, by_prompt: Sequence[Sequence[Row]], often: np.ndarray) -> dict[str, np.ndarray]:
        """[1 + RESAMPLES] of each measure, first of every prompt once."""
        found = {}
        for name, ratio in self.measures.items():
            counted = np.array([np.sum([ratio(row) for row in rows], 0) for rows in by_prompt], float)
            top, bottom = (often @ counted).T
            found[name] = 100 * top / np.where(bottom > 0, bottom, np.nan)
        return found

    def markdown(self, lines: Sequence[Mapping[str, Any]]) -> str:
        """The summary as a table."""
        rows = [
            [
                line[self.title],
                str(line["prompts"]),
                *(_cell(line[measure], line[self.title] in self.differences) for measure in self.measures),
            ]
            for line in lines
        ]
        return table([self.title, "prompts", *(f"{measure} %" for measure in self.measures)], rows)


def added_to(without: str, settings: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The differences of all other settings to one."""
    return {f"{name} adds": (name, without) for name in settings if name != without}


def _interval(values: np.ndarray) -> tuple[float, float, float] | None:
    if np.isnan(values[0]):
        return None
    low, high = np.nanpercentile(values[1:], (2.5, 97.5))
    return float(values[0]), float(low), float(high)


def _cell(value: Sequence[float] | None, sign: bool) -> str:
    if value is None:
        return NOTHING
    middle, low, high = (number(each, 1, sign) for each in value)
    return f"{middle} [{low}, {high}]"
