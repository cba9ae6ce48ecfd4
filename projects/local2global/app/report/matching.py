"""Which identities of several runs are the same object, where the runs differ, and what happened to true objects.

The first run is the reference: the truth if there is one.  Every other run's identities are matched to its identities
one to one, by the Hungarian method, so that the sum of their volume IoUs is maximal.  The volume IoU of two identities
is the number of pixels, over all frames, in both masks, divided by the number in at least one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment

from ...errors import UserError
from .page import Event, Moment
from .run import Run

#: Identities below this volume IoU are not the same object.
MIN_IOU = 0.1
#: The owner of a true object on a frame is the identity of the highest IoU, at least this.
MIN_OWNER_IOU = 0.5
#: A visible object without an owner on this many consecutive frames is lost.
LOST = 3
#: Moments listed, and the least time between two of them as a part of the video.
MOMENTS, MOMENT_DISTANCE = 10, 0.02

Floats = NDArray[np.float64]


@dataclass
class Overlaps:
    """Pixels that a run shares with the reference.

    Attributes:
        shared: by frame, {(identity of the reference, identity of the run): pixels in both masks}.
        areas: for the reference and for the run, by frame, {identity: pixels}.
    """

    shared: list[dict[tuple[int, int], float]] = field(default_factory=list)
    areas: tuple[list[dict[int, int]], list[dict[int, int]]] = field(default_factory=lambda: ([], []))


def measure(reference: Run, others: Sequence[Run]) -> list[Overlaps]:
    """Reads all runs in step and measures what each shares with the reference.

    Raises:
        UserError: if the runs differ in their number of frames, or a mask is malformed.
    """
    results = [Overlaps() for _ in others]
    for frames in zip_longest(reference.frames(), *(run.frames() for run in others)):
        if None in frames:
            shorter = [reference, *others][frames.index(None)]
            raise UserError(f"{shorter.name}: fewer frames than the other runs; are they of one video?")
        base = _masks(frames[0])
        for result, frame in zip(results, frames[1:], strict=True):
            masks = _masks(frame)
            areas = [{i: int(coco_mask.area(rle)) for i, rle in side.items()} for side in (base, masks)]
            for side, area in zip(result.areas, areas, strict=True):
                side.append(area)
            shared: dict[tuple[int, int], float] = {}
            if base and masks:
                iou = coco_mask.iou(list(base.values()), list(masks.values()), [0] * len(masks))
                for a, b in zip(*(indices.tolist() for indices in np.nonzero(iou)), strict=True):
                    pair = list(base)[a], list(masks)[b]
                    total = areas[0][pair[0]] + areas[1][pair[1]]
                    shared[pair] = float(iou[a, b] * total / (1 + iou[a, b]))
            result.shared.append(shared)
    return results


def _masks(frame: Mapping[str, Any]) -> dict[int, Any]:
    return {entry["id"]: entry["segmentation"] for entry in frame["objects"]}


def match(overlaps: Overlaps) -> dict[int, int]:
    """The identity of the reference that each identity of the run is matched to; others are left out."""
    shared: dict[tuple[int, int], float] = defaultdict(float)
    for frame in overlaps.shared:
        for pair, pixels in frame.items():
            shared[pair] += pixels
    volumes: list[dict[int, int]] = [defaultdict(int), defaultdict(int)]
    for volume, side in zip(volumes, overlaps.areas, strict=True):
        for areas in side:
            for identity, area in areas.items():
                volume[identity] += area
    rows, columns = (sorted(volume) for volume in volumes)
    iou = np.zeros((len(rows), len(columns)))
    for (a, b), pixels in shared.items():
        union = volumes[0][a] + volumes[1][b] - pixels
        iou[rows.index(a), columns.index(b)] = pixels / max(union, 1)
    pairs = zip(*linear_sum_assignment(-iou), strict=True)
    return {columns[j]: rows[i] for i, j in pairs if iou[i, j] >= MIN_IOU}


def difference(overlaps: Overlaps, matched: Mapping[int, int]) -> Floats:
    """(T,) part of the object pixels of a frame, in [0, 1], that the run and the reference give different objects.

    That is 1 - sum of intersections / sum of unions, over matched pairs and over identities without a match.
    """
    out = np.zeros(len(overlaps.shared))
    for t, shared in enumerate(overlaps.shared):
        total = sum(overlaps.areas[0][t].values()) + sum(overlaps.areas[1][t].values())
        common = sum(pixels for (a, b), pixels in shared.items() if matched.get(b) == a)
        out[t] = 1 - common / (total - common) if total else 0.0
    return out


def moments(differences: Sequence[Floats], names: Sequence[str], reference: str) -> list[Moment]:
    """The most different frames, most different first, with some distance in between.

    Args:
        differences: (T,) of every run from the reference.
        names: of these runs.
        reference: name of the reference.
    """
    table = np.stack(differences)
    distance = max(1, round(table.shape[1] * MOMENT_DISTANCE))
    left = table.max(axis=0)
    found: list[Moment] = []
    while len(found) < MOMENTS and left.max(initial=0.0) > 0:
        t = int(left.argmax())
        run = int(table[:, t].argmax())
        text = f"{names[run]} and {reference} differ in {table[run, t]:.0%} of the object pixels"
        found.append(Moment(t, text))
        left[max(0, t - distance) : t + distance + 1] = 0.0
    return found


@dataclass
class Follower:
    """What happens to one true object in a run.

    Attributes:
        events: switches, losses and returns in order of frames.
        owned: number of frames on which an identity owns the object.
        visible: number of frames on which it is visible.
    """

    events: list[Event] = field(default_factory=list)
    owned: int = 0
    visible: int = 0
    _owner: int | None = None
    _missing: list[int] = field(default_factory=list)
    _lost: bool = False

    def update(self, t: int, owner: int | None) -> None:
        """Processes a frame on which the object is visible.

        Args:
            t: the frame.
            owner: the identity that owns the object, or None.
        """
        self.visible += 1
        if owner is None:
            self._missing.append(t)
            if self._owner is not None and not self._lost and len(self._missing) == LOST:
                self.events.append(
                    Event(self._missing[0], "lost", f"identity {self._owner} loses the object")
                )
                self._lost = True
            return
        self.owned += 1
        if self._owner is not None and owner != self._owner:
            text = f"identity switch: the object changes from {self._owner} to {owner}"
            self.events.append(Event(t, "switch", text))
        elif self._lost:
            self.events.append(Event(t, "found", f"identity {owner} is back on the object"))
        self._owner, self._missing, self._lost = owner, [], False


def follow(overlaps: Overlaps) -> dict[int, Follower]:
    """What happens in a run to every object of the reference, which is the truth."""
    followers: dict[int, Follower] = defaultdict(Follower)
    for t, shared in enumerate(overlaps.shared):
        best: dict[int, tuple[float, int]] = {}
        for (true, identity), pixels in shared.items():
            union = overlaps.areas[0][t][true] + overlaps.areas[1][t][identity] - pixels
            best[true] = max(best.get(true, (0.0, -1)), (pixels / union, identity))
        for true, area in overlaps.areas[0][t].items():
            if area:
                iou, identity = best.get(true, (0.0, -1))
                followers[true].update(t, identity if iou >= MIN_OWNER_IOU else None)
    return dict(followers)
