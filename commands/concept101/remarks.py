"""What a run of Concept101 does otherwise than the published rows: said below its table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...evaluation.concept101.dataset import Pair
from ...evaluation.concept101.schedule import LEVELS, official_timesteps
from ...evaluation.concept101.score import texts_of
from ...training.run_config import MINIATURE
from ...weights.spec import AdapterSpec
from .settings import BASE_SCALE, NEGATIVE, PLUS_SCALE, Settings, usual_scale

# The official code's, beside the scale.
OFFICIAL = {
    "strategy": "relevance", "head": True, "background": 0.0, "sharpness": 1.0, "steps": 30, "cfg": 5.0, "seed": 420,
    "side": 1024,
}  # fmt: skip


def of_settings(settings: Settings, spec: AdapterSpec | None) -> list[str]:
    """spec: the adapter's; None where its file is not known to be one."""
    said = [_base(settings, spec)]
    if others := _others(settings, spec):
        said.append(f"Set otherwise than in the official code: {', '.join(others)}.")
    if settings.strategy != "relevance":
        said.append("Nothing says how the published IP-Adapter row was made: this row need not be the same.")
    if not settings.cropped:
        said.append("References are whole pictures; the published rows' are cropped to the objects' boxes.")
    if settings.schedule == "host" and settings.steps < LEVELS:
        said.append(
            f"The noise levels are the host's, from t = {LEVELS - 1}; the official code begins at "
            f"t = {official_timesteps(settings.steps)[0]}. This difference is systematic: --schedule official."
        )
    return said


def of_texts(pairs: Sequence[Pair], file_names: bool) -> list[str]:
    """Where the official code's texts for CLIP-T are not the prompts."""
    official = [(pair.prompts, texts_of(pair, file_names=True)) for pair in pairs]
    renamed = sum(text != prompts[number] for prompts, texts in official for number, text in texts.items())
    doubled = sum(len(texts) < len(prompts) for prompts, texts in official)
    if not renamed and not doubled:
        return []
    what = (
        f"{renamed} of them end in “_gen.” or early, and {doubled} pairs count one picture of a prompt they hold twice"
    )
    if file_names:
        return [f"CLIP-T's texts come from file names, as in the official code: {what}."]
    return [f"CLIP-T's texts are the prompts; the official code's come from file names (--file-name-texts): {what}."]


def _base(settings: Settings, spec: AdapterSpec | None) -> str:
    published = "The published sdxl rows were made over SDXL base 1.0, the plus rows over RealVisXL 1.0; this row over "
    if settings.checkpoint == MINIATURE:
        return f"{published}the miniature, a small model of drawn objects."
    name = Path(settings.checkpoint).name
    if spec is not None and spec.architecture != "SDXL":
        return f"{published}{name}, which is no SDXL: its adapter is for {spec.architecture}."
    return f"{published}{name}."


def _others(settings: Settings, spec: AdapterSpec | None) -> list[str]:
    given = {name: getattr(settings, name) for name in OFFICIAL}
    said = [f"{name} {value} instead of {OFFICIAL[name]}" for name, value in given.items() if value != OFFICIAL[name]]
    usual = (BASE_SCALE, PLUS_SCALE) if spec is None else (usual_scale(spec.tokens),)
    if settings.scale is not None and settings.scale not in usual:
        said.append(f"scale {settings.scale} instead of {' or '.join(map(str, usual))}")
    if settings.negative != NEGATIVE:
        said.append("another negative prompt")
    if settings.vae:
        said.append(f"the VAE {Path(settings.vae).name} instead of the checkpoint's")
    return said
