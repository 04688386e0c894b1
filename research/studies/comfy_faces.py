"""`python mip.py faces`: an adapter that reads embeddings of looks, beside one that reads pictures.

    mip.py faces --prepare data               training data, an adapter to start from, and data/train.toml
    mip.py train --config data/train.toml     trains it
    mip.py faces --adapter data/trained/faces.safetensors     draws and judges; a stopped run goes on

See faces.py for what stands in for faces, and what is measured.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ...attention.options import Merge
from ...attention.reference import Reference, make_reference, of_a_face
from ...common.atomic_io import atomic_file, atomic_write
from ...common.console import complain
from ...common.hashing import file_sha256
from ...common.resumable import Row
from ...evaluation.faces.find import find_faces
from ...miniature import world
from ...weights.adapter import load_adapter
from ..ablation import arms
from ..miniature import trained
from . import faces
from .comfy_study import Maker, add_drawing_options, begin, draw_missing, run
from .options import study_parser

BATCH = 16
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
    add_drawing_options(parser, prompts=192)
    given = parser.parse_args(argv)
    if given.prepare is None:
        return run("faces", given, faces.COMPARISON, work)
    try:
        begin(given)
        prepare(given)
    except ValueError as error:
        complain(error)
        return 1
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
    """See `draw_missing`. Raises ValueError without an adapter."""
    if given.adapter is None:
        raise ValueError("Name the trained --adapter; --prepare begins its training.")
    settings = {
        "steps": given.steps, "guidance": given.guidance, "sampler": arms.SAMPLER, "scale": given.scale,
        "embeddings": file_sha256(given.adapter), "pictures": file_sha256(given.pictures),
        "unet": file_sha256(given.miniature / "unet.safetensors"),
    }  # fmt: skip
    ids = [f"{trial} {arm}" for trial in range(given.prompts) for arm in faces.ARMS]
    return draw_missing(given, ids, settings, BATCH, lambda: FaceMaker(given).rows)


class FaceMaker(Maker):
    """Pictures of two objects, whose references are read as pictures or as embeddings."""

    def __init__(self, given: argparse.Namespace) -> None:
        super().__init__(given, faces.OBJECTS)
        self.analyser = faces.LookAnalyser()
        self.adapters = {faces.PICTURES: load_adapter(given.pictures), faces.EMBEDDINGS: load_adapter(given.adapter)}

    def measured(self, trial: int, image: Tensor, judged: Row) -> Row:
        return {name: judged[name] for name in ("present", "own", "clear", "confused")}

    def applied(self, trial: int, setting: str) -> Any:
        from ...patching.apply import apply_references

        reads, merge = faces.ARMS[setting]
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
