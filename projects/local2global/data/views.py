"""What a clip shows of its video: a part of every frame, turned or not, drawn at one size.

All of it is numbers, drawn before a pixel is read: so an image is decoded no larger than it is used, and a mask is
read at the pixels that are used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

#: By how much JPEG files can be decoded smaller, best first.
SHRINKS = (8, 4, 2)


@dataclass(frozen=True)
class View:
    """The geometry of a clip of T frames.

    Attributes:
        source: (height, width) of the video's frames.
        corners: (top, left) of the window in each frame, in pixels of the source.
        window: (height, width) of the window, in pixels of the source.
        size: (height, width) at which the window is drawn.
        flipped: whether the drawn window is mirrored left to right.
        angles: degrees, counter-clockwise, by which each frame is turned before the window is cut; empty: by none.
        centre: (x, y) in [0, 1] of the source, the point about which frames turn.
        canvas: (height, width) of a grey canvas in whose upper left corner the window is put, or None.
    """

    source: tuple[int, int]
    corners: tuple[tuple[int, int], ...]
    window: tuple[int, int]
    size: tuple[int, int]
    flipped: bool = False
    angles: tuple[float, ...] = ()
    centre: tuple[float, float] = (0.5, 0.5)
    canvas: tuple[int, int] | None = None

    #: The grey of a canvas, detectron2's.
    GREY = 128

    @classmethod
    def whole(cls, source: tuple[int, int], length: int) -> View:
        """All of every frame, as it is."""
        return cls(source, ((0, 0),) * length, source, source)

    def __len__(self) -> int:
        """The number of frames T."""
        return len(self.corners)

    def resized(self, size: tuple[int, int]) -> View:
        """The same, drawn at another size."""
        return replace(self, size=size)

    def mirrored(self) -> View:
        """The same, seen in a mirror."""
        return replace(self, flipped=not self.flipped)

    def cut(self, corners: list[tuple[int, int]], size: tuple[int, int]) -> View:
        """A part of what is drawn.

        Where what is drawn is not the source's own size, the part is moved by at most a pixel of the source, to one
        with even coordinates: so it is the same part of an image decoded at half its size.

        Args:
            corners: (top, left) of the part in each frame, in drawn pixels.
            size: (height, width) of the part, in drawn pixels.
        """
        scale = [whole / drawn for whole, drawn in zip(self.window, self.size, strict=True)]
        high, wide = (
            whole if side == drawn else min(max(_snap(side, by), 1), whole)
            for side, drawn, by, whole in zip(size, self.size, scale, self.window, strict=True)
        )
        moved = []
        for (top, left), (y, x) in zip(self.corners, corners, strict=True):
            x = self.size[1] - size[1] - x if self.flipped else x
            down = min(_snap(y, scale[0]), self.window[0] - high)
            right = min(_snap(x, scale[1]), self.window[1] - wide)
            moved.append((top + down, left + right))
        return replace(self, corners=tuple(moved), window=(high, wide), size=size)

    @property
    def shrink(self) -> int:
        """By how much the frames can be decoded smaller without becoming smaller than they are drawn."""
        if self.angles:
            return 1
        numbers = {*self.source, *self.window, *(n for corner in self.corners for n in corner)}
        for factor in SHRINKS:
            smaller = all(
                drawn * factor <= whole for drawn, whole in zip(self.size, self.window, strict=True)
            )
            if smaller and not any(n % factor for n in numbers):
                return factor
        return 1

    def draw(self, image: Tensor, i: int) -> Tensor:
        """What frame `i` of the clip shows.

        Args:
            image: (3, H, W) uint8, the source frame, or smaller by `shrink` or less.
            i: the frame's position in the clip.

        Returns:
            (3, h, w) uint8: bilinear, antialiased where it shrinks.
        """
        shrink = self.source[0] // image.shape[1]
        top, left, high, wide = (n // shrink for n in (*self.corners[i], *self.window))
        part = self._turned(image, i) if self.angles else image[:, top : top + high, left : left + wide]
        if tuple(part.shape[1:]) != self.size:
            part = functional.interpolate(part[None], size=list(self.size), mode="bilinear", antialias=True)[
                0
            ]
        part = part.flip(-1) if self.flipped else part
        return part if self.canvas is None else self._on_canvas(part, self.GREY)

    def rows(self, i: int) -> NDArray[np.int64]:
        """(h,) the source row in the middle of each drawn row of frame `i`."""
        return self.corners[i][0] + _middles(self.size[0], self.window[0])

    def columns(self, i: int) -> NDArray[np.int64]:
        """(w,) the source column in the middle of each drawn column of frame `i`."""
        columns = self.corners[i][1] + _middles(self.size[1], self.window[1])
        return columns[::-1].copy() if self.flipped else columns

    def place(self, masks: Tensor) -> Tensor:
        """(M, h, w) masks read at `rows` and `columns`, put on the canvas."""
        return masks if self.canvas is None else self._on_canvas(masks, False)

    def turn_masks(self, masks: Tensor, i: int) -> Tensor:
        """(M, H, W) masks of the source frame as the turned frame `i` shows them: (M, h, w) before the canvas."""
        x, y = self._sources(self.columns(i), self.rows(i), i)
        x, y = x.floor().long(), y.floor().long()
        inside = (x >= 0) & (x < self.source[1]) & (y >= 0) & (y < self.source[0])
        where = (y.clamp(0, self.source[0] - 1) * self.source[1] + x.clamp(0, self.source[1] - 1)).flatten()
        # Eight masks are moved at a time, as the bits of one plane of bytes.
        planes = torch.from_numpy(np.packbits(masks.numpy(), axis=0)).flatten(1)
        moved = torch.stack([plane.take(where) for plane in planes]) if len(planes) else planes[:, where]
        unpacked = np.unpackbits(moved.numpy(), axis=0, count=len(masks)).astype(bool)
        return torch.from_numpy(unpacked).view(-1, *inside.shape) & inside

    def _on_canvas(self, pixels: Tensor, fill: float) -> Tensor:
        assert self.canvas is not None
        below, beside = (whole - part for whole, part in zip(self.canvas, pixels.shape[-2:], strict=True))
        return functional.pad(pixels, (0, beside, 0, below), value=fill)

    def _turned(self, image: Tensor, i: int) -> Tensor:
        """(3, *window) the window of the turned image, black beyond its border."""
        (top, left), (high, wide) = self.corners[i], self.window
        x, y = self._sources(np.arange(left, left + wide), np.arange(top, top + high), i)
        height, width = self.source
        grid = torch.stack((2 * x / width - 1, 2 * y / height - 1), dim=-1)[None]
        turned = functional.grid_sample(image[None].float(), grid, align_corners=False)[0]
        return turned.round_().to(torch.uint8)

    def _sources(self, columns: NDArray[np.int64], rows: NDArray[np.int64], i: int) -> tuple[Tensor, Tensor]:
        """Where the middles of a turned frame's pixels come from: x and y, (h, w) each, in source pixels."""
        cos, sin = math.cos(math.radians(self.angles[i])), math.sin(math.radians(self.angles[i]))
        centre_x, centre_y = self.centre[0] * self.source[1], self.centre[1] * self.source[0]
        x = (torch.from_numpy(columns).float() + 0.5 - centre_x)[None]
        y = (torch.from_numpy(rows).float() + 0.5 - centre_y)[:, None]
        return centre_x + cos * x - sin * y, centre_y + sin * x + cos * y


def _snap(drawn: int, scale: float) -> int:
    """Drawn pixels in source pixels: the nearest even number, or exactly as many."""
    return drawn if scale == 1 else 2 * round(drawn * scale / 2)


def _middles(drawn: int, whole: int) -> NDArray[np.int64]:
    """The pixel of `whole` that lies in the middle of each of `drawn` equal parts."""
    return ((2 * np.arange(drawn, dtype=np.int64) + 1) * whole) // (2 * drawn)
