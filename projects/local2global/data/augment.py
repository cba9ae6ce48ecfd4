"""Augmentation of clips: every step draws once per clip and moves all frames and their masks alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

#: ITU-R BT.601 weights of red, green and blue in brightness.
LUMA = (0.299, 0.587, 0.114)


def shortest_edge_size(size: tuple[int, int], short_edge: int, max_size: int) -> tuple[int, int]:
    """The (height, width) after resizing as detectron2's ResizeShortestEdge rounds it.

    Args:
        size: (height, width) before.
        short_edge: wanted length of the shorter edge.
        max_size: the longer edge never exceeds this; the shorter one then gives way.
    """
    height, width = size
    scale = short_edge / min(height, width)
    # The shorter edge is set, not multiplied, so that rounding cannot move it.
    high, wide = (short_edge, scale * width) if height < width else (scale * height, short_edge)
    if max(high, wide) > max_size:
        scale = max_size / max(high, wide)
        high, wide = high * scale, wide * scale
    return max(1, int(high + 0.5)), max(1, int(wide + 0.5))


def _interpolate(images: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(images, size=list(size), mode="bilinear", antialias=True)


def resize_frames(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., 3, H, W) uint8 to (..., 3, *size) uint8, bilinear, antialiased when shrinking."""
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames
    flat = frames.reshape(-1, *frames.shape[-3:])
    return _interpolate(flat, size).reshape(*frames.shape[:-2], *size)


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """(M, T, H, W) bool to (M, T, *size) bool: pixels more than half covered under the frames' filter."""
    if tuple(masks.shape[-2:]) == tuple(size):
        return masks
    if not len(masks):
        return masks.new_zeros((*masks.shape[:2], *size))
    # The filter computes in bytes, as for frames; 255 keeps all the precision that there is.
    return _interpolate(masks.to(torch.uint8).mul_(255), size) > 127


def resize_shortest_edge(frame: Tensor, short_edge: int, max_size: int) -> Tensor:
    """Test-time resize of one frame (3, H, W) uint8, or of several (..., 3, H, W)."""
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
    """Changes nothing."""

    def __call__(self, frames: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Frames and masks as they came."""
        return frames, masks


@dataclass(frozen=True)
class RandomShortestEdge:
    """Resizes so that the shorter edge has one of several lengths.

    Attributes:
        edges: the lengths to choose from, in pixels.
        max_size: the most the longer edge may have.
    """

    edges: Sequence[int]
    max_size: int

    def __call__(self, frames: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Frames (T, 3, H', W') and masks (M, T, H', W')."""
        edge = self.edges[_integer(0, len(self.edges) - 1, generator)]
        height, width = frames.shape[-2:]
        size = shortest_edge_size((height, width), edge, self.max_size)
        return resize_frames(frames, size), resize_masks(masks, size)


@dataclass(frozen=True)
class DriftingCrop:
    """Cuts a window that moves in a straight line from the first frame to the last, like a panning camera.

    Both ends of the path are drawn uniformly, so a direction and its opposite are equally likely.

    Attributes:
        low: least height and width of the window, in pixels; each is drawn by itself.
        high: greatest height and width.  A frame smaller than the window is kept whole along that edge.
    """

    low: int = 384
    high: int = 600

    def __call__(self, frames: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Frames (T, 3, H', W') and masks (M, T, H', W')."""
        height, width = frames.shape[-2:]
        high = min(height, _integer(self.low, self.high, generator))
        wide = min(width, _integer(self.low, self.high, generator))
        tops = self._path(height - high, len(frames), generator)
        lefts = self._path(width - wide, len(frames), generator)
        windows = [(slice(y, y + high), slice(x, x + wide)) for y, x in zip(tops, lefts, strict=True)]
        cut = torch.stack([frames[t][:, rows, columns] for t, (rows, columns) in enumerate(windows)])
        cut_masks = [masks[:, t, rows, columns] for t, (rows, columns) in enumerate(windows)]
        return cut, torch.stack(cut_masks, dim=1)

    def _path(self, room: int, length: int, generator: torch.Generator) -> list[int]:
        start, end = _integer(0, room, generator), _integer(0, room, generator)
        return torch.linspace(start, end, length).round().int().tolist()


@dataclass(frozen=True)
class ZoomCrop:
    """With some probability, a resize followed by a drifting crop (GenVIS).

    Attributes:
        probability: of doing it at all.
        resize: the resize before the crop.
        crop: the crop.
    """

    probability: float = 0.5
    resize: RandomShortestEdge = field(default_factory=lambda: RandomShortestEdge((400, 500, 600), 1333))
    crop: DriftingCrop = field(default_factory=DriftingCrop)

    def __call__(self, frames: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Frames (T, 3, H', W') and masks (M, T, H', W')."""
        if not _chance(self.probability, generator):
            return frames, masks
        return self.crop(*self.resize(frames, masks, generator), generator)


@dataclass(frozen=True)
class RandomFlip:
    """Mirrors the whole clip left to right with some probability."""

    probability: float = 0.5

    def __call__(self, frames: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Frames (T, 3, H, W) and masks (M, T, H, W)."""
        if not _chance(self.probability, generator):
            return frames, masks
        return frames.flip(-1), masks.flip(-1)


@dataclass(frozen=True)
class ColourJitter:
    """Changes brightness, contrast and saturation by one factor each for the whole clip.

    Not part of the paper's recipe.

    Attributes:
        brightness: the factor is uniform in 1 -/+ this; likewise the others.
        contrast: about the clip's mean brightness.
        saturation: about each pixel's own brightness.
    """

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2

    def __call__(self, frames: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Frames (T, 3, H, W) uint8; masks as they came."""
        spreads = (self.brightness, self.contrast, self.saturation)
        brightness, contrast, saturation = (_uniform(1 - s, 1 + s, generator) for s in spreads)
        pixels = frames.float().mul_(brightness)
        luma = torch.tensor(LUMA).view(3, 1, 1)
        mean = (pixels * luma).sum(dim=1).mean()
        pixels = mean + contrast * (pixels - mean)
        grey = (pixels * luma).sum(dim=1, keepdim=True)
        pixels = grey + saturation * (pixels - grey)
        return pixels.round_().clamp_(0, 255).to(torch.uint8), masks


@dataclass(frozen=True)
class ClipAugmentation:
    """Zoom and crop, resize, mirror: the defaults are those of the paper's training recipe (GenVIS).

    Attributes:
        edges: lengths of the shorter edge to choose from.
        max_size: the most the longer edge may have.
        crop: zoom and crop before the resize, or None.
        flip: probability of a mirrored clip.
        jitter: change of colours at the end, or None.
    """

    edges: Sequence[int] = tuple(range(288, 513, 32))
    max_size: int = 768
    crop: ZoomCrop | None = field(default_factory=ZoomCrop)
    flip: float = 0.5
    jitter: ColourJitter | None = None

    def __call__(self, frames: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Frames (T, 3, H', W') uint8 and masks (M, T, H', W') bool, contiguous."""
        steps = (self.crop, RandomShortestEdge(self.edges, self.max_size), RandomFlip(self.flip), self.jitter)
        for step in steps:
            if step is not None:
                frames, masks = step(frames, masks, generator)
        return frames.contiguous(), masks.contiguous()
