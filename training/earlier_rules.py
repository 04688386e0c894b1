"""Runs that began before a setting existed go on by the rules of then.

An example. `head_start` came later; before, a new head began with zeros. A checkpoint of then names no head_start, so
`with_every_setting` reads it as "zeros". Today's default is "random":

- the recipe leaves head_start at its default: `with_old_defaults` sets it to "zeros", and the run goes on as it began;
- the recipe says "zeros": the same run;
- the recipe says anything else than the default and than "zeros": the run was trained otherwise and is refused
  (`checkpoints.load_latest`).

`run_identity` names such a setting only if it is not at its default, so that the folder of a run from then is found
again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .config import RESUMABLE, TrainConfig
from .filters import Filters

# Settings that came later, with what training did before it had them: a saved recipe without one was trained so.
EARLIER: dict[str, Any] = {
    "normalization": "sum",
    "head_start": "zeros",
    "crop_holds": "used",
    "latents": "mean",
    "noise_offset": 0.0,
}
EARLIER_FILTERS: dict[str, Any] = {"cropped_aspect": "w/h"}


def with_every_setting(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved recipe, as `TrainConfig.as_dict` gives it, with the settings that it was saved too early to name."""
    return {**EARLIER, **saved, "filters": {**EARLIER_FILTERS, **saved["filters"]}}


def with_old_defaults(recipe: TrainConfig, saved: Mapping[str, Any]) -> TrainConfig:
    """The recipe for going on with a saved one: later settings that stand at their defaults give way where the saved
    one does as training did before it had them."""
    saved = with_every_setting(saved)
    filters = replace(recipe.filters, **_as_before(recipe.filters, saved["filters"], EARLIER_FILTERS))
    return replace(recipe, filters=filters, **_as_before(recipe, saved, EARLIER))


def run_identity(recipe: TrainConfig) -> dict[str, Any]:
    """What tells a run from others: `TrainConfig.as_dict` without what may change on the way, and without later
    settings at their defaults."""
    filters = _without_defaults(recipe.filters, EARLIER_FILTERS)
    named = _without_defaults(recipe, EARLIER)
    return {name: value for name, value in named.items() if name not in RESUMABLE} | {"filters": filters}


def _as_before(own: TrainConfig | Filters, saved: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """The later settings that stand at their defaults here, and in the saved recipe as before they existed."""
    return {name: value for name, value in earlier.items() if saved[name] == value and _is_default(own, name)}


def _without_defaults(own: TrainConfig | Filters, later: Mapping[str, Any]) -> dict[str, Any]:
    """All settings but those of `later` that stand at their defaults."""
    return {name: value for name, value in vars(own).items() if name not in later or not _is_default(own, name)}


def _is_default(own: TrainConfig | Filters, name: str) -> bool:
    return getattr(own, name) == getattr(type(own)(), name)
