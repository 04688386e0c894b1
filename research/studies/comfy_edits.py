"""`python mip.py edits`: an edit model's own references, with the bias and without; does it bind more?

It calls the function behind MIP Edit References, and ComfyUI's sampler as KSampler calls it, on the stand-in that
`research/miniature/train.py --stage edit` trains. A stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...common.atomic_io import atomic_write
from ...common.bundled import MINIATURE
from ...common.comfy_path import prepare_host
from ...common.console import complain
from ...common.hashing import file_sha256
from ...common.resumable import Row, json_lines, open_parts
from ...miniature import judgement
from ..ablation import arms
from ..miniature.stages import edit
from . import edits

PROMPTS_AT_ONCE = 8  # of a part
SHIFT = 1.15  # FLUX.1's own, of the noise levels


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="mip.py edits", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=Path("output/edits"), help="parts, lines.jsonl, edits.json, edits.md"
    )
    parser.add_argument("--work", type=Path, default=Path("output/miniature"), help="where the stand-in was trained")
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--seeds", type=int, default=2, help="pictures of each prompt in every setting")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long; the same command goes on")
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    try:
        prepare_host(not torch.cuda.is_available())
        rows = work(given)
    except ValueError as error:
        complain(error)
        return 1
    if rows is None:
        print("Not all pictures are drawn yet: the same command goes on.")
        return 0
    lines = edits.summarise(rows)
    settings = {name: str(value) for name, value in vars(given).items()}
    atomic_write(given.output / "lines.jsonl", json_lines(rows))
    atomic_write(given.output / "edits.json", json.dumps({"settings": settings, "results": lines}, indent=1))
    atomic_write(given.output / "edits.md", edits.markdown(lines) + "\n")
    print(edits.markdown(lines))
    return 0


def work(given: argparse.Namespace) -> list[Row] | None:
    """Draw and judge what is missing. Returns all rows, or None if the time ended before.

    Raises ValueError if the stand-in was not trained.
    """
    file = given.work / f"{edit.Edit.name}.pt"
    if not file.is_file():
        raise ValueError(f"There is no {file}: train the stand-in by research/miniature/train.py --stage edit.")
    settings = {
        "steps": given.steps, "guidance": given.guidance, "seeds": given.seeds, "stand-in": file_sha256(file),
    }  # fmt: skip
    parts = open_parts(given.output, [str(trial) for trial in range(given.prompts)], settings, PROMPTS_AT_ONCE)
    maker, end = None, time.monotonic() + 60 * given.minutes
    for part, trials in parts.todo():
        if time.monotonic() > end:
            return None
        maker = maker or Maker(given, file)
        parts.finish(part, [row for trial in trials for row in maker.rows(int(trial))])
        print(f"{parts.finished()} of {len(parts)} parts", flush=True)
    return list(parts.rows())


class Maker:
    """Draws and judges pictures with the stand-in."""

    def __init__(self, given: argparse.Namespace, file: Path) -> None:
        from ...miniature import comfy_bundle

        self.given = given
        self.model = as_model(torch.load(file, weights_only=True, map_location="cpu")["ema"])
        self.clip = comfy_bundle.load(MINIATURE)[1]
        self.trials = arms.make_trials(given.prompts, edit.OBJECTS, arms.SEED_TEST)

    @torch.inference_mode()
    def rows(self, trial: int) -> list[Row]:
        """One row for each setting and seed of one prompt."""
        scenes = self.trials.scenes
        looks, colours = scenes.looks[trial, : edit.OBJECTS], scenes.colours[trial, : edit.OBJECTS]
        rows = []
        for name, setting in edits.SETTINGS.items():
            for number, image in enumerate(edits.enlarged(self.drawn(trial, setting))):
                judged = judgement.score(image, scenes.present(trial), looks, colours)
                rows.append({"key": [name, trial, number], **judged})
        return rows

    def drawn(self, trial: int, setting: edits.Setting) -> Tensor:
        """One prompt's pictures in 0…1, one for each seed, [B, 3, 32, 32]."""
        import comfy.sample
        import node_helpers

        from ...patching.edit_patch import edit_references

        prompt, texts = self.trials.prompts[trial], self.trials.texts(trial)
        model = edit_references(
            self.model, self.clip, "\n".join(texts), strength=setting.strength, apart=setting.apart, prompt=prompt
        )
        references = edit.scaled(edits.shown(self.trials.references[trial]))
        positive, negative = (
            node_helpers.conditioning_set_values(self.encoded(text), {"reference_latents": list(references.split(1))})
            for text in (prompt, "")
        )
        seed = self.trials.seeds[trial]
        empty = torch.zeros(self.given.seeds, 3, edit.SIDE, edit.SIDE)
        noise = comfy.sample.prepare_noise(empty, seed)
        given = (noise, self.given.steps, self.given.guidance, "euler", "simple", positive, negative, empty)
        return edit.unscaled(comfy.sample.sample(model, *given, disable_pbar=True, seed=seed))

    def encoded(self, text: str) -> list:
        """A conditioning, of as many tokens as in training."""
        context, pooled = self.clip.encode_from_tokens(self.clip.tokenize(text), return_pooled=True)
        return [[context[:, : edit.LENGTH], {"pooled_output": pooled}]]


def as_model(weights: Mapping[str, Tensor]) -> Any:
    """The stand-in as ComfyUI's MODEL of FLUX.1, on pictures in place of latents. weights: the running mean."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    from ..miniature.comfy_networks import edit_config

    class Pictures(comfy.latent_formats.LatentFormat):
        latent_channels = 3

    settings = comfy.supported_models.Flux(edit_config())
    settings.unet_config = edit_config()
    settings.latent_format = Pictures()
    settings.sampling_settings = {"shift": SHIFT}
    settings.set_inference_dtype(torch.float32, None)
    made = comfy.model_base.Flux(settings, device=torch.device("cpu")).eval()
    made.diffusion_model.load_state_dict(weights)
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(made, load_device=device, offload_device=device)
