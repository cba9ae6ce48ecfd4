"""YouTube-VIS and OVIS average precision: tracks matched by the IoU of their masks over the whole video.

The numbers are those of the official scorers, quirks included; each quirk is named where it is built in.
The stages are pure functions: `track_iou` -> `match` -> `accumulate` -> `summarize`; `score` runs them all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch.distributed as dist
from pycocotools import mask as coco_mask

from ..errors import UserError
from ..structures import Clip, VideoResult
from .tracks import MOST_TRACKS, Array, Rle, Track, parse_results, parse_truth

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
        counting: (A,) the number of truth tracks that count.
    """

    scores: Array
    matched: Array
    ignored: Array
    counting: Array


def _frame_overlaps(predictions: Sequence[Rle], truths: Sequence[Rle], totals: Array) -> Array:
    """(P, G) intersections in pixels of non-empty masks; `totals` are the pairs' summed areas."""
    iou = np.asarray(coco_mask.iou(list(predictions), list(truths), [0] * len(truths)))
    iou = np.maximum(iou.reshape(totals.shape), 0)  # -1 where sizes differ
    # r = i / (a + b - i) solved for the whole number i: one call gives what merging every pair would.
    whole: Array = np.rint(iou * totals / (1 + iou))
    return whole


def _padded(tracks: Sequence[Track], frames: int) -> tuple[Array, Array, Array, Array]:
    """Per track and frame: (n, frames) pixels, (n, frames, 2) sizes, whether it is listed, has a mask."""
    pixels = np.zeros((len(tracks), frames))
    sizes = np.zeros((len(tracks), frames, 2), dtype=np.int64)
    listed = np.zeros((len(tracks), frames), dtype=bool)
    for row, track in enumerate(tracks):
        count = min(frames, len(track.masks))
        pixels[row, :count] = track.pixels[:count]
        listed[row, :count] = True
        for t, mask in enumerate(track.masks[:count]):
            if mask is not None:
                sizes[row, t] = mask["size"]
    return pixels, sizes, listed, sizes[..., 0] > 0


def track_iou(predictions: Sequence[Track], truths: Sequence[Track]) -> Array:
    """How well tracks overlap: intersections summed over frames, divided by unions summed over frames.

    A frame in which only one side has a mask adds it to the union.  Lists of unequal length are compared over
    the shorter one.  A frame whose two masks differ in size adds nothing to either sum.

    Returns:
        (P, G) float64 in [0, 1], 0 where the union is empty.
    """
    intersection: Array = np.zeros((len(predictions), len(truths)))
    union: Array = np.zeros_like(intersection)
    frames = max((len(track.masks) for track in truths), default=0) if predictions else 0
    p_pixels, p_sizes, p_listed, p_has = _padded(predictions, frames)
    t_pixels, t_sizes, t_listed, t_has = _padded(truths, frames)
    for t in range(frames):
        totals = p_pixels[:, None, t] + t_pixels[None, :, t]
        valid = p_listed[:, None, t] & t_listed[None, :, t]
        differ = (p_sizes[:, None, t] != t_sizes[None, :, t]).any(-1)
        valid &= ~(differ & p_has[:, None, t] & t_has[None, :, t])
        rows = np.flatnonzero(p_pixels[:, t]).tolist()
        columns = np.flatnonzero(t_pixels[:, t]).tolist()
        overlap = np.zeros_like(totals)
        if rows and columns:
            pairs = np.ix_(rows, columns)
            overlap[pairs] = _frame_overlaps(
                [p for i in rows if (p := predictions[i].masks[t])],
                [g for i in columns if (g := truths[i].masks[t])],
                totals[pairs],
            )
        intersection += np.where(valid, overlap, 0)
        union += np.where(valid, totals - overlap, 0)
    ratio: Array = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
    return ratio


def _outside(tracks: Sequence[Track], ranges: Sequence[Range], predicted: bool) -> Array:
    """(A, n) bool; occlusion does not filter predictions, which have none."""
    area = np.array([track.area for track in tracks])
    occlusion = np.array([track.occlusion for track in tracks])
    rows = []
    for r in ranges:
        value = area if r.by == "area" else occlusion
        outside = (value < r.low) | (value > r.high)
        rows.append(outside & (r.by == "area" or not predicted))
    return np.array(rows).reshape(len(ranges), len(tracks))


def _last_best(values: Array) -> Array:
    """The index of the largest value along the last axis, the last one among equals."""
    from_end: Array = np.argmax(values[..., ::-1], axis=-1)
    last: Array = values.shape[-1] - 1 - from_end
    return last


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
    crowd = np.array([track.crowd for track in truths], dtype=bool)
    ignored_truth = _outside(truths, ranges, predicted=False) | crowd  # (A, G)
    shape = (len(ranges), len(thresholds), len(predictions))
    matched, ignored = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    # A track whose id is 0 is taken, but whoever takes it has found nothing: the official scorer stores the
    # id as the mark of a match.
    real = np.array([track.id != 0 for track in truths], dtype=bool)
    taken = np.zeros((*shape[:2], len(truths)), dtype=bool)
    least = np.minimum(thresholds, 1 - 1e-10)[:, None]
    ignorable = np.broadcast_to(ignored_truth[:, None], taken.shape)
    for p in range(len(predictions) if truths else 0):
        open_to_it = (iou[p] >= least) & (~taken | crowd)
        counting = np.where(open_to_it & ~ignorable, iou[p], -1.0)
        spare = np.where(open_to_it & ignorable, iou[p], -1.0)
        values = np.where(counting.max(-1, keepdims=True) >= 0, counting, spare)
        choice = _last_best(values)[..., None]
        found = np.take_along_axis(values, choice, -1) >= 0
        matched[..., p] = (found & real[choice])[..., 0]
        ignored[..., p] = (found & np.take_along_axis(ignorable, choice, -1))[..., 0]
        before = np.take_along_axis(taken, choice, -1)
        np.put_along_axis(taken, choice, before | found, -1)
    ignored |= ~matched & _outside(predictions, ranges, predicted=True)[:, None]
    scores = np.array([track.score for track in predictions], dtype=np.float64)
    return Matches(scores, matched, ignored, (~ignored_truth).sum(-1))


def _curve(matched: Array, ignored: Array, counting: int) -> tuple[Array, float]:
    """(101,) precision at the recall points, and the recall reached; (P,) predictions by falling score."""
    if not len(matched):
        return np.zeros(len(RECALLS)), 0.0
    true = np.cumsum(matched & ~ignored, dtype=np.float64)
    false = np.cumsum(~matched & ~ignored, dtype=np.float64)
    recall = true / counting
    precision = true / (false + true + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, RECALLS, side="left")
    return np.append(precision, 0.0)[places], float(recall[-1])


def accumulate(
    matches: Sequence[Sequence[Matches]], ranges: int = len(AREAS), limits: Sequence[int] = LIMITS
) -> tuple[Array, Array]:
    """Pools the videos of each category.

    Args:
        matches: per category, the matches of its videos by rising video id.
        ranges: A, the number of ranges matched for.
        limits: the first so many predictions of every video and category are used.

    Returns:
        precision (T, 101, K, A, limits) and recall (T, K, A, limits), -1 where no truth counts.
    """
    precision = np.full((len(THRESHOLDS), len(RECALLS), len(matches), ranges, len(limits)), -1.0)
    recall = np.full((len(THRESHOLDS), len(matches), ranges, len(limits)), -1.0)
    for k, videos in enumerate(matches):
        if not videos:
            continue
        counting = np.sum([video.counting for video in videos], axis=0)
        for m, limit in enumerate(limits):
            scores = np.concatenate([video.scores[:limit] for video in videos])
            order = np.argsort(-scores, kind="stable")
            matched = np.concatenate([video.matched[..., :limit] for video in videos], axis=-1)[..., order]
            ignored = np.concatenate([video.ignored[..., :limit] for video in videos], axis=-1)[..., order]
            for a in np.flatnonzero(counting):
                for t in range(len(THRESHOLDS)):
                    curve = _curve(matched[a, t], ignored[a, t], counting[a])
                    precision[t, :, k, a, m], recall[t, k, a, m] = curve
    return precision, recall


def _mean(values: Array) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


def summarize(precision: Array, recall: Array, ranges: Sequence[Range] = AREAS) -> dict[str, float]:
    """The named scores as fractions, -1 where no truth counts.

    Names: AP, AP50, AP75, AP of every range (APs, APm, APl), AR1, AR10, AR100, AR of every range.
    """
    stats = {"AP": _mean(precision[:, :, :, 0, -1])}
    for percent in (50, 75):
        at = np.isclose(THRESHOLDS, percent / 100)
        stats[f"AP{percent}"] = _mean(precision[at][:, :, :, 0, -1])
    stats |= {f"AP{r.name}": _mean(precision[:, :, :, a, -1]) for a, r in enumerate(ranges) if r.name}
    stats |= {f"AR{limit}": _mean(recall[:, :, 0, m]) for m, limit in enumerate(LIMITS)}
    stats |= {f"AR{r.name}": _mean(recall[:, :, a, -1]) for a, r in enumerate(ranges) if r.name}
    return stats


def match_all(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], ranges: Sequence[Range]
) -> list[list[Matches]]:
    """Per category (rising id) the matches of its videos (rising id), as `accumulate` wants them."""
    truths, predictions = parse_truth(truth), parse_results(results, truth)
    categories = sorted({category["id"] for category in truth["categories"]})
    videos = sorted({video["id"] for video in truth["videos"]})
    matches: list[list[Matches]] = []
    for category in categories:
        row = []
        for key in ((video, category) for video in videos):
            p, g = predictions.get(key, []), truths.get(key, [])
            if p or g:
                row.append(match(p, g, track_iou(p, g), ranges))
        matches.append(row)
    return matches


def score(truth: Mapping[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    """The official score of parsed files.

    Args:
        truth: YouTube-VIS annotations with `videos`, `categories`, `annotations`.  If a track has a list
            `occlusion`, as in OVIS, the scores by occlusion level are added.
        results: predicted tracks {video_id, category_id, score, segmentations}; may be empty.

    Returns:
        `stats`: the scores of `summarize`, fractions; `category_ids`: the K axis, rising; `per_category_AP`:
        by category id; `precision` (T, 101, K, A, limits) and `recall` (T, K, A, limits).  -1 is undefined.

    Raises:
        UserError: an entry is not sound: an unknown video, a score that is no number, a malformed mask.
    """
    for key in ("videos", "categories", "annotations"):
        if key not in truth:
            raise UserError(f"truth: no key `{key}`; expected YouTube-VIS annotations")
    occluded = any(entry.get("occlusion") for entry in truth["annotations"] or ())
    ranges = AREAS + OCCLUSIONS if occluded else AREAS
    precision, recall = accumulate(match_all(truth, results, ranges), len(ranges))
    categories = sorted({category["id"] for category in truth["categories"]})
    return {
        "stats": summarize(precision, recall, ranges),
        "category_ids": categories,
        "per_category_AP": {c: _mean(precision[:, :, k, 0, -1]) for k, c in enumerate(categories)},
        "precision": precision,
        "recall": recall,
    }


def _video_name(video: Mapping[str, Any]) -> str:
    first = next(iter(video.get("file_names") or ()), "")
    return str(video.get("name") or os.path.dirname(first) or video["id"])


def score_per_video(truth: Mapping[str, Any], results: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The scores of `summarize` for each video as if it were the only one, by the name of its folder.

    A category that a video has no truth of is left out of that video's means.
    """
    scores = {}
    for video in truth["videos"]:
        alone = {
            **truth,
            "videos": [video],
            "annotations": [a for a in truth["annotations"] if a["video_id"] == video["id"]],
        }
        name = _video_name(video)
        name = f"{name} ({video['id']})" if name in scores else name
        scores[name] = score(alone, [entry for entry in results if entry["video_id"] == video["id"]])["stats"]
    return scores


def _load_truth(truth: Any) -> Mapping[str, Any]:
    if isinstance(truth, Mapping):
        return truth
    if hasattr(truth, "truth"):
        loaded: Mapping[str, Any] = truth.truth()
        return loaded
    try:
        parsed: Mapping[str, Any] = json.loads(Path(truth).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{truth}: no such annotation file") from error
    except ValueError as error:
        raise UserError(f"{truth}: not JSON: {error}") from error
    return parsed


def _gather(found: dict[int, list[dict[str, Any]]]) -> dict[int, list[dict[str, Any]]]:
    """Every rank's predictions by video, on rank 0; a video that a padded sampler gave twice is kept once."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return found
    gathered: list[Any] = [None] * dist.get_world_size() if dist.get_rank() == 0 else []
    # Pickles stay in host memory: under NCCL they would be copied to every GPU.
    group = dist.new_group(backend="gloo")
    try:
        dist.gather_object(found, gathered if dist.get_rank() == 0 else None, dst=0, group=group)
    finally:
        dist.destroy_process_group(group)
    return {video: entries for share in reversed(gathered) for video, entries in share.items()}


class YTVISEvaluator:
    """Collects tracks video by video, in the shape that detectron2's and detrex's loops expect.

    Args:
        truth: YouTube-VIS annotations as a dict, the path of their file, or a dataset with a `truth()`.
        classes: {id, name} per label; entry k gives the category id of label k.
        output_dir: where `evaluate` writes `results.json`; None writes nothing.

    Raises:
        UserError: the file cannot be read, or none of the classes is a category of the truth.
    """

    def __init__(
        self, truth: Any, classes: Sequence[Mapping[str, Any]], output_dir: str | Path | None = None
    ) -> None:
        self.truth = _load_truth(truth)
        self.categories = [int(entry["id"]) for entry in classes]
        known = {category["id"] for category in self.truth["categories"]}
        if not known.intersection(self.categories):
            raise UserError(
                f"none of the model's category ids {self.categories[:5]} is among the truth's "
                f"{sorted(known)[:5]}: evaluate on a data set whose classes the model has"
            )
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.reset()

    def reset(self) -> None:
        """Forgets everything processed."""
        self._found: dict[int, list[dict[str, Any]]] = {}

    def process(self, inputs: Sequence[Clip], outputs: Sequence[VideoResult]) -> None:
        """Reads the results' masks; a video seen before is passed over."""
        for result in outputs:
            if result.video_id in self._found:
                continue
            # Several tracks may share a slot and differ in class only: its masks are read and kept once.
            masks = {slot: list(result.read(slot)) for slot in set(result.slots.tolist())}
            tracks = zip(result.slots.tolist(), result.labels.tolist(), result.scores.tolist(), strict=True)
            self._found[result.video_id] = [
                {
                    "video_id": result.video_id,
                    "category_id": self.categories[label],
                    "score": value,
                    "segmentations": masks[slot],
                }
                for slot, label, value in tracks
            ]

    def evaluate(self) -> dict[str, dict[str, float]]:
        """The scores of all ranks' videos, on rank 0; {} on the others.

        Returns:
            {"segm": scores}: AP, AP50, AP75, APs, APm, APl, AR1, AR10 in percent (and AP_occ_light, _medium,
            _heavy where the truth has occlusion levels).  A score that is undefined, because no truth belongs
            to its group, is -1 and never NaN.  {} too for a truth without annotations, such as a challenge's
            public `valid.json`: then `results.json` is all there is.
        """
        found = _gather(self._found)
        if dist.is_available() and dist.is_initialized() and dist.get_rank() != 0:
            return {}
        results = [entry for video in sorted(found) for entry in found[video]]
        if self.output_dir is not None:
            self._write(results, self.output_dir)
        if "annotations" not in self.truth:
            return {}
        stats = score(self.truth, results)["stats"]
        names = [name for name in stats if name.startswith("AP") or name in ("AR1", "AR10")]
        return {"segm": {name: 100 * stats[name] if stats[name] >= 0 else -1.0 for name in names}}

    @staticmethod
    def _write(results: Sequence[Mapping[str, Any]], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / "results.json.tmp"
        with partial.open("w", encoding="utf-8") as file:
            # Entry by entry: as one string the file of a whole data set would stand in memory twice.
            separator = "["
            for entry in results:
                file.write(separator + json.dumps(entry))
                separator = ",\n"
            file.write("]\n" if results else "[]\n")
        os.replace(partial, folder / "results.json")
