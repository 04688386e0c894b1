"""The object quality score of pictures whose objects were found: measured, as a report, and as a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...common.batching import Tick
from ...common.crops import as_bytes
from ...common.drawing import SOFT, Canvas, colour, drawable
from ...common.tables import NOTHING, number, table
from ..detection.annotate import annotated
from ..detection.crops import check_pictures, crop
from ..detection.detections import Detections
from ..detection.matching import match_objects, missing
from ..encoders.embeddings import embed, embed_words
from ..encoders.encoder import ImageEncoder, need_words
from .score import ObjectQuality, object_quality


@dataclass(frozen=True, eq=False)
class MeasuredQuality:
    """Scores of the P pictures, out of B, in which all M objects were found.

    texts: the M object texts.
    scored: the P numbers of the scored pictures.
    quality: the scores, [P] each.
    to_text [P, M]: cosines of each text and its crop.
    between [P, M, M]: cosines between the crops.
    crops [P][M]: the objects, cut out.
    left_out: for every other picture a sentence that says why it has no score.
    colours [M]: the numbers of the objects' colours.
    """

    texts: tuple[str, ...]
    scored: tuple[int, ...]
    quality: ObjectQuality
    to_text: Tensor
    between: Tensor
    crops: tuple[tuple[Image.Image, ...], ...]
    left_out: dict[int, str]
    colours: tuple[int, ...]

    @property
    def objects(self) -> int:
        """The number of objects, over all scored pictures, that the means are taken of."""
        return self.to_text.numel()

    @property
    def means(self) -> tuple[float, float, float]:
        """Means of single, pair and total over the scored pictures."""
        single, pair, total = (float(values.mean()) for values in self.quality)
        return single, pair, total


def measure_quality(
    images: Tensor, detections: Detections, encoder: ImageEncoder, tick: Tick | None = None
) -> MeasuredQuality:
    """Scores every picture in which all objects were found.

    images [B, H, W, 3]: in 0..1, those that were searched.
    encoder: of words and pictures.
    tick: called with the number of crops encoded since the last call.

    Raises ValueError if no picture holds all objects.
    """
    both = need_words(encoder, "The object quality score")
    check_pictures(images, detections)
    crops, left_out = {}, {}
    for picture, image in enumerate(images):
        matches = match_objects(detections, picture, detections.texts)
        if absent := missing(detections, picture, detections.texts, matches):
            left_out[picture] = next(iter(absent.values()))
        else:  # the objects' own detections come first, in the texts' order
            crops[picture] = tuple(crop(image, each) for each in matches.found[: len(detections.texts)])
    if not crops:
        raise ValueError(left_out[0])
    many = len(detections.texts)
    vectors = embed(both, [each for row in crops.values() for each in row], tick).unflatten(0, (-1, many))
    words = embed_words(both, detections.texts).expand_as(vectors)
    return MeasuredQuality(
        texts=detections.texts,
        scored=tuple(crops),
        quality=object_quality(words, vectors),
        to_text=(words * vectors).sum(-1),
        between=vectors @ vectors.mT,
        crops=tuple(crops.values()),
        left_out=left_out,
        colours=detections.colours or tuple(range(many)),
    )


def quality_report(measured: MeasuredQuality) -> str:
    """A table with a line for each picture and their mean, then notes and the pictures that were left out."""
    several = len(measured.texts) > 1
    lines = [
        [str(picture + 1), *(number(float(values[row])) for values in measured.quality)]
        + [number(float(cosine)) for cosine in measured.to_text[row]]
        for row, picture in enumerate(measured.scored)
    ]
    means = ["mean", *map(number, measured.means), *(number(float(cosine)) for cosine in measured.to_text.mean(0))]
    rows = table(["picture", "single", "pair", "total", *measured.texts], [*lines, means])
    notes = ["single: objects look like their texts. pair: objects look unlike each other. total: their sum. Then each "
             "object and its text."]  # fmt: skip
    if not several:
        notes.append(f"One object has no pairs: its pair is {number(0.0)}, and its total does not compare with others.")
    pictures = len(measured.scored) + len(measured.left_out)
    notes.append(f"mean: of {len(measured.scored)} of {pictures} pictures, {measured.objects} objects.")
    if measured.left_out:
        notes.append(
            "A picture that lacks an object has no score, and none of 0 either: pair is below 0 as a rule, so that 0 "
            "would be a reward."
        )
    notes += [f"picture {picture + 1} left out: {why}" for picture, why in measured.left_out.items()]
    return "\n".join([rows, "", *notes])


# ---- drawn ----

SIDE, EDGE, CAPTION = 160, 12, 46  # pixels: a crop's side, the margins, the text below a crop


def draw_quality(images: Tensor, detections: Detections, measured: MeasuredQuality) -> Tensor:
    """[B, H', W', 3]: each picture with its boxes, its crops and their scores."""
    whole = annotated(images, detections)
    sheets = [_sheet(whole[picture], measured, picture) for picture in range(len(images))]
    return torch.from_numpy(np.stack(sheets)).float() / 255


def _sheet(whole: Tensor, measured: MeasuredQuality, picture: int) -> np.ndarray:
    columns = min(len(measured.texts), 4)
    lines = -(-len(measured.texts) // columns)
    high = max(2 * SIDE, lines * (SIDE + CAPTION + EDGE)) + 2 * EDGE + 30
    left = round(whole.shape[1] / whole.shape[0] * (high - 2 * EDGE))
    sheet = Canvas(left + columns * (SIDE + EDGE) + 2 * EDGE, high)
    small = Image.fromarray(as_bytes(whole)).resize((left, high - 2 * EDGE), Image.Resampling.LANCZOS)
    sheet.paste((EDGE, EDGE), small)
    x0, wide = left + 2 * EDGE, columns * (SIDE + EDGE) - EDGE
    if picture not in measured.scored:
        sheet.words((x0, EDGE), f"{NOTHING} not scored, see the report", 16, width=wide)
        return np.asarray(sheet.image)
    row, names = measured.scored.index(picture), drawable(measured.texts)
    single, pair, total = (number(float(values[row])) for values in measured.quality)
    sheet.words((x0, EDGE), f"quality {total} = single {single} + pair {pair}", 18, width=wide)
    for text, cut in enumerate(measured.crops[row]):
        x, y = x0 + text % columns * (SIDE + EDGE), EDGE + 30 + text // columns * (SIDE + CAPTION + EDGE)
        sheet.paste((x, y), cut.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
        sheet.pen.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), outline=colour(measured.colours[text]), width=3)
        cosine = number(float(measured.to_text[row, text]))
        sheet.words((x, y + SIDE + 4), f"{names[text]}: {cosine}", 16, width=SIDE)
        if len(measured.texts) > 1:
            others = measured.between[row, text].clone()
            others[text] = -torch.inf
            like = int(others.argmax())
            words = f"most like {names[like]}: {number(float(others[like]))}"
            sheet.words((x, y + SIDE + 25), words, 14, SOFT, width=SIDE)
    return np.asarray(sheet.image)
