"""Video panoptic scores, VPQ and STQ, to the last digit of the official programs.

VPQ takes every run of k consecutive frames as one picture and scores its tubes as panoptic quality does; STQ is the
geometric mean of a per-pixel mean IoU (SQ) and of how well tubes keep their identity (AQ).  Both follow from one table
of a video: a window is the difference of two rows of its running sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .panoptic import VOID, Ints, VideoTable

Floats = NDArray[np.float64]

WINDOWS = (1, 2, 4, 6, 8)
PAPER_WINDOWS = (1, 2, 4, 6)
GROUPS = {"all": None, "thing": True, "stuff": False}


def _windows(table: NDArray[Any], length: int) -> NDArray[Any]:
    """Sums of each run of `length` rows: (T, n) to (T - length + 1, n)."""
    total = np.concatenate([np.zeros_like(table[:1]), table.cumsum(0)])
    return np.asarray(total[length:] - total[:-length])


@dataclass(frozen=True)
class _Tubes:
    """One side of a video cut into W windows.

    Attributes:
        first: (W, G) the frame that lists an id first, -1 where none of the window does.
        category: (W, G) its category there; meaningless where `first` is -1.
    """

    first: Ints
    category: Ints

    @property
    def listed(self) -> NDArray[np.bool_]:
        """(W, G)."""
        return self.first >= 0


def _cut(side: Any, length: int) -> _Tubes:
    first = side.first_listed(length)
    return _Tubes(first, np.take_along_axis(side.category, first.clip(min=0), axis=0))


def count_matches(table: VideoTable, length: int, categories: int) -> Floats:
    """What VPQ counts in all windows of one video.

    Args:
        table: the video.
        length: frames of a window; a shorter video has none.
        categories: K.

    Returns:
        (K, 4): the sum of IoUs of the matches, their number, false positives, false negatives.

    Raises:
        UserError: an IoU above 1, which means that the truth's stored areas are smaller than what it paints.
    """
    counts = np.zeros((categories, 4))
    if len(table) < length:
        return counts
    truth, prediction = _cut(table.truth, length), _cut(table.prediction, length)
    left, right = table.pairs
    shared = _windows(table.pixels, length)
    true_area = _windows(table.truth.area, length)
    covered = np.zeros((len(table.prediction.ids), len(left)), np.int64)
    covered[right, np.arange(len(left))] = 1
    area = shared @ covered.T
    is_void = table.truth.ids[left] == VOID
    on_void = shared @ (covered * is_void).T
    crowd = np.take_along_axis(table.truth.crowd, truth.first.clip(min=0), axis=0) & truth.listed

    possible = truth.listed[:, left] & prediction.listed[:, right] & (shared > 0) & ~crowd[:, left]
    possible &= truth.category[:, left] == prediction.category[:, right]
    window, pair = possible.nonzero()
    g, p, common = left[pair], right[pair], shared[window, pair]
    union = area[window, p] + true_area[window, g] - common - on_void[window, p]
    _check_unions(table, common > union, window, g, length)
    iou = common / union
    match = iou > 0.5
    window, g, p, iou = window[match], g[match], p[match], iou[match]
    found, used = np.zeros_like(truth.listed), np.zeros_like(prediction.listed)
    found[window, g] = used[window, p] = True
    label = truth.category[window, g]
    np.add.at(counts[:, 0], label, iou)
    np.add.at(counts[:, 1], label, 1)
    missed = truth.listed & ~found & ~crowd
    np.add.at(counts[:, 3], truth.category[missed], 1)
    excused = on_void + _on_crowds(table, truth, prediction, crowd, shared)
    wrong = prediction.listed & ~used & ~(2 * excused > area)
    np.add.at(counts[:, 2], prediction.category[wrong], 1)
    return counts


def _check_unions(table: VideoTable, broken: NDArray[np.bool_], window: Ints, g: Ints, length: int) -> None:
    if broken.any():
        row = int(broken.argmax())
        raise UserError(
            f"video {table.name}, {length} frames from frame {window[row]}: the stored areas of truth id "
            f"{table.truth.ids[g[row]]} are smaller than what it paints (an IoU above 1); correct `area` in the truth"
        )


def _on_crowds(
    table: VideoTable, truth: _Tubes, prediction: _Tubes, crowd: NDArray[np.bool_], shared: Ints
) -> Ints:
    """(W, G of the prediction) pixels on the crowd of its category, of several the one listed last."""
    pixels = np.zeros(prediction.first.shape, np.int64)
    (columns,) = crowd.any(axis=0).nonzero()
    if not len(columns):
        return pixels
    left, right = table.pairs
    pair_of = np.full((len(table.truth.ids), len(table.prediction.ids)), -1, np.int64)
    pair_of[left, right] = np.arange(len(left))
    first = truth.first.clip(min=0)
    rank = first * (1 + table.truth.position.max()) + np.take_along_axis(table.truth.position, first, axis=0)
    for w in crowd.any(axis=1).nonzero()[0]:
        here = columns[crowd[w, columns]]
        last = {int(truth.category[w, g]): g for g in here[np.argsort(rank[w, here])]}
        for p in prediction.listed[w].nonzero()[0]:
            g = last.get(int(prediction.category[w, p]), -1)
            if g >= 0 and pair_of[g, p] >= 0:
                pixels[w, p] = shared[w, pair_of[g, p]]
    return pixels


@dataclass(frozen=True)
class TubeCounts:
    """What STQ needs of one video.

    Attributes:
        confusion: (K + 1, K + 1) int64 pixels by true and predicted category, the last one for unlabelled.
        association: the sum over true tubes of their weighted association.
        tubes: the number of true tubes.
        length: the number of frames.
    """

    confusion: Ints
    association: float
    tubes: int
    length: int


def count_tubes(table: VideoTable, things: NDArray[np.bool_]) -> TubeCounts:
    """STQ's counts of one video.

    Args:
        table: the video.
        things: (K,) whether a category's segments have an identity.
    """
    unlabelled = len(things)
    left, right = table.pairs
    frame, pair = table.pixels.nonzero()
    pixels = table.pixels[frame, pair]
    true = table.truth.painted[frame, left[pair]]
    predicted = table.prediction.painted[frame, right[pair]]
    true, predicted = np.where(true < 0, unlabelled, true), np.where(predicted < 0, unlabelled, predicted)
    confusion = np.zeros((unlabelled + 1, unlabelled + 1), np.int64)
    np.add.at(confusion, (true, predicted), pixels)

    is_thing = np.append(things, False)
    number = table.truth.number[left[pair]]
    # The reference takes number 0, the first segment that the video lists, for a crowd if it is a thing.
    crowd = is_thing[true] & (number == 0)
    has_truth = is_thing[true] & ~crowd
    has_prediction = is_thing[predicted] & ~crowd
    true_tube = true * (1 + len(table.truth.ids)) + number
    predicted_tube = predicted * (1 + len(table.prediction.ids)) + table.prediction.number[right[pair]]
    true_size = _sizes(true_tube[has_truth], pixels[has_truth])
    predicted_size = _sizes(predicted_tube[has_prediction], pixels[has_prediction])
    both = has_truth & has_prediction
    shared = _sizes(
        true_tube[both] * (1 + predicted_tube.max(initial=0)) + predicted_tube[both], pixels[both]
    )
    association = 0.0
    for key, common in shared.items():
        g, p = divmod(key, 1 + int(predicted_tube.max(initial=0)))
        association += common * common / (true_size[g] + predicted_size[p] - common) / true_size[g]
    return TubeCounts(confusion, association, len(true_size), len(table))


def _sizes(tubes: Ints, pixels: Ints) -> dict[int, int]:
    keys, inverse = np.unique(tubes, return_inverse=True)
    totals = np.zeros(len(keys), np.int64)
    np.add.at(totals, inverse, pixels)
    return dict(zip(keys.tolist(), totals.tolist(), strict=True))


@dataclass(frozen=True)
class VideoCounts:
    """One video's share of the scores; small, so that many processes can hand theirs over.

    Attributes:
        name: the video's id.
        windows: for every window length what `count_matches` gives.
        tubes: what `count_tubes` gives.
    """

    name: str
    windows: Mapping[int, Floats]
    tubes: TubeCounts


def count_video(table: VideoTable, things: NDArray[np.bool_]) -> VideoCounts:
    """Everything that is counted in one video; `things` as for `count_tubes`."""
    windows = {length: count_matches(table, length, len(things)) for length in WINDOWS}
    return VideoCounts(table.name, windows, count_tubes(table, things))


def _window_scores(counts: Floats, ids: Sequence[int], things: NDArray[np.bool_]) -> dict[str, Any]:
    """The scores of one window length from the (K, 4) counts of all videos."""
    iou, tp, fp, fn = counts.T
    used = tp + fp + fn > 0
    weight = np.where(used, tp + 0.5 * fp + 0.5 * fn, 1)
    pq, rq, sq = iou / weight, tp / weight, iou / np.where(tp > 0, tp, 1)
    scores: dict[str, Any] = {}
    for name, wanted in GROUPS.items():
        members = used if wanted is None else used & (things == wanted)
        count = int(members.sum())
        means = (
            {
                key: float(values[members].sum()) / count
                for key, values in (("pq", pq), ("sq", sq), ("rq", rq))
            }
            if count
            else None
        )
        scores[name] = means and {**means, "n": float(count)}
    names = ("pq", "sq", "rq", "iou", "tp", "fp", "fn")
    rows = np.stack([pq, sq, rq, iou, tp, fp, fn], 1)
    by_id = sorted((ids[k], k) for k in used.nonzero()[0])
    scores["per_class"] = {str(i): dict(zip(names, rows[k].tolist(), strict=True)) for i, k in by_id}
    # The published program divides by the number of classes of each group.
    scores["script_error"] = "ZeroDivisionError" if any(scores[name] is None for name in GROUPS) else None
    return scores


def _mean_of_windows(windows: Mapping[str, Any], lengths: Sequence[int]) -> dict[str, float | None]:
    """Percent; null for a group that has no class in one of the windows."""
    means: dict[str, float | None] = {}
    for name in GROUPS:
        groups = [windows[str(length)][name] for length in lengths]
        defined = all(group is not None for group in groups)
        means[name] = 100 * sum(group["pq"] for group in groups) / len(groups) if defined else None
    return means


def _mean_iou(confusion: Ints) -> float:
    """SQ: unlabelled truth is dropped, unlabelled predictions are a class that nobody hits."""
    kept = confusion.copy()
    kept[-1] = 0
    hit = kept.diagonal()
    union = kept.sum(0) + kept.sum(1) - hit
    present = union > 0
    return float((hit[present] / union[present]).mean()) if present.any() else math.nan


def _stq(videos: Sequence[TubeCounts]) -> dict[str, Any]:
    tubes = sum(video.tubes for video in videos)
    aq = sum(video.association for video in videos) / max(tubes, 1)
    sq = (
        _mean_iou(sum((v.confusion for v in videos), np.zeros_like(videos[0].confusion)))
        if videos
        else math.nan
    )
    aqs = [video.association / max(video.tubes, 1) for video in videos]
    sqs = [_mean_iou(video.confusion) for video in videos]

    def number(value: float) -> float | None:
        return None if math.isnan(value) else value

    return {
        "STQ": number(math.sqrt(aq * sq)),
        "AQ": aq,
        "SQ": number(sq),
        "STQ_per_seq": [number(math.sqrt(a * s)) for a, s in zip(aqs, sqs, strict=True)],
        "AQ_per_seq": aqs,
        "SQ_per_seq": [number(s) for s in sqs],
        "num_gt_tubes_per_seq": [video.tubes for video in videos],
        "length_per_seq": [video.length for video in videos],
    }


def summarize(videos: Sequence[VideoCounts], categories: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All scores from the videos' counts, in the order in which the videos are to be reported.

    Args:
        videos: their counts.
        categories: {id, isthing} in the order of the counts.

    Returns:
        `vpq_windows`: by window length (as text) `all`, `thing` and `stuff`, each {pq, sq, rq} as fractions and n, the
        classes averaged, or None where no class of the group was counted; `per_class`; and `script_error`, the
        exception with which the published program ends for that window because a group is empty, else None.
        `VPQ`: percent, the mean over windows of 1, 2, 4 and 6 frames, as papers report it.
        `VPQ_script_final_5_windows`: the same with 8, as the published program writes at its end.
        `stq`: STQ, AQ, SQ as fractions, and per video; None where a number is undefined.
    """
    ids = [int(c["id"]) for c in categories]
    things = thing_flags(categories)
    empty = np.zeros((len(ids), 4))
    windows = {
        str(length): _window_scores(sum((v.windows[length] for v in videos), empty), ids, things)
        for length in WINDOWS
    }
    return {
        "vpq_windows": windows,
        "VPQ": _mean_of_windows(windows, PAPER_WINDOWS),
        "VPQ_script_final_5_windows": _mean_of_windows(windows, WINDOWS),
        "stq": _stq([video.tubes for video in videos]),
    }


def thing_flags(categories: Sequence[Mapping[str, Any]]) -> NDArray[np.bool_]:
    """(K,) which categories are things.

    Raises:
        UserError: a category has no `id` that is a number, or does not say `isthing`.
    """
    for category in categories:
        sound = (
            isinstance(category, Mapping) and isinstance(category.get("id"), int) and "isthing" in category
        )
        if not sound:
            raise UserError(f"a category needs `id` and `isthing`, numbers (1 thing, 0 stuff): {category}")
    return np.array([bool(category["isthing"]) for category in categories], np.bool_)
