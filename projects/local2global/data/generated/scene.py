"""What a generated frame shows: textured bodies on their paths before a panning background, and its painting.

The pixel in column c and row r has its centre at x = c + 1/2, y = r + 1/2.  Everything is closed form in the
time t, so no frame needs another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SHUTTER = 0.3
"""The part of a frame's time in which light falls on the sensor: what moves is smeared over it."""

REACH = 1.16
"""No outline goes further from its centre, in units of an object's radius."""


def _disc(x: Floats, y: Floats) -> Floats:
    return np.asarray(np.hypot(x, y) - np.float32(0.92), np.float32)


def _square(x: Floats, y: Floats) -> Floats:
    return np.asarray(np.maximum(np.abs(x), np.abs(y)) - np.float32(0.82), np.float32)


def _triangle(x: Floats, y: Floats) -> Floats:
    sides = np.maximum(np.float32(math.sqrt(0.75)) * np.abs(x) - np.float32(0.5) * y, y)
    return np.asarray(sides - np.float32(REACH / 2), np.float32)


def _star(x: Floats, y: Floats) -> Floats:
    """Five points: every tenth of the plane is folded onto the one between a notch, at angle 0, and a tip."""
    half, notch = math.pi / 5, 0.5
    angle = np.abs(np.mod(np.arctan2(y, x), np.float32(2 * half)) - np.float32(half))
    along, across = REACH * math.cos(half) - notch, REACH * math.sin(half)
    radius, edge = np.hypot(x, y), math.hypot(along, across)
    outward = across * (radius * np.cos(angle) - notch) - along * radius * np.sin(angle)
    return np.asarray(outward / edge, np.float32)


def _cross(x: Floats, y: Floats) -> Floats:
    x, y = np.abs(x), np.abs(y)
    ends, sides = np.maximum(x, y) - np.float32(1.08), np.minimum(x, y) - np.float32(0.34)
    return np.asarray(np.maximum(ends, sides), np.float32)


def _ring(x: Floats, y: Floats) -> Floats:
    return np.asarray(np.abs(np.hypot(x, y) - np.float32(0.75)) - np.float32(0.27), np.float32)


OUTLINES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "disc": _disc,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
}
"""Signed distance from each class's outline in units of the radius, negative within."""

_OUTLINES = tuple(OUTLINES.values())

SOLID = tuple(k for k, name in enumerate(OUTLINES) if name in ("disc", "square"))
"""Labels of the classes that can hide another: a circle of 0.82 radii fits into them."""


class Path(Protocol):
    """Where an object's centre is."""

    def __call__(self, t: float) -> tuple[float, float]:
        """(x, y) in pixels at time t."""


@dataclass(frozen=True)
class Orbit:
    """A Lissajous curve round the middle of the frame: it crosses everything and never ends."""

    middle: tuple[float, float]
    reach: tuple[float, float]
    period: tuple[float, float]
    phase: tuple[float, float]

    def __call__(self, t: float) -> tuple[float, float]:
        """(x, y) at time t."""
        axes = zip(self.middle, self.reach, self.period, self.phase, strict=True)
        x, y = (
            middle + reach * math.sin(2 * math.pi * (t / period + phase))
            for middle, reach, period, phase in axes
        )
        return x, y


@dataclass(frozen=True)
class Meeting:
    """An object's own path, left every `cycle` frames to stay for `stay` frames at another object's centre.

    Attributes:
        own: the path elsewhere.
        host: the path of the object that is met.
        at: the middle of a meeting, in frames.
        stay: how long both centres are one.
        ramp: frames of coming, and again of going.
        cycle: frames from one meeting to the next.
    """

    own: Path
    host: Path
    at: float
    stay: float
    ramp: float
    cycle: float

    def __call__(self, t: float) -> tuple[float, float]:
        """(x, y) at time t."""
        away = abs((t - self.at + self.cycle / 2) % self.cycle - self.cycle / 2) - self.stay / 2
        free = min(max(away / self.ramp, 0.0), 1.0)
        free = free * free * (3 - 2 * free)
        (x, y), (host_x, host_y) = self.own(t), self.host(t)
        return host_x + free * (x - host_x), host_y + free * (y - host_y)


@dataclass(frozen=True)
class Look:
    """Two colours mixed by a pattern of two waves that turns and grows with its object.

    Attributes:
        colours: (2, 3) RGB in [0, 1].
        waves: (2, 3) radians per radius along x and along y, and phase.
        mix: weights of the first wave, the second, and their product.
        hardness: how sharply one colour passes into the other.
    """

    colours: Floats
    waves: Floats
    mix: tuple[float, float, float]
    hardness: float

    def paint(self, x: Floats, y: Floats) -> Floats:
        """(3, h, w) RGB at object coordinates (h, w)."""
        first, second = (np.sin(kx * x + ky * y + phase) for kx, ky, phase in self.waves)
        tone = self.mix[0] * first + self.mix[1] * second + self.mix[2] * first * second
        share = 0.5 + 0.5 * np.tanh(self.hardness * tone)
        dark, light = self.colours[:, :, None, None]
        return np.asarray(dark + share * (light - dark), np.float32)


@dataclass(frozen=True)
class Body:
    """One object."""

    label: int
    look: Look
    radius: float
    path: Path
    angle: float
    spin: float
    pulse: float

    def local(self, t: float, x: Floats, y: Floats) -> tuple[Floats, Floats, float]:
        """Object coordinates, in radii, of the pixels (1, w), (h, 1), and the radius at time t in pixels."""
        centre_x, centre_y = self.path(t)
        radius = self.size(t)
        turn = self.angle + self.spin * t
        cos, sin = math.cos(turn) / radius, math.sin(turn) / radius
        dx, dy = x - np.float32(centre_x), y - np.float32(centre_y)
        along, across = np.float32(cos) * dx, np.float32(sin) * dx
        return along + np.float32(sin) * dy, np.float32(cos) * dy - across, radius

    def size(self, t: float) -> float:
        """The radius at time t in pixels."""
        return self.radius * (1 + self.pulse * math.sin(0.11 * t + self.angle))

    def depth_within(self, t: float, x: Floats, y: Floats) -> Floats:
        """(h, w) pixels from the outline, positive within."""
        u, v, radius = self.local(t, x, y)
        return -radius * _OUTLINES[self.label](u, v)

    def window(self, t: float, size: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of the frame that the object and its smear can touch."""
        (x, y), (dx, dy) = self.path(t), self.path(t + SHUTTER / 2)
        far = REACH * self.size(t) + 2
        top, left = y - far - abs(dy - y), x - far - abs(dx - x)
        bottom, right = y + far + abs(dy - y), x + far + abs(dx - x)
        rows = slice(min(max(math.floor(top), 0), size[0]), min(max(math.ceil(bottom), 0), size[0]))
        columns = slice(min(max(math.floor(left), 0), size[1]), min(max(math.ceil(right), 0), size[1]))
        return rows, columns


@dataclass(frozen=True)
class Background:
    """Waves that pan: smooth noise, a gradient, or stripes.

    Attributes:
        mean: (3,) RGB in [0, 1].
        tint: (3, n) what each wave adds to each channel.
        waves: (n, 3) radians per pixel along x and along y, and phase.
        pan: pixels a frame along x and y.
        hardness: how sharply bright passes into dark.
    """

    mean: Floats
    tint: Floats
    waves: NDArray[np.float64]
    pan: tuple[float, float]
    hardness: float

    @property
    def means(self) -> Floats:
        """(1, 3) the colour that objects should stand out from."""
        return self.mean[None]

    @property
    def labels(self) -> tuple[int, ...]:
        """No region of it has a class."""
        return ()

    def regions(self, t: float, size: tuple[int, int]) -> NDArray[np.bool_]:
        """(0, H, W)."""
        return np.zeros((0, *size), dtype=np.bool_)

    def paint(self, t: float, size: tuple[int, int]) -> Floats:
        """(3, H, W) RGB at time t.

        A plane wave is a sum of two products of one wave in x and one in y, so a frame is one matrix product.
        """
        kx, ky, phase = self.waves.T[:, :, None]
        x = kx * (np.arange(size[1]) + self.pan[0] * t)
        y = ky * (np.arange(size[0]) + self.pan[1] * t) + phase
        across = np.concatenate([np.sin(x), np.cos(x)]).astype(np.float32)
        down = np.concatenate([np.cos(y), np.sin(y)]).T.astype(np.float32)
        tint = np.tile(self.tint, 2)[:, None, :]
        waves = np.tanh(self.hardness * ((tint * down) @ across)) / np.float32(self.hardness)
        return np.asarray(self.mean[:, None, None] + waves, np.float32)


class Ground(Protocol):
    """What is behind the objects: a `Background`, or regions of stuff."""

    @property
    def means(self) -> Floats:
        """(n, 3) colours that objects should stand out from."""

    @property
    def labels(self) -> tuple[int, ...]:
        """The class of every region; none where nothing of it is to be told."""

    def paint(self, t: float, size: tuple[int, int]) -> Floats:
        """(3, H, W) RGB at time t."""

    def regions(self, t: float, size: tuple[int, int]) -> NDArray[np.bool_]:
        """(len(labels), H, W) the pixels of each region: together the whole frame, if there are any."""


@dataclass(frozen=True)
class Cover:
    """Who is where on one frame.

    Attributes:
        masks: (M, H, W) the visible part of each object, then of each region of the ground.
        inside: (M,) whether any part of it, hidden or not, lies in the frame.
    """

    masks: NDArray[np.bool_]
    inside: NDArray[np.bool_]


@dataclass(frozen=True)
class Scene:
    """All that a video shows.

    Attributes:
        bodies: nearest first.
        background: the ground behind them.
        noise: standard deviation in grey levels.
        blur: weight of a neighbouring pixel where focus is worst.
    """

    bodies: tuple[Body, ...]
    background: Ground
    noise: float
    blur: float

    def cover(self, t: int, size: tuple[int, int]) -> Cover:
        """Who is where on frame `t` of (height, width) pixels."""
        regions = self.background.regions(t, size)
        masks = np.zeros((len(self.bodies) + len(regions), *size), dtype=np.bool_)
        masks[len(self.bodies) :] = regions
        inside: NDArray[np.bool_] = np.asarray(masks.any(axis=(1, 2)))
        free = np.ones(size, dtype=np.bool_)
        for row, body in enumerate(self.bodies):
            window = body.window(t, size)
            shape = body.depth_within(t, *_pixels(window)) > 0
            inside[row] = shape.any()
            masks[row][window] = shape & free[window]
            free[window] &= ~shape
        masks[len(self.bodies) :] &= free
        return Cover(masks, inside)

    def paint(self, t: int, size: tuple[int, int]) -> Floats:
        """(3, H, W) RGB of frame `t` in [0, 1], give or take, without the sensor's noise."""
        image = self.background.paint(t, size)
        for body in reversed(self.bodies):
            _lay(image, body, t)
        return _defocus(image, self.blur * (0.5 + 0.5 * math.sin(0.13 * t)))


def _pixels(window: tuple[slice, slice]) -> tuple[Floats, Floats]:
    """Pixel centres: x (1, w) and y (h, 1)."""
    rows, columns = window
    x = np.arange(columns.start, columns.stop, dtype=np.float32)[None] + np.float32(0.5)
    return x, np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + np.float32(0.5)


def _lay(image: Floats, body: Body, t: int) -> None:
    """Paint one object over (3, H, W) `image`; edges are a pixel wide, smeared over the shutter's time."""
    rows, columns = window = body.window(t, (image.shape[1], image.shape[2]))
    if rows.start == rows.stop or columns.start == columns.stop:
        return
    x, y = _pixels(window)
    (left, top), (right, bottom) = body.path(t - SHUTTER / 2), body.path(t + SHUTTER / 2)
    samples = min(max(math.ceil(math.hypot(right - left, bottom - top)), 2), 5)
    moments = [t + SHUTTER * (i / (samples - 1) - 0.5) for i in range(samples)]
    share = sum(np.clip(body.depth_within(s, x, y) + np.float32(0.5), 0, 1) for s in moments)
    share = share / np.float32(samples)
    along, across, _ = body.local(t, x, y)
    under = image[:, rows, columns]
    under += share * (body.look.paint(along, across) - under)


def _defocus(image: Floats, weight: float) -> Floats:
    """(3, H, W) with each pixel mixed with its four neighbours', borders repeated."""
    for axis in (1, 2):
        padding = [(1, 1) if a == axis else (0, 0) for a in range(3)]
        padded = np.moveaxis(np.pad(image, padding, mode="edge"), axis, 0)
        mixed = np.float32(1 - 2 * weight) * padded[1:-1] + np.float32(weight) * (padded[:-2] + padded[2:])
        image = np.moveaxis(mixed, 0, axis)
    return image
