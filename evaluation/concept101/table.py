"""The published table with a row of our own: as JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

METRICS = ("clip_t", "clip_i", "dino")
TITLES = ("CLIP-T", "CLIP-I", "DINO")
WHOLE = (101, 12)  # pairs, prompts a pair
# Table 1 in the README of the official code, with its order.
PUBLISHED: tuple[tuple[str, float, float, float], ...] = (
    ("DreamBooth", 0.7383, 0.6636, 0.3849),
    ("Custom Diffusion (Opt)", 0.7599, 0.6595, 0.3684),
    ("Custom Diffusion (Joint)", 0.7534, 0.6704, 0.3799),
    ("Mix-of-Show", 0.7280, 0.6700, 0.3940),
    ("MC²", 0.7670, 0.6860, 0.4060),
    ("FastComposer", 0.7456, 0.6552, 0.3574),
    ("λ-ECLIPSE", 0.7275, 0.6902, 0.3902),
    ("ELITE", 0.6814, 0.6460, 0.3347),
    ("IP-Adapter", 0.6343, 0.6409, 0.3481),
    ("SSR-Encoder", 0.7363, 0.6895, 0.3970),
    ("MIP-Adapter sdxl, 10k", 0.7694, 0.6967, 0.4108),
    ("MIP-Adapter sdxl, full data", 0.7750, 0.6943, 0.4127),
    ("MIP-Adapter sdxl plus, 10k", 0.7752, 0.6924, 0.4375),
    ("MIP-Adapter sdxl plus, full data", 0.7765, 0.6950, 0.4397),
)

Row = Mapping[str, Any]


def means(rows: Sequence[Row]) -> dict[str, float | None]:
    """Means over pairs, as in the official code: a pair with fewer prompts weighs as much as the others.

    A metric that is not in every row, and any metric without rows, is None.
    """
    return {m: sum(r[m] for r in rows) / len(rows) if rows and all(m in r for r in rows) else None for m in METRICS}


def tables(
    name: str, rows: Sequence[Row], settings: Mapping[str, Any], encoders: Mapping[str, str], more: Sequence[str] = ()
) -> dict[str, str]:
    """The files' texts by their endings. name: of our row; rows: one a pair; more: further remarks."""
    ours, notes = means(rows), [*remarks(rows, encoders), *more]
    lines: list[tuple[Any, ...]] = [(*row, "published") for row in PUBLISHED]
    lines.append((name, *(ours[m] for m in METRICS), "this run"))
    result = {
        "name": name,
        **ours,
        "remarks": notes,
        "settings": dict(settings),
        "encoders": dict(encoders),
        "published": [dict(zip(("name", *METRICS), row, strict=True)) for row in PUBLISHED],
        "pairs": [dict(row) for row in rows],
    }
    return {
        "json": json.dumps(result, indent=1, ensure_ascii=False) + "\n",
        "csv": _csv(lines),
        "md": _markdown(lines, notes, settings),
    }


def remarks(rows: Sequence[Row], encoders: Mapping[str, str]) -> list[str]:
    """Sentences that say what keeps the new row from being compared with the published ones."""
    pictures = sum(row["pictures"] for row in rows)
    by = " and ".join(f"{', '.join(t)} by {encoder}" for encoder, t in _grouped(encoders).items())
    said = [f"{by}; the published rows by CLIP ViT-B/32 and DINO ViT-S/16: compare only what the same encoders scored."]
    if (len(rows), pictures) != (WHOLE[0], WHOLE[0] * WHOLE[1]):
        said.append(f"{len(rows)} pairs, {pictures} pictures; the whole benchmark has {WHOLE[0]}, {WHOLE[1]} each.")
    if "dino" not in encoders:
        said.append("DINO was not measured: name its folder with --dino.")
    return said


def _grouped(encoders: Mapping[str, str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for metric, title in zip(METRICS, TITLES, strict=True):
        if metric in encoders:
            grouped.setdefault(encoders[metric], []).append(title)
    return grouped


def _csv(lines: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", *METRICS, "source"])
    writer.writerows([name, *(_cell(score) for score in scores), source] for name, *scores, source in lines)
    return text.getvalue()


def _markdown(lines: Sequence[Sequence[Any]], notes: Sequence[str], settings: Mapping[str, Any]) -> str:
    rows = [f"| method | {' | '.join(TITLES)} |", "|---|---|---|---|"]
    for name, *scores, source in lines:
        bold = "**" if source == "this run" else ""
        cells = " | ".join(f"{bold}{_cell(score) or '–'}{bold}" for score in scores)
        rows.append(f"| {bold}{name}{bold} | {cells} |")
    made = ", ".join(f"{key} {value}" for key, value in settings.items())
    return "\n".join(["# Concept101", "", *rows, "", *(f"- {note}" for note in notes), f"- Settings: {made}.", ""])


def _cell(score: float | None) -> str:
    return "" if score is None else f"{score:.4f}"
