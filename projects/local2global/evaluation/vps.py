"""Video panoptic scores VPQ and STQ, equal to the official programs to 1e-9.

VPQ treats every window of k consecutive frames as one image and computes the panoptic quality of its tubes.  STQ is the
geometric mean of SQ, a per-pixel mean IoU, and AQ, which measures how well tubes keep their identity.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .panoptic import VOID, FrameOverlap, Segment

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

WINDOWS = (1, 2, 4, 6, 8)
PAPER_WINDOWS = (1, 2, 4, 6)
GROUPS = {"all": None, "thing": True, "stuff": False}


def _merge(lists: Iterable[Sequence[Segment]]) -> dict[int, Segment]:
    """The segments of a window by id: category and crowd flag of the first entry, the sum of all areas."""
    merged: dict[int, Segment] = {}
    for segment in (segment for segments in lists for segment in segments):
        first = merged.get(segment.id)
        merged[segment.id] = segment if first is None else replace(first, area=first.area + segment.area)
    return merged


def count_window(name: str, frames: Sequence[FrameOverlap], counts: Floats) -> None:
    """Adds the matches of one window to `counts`.

    Args:
        name: video and window, for messages.
        frames: the window's frames.
        counts: (K, 4) sum of IoUs of the matches, number of matches (tp), of false positives, of false negatives.

    Raises:
        UserError: an IoU above 1, i.e. the truth's listed areas are smaller than the painted ones.
    """
    truth, prediction = _merge(frame.truth for frame in frames), _merge(frame.prediction for frame in frames)
    common: Counter[tuple[int, int]] = Counter()
    area: Counter[int] = Counter()
    for frame in frames:
        for (g, p), pixels in frame.pixels.items():
            common[g, p] += pixels
            area[p] += pixels
    found, used = set(), set()
    for (g, p), pixels in common.items():
        true, predicted = truth.get(g), prediction.get(p)
        if true is None or predicted is None or true.crowd or true.category != predicted.category:
            continue
        union = area[p] + true.area - pixels - common[VOID, p]
        if pixels > union:
            raise UserError(
                f"{name}: the stored areas of truth id {g} are smaller than what it paints (an IoU above 1); "
                "correct `area` in the truth"
            )
        if pixels / union > 0.5:
            counts[true.category, :2] += pixels / union, 1
            found.add(g)
            used.add(p)
    for g, true in truth.items():
        counts[true.category, 3] += g not in found and not true.crowd
    crowds = {true.category: g for g, true in truth.items() if true.crowd}  # of several, the last in the list
    for p, predicted in prediction.items():
        excused = common[VOID, p] + common[crowds.get(predicted.category, -1), p]
        counts[predicted.category, 2] += p not in used and 2 * excused <= area[p]


def count_matches(name: str, frames: Sequence[FrameOverlap], length: int, categories: int) -> Floats:
    """VPQ counts of all windows of one video.

    Args:
        name: the video, for messages.
        frames: its frames.
        length: frames of a window; a shorter video has none.
        categories: K.

    Returns:
        (K, 4) counts of `count_window`.
    """
    counts = np.zeros((categories, 4))
    for start in range(len(frames) - length + 1):
        window = frames[start : start + length]
        count_window(f"video {name}, {length} frames from frame {start}", window, counts)
    return counts


@dataclass(frozen=True)
class TubeCounts:
    """STQ counts of one video.

    Attributes:
        confusion: (K + 1, K + 1) int64 pixels by true and predicted category, the last one for unlabelled pixels.
        association: sum over true tubes of their weighted association.
        tubes: number of true tubes.
        length: number of frames.
    """

    confusion: Ints
    association: float
    tubes: int
    length: int


def count_tubes(frames: Sequence[FrameOverlap], things: Bools) -> TubeCounts:
    """STQ counts of one video.

    Ids are numbered by first listing.  The reference program treats number 0 as a crowd if it is a thing.

    Args:
        frames: its frames.
        things: (K,) whether a category's segments have an identity.
    """
    unlabelled = len(things)
    is_thing = np.append(things, False).tolist()
    confusion = np.zeros((unlabelled + 1, unlabelled + 1), np.int64)
    first_true = next((segment.id for frame in frames for segment in frame.truth), None)
    true_size: Counter[tuple[int, int]] = Counter()  # by (category, id)
    predicted_size: Counter[tuple[int, int]] = Counter()
    common: Counter[tuple[tuple[int, int], tuple[int, int]]] = Counter()
    for frame in frames:
        true_category = {segment.id: segment.category for segment in frame.truth}
        predicted_category = {segment.id: segment.category for segment in frame.prediction}
        for (g, p), pixels in frame.pixels.items():
            true, predicted = true_category.get(g, unlabelled), predicted_category.get(p, unlabelled)
            confusion[true, predicted] += pixels
            if is_thing[true] and g == first_true:
                continue
            if is_thing[true]:
                true_size[true, g] += pixels
            if is_thing[predicted]:
                predicted_size[predicted, p] += pixels
            if is_thing[true] and is_thing[predicted]:
                common[(true, g), (predicted, p)] += pixels
    association = 0.0
    for (true_tube, predicted_tube), pixels in common.items():
        union = true_size[true_tube] + predicted_size[predicted_tube] - pixels
        association += pixels * pixels / union / true_size[true_tube]
    return TubeCounts(confusion, association, len(true_size), len(frames))


@dataclass(frozen=True)
class VideoCounts:
    """All counts of one video, small enough to be gathered from many processes.

    Attributes:
        windows: (K, 4) counts of `count_window` by window length.
        tubes: counts of `count_tubes`.
    """

    windows: Mapping[int, Floats]
    tubes: TubeCounts


def count_video(name: str, frames: Sequence[FrameOverlap], things: Bools) -> VideoCounts:
    """All counts of one video; `things` as in `count_tubes`."""
    windows = {length: count_matches(name, frames, length, len(things)) for length in WINDOWS}
    return VideoCounts(windows, count_tubes(frames, things))


def _window_scores(counts: Floats, ids: Sequence[int], things: Bools) -> dict[str, Any]:
    """The scores of one window length from the (K, 4) counts of all videos."""
    iou, tp, fp, fn = counts.T
    used = tp + fp + fn > 0
    weight = np.where(used, tp + 0.5 * fp + 0.5 * fn, 1)
    rows = {"pq": iou / weight, "sq": iou / np.where(tp > 0, tp, 1), "rq": tp / weight}
    scores: dict[str, Any] = {}
    for name, thing in GROUPS.items():
        members = used if thing is None else used & (things == thing)
        count = int(members.sum())
        means = {key: float(values[members].sum()) / max(count, 1) for key, values in rows.items()}
        scores[name] = {**means, "n": float(count)} if count else None
    rows |= {"iou": iou, "tp": tp, "fp": fp, "fn": fn}
    by_id = sorted((ids[k], int(k)) for k in used.nonzero()[0])
    scores["per_class"] = {str(i): {key: float(values[k]) for key, values in rows.items()} for i, k in by_id}
    # The official program divides by the number of classes of each group.
    scores["script_error"] = "ZeroDivisionError" if any(scores[name] is None for name in GROUPS) else None
    return scores


def _mean_of_windows(windows: Mapping[str, Any], lengths: Sequence[int]) -> dict[str, float | None]:
    """Percent; None for a group without a class in one of the windows."""
    means: dict[str, float | None] = {}
    for name in GROUPS:
        groups = [windows[str(length)][name] for length in lengths]
        means[name] = None if None in groups else 100 * sum(group["pq"] for group in groups) / len(groups)
    return means


def _mean_iou(confusion: Ints) -> float | None:
    """SQ: unlabelled truth is dropped, unlabelled predictions on labelled truth are a class of IoU 0."""
    labelled = confusion.copy()
    labelled[-1] = 0
    hit = labelled.diagonal()
    union = labelled.sum(0) + labelled.sum(1) - hit
    present = union > 0
    return float((hit[present] / union[present]).mean()) if present.any() else None


def _stq(aq: float, sq: float | None) -> float | None:
    return None if sq is None else math.sqrt(aq * sq)


def _stq_scores(videos: Sequence[TubeCounts]) -> dict[str, Any]:
    tubes = sum(video.tubes for video in videos)
    aq = sum(video.association for video in videos) / max(tubes, 1)
    sq = _mean_iou(sum(video.confusion for video in videos)) if videos else None  # type: ignore[arg-type]
    aqs = [video.association / max(video.tubes, 1) for video in videos]
    sqs = [_mean_iou(video.confusion) for video in videos]
    return {
        "STQ": _stq(aq, sq),
        "AQ": aq,
        "SQ": sq,
        "STQ_per_seq": [_stq(a, s) for a, s in zip(aqs, sqs, strict=True)],
        "AQ_per_seq": aqs,
        "SQ_per_seq": sqs,
        "num_gt_tubes_per_seq": [video.tubes for video in videos],
        "length_per_seq": [video.length for video in videos],
    }


def summarize(videos: Sequence[VideoCounts], categories: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All scores from the counts of all videos.

    Args:
        videos: their counts, in the order of the per-video scores.
        categories: {id, isthing} in the order of the counts.

    Returns:
        `vpq_windows`: by window length (as text) `all`, `thing` and `stuff`, each {pq, sq, rq} as fractions and n, the
        number of classes, or None if no class of the group was counted; `per_class`; `script_error`, the exception of
        the official program for that window because a group is empty, else None.  `VPQ`: percent, mean over windows of
        1, 2, 4 and 6 frames, as in papers.  `VPQ_script_final_5_windows`: the same with 8, as the official program
        prints.  `stq`: STQ, AQ, SQ as fractions, and per video; None where a number is undefined.
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
        "stq": _stq_scores([video.tubes for video in videos]),
    }


def thing_flags(categories: Sequence[Mapping[str, Any]]) -> Bools:
    """(K,) which categories are things.

    Raises:
        UserError: a category without `isthing` or a number `id`, or with the id of another.
    """
    seen = set()
    for entry in categories:
        whole = isinstance(entry, Mapping) and isinstance(entry.get("id"), int)
        if not (whole and entry.get("isthing") in (0, 1)):
            raise UserError(f"a category needs `id` and `isthing`, numbers (1 thing, 0 stuff): {entry}")
        if entry["id"] in seen:
            raise UserError(f"two categories have the id {entry['id']}")
        seen.add(entry["id"])
    return np.array([bool(category["isthing"]) for category in categories], np.bool_)
