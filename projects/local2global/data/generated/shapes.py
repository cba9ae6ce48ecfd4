"""Generated videos: textured shapes that move, cross, occlude one another, leave the frame and return.

A video is a function of (seed, id), and a frame is a function of (video, t).  Frames can be rendered in any order,
and datasets of any size are lazy.  The class of an object is its outline; colour and texture are
independent of the class, unless a preset is `coloured`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, overload

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from ...errors import UserError, check_range
from ...randomness import keyed_generator
from ..datasets import VideoDataset, VideoRecord
from .landscape import MATERIALS, draw_landscape
from .scene import (
    OUTLINES,
    REACH,
    SOLID,
    Background,
    Body,
    Cover,
    Ground,
    Look,
    Meeting,
    Orbit,
    Passage,
    Path,
    Scene,
)

Range = tuple[float, float]

CLASSES = [{"id": k, "name": name} for k, name in enumerate(OUTLINES, 1)]
"""{id, name} of the object classes: one per outline."""

STUFF = [{"id": k, "name": name} for k, name in enumerate(MATERIALS, len(OUTLINES) + 1)]
"""{id, name} of the stuff classes: one per material."""

PATTERNS = {
    "plain": (0.0, 0.0, 0.0),
    "stripes": (1.0, 0.0, 0.0),
    "checks": (0.0, 0.0, 1.0),
    "blobs": (0.6, 0.6, 0.0),
}
"""Textures: the weights of a look's first wave, its second wave, and their product."""

CONTRAST = 0.5
"""The smallest distance in RGB, [0, 1] each, of an object's colour from the background's mean."""


@dataclass(frozen=True)
class Difficulty:
    """The distribution of videos; every pair is the range of a uniform distribution, ends included.

    Attributes:
        size: (height, width) in pixels.
        length: frames of a video.
        objects: objects of a video, including the occluder.
        radius: radius of an object, as a fraction of the frame's shorter edge.
        orbit: width and height of an object's path, as fractions of the frame's; above 1 its centre leaves the frame.
        leaving: the fraction of objects whose path takes them completely out of the frame and back.
        passing: the fraction of objects that enter the frame after the video's start, or leave it before the end.
        period: frames of a full cycle of a path.
        spin: the largest rotation, in radians per frame.
        pulse: the largest relative change of the radius.
        noise: standard deviation of the sensor noise in grey levels of 255.
        blur: weight of each neighbouring pixel at the worst focus, at most 1/3.
        occluder: radius of an object behind which others are occluded, or None for random occlusions only.
        hidden: frames for which an occluded object stays behind the occluder's centre.
        hiding: the fraction of the objects behind the occluder that are occluded by it.
        group: the largest number of objects with identical outline, size, texture and colour.
        outlines: names of the outlines, which are the classes; must be all of them with an occluder.
        coloured: whether colour depends on the class: an object is mostly red, green or blue by its class modulo three.
        named: whether outlines are classes; else all objects are of the class "object".
        stuff: names of the materials of the background, which are classes; empty for a background without class.
    """

    size: tuple[int, int] = (96, 160)
    length: tuple[int, int] = (12, 16)
    objects: tuple[int, int] = (1, 3)
    radius: Range = (0.20, 0.34)
    orbit: Range = (0.25, 0.8)
    leaving: float = 0.2
    passing: float = 0.0
    period: Range = (45, 80)
    spin: float = 0.08
    pulse: float = 0.12
    noise: Range = (1, 4)
    blur: Range = (0, 0.2)
    occluder: Range | None = None
    hidden: Range = (5, 10)
    hiding: float = 1.0
    group: int = 1
    outlines: tuple[str, ...] = tuple(OUTLINES)
    coloured: bool = False
    named: bool = True
    stuff: tuple[str, ...] = ()

    @property
    def classes(self) -> list[dict[str, Any]]:
        """{id, name} of the outlines, with the same ids in all presets; of "object" if outlines are not classes.

        With stuff: {id, name, isthing}, things first.
        """
        things = [dict(c) for c in CLASSES if c["name"] in self.outlines]
        if not self.named:
            things = [{"id": 1, "name": "object"}]
        if not self.stuff:
            return things
        stuff = [{**c, "isthing": 0} for c in STUFF if c["name"] in self.stuff]
        return [*({**c, "isthing": 1} for c in things), *stuff]


PRESETS = {
    "demo": Difficulty(outlines=("disc", "triangle", "cross"), coloured=True),
    "hard": Difficulty(
        length=(64, 80),
        objects=(3, 6),
        radius=(0.16, 0.22),
        orbit=(0.5, 0.95),
        period=(50, 90),
        pulse=0.05,
        noise=(2, 6),
        occluder=(0.41, 0.46),
        group=3,
    ),
}
# Three objects of the demo's classes on paths that cross and stay inside the frame.
PRESETS["crossing"] = replace(
    PRESETS["demo"], objects=(3, 3), radius=(0.17, 0.27), orbit=(0.35, 0.8), leaving=0.0, period=(40, 60)
)
PRESETS["hard_unnamed"] = replace(
    PRESETS["hard"], named=False
)  # the same videos with one class: identity only
PRESETS["demo_unnamed"] = replace(PRESETS["demo"], named=False)  # likewise, without identical-looking objects
PRESETS["panoptic"] = replace(PRESETS["demo"], leaving=0.1, stuff=tuple(MATERIALS))
# Statistics of OVIS and of YouTube-VIS 2021: `l2g data statistics ovis_like`.
PRESETS["ovis_like"] = Difficulty(
    size=(64, 96),
    length=(64, 75),
    objects=(4, 8),
    radius=(0.15, 0.28),
    orbit=(0.3, 0.8),
    leaving=0.0,
    passing=0.6,
    period=(60, 120),
    noise=(1, 4),
    occluder=(0.3, 0.36),
    hidden=(0, 16),
    hiding=0.35,
    named=False,
)
PRESETS["ytvis_like"] = Difficulty(
    size=(64, 96),
    length=(26, 34),
    objects=(1, 3),
    radius=(0.16, 0.32),
    orbit=(0.4, 0.85),
    leaving=0.0,
    passing=0.1,
    period=(60, 120),
    noise=(1, 4),
    named=False,
)


def _keyed(*key: int | str) -> Generator:
    return np.random.default_rng(keyed_generator(*key).initial_seed())


def _draw_background(draw: Generator, size: tuple[int, int]) -> Background:
    kind = draw.choice(("noise", "gradient", "stripes"))
    count, lengths, hardness = {
        "noise": (6, (0.15, 0.8), 1.0),
        "gradient": (2, (1.5, 4.0), 1.0),
        "stripes": (1, (0.12, 0.4), 12.0),
    }[kind]
    turn, wavelength = draw.uniform(0, 2 * np.pi, count), draw.uniform(*lengths, count) * min(size)
    waves = np.stack([np.cos(turn), np.sin(turn), draw.uniform(0, 2 * np.pi, count) * wavelength], 1)
    waves[:, 2] /= 2 * np.pi
    grey = draw.uniform(0.25, 0.75)
    strength = draw.uniform(0.06, 0.14) / math.sqrt(count)
    tint = strength * draw.uniform(0.5, 1.5, (3, 1)) * draw.uniform(0.6, 1.2, count)
    pan = draw.uniform(0.2, 1.5) * np.array([math.cos(turn[0]), math.sin(turn[0])])
    return Background(
        mean=(grey + draw.uniform(-0.12, 0.12, 3)).astype(np.float32),
        tint=tint.astype(np.float32),
        waves=waves * (2 * np.pi / wavelength)[:, None],
        pan=(float(pan[0]), float(pan[1])),
        hardness=hardness,
    )


def _draw_look(draw: Generator, ground: Ground, strongest: int | None = None) -> Look:
    """A random look whose colours contrast with the background; mostly of one primary colour if `strongest` is set."""
    colours = draw.uniform(0, 1, (64, 3))
    if strongest is not None:
        colours = np.stack([np.roll(c, strongest - int(c.argmax())) for c in colours])
    vivid = np.ptp(colours, axis=1) > 0.4
    apart = np.linalg.norm(colours[:, None] - ground.means, axis=2).min(axis=1)
    clear = apart > CONTRAST
    first, second = colours[np.argsort(~(vivid & clear), kind="stable")[:2]]
    turn = draw.uniform(0, np.pi)
    turns = np.array([turn, turn + np.pi / 2])
    waves = np.stack([np.cos(turns), np.sin(turns), draw.uniform(0, 2 * np.pi, 2)], 1)
    waves[:, :2] *= draw.uniform(3.5, 7, (2, 1))
    kind = str(draw.choice(list(PATTERNS)))
    return Look(
        colours=np.stack([first, first if kind == "plain" else second]).astype(np.float32),
        waves=waves.astype(np.float32),
        mix=PATTERNS[kind],
        hardness=float(draw.uniform(1, 5)),
    )


def _draw_orbit(draw: Generator, difficulty: Difficulty, orbit: Range, leaving: float) -> Orbit:
    height, width = difficulty.size
    reach = draw.uniform(*orbit, 2)
    if draw.random() < leaving:
        widest = REACH * difficulty.radius[1] * min(difficulty.size)
        reach[0] = 1 + widest / (width / 2) + draw.uniform(0.05, 0.2)
    periods, phases = draw.uniform(*difficulty.period, 2), draw.uniform(0, 1, 2)
    return Orbit(
        middle=(width / 2, height / 2),
        reach=(float(reach[0]) * width / 2, float(reach[1]) * height / 2),
        period=(float(periods[0]), float(periods[1])),
        phase=(float(phases[0]), float(phases[1])),
    )


def _draw_passage(draw: Generator, difficulty: Difficulty, own: Path) -> Passage:
    """An entry from, or an exit to, the left or the right, at any time of a video of the shortest length."""
    side, entry = draw.choice((-1.0, 1.0)), draw.choice((-1.0, 1.0))
    away = difficulty.size[1] + 2 * REACH * difficulty.radius[1] * min(difficulty.size)
    at = float(draw.uniform(0.05, 0.95)) * difficulty.length[0]
    return Passage(own, (float(side * away), 0.0), at, float(entry * draw.uniform(20, 40)))


def _draw_body(
    draw: Generator, difficulty: Difficulty, label: int, look: Look, radius: float, path: Path
) -> Body:
    return Body(
        label=label,
        look=look,
        radius=radius * min(difficulty.size),
        path=path,
        angle=float(draw.uniform(0, 2 * np.pi)),
        spin=float(draw.uniform(-difficulty.spin, difficulty.spin)),
        pulse=float(draw.uniform(0, difficulty.pulse)),
    )


def _draw_bodies(draw: Generator, difficulty: Difficulty, ground: Ground, count: int) -> list[Body]:
    """Objects in groups of identical looks, in random order of depth."""
    bodies: list[Body] = []
    while len(bodies) < count:
        outline = difficulty.outlines[int(draw.integers(len(difficulty.outlines)))]
        strongest = difficulty.outlines.index(outline) % 3 if difficulty.coloured else None
        label, look = list(OUTLINES).index(outline), _draw_look(draw, ground, strongest)
        radius = float(draw.uniform(*difficulty.radius))
        for _ in range(min(difficulty.group, count - len(bodies))):
            path: Path = _draw_orbit(draw, difficulty, difficulty.orbit, difficulty.leaving)
            if difficulty.passing and draw.random() < difficulty.passing:
                path = _draw_passage(draw, difficulty, path)
            bodies.append(_draw_body(draw, difficulty, label, look, radius, path))
    return [bodies[i] for i in draw.permutation(count)]


def _hide_behind(draw: Generator, difficulty: Difficulty, body: Body, host: Body, at: float) -> Body:
    """The object with a path that takes it behind `host`, visible for some time before and after."""
    apart = host.radius + body.radius
    height, width = difficulty.size

    def in_view(meeting: Meeting, times: Sequence[float]) -> bool:
        places = [(*meeting(t), *meeting.host(t)) for t in times]
        return any(
            0 < x < width and 0 < y < height and math.hypot(x - host_x, y - host_y) > apart
            for x, y, host_x, host_y in places
        )

    while True:
        meeting = Meeting(
            own=_draw_orbit(draw, difficulty, difficulty.orbit, difficulty.leaving),
            host=host.path,
            at=at,
            stay=float(draw.uniform(*difficulty.hidden)),
            ramp=float(draw.uniform(8, 12)),
            cycle=float(draw.uniform(*difficulty.period)) + 10,
        )
        before, after = ([at + sign * s for s in range(4, 20)] for sign in (-1, 1))
        if in_view(meeting, before) and in_view(meeting, after):
            return replace(body, path=meeting)


def _add_occluder(draw: Generator, difficulty: Difficulty, bodies: list[Body], look: Look) -> list[Body]:
    """Adds a large object in front of all others or, in some videos, of all but one.

    Each object behind the large one, or a fraction of them, is occluded by it once.
    """
    assert difficulty.occluder is not None
    path = _draw_orbit(draw, difficulty, (0.1, 0.35), 0)
    label, radius = int(draw.choice(SOLID)), float(draw.uniform(*difficulty.occluder))
    occluder = _draw_body(draw, difficulty, label, look, radius, path)
    before = int(len(bodies) > 2 and draw.random() < 0.5)
    behind = bodies[before:]
    first, last = 22, difficulty.length[0] - 22
    turns = draw.permutation(np.linspace(first, last, len(behind)))
    hides = (
        np.ones(len(behind), bool) if difficulty.hiding == 1 else draw.random(len(behind)) < difficulty.hiding
    )
    hidden = [
        _hide_behind(draw, difficulty, body, occluder, float(at)) if hide else body
        for body, at, hide in zip(behind, turns, hides, strict=True)
    ]
    return [*bodies[:before], occluder, *hidden]


@lru_cache(maxsize=256)  # a scene takes 10 ms and a few kilobytes; the identity bench trains on 120 videos
def _scene(seed: int, index: int, difficulty: Difficulty) -> Scene:
    draw = _keyed(seed, index, "scene")
    ground: Ground = _draw_background(draw, difficulty.size)
    if difficulty.stuff:
        ground = draw_landscape(_keyed(seed, index, "landscape"), difficulty.size, difficulty.stuff)
    count = int(draw.integers(difficulty.objects[0], difficulty.objects[1] + 1))
    bodies = _draw_bodies(draw, difficulty, ground, count - (difficulty.occluder is not None))
    if difficulty.occluder is not None:
        bodies = _add_occluder(draw, difficulty, bodies, _draw_look(draw, ground))
    noise, blur = float(draw.uniform(*difficulty.noise)), float(draw.uniform(*difficulty.blur))
    return Scene(tuple(bodies), ground, noise, blur)


@lru_cache(maxsize=4)
def _cover(video: ShapeVideo, t: int) -> Cover:
    return video.scene.cover(t, video.size)


@dataclass(frozen=True)
class ShapeVideo:
    """A `VideoRecord` that is rendered on access; its instances are objects, nearest first, then stuff.

    Attributes:
        id: the video's id, from 1.
        seed: seed of the dataset.
        difficulty: the distribution of the video; its `size` is the video's.
        length: the number of frames.
    """

    id: int
    seed: int
    difficulty: Difficulty
    length: int

    @property
    def name(self) -> str:
        """The name: `shapes-` and the zero-padded id."""
        return f"shapes-{self.id:05d}"

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of every frame."""
        return self.difficulty.size

    @property
    def scene(self) -> Scene:
        """The content of the video."""
        return _scene(self.seed, self.id, self.difficulty)

    @property
    def labels(self) -> Tensor:
        """(M,) int64 positions in the difficulty's classes."""
        positions = {c["id"]: k for k, c in enumerate(self.difficulty.classes)}
        things = [CLASSES[body.label]["id"] if self.difficulty.named else 1 for body in self.scene.bodies]
        stuff = [STUFF[label]["id"] for label in self.scene.background.labels]
        return torch.tensor([positions[k] for k in things + stuff], dtype=torch.int64)

    @property
    def ids(self) -> Tensor:
        """(M,) int64 annotation ids, unique in the dataset."""
        first = 1 + (self.id - 1) * (self.difficulty.objects[1] + len(self.difficulty.stuff))
        return torch.arange(first, first + len(self.scene.bodies) + len(self.scene.background.labels))

    def frame(self, t: int) -> Tensor:
        """(3, H, W) uint8 RGB of frame `t`."""
        scene = self.scene
        image = scene.paint(self._check(t), self.size)
        noise = _keyed(self.seed, self.id, t, "noise").standard_normal(image.shape, dtype=np.float32)
        grey = np.float32(255) * image + np.float32(scene.noise) * noise
        return torch.from_numpy(np.ascontiguousarray(np.rint(np.clip(grey, 0, 255)).astype(np.uint8)))

    def masks(self, t: int) -> Tensor:
        """(M, H, W) bool: the pixels of frame `t` whose centre lies in the object and in no nearer object.

        Regions of stuff consist of the pixels outside all objects.
        """
        return torch.from_numpy(_cover(self, self._check(t)).masks.copy())

    def present(self, t: int) -> NDArray[np.bool_]:
        """(M,) which objects have a pixel in frame `t`."""
        return np.asarray(_cover(self, self._check(t)).masks.any(axis=(1, 2)))

    def inside(self, t: int) -> NDArray[np.bool_]:
        """(M,) which objects have a part in frame `t`, visible or not; an object inside but not present is occluded."""
        return np.array(_cover(self, self._check(t)).inside)

    def _check(self, t: int) -> int:
        if not 0 <= t < self.length:
            raise IndexError(f"{self.name} has frames 0 to {self.length - 1}, not {t}")
        return int(t)


@dataclass(frozen=True)
class _ShapeList(Sequence[VideoRecord]):
    """A lazy list of `total` videos."""

    total: int
    seed: int
    difficulty: Difficulty
    fixed_length: int | None

    def __len__(self) -> int:
        return self.total

    @overload
    def __getitem__(self, index: int) -> ShapeVideo: ...
    @overload
    def __getitem__(self, index: slice) -> list[VideoRecord]: ...
    def __getitem__(self, index: int | slice) -> ShapeVideo | list[VideoRecord]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.total))]
        identity = range(1, self.total + 1)[index]
        shortest, longest = self.difficulty.length
        drawn = int(_keyed(self.seed, identity, "length").integers(shortest, longest + 1))
        return ShapeVideo(identity, self.seed, self.difficulty, self.fixed_length or drawn)


@dataclass(frozen=True)
class ShapeDataset(VideoDataset):
    """Generated videos; their ground truth is computed once, on access, and has only visible objects."""

    @cached_property
    def _truth(self) -> dict[str, Any]:
        truth = super().truth()
        visible = [a for a in truth["annotations"] if any(a["segmentations"])]
        return {**truth, "annotations": visible}

    def truth(self) -> dict[str, Any]:
        """The YouTube-VIS dict of these videos; it is cached and must not be modified."""
        return self._truth


def _difficulty(preset: str | Difficulty, size: tuple[int, int] | None) -> Difficulty:
    if isinstance(preset, str) and preset not in PRESETS:
        raise UserError(f'shapes: no preset "{preset}". Choose one of: {", ".join(PRESETS)}.')
    difficulty = PRESETS[preset] if isinstance(preset, str) else preset
    return difficulty if size is None else replace(difficulty, size=(int(size[0]), int(size[1])))


def load_shapes(
    preset: str | Difficulty,
    num_videos: int,
    seed: int = 0,
    length: int | None = None,
    size: tuple[int, int] | None = None,
) -> ShapeDataset:
    """A dataset of generated videos, ids from 1; video i does not depend on `num_videos` and `length`.

    Args:
        preset: a name in `PRESETS`, or a distribution.
        num_videos: the number of videos, which are rendered on access.
        seed: other seeds give other videos.
        length: frames of every video; None draws it from the preset's range.
        size: (height, width) in pixels; None uses the preset's.

    Raises:
        UserError: for an unknown preset or an invalid number.
    """
    check_range("num_videos", num_videos, 0, 10_000_000)
    check_range("length", 1 if length is None else length, 1, 1_000_000)
    for side in size or ():
        check_range("size", side, 16, 8192)
    difficulty = _difficulty(preset, size)
    return ShapeDataset(_ShapeList(num_videos, seed, difficulty, length), difficulty.classes)
