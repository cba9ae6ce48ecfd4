"""Whether an object keeps its slot: through full occlusions, out of the frame and back, past its look-alikes.

*Owner* of an object in a frame: the slot whose mask has the highest IoU with it, at least .5, among slots
that score at least .3.
*Gap*: a maximal run of at least 3 frames in which the object has no visible pixel, between frames in which it
has.  It is an *occlusion*, or an *absence* if in some frame of it no part of the object, hidden or not, lies
in the frame.
*Kept*: among the 5 frames that begin with its reappearance the object is owned, and the first owner there is
its owner in the last frame before the gap in which it had one.  An object never owned before the gap is not
kept; such gaps are counted apart too.
*Switch*: an owned object's owner changes, and the new slot's last object, in earlier frames, was another one.
*Takeover*: the same for an object's very first owner: a newcomer gets a slot that was another's.

All of it is counted frame by frame with a constant state per object, so a stream of any length can be
measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..structures import FrameResult


class SeenVideo(Protocol):
    """The truth of one video, as records of a dataset give it."""

    @property
    def ids(self) -> Tensor:
        """(M,) int64 identities."""

    def masks(self, t: int) -> Tensor:
        """(M, H, W) bool of frame `t`."""


def mask_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of every pair of masks.

    Args:
        first: (M, H, W) bool.
        second: (n, H, W) bool.

    Returns:
        (M, n) float32 in [0, 1]; 0 where both are empty.
    """
    one, two = first.flatten(1).float(), second.flatten(1).float()
    common = one @ two.T
    union = one.sum(1)[:, None] + two.sum(1) - common
    return common / union.clamp(min=1)


def owners(
    result: FrameResult, masks: Tensor, min_iou: float = 0.5, min_score: float = 0.3
) -> list[int | None]:
    """The slot that owns each object on one frame; of equal IoUs the first reported wins.

    Args:
        result: what was reported.
        masks: (M, H, W) bool, the visible part of each object at the source's size.
        min_iou: the least IoU of an owner.
        min_score: the least score of an owner.

    Raises:
        ValueError: if the reported masks have another size than the truth's.
    """
    size, expected = tuple(result.masks.shape[1:]), tuple(masks.shape[1:])
    if size != expected:
        raise ValueError(f"frame {result.index}: masks of {size} pixels for a truth of {expected}")
    sure = result.scores >= min_score
    slots = result.ids[sure].tolist()
    if not slots or not len(masks):
        return [None] * len(masks)
    best, index = mask_iou(masks, result.masks[sure]).max(dim=1)
    pairs = zip(best.tolist(), index.tolist(), strict=True)
    return [slots[i] if iou >= min_iou else None for iou, i in pairs]


@dataclass
class _Return:
    """A gap that has ended and waits for the first owner after it."""

    kind: str
    before: int | None
    frames_left: int


@dataclass
class _Object:
    """What has to be known of one object between frames."""

    owner: int | None = None
    hidden: int = 0
    left: bool = False
    returns: list[_Return] = field(default_factory=list)


@dataclass
class IdentityMeter:
    """Counts of kept and lost identities over the frames of any number of videos.

    `update` for every frame in order, `finish` after each video, `summary` at the end.

    Attributes:
        min_iou: the least IoU of an owner.
        min_score: the least score of an owner.
        gap: the least frames of a gap.
        window: frames after a gap, the first visible one counted, in which an owner is awaited.
    """

    min_iou: float = 0.5
    min_score: float = 0.3
    gap: int = 3
    window: int = 5
    _counts: Counter[str] = field(default_factory=Counter, init=False, repr=False)
    _objects: dict[int, _Object] = field(default_factory=dict, init=False, repr=False)
    _last_object: dict[int, int] = field(default_factory=dict, init=False, repr=False)

    def update(
        self, result: FrameResult, ids: Tensor, masks: Tensor, inside: NDArray[np.bool_] | None = None
    ) -> None:
        """Take in one frame.

        Args:
            result: what was reported on it.
            ids: (M,) identities; an object that is not listed is not visible.
            masks: (M, H, W) bool, visible parts, all False where an object is not visible.
            inside: (M,) whether any part of the object, hidden or not, lies in the frame; None where the
                truth does not say, and then every gap counts as an occlusion.
        """
        visible = masks.flatten(1).any(1)
        present = ids[visible].tolist()
        slots = owners(result, masks[visible], self.min_iou, self.min_score)
        self._counts["appearances"] += len(present)
        self._counts["owned"] += len(slots) - slots.count(None)
        owned_by = dict(zip(present, slots, strict=True))
        outside = set() if inside is None else set(ids[~torch.from_numpy(np.asarray(inside))].tolist())
        for identity, thing in self._objects.items():
            if identity not in owned_by:
                thing.hidden += 1
                thing.left |= identity in outside
        for identity, owner in owned_by.items():
            thing = self._objects.setdefault(identity, _Object())
            self._reappear(thing)
            if owner is not None:
                self._own(identity, thing, owner)
        pairs = zip(slots, present, strict=True)
        self._last_object.update((owner, identity) for owner, identity in pairs if owner is not None)
        self._expire()

    def follow(self, results: Iterable[FrameResult], video: SeenVideo) -> None:
        """Take in a whole video: `update` with its truth for every result, then `finish`.

        Args:
            results: one per frame, in order, as a stream yields them.
            video: a record of a dataset; if it has `inside(t)`, occlusions and absences are told apart.
        """
        inside = getattr(video, "inside", None)
        ids = video.ids
        for result in results:
            t = result.index
            self.update(result, ids, video.masks(t), None if inside is None else inside(t))
        self.finish()

    def finish(self) -> None:
        """End a video: what is still awaited is not kept, and slots and identities start anew."""
        for thing in self._objects.values():
            self._counts["objects"] += 1
            self._counts["never_owned"] += thing.owner is None
        self._counts["videos"] += 1
        self._objects, self._last_object = {}, {}

    def summary(self) -> dict[str, int | float | None]:
        """The counts over all finished videos.

        Returns:
            `kept` of `occlusions` and their ratio `kept_rate` in [0, 1], None without occlusions;
            `occlusions_unowned`, those without an owner before; the same of `absences` (`absences_kept` ...);
            `appearances`, visible objects added up over the frames, those of them `owned` and their ratio
            `owned_rate`; `objects` that were visible at all and those `never_owned`; `owner_changes` and those of
            them that are `switches`; `takeovers`; `videos`.
        """
        counts = self._counts
        rates = {
            f"{kept}_rate": counts[kept] / counts[kind] if counts[kind] else None
            for kind, kept in (
                ("appearances", "owned"),
                ("occlusions", "kept"),
                ("absences", "absences_kept"),
            )
        }
        names = (
            "videos", "appearances", "owned", "objects", "never_owned", "occlusions", "occlusions_unowned",
            "kept", "absences", "absences_unowned", "absences_kept", "owner_changes", "switches", "takeovers",
        )  # fmt: skip
        return {**{name: counts[name] for name in names}, **rates}

    def _reappear(self, thing: _Object) -> None:
        if thing.hidden >= self.gap:
            kind = "absences" if thing.left else "occlusions"
            self._counts[kind] += 1
            self._counts[f"{kind}_unowned"] += thing.owner is None
            thing.returns.append(_Return(kind, thing.owner, self.window))
        thing.hidden, thing.left = 0, False

    def _own(self, identity: int, thing: _Object, owner: int) -> None:
        for gap in thing.returns:
            if gap.before == owner:
                self._counts["kept" if gap.kind == "occlusions" else "absences_kept"] += 1
        thing.returns.clear()
        of_another = self._last_object.get(owner, identity) != identity
        if thing.owner is None:
            self._counts["takeovers"] += of_another
        elif thing.owner != owner:
            self._counts["owner_changes"] += 1
            self._counts["switches"] += of_another
        thing.owner = owner

    def _expire(self) -> None:
        for thing in self._objects.values():
            for gap in thing.returns:
                gap.frames_left -= 1
            thing.returns = [gap for gap in thing.returns if gap.frames_left > 0]
