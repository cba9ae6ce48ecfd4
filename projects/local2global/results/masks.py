"""Mask logits at the source's size: bilinear upsampling, thresholding at 0 and COCO run-length encoding."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

#: Output pixels up to which all masks are upsampled in one call.  Above, each mask is cropped to its occupied box.
SMALL_MASK = 1 << 16


@functools.lru_cache(maxsize=16)  # all masks of a video have the same two axes
def _taps(outputs: int, extent: float, inputs: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Bilinear taps of one axis.

    The centre of output pixel X is at (X + .5) / outputs * extent - .5 in input pixels, clamped to the valid range.

    Args:
        outputs: number of output pixels.
        extent: length of the unpadded frame in input pixels.
        inputs: number of input pixels, padding included.
        device: device of the result.

    Returns:
        the lower input pixel, the upper input pixel and the weight of the upper one, (outputs,) each.
    """
    last = min(max(math.ceil(extent), 1), inputs) - 1
    centres = torch.arange(outputs, dtype=torch.float64) + 0.5
    position = (centres * (extent / outputs) - 0.5).clamp(0, last)
    low = position.floor().long()
    return low.to(device), (low + 1).clamp(max=last).to(device), (position - low).float().to(device)


def _interpolate(logits: Tensor, taps: Iterable[Tensor], dim: int) -> Tensor:
    """Linear interpolation of (n, ., .) logits along `dim`, 1 or 2."""
    low, high, weight = taps
    weight = weight if dim == 2 else weight[:, None]
    return logits.index_select(dim, low).lerp_(logits.index_select(dim, high), weight)


def _span(occupied: Tensor, low: Tensor, high: Tensor) -> slice:
    """Range of output pixels with a tap on an occupied input line; `occupied` is (inputs,) bool."""
    if occupied.is_cuda:  # finding the range would synchronise the device and costs more than it saves
        return slice(0, len(low))
    reached = (occupied[low] | occupied[high]).nonzero()[:, 0]
    return slice(int(reached[0]), int(reached[-1]) + 1) if len(reached) else slice(0, 0)


def decode_columns(logits: Tensor, extent: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """`decode_masks` in column-major order, (n, W, H), the pixel order of COCO run lengths."""
    count, height, width = logits.shape
    columns = _taps(size[1], extent[0], width, logits.device)
    rows = _taps(size[0], extent[1], height, logits.device)
    valid = logits[:, : int(rows[1][-1]) + 1, : int(columns[1][-1]) + 1]
    valid = valid.float().transpose(1, 2).contiguous()
    out = torch.zeros((count, size[1], size[0]), dtype=torch.bool, device=logits.device)
    batch = max(1, count) if logits.is_cuda or size[0] * size[1] <= SMALL_MASK else 1
    for start in range(0, count, batch):
        chunk = valid[start : start + batch]
        maximum = chunk.amax(0)
        x, y = _span(maximum.amax(1) > 0, *columns[:2]), _span(maximum.amax(0) > 0, *rows[:2])
        if x.start == x.stop or y.start == y.stop:
            continue
        tall = _interpolate(chunk, (tap[y] for tap in rows), dim=2)
        full = _interpolate(tall, (tap[x] for tap in columns), dim=1)
        torch.gt(full, 0, out=out[start : start + batch, x, y])
    return out


def decode_masks(logits: Tensor, extent: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """Binary masks at the source's size: bilinear upsampling (`align_corners=False`), then logit > 0.

    Args:
        logits: (n, h, w) mask logits; pixels beyond `extent` are padding and are ignored.
        extent: (width, height) of the unpadded frame in mask pixels.
        size: (H, W) of the output.

    Returns:
        (n, H, W) bool.
    """
    return decode_columns(logits, extent, size).transpose(1, 2)


def resize_logits(logits: Tensor, extent: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """Mask logits at the source's size; `decode_masks` without thresholding.

    Args:
        logits: (n, h, w) float32 mask logits.
        extent: (width, height) of the unpadded frame in mask pixels.
        size: (H, W) of the output.

    Returns:
        (n, H, W) float32.
    """
    height, width = logits.shape[1:]
    tall = _interpolate(logits, _taps(size[0], extent[1], height, logits.device), dim=1)
    return _interpolate(tall, _taps(size[1], extent[0], width, logits.device), dim=2)


def encode_columns(masks: Tensor) -> list[str]:
    """COCO counts of (n, W, H) bool masks on the CPU."""
    return [_counts(mask) for mask in masks.numpy()]


def _counts(mask: NDArray[np.bool_]) -> str:
    """COCO counts of a (W, H) mask; only its columns from the first to the last pixel are read in detail."""
    width, height = mask.shape
    filled = np.flatnonzero(mask.any(1))
    edges = [0]
    if len(filled):
        start, stop = int(filled[0]) * height, (int(filled[-1]) + 1) * height
        inside = mask.reshape(-1)[start:stop]
        changes = np.flatnonzero(inside[1:] != inside[:-1]) + (start + 1)
        edges += [start] * bool(inside[0]) + changes.tolist()
        edges += [stop] * bool(inside[-1] and stop < width * height)
    runs = np.diff(np.array([*edges, width * height]))
    rle = coco_mask.frPyObjects({"counts": runs.tolist(), "size": [height, width]}, height, width)
    return str(rle["counts"].decode("ascii"))
