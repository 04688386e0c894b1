"""Cards of the template list: what goes into a workflow and what comes out, since a card is too small for a graph.

A workflow that needs files of gigabytes is drawn with the miniature in their place, and its card says so: the same
nodes and wires, other models, pictures and words. Where no miniature can stand in, the card shows the references and
the prompt alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageOps

from ..common.drawing import SOFT, WHITE, Canvas, letters, wrapped

SIZE = WIDTH, HEIGHT = 960, 640  # pixels
EDGE = 10  # pixels of white around a picture
WORDS, SMALL = 44, 26  # pixels of letters
Prompt = dict[str, dict[str, Any]]  # nodes by id, as the host queues them


@dataclass(frozen=True)
class StandIn:
    """What takes the place of a workflow's files.

    objects: of each LoadImage, in order: kind, pattern, colour, second colour and pose of Draw Miniature Object.
    seed: one whose picture shows what the workflow is for.
    """

    prompt: str
    objects: tuple[tuple[str, str, str, str, int], ...]
    adapter: str
    seed: int


HEART = ("heart", "plain", "orange", "orange", 4)
FISH = ("fish", "plain", "blue", "blue", 2)
MUSHROOM = ("mushroom", "striped", "red", "yellow", 3)
STAR = ("star", "plain", "purple", "purple", 1)
RING = ("ring", "plain", "green", "green", 1)
RED_MUSHROOM = ("mushroom", "plain", "red", "red", 3)
STAND_INS = {
    "two objects (base)": StandIn("a mushroom and a star", (MUSHROOM, STAR), "miniature_mip.safetensors", 1),
    "three objects (plus)": StandIn(
        "a mushroom, a fish and a heart", (RED_MUSHROOM, FISH, HEART), "miniature_mip_plus.safetensors", 4
    ),
    "regions": StandIn("a star and a fish", (STAR, FISH), "miniature_mip.safetensors", 1),
    "merge strategies side by side": StandIn("a heart and a fish", (HEART, FISH), "miniature_mip.safetensors", 1),
}


def on_miniature(prompt: Prompt, stand_in: StandIn) -> Prompt:
    """The same nodes and wires with the miniature's models, pictures and words."""
    loaders = {"CheckpointLoaderSimple": 0, "CLIPVisionLoader": 3}  # by class: the miniature's first output of theirs
    firsts = {id: loaders[node["class_type"]] for id, node in prompt.items() if node["class_type"] in loaders}
    pictures = [id for id, node in prompt.items() if node["class_type"] == "LoadImage"]
    drawn = dict(zip(pictures, stand_in.objects, strict=True))
    samplers = [node["inputs"] for node in prompt.values() if node["class_type"] == "KSampler"]
    asked = {inputs["positive"][0] for inputs in samplers}

    def changed(id: str, kind: str, inputs: dict[str, Any]) -> dict[str, Any]:
        if kind == "CLIPTextEncode":
            return {"text": stand_in.prompt if id in asked else ""}
        if kind == "MIPReference":
            return {"text": drawn[inputs["image"][0]][0]}
        return {
            "MIPAdapterLoader": {"adapter_name": stand_in.adapter},
            "EmptyLatentImage": {"width": 128, "height": 128, "batch_size": 1},
            "KSampler": {"seed": stand_in.seed, "steps": 20, "cfg": 3.0},
            "MIPApply": {"scale": 1.0},
        }.get(kind, {})

    made: Prompt = {"miniature": {"class_type": "MIPMiniatureLoader", "inputs": {}}}
    for id, node in prompt.items():
        kind, inputs = node["class_type"], node["inputs"]
        if id in drawn:
            names = ("kind", "pattern", "colour", "second_colour", "pose")
            made[id] = {"class_type": "MIPMiniatureObject", "inputs": dict(zip(names, drawn[id], strict=True))}
        elif id not in firsts:
            linked = {
                name: ["miniature", firsts[value[0]] + value[1]]
                if isinstance(value, list) and value[0] in firsts
                else value
                for name, value in inputs.items()
            }
            made[id] = {**node, "inputs": linked | changed(id, kind, inputs)}
    return made


def prompt_of(nodes: Prompt) -> str:
    """The words of the prompt: the text that is not the negative one's."""
    negative = {node["inputs"]["negative"][0] for node in nodes.values() if node["class_type"] == "KSampler"}
    return next(
        n["inputs"]["text"] for id, n in nodes.items() if n["class_type"] == "CLIPTextEncode" and id not in negative
    )


def name_of(node: dict[str, Any]) -> str:
    """What a Save Image says of its picture: how its file names end."""
    return node["inputs"]["filename_prefix"].removeprefix("miniature ").removeprefix("MIP merge ")


def results(
    references: Sequence[Image.Image], made: Sequence[Image.Image], names: Sequence[str] = (), remark: str = ""
) -> Image.Image:
    """References in a column on the left, and beside them what was drawn: one picture, or four with their names."""
    card = Image.new("RGB", SIZE, "white")
    side = HEIGHT // max(len(references), 2)
    for i, picture in enumerate(references):
        _put(card, picture, ((HEIGHT // 2 - side) // 2, i * side, side))
    left, grid = HEIGHT // 2, len(made) > 1
    for i, picture in enumerate(made[:4]):
        side = HEIGHT // 2 if grid else HEIGHT
        place = (left + side * (i % 2), side * (i // 2), side)
        _put(card, picture, place)
        if names:
            _say(card, names[i], place)
    if remark:
        _say(card, remark, (0 if grid else left, 0, HEIGHT))
    return card


def ingredients(references: Sequence[Image.Image], prompt: str) -> Image.Image:
    """References in a column on the left, and beside them the prompt in large letters."""
    canvas = Canvas(*SIZE)
    side = HEIGHT // max(len(references), 2)
    above = (HEIGHT - side * len(references)) // 2
    for i, picture in enumerate(references):
        _put(canvas.image, picture, ((HEIGHT // 2 - side) // 2, above + i * side, side))
    left, width = HEIGHT // 2 + 4 * EDGE, HEIGHT - 8 * EDGE
    lines = wrapped(f"“{prompt}”", WORDS, width)
    top = (HEIGHT - len(lines) * WORDS * 1.35) / 2
    for i, line in enumerate(lines):
        canvas.words((left, top + i * WORDS * 1.35), line, WORDS, SOFT)
    return canvas.image


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Wide pictures, one below the other."""
    card = Image.new("RGB", SIZE, "white")
    height = HEIGHT // len(pictures)
    for i, picture in enumerate(pictures):
        card.paste(ImageOps.pad(picture, (WIDTH, height), color="white"), (0, i * height))
    return card


def _put(card: Image.Image, picture: Image.Image, place: tuple[int, int, int]) -> None:
    """Fills a square of the card. place: left, top and side, with the edge."""
    left, top, side = place
    inner = side - 2 * EDGE
    card.paste(ImageOps.fit(picture, (inner, inner), Image.Resampling.BICUBIC), (left + EDGE, top + EDGE))


def _say(card: Image.Image, words: str, place: tuple[int, int, int]) -> None:
    """Words on a dark strip along the lower edge of a square."""
    left, top, side = place
    font, pen = letters(words, SMALL), ImageDraw.Draw(card)
    bottom = top + side - EDGE
    pen.rectangle(
        (left + EDGE, bottom - SMALL * 1.5, left + EDGE + font.getlength(words) + SMALL, bottom), (40, 40, 40)
    )
    pen.text((left + EDGE + SMALL / 2, bottom - SMALL * 1.3), words, font=font, fill=WHITE)
