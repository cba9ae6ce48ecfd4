"""J and F of video object segmentation, as the DAVIS benchmark defines them (Perazzi et al., CVPR 2016).

*J*, region similarity: IoU of the predicted and the true mask of a frame.  *F*, contour accuracy: the harmonic mean of
precision and recall of boundary pixels, matched within .8 % of the frame's diagonal.  The score of an object is the
mean over the frames of its video without the first, whose mask is given, and the last; classes are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from scipy.ndimage import distance_transform_edt
from scipy.optimize import linear_sum_assignment

from .files import read_json
from .masks import MaskTrack, track_iou
from .oddities import Oddities
from .tracks import check_truth, parse_results, parse_truth

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

#: Distance in which boundary pixels match, as a fraction of the frame's diagonal; rounded up to whole pixels.
TOLERANCE = 0.008


def region_similarity(predicted: Mask, true: Mask) -> float:
    """J of one frame: IoU in [0, 1] of two (H, W) masks; 1 if both are empty."""
    union = np.count_nonzero(predicted | true)
    return np.count_nonzero(predicted & true) / union if union else 1.0


def boundary(mask: Mask) -> Mask:
    """Boundary pixels of a (H, W) mask: those that differ from the pixel to the right, below, or below right."""
    right, below, diagonal = mask.copy(), mask.copy(), mask.copy()
    right[:, :-1] = mask[:, 1:]
    below[:-1] = mask[1:]
    diagonal[:-1, :-1] = mask[1:, 1:]
    diagonal[-1, :-1], diagonal[:-1, -1] = mask[-1, 1:], mask[1:, -1]
    return np.asarray((mask ^ right) | (mask ^ below) | (mask ^ diagonal))


def contour_accuracy(predicted: Mask, true: Mask, tolerance: float = TOLERANCE) -> float:
    """F of one frame in [0, 1]; 1 if both (H, W) masks are empty, 0 if one is."""
    radius = math.ceil(tolerance * math.hypot(*true.shape))
    found, wanted = boundary(predicted), boundary(true)
    if not (found.any() and wanted.any()):
        return float(not found.any() and not wanted.any())
    precision = (distance_transform_edt(~wanted)[found] <= radius).mean()
    recall = (distance_transform_edt(~found)[wanted] <= radius).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def object_scores(
    predicted: MaskTrack | None, true: MaskTrack, size: tuple[int, int]
) -> tuple[Floats, Floats]:
    """J and F of one object on every scored frame.

    Args:
        predicted: its predicted masks; None if there is no prediction.
        true: its true masks on T frames.
        size: (height, width) of the video; a mask of another size counts as empty.

    Returns:
        (T - 2,) J and (T - 2,) F; of videos of two frames and less, all frames.
    """
    frames = range(1, len(true) - 1) if len(true) > 2 else range(len(true))
    pairs = [(_decode(predicted, t, size), _decode(true, t, size)) for t in frames]
    return (
        np.array([region_similarity(*pair) for pair in pairs]),
        np.array([contour_accuracy(*pair) for pair in pairs]),
    )


def _size(video: Mapping[str, Any], masks: MaskTrack) -> tuple[int, int]:
    """(height, width) of a video, or of the first mask of a true track where the truth does not state them."""
    height, width = video.get("height"), video.get("width")
    if height is None or width is None:
        height, width = next((rle["size"] for rle in masks.rles if rle is not None), (1, 1))
    return int(height), int(width)


def _decode(track: MaskTrack | None, t: int, size: tuple[int, int]) -> Mask:
    rle = track.rles[t] if track is not None and t < len(track) else None
    if rle is None or tuple(rle["size"]) != size:
        return np.zeros(size, dtype=bool)
    return np.asarray(coco_mask.decode(dict(rle)), dtype=bool)


def assign_tracks(predicted: Sequence[MaskTrack], true: Sequence[MaskTrack]) -> list[int]:
    """The predicted track of each true one, -1 for none: one-to-one, with the largest sum of track IoUs."""
    assigned = [-1] * len(true)
    if predicted and true:
        iou = track_iou(predicted, true)
        for row, column in zip(*linear_sum_assignment(-iou), strict=True):
            if iou[row, column] > 0:
                assigned[column] = int(row)
    return assigned


def mean_scores(objects: Sequence[tuple[Floats, Floats]]) -> dict[str, float]:
    """Means over objects, as fractions: `J&F`, `J`, `F`, and recalls, the share of frames above .5.

    Args:
        objects: the scores of `object_scores`.
    """
    names = ("J", "F")
    scores: dict[str, float] = {}
    for k, name in enumerate(names):
        values = [pair[k] for pair in objects if len(pair[k])]
        scores[name] = float(np.mean([v.mean() for v in values])) if values else math.nan
        scores[f"{name} recall"] = float(np.mean([(v > 0.5).mean() for v in values])) if values else math.nan
    return {"J&F": (scores["J"] + scores["F"]) / 2, **scores}


def score_files(truth: str | Path, results: str | Path, oddities: Oddities | None = None) -> dict[str, float]:
    """Scores of two files; arguments and errors are those of `ytvis.score_files`.

    Each true object has the predicted track of `assign_tracks`; crowds are left out.
    """
    annotations = read_json(truth)
    check_truth(annotations)
    return score(annotations, read_json(results), oddities)


def score(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], oddities: Oddities | None = None
) -> dict[str, float]:
    """`score_files` of parsed files."""
    predictions, truths = parse_results(results, truth, oddities), parse_truth(truth, oddities)
    objects = []
    for video in truth["videos"]:
        predicted = [
            track.masks for key, group in predictions.items() if key[0] == video["id"] for track in group
        ]
        true = [
            track.masks
            for key, group in truths.items()
            if key[0] == video["id"]
            for track in group
            if not track.crowd
        ]
        for row, masks in zip(assign_tracks(predicted, true), true, strict=True):
            objects.append(object_scores(predicted[row] if row >= 0 else None, masks, _size(video, masks)))
    return mean_scores(objects)
