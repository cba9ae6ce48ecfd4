"""The geometry of a clip: a window of every frame, optionally rotated, drawn at one output size.

Geometry is drawn before pixels are read, so images are decoded no larger than needed and masks are sampled only at
output pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

#: Factors by which a JPEG file can be decoded smaller, largest first.
SHRINKS = (8, 4, 2)


@dataclass(frozen=True)
class View:
    """The geometry of a clip of T frames.

    Attributes:
        source: (height, width) of the video's frames.
        corners: (top, left) of the window in each frame, in source pixels.
        window: (height, width) of the window, in source pixels.
        size: (height, width) of the output.
        flipped: whether the output is mirrored left to right.
        angles: degrees, counter-clockwise, by which each frame is rotated before the window is cut; empty for none.
        centre: (x, y) in [0, 1] of the source, the centre of rotation.
        canvas: (height, width) of a grey canvas with the output in its upper left corner, or None.
    """

    source: tuple[int, int]
    corners: tuple[tuple[int, int], ...]
    window: tuple[int, int]
    size: tuple[int, int]
    flipped: bool = False
    angles: tuple[float, ...] = ()
    centre: tuple[float, float] = (0.5, 0.5)
    canvas: tuple[int, int] | None = None

    #: The canvas's grey value, as in detectron2.
    GREY: ClassVar[int] = 128

    @classmethod
    def whole(cls, source: tuple[int, int], length: int) -> View:
        """The unchanged frames."""
        return cls(source, ((0, 0),) * length, source, source)

    def __len__(self) -> int:
        """The number of frames T."""
        return len(self.corners)

    def resized(self, size: tuple[int, int]) -> View:
        """The same window with another output size."""
        return replace(self, size=size)

    def mirrored(self) -> View:
        """The same window, mirrored left to right."""
        return replace(self, flipped=not self.flipped)

    def cut(self, corners: list[tuple[int, int]], size: tuple[int, int]) -> View:
        """A crop of the output.

        Where the output is resized, the crop is moved by at most one source pixel to even coordinates, so that it is
        the same crop of an image decoded at half size.

        Args:
            corners: (top, left) of the crop in each frame, in output pixels.
            size: (height, width) of the crop, in output pixels.
        """
        scale = [window / output for window, output in zip(self.window, self.size, strict=True)]
        height, width = (
            window if side == output else min(max(_snap(side, factor), 1), window)
            for side, output, factor, window in zip(size, self.size, scale, self.window, strict=True)
        )
        moved = []
        for (top, left), (y, x) in zip(self.corners, corners, strict=True):
            x = self.size[1] - size[1] - x if self.flipped else x
            down = min(_snap(y, scale[0]), self.window[0] - height)
            right = min(_snap(x, scale[1]), self.window[1] - width)
            moved.append((top + down, left + right))
        return replace(self, corners=tuple(moved), window=(height, width), size=size)

    @property
    def shrink(self) -> int:
        """The factor by which frames can be decoded smaller without becoming smaller than the output."""
        if self.angles:
            return 1
        numbers = {*self.source, *self.window, *(n for corner in self.corners for n in corner)}
        for factor in SHRINKS:
            fits = all(out * factor <= window for out, window in zip(self.size, self.window, strict=True))
            if fits and not any(n % factor for n in numbers):
                return factor
        return 1

    def draw(self, image: Tensor, i: int) -> Tensor:
        """Frame `i` of the clip.

        Args:
            image: (3, H, W) uint8, the source frame, decoded smaller by at most `shrink`.
            i: the frame's position in the clip.

        Returns:
            (3, h, w) uint8: bilinear, antialiased when shrinking.
        """
        shrink = self.source[0] // image.shape[1]
        top, left, height, width = (n // shrink for n in (*self.corners[i], *self.window))
        part = self._rotated(image, i) if self.angles else image[:, top : top + height, left : left + width]
        if tuple(part.shape[1:]) != self.size:
            size = list(self.size)
            part = functional.interpolate(part[None], size=size, mode="bilinear", antialias=True)[0]
        part = part.flip(-1) if self.flipped else part
        return part if self.canvas is None else self._on_canvas(part, self.GREY)

    def rows(self, i: int) -> NDArray[np.int64]:
        """(h,) the source row at the middle of each output row of frame `i`."""
        return self.corners[i][0] + _middles(self.size[0], self.window[0])

    def columns(self, i: int) -> NDArray[np.int64]:
        """(w,) the source column at the middle of each output column of frame `i`."""
        columns = self.corners[i][1] + _middles(self.size[1], self.window[1])
        return columns[::-1].copy() if self.flipped else columns

    def place(self, masks: Tensor) -> Tensor:
        """(M, h, w) masks sampled at `rows` and `columns`, put on the canvas."""
        return masks if self.canvas is None else self._on_canvas(masks, False)

    def rotate_masks(self, masks: Tensor, i: int) -> Tensor:
        """(M, H, W) masks of the source frame as (M, h, w) masks of the rotated frame `i`, without the canvas."""
        x, y = self._sources(self.columns(i), self.rows(i), i)
        x, y = x.floor().long(), y.floor().long()
        inside = (x >= 0) & (x < self.source[1]) & (y >= 0) & (y < self.source[0])
        indices = y.clamp(0, self.source[0] - 1) * self.source[1] + x.clamp(0, self.source[1] - 1)
        return masks.flatten(1)[:, indices.flatten()].view(-1, *inside.shape) & inside

    def _on_canvas(self, pixels: Tensor, fill: float) -> Tensor:
        assert self.canvas is not None
        below, right = (side - part for side, part in zip(self.canvas, pixels.shape[-2:], strict=True))
        return functional.pad(pixels, (0, right, 0, below), value=fill)

    def _rotated(self, image: Tensor, i: int) -> Tensor:
        """(3, *window) the window of the rotated image, black outside the image."""
        (top, left), (height, width) = self.corners[i], self.window
        x, y = self._sources(np.arange(left, left + width), np.arange(top, top + height), i)
        grid = torch.stack((2 * x / self.source[1] - 1, 2 * y / self.source[0] - 1), dim=-1)[None]
        rotated = functional.grid_sample(image[None].float(), grid, align_corners=False)[0]
        return rotated.round_().to(torch.uint8)

    def _sources(self, columns: NDArray[np.int64], rows: NDArray[np.int64], i: int) -> tuple[Tensor, Tensor]:
        """The source positions of the pixel centres of the rotated frame `i`: x and y, (h, w) each, in pixels."""
        cos, sin = math.cos(math.radians(self.angles[i])), math.sin(math.radians(self.angles[i]))
        centre_x, centre_y = self.centre[0] * self.source[1], self.centre[1] * self.source[0]
        x = (torch.from_numpy(columns).float() + 0.5 - centre_x)[None]
        y = (torch.from_numpy(rows).float() + 0.5 - centre_y)[:, None]
        return centre_x + cos * x - sin * y, centre_y + sin * x + cos * y


def _snap(pixels: int, scale: float) -> int:
    """Output pixels as source pixels: rounded to an even number, exact at scale 1."""
    return pixels if scale == 1 else 2 * round(pixels * scale / 2)


def _middles(parts: int, length: int) -> NDArray[np.int64]:
    """The pixel of `length` at the middle of each of `parts` equal parts."""
    return ((2 * np.arange(parts, dtype=np.int64) + 1) * length) // (2 * parts)
