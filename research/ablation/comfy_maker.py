"""What `python mip.py arms` measures: pictures and errors of a batch of trials, by the nodes' own code and the host's
sampler."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Container
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...attention.options import FusionHead
from ...attention.reference import make_reference
from ...miniature import judgement
from ...relevance.record import RelevanceRecord
from ...weights.adapter import load_adapter
from ..miniature import trained
from . import variants
from .variants import TestPrompts, Variant

BF16 = torch.bfloat16
DECODED = 4  # at once: more of them leave the processor's cache
LEVELS = (200, 400, 600)  # noise levels of the real scenes, of 1000


class Part(NamedTuple):
    """A batch of one arm: what a line is about, and the trials it covers."""

    measure: str  # "picture", "tune" or "real"
    arm: Variant
    seed: int  # of the adapter's training
    objects: int
    scale: float
    trials: tuple[int, ...]

    def key(self, trial: int) -> tuple:
        return self.measure, self.arm.name, self.seed, self.objects, self.scale, trial

    def without(self, done: Container[tuple]) -> Part:
        """Of it the trials whose keys are not done."""
        return self._replace(trials=tuple(trial for trial in self.trials if self.key(trial) not in done))


class Maker:
    """given: precision "bf16" or "fp32", miniature, adapters, prompts, steps, guidance and sampler of the command."""

    def __init__(self, given: argparse.Namespace):
        from ...miniature import comfy_bundle
        from ...patching.site_patch import compute_dtype

        self.given = given
        with torch.inference_mode():
            model, clip, self.vae, vision = comfy_bundle.load(given.miniature)
            dtype = {"bf16": BF16, "fp32": torch.float32}[given.precision]
            if compute_dtype(model) != dtype:
                model = model.clone()
                model.set_model_compute_dtype(dtype)
            if self.vae.vae_dtype != dtype:
                self.vae.vae_dtype = dtype
                self.vae.first_stage_model.to(dtype)
        self.model, self.clip, self.vision = model, _Remembering(clip), _Seen(vision)
        self.trials: Callable[[int, str], TestPrompts] = lru_cache(16)(self._trials)
        self.adapter = lru_cache(64)(lambda kind, seed: load_adapter(trained.file(kind, seed, given.adapters)))

    def _trials(self, objects: int, measure: str) -> TestPrompts:
        if measure == "tune":
            return variants.make_test_prompts(variants.prompts_to_choose(objects), objects, variants.SEED_TUNE)
        return variants.make_test_prompts(self.given.prompts, objects, variants.SEED_TEST)

    @torch.inference_mode()
    def pictures(self, part: Part, keep: Callable[[int, Tensor], None]) -> list[dict[str, Any]]:
        """A line for each trial: the judge's measures, CLIP-T and CLIP-I by the miniature's encoders."""
        from .. import comfy_rows

        trials = self.trials(part.objects, part.measure)
        model = self.model
        if part.arm.adapter:
            model = comfy_rows.combine([self._apply(part, trials, trial)[0] for trial in part.trials])
        positive = comfy_rows.conditioning([self.clip.conditioning(trials.prompts[trial]) for trial in part.trials])
        negative = comfy_rows.conditioning([self.clip.conditioning("")])
        noise = comfy_rows.noise_of([trials.seeds[trial] for trial in part.trials], 16)
        latents = comfy_rows.sample(
            model, positive, negative, noise, self.given.steps, self.given.guidance, self.given.sampler,
        )  # fmt: skip
        images = torch.cat([self.vae.decode(some) for some in latents.split(DECODED)])  # [B, H, W, 3]
        images = images.float().clamp(0, 1)
        seen = normalize(self.vision.vision.encode_image(images)["image_embeds"].float(), dim=-1)
        rows = []
        for trial, image, embed in zip(part.trials, images.movedim(-1, 1), seen, strict=True):
            keep(trial, image)
            n = part.objects
            looks, colours = trials.scenes.looks[trial, :n], trials.scenes.colours[trial, :n]
            measures = judgement.score(image, trials.scenes.present(trial), looks, colours)
            text = normalize(self.clip.conditioning(trials.prompts[trial])[1], dim=-1)[0]
            references = normalize(self.vision.embeddings(trials.references[trial].movedim(1, -1)), dim=-1)
            measures["clip_t"] = round(2.5 * max(float(embed @ text), 0.0), 4)
            measures["clip_i"] = round(float((references @ embed).mean()), 4)
            rows.append({"key": part.key(trial), **measures})
        return rows

    @torch.inference_mode()
    def real(self, part: Part) -> list[dict[str, Any]]:
        """A line for each trial: the drawn scene itself, made noisy; how well does the model see through the noise with
        the right references, with each object's reference given to the next, and whose text wins on its places?

        right, swapped: mean squared error of the denoised latent on the objects; map: share of the objects' positions
        where the own share is the largest; share: its mean there. None for merges without relevance.
        """
        from .. import comfy_rows

        trials = self.trials(part.objects, part.measure)
        rows = list(part.trials)
        latents, masks = self._drawn(trials.scenes.rows(torch.tensor(rows)))
        share, owner = torch.nn.functional.adaptive_avg_pool2d(masks, latents.shape[-1]).max(1)  # [B, h, w]
        inside = (share > 0.5).float()
        noise = comfy_rows.noise_of([trials.seeds[trial] for trial in rows], latents.shape[-1])
        sums = {name: torch.zeros(len(rows)) for name in ("right", "swapped", "map", "share")}
        for swapped in (False, True):
            made = [self._apply(part, trials, trial, swapped) for trial in rows]
            combined = comfy_rows.combine([model for model, _ in made], record=not swapped)
            positive = [self.clip.conditioning(trials.prompts[trial]) for trial in rows]
            for level in LEVELS:
                denoised = self._denoise(combined, latents, noise, level, positive)
                error = (denoised - latents).square().mean(1)
                name = "swapped" if swapped else "right"
                sums[name] += (error * inside).sum((1, 2)) / inside.sum((1, 2))
                if not swapped and part.arm.merge.strategy == "relevance":
                    shares = torch.cat([record.shares().cpu() for _, record in made], 1)  # [M, B, h, w]
                    own = shares.gather(0, owner[None])[0]
                    wins = (shares.argmax(0) == owner).float()
                    sums["map"] += (wins * inside).sum((1, 2)) / inside.sum((1, 2))
                    sums["share"] += (own * inside).sum((1, 2)) / inside.sum((1, 2))
        measured = {name: value / len(LEVELS) for name, value in sums.items()}
        if part.arm.merge.strategy != "relevance":
            measured |= dict.fromkeys(("map", "share"))
        return [
            {"key": part.key(trial), **{k: None if v is None else round(float(v[i]), 5) for k, v in measured.items()}}
            for i, trial in enumerate(rows)
        ]

    def _apply(self, part: Part, trials: TestPrompts, trial: int, swapped: bool = False) -> tuple[Any, RelevanceRecord]:
        """What MIP Reference and MIP Apply make of a trial."""
        from ...patching.apply import apply_references

        adapter = self.adapter(part.arm.adapter, part.seed)
        pictures = trials.references[trial].movedim(1, -1)
        if swapped:
            pictures = pictures.roll(1, 0)
        texts = trials.texts(trial)
        references = tuple(make_reference(picture[None], text) for picture, text in zip(pictures, texts, strict=True))
        record = RelevanceRecord(texts)
        head = FusionHead(adapter.head, part.arm.gate, name=adapter.name)
        model = apply_references(
            self.model, self.clip, self.vision, adapter, references,
            scale=part.scale, merge=part.arm.merge, fusion_head=head, record=record,
        )  # fmt: skip
        return model, record

    def _drawn(self, scenes: Any) -> tuple[Tensor, Tensor]:
        """Latents as the UNet knows them and masks of drawn scenes."""
        from ...miniature import world

        picture = world.render(scenes)
        latents = self.model.model.process_latent_in(self.vae.encode(picture.images.movedim(1, -1)))
        return latents.float(), picture.masks

    def _denoise(self, model: Any, latents: Tensor, noise: Tensor, level: int, positive: list) -> Tensor:
        """What the model takes the latents for, after one look at them at a noise level, without guidance."""
        import comfy.model_management

        comfy.model_management.load_models_gpu([model])
        device = model.load_device
        sigma = model.get_model_object("model_sampling").sigmas[level].to(device)
        context, pooled = (torch.cat(each).to(device) for each in zip(*positive, strict=True))
        options = model.model_options["transformer_options"] | {
            "cond_or_uncond": [0], "sigmas": sigma[None], "sample_sigmas": torch.stack([sigma, sigma * 0])
        }  # fmt: skip
        vector = model.model.encode_adm(pooled_output=pooled, noise=latents, device=device)
        noisy, sigmas = latents.to(device) + sigma * noise.to(device), sigma.expand(len(latents))
        out = model.model.apply_model(noisy, sigmas, c_crossattn=context, y=vector, transformer_options=options)
        return out.float().cpu()


class _Remembering:
    """A CLIP that encodes each text once: the same few dozen of object texts come again with every prompt."""

    def __init__(self, clip: Any):
        self.clip = clip
        self._encode = lru_cache(8192)(lambda text: clip.encode_from_tokens(clip.tokenize(text), return_pooled=True))

    def tokenize(self, text: str) -> Any:
        return _Tokens(self.clip.tokenize(text), text=text)

    def encode_from_tokens(self, tokens: Any) -> Tensor:
        return self._encode(tokens.text)[0]

    def conditioning(self, text: str) -> tuple[Tensor, Tensor]:
        """Context [1, 77, X] and pooled [1, Y]."""
        context, pooled = self._encode(text)
        return context, pooled


class _Tokens(dict):
    def __init__(self, tokens: dict, text: str):
        super().__init__(tokens)
        self.text = text


class _Seen:
    """An image encoder that remembers the pictures it saw last: all arms show it the same references."""

    def __init__(self, vision: Any):
        self.vision = vision
        self._known: dict[bytes, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.vision, name)

    def encode_image(self, image: Tensor) -> Any:
        key = hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest()
        if key not in self._known:
            if len(self._known) > 8192:
                self._known.clear()
            self._known[key] = self.vision.encode_image(image)
        return self._known[key]

    def embeddings(self, images: Tensor) -> Tensor:
        """[B, D] of pictures [B, H, W, 3], each known by itself."""
        return torch.cat([self.encode_image(image[None])["image_embeds"].float() for image in images])
