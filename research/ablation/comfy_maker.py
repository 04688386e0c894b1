"""Pictures and errors that `python mip.py arms` measures, made by the nodes' own code and ComfyUI's sampler."""

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
from . import arms
from .arms import Arm, Trials

BF16 = torch.bfloat16
DECODED = 4  # pictures decoded at once: more do not fit into the processor's cache
LEVELS = (200, 400, 600)  # noise levels of the real scenes, out of 1000


class TrialBatch(NamedTuple):
    """A batch of trials of one arm.

    measure: "picture", "tune" or "real".
    seed: of the adapter's training.
    objects: how many a picture has.
    scale: of the adapter.
    trials: numbers of the test prompts.
    """

    measure: str  # "picture", "tune" or "real"
    arm: Arm
    seed: int  # of the adapter's training
    objects: int
    scale: float
    trials: tuple[int, ...]

    def key(self, trial: int) -> tuple:
        return self.measure, self.arm.name, self.seed, self.objects, self.scale, trial

    def without(self, done: Container[tuple]) -> TrialBatch:
        """The same with only those trials whose keys are not in `done`."""
        return self._replace(trials=tuple(trial for trial in self.trials if self.key(trial) not in done))


class Maker:
    """Makes and measures pictures with the miniature.

    given: the command's options precision ("bf16" or "fp32"), miniature, adapters, prompts, steps, guidance and
        sampler.
    """

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
        self.model, self.clip, self.vision = model, _CachingClip(clip), _CachingVision(vision)
        self.trials: Callable[[int, str], Trials] = lru_cache(16)(self._trials)
        self.adapter = lru_cache(64)(lambda kind, seed: load_adapter(trained.file(kind, seed, given.adapters)))

    def _trials(self, objects: int, measure: str) -> Trials:
        if measure == "tune":
            return arms.make_trials(arms.prompts_to_choose(objects), objects, arms.SEED_TUNE)
        return arms.make_trials(self.given.prompts, objects, arms.SEED_TEST)

    @torch.inference_mode()
    def pictures(self, batch: TrialBatch, keep: Callable[[int, Tensor], None]) -> list[dict[str, Any]]:
        """One row per trial: the judge's measures, and CLIP-T and CLIP-I by the miniature's encoders.

        keep: called with each trial and its picture [3, H, W].
        """
        from .. import comfy_rows

        trials = self.trials(batch.objects, batch.measure)
        model = self.model
        if batch.arm.adapter:
            model = comfy_rows.combine([self._apply(batch, trials, trial)[0] for trial in batch.trials])
        positive = comfy_rows.conditioning([self.clip.conditioning(trials.prompts[trial]) for trial in batch.trials])
        negative = comfy_rows.conditioning([self.clip.conditioning("")])
        noise = comfy_rows.noise_of([trials.seeds[trial] for trial in batch.trials], 16)
        latents = comfy_rows.sample(
            model, positive, negative, noise, self.given.steps, self.given.guidance, self.given.sampler,
        )  # fmt: skip
        images = torch.cat([self.vae.decode(some) for some in latents.split(DECODED)])  # [B, H, W, 3]
        images = images.float().clamp(0, 1)
        seen = normalize(self.vision.vision.encode_image(images)["image_embeds"].float(), dim=-1)
        rows = []
        for trial, image, embed in zip(batch.trials, images.movedim(-1, 1), seen, strict=True):
            keep(trial, image)
            n = batch.objects
            looks, colours = trials.scenes.looks[trial, :n], trials.scenes.colours[trial, :n]
            measures = judgement.score(image, trials.scenes.present(trial), looks, colours)
            text = normalize(self.clip.conditioning(trials.prompts[trial])[1], dim=-1)[0]
            references = normalize(self.vision.embeddings(trials.references[trial].movedim(1, -1)), dim=-1)
            measures["clip_t"] = round(2.5 * max(float(embed @ text), 0.0), 4)
            measures["clip_i"] = round(float((references @ embed).mean()), 4)
            rows.append({"key": batch.key(trial), **measures})
        return rows

    @torch.inference_mode()
    def real(self, batch: TrialBatch) -> list[dict[str, Any]]:
        """One row per trial, from a drawn scene with noise added and denoised in one step.

        The scene is denoised twice: with the right references, and with each object's reference given to the next
        object.

        right, swapped: mean squared error of the denoised latent on the objects.
        map: the share of the objects' positions where the object's own share is the largest.
        share: the mean of the own share there. map and share are None for merges without relevance.
        """
        from .. import comfy_rows

        trials = self.trials(batch.objects, batch.measure)
        rows = list(batch.trials)
        latents, masks = self._drawn(trials.scenes.rows(torch.tensor(rows)))
        share, owner = torch.nn.functional.adaptive_avg_pool2d(masks, latents.shape[-1]).max(1)  # [B, h, w]
        inside = (share > 0.5).float()
        noise = comfy_rows.noise_of([trials.seeds[trial] for trial in rows], latents.shape[-1])
        sums = {name: torch.zeros(len(rows)) for name in ("right", "swapped", "map", "share")}
        for swapped in (False, True):
            made = [self._apply(batch, trials, trial, swapped) for trial in rows]
            combined = comfy_rows.combine([model for model, _ in made], record=not swapped)
            positive = [self.clip.conditioning(trials.prompts[trial]) for trial in rows]
            for level in LEVELS:
                denoised = self._denoise(combined, latents, noise, level, positive)
                error = (denoised - latents).square().mean(1)
                name = "swapped" if swapped else "right"
                sums[name] += (error * inside).sum((1, 2)) / inside.sum((1, 2))
                if not swapped and batch.arm.merge.strategy == "relevance":
                    shares = torch.cat([record.shares().cpu() for _, record in made], 1)  # [M, B, h, w]
                    own = shares.gather(0, owner[None])[0]
                    wins = (shares.argmax(0) == owner).float()
                    sums["map"] += (wins * inside).sum((1, 2)) / inside.sum((1, 2))
                    sums["share"] += (own * inside).sum((1, 2)) / inside.sum((1, 2))
        measured = {name: value / len(LEVELS) for name, value in sums.items()}
        if batch.arm.merge.strategy != "relevance":
            measured |= dict.fromkeys(("map", "share"))
        return [
            {"key": batch.key(trial), **{k: None if v is None else round(float(v[i]), 5) for k, v in measured.items()}}
            for i, trial in enumerate(rows)
        ]

    def _apply(
        self, batch: TrialBatch, trials: Trials, trial: int, swapped: bool = False
    ) -> tuple[Any, RelevanceRecord]:
        """MIP Reference and MIP Apply for one trial. Returns the patched model and its relevance record."""
        from ...patching.apply import apply_references

        adapter = self.adapter(batch.arm.adapter, batch.seed)
        pictures = trials.references[trial].movedim(1, -1)
        if swapped:
            pictures = pictures.roll(1, 0)
        texts = trials.texts(trial)
        references = tuple(make_reference(picture[None], text) for picture, text in zip(pictures, texts, strict=True))
        record = RelevanceRecord(texts)
        head = FusionHead(adapter.head, batch.arm.gate, name=adapter.name)
        model = apply_references(
            self.model, self.clip, self.vision, adapter, references,
            scale=batch.scale, merge=batch.arm.merge, fusion_head=head, record=record,
        )  # fmt: skip
        return model, record

    def _drawn(self, scenes: Any) -> tuple[Tensor, Tensor]:
        """Model-space latents and masks of drawn scenes."""
        from ...miniature import world

        picture = world.render(scenes)
        latents = self.model.model.process_latent_in(self.vae.encode(picture.images.movedim(1, -1)))
        return latents.float(), picture.masks

    def _denoise(self, model: Any, latents: Tensor, noise: Tensor, level: int, positive: list) -> Tensor:
        """The denoised latents after one UNet call at a noise level, without guidance."""
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


class _CachingClip:
    """A CLIP that caches its texts, because the same few dozen object texts come with every prompt."""

    def __init__(self, clip: Any):
        self.clip = clip
        self._encode = lru_cache(8192)(lambda text: clip.encode_from_tokens(clip.tokenize(text), return_pooled=True))

    def tokenize(self, text: str) -> Any:
        return _Tokens(self.clip.tokenize(text), text=text)

    def encode_from_tokens(self, tokens: Any) -> Tensor:
        return self._encode(tokens.text)[0]

    def conditioning(self, text: str) -> tuple[Tensor, Tensor]:
        """Context [1, 77, X] and pooled text [1, Y]."""
        context, pooled = self._encode(text)
        return context, pooled


class _Tokens(dict):
    def __init__(self, tokens: dict, text: str):
        super().__init__(tokens)
        self.text = text


class _CachingVision:
    """An image encoder that caches its pictures, because all arms use the same references."""

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
        """[B, D] of pictures [B, H, W, 3], each cached by itself."""
        return torch.cat([self.encode_image(image[None])["image_embeds"].float() for image in images])
