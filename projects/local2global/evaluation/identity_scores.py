"""Beyond AP: HOTA, IDF1 and identity switches of result files, and AP by the length of videos.

HOTA, IDF1 and switches are trackeval's; a (video, category) is a sequence of its own, and all of them are pooled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .overlaps import overlaps
from .precision import AREAS
from .tracks import Track
from .ytvis import Scores, score_tracks

Array = NDArray[Any]
MIN_SCORE = 0.3  # these scores know no ranking: only tracks that would be reported take part


def _frame_ious(predictions: Sequence[Track], truths: Sequence[Track], t: int) -> Array:
    """(P, G) IoU on frame `t` of tracks that have a mask there."""
    sides = []
    for tracks in (predictions, truths):
        masks = tracks[0].masks
        spans = np.array([(track.span[0] + t, track.span[0] + t + 1) for track in tracks])
        sides += [masks.runs, masks.rows, masks.facts, spans]
    iou: Array = overlaps(*sides, 0.0)
    return iou


def _sequence(predictions: Sequence[Track], truths: Sequence[Track]) -> dict[str, Any]:
    """What trackeval asks of a sequence: per frame the ids that are visible on both sides, and their IoUs."""
    frames = max((len(track.pixels) for track in (*predictions, *truths)), default=0)
    ids: tuple[list[Array], list[Array]] = ([], [])
    similarity = []
    for t in range(frames):
        seen = [
            [n for n, track in enumerate(tracks) if t < len(track.pixels) and track.pixels[t] > 0]
            for tracks in (truths, predictions)
        ]
        for own, numbers in zip(ids, seen, strict=True):
            own.append(np.array(numbers, dtype=np.int64))
        shape = len(seen[0]), len(seen[1])
        if all(shape):
            pairs = [predictions[n] for n in seen[1]], [truths[n] for n in seen[0]]
            similarity.append(_frame_ious(*pairs, t).T)
        else:
            similarity.append(np.zeros(shape))
    return {
        "num_timesteps": frames,
        "num_gt_ids": len(truths),
        "num_tracker_ids": len(predictions),
        "num_gt_dets": sum(map(len, ids[0])),
        "num_tracker_dets": sum(map(len, ids[1])),
        "gt_ids": ids[0],
        "tracker_ids": ids[1],
        "similarity_scores": similarity,
    }


def identity_scores(found: Scores, min_score: float = MIN_SCORE) -> dict[str, float]:
    """HOTA, its parts DetA and AssA, IDF1 as fractions, and the number of identity switches at IoU .5.

    Args:
        found: of `score_files`; crowds are left out.
        min_score: predictions below it are left out.

    Raises:
        UserError: trackeval is not installed.
    """
    try:
        from trackeval.metrics import CLEAR, HOTA, Identity
    except ImportError as error:
        raise UserError(
            'HOTA, IDF1 and switches need trackeval: pip install "local2global[metrics]"'
        ) from error
    quiet = {"PRINT_CONFIG": False, "THRESHOLD": 0.5}
    metrics = {"HOTA": HOTA(), "Identity": Identity(dict(quiet)), "CLEAR": CLEAR(dict(quiet))}
    single: dict[str, dict[str, Any]] = {name: {} for name in metrics}
    for key in found.predictions.keys() | found.truths.keys():
        predictions = [track for track in found.predictions.get(key, ()) if track.score >= min_score]
        truths = [track for track in found.truths.get(key, ()) if not track.crowd]
        data = _sequence(predictions, truths)
        for name, metric in metrics.items():
            single[name]["/".join(map(str, key))] = metric.eval_sequence(data)
    pooled = {name: metric.combine_sequences(single[name]) for name, metric in metrics.items()}
    return {
        **{name: float(np.mean(pooled["HOTA"][name])) for name in ("HOTA", "DetA", "AssA")},
        "IDF1": float(pooled["Identity"]["IDF1"]),
        "switches": float(pooled["CLEAR"]["IDSW"]),
    }


def by_length(found: Scores, truth: Mapping[str, Any]) -> dict[str, float]:
    """AP of the shortest, the middle and the longest third of the videos; -1 where a third has no truth."""
    lengths = {v["id"]: int(v.get("length") or len(v.get("file_names") or ())) for v in truth["videos"]}
    ordered = sorted(lengths, key=lambda video: lengths[video])
    scores = {}
    thirds = np.array_split(np.arange(len(ordered)), 3)
    for label, part in zip(("short", "middle", "long"), thirds, strict=True):
        if len(part):
            videos = [ordered[i] for i in part]
            name = f"AP {label} ({len(videos)} videos, {lengths[videos[0]]}-{lengths[videos[-1]]} frames)"
            alone = score_tracks(truth, found.truths, found.predictions, videos, AREAS)
            scores[name] = alone.stats["AP"]
    return scores
