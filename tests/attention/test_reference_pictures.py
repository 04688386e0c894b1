"""What of its pictures an object takes: masks that fit, which square, several pictures of any size."""

from __future__ import annotations

import pytest
import torch

from ..node.test_bad_input import reference
from ..support.graphs import bundle, photo
from ..support.sentences import told

pytestmark = pytest.mark.usefixtures("host")


def tokens(chain: tuple) -> torch.Tensor:
    """[M, T, X]"""
    from mip_adapter.patching.encode import encode_references

    parts = bundle()
    with torch.inference_mode():
        return encode_references(chain, parts.adapters["plus"], parts.clip, parts.vision).tokens


# ---- masks ----


@pytest.mark.parametrize("shape", [(48, 64), (12, 16), (240, 323)], ids=str)
def test_a_mask_of_the_pictures_shape_fits_in_any_size(shape: tuple[int, int]) -> None:
    assert reference(image=photo(0, 24, 32), image_mask=torch.ones(1, *shape))[0].images.shape == (1, 32, 32, 3)


@pytest.mark.parametrize("shape", [(32, 24), (64, 64), (24, 33)], ids=str)
def test_a_mask_of_another_shape_is_refused(shape: tuple[int, int]) -> None:
    """It was stretched: object and mask no longer matched."""
    masks = torch.ones(1, *shape)
    words = ("image_mask of “cat”", f"{shape[1]}×{shape[0]}", "32×24", "more_pictures")
    told(lambda: reference(image=photo(0, 24, 32), image_mask=masks), *words)


def test_an_empty_mask_is_called_empty_whatever_its_shape() -> None:
    """Load Image gives 64×64 for a picture without transparency."""
    told(lambda: reference(image_mask=torch.zeros(1, 64, 64)), "image_mask of “cat” is empty")


# ---- which square ----


@pytest.mark.parametrize("height, width", [(24, 40), (40, 24)])
def test_fit(height: int, width: int) -> None:
    picture = photo(3, height, width)
    assert torch.equal(reference(image=picture, fit="centre crop")[0].images, picture)
    start, end = (reference(image=picture, fit=fit)[0].images for fit in ("top or left", "bottom or right"))
    assert torch.equal(start, picture[:, :24, :24]) and torch.equal(end, picture[:, -24:, -24:])
    padded = reference(image=picture, fit="pad to square")[0].images
    assert padded.shape == (1, 40, 40, 3)
    assert torch.equal(padded[:, (40 - height) // 2 :, (40 - width) // 2 :][:, :height, :width], picture)
    assert padded.sum() == pytest.approx(picture.sum() + (40 * 40 - 24 * 40) * 3)


def test_the_middle_square_is_used_by_default() -> None:
    wide = photo(3, 28, 40)
    torch.testing.assert_close(tokens(reference(image=wide)), tokens(reference(image=wide[:, :, 6:34])))
    assert not torch.allclose(tokens(reference(image=wide)), tokens(reference(image=wide, fit="pad to square")))


def test_a_mask_needs_no_fit() -> None:
    mask = torch.ones(1, 24, 32)
    one, other = (reference(image_mask=mask, fit=fit)[0].images for fit in ("centre crop", "top or left"))
    assert torch.equal(one, other)


def test_a_fit_that_does_not_exist() -> None:
    told(lambda: reference(fit="stretch"), "cat", "stretch", "pad to square")


# ---- several pictures ----


def test_more_pictures_join_the_object() -> None:
    """Any sizes, each with its own mask; the projected tokens are averaged, as those of a batch."""
    pictures = photo(0, 24, 32), photo(1, 50, 30), torch.cat([photo(2), photo(3)])
    mask = torch.zeros(1, 50, 30)
    mask[:, 5:30, 5:25] = 1
    second = reference(image=pictures[1], text="ignored", image_mask=mask)
    third = reference(image=pictures[2], references=second)
    chain = reference(image=pictures[0], more_pictures=third)
    assert len(chain) == 1 and chain[0].text == "cat"
    alone = [tokens(reference(image=pictures[0])), tokens(second)]
    alone += [tokens(reference(image=picture[None])) for picture in pictures[2]]
    torch.testing.assert_close(tokens(chain), torch.stack(alone).mean(0))


def test_their_weights_say_how_much_they_count() -> None:
    one, other = reference(image=photo(1), weight=0.5), reference(image=photo(2), weight=0.0)
    nested = reference(image=photo(3), weight=3.0, more_pictures=one)
    chain = reference(weight=2.0, more_pictures=(*nested, *other))
    alone = [tokens(reference(image=photo(i))) for i in (0, 3, 1)]
    torch.testing.assert_close(tokens(chain), (alone[0] + 3 * alone[1] + 1.5 * alone[2]) / 5.5)
    assert chain[0].weight == 2.0


def test_pictures_without_a_text_count_as_references_do() -> None:
    from mip_adapter.nodes.picture import MIPPicture

    mask = torch.zeros(1, 50, 30)
    mask[:, 5:30, 5:25] = 1
    second = reference(image=photo(1, 50, 30), weight=0.5, image_mask=mask)
    third = reference(image=photo(2, 24, 40), weight=2.0, fit="top or left", references=second)
    pictures = MIPPicture.execute(photo(1, 50, 30), 0.5, mask).args[0]
    pictures = MIPPicture.execute(photo(2, 24, 40), 2.0, pictures=pictures, fit="top or left").args[0]
    assert len(pictures) == 2
    assert torch.equal(tokens(reference(more_pictures=pictures)), tokens(reference(more_pictures=third)))
    told(lambda: MIPPicture.execute(photo(1), 1.0, torch.zeros(1, 24, 32)), "image_mask of “one more picture” is empty")
    told(lambda: MIPPicture.execute(photo(1), 4.0), "weight of “one more picture” is 4")


def test_scores_see_all_pictures() -> None:
    from mip_adapter.evaluation.detection.crops import pictures_of

    (each,) = reference(image=photo(0, 24, 32), more_pictures=reference(image=photo(1, 50, 30)))
    assert [picture.shape for picture in pictures_of(each)] == [(24, 32, 3), (50, 30, 3)]


@pytest.mark.parametrize("order", [(True, False, True), (False, True, False)])
def test_one_picture_with_a_mask_and_without(order: tuple[bool, ...]) -> None:
    """The same tensors whichever came first: what is kept of a picture alone is apart from what a mask made of it."""
    picture, mask = photo(0, 32, 32), torch.zeros(1, 32, 32)
    mask[:, :16] = 1
    kept = {}
    for masked in order:
        (made,) = reference(image=picture, image_mask=mask if masked else None)
        assert made.images is kept.setdefault(masked, made.images)
    assert not torch.equal(kept[True], kept[False])
