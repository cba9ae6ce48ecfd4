"""Backgrounds of generated panoptic videos: regions of stuff with moving borders.

A stuff class is recognisable by colour and texture, independent of the position of its region.  As in `scene.py`, all
quantities are closed-form functions of the time t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from .scene import Background, Floats


@dataclass(frozen=True)
class Material:
    """The appearance of a stuff class.

    Attributes:
        colour: (r, g, b) in [0, 1].
        waves: the number of plane waves in its texture.
        lengths: the shortest and longest wavelength, as a fraction of the frame's shorter edge.
        turn: the smallest and largest angle of a wave's direction from the horizontal, in radians.
        strength: amplitude of the texture.
        hardness: sharpness of the transition from bright to dark.
    """

    colour: tuple[float, float, float]
    waves: int
    lengths: tuple[float, float]
    turn: tuple[float, float]
    strength: float
    hardness: float

    def draw(self, draw: Generator, size: tuple[int, int]) -> Background:
        """A random texture of this material for frames of (height, width)."""
        turn = draw.uniform(*self.turn, self.waves)
        wavelength = draw.uniform(*self.lengths, self.waves) * min(size)
        waves = np.stack([np.cos(turn), np.sin(turn), draw.uniform(0, 1, self.waves) * wavelength], 1)
        tint = self.strength / math.sqrt(self.waves) * draw.uniform(0.7, 1.3, (3, 1)) * np.ones(self.waves)
        heading, speed = draw.uniform(0, 2 * np.pi), draw.uniform(0.1, 0.8)
        return Background(
            mean=(np.array(self.colour) + draw.uniform(-0.07, 0.07, 3)).astype(np.float32),
            tint=tint.astype(np.float32),
            waves=waves * (2 * np.pi / wavelength)[:, None],
            pan=(speed * math.cos(heading), speed * math.sin(heading)),
            hardness=self.hardness,
        )


MATERIALS = {
    "sky": Material((0.55, 0.72, 0.92), 3, (0.8, 2.0), (0, np.pi), 0.06, 1.0),
    "water": Material((0.12, 0.32, 0.50), 2, (0.08, 0.16), (1.4, 1.75), 0.10, 8.0),
    "grass": Material((0.25, 0.48, 0.16), 5, (0.05, 0.15), (0, np.pi), 0.12, 3.0),
    "sand": Material((0.80, 0.68, 0.46), 2, (0.10, 0.22), (0.5, 1.0), 0.06, 4.0),
}
"""The stuff classes."""


@dataclass(frozen=True)
class Border:
    """The upper border of a region: a travelling wave that rises, falls and tilts.

    Attributes:
        level: mean height, y in pixels.
        swing: amplitude of the vertical movement of the whole border, in pixels.
        wave: amplitude of the wave, in pixels.
        length: wavelength in pixels.
        tilt: the largest slope.
        period: frames of a full cycle of the movements.
        phase: phase of the movements, in cycles.
    """

    level: float
    swing: float
    wave: float
    length: float
    tilt: float
    period: float
    phase: float

    def height(self, t: float, width: int) -> Floats:
        """(width,) y of the border at each column's centre."""
        x = np.arange(width, dtype=np.float32) + np.float32(0.5)
        turn = 2 * math.pi * (t / self.period + self.phase)
        along = np.sin(np.float32(2 * math.pi / self.length) * x + np.float32(1.7 * turn))
        lean = np.float32(self.tilt * math.sin(0.7 * turn)) * (x - np.float32(width / 2))
        return np.asarray(self.level + self.swing * math.sin(turn) + self.wave * along + lean, np.float32)


@dataclass(frozen=True)
class Landscape:
    """Regions of stuff, one below another; a later region covers earlier ones.

    Attributes:
        labels: distinct positions in `MATERIALS`.
        textures: the texture of each region.
        borders: the upper border of each region but the first, which fills the remaining pixels.
    """

    labels: tuple[int, ...]
    textures: tuple[Background, ...]
    borders: tuple[Border, ...]

    @property
    def means(self) -> Floats:
        """(n, 3) the materials' colours."""
        return np.stack([texture.mean for texture in self.textures])

    def paint(self, t: float, size: tuple[int, int]) -> Floats:
        """(3, H, W) RGB at time t."""
        image = np.zeros((3, *size), np.float32)
        for region, texture in zip(self.regions(t, size), self.textures, strict=True):
            image[:, region] = texture.paint(t, size)[:, region]
        return image

    def regions(self, t: float, size: tuple[int, int]) -> NDArray[np.bool_]:
        """(n, H, W) a partition of the frame."""
        y = np.arange(size[0], dtype=np.float32)[:, None] + np.float32(0.5)
        owner = np.zeros(size, np.int64)
        for row, border in enumerate(self.borders, 1):
            # Pixels below a later border belong to its region, also where borders cross.
            owner[y > border.height(t, size[1])] = row
        return np.asarray(owner == np.arange(len(self.labels))[:, None, None])


def draw_landscape(draw: Generator, size: tuple[int, int], stuff: tuple[str, ...]) -> Landscape:
    """Two or three regions of different materials from the named ones."""
    height, width = size
    count = min(len(stuff), int(draw.integers(2, 4)))
    names = [stuff[i] for i in draw.permutation(len(stuff))[:count]]
    levels = np.arange(1, count) / count + draw.uniform(-0.08, 0.08, count - 1)
    borders = [
        Border(
            level=float(level) * height,
            swing=float(draw.uniform(0.02, 0.08)) * height,
            wave=float(draw.uniform(0.01, 0.05)) * height,
            length=float(draw.uniform(0.3, 0.9)) * width,
            tilt=float(draw.uniform(0.0, 0.12)),
            period=float(draw.uniform(30, 60)),
            phase=float(draw.uniform(0, 1)),
        )
        for level in levels
    ]
    textures = [MATERIALS[name].draw(draw, size) for name in names]
    return Landscape(tuple(list(MATERIALS).index(name) for name in names), tuple(textures), tuple(borders))
