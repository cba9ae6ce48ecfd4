"""YouTube-VIS and OVIS scores of files and of what a training run holds in memory: one code for both.

`track_iou` says how well tracks overlap over a whole video, `precision` makes scores of it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .masks import Document, read_document
from .oddities import Oddities
from .overlaps import overlaps
from .precision import (
    AREAS,
    OCCLUSIONS,
    THRESHOLDS,
    Matches,
    Range,
    accumulate,
    match,
    mean_defined,
    summarize,
)
from .tracks import Groups, Track, parse_results, parse_truth

if TYPE_CHECKING:
    from ..structures import Clip, VideoResult

Array = NDArray[Any]


def track_iou(predictions: Sequence[Track], truths: Sequence[Track], least: float = 0.0) -> Array:
    """How well tracks overlap: intersections summed over frames, divided by unions summed over frames.

    A frame in which only one side has a mask adds it to the union.  Lists of unequal length are compared over
    the shorter one.  A frame whose two masks differ in size adds nothing to either sum.

    Args:
        predictions: P tracks of one table of masks.
        truths: G tracks of one table of masks.
        least: a pair that is seen to stay below it may be given as 0, which is faster.

    Returns:
        (P, G) float64 in [0, 1], 0 where the union is empty.
    """
    if not (predictions and truths):
        return np.zeros((len(predictions), len(truths)))
    sides = []
    for tracks in (predictions, truths):
        masks = tracks[0].masks
        sides += [masks.runs, masks.rows, masks.facts, np.array([track.span for track in tracks])]
    iou: Array = overlaps(*sides, least)
    return iou


@dataclass(frozen=True)
class Scores:
    """What scoring found; the letters are those of `precision`.

    Attributes:
        category_ids: the K axis, rising.
        ranges: the A axis.
        precision: (T, 101, K, A, limits), -1 where undefined.
        recall: (T, K, A, limits).
        predictions: the tracks that took part, by (video, category), best first.
        truths: the same of the truth, in file order.
        entries: the number of predictions handed in, those that are left out included.
    """

    category_ids: list[Any]
    ranges: tuple[Range, ...]
    precision: Array
    recall: Array
    predictions: Groups
    truths: Groups
    entries: int = 0

    @property
    def stats(self) -> dict[str, float]:
        """The scores of `summarize`."""
        return summarize(self.precision, self.recall, self.ranges)

    @property
    def per_category(self) -> dict[Any, float]:
        """AP by category id, -1 where the category has no truth."""
        means = (mean_defined(self.precision[:, :, k, 0, -1]) for k in range(len(self.category_ids)))
        return dict(zip(self.category_ids, means, strict=True))

    def only(self, ranges: tuple[Range, ...]) -> Scores:
        """The scores of the first ranges."""
        count = len(ranges)
        return replace(
            self,
            ranges=ranges,
            precision=self.precision[:, :, :, :count],
            recall=self.recall[:, :, :count],
        )


def _check_truth(truth: Any) -> None:
    if not isinstance(truth, Mapping):
        raise UserError(f"truth: expected an object with YouTube-VIS annotations, got {type(truth).__name__}")
    for key in ("videos", "categories", "annotations"):
        if key not in truth:
            raise UserError(f"truth: no key `{key}`; expected YouTube-VIS annotations")
        entries = truth[key]
        if entries is None and key == "annotations":  # a challenge's, which are hidden
            continue
        if not isinstance(entries, Sequence) or isinstance(entries, str):
            raise UserError(f"truth: expected a list `{key}`, got {type(entries).__name__}")
        for index, entry in enumerate(entries):
            if not isinstance(entry, Mapping):
                raise UserError(f"truth, {key} entry {index}: expected an object, got {type(entry).__name__}")
            if "id" in entry and not isinstance(entry["id"], (Integral, str)):
                raise UserError(f"truth, {key} entry {index}: `id` must be a number, not {entry['id']!r}")
            if "id" not in entry and key == "categories":
                raise UserError(f"truth, {key} entry {index}: no key `id`")


def score_documents(
    truth: Document, results: Document, ranges: tuple[Range, ...] = AREAS, oddities: Oddities | None = None
) -> Scores:
    """Scores files read by `read_document`, or objects in memory.

    Args:
        truth: YouTube-VIS annotations.
        results: predicted tracks {video_id, category_id, score, segmentations}; may be empty.
        ranges: the groups of tracks that are scored apart.
        oddities: where to note what is odd but scored.

    Raises:
        UserError: an entry is not sound: an unknown video, a score that is no number, a malformed mask.
    """
    _check_truth(truth.content)
    truths = parse_truth(truth.content, truth, oddities)
    predictions = parse_results(results.content, truth.content, results, oddities)
    videos = {video["id"] for video in truth.content["videos"]}
    found = score_tracks(truth.content, truths, predictions, videos, ranges)
    return replace(found, entries=len(results.content))


def score_tracks(
    truth: Mapping[str, Any],
    truths: Groups,
    predictions: Groups,
    videos: Collection[Any],
    ranges: tuple[Range, ...] = AREAS,
) -> Scores:
    """Scores the tracks of some videos; `truth` names the categories."""
    categories = sorted({category["id"] for category in truth["categories"]})
    videos = sorted(videos)
    matches: list[list[Matches]] = []
    for category in categories:
        keys = [(v, category) for v in videos if (v, category) in predictions or (v, category) in truths]
        pairs = [(predictions.get(key, []), truths.get(key, [])) for key in keys]
        matches.append([match(p, g, track_iou(p, g, THRESHOLDS[0]), ranges) for p, g in pairs])
    precision, recall = accumulate(matches, len(ranges))
    return Scores(categories, ranges, precision, recall, predictions, truths)


def score(
    truth: Mapping[str, Any], results: list[dict[str, Any]], oddities: Oddities | None = None
) -> dict[str, Any]:
    """The official score of parsed files.

    Args:
        truth: YouTube-VIS annotations with `videos`, `categories`, `annotations`.  If a track has a list
            `occlusion`, as in OVIS, the scores by occlusion level are added.
        results: predicted tracks {video_id, category_id, score, segmentations}; may be empty.
        oddities: where to note what is odd but scored.

    Returns:
        `stats`: the scores of `summarize`, fractions; `category_ids`: the K axis, rising; `per_category_AP`:
        by category id; `precision` (T, 101, K, A, limits) and `recall` (T, K, A, limits).  -1 is undefined.

    Raises:
        UserError: an entry is not sound: an unknown video, a score that is no number, a malformed mask.
    """
    _check_truth(truth)
    occluded = any(entry.get("occlusion") for entry in truth["annotations"] or ())
    ranges = AREAS + OCCLUSIONS if occluded else AREAS
    found = score_documents(Document(truth), Document(results), ranges, oddities)
    return {
        "stats": found.stats,
        "category_ids": found.category_ids,
        "per_category_AP": found.per_category,
        "precision": found.precision,
        "recall": found.recall,
    }


def _check_occlusion(truth: Any, oddities: Oddities) -> None:
    """OVIS scores need the occlusion levels of every track."""
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
    """Scores two files; the masks stay text until they are compared.

    Args:
        truth: YouTube-VIS annotations.
        results: predicted tracks, or a zip with them in its `results.json`.
        ovis: also by occlusion level.
        oddities: where to note what is odd but scored.

    Raises:
        UserError: a file cannot be read, or an entry is not sound.
    """
    oddities = oddities or Oddities()
    true, found = read_document(truth), read_document(results)
    _check_truth(true.content)
    if ovis:
        _check_occlusion(true.content, oddities)
    if isinstance(found.content, list) and not found.content:
        oddities.note("no predictions at all, which the official loaders refuse", str(results))
    return score_documents(true, found, AREAS + OCCLUSIONS if ovis else AREAS, oddities)


def _track_ious(found: Scores) -> list[dict[str, Any]]:
    """Every overlap, by (video, category) that has both sides."""
    return [
        {
            "video_id": key[0],
            "category_id": key[1],
            "pred_index": [track.id for track in found.predictions[key]],
            "gt_ids": [track.id for track in found.truths[key]],
            "iou": track_iou(found.predictions[key], found.truths[key]).tolist(),
        }
        for key in sorted(found.predictions.keys() & found.truths.keys())
    ]


def report(found: Scores) -> dict[str, Any]:
    """All numbers as the official scorers' arrays, ready for JSON; fractions, -1 is undefined.

    Returns:
        `ytvis`: `stats`, `category_ids`, `per_category_AP` (by category id as text), `precision_mean_TKAM` (precision
        averaged over the recall points) and `recall_TKAM` with axes thresholds, categories, area ranges,
        limits, `track_iou` (every overlap of a predicted and a true track, by video and category), and
        `loadres_error`, with which the official loader refuses these results, or None.  `ovis`, if the
        scores are by occlusion level too: `stats`, `category_ids`, `per_category_AP`.
    """
    plain = found.only(AREAS)
    common = {
        "loadres_error": None if found.entries else "IndexError",
        "category_ids": found.category_ids,
        "per_category_AP": {str(c): value for c, value in found.per_category.items()},
    }
    numbers: dict[str, Any] = {
        "ytvis": {
            **common,
            "stats": plain.stats,
            "precision_mean_TKAM": plain.precision.mean(1).tolist(),
            "recall_TKAM": plain.recall.tolist(),
            "track_iou": _track_ious(found),
        }
    }
    if len(found.ranges) > len(AREAS):
        numbers["ovis"] = {**common, "stats": found.stats}
    return numbers


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
        from .gather import gather, is_first  # only here torch is needed, which `l2g score` does without

        found = gather(self._found)
        if not is_first():
            return {}
        results = [entry for video in sorted(found) for entry in found[video]]
        if self.output_dir is not None:
            self._write(results, self.output_dir)
        if self.truth.get("annotations") is None:
            return {}
        oddities = Oddities()
        stats = score(self.truth, results, oddities)["stats"]
        for line in oddities.lines():
            logging.getLogger(__name__).warning(line)
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
