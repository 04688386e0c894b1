"""`python mip.py edits`: an edit model's own references, with the bias and without; does it bind more?

It calls the function behind MIP Edit References, and ComfyUI's sampler as KSampler calls it, on the stand-in that
`research/miniature/train.py --stage edit` trains. A stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...common.bundled import MINIATURE
from ...common.hashing import file_sha256
from ...common.resumable import Row
from ...miniature import judgement
from ..ablation import arms
from ..miniature.stages import edit
from . import edits
from .comfy_study import add_drawing_options, draw_missing, run

PROMPTS_AT_ONCE = 8  # of a part
SHIFT = 1.15  # FLUX.1's own, of the noise levels


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="mip.py edits", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=Path("output/edits"), help="parts, lines.jsonl, edits.json, edits.md"
    )
    parser.add_argument("--work", type=Path, default=Path("output/miniature"), help="where the stand-in was trained")
    parser.add_argument("--seeds", type=int, default=2, help="pictures of each prompt in every setting")
    parser.add_argument("--threads", type=int, default=1)
    add_drawing_options(parser, prompts=96, steps=16, guidance=2.0)
    return run("edits", parser.parse_args(argv), edits.COMPARISON, work)


def work(given: argparse.Namespace) -> list[Row] | None:
    """See `draw_missing`. Raises ValueError if the stand-in was not trained."""
    file = given.work / f"{edit.Edit.name}.pt"
    if not file.is_file():
        raise ValueError(f"There is no {file}: train the stand-in by research/miniature/train.py --stage edit.")
    settings = {
        "steps": given.steps, "guidance": given.guidance, "seeds": given.seeds, "stand-in": file_sha256(file),
    }  # fmt: skip
    ids = [str(trial) for trial in range(given.prompts)]
    return draw_missing(given, ids, settings, PROMPTS_AT_ONCE, lambda: EditMaker(given, file).rows)


class EditMaker:
    """Draws and judges pictures with the stand-in."""

    def __init__(self, given: argparse.Namespace, file: Path) -> None:
        from ...miniature import comfy_bundle

        self.given = given
        self.model = as_model(torch.load(file, weights_only=True, map_location="cpu")["ema"])
        self.clip = comfy_bundle.load(MINIATURE)[1]
        self.trials = arms.make_trials(given.prompts, edit.OBJECTS, arms.SEED_TEST)

    @torch.inference_mode()
    def rows(self, ids: Sequence[str]) -> list[Row]:
        """One row for each setting and seed of some prompts, which are given by their numbers."""
        return [row for each in ids for row in self._rows(int(each))]

    def _rows(self, trial: int) -> list[Row]:
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
