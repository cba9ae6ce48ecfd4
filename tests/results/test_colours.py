"""The colours of identities and classes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageCms

from local2global.results.colours import colour, ink


def lab(colours: list[tuple[int, int, int]]) -> np.ndarray:
    """(n, 3) CIELAB of sRGB colours, by Pillow's colour management."""
    convert = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    pixels = Image.fromarray(np.array([colours], dtype=np.uint8))
    packed = np.asarray(ImageCms.applyTransform(pixels, convert))[0].astype(float)
    packed[:, 1:] -= 256 * (packed[:, 1:] > 127)  # a and b are signed
    return packed * [100 / 255, 1, 1]


@pytest.mark.parametrize(("count", "distance"), [(100, 16), (20, 35), (6, 70)])
def test_colours_are_distinct(count, distance):
    """Minimal CIELAB distance of any two of the first `count` colours; 2.3 is a just noticeable difference."""
    places = lab([colour(i) for i in range(count)])
    distances = np.linalg.norm(places[:, None] - places[None], axis=2)
    assert distances[~np.eye(count, dtype=bool)].min() > distance
    assert colour(100) == colour(0)


def test_text_is_readable_on_every_colour():
    """WCAG 2 asks for a contrast ratio of 4.5."""

    def luminance(tint: tuple[int, int, int]) -> float:
        linear = [((v / 255 + 0.055) / 1.055) ** 2.4 if v > 10 else v / 255 / 12.92 for v in tint]
        return sum(a * b for a, b in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))

    for i in range(100):
        dark, bright = sorted(map(luminance, (colour(i), ink(colour(i)))))
        assert (bright + 0.05) / (dark + 0.05) > 4.5
