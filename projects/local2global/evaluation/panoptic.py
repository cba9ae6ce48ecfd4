"""One video's panoptic truth and prediction as tables: who is listed where, and who covers whom.

A panoptic map gives every pixel the id of a segment; 0 is void.  A list beside each map says which category an id
has on that frame.  Each pair of maps is looked at once: what is kept of it is the joint histogram of true and
predicted ids, from which all scores follow.  Letters of this file: T frames, G ids of one side, P pairs of ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

VOID = 0
MOST = 1 << 24
"""An id is R + 256 G + 65536 B of a PNG, so it is less than this."""


@dataclass(frozen=True)
class Segment:
    """An entry of a frame's list.

    Attributes:
        id: the value of its pixels.
        category: position of its category in the class list.
        area: pixels, as the list says.
        crowd: whether it stands for a crowd.
    """

    id: int
    category: int
    area: float
    crowd: bool = False


def joint_histogram(truth: NDArray[Any], prediction: NDArray[Any]) -> tuple[Ints, Ints, Ints]:
    """How many pixels each pair of ids shares.

    Args:
        truth: (H, W) ids in [0, 2^24).
        prediction: (H, W) ids in [0, 2^24).

    Returns:
        True ids, predicted ids and pixels of the P pairs that occur, by rising true and then predicted id.
    """
    left, right = truth.ravel(), prediction.ravel()
    if not len(left):
        return (np.zeros(0, np.int64),) * 3
    # Segments are wide: only the first pixel of every run along the rows is sorted.
    first = np.ones(len(left), np.bool_)
    np.not_equal(left[1:], left[:-1], out=first[1:])
    first[1:] |= right[1:] != right[:-1]
    starts = np.flatnonzero(first)
    # 32 bits for each, so that an id that is too large is still seen to be.
    keys = (left[starts].astype(np.int64) << 32) | right[starts].astype(np.int64)
    lengths = np.diff(starts, append=len(left))
    # Sorting values and looking each one up is half the work of sorting positions.
    ordered = np.sort(keys)
    pairs = ordered[np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 1))]
    pixels = np.bincount(np.searchsorted(pairs, keys), weights=lengths).astype(np.int64)
    return pairs >> 32, pairs & 0xFFFFFFFF, pixels


@dataclass(frozen=True)
class Listing:
    """What one side lists in one video.

    Attributes:
        ids: (G,) int64, every id that is listed or painted, rising.
        listed: (T, G) whether that frame lists it.
        category: (T, G) position of its category there; of an id that is listed twice, the first entry's.
        painted: (T, G) the category of its pixels there, that of the last entry; -1 where it is not listed.
        crowd: (T, G) bool.
        area: (T, G) float64 listed pixels, 0 where it is not listed.
        position: (T, G) its place in that frame's list.
        number: (G,) 0, 1, 2, ... by first listing; -1 for ids that no frame lists.
    """

    ids: Ints
    listed: Bools
    category: Ints
    painted: Ints
    crowd: Bools
    area: NDArray[np.float64]
    position: Ints
    number: Ints

    def first_listed(self, length: int) -> Ints:
        """(T - length + 1, G) in each window of `length` frames the first one that lists an id, -1 if none does."""
        frames, count = self.listed.shape
        later = np.full((frames + 1, count), frames, np.int64)
        for t in range(frames - 1, -1, -1):
            later[t] = np.where(self.listed[t], t, later[t + 1])
        starts = np.arange(frames - length + 1)[:, None]
        found = later[: len(starts)]
        return np.where(found < starts + length, found, -1)


@dataclass(frozen=True)
class VideoTable:
    """All that the scores need of one video.

    Attributes:
        name: the video's id.
        truth: the true side.
        prediction: the predicted side.
        pairs: (2, P) rows of the true and of the predicted id of every pair that occurs.
        pixels: (T, P) int64 pixels of each pair.
    """

    name: str
    truth: Listing
    prediction: Listing
    pairs: Ints
    pixels: Ints

    def __len__(self) -> int:
        """The number of frames."""
        return len(self.pixels)


def list_segments(frames: Sequence[Sequence[Segment]], painted: Ints) -> Listing:
    """The listing of one side from its T lists and all the ids that its maps paint."""
    ids = np.unique(np.concatenate([painted, [s.id for frame in frames for s in frame]]).astype(np.int64))
    rows = {int(identity): row for row, identity in enumerate(ids)}
    shape = (len(frames), len(ids))
    listed, crowd = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    category, seen, position = (np.full(shape, -1, np.int64) for _ in range(3))
    area, numbers = np.zeros(shape), dict[int, int]()
    for t, frame in enumerate(frames):
        for place, segment in enumerate(frame):
            row = rows[segment.id]
            numbers.setdefault(row, len(numbers))
            area[t, row] += segment.area
            seen[t, row] = segment.category
            if not listed[t, row]:
                listed[t, row], position[t, row] = True, place
                category[t, row], crowd[t, row] = segment.category, segment.crowd
    number = np.array([numbers.get(row, -1) for row in range(len(ids))], np.int64)
    return Listing(ids, listed, category, seen, crowd, area, position, number)


class Oddities:
    """What is odd about a truth although the published programs score it: counted, with the first place of each kind.

    Args:
        strict: whether the first one is refused instead.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self._count: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, kind: str, place: str) -> None:
        """Counts one.

        Raises:
            UserError: it is refused.
        """
        if self.strict:
            raise UserError(f"truth: {place}: {kind}. Correct it, or score without --strict")
        self._count[kind] += 1
        self._first.setdefault(kind, place)

    def lines(self) -> list[str]:
        """One for every kind."""
        return [f"truth: {kind}: {count}, first {self._first[kind]}" for kind, count in self._count.items()]


class TableBuilder:
    """Takes a video frame by frame; a frame's maps are let go at once.

    Args:
        name: the video's id, for messages.
        oddities: where those of the truth are counted.
    """

    def __init__(self, name: str, oddities: Oddities | None = None) -> None:
        self.name = name
        self._oddities = Oddities() if oddities is None else oddities
        self._lists: tuple[list[Sequence[Segment]], list[Sequence[Segment]]] = ([], [])
        self._found: list[tuple[Ints, Ints, Ints]] = []

    def add(
        self,
        frame: str,
        truth: NDArray[Any],
        prediction: NDArray[Any],
        true_segments: Sequence[Segment],
        predicted_segments: Sequence[Segment],
    ) -> None:
        """Takes the next frame.

        Args:
            frame: its name, for messages.
            truth: (H, W) true ids.
            prediction: (H, W) predicted ids.
            true_segments: the truth's list.
            predicted_segments: the prediction's list.

        Raises:
            UserError: the maps differ in size or hold impossible ids; a predicted id is painted and not listed,
                or listed and not painted.
        """
        place = f"video {self.name}, frame {frame}"
        if truth.ndim != 2 or truth.shape != prediction.shape:
            sizes = " and ".join("x".join(map(str, side.shape)) for side in (truth, prediction))
            raise UserError(
                f"{place}: truth and prediction are {sizes} pixels; write predictions at the truth's size"
            )
        found = joint_histogram(truth, prediction)
        for side, ids in zip(("truth", "prediction"), found[:2], strict=True):
            if len(ids) and (ids.min() < 0 or ids.max() >= MOST):
                raise UserError(f"{place}: the {side} map holds an id outside 0 to {MOST - 1}")
        self._check_prediction(place, set(found[1].tolist()), [s.id for s in predicted_segments])
        self._note_truth(place, found, true_segments)
        self._lists[0].append(true_segments)
        self._lists[1].append(predicted_segments)
        self._found.append(found)

    @staticmethod
    def _check_prediction(place: str, painted: set[int], listed: Sequence[int]) -> None:
        unlisted = sorted(painted - {VOID} - set(listed))
        if unlisted:
            raise UserError(f"{place}: predicted id {unlisted[0]} is painted but not listed in segments_info")
        unpainted = sorted(set(listed) - painted)
        if unpainted:
            raise UserError(
                f"{place}: predicted id {unpainted[0]} is listed in segments_info but has no pixel"
            )

    def _note_truth(self, place: str, found: tuple[Ints, Ints, Ints], segments: Sequence[Segment]) -> None:
        """Counts what the official program scores although it is odd."""
        areas: Counter[int] = Counter()
        for identity, pixels in zip(found[0].tolist(), found[2].tolist(), strict=True):
            areas[identity] += pixels
        listed = {s.id: s for s in segments}
        add = self._oddities.add
        if len(listed) < len(segments):
            add("an id listed twice on a frame", place)
        for identity in sorted(areas.keys() - listed.keys() - {VOID}):
            add("an id painted but not listed", f"{place}, id {identity}")
        for identity, segment in listed.items():
            if identity == VOID:
                add("id 0, which is void, is listed", place)
            elif identity not in areas:
                add("an id listed without a pixel", f"{place}, id {identity}")
            elif areas[identity] != segment.area:
                add("an area that is not the painted one", f"{place}, id {identity}")

    def build(self) -> VideoTable:
        """The table of the frames so far."""
        frames = len(self._found)
        sides = [
            list_segments(
                lists, np.concatenate([*(found[side] for found in self._found), np.zeros(1, np.int64)])
            )
            for side, lists in enumerate(self._lists)
        ]
        truth, prediction = sides
        moments = np.repeat(np.arange(frames), [len(found[2]) for found in self._found])
        true_rows, predicted_rows, pixels = (np.concatenate([f[i] for f in self._found]) for i in range(3))
        true_rows = np.searchsorted(truth.ids, true_rows)
        predicted_rows = np.searchsorted(prediction.ids, predicted_rows)
        keys, pair = np.unique(true_rows * len(prediction.ids) + predicted_rows, return_inverse=True)
        table = np.zeros((frames, len(keys)), np.int64)
        table[moments, pair] = pixels
        return VideoTable(self.name, truth, prediction, np.stack(np.divmod(keys, len(prediction.ids))), table)


def parse_segments(entries: Any, positions: Mapping[int, int], place: str, areas: bool) -> list[Segment]:
    """A frame's `segments_info`.

    Args:
        entries: the list as it stands in the file.
        positions: the class list's position of every category id.
        place: side, video and frame, for messages.
        areas: whether `area` counts: of the truth it does, of a prediction the painted pixels do.

    Raises:
        UserError: an entry without id, category or area, or of an unknown category.
    """
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise UserError(f"{place}: expected a list `segments_info`")
    segments = []
    for entry in entries:
        try:
            identity, category = index(entry["id"]), index(entry["category_id"])
            area, crowd = float(entry["area"]) if areas else 0.0, entry.get("iscrowd", 0) == 1
        except (KeyError, TypeError, ValueError, AttributeError):
            wanted = "id, category_id and area" if areas else "id and category_id"
            raise UserError(
                f"{place}: an entry of segments_info needs {wanted}, numbers: {entry!r}"
            ) from None
        if category not in positions:
            raise UserError(f"{place}: id {identity} has category {category}, which the truth does not list")
        segments.append(Segment(identity, positions[category], area, crowd))
    return segments
