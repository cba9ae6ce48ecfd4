"""Average precision and recall: predicted tracks are given true ones by IoU, video by video, and pooled.

The numbers are those of the official YouTube-VIS and OVIS scorers, quirks included; each quirk is named where it is
built in.  The stages are pure functions: `match` -> `accumulate` -> `summarize`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .kernels import compiled
from .tracks import MOST_TRACKS, Track

Array = NDArray[Any]

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
LIMITS = (1, 10, MOST_TRACKS)


@dataclass(frozen=True)
class Range:
    """A group of truth tracks that is scored apart; both ends belong to it."""

    name: str
    low: float
    high: float
    by: Literal["area", "occlusion"] = "area"


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
    """What became of one video's predictions of one category; A ranges, T thresholds, P predictions.

    Attributes:
        scores: (P,) falling.
        matched: (A, T, P) bool, whether the prediction found a truth track.
        ignored: (A, T, P) bool, whether it is left out of the counts.
        counting: (A,) int64 the number of truth tracks that count.
    """

    scores: Array
    matched: Array
    ignored: Array
    counting: Array


@compiled
def assign(
    iou: Array, thresholds: Array, bounds: Array, by_area: Array, p_area: Array, truth: Array
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Gives each prediction, best first, the free true track that it overlaps most, the last one among equals.

    Args:
        iou: (P, G) float64, predictions by falling score.
        thresholds: (T,) least IoU of a match.
        bounds: (A, 2) float64 both ends of each range.
        by_area: (A,) bool, whether it is one of areas and not of occlusions.
        p_area: (P,) float64 areas of the predictions.
        truth: (G, 4) float64: area, occlusion, whether it is a crowd, whether it counts as found when it is taken.

    Returns:
        (A, T, P) bool, whether the prediction found a track, and whether it is left out of the counts; (A,) int64, the
        true tracks that count.
    """
    A, T, (P, G) = len(bounds), len(thresholds), iou.shape
    matched = np.zeros((A, T, P), dtype=np.bool_)
    ignored = np.zeros((A, T, P), dtype=np.bool_)
    counting = np.zeros(A, dtype=np.int64)
    spare = np.zeros(G, dtype=np.bool_)  # tracks that are taken only where no other will do, and do not count
    for a in range(A):
        low, high = bounds[a]
        for g in range(G):
            value = truth[g, 0] if by_area[a] else truth[g, 1]
            spare[g] = truth[g, 2] or value < low or value > high
            counting[a] += not spare[g]
        for t in range(T):
            taken = np.zeros(G, dtype=np.bool_)
            for p in range(P):
                choice = _choose(iou[p], thresholds[t], truth, spare, taken)
                if choice >= 0:
                    taken[choice] = True
                    matched[a, t, p] = truth[choice, 3]
                    ignored[a, t, p] = spare[choice]
                # Occlusion does not filter predictions, which have none.
                if not matched[a, t, p] and by_area[a] and (p_area[p] < low or p_area[p] > high):
                    ignored[a, t, p] = True
    return matched, ignored, counting


@compiled
def _choose(iou: Array, threshold: float, truth: Array, spare: Array, taken: Array) -> int:
    """The true track that a prediction takes, -1 if there is none."""
    choice, best = -1, threshold
    for turn in (False, True):
        for g in range(len(spare)):
            free = truth[g, 2] or not taken[g]
            if free and spare[g] == turn and iou[g] >= best:
                best, choice = iou[g], g
        if choice >= 0:
            break
    return choice


def match(
    predictions: Sequence[Track],
    truths: Sequence[Track],
    iou: Array,
    ranges: Sequence[Range] = AREAS,
    thresholds: Array = THRESHOLDS,
) -> Matches:
    """Gives each prediction, best first, the free truth track that it overlaps most.

    Args:
        predictions: P tracks by falling score.
        truths: G tracks of the same video and category.
        iou: (P, G) of `track_iou`.
        ranges: A groups; a truth track outside is ignored, and so is an unmatched prediction outside.
        thresholds: (T,) least IoU of a match.
    """
    bounds = np.array([(r.low, r.high) for r in ranges], dtype=np.float64)
    by_area = np.array([r.by == "area" for r in ranges])
    seen = [(track.area, track.score) for track in predictions]
    areas, scores = np.array(seen, dtype=np.float64).reshape(-1, 2).T.copy()
    # A track whose id is 0 is taken, but whoever takes it has found nothing: the official scorer stores the id as the
    # mark of a match.
    true = [(track.area, track.occlusion, track.crowd, track.id != 0) for track in truths]
    facts = np.array(true, dtype=np.float64).reshape(-1, 4)
    found = assign(iou, np.minimum(thresholds, 1 - 1e-10), bounds, by_area, areas, facts)
    return Matches(scores, *found)


def _curves(matched: Array, ignored: Array, counting: Array) -> tuple[Array, Array]:
    """Precision at the recall points, (A, T, 101), and the recall reached, (A, T).

    Args:
        matched: (A, T, P), predictions by falling score.
        ignored: (A, T, P).
        counting: (A,) the truth tracks that count, at least one.
    """
    if not matched.shape[-1]:
        return np.zeros((*matched.shape[:2], len(RECALLS))), np.zeros(matched.shape[:2])
    true = np.cumsum(matched & ~ignored, axis=-1, dtype=np.float64)
    false = np.cumsum(~matched & ~ignored, axis=-1, dtype=np.float64)
    recall = true / counting[:, None, None]
    precision = true / (false + true + np.spacing(1))
    precision = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    places = np.array([[np.searchsorted(row, RECALLS, side="left") for row in rows] for rows in recall])
    beyond = np.zeros((*matched.shape[:2], 1))
    points = np.take_along_axis(np.concatenate([precision, beyond], axis=-1), places, axis=-1)
    return points, recall[..., -1]


def accumulate(
    matches: Sequence[Sequence[Matches]], ranges: int = len(AREAS), limits: Sequence[int] = LIMITS
) -> tuple[Array, Array]:
    """Pools the videos of each category.

    Args:
        matches: per category, the matches of its videos by rising video id.
        ranges: A, the number of ranges matched for.
        limits: the first so many predictions of every video and category are used; rising.

    Returns:
        precision (T, 101, K, A, limits) and recall (T, K, A, limits), -1 where no truth counts.
    """
    precision = np.full((len(THRESHOLDS), len(RECALLS), len(matches), ranges, len(limits)), -1.0)
    recall = np.full((len(THRESHOLDS), len(matches), ranges, len(limits)), -1.0)
    for k, videos in enumerate(matches):
        counting = np.sum([video.counting for video in videos], axis=0) if videos else np.zeros(ranges)
        groups = np.flatnonzero(counting)
        if not len(groups):
            continue
        most = max(len(video.scores) for video in videos)
        for m, limit in enumerate(limits):
            if m and most <= limits[m - 1]:
                # The limit before took all there is.
                precision[:, :, k, :, m] = precision[:, :, k, :, m - 1]
                recall[:, k, :, m] = recall[:, k, :, m - 1]
                continue
            scores = np.concatenate([video.scores[:limit] for video in videos])
            order = np.argsort(-scores, kind="stable")
            matched, ignored = (
                np.concatenate([getattr(video, part)[groups, :, :limit] for video in videos], axis=-1)[
                    ..., order
                ]
                for part in ("matched", "ignored")
            )
            points, reached = _curves(matched, ignored, counting[groups])
            precision[:, :, k, groups, m] = points.transpose(1, 2, 0)
            recall[:, k, groups, m] = reached.T
    return precision, recall


def mean_defined(values: Array) -> float:
    """The mean of what is defined, -1 if nothing is."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


def summarize(precision: Array, recall: Array, ranges: Sequence[Range] = AREAS) -> dict[str, float]:
    """The named scores as fractions, -1 where no truth counts.

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
