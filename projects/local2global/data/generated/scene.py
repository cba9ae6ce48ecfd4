"""Scenes of generated videos: textured bodies that move along paths in front of a panning background.

The pixel in column c and row r has its centre at x = c + 1/2, y = r + 1/2.  All quantities are closed-form functions of
the time t, so frames can be rendered in any order.
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
"""Exposure time in frames, the length of motion blur."""

REACH = 1.16
"""The largest distance of an outline from its centre, in radii of the object."""


def _disc(x: Floats, y: Floats) -> Floats:
    return np.asarray(np.hypot(x, y) - np.float32(0.92), np.float32)


def _square(x: Floats, y: Floats) -> Floats:
    return np.asarray(np.maximum(np.abs(x), np.abs(y)) - np.float32(0.82), np.float32)


def _triangle(x: Floats, y: Floats) -> Floats:
    sides = np.maximum(np.float32(math.sqrt(0.75)) * np.abs(x) - np.float32(0.5) * y, y)
    return np.asarray(sides - np.float32(REACH / 2), np.float32)


def _star(x: Floats, y: Floats) -> Floats:
    """Five points: each tenth of the plane is folded onto the one between a notch, at angle 0, and a tip."""
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
"""Signed distance from each class's outline in radii, negative inside."""

_OUTLINES = tuple(OUTLINES.values())

SOLID = tuple(k for k, name in enumerate(OUTLINES) if name in ("disc", "square"))
"""Labels of the classes that can occlude another object: they contain a circle of 0.82 radii."""


class Path(Protocol):
    """The position of an object's centre over time."""

    def __call__(self, t: float) -> tuple[float, float]:
        """(x, y) in pixels at time t."""


@dataclass(frozen=True)
class Orbit:
    """A Lissajous curve around the middle of the frame."""

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
    """An object's own path, interrupted every `cycle` frames by `stay` frames at another object's centre.

    Attributes:
        own: the path outside of meetings.
        host: the path of the other object.
        at: the middle of a meeting, in frames.
        stay: frames for which both centres coincide.
        ramp: frames of approach, and of departure.
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
class Passage:
    """An object's own path, preceded by an entry into the frame or followed by an exit from it.

    Attributes:
        own: the path while the object is inside.
        aside: (x, y) added to the path while the object is outside.
        at: the middle of the entry or exit, in frames.
        ramp: frames of the entry or exit, negative for an entry.
    """

    own: Path
    aside: tuple[float, float]
    at: float
    ramp: float

    def __call__(self, t: float) -> tuple[float, float]:
        """(x, y) at time t."""
        outside = min(max((t - self.at) / self.ramp + 0.5, 0.0), 1.0)
        outside = outside * outside * (3 - 2 * outside)
        x, y = self.own(t)
        return x + outside * self.aside[0], y + outside * self.aside[1]


@dataclass(frozen=True)
class Look:
    """The texture of an object: two colours mixed by two waves in object coordinates.

    Attributes:
        colours: (2, 3) RGB in [0, 1].
        waves: (2, 3) radians per radius along x and along y, and phase.
        mix: weights of the first wave, the second wave, and their product.
        hardness: sharpness of the transition between the colours.
    """

    colours: Floats
    waves: Floats
    mix: tuple[float, float, float]
    hardness: float

    def paint(self, x: Floats, y: Floats) -> Floats:
        """(3, h, w) RGB at object coordinates (h, w)."""
        first, second = (np.sin(kx * x + ky * y + phase) for kx, ky, phase in self.waves)
        tone = self.mix[0] * first + self.mix[1] * second + self.mix[2] * first * second
        weight = 0.5 + 0.5 * np.tanh(self.hardness * tone)
        dark, light = self.colours[:, :, None, None]
        return np.asarray(dark + weight * (light - dark), np.float32)


@dataclass(frozen=True)
class Body:
    """One object.

    Attributes:
        label: position in `OUTLINES`.
        look: its texture.
        radius: its mean radius in pixels.
        path: the position of its centre.
        angle: its rotation at time 0, in radians.
        spin: radians per frame.
        pulse: relative amplitude of the change of its radius.
    """

    label: int
    look: Look
    radius: float
    path: Path
    angle: float
    spin: float
    pulse: float

    def local(self, t: float, x: Floats, y: Floats) -> tuple[Floats, Floats, float]:
        """Object coordinates, in radii, of the pixels x (1, w) and y (h, 1); the radius at time t in pixels."""
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
        """(h, w) distance from the outline in pixels, positive inside."""
        u, v, radius = self.local(t, x, y)
        return -radius * _OUTLINES[self.label](u, v)

    def window(self, t: float, size: tuple[int, int]) -> tuple[slice, slice]:
        """The rows and columns of the frame that the object and its motion blur can cover."""
        (x, y), (dx, dy) = self.path(t), self.path(t + SHUTTER / 2)
        far = REACH * self.size(t) + 2
        top, left = y - far - abs(dy - y), x - far - abs(dx - x)
        bottom, right = y + far + abs(dy - y), x + far + abs(dx - x)
        rows = slice(min(max(math.floor(top), 0), size[0]), min(max(math.ceil(bottom), 0), size[0]))
        columns = slice(min(max(math.floor(left), 0), size[1]), min(max(math.ceil(right), 0), size[1]))
        return rows, columns


@dataclass(frozen=True)
class Background:
    """A panning texture of plane waves: smooth noise, a gradient, or stripes.

    Attributes:
        mean: (3,) RGB in [0, 1].
        tint: (3, n) amplitude of each wave in each channel.
        waves: (n, 3) radians per pixel along x and along y, and phase.
        pan: pixels per frame along x and y.
        hardness: sharpness of the transition from bright to dark.
    """

    mean: Floats
    tint: Floats
    waves: NDArray[np.float64]
    pan: tuple[float, float]
    hardness: float

    @property
    def means(self) -> Floats:
        """(1, 3) the background colour that objects contrast with."""
        return self.mean[None]

    @property
    def labels(self) -> tuple[int, ...]:
        """No labels: the background has no class."""
        return ()

    def regions(self, t: float, size: tuple[int, int]) -> NDArray[np.bool_]:
        """(0, H, W)."""
        return np.zeros((0, *size), dtype=np.bool_)

    def paint(self, t: float, size: tuple[int, int]) -> Floats:
        """(3, H, W) RGB at time t.

        A plane wave is the sum of two products of a wave in x and a wave in y, so a frame is one matrix product.
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
    """The background: a `Background`, or regions of stuff (`Landscape`)."""

    @property
    def means(self) -> Floats:
        """(n, 3) background colours that objects contrast with."""

    @property
    def labels(self) -> tuple[int, ...]:
        """The class of every region; empty for a background without classes."""

    def paint(self, t: float, size: tuple[int, int]) -> Floats:
        """(3, H, W) RGB at time t."""

    def regions(self, t: float, size: tuple[int, int]) -> NDArray[np.bool_]:
        """(len(labels), H, W) the pixels of each region, a partition of the frame."""


@dataclass(frozen=True)
class Cover:
    """The ground truth of one frame.

    Attributes:
        masks: (M, H, W) the visible pixels of each object, then of each region of the background.
        inside: (M,) whether any part of the object or region, occluded or not, lies in the frame.
    """

    masks: NDArray[np.bool_]
    inside: NDArray[np.bool_]


@dataclass(frozen=True)
class Scene:
    """The content of a video.

    Attributes:
        bodies: the objects, nearest first.
        background: the background.
        noise: standard deviation of the sensor noise in grey levels of 255.
        blur: weight of each neighbouring pixel at the worst focus.
    """

    bodies: tuple[Body, ...]
    background: Ground
    noise: float
    blur: float

    def cover(self, t: int, size: tuple[int, int]) -> Cover:
        """The ground truth of frame `t` of (height, width) pixels."""
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
        """(3, H, W) RGB of frame `t`, approximately in [0, 1], without sensor noise."""
        image = self.background.paint(t, size)
        for body in reversed(self.bodies):
            _draw_body(image, body, t)
        return _defocus(image, self.blur * (0.5 + 0.5 * math.sin(0.13 * t)))


def _pixels(window: tuple[slice, slice]) -> tuple[Floats, Floats]:
    """Pixel centres: x (1, w) and y (h, 1)."""
    rows, columns = window
    x = np.arange(columns.start, columns.stop, dtype=np.float32)[None] + np.float32(0.5)
    return x, np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + np.float32(0.5)


def _draw_body(image: Floats, body: Body, t: int) -> None:
    """Paints an object onto (3, H, W) `image` in place, with antialiased edges and motion blur."""
    rows, columns = window = body.window(t, (image.shape[1], image.shape[2]))
    if rows.start == rows.stop or columns.start == columns.stop:
        return
    x, y = _pixels(window)
    (left, top), (right, bottom) = body.path(t - SHUTTER / 2), body.path(t + SHUTTER / 2)
    samples = min(max(math.ceil(math.hypot(right - left, bottom - top)), 2), 5)
    moments = [t + SHUTTER * (i / (samples - 1) - 0.5) for i in range(samples)]
    alpha = sum(np.clip(body.depth_within(s, x, y) + np.float32(0.5), 0, 1) for s in moments)
    alpha = alpha / np.float32(samples)
    along, across, _ = body.local(t, x, y)
    under = image[:, rows, columns]
    under += alpha * (body.look.paint(along, across) - under)


def _defocus(image: Floats, weight: float) -> Floats:
    """(3, H, W) with each pixel mixed with its four neighbours; borders are replicated."""
    for axis in (1, 2):
        padding = [(1, 1) if a == axis else (0, 0) for a in range(3)]
        padded = np.moveaxis(np.pad(image, padding, mode="edge"), axis, 0)
        mixed = np.float32(1 - 2 * weight) * padded[1:-1] + np.float32(weight) * (padded[:-2] + padded[2:])
        image = np.moveaxis(mixed, 0, axis)
    return image
