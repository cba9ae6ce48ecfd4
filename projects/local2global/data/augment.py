"""Augmentation of clips: every step draws its parameters once per clip, before pixels are read.

Steps change a `View`, which applies to frames and masks alike; pixels are resampled once for all steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import check_range
from .views import View

#: ITU-R BT.601 weights of red, green and blue in luma.
LUMA = (0.299, 0.587, 0.114)


def shortest_edge_size(size: tuple[int, int], short_edge: int, max_size: int) -> tuple[int, int]:
    """The (height, width) after resizing, rounded as in detectron2's ResizeShortestEdge.

    Args:
        size: (height, width) before.
        short_edge: target length of the shorter edge.
        max_size: upper limit of the longer edge; the shorter edge becomes shorter to respect it.
    """
    height, width = size
    scale = short_edge / min(height, width)
    # The shorter edge is assigned, not multiplied, to avoid rounding errors.
    high, wide = (short_edge, scale * width) if height < width else (scale * height, short_edge)
    if max(high, wide) > max_size:
        scale = max_size / max(high, wide)
        high, wide = high * scale, wide * scale
    return max(1, int(high + 0.5)), max(1, int(wide + 0.5))


def resize_frames(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., 3, H, W) uint8 to (..., 3, *size) uint8, bilinear, antialiased when shrinking."""
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames
    flat = frames.reshape(-1, *frames.shape[-3:])
    resized = functional.interpolate(flat, size=list(size), mode="bilinear", antialias=True)
    return resized.reshape(*frames.shape[:-2], *size)


def resize_shortest_edge(frame: Tensor, short_edge: int, max_size: int) -> Tensor:
    """Test-time resize of a frame (3, H, W) uint8 or frames (..., 3, H, W)."""
    height, width = frame.shape[-2:]
    return resize_frames(frame, shortest_edge_size((height, width), short_edge, max_size))


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    """Uniform in [low, high], both ends included."""
    return int(torch.randint(low, high + 1, (1,), generator=generator))


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _chance(probability: float, generator: torch.Generator) -> bool:
    return float(torch.rand((), generator=generator)) < probability


@dataclass(frozen=True)
class Identity:
    """No augmentation."""

    def view(self, view: View, generator: torch.Generator) -> View:
        """The unchanged view."""
        return view

    def recolour(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """The unchanged frames."""
        return frames


@dataclass(frozen=True)
class RandomShortestEdge:
    """Resizes the shorter edge to a random length.

    Attributes:
        edges: the lengths to draw from, in pixels.
        max_size: upper limit of the longer edge, in pixels.
    """

    edges: Sequence[int]
    max_size: int

    def __post_init__(self) -> None:
        check_range("the number of edges", len(self.edges), 1)
        for edge in self.edges:
            check_range("edges", edge, 1)
        check_range("max_size", self.max_size, 1)

    def view(self, view: View, generator: torch.Generator) -> View:
        """The resized view."""
        edge = self.edges[_integer(0, len(self.edges) - 1, generator)]
        return view.resized(shortest_edge_size(view.size, edge, self.max_size))


@dataclass(frozen=True)
class DriftingCrop:
    """Crops a window that moves in a straight line from the first frame to the last, like a panning camera.

    Both ends of the path are drawn uniformly, so a direction and its opposite are equally likely.

    Attributes:
        low: smallest height and width of the window, in pixels; the two are drawn independently.
        high: largest height and width.  A frame smaller than the window is not cropped along that edge.
    """

    low: int = 384
    high: int = 600

    def __post_init__(self) -> None:
        check_range("DriftingCrop.low", self.low, 1)
        check_range("DriftingCrop.high", self.high, self.low)

    def view(self, view: View, generator: torch.Generator) -> View:
        """The cropped view."""
        height, width = view.size
        high = min(height, _integer(self.low, self.high, generator))
        wide = min(width, _integer(self.low, self.high, generator))
        tops = self._path(height - high, len(view), generator)
        lefts = self._path(width - wide, len(view), generator)
        return view.cut(list(zip(tops, lefts, strict=True)), (high, wide))

    def _path(self, room: int, length: int, generator: torch.Generator) -> list[int]:
        start, end = _integer(0, room, generator), _integer(0, room, generator)
        return torch.linspace(start, end, length).round().int().tolist()


@dataclass(frozen=True)
class ZoomCrop:
    """A resize followed by a drifting crop, applied with a given probability (GenVIS).

    Attributes:
        probability: of applying both.
        resize: the resize before the crop.
        crop: the crop.
    """

    probability: float = 0.5
    resize: RandomShortestEdge = field(default_factory=lambda: RandomShortestEdge((400, 500, 600), 1333))
    crop: DriftingCrop = field(default_factory=DriftingCrop)

    def __post_init__(self) -> None:
        check_range("ZoomCrop.probability", self.probability, 0, 1)

    def view(self, view: View, generator: torch.Generator) -> View:
        """The resized and cropped view, or the unchanged one."""
        if not _chance(self.probability, generator):
            return view
        return self.crop.view(self.resize.view(view, generator), generator)


@dataclass(frozen=True)
class RandomFlip:
    """Mirrors the whole clip left to right with a given probability."""

    probability: float = 0.5

    def __post_init__(self) -> None:
        check_range("the probability of a flip", self.probability, 0, 1)

    def view(self, view: View, generator: torch.Generator) -> View:
        """The mirrored or unchanged view."""
        return view.mirrored() if _chance(self.probability, generator) else view


@dataclass(frozen=True)
class Turn:
    """Rotates successive frames in one direction about one point: copies of an image become a clip (GenVIS).

    It must be the first step.

    Attributes:
        degrees: angles are uniform in [-degrees, degrees] and sorted, ascending or descending with equal probability.
        centre: x and y of the point are uniform in this range, as fractions of the frame.
    """

    degrees: float = 15.0
    centre: tuple[float, float] = (0.4, 0.6)

    def __post_init__(self) -> None:
        check_range("Turn.degrees", self.degrees, 0, 360)
        for end in self.centre:
            check_range("Turn.centre", end, 0, 1)

    def view(self, view: View, generator: torch.Generator) -> View:
        """The view of rotated frames."""
        angles = sorted(_uniform(-self.degrees, self.degrees, generator) for _ in range(len(view)))
        if _chance(0.5, generator):
            angles.reverse()
        x, y = (_uniform(*self.centre, generator) for _ in range(2))
        return replace(view, angles=tuple(angles), centre=(x, y))


@dataclass(frozen=True)
class LargeScaleJitter:
    """Large-scale jitter: a random scale, then a square crop or grey padding (Ghiasi et al., CVPR 2021).

    Equivalent to a flip, detectron2's `ResizeScale` and its `FixedSizeCrop`; the crop is drawn along each edge.

    Attributes:
        side: pixels of the square.
        low: smallest scale; at scale 1 the longer edge equals `side`.
        high: largest scale.
        flip: probability of mirroring.
    """

    side: int = 1024
    low: float = 0.1
    high: float = 2.0
    flip: float = 0.5

    def __post_init__(self) -> None:
        check_range("LargeScaleJitter.side", self.side, 1)
        check_range("LargeScaleJitter.low", self.low, 0)
        check_range("LargeScaleJitter.high", self.high, self.low, 100)
        RandomFlip(self.flip)

    def view(self, view: View, generator: torch.Generator) -> View:
        """The scaled view, cropped or padded to a square."""
        view = RandomFlip(self.flip).view(view, generator)
        height, width = view.size
        scale = _uniform(self.low, self.high, generator) * self.side / max(height, width)
        size = max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
        part = min(self.side, size[0]), min(self.side, size[1])
        corner = _integer(0, size[0] - part[0], generator), _integer(0, size[1] - part[1], generator)
        view = view.resized(size).cut([corner] * len(view), part)
        return replace(view, canvas=(self.side, self.side))

    def recolour(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """The unchanged frames."""
        return frames


@dataclass(frozen=True)
class ColourJitter:
    """Multiplies brightness, contrast and saturation by one factor each for the whole clip.

    Not part of the paper's recipe.

    Attributes:
        brightness: the factor is uniform in [1 - brightness, 1 + brightness].
        contrast: range of the factor about the clip's mean luma.
        saturation: range of the factor about each pixel's luma.
    """

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            check_range(f"ColourJitter.{name}", getattr(self, name), 0, 1)

    def recolour(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """(T, 3, H, W) uint8 frames with changed colours."""
        spreads = (self.brightness, self.contrast, self.saturation)
        brightness, contrast, saturation = (_uniform(1 - s, 1 + s, generator) for s in spreads)
        pixels = frames.float().mul_(brightness)
        luma = torch.tensor(LUMA).view(3, 1, 1)
        mean = (pixels * luma).sum(dim=1).mean()
        pixels = mean + contrast * (pixels - mean)
        grey = (pixels * luma).sum(dim=1, keepdim=True)
        pixels = grey + saturation * (pixels - grey)
        return pixels.round_().clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class ClipAugmentation:
    """Rotate, zoom and crop, resize, mirror; the defaults are those of the paper's training recipe (GenVIS).

    Attributes:
        edges: lengths of the shorter edge to draw from, in pixels.
        max_size: upper limit of the longer edge, in pixels.
        crop: zoom and crop before the resize, or None.
        flip: probability of mirroring.
        jitter: colour jitter, or None.
        turn: rotation of the copies of an image, applied first; None for videos.
    """

    edges: Sequence[int] = tuple(range(288, 513, 32))
    max_size: int = 768
    crop: ZoomCrop | None = field(default_factory=ZoomCrop)
    flip: float = 0.5
    jitter: ColourJitter | None = None
    turn: Turn | None = None

    def __post_init__(self) -> None:
        RandomShortestEdge(self.edges, self.max_size)
        RandomFlip(self.flip)

    def view(self, view: View, generator: torch.Generator) -> View:
        """The augmented view."""
        resize = RandomShortestEdge(self.edges, self.max_size)
        for step in (self.turn, self.crop, resize, RandomFlip(self.flip)):
            if step is not None:
                view = step.view(view, generator)
        return view

    def recolour(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """(T, 3, H, W) uint8 frames with changed colours."""
        return frames if self.jitter is None else self.jitter.recolour(frames, generator)
