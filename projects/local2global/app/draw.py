"""What the model saw, drawn on the frame: tinted masks, contours and labels, one colour per identity."""

from __future__ import annotations

import colorsys
import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..structures import FrameResult

_GOLDEN = (
    math.sqrt(5) - 1
) / 2  # steps of this fraction of the hue circle never come close to an earlier hue soon
_OPACITY = 0.45
_LABEL_SHARE = 32  # a label's letters are this part of the frame's shorter edge
_LETTERS = (11, 40)  # pixels: below the first no letter is legible, above the second labels hide the picture

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]


def colour(identity: int) -> Colour:
    """The (red, green, blue) of an identity: always the same, far from its neighbours'."""
    hue = (identity * _GOLDEN) % 1.0
    value = (1.0, 0.8)[identity % 2]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw(frame: Tensor, result: FrameResult, classes: Sequence[dict[str, Any]]) -> Tensor:
    """Draws every reported object: its mask tinted and outlined, its label above it.

    Large masks are drawn first so that small ones stay on top.  Outside masks and labels no pixel changes.

    Args:
        frame: (3, H, W) uint8 RGB.
        result: the objects of this frame, masks of H x W; a score of NaN, as truth has it, is not written.
        classes: the model's classes; label k is the k-th.

    Returns:
        (3, H, W) uint8 RGB, a new tensor.

    Raises:
        ValueError: if the masks have another size than the frame.
    """
    pixels: Pixels = frame.detach().cpu().numpy().copy()
    if tuple(result.masks.shape[1:]) != pixels.shape[1:] and len(result.masks):
        raise ValueError(f"masks of {tuple(result.masks.shape[1:])} for a frame of {pixels.shape[1:]}")
    masks = result.masks.detach().cpu().numpy()
    order = sorted(range(len(masks)), key=lambda i: -int(np.count_nonzero(masks[i])))
    shorter = min(pixels.shape[1:])
    anchors = {i: _paint(pixels, masks[i], colour(int(result.ids[i])), 1 + shorter // 480) for i in order}
    letters = min(max(round(shorter / _LABEL_SHARE), _LETTERS[0]), _LETTERS[1])
    for i in order:
        anchor = anchors[i]
        if anchor is not None:
            name = classes[int(result.labels[i])]["name"]
            identity = int(result.ids[i])
            score = float(result.scores[i])
            text = f"#{identity} {name}" + ("" if math.isnan(score) else f" {score:.2f}")
            _paste(pixels, _label(text, colour(identity), letters), anchor)
    return torch.from_numpy(pixels)


def contact_sheet(frames: Sequence[Tensor], path: str | Path, columns: int = 4) -> None:
    """Writes frames of one size side by side into one image file.

    Args:
        frames: (3, H, W) uint8 RGB each, at least one.
        path: a .png or .jpg file; it appears only when it is whole.
        columns: frames in a row.

    Raises:
        ValueError: without frames, or with frames of several sizes.
    """
    if not frames or len({tuple(frame.shape) for frame in frames}) != 1:
        raise ValueError(f"expected frames of one size, got {sorted({tuple(f.shape) for f in frames})}")
    gap = 2
    _, height, width = frames[0].shape
    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for index, frame in enumerate(frames):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = frame.detach().cpu().permute(1, 2, 0).numpy()
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".tmp")
    Image.fromarray(sheet).save(
        temporary, format=Image.registered_extensions().get(target.suffix.lower(), "PNG")
    )
    os.replace(temporary, target)


def _paint(pixels: Pixels, mask: NDArray[np.bool_], tint: Colour, thickness: int) -> tuple[int, int] | None:
    """Tints and outlines one mask in place; returns the (top, left) of its box, None for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    inside = mask[box]
    outline = inside & ~_erode(inside, thickness)
    for channel, level in zip(pixels, tint, strict=True):
        region = channel[box]
        np.copyto(region, _blend_table(level)[region], where=inside)
        region[outline] = level
    return int(rows[0]), int(columns[0])


def _erode(mask: NDArray[np.bool_], times: int) -> NDArray[np.bool_]:
    """The mask without its outermost `times` pixels (4-neighbourhood; beyond the array nothing is set)."""
    for _ in range(times):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


@functools.lru_cache(maxsize=256)
def _blend_table(level: int) -> Pixels:
    return np.round(np.arange(256) * (1 - _OPACITY) + level * _OPACITY).astype(np.uint8)


@functools.lru_cache(maxsize=8)
def _font(letters: int) -> Any:
    return ImageFont.load_default(letters)


@functools.lru_cache(maxsize=512)
def _label(text: str, tint: Colour, letters: int) -> Pixels:
    """(3, h, w): a box of the identity's colour with the text in black or white, whichever reads better."""
    font = _font(letters)
    left, top, right, bottom = font.getbbox(text)
    margin = max(2, letters // 5)
    size = (math.ceil(right - left) + 2 * margin, math.ceil(bottom - top) + 2 * margin)
    patch = Image.new("RGB", size, tint)
    bright = 0.299 * tint[0] + 0.587 * tint[1] + 0.114 * tint[2] > 128
    ImageDraw.Draw(patch).text(
        (margin - left, margin - top), text, (0, 0, 0) if bright else (255, 255, 255), font
    )
    return np.ascontiguousarray(np.asarray(patch).transpose(2, 0, 1))


def _paste(pixels: Pixels, label: Pixels, anchor: tuple[int, int]) -> None:
    """Puts a label above `anchor`, or as near as the frame allows."""
    _, height, width = pixels.shape
    _, tall, wide = label.shape
    top = max(0, min(anchor[0] - tall, height - tall))
    left = max(0, min(anchor[1], width - wide))
    tall, wide = min(tall, height - top), min(wide, width - left)
    pixels[:, top : top + tall, left : left + wide] = label[:, :tall, :wide]
