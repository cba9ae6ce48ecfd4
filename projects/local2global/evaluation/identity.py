"""Identity meter: whether objects keep their slots through occlusions, absences and crossings.

*Owner* of an object on a frame: the slot whose mask has the highest IoU with the object, at least .5, among slots that
score at least .3.
*Gap*: at least 3 consecutive frames without a visible pixel of the object, between frames with one.  A gap is an
*absence* if on some frame of it no part of the object, hidden or not, is inside the frame, else an *occlusion*.
*Kept*: within 5 frames from its reappearance the object is owned, and its first owner there is its last owner before
the gap.  An object that was never owned before the gap is not kept; such gaps are also counted separately.
*Switch*: the owner of an object changes to a slot whose last object on earlier frames was another one.
*Takeover*: the same for the first owner of an object.

The state per object is constant, so streams of any length can be measured.
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

from ..boxes import mask_iou
from ..structures import FrameResult


class VideoTruth(Protocol):
    """The truth of one video, as datasets provide it."""

    @property
    def ids(self) -> Tensor:
        """(M,) int64 identities."""

    def masks(self, t: int) -> Tensor:
        """(M, H, W) bool masks of frame `t`."""


def owners(
    result: FrameResult, masks: Tensor, min_iou: float = 0.5, min_score: float = 0.3
) -> list[int | None]:
    """The owner of each object on one frame; of equal IoUs the first reported slot wins.

    Args:
        result: the reported slots.
        masks: (M, H, W) bool, the visible part of each object at the source's size.
        min_iou: minimum IoU of an owner.
        min_score: minimum score of an owner.

    Raises:
        ValueError: the reported masks differ in size from the truth's.
    """
    size, expected = tuple(result.masks.shape[1:]), tuple(masks.shape[1:])
    if size != expected:
        raise ValueError(f"frame {result.index}: masks of {size} pixels for a truth of {expected}")
    confident = result.scores >= min_score
    slots = result.ids[confident].tolist()
    if not slots or not len(masks):
        return [None] * len(masks)
    best, index = mask_iou(masks, result.masks[confident]).max(dim=1)
    return [
        slots[i] if iou >= min_iou else None for iou, i in zip(best.tolist(), index.tolist(), strict=True)
    ]


@dataclass
class _Return:
    """A gap that has ended, until the first owner after it."""

    kind: str
    owner_before: int | None
    frames_left: int


@dataclass
class _Object:
    """State of one object between frames."""

    owner: int | None = None
    hidden: int = 0  # consecutive frames without a visible pixel
    left: bool = False  # whether it was outside the frame since it was last visible
    returns: list[_Return] = field(default_factory=list)


@dataclass
class IdentityMeter:
    """Counts kept and lost identities over any number of videos.

    Call `update` for every frame in order, `finish` after each video, `summary` at the end.

    Attributes:
        min_iou: minimum IoU of an owner.
        min_score: minimum score of an owner.
        gap: minimum frames of a gap.
        window: frames after a gap, including the first visible one, in which the first owner counts.
    """

    min_iou: float = 0.5
    min_score: float = 0.3
    gap: int = 3
    window: int = 5
    _counts: Counter[str] = field(default_factory=Counter, init=False, repr=False)
    _objects: dict[int, _Object] = field(default_factory=dict, init=False, repr=False)
    _last_object: dict[int, int] = field(default_factory=dict, init=False, repr=False)  # by slot

    def update(
        self, result: FrameResult, ids: Tensor, masks: Tensor, inside: NDArray[np.bool_] | None = None
    ) -> None:
        """Processes one frame.

        Args:
            result: the reported slots.
            ids: (M,) identities; an object that is not listed is not visible.
            masks: (M, H, W) bool, visible parts, all False where an object is not visible.
            inside: (M,) whether any part of the object, hidden or not, is inside the frame.  With None every gap
                counts as an occlusion.
        """
        visible = masks.flatten(1).any(1)
        present = ids[visible].tolist()
        slots = owners(result, masks[visible], self.min_iou, self.min_score)
        self._counts["appearances"] += len(present)
        self._counts["owned"] += len(slots) - slots.count(None)
        outside = set() if inside is None else set(ids[~torch.from_numpy(np.asarray(inside))].tolist())
        for identity in self._objects.keys() - set(present):
            self._objects[identity].hidden += 1
            self._objects[identity].left |= identity in outside
        owned = [(identity, slot) for identity, slot in zip(present, slots, strict=True) if slot is not None]
        for identity in present:
            self._reappear(self._objects.setdefault(identity, _Object()))
        for identity, slot in owned:
            self._own(identity, slot)
        self._last_object.update((slot, identity) for identity, slot in owned)
        self._expire()

    def follow(self, results: Iterable[FrameResult], video: VideoTruth) -> None:
        """Processes a whole video: `update` with the truth of every result's frame, then `finish`.

        Args:
            results: one per frame, in order.
            video: the truth; its method `inside(t)`, if it has one, separates absences from occlusions.
        """
        inside = getattr(video, "inside", None)
        ids = video.ids
        for result in results:
            t = result.index
            self.update(result, ids, video.masks(t), None if inside is None else inside(t))
        self.finish()

    def finish(self) -> None:
        """Ends a video: pending gaps are not kept, and all slots and identities are reset."""
        self._counts["objects"] += len(self._objects)
        self._counts["never_owned"] += sum(obj.owner is None for obj in self._objects.values())
        self._counts["videos"] += 1
        self._objects, self._last_object = {}, {}

    def summary(self) -> dict[str, int | float | None]:
        """The counts over all finished videos.

        Returns:
            `kept` of `occlusions` and the ratio `kept_rate` in [0, 1], None without occlusions; `occlusions_unowned`,
            those without an owner before; the same of `absences` (`absences_kept`, ...); `appearances`, visible
            objects summed over frames, the `owned` ones and the ratio `owned_rate`; `objects` that were ever visible
            and those `never_owned`; `owner_changes` and those that are `switches`; `takeovers`; `videos`.
        """
        counts = self._counts
        names = (
            "videos", "appearances", "owned", "objects", "never_owned", "occlusions", "occlusions_unowned",
            "kept", "absences", "absences_unowned", "absences_kept", "owner_changes", "switches", "takeovers",
        )  # fmt: skip
        totals = {"owned": "appearances", "kept": "occlusions", "absences_kept": "absences"}
        rates = {f"{n}_rate": counts[n] / counts[of] if counts[of] else None for n, of in totals.items()}
        return {**{name: counts[name] for name in names}, **rates}

    def _reappear(self, obj: _Object) -> None:
        """Ends the gap of an object that is visible again."""
        if obj.hidden >= self.gap:
            kind = "absences" if obj.left else "occlusions"
            self._counts[kind] += 1
            self._counts[f"{kind}_unowned"] += obj.owner is None
            obj.returns.append(_Return(kind, obj.owner, self.window))
        obj.hidden, obj.left = 0, False

    def _own(self, identity: int, slot: int) -> None:
        """Sets the owner of an object."""
        obj = self._objects[identity]
        for gap in obj.returns:
            if gap.owner_before == slot:
                self._counts["kept" if gap.kind == "occlusions" else "absences_kept"] += 1
        obj.returns.clear()
        of_another = self._last_object.get(slot, identity) != identity
        if obj.owner is None:
            self._counts["takeovers"] += of_another
        elif obj.owner != slot:
            self._counts["owner_changes"] += 1
            self._counts["switches"] += of_another
        obj.owner = slot

    def _expire(self) -> None:
        """Drops gaps whose window has passed."""
        for obj in self._objects.values():
            for gap in obj.returns:
                gap.frames_left -= 1
            obj.returns = [gap for gap in obj.returns if gap.frames_left > 0]
