"""A colour for every object, the same in every picture; web/js/objects.js has them too."""

from __future__ import annotations

import colorsys

Colour = tuple[int, int, int]

# Okabe and Ito's, told apart by colour-blind people too; black is left for text.
FIRST = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0), (86, 180, 233), (240, 228, 66))
# Then hues by the golden angle, which meets none again, dark, light and middling in turn. With this beginning the first
# two dozen colours lie about as far apart from each other as Okabe and Ito's do.
BEGINNING, GOLDEN, LIGHTNESS, SATURATION = 115, 137.5, (0.25, 0.7, 0.55), 0.65


def colour(number: int) -> Colour:
    """Of the object of that number, from 0."""
    if number < len(FIRST):
        return FIRST[number]
    turn = number - len(FIRST)
    hue = (BEGINNING + turn * GOLDEN) / 360
    red, green, blue = colorsys.hls_to_rgb(hue % 1, LIGHTNESS[turn % len(LIGHTNESS)], SATURATION)
    return round(red * 255), round(green * 255), round(blue * 255)
