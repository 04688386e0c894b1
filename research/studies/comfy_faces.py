"""`python mip.py faces`: an adapter that reads embeddings of looks, beside one that reads pictures.

    mip.py faces --prepare data               training data, an adapter to start from, and data/train.toml
    mip.py train --config data/train.toml     trains it
    mip.py faces --adapter data/trained/faces.safetensors     draws and judges; a stopped run goes on

See faces.py for what stands in for faces, and what is measured.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ...attention.options import Merge
from ...attention.reference import Reference, make_reference, of_a_face
from ...common.atomic_io import atomic_file, atomic_write
from ...common.comfy_path import prepare_host
from ...common.console import complain
from ...common.hashing import file_sha256
from ...common.resumable import Row, json_lines, open_parts
from ...evaluation.faces.find import find_faces
from ...miniature import judgement, world
from ...weights.adapter import load_adapter
from ..ablation import arms
from ..miniature import trained
from . import faces
from .options import study_parser

BATCH = 16
DECODED = 4  # pictures decoded at once
FITTED = 400  # looks to which the start's projection is fitted
RUN = """# An adapter of the FaceID family on the miniature; written by mip.py faces --prepare.
data = "."
[base]
checkpoint = "miniature"
[start]
file = "start.safetensors"
[output]
folder = "trained"
name = "faces"
[recipe]
steps = {steps}
batch_size = 16
learning_rate = 1e-3
matrix_rate = 5e-3
warmup = 10
clip_norm = 1.0
ema = 0.95
background = 0.3
timesteps = "cubic"
train = "all"
merge = "uniform"
gate = "off"
min_objects = 1
max_objects = 1
resolution = 128
crop_holds = "used"
latents = "mean"
checkpointing = false
workers = 0
save_every = 20
[recipe.filters]
cropped_aspect = "w/h"
"""


def main(argv: list[str]) -> int:
    purpose = (__doc__ or "").splitlines()[0]
    parser = study_parser("faces", purpose, Path("output/faces"), "parts, lines.jsonl, faces.json and faces.md")
    parser.set_defaults(adapter=None)
    parser.add_argument("--pictures", type=Path, default=trained.file("stock", 0), help="the adapter beside it")
    parser.add_argument("--prepare", type=Path, metavar="DIR", help="write what is needed for the training, and end")
    parser.add_argument("--scenes", type=int, default=4000, help="to train on, with --prepare")
    parser.add_argument("--train-steps", type=int, default=700, help="of the run that --prepare writes")
    parser.add_argument("--prompts", type=int, default=192, help="each is drawn once in every arm")
    parser.add_argument("--steps", type=int, default=arms.STEPS)
    parser.add_argument("--guidance", type=float, default=arms.GUIDANCE)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long; the same command goes on")
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    try:
        prepare_host(not torch.cuda.is_available())
        if given.prepare is not None:
            prepare(given)
            return 0
        if given.adapter is None:
            raise ValueError("Name the trained --adapter; --prepare begins its training.")
        rows = work(given)
    except ValueError as error:
        complain(error)
        return 1
    if rows is None:
        print("Not all pictures are drawn yet: the same command goes on.")
        return 0
    lines = faces.summarise(rows)
    settings = {name: str(value) for name, value in vars(given).items()}
    for name, text in (
        ("lines.jsonl", json_lines(rows)),
        ("faces.json", json.dumps({"settings": settings, "results": lines}, indent=1)),
        ("faces.md", faces.markdown(lines) + "\n"),
    ):
        atomic_write(given.output / name, text)
    print(faces.markdown(lines))
    return 0


@torch.inference_mode()
def prepare(given: argparse.Namespace) -> None:
    """Write the training data, the adapter to start from, and the run."""
    from ...miniature import comfy_bundle

    folder: Path = given.prepare
    scenes = world.sample(given.scenes, faces.SEED_DATA, (1, 2))
    faces.write_data(scenes, folder)
    vision = comfy_bundle.load(given.miniature)[3]
    some = slice(min(FITTED, len(scenes)))
    first = torch.arange(len(scenes))[some] * world.OBJECTS
    shown = world.render(world.references(scenes, faces.SEED_DATA).rows(first), arms.REFERENCE_SIDE).images
    pictures = vision.encode_image(shown.movedim(1, -1))["image_embeds"].float()
    looks = [torch.from_numpy(faces.embedding_of(*look)) for look in scenes.looks[some, 0].tolist()]
    start = faces.start_of(load_adapter(given.pictures), F.normalize(torch.stack(looks), dim=-1), pictures)
    with atomic_file(folder / "start.safetensors") as temporary:
        save_file(start, temporary)
    atomic_write(folder / "train.toml", RUN.format(steps=given.train_steps))
    print(f"Train it: python mip.py train --config {folder / 'train.toml'}")


def work(given: argparse.Namespace) -> list[Row] | None:
    """Draw and judge what is missing. Returns all rows, or None if the time ended before."""
    settings = {
        "steps": given.steps, "guidance": given.guidance, "sampler": arms.SAMPLER, "scale": given.scale,
        "embeddings": file_sha256(given.adapter), "pictures": file_sha256(given.pictures),
        "unet": file_sha256(given.miniature / "unet.safetensors"),
    }  # fmt: skip
    ids = [f"{trial} {arm}" for trial in range(given.prompts) for arm in faces.ARMS]
    parts, end = open_parts(given.output, ids, settings, BATCH), time.monotonic() + 60 * given.minutes
    maker = None
    for part, some in parts.todo():
        if time.monotonic() > end:
            return None
        maker = maker or Maker(given)
        parts.finish(part, maker.rows([(int(trial), arm) for trial, arm in (each.split(" ", 1) for each in some)]))
        print(f"{parts.finished()} of {len(parts)} parts", flush=True)
    return list(parts.rows())


class Maker:
    """Draws and judges pictures with the miniature."""

    def __init__(self, given: argparse.Namespace) -> None:
        from ...miniature import comfy_bundle

        self.given, self.analyser = given, faces.LookAnalyser()
        self.adapters = {
            faces.PICTURES: load_adapter(given.pictures),
            faces.EMBEDDINGS: load_adapter(given.adapter),
        }
        self.model, self.clip, self.vae, self.vision = comfy_bundle.load(given.miniature)
        self.trials = arms.make_trials(given.prompts, faces.OBJECTS, arms.SEED_TEST)

    @torch.inference_mode()
    def rows(self, pictures: list[tuple[int, str]]) -> list[Row]:
        """One row for each prompt (by number) and arm (by name)."""
        scenes, rows = self.trials.scenes, []
        for (trial, arm), image in zip(pictures, self._drawn(pictures), strict=True):
            looks, colours = scenes.looks[trial, : faces.OBJECTS], scenes.colours[trial, : faces.OBJECTS]
            judged = judgement.score(image, scenes.present(trial), looks, colours)
            measures = {name: judged[name] for name in ("present", "own", "clear", "confused")}
            rows.append({"key": [arm, trial], **measures})
        return rows

    def _drawn(self, pictures: list[tuple[int, str]]) -> Tensor:
        """[B, 3, S, S] in 0..1."""
        from .. import comfy_rows

        prompts = [self.trials.prompts[trial] for trial, _ in pictures]
        noise = comfy_rows.noise_of([self.trials.seeds[trial] for trial, _ in pictures], 16)
        positive, negative = (
            comfy_rows.conditioning(
                [self.clip.encode_from_tokens(self.clip.tokenize(text), return_pooled=True) for text in texts]
            )
            for texts in (prompts, [""])
        )
        model = comfy_rows.combine([self._applied(trial, *faces.ARMS[arm]) for trial, arm in pictures])
        steps, guidance = self.given.steps, self.given.guidance
        latents = comfy_rows.sample(model, positive, negative, noise, steps, guidance, arms.SAMPLER)
        images = torch.cat([self.vae.decode(some) for some in latents.split(DECODED)])
        return images.float().clamp(0, 1).movedim(-1, 1)

    def _applied(self, trial: int, reads: str, merge: Any) -> Any:
        """The model with the prompt's references, as pictures or as embeddings."""
        from ...patching.apply import apply_references

        pictures, texts = self.trials.references[trial].movedim(1, -1), self.trials.texts(trial)
        chain = [make_reference(picture[None], text) for picture, text in zip(pictures, texts, strict=True)]
        if reads == faces.EMBEDDINGS:
            chain = [self._as_face(each) for each in chain]
        adapter, scale = self.adapters[reads], self.given.scale
        return apply_references(
            self.model, self.clip, self.vision, adapter, tuple(chain), scale=scale, merge=Merge(merge)
        )

    def _as_face(self, reference: Reference) -> Reference:
        """What MIP Face Reference makes of a picture."""
        found = find_faces(self.analyser, reference.images, reference.text)
        return of_a_face(reference, found.embeddings, found.crops)
