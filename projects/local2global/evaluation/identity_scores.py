"""Scores beyond AP: HOTA, IDF1 and identity switches by trackeval, and AP by video length.

Each (video, category) is one sequence of trackeval; all sequences are pooled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import UserError
from .masks import intersections
from .tracks import Track
from .ytvis import Scores

MIN_SCORE = 0.3  # these scores use no ranking, so only confident predictions take part


def _sequence(predictions: Sequence[Track], truths: Sequence[Track]) -> dict[str, Any]:
    """One sequence for trackeval: the ids that are visible on each frame, and their IoUs."""
    sides = [track.masks for track in truths], [track.masks for track in predictions]
    frames = max((len(masks) for side in sides for masks in side), default=0)
    areas = [np.zeros((len(side), frames), np.int64) for side in sides]
    for side, table in zip(sides, areas, strict=True):
        for row, masks in zip(table, side, strict=True):
            row[: len(masks)] = masks.areas
    common = np.zeros((len(sides[0]), len(sides[1]), frames), np.int64)
    shared = intersections(*sides)
    common[:, :, : shared.shape[2]] = shared
    union = areas[0][:, None] + areas[1][None] - common
    iou = common / np.maximum(union, 1)
    visible = [[np.flatnonzero(table[:, t]) for t in range(frames)] for table in areas]
    return {
        "num_timesteps": frames,
        "num_gt_ids": len(truths),
        "num_tracker_ids": len(predictions),
        "num_gt_dets": np.count_nonzero(areas[0]),
        "num_tracker_dets": np.count_nonzero(areas[1]),
        "gt_ids": visible[0],
        "tracker_ids": visible[1],
        "similarity_scores": [iou[..., t][np.ix_(*(side[t] for side in visible))] for t in range(frames)],
    }


def identity_scores(scores: Scores) -> dict[str, float]:
    """HOTA, its parts DetA and AssA, and IDF1 as fractions, and the number of identity switches at IoU .5.

    Crowds and predictions that score below `MIN_SCORE` are left out.

    Raises:
        UserError: trackeval is not installed.
    """
    try:
        from trackeval.metrics import CLEAR, HOTA, Identity
    except ImportError as error:
        raise UserError(
            'HOTA, IDF1 and switches need trackeval: pip install "local2global[metrics]"'
        ) from error
    config = {"PRINT_CONFIG": False, "THRESHOLD": 0.5}
    metrics = {"HOTA": HOTA(), "Identity": Identity(dict(config)), "CLEAR": CLEAR(dict(config))}
    sequences: dict[str, dict[str, Any]] = {name: {} for name in metrics}
    for key in scores.predictions.keys() | scores.truths.keys():
        predictions = [track for track in scores.predictions.get(key, ()) if track.score >= MIN_SCORE]
        truths = [track for track in scores.truths.get(key, ()) if not track.crowd]
        data = _sequence(predictions, truths)
        for name, metric in metrics.items():
            sequences[name]["/".join(map(str, key))] = metric.eval_sequence(data)
    pooled = {name: metric.combine_sequences(sequences[name]) for name, metric in metrics.items()}
    return {
        **{name: float(np.mean(pooled["HOTA"][name])) for name in ("HOTA", "DetA", "AssA")},
        "IDF1": float(pooled["Identity"]["IDF1"]),
        "switches": float(pooled["CLEAR"]["IDSW"]),
    }


def by_length(scores: Scores, truth: Mapping[str, Any]) -> dict[str, float]:
    """AP of the shortest, the middle and the longest third of the videos; -1 where a third has no truth."""
    lengths = {v["id"]: int(v.get("length") or len(v.get("file_names") or ())) for v in truth["videos"]}
    ordered = sorted(lengths, key=lambda video: lengths[video])
    table = {}
    for label, part in zip(
        ("short", "middle", "long"), np.array_split(np.arange(len(ordered)), 3), strict=True
    ):
        videos = [ordered[i] for i in part]
        if videos:
            name = f"AP {label} ({len(videos)} videos, {lengths[videos[0]]}-{lengths[videos[-1]]} frames)"
            table[name] = scores.stats_of(videos)["AP"]
    return table
