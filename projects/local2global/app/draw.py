"""Draws objects on a frame: tinted masks, outlines and labels, with one colour per identity."""

from __future__ import annotations

import colorsys
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..structures import FrameResult

_GOLDEN_RATIO = (
    math.sqrt(5) - 1
) / 2  # multiples of it, modulo 1, stay far apart: consecutive ids differ in hue
_OPACITY = 0.45
_FONT_SIZES = (11, 40)  # pixels: smaller text is illegible, larger text hides the frame

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]


def colour(identity: int) -> Colour:
    """The (red, green, blue) of an identity, in [0, 255]."""
    hue, value = (identity * _GOLDEN_RATIO) % 1.0, (1.0, 0.8)[identity % 2]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw(
    frame: Tensor, result: FrameResult, classes: Sequence[dict[str, Any]], boxes: bool = False
) -> Tensor:
    """Draws the mask and the label of every object; all other pixels stay unchanged.

    Larger masks are drawn first, so smaller objects stay visible.

    Args:
        frame: (3, H, W) uint8 RGB.
        result: the objects of the frame, with masks of size (H, W).  Labels show no score where it is NaN.
        classes: {id, name} of every class; label k is the k-th.
        boxes: also draw the boxes.

    Returns:
        (3, H, W) uint8 RGB, a new tensor.

    Raises:
        ValueError: if masks and frame differ in size.
    """
    pixels: Pixels = frame.detach().cpu().numpy().copy()
    masks = result.masks.detach().cpu().numpy()
    if len(masks) and masks.shape[1:] != pixels.shape[1:]:
        raise ValueError(f"masks of {masks.shape[1:]} for a frame of {pixels.shape[1:]}")
    areas = [int(np.count_nonzero(mask)) for mask in masks]
    order = [i for i in sorted(range(len(masks)), key=lambda i: -areas[i]) if areas[i]]
    tints = [colour(int(identity)) for identity in result.ids]
    shorter = min(pixels.shape[1:])
    corners = {i: _draw_mask(pixels, masks[i], tints[i], 1 + shorter // 480) for i in order}
    font_size = min(max(round(shorter / 32), _FONT_SIZES[0]), _FONT_SIZES[1])
    for i in order:
        score = float(result.scores[i])
        text = f"#{int(result.ids[i])} {classes[int(result.labels[i])]['name']}"
        text += "" if math.isnan(score) else f" {score:.2f}"
        _paste(pixels, _label(text, tints[i], font_size), corners[i])
    if boxes:
        return _draw_boxes(pixels, {i: [float(x) for x in result.boxes[i]] for i in order}, tints)
    return torch.from_numpy(pixels)


def _draw_mask(pixels: Pixels, mask: NDArray[np.bool_], tint: Colour, thickness: int) -> tuple[int, int]:
    """Tints and outlines a mask in place; returns the (top, left) of its bounding box."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    inside = mask[box]
    outline = inside & ~_erode(inside, thickness)
    for channel, level in zip(pixels, tint, strict=True):
        region = channel[box]
        np.copyto(region, _blend_table(level)[region], where=inside)
        region[outline] = level
    return int(rows[0]), int(columns[0])


def _erode(mask: NDArray[np.bool_], times: int) -> NDArray[np.bool_]:
    """Removes `times` border pixels (4-neighbourhood); pixels outside the array count as background."""
    for _ in range(times):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


@functools.lru_cache(maxsize=256)
def _blend_table(level: int) -> Pixels:
    """(256,) blended value of each pixel value with one colour level."""
    return np.round(np.arange(256) * (1 - _OPACITY) + level * _OPACITY).astype(np.uint8)


@functools.lru_cache(maxsize=512)
def _label(text: str, tint: Colour, font_size: int) -> Pixels:
    """(3, h, w) label: black or white text, whichever has more contrast, on the colour of the identity."""
    font = ImageFont.load_default(font_size)
    left, top, right, bottom = font.getbbox(text)
    margin = max(2, font_size // 5)
    size = (math.ceil(right - left) + 2 * margin, math.ceil(bottom - top) + 2 * margin)
    patch = Image.new("RGB", size, tint)
    bright = 0.299 * tint[0] + 0.587 * tint[1] + 0.114 * tint[2] > 128
    ink = (0, 0, 0) if bright else (255, 255, 255)
    ImageDraw.Draw(patch).text((margin - left, margin - top), text, ink, font)
    return np.ascontiguousarray(np.asarray(patch).transpose(2, 0, 1))


def _paste(pixels: Pixels, label: Pixels, corner: tuple[int, int]) -> None:
    """Copies a label above the (top, left) corner in place, moved or cropped to lie inside the frame."""
    (_, height, width), (_, label_height, label_width) = pixels.shape, label.shape
    top = max(0, min(corner[0] - label_height, height - label_height))
    left = max(0, min(corner[1], width - label_width))
    region = pixels[:, top : top + label_height, left : left + label_width]
    region[:] = label[:, : region.shape[1], : region.shape[2]]


def _draw_boxes(pixels: Pixels, boxes: Mapping[int, Sequence[float]], tints: Sequence[Colour]) -> Tensor:
    """Draws (cx, cy, w, h) boxes in [0, 1], one pixel wide, around the pixels that they contain."""
    height, width = pixels.shape[1:]
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    canvas = ImageDraw.Draw(image)
    for i, (cx, cy, w, h) in boxes.items():
        left, right = round((cx - w / 2) * width) - 1, round((cx + w / 2) * width)
        top, bottom = round((cy - h / 2) * height) - 1, round((cy + h / 2) * height)
        canvas.rectangle((left, top, right, bottom), outline=tints[i])
    return torch.from_numpy(np.array(image).transpose(2, 0, 1).copy())
