"""Average precision and recall of tracks, as the official YouTube-VIS and OVIS scorers compute them.

`match` assigns predictions to true tracks within one video and category, `accumulate` pools the videos of a category,
`summarize` averages.  Letters: T thresholds, K categories, A ranges, P predictions, G true tracks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .tracks import MAX_TRACKS, Track

Array = NDArray[Any]

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
LIMITS = (1, 10, MAX_TRACKS)


@dataclass(frozen=True)
class Range:
    """A range of area (pixels) or occlusion that is scored separately; both ends belong to it."""

    name: str
    low: float
    high: float
    by: Literal["area", "occlusion"] = "area"

    def contains(self, values: Array) -> Array:
        """Whether each value lies in the range, bool."""
        return np.asarray((values >= self.low) & (values <= self.high))


AREAS = (
    Range("", 0, 1e10),
    Range("s", 0, 128**2),
    Range("m", 128**2, 256**2),
    Range("l", 256**2, 1e10),
)
OCCLUSIONS = (
    Range("_occ_light", 0.0, 0.25, "occlusion"),
    Range("_occ_medium", 0.25, 0.5, "occlusion"),
    Range("_occ_heavy", 0.5, 1.0, "occlusion"),
)


@dataclass(frozen=True)
class Matches:
    """The matched predictions of one video and category.

    Attributes:
        scores: (P,) falling.
        matched: (A, T, P) bool, whether the prediction was assigned a true track.
        ignored: (A, T, P) bool, whether the prediction is left out of the counts.
        counting: (A,) int64 number of true tracks that are not ignored.
    """

    scores: Array
    matched: Array
    ignored: Array
    counting: Array


def match(
    predictions: Sequence[Track], truths: Sequence[Track], iou: Array, ranges: Sequence[Range] = AREAS
) -> Matches:
    """Assigns each prediction, best first, the free true track of the largest IoU at or above each threshold.

    True tracks that are crowds or outside the range are ignored: they are assigned only if no other track qualifies.
    Crowds may be assigned repeatedly.  Of equal IoUs the last track wins.

    Args:
        predictions: P tracks by falling score.
        truths: G tracks of the same video and category.
        iou: (P, G) IoU of the tracks.
        ranges: A ranges.
    """
    scores = np.array([track.score for track in predictions])
    areas = np.array([track.area for track in predictions])
    crowd = np.array([track.crowd for track in truths], bool)
    # The official scorer stores the id of the assigned track as its mark of a match, so a track with id 0 never counts.
    countable = np.array([track.id != 0 for track in truths], bool)
    spare = np.stack(
        [crowd | ~r.contains(np.array([getattr(track, r.by) for track in truths])) for r in ranges]
    )[:, None]
    shape = (len(ranges), len(THRESHOLDS), len(predictions))
    matched, ignored = np.zeros(shape, bool), np.zeros(shape, bool)
    taken = np.zeros((*shape[:2], len(truths)), bool)
    thresholds = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    for p in np.flatnonzero((iou >= thresholds[0]).any(axis=1)):
        allowed = (iou[p] >= thresholds) & (crowd | ~taken)
        regular = allowed & ~spare
        candidates = np.where(regular.any(axis=-1, keepdims=True), regular, allowed)
        values = np.where(candidates, iou[p], -1.0)
        best = len(truths) - 1 - values[..., ::-1].argmax(axis=-1)  # the last maximum
        a, t = candidates.any(axis=-1).nonzero()
        taken[a, t, best[a, t]] = True
        matched[a, t, p] = countable[best[a, t]]
        ignored[a, t, p] = spare[a, 0, best[a, t]]
    # Occlusion ranges do not filter predictions, which have no occlusion level.
    outside = np.stack([~r.contains(areas) if r.by == "area" else np.zeros(len(areas), bool) for r in ranges])
    ignored |= ~matched & outside[:, None]
    return Matches(scores, matched, ignored, np.count_nonzero(~spare[:, 0], axis=1))


def _curves(matched: Array, ignored: Array, counting: Array) -> tuple[Array, Array]:
    """Precision at the recall points, (A, T, 101), and the recall reached, (A, T).

    Args:
        matched: (A, T, P), predictions by falling score.
        ignored: (A, T, P).
        counting: (A,) number of true tracks, at least 1.
    """
    if not matched.shape[-1]:
        return np.zeros((*matched.shape[:2], len(RECALLS))), np.zeros(matched.shape[:2])
    tp = np.cumsum(matched & ~ignored, axis=-1, dtype=np.float64)
    fp = np.cumsum(~matched & ~ignored, axis=-1, dtype=np.float64)
    recall = tp / counting[:, None, None]
    precision = tp / (fp + tp + np.spacing(1))
    precision = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    first = np.array([[np.searchsorted(row, RECALLS, side="left") for row in rows] for rows in recall])
    beyond = np.zeros((*matched.shape[:2], 1))
    points = np.take_along_axis(np.concatenate([precision, beyond], axis=-1), first, axis=-1)
    return points, recall[..., -1]


def accumulate(matches: Sequence[Sequence[Matches]], num_ranges: int = len(AREAS)) -> tuple[Array, Array]:
    """Pools the videos of each category.

    Args:
        matches: per category, the matches of its videos by rising video id.
        num_ranges: A.

    Returns:
        precision (T, 101, K, A, limits) and recall (T, K, A, limits), -1 where there is no true track.
    """
    precision = np.full((len(THRESHOLDS), len(RECALLS), len(matches), num_ranges, len(LIMITS)), -1.0)
    recall = np.full((len(THRESHOLDS), len(matches), num_ranges, len(LIMITS)), -1.0)
    for k, videos in enumerate(matches):
        counting = np.sum([video.counting for video in videos], axis=0) if videos else np.zeros(num_ranges)
        groups = np.flatnonzero(counting)
        for m, limit in enumerate(LIMITS) if len(groups) else ():
            order = np.argsort(-np.concatenate([v.scores[:limit] for v in videos]), kind="stable")
            matched = np.concatenate([v.matched[groups, :, :limit] for v in videos], axis=-1)[..., order]
            ignored = np.concatenate([v.ignored[groups, :, :limit] for v in videos], axis=-1)[..., order]
            points, reached = _curves(matched, ignored, counting[groups])
            precision[:, :, k, groups, m] = points.transpose(1, 2, 0)
            recall[:, k, groups, m] = reached.T
    return precision, recall


def mean_defined(values: Array) -> float:
    """Mean of the values that are not -1, or -1 if all are."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


def summarize(precision: Array, recall: Array, ranges: Sequence[Range] = AREAS) -> dict[str, float]:
    """The named scores as fractions, -1 where there is no true track.

    Names: AP, AP50, AP75, AP of every range (APs, APm, APl), AR1, AR10, AR100, AR of every range.
    """
    stats = {"AP": mean_defined(precision[:, :, :, 0, -1])}
    for percent in (50, 75):
        at = np.isclose(THRESHOLDS, percent / 100)
        stats[f"AP{percent}"] = mean_defined(precision[at][:, :, :, 0, -1])
    stats |= {f"AP{r.name}": mean_defined(precision[:, :, :, a, -1]) for a, r in enumerate(ranges) if r.name}
    stats |= {f"AR{limit}": mean_defined(recall[:, :, 0, m]) for m, limit in enumerate(LIMITS)}
    stats |= {f"AR{r.name}": mean_defined(recall[:, :, a, -1]) for a, r in enumerate(ranges) if r.name}
    return stats
