"""Why a sampling left no maps, in sentences that say what to change."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .record import RecordedMaps


def why_absent(maps: RecordedMaps) -> str:
    """Why there is nothing to draw. Raises ValueError if no sampling has run yet."""
    if not maps.names:
        return (
            f"There is no relevance: there are only styles ({', '.join(maps.styles)}), and a style has no place of "
            "its own. Add a MIP Reference for each object to see who claims what."
        )
    if maps.switched_off:
        return (
            f"There is no relevance: {maps.switched_off}, so the objects' references are switched off. Raise it to see "
            "who claims what."
        )
    if maps.patches_lost:
        return f"There is no relevance: {maps.patches_lost}"
    if maps.runs > 0 and not maps.steps_seen().any():
        return (
            "There is no relevance: no reference acted in this sampling. Let the references act in some of its "
            "steps: start_percent and end_percent are of the whole noise, of which a sampler with a denoise below "
            "1 sees only the end. Or another pack samples the pictures in parts, without saying which."
        )
    if maps.runs == 0:
        raise ValueError(
            "Nothing has been recorded yet: connect the images of a sampler that uses the model of this MIP Apply, "
            "so that the maps are drawn after it, and let the references act in some of its steps."
        )
    return (
        f"There is no relevance: the merge strategy is {maps.strategy}, which measures none. Use the strategy "
        "“relevance” with two or more objects to see who claims what."
    )
