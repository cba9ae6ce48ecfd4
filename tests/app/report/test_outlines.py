"""Outlines: encoded, decoded by the rules of their docstrings, and filled again, they cover the mask."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageDraw
from pycocotools import mask as coco_mask

from local2global.app.report.outlines import UNITS, cell_size, encode_rings, outline_bytes, varints, zigzag


def decode(code: bytes) -> tuple[list[list[tuple[int, int]]], int]:
    """The rings of an outline and the number of bytes read."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte, at = code[at], at + 1
            value, shift = value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    def signed() -> int:
        value = number()
        return -(value + 1) // 2 if value % 2 else value // 2

    rings, x, y = [], 0, 0
    for _ in range(number()):
        ring = []
        for _ in range(number()):
            x, y = x + signed(), y + signed()
            ring.append((x, y))
        rings.append(ring)
    return rings, at


def filled(code: bytes, cell: int, shape: tuple[int, int]) -> np.ndarray:
    """The mask of an outline by the even-odd rule."""
    image = Image.new("1", shape[::-1])
    for ring in decode(code)[0]:
        layer = Image.new("1", shape[::-1])
        points = [(x * cell / UNITS - 0.5, y * cell / UNITS - 0.5) for x, y in ring]
        ImageDraw.Draw(layer).polygon(points, fill=1)
        image = ImageChops.logical_xor(image, layer)
    return np.asarray(image)


def encoded(mask: np.ndarray) -> dict:
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def ring_of_two() -> np.ndarray:
    """A disc with a hole, and a bar at the edge of the frame."""
    y, x = np.mgrid[:240, :400]
    distance = np.hypot(x - 150, y - 120)
    return (distance < 90) & (distance > 40) | (x > 340) & (y < 100)


def test_numbers_are_leb128():
    assert varints([0, 127, 128, 300]) == bytes([0, 127, 0x80, 1, 0xAC, 2])
    assert zigzag(np.array([0, -1, 1, -2, 2])).tolist() == [0, 1, 2, 3, 4]


def test_rings_are_decoded_to_the_same_points():
    rings = [np.array([[0, 0], [500, 3], [7, -200]]), np.array([[9, 9], [8, 1], [1, 1]])]
    points, read = decode(encode_rings(rings))
    assert points == [[tuple(p) for p in ring.tolist()] for ring in rings]
    assert read == len(encode_rings(rings))


@pytest.mark.parametrize(("cell", "least"), [(1, 0.97), (2, 0.96), (4, 0.93)])
def test_an_outline_covers_the_mask(cell, least):
    mask = ring_of_two()
    code = outline_bytes(encoded(mask), cell, 600)
    assert iou(filled(code, cell, mask.shape), mask) > least


def test_an_outline_is_simplified_until_it_fits():
    mask = ring_of_two()
    lengths = {limit: len(outline_bytes(encoded(mask), 1, limit)) for limit in (600, 60, 45, 20)}
    assert all(length <= limit for limit, length in lengths.items())
    assert iou(filled(outline_bytes(encoded(mask), 1, 60), 1, mask.shape), mask) > 0.8


def test_noise_keeps_its_largest_parts():
    mask = np.random.default_rng(0).random((100, 160)) > 0.8
    mask[20:60, 30:90] = True
    code = outline_bytes(encoded(mask), 1, 45)
    assert len(decode(code)[0]) > 0
    assert filled(code, 1, mask.shape)[25:55, 35:85].mean() > 0.8


def test_an_empty_mask_has_no_ring():
    assert outline_bytes(encoded(np.zeros((20, 30))), 1, 45) == b"\0"


def test_a_mask_of_more_pixels_than_its_size_is_refused():
    rle = coco_mask.frPyObjects({"size": [10, 10], "counts": [5, 500]}, 10, 10)
    with pytest.raises(ValueError, match="Invalid RLE"):
        outline_bytes(rle, 1, 45)


@pytest.mark.parametrize(
    ("size", "cell"), [((720, 1280), 4), ((192, 320), 1), ((384, 640), 2), ((2160, 3840), 4)]
)
def test_small_frames_have_finer_cells(size, cell):
    assert cell_size(size) == cell
