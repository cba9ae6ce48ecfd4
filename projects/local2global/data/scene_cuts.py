"""Scene cuts in training clips: frames of another video end a clip, or interrupt it.

In a clip of a few frames, objects rarely appear and almost never return.  A cut to another video makes all of its
objects appear while those of the first video vanish; after an interruption the first video's objects return.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import check_range
from ..structures import Clip, ClipTargets


@dataclass(frozen=True)
class SceneCuts:
    """Draws which frames of a clip show another video.

    Attributes:
        end: fraction of clips whose last frames show another video.
        interrupt: fraction of clips in which frames of another video come between frames of the first one.  Clips of
            two frames have no room for it and stay as they are.
    """

    end: float
    interrupt: float

    def __post_init__(self) -> None:
        check_range("SceneCuts.end", self.end, 0, 1)
        check_range("SceneCuts.interrupt", self.interrupt, 0, 1)
        check_range("SceneCuts.end + interrupt", self.end + self.interrupt, 0, 1)

    def draw(self, length: int, generator: torch.Generator) -> list[bool]:
        """Whether each of `length` frames shows the other video; the first frame never does."""

        def integer(low: int, high: int) -> int:
            return int(torch.randint(low, high, (), generator=generator))

        other = [False] * length
        chance = float(torch.rand((), generator=generator))
        if chance < self.end and length > 1:
            start = integer(1, length)
            other[start:] = [True] * (length - start)
        elif self.end <= chance < self.end + self.interrupt and length > 2:
            start = integer(1, length - 1)
            stop = integer(start + 1, length)
            other[start:stop] = [True] * (stop - start)
        return other


def can_cut(first: Clip, second: Clip) -> bool:
    """Whether two clips show different videos in frames of one size.  A video cut to itself has two ids per object."""
    return second.video_id != first.video_id and second.frames[0].shape == first.frames[0].shape


def cut_to(first: Clip, second: Clip, other: list[bool]) -> Clip:
    """A clip of two videos.  Each continues where it stopped: only as many frames are used as it has places.

    Args:
        first: the clip whose key, video and frame indices are those of the result.
        second: a clip of the same length, with frames of the same size.
        other: whether each frame of the result is the next frame of `second`; else it is the next of `first`.

    Returns:
        The clip; its instances are those of both that are visible.

    Raises:
        ValueError: the clips differ in length or size, or have no targets.
    """
    a, b = first.targets, second.targets
    if a is None or b is None or a.masks.shape[1:] != b.masks.shape[1:]:
        raise ValueError("expected two clips of equal length and size with targets")
    places = torch.tensor(other)
    targets = _stack(_place(a, ~places), _place(b, places))
    frames = torch.stack(list(first.frames))
    frames[~places] = frames[: int((~places).sum())].clone()
    frames[places] = torch.stack(list(second.frames))[: int(places.sum())]
    return dataclasses.replace(first, frames=frames, targets=targets)


def _place(targets: ClipTargets, places: Tensor) -> ClipTargets:
    """The targets of the first frames at some places of a clip, without instances elsewhere.

    Args:
        targets: M instances on T frames.
        places: (T,) bool.
    """
    count = int(places.sum())
    masks, boxes = torch.zeros_like(targets.masks), torch.zeros_like(targets.boxes)
    visible = torch.zeros_like(targets.visible)
    masks[:, places] = targets.masks[:, :count]
    boxes[:, places] = targets.boxes[:, :count]
    visible[:, places] = targets.visible[:, :count]
    rows = visible.any(dim=1)
    return ClipTargets(targets.labels[rows], targets.ids[rows], masks[rows], boxes[rows], visible[rows])


def _stack(a: ClipTargets, b: ClipTargets) -> ClipTargets:
    """The instances of both; the ids of the second follow those of the first, since two datasets may share ids."""
    offset = int(a.ids.max()) + 1 if len(a) else 0
    b = dataclasses.replace(b, ids=offset + torch.arange(len(b)))
    return ClipTargets(
        *(torch.cat((getattr(a, f.name), getattr(b, f.name))) for f in dataclasses.fields(ClipTargets))
    )
