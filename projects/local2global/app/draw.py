"""Draws objects on a frame: tinted masks, outlines, boxes and labels, in the colour of the identity or of the class."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from torch import Tensor

from ..results.colours import Colour, colour, ink
from ..structures import FrameResult

__all__ = ["PARTS", "Look", "colour", "draw"]

_MIN_FONT_SIZE = 11  # pixels: smaller text is illegible
_CELLS = 32  # a label's position is computed on at most this many mask cells per side

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Part = Literal["masks", "boxes", "labels"]
PARTS: tuple[Part, ...] = ("masks", "boxes", "labels")


@dataclass(frozen=True)
class Look:
    """What is drawn, and in which colours.

    Attributes:
        color_by: "id" for one colour per identity, "class" for one per class.
        hidden: the parts that are not drawn.
    """

    color_by: Literal["id", "class"] = "id"
    hidden: frozenset[Part] = frozenset()


@dataclass(frozen=True)
class _Box:
    """Pixel rows [top, bottom) and columns [left, right)."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def window(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)


def draw(
    frame: Tensor, result: FrameResult, classes: Sequence[dict[str, Any]], look: Look | None = None
) -> Tensor:
    """Draws the mask, the box and the label of every object; all other pixels stay unchanged.

    Larger masks are drawn first, so smaller objects stay visible.  Lines and text scale with the frame.  A label lies
    on the largest connected part of its mask, or beside it where the part is smaller than the label, and moves
    where it would cover another label.

    Args:
        frame: (3, H, W) uint8 RGB.
        result: the objects of the frame, with masks of size (H, W).  Labels show no score where it is NaN.
        classes: {id, name} of every class; label k is the k-th.
        look: default: all parts, coloured by identity.

    Returns:
        (3, H, W) uint8 RGB, a new tensor.

    Raises:
        ValueError: if masks and frame differ in size.
    """
    look = look or Look()
    pixels: Pixels = frame.detach().cpu().permute(1, 2, 0).numpy().copy()  # (H, W, 3)
    masks: Mask = result.masks.detach().cpu().numpy()
    if len(masks) and masks.shape[1:] != pixels.shape[:2]:
        raise ValueError(f"masks of {masks.shape[1:]} for a frame of {pixels.shape[:2]}")
    numbers = result.ids if look.color_by == "id" else result.labels
    tints = [colour(number) for number in numbers.tolist()]
    places = {i: place for i, mask in enumerate(masks) if (place := _bounds(mask)) is not None}
    shorter = min(pixels.shape[:2])
    line = max(1, round(shorter / 360))
    if "masks" not in look.hidden:
        areas = {i: np.count_nonzero(masks[i][place.window]) for i, place in places.items()}
        for i in sorted(places, key=lambda i: -areas[i]):
            window = places[i].window
            _draw_mask(pixels[window], np.ascontiguousarray(masks[i][window]), tints[i], line)
    if "boxes" not in look.hidden:
        boxes = result.boxes.tolist()
        for i in places:
            _draw_box(pixels, boxes[i], tints[i], max(1, line // 2))
    if "labels" not in look.hidden:
        size = max(round(shorter / 32), _MIN_FONT_SIZE)
        taken = np.zeros((0, 4), dtype=np.int64)
        for i, place in places.items():
            label = _label(_text(result, i, classes), tints[i], size)
            spot = _free_spot(label.shape[:2], masks[i], place, taken, pixels.shape[:2])
            region = pixels[spot.window]
            region[:] = label[: region.shape[0], : region.shape[1]]
            taken = np.concatenate([taken, [[spot.top, spot.left, spot.bottom, spot.right]]])
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _text(result: FrameResult, i: int, classes: Sequence[dict[str, Any]]) -> str:
    score = float(result.scores[i])
    text = f"#{int(result.ids[i])} {classes[int(result.labels[i])]['name']}"
    return text if math.isnan(score) else f"{text} {score:.2f}"


def _bounds(mask: Mask) -> _Box | None:
    """The tight box of a mask, or None without a pixel."""
    rows = np.flatnonzero(mask.any(1))
    if not len(rows):
        return None
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(0))
    return _Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def _draw_mask(pixels: Pixels, mask: Mask, tint: Colour, line: int) -> None:
    """Tints an (h, w) mask, with an opacity of 7/16, and outlines it, in place."""
    outline = mask & ~_erode(mask, line)
    rows = pixels.reshape(len(mask), -1)  # a view; bytes are added without overflow: 127 + 15 + 113
    blended = rows >> 1
    blended += rows >> 4
    blended += np.tile(np.array([level * 7 // 16 + 1 for level in tint], dtype=np.uint8), mask.shape[1])
    np.copyto(rows, blended, where=np.repeat(mask, 3, axis=1))
    pixels[outline] = tint


def _erode(mask: Mask, times: int) -> Mask:
    """Removes `times` border pixels (4-neighbourhood); pixels outside the array count as background."""
    for _ in range(times):
        padded = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), dtype=np.bool_)
        padded[1:-1, 1:-1] = mask
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def _draw_box(pixels: Pixels, box: Sequence[float], tint: Colour, line: int) -> None:
    """Draws a (cx, cy, w, h) box in [0, 1] around the pixels that it contains, in place."""
    (height, width, _), (cx, cy, w, h) = pixels.shape, box
    left, right = (min(max(round((cx + side * w / 2) * width), 0), width) for side in (-1, 1))
    top, bottom = (min(max(round((cy + side * h / 2) * height), 0), height) for side in (-1, 1))
    rows, columns = slice(max(0, top - line), bottom + line), slice(max(0, left - line), right + line)
    pixels[rows.start : top, columns] = tint
    pixels[bottom : rows.stop, columns] = tint
    pixels[rows, columns.start : left] = tint
    pixels[rows, right : columns.stop] = tint


# --- Labels ---


@functools.lru_cache(maxsize=512)
def _label(text: str, tint: Colour, font_size: int) -> Pixels:
    """(h, w, 3) label: black or white text, whichever has more contrast, on a colour."""
    font = ImageFont.load_default(font_size)
    left, _, right, _ = font.getbbox(text)
    _, top, _, bottom = font.getbbox("#Ag")  # all labels have one height
    margin = max(2, font_size // 5)
    size = (math.ceil(right - left) + 2 * margin, math.ceil(bottom - top) + 2 * margin)
    patch = Image.new("RGB", size, tint)
    ImageDraw.Draw(patch).text((margin - left, margin - top), text, ink(tint), font)
    return np.asarray(patch)


def _free_spot(
    label: tuple[int, ...], mask: Mask, place: _Box, taken: NDArray[np.int64], frame: tuple[int, ...]
) -> _Box:
    """The position of a label: the first that covers no other label, else the position that covers least.

    Args:
        label: (height, width) of the label.
        mask: (H, W) mask.
        place: the mask's tight box.
        taken: (n, 4) top, left, bottom, right of the labels so far.
        frame: (H, W).
    """
    (row, column), part = _centre(mask, place)
    height, width = label
    level, middle = row - height // 2, column - width // 2
    on = [(level + shift * height, middle) for shift in (0, 1, -1)]
    vertical = [(part.top - height, middle), (part.bottom, middle)]
    beside = [*vertical, (level, part.right), (level, part.left - width)]
    further = [(part.top - 2 * height, middle), (part.bottom + height, middle)]
    fits = width <= part.right - part.left and 2 * height <= part.bottom - part.top
    best, least = None, math.inf
    for top, left in [*on, *beside, *further] if fits else [*beside, *further, *on]:
        top, left = (max(0, min(a, b - c)) for a, b, c in zip((top, left), frame, label, strict=True))
        spot = _Box(top, left, min(top + height, frame[0]), min(left + width, frame[1]))
        rows = np.minimum(taken[:, 2], spot.bottom) - np.maximum(taken[:, 0], top)
        columns = np.minimum(taken[:, 3], spot.right) - np.maximum(taken[:, 1], left)
        covered = int((rows.clip(0) * columns.clip(0)).sum())
        if covered < least:
            best, least = spot, covered
        if not covered:
            break
    assert best is not None
    return best


def _centre(mask: Mask, place: _Box) -> tuple[tuple[int, int], _Box]:
    """(row, column) of the centre of a mask's largest connected part, and the box of that part.

    It is the centroid, which moves smoothly over time, unless the centroid lies outside or near the border of the
    part: then it is the pixel farthest from the border.  Computed on every `step`-th pixel.
    """
    window = mask[place.window]
    step = -(-max(window.shape) // _CELLS)
    cells = window[step // 2 :: step, step // 2 :: step]
    if not cells.any():  # thinner than the step
        step, cells = 1, window
    parts, count = ndimage.label(cells)
    if count > 1:
        cells = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    rows, columns = cells.nonzero()
    depth = ndimage.distance_transform_cdt(np.pad(cells, 1))[1:-1, 1:-1]
    row, column = float(rows.mean()), float(columns.mean())
    if 2 * depth[round(row), round(column)] < depth.max():
        row, column = map(float, np.unravel_index(depth.argmax(), depth.shape))
    part = _Box(
        place.top + int(rows[0]) * step,
        place.left + int(columns.min()) * step,
        min(place.top + (int(rows[-1]) + 1) * step, place.bottom),
        min(place.left + (int(columns.max()) + 1) * step, place.right),
    )
    centre = place.top + (row + 0.5) * step, place.left + (column + 0.5) * step
    return (int(centre[0]), int(centre[1])), part
