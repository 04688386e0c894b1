"""`python mip.py steer`: a before and an after for each way of steering, by the miniature, as pictures for the docs.

It calls the functions behind the nodes, and ComfyUI's sampler as KSampler calls it. The judge counts how many objects
wear their own colours, over more prompts than are shown.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...attention.reference import make_reference
from ...common.atomic_io import atomic_file, atomic_write
from ...common.comfy_path import prepare_host
from ...common.console import complain
from ...miniature import judgement
from ...relevance.record import RecordedMaps, RelevanceRecord
from ...weights.adapter import load_adapter
from ..ablation import arms
from ..ablation.arms import Trials
from . import steering
from .options import study_parser
from .steering import MEANS, Setting, Shown

COLUMNS = 4


def main(argv: list[str]) -> int:
    purpose = (__doc__ or "").splitlines()[0]
    parser = study_parser("steer", purpose, Path("output/steering"), "a JPEG each, and steering.json")
    parser.add_argument("--only", action="append", choices=list(MEANS), help="one of them; without it all")
    parser.add_argument("--prompts", type=int, default=24, help=f"that count; {COLUMNS} are shown")
    parser.add_argument("--steps", type=int, default=arms.STEPS)
    parser.add_argument("--guidance", type=float, default=arms.GUIDANCE)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    try:
        prepare_host(not torch.cuda.is_available())
        maker = Maker(given)
    except ValueError as error:
        complain(error)
        return 1
    given.output.mkdir(parents=True, exist_ok=True)
    counts = {}
    for name in given.only or MEANS:
        before, after = maker.shown(MEANS[name].before), maker.shown(MEANS[name].after)
        counts[name] = {"what": MEANS[name].what, "before": before.clear, "after": after.clear, "of": after.of}
        _save(steering.draw_pair(name, maker.trials, before, after), given.output / f"{name}.jpg")
        print(
            f"{name}: of {after.of} objects {before.clear} clearly wear their own colours before, {after.clear} after"
        )
    settings = {key: str(value) for key, value in vars(given).items()}
    atomic_write(given.output / "steering.json", json.dumps({"settings": settings, "results": counts}, indent=1))
    return 0


def _save(picture: Any, file: Path) -> None:
    with atomic_file(file) as temporary:
        picture.save(temporary, "JPEG", quality=85)


class Maker:
    """Makes the pictures of all trials under a setting. Each setting is made once, also if several means share it."""

    def __init__(self, given: argparse.Namespace):
        from ...miniature import comfy_bundle

        self.given = given
        self.adapter = load_adapter(given.adapter)
        self.model, self.clip, self.vae, self.vision = comfy_bundle.load(given.miniature)
        self.trials: Trials = arms.make_trials(given.prompts, 2, arms.SEED_TEST)
        self._made: dict[Setting, Shown] = {}

    @torch.inference_mode()
    def shown(self, setting: Setting) -> Shown:
        if setting not in self._made:
            pictures, shares, clear = [], [], 0
            for trial in range(len(self.trials)):
                picture, maps = self._picture(setting, trial)
                kinds, looks = self.trials.scenes.present(trial), self.trials.scenes.looks[trial, :2]
                judged = judgement.score(picture, kinds, looks, self.trials.scenes.colours[trial, :2])
                clear += sum(bool(each) for each in judged["clear"])
                if trial < COLUMNS:
                    pictures.append(picture)
                    shares.append(maps)
            self._made[setting] = Shown(torch.stack(pictures), torch.stack(shares), clear, 2 * len(self.trials))
        return self._made[setting]

    def _picture(self, setting: Setting, trial: int) -> tuple[Tensor, Tensor]:
        """The picture [3, S, S] and the shares [M, h, w]."""
        frozen = None
        if setting.two_pass:
            frozen = self._sampled(setting, trial, steering.FIRST_PASS, None)[1].snapshot()
        latent, record = self._sampled(setting, trial, self.given.steps, frozen)
        return self.vae.decode(latent)[0].float().clamp(0, 1).movedim(-1, 0), record.shares()[:, 0]

    def _sampled(
        self, setting: Setting, trial: int, steps: int, frozen: RecordedMaps | None
    ) -> tuple[Tensor, RelevanceRecord]:
        from ...patching.apply import apply_references
        from .. import comfy_rows

        trials = self.trials
        pictures, texts = trials.references[trial].movedim(1, -1), trials.texts(trial)
        references = tuple(
            make_reference(picture[None], text, **more)
            for picture, text, more in zip(pictures, texts, setting.references, strict=True)
        )
        record = RelevanceRecord(texts, frozen is not None)
        model = apply_references(
            self.model, self.clip, self.vision, self.adapter, references,
            scale=self.given.scale, merge=setting.merge, record=record, frozen=frozen,
        )  # fmt: skip
        positive, negative = (
            comfy_rows.conditioning([self.clip.encode_from_tokens(self.clip.tokenize(text), return_pooled=True)])
            for text in (trials.prompts[trial], "")
        )
        noise = comfy_rows.noise_of([trials.seeds[trial]], 16)
        return comfy_rows.sample(model, positive, negative, noise, steps, self.given.guidance, arms.SAMPLER), record
