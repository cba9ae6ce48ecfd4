"""YouTube-VIS and OVIS scores of files and of in-memory results."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..files import atomic_path, require_space
from .files import read_json
from .masks import track_iou
from .oddities import Oddities
from .precision import AREAS, OCCLUSIONS, Matches, Range, accumulate, match, mean_defined, summarize
from .tracks import Groups, check_truth, parse_results, parse_truth

if TYPE_CHECKING:
    from ..structures import Clip, VideoResult

Array = NDArray[Any]


@dataclass(frozen=True)
class Scores:
    """Precision and recall of a result file; letters as in `precision`.

    Attributes:
        category_ids: the K axis, rising.
        ranges: the A axis.
        precision: (T, 101, K, A, limits), -1 where undefined.
        recall: (T, K, A, limits), -1 where undefined.
        predictions: the scored predictions by (video, category), best first.
        truths: the true tracks by (video, category), in file order.
        ious: (P, G) track IoUs of every (video, category) with tracks on both sides.
        entries: number of predictions in the results, including those left out.
    """

    category_ids: list[Any]
    ranges: tuple[Range, ...]
    precision: Array
    recall: Array
    predictions: Groups
    truths: Groups
    ious: Mapping[tuple[Any, Any], Array]
    entries: int

    @property
    def stats(self) -> dict[str, float]:
        """The named scores of `summarize`."""
        return summarize(self.precision, self.recall, self.ranges)

    @property
    def per_category(self) -> dict[Any, float]:
        """AP by category id, -1 where the category has no true track."""
        means = (mean_defined(self.precision[:, :, k, 0, -1]) for k in range(len(self.category_ids)))
        return dict(zip(self.category_ids, means, strict=True))

    def stats_of(self, videos: Collection[Any]) -> dict[str, float]:
        """The named scores of some of the videos; a video that occurs twice counts twice."""
        return summarize(*_pool(self.category_ids, videos, self._matches, self.ranges), self.ranges)

    @cached_property
    def _matches(self) -> dict[tuple[Any, Any], Matches]:
        return _match_all(self.predictions, self.truths, self.ious, self.ranges)


def _match_all(
    predictions: Groups,
    truths: Groups,
    ious: Mapping[tuple[Any, Any], Array],
    ranges: tuple[Range, ...],
) -> dict[tuple[Any, Any], Matches]:
    """The matches of every (video, category)."""
    matches = {}
    for key in predictions.keys() | truths.keys():
        p, g, iou = predictions.get(key, []), truths.get(key, []), ious.get(key)
        matches[key] = match(p, g, np.zeros((len(p), len(g))) if iou is None else iou, ranges)
    return matches


def _pool(
    categories: Sequence[Any],
    videos: Collection[Any],
    matches: Mapping[tuple[Any, Any], Matches],
    ranges: tuple[Range, ...],
) -> tuple[Array, Array]:
    """Precision and recall of `accumulate` over the given videos."""
    ordered = sorted(videos)
    pooled = [[matches[v, category] for v in ordered if (v, category) in matches] for category in categories]
    return accumulate(pooled, len(ranges))


def _score_groups(
    truth: Any, truths: Groups, predictions: Groups, ranges: tuple[Range, ...], entries: int
) -> Scores:
    """Scores parsed tracks; of `truth`, only `videos` and `categories` are read."""
    ious = {
        key: track_iou([t.masks for t in predictions[key]], [t.masks for t in truths[key]])
        for key in predictions.keys() & truths.keys()
    }
    categories = sorted({category["id"] for category in truth["categories"]})
    videos = {video["id"] for video in truth["videos"]}
    precision, recall = _pool(categories, videos, _match_all(predictions, truths, ious, ranges), ranges)
    return Scores(categories, ranges, precision, recall, predictions, truths, ious, entries)


def score(truth: Any, results: Any, oddities: Oddities | None = None) -> Scores:
    """`score_files` of parsed files; occlusion levels are scored if a track has a list `occlusion`, as in OVIS."""
    check_truth(truth)
    occluded = any(entry.get("occlusion") for entry in truth["annotations"] or ())
    ranges = AREAS + OCCLUSIONS if occluded else AREAS
    truths = parse_truth(truth, oddities)
    return _score_groups(truth, truths, parse_results(results, truth, oddities), ranges, len(results))


def _check_occlusion(truth: Any, oddities: Oddities) -> None:
    """Checks the occlusion levels that OVIS scores need."""
    entries = truth["annotations"] or ()
    for entry in entries:
        if not isinstance(entry.get("occlusion") or (), Sequence):
            raise UserError(f"annotation {entry.get('id')}: `occlusion` must be a list with a level a frame")
    without = [entry.get("id") for entry in entries if not any(entry.get("occlusion") or ())]
    if entries and len(without) == len(entries):
        raise UserError("truth: no track has a list `occlusion`; leave out --ovis")
    for identity in without:
        oddities.note("no occlusion levels; taken as not occluded", f"annotation {identity}")


def score_files(
    truth: str | Path, results: str | Path, *, ovis: bool = False, oddities: Oddities | None = None
) -> Scores:
    """Scores two files.

    Args:
        truth: YouTube-VIS annotations.
        results: predicted tracks {video_id, category_id, score, segmentations}, or a zip with them in its
            `results.json`; may be an empty list.
        ovis: also score by occlusion level.
        oddities: collects unusual entries.

    Raises:
        UserError: a file cannot be read, or has an unusable entry: an unknown video, a score that is not a number, a
            malformed mask.
    """
    oddities = oddities or Oddities()
    ranges = AREAS + OCCLUSIONS if ovis else AREAS
    annotations = read_json(truth)
    check_truth(annotations)
    if ovis:
        _check_occlusion(annotations, oddities)
    truths = parse_truth(annotations, oddities)
    # The annotations are freed before the results are read: lists of run lengths need ten times the memory of strings.
    annotations = {"videos": annotations["videos"], "categories": annotations["categories"]}
    entries = read_json(results)
    if isinstance(entries, list) and not entries:
        oddities.note("no predictions at all, which the official loaders refuse", str(results))
    return _score_groups(
        annotations, truths, parse_results(entries, annotations, oddities), ranges, len(entries)
    )


def report(scores: Scores) -> dict[str, Any]:
    """All numbers with the keys of the official scorers' arrays, ready for JSON; fractions, -1 is undefined.

    Returns:
        `ytvis`: `stats`, `category_ids`, `per_category_AP` (by category id as text), `precision_mean_TKAM` (mean over
        the recall points) and `recall_TKAM` with axes thresholds, categories, area ranges, limits; `track_iou`, the
        IoU matrix of every video and category with tracks on both sides; `loadres_error`, the exception of the
        official loader for these results, or None.  `ovis`, if occlusion ranges were scored: `stats`, `category_ids`,
        `per_category_AP`.
    """
    areas = len(AREAS)
    precision, recall = scores.precision[:, :, :, :areas], scores.recall[:, :, :areas]
    common = {
        "loadres_error": None if scores.entries else "IndexError",
        "category_ids": scores.category_ids,
        "per_category_AP": {str(c): value for c, value in scores.per_category.items()},
    }
    track_ious = [
        {
            "video_id": key[0],
            "category_id": key[1],
            "pred_index": [track.id for track in scores.predictions[key]],
            "gt_ids": [track.id for track in scores.truths[key]],
            "iou": scores.ious[key].tolist(),
        }
        for key in sorted(scores.ious)
    ]
    numbers: dict[str, Any] = {
        "ytvis": {
            **common,
            "stats": summarize(precision, recall, AREAS),
            "precision_mean_TKAM": precision.mean(1).tolist(),
            "recall_TKAM": recall.tolist(),
            "track_iou": track_ious,
        }
    }
    if len(scores.ranges) > areas:
        numbers["ovis"] = {**common, "stats": scores.stats}
    return numbers


def tracks_of(result: VideoResult, categories: Sequence[int]) -> list[dict[str, Any]]:
    """The tracks of a video in the form of a result file; entry k of `categories` is the category id of label k."""
    # Tracks of one slot under several classes share one list of masks.
    masks = {slot: list(result.read(slot)) for slot in set(result.slots.tolist())}
    tracks = zip(result.slots.tolist(), result.labels.tolist(), result.scores.tolist(), strict=True)
    return [
        {
            "video_id": result.video_id,
            "category_id": categories[label],
            "score": value,
            "segmentations": masks[slot],
        }
        for slot, label, value in tracks
    ]


def _percent(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The scores of the videos of a truth in percent; -1 is undefined."""
    listed = {video["id"] for video in truth["videos"]}
    oddities = Oddities()
    stats = score(truth, [entry for entry in results if entry["video_id"] in listed], oddities).stats
    for line in oddities.lines():
        logging.getLogger(__name__).warning(line)
    names = [name for name in stats if name.startswith("AP") or name in ("AR1", "AR10")]
    return {name: 100 * stats[name] if stats[name] >= 0 else -1.0 for name in names}


def _mean(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each score over parts; -1 if it is undefined in one of them."""
    columns = {name: [part.get(name, -1.0) for part in parts] for name in parts[0]}
    return {name: -1.0 if min(values) < 0 else sum(values) / len(values) for name, values in columns.items()}


class YTVISEvaluator:
    """Evaluator with the interface of detectron2's and detrex's evaluation loops.

    Args:
        truth: YouTube-VIS annotations as a dict, the path of their file, or a dataset with a method `truth()`.
        classes: {id, name} per label; entry k has the category id of label k.
        output_dir: folder in which `evaluate` writes `results.json`; None writes nothing.

    Attributes:
        videos: the results of every processed video by its id; those of other processes may be added.

    Raises:
        UserError: the file cannot be read, or none of the classes is a category of the truth.
    """

    def __init__(
        self, truth: Any, classes: Sequence[Mapping[str, Any]], output_dir: str | Path | None = None
    ) -> None:
        content = truth.truth() if hasattr(truth, "truth") else truth
        self.truth: Mapping[str, Any] = content if isinstance(content, Mapping) else read_json(content)
        #: Truth of parts of the videos, such as the short ones, by name.
        self.parts: Mapping[str, Mapping[str, Any]] = (
            truth.truth_of_parts() if hasattr(truth, "truth_of_parts") else {}
        )
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
        """Discards all processed videos."""
        self.videos: dict[int, list[dict[str, Any]]] = {}
        self._bytes = 0  # of results.json, about

    def process(self, inputs: Sequence[Clip], outputs: Sequence[VideoResult]) -> None:
        """Reads the tracks of each result; a video that was processed before is skipped.

        Raises:
            UserError: the disk has no room for the results so far.
        """
        for result in outputs:
            if result.video_id in self.videos:
                continue
            self.videos[result.video_id] = tracks = tracks_of(result, self.categories)
            if self.output_dir is not None:
                masks = (mask for track in tracks for mask in track["segmentations"])
                self._bytes += 100 * len(tracks)
                self._bytes += sum(6 if mask is None else len(mask["counts"]) + 44 for mask in masks)
                require_space(self.output_dir, self._bytes, "results.json")

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Scores the videos of all ranks, on rank 0; the other ranks return {}.

        Returns:
            {"segm": scores}, and {"segm_short": scores, ...} for parts of the videos that have a truth of their own;
            "segm_mean" is the mean over the parts.  Scores are AP, AP50, AP75, APs, APm, APl, AR1, AR10 in percent, and
            AP_occ_light, AP_occ_medium, AP_occ_heavy if the truth has occlusion levels.  -1 is undefined: no true track
            belongs to the group.  A truth without annotations, such as a challenge's `valid.json`, gives {}.
        """
        from .gather import gather, is_first  # imports torch, which `l2g score` does not need

        videos = gather(self.videos)
        if not is_first():
            return {}
        results = [entry for video in sorted(videos) for entry in videos[video]]
        if self.output_dir is not None:
            self._write(results, self.output_dir)
        scores = {} if self.truth.get("annotations") is None else {"segm": _percent(self.truth, results)}
        parts = {name: _percent(part, results) for name, part in self.parts.items()}
        scores |= {f"segm_{name}": values for name, values in parts.items()}
        if len(parts) > 1:
            scores["segm_mean"] = _mean(list(parts.values()))
        return scores

    @staticmethod
    def _write(results: Sequence[Mapping[str, Any]], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / "results.json") as partial, partial.open("w", encoding="utf-8") as file:
            # Entry by entry, so that the file of a whole data set is not held in memory as one string.
            for index, entry in enumerate(results):
                file.write((",\n" if index else "[") + json.dumps(entry))
            file.write("]\n" if results else "[]\n")
