"""Panoptic evaluator of a training run: maps are written and scored frame by frame while a video is predicted.

The scores are those of `vps`; `l2g score vps` and the official programs read the written files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..files import atomic_path, require_space, stays_inside
from ..results.segment_ids import write_ids
from .files import read_json
from .gather import gather, is_first
from .panoptic import Segment, overlap_frame
from .panoptic_files import open_maps, parse_truth
from .vps import VideoCounts, count_video, summarize, thing_flags

if TYPE_CHECKING:
    from ..structures import Clip, PanopticFrame, PanopticVideo


class Truth(Protocol):
    """A source of panoptic truth."""

    @property
    def names(self) -> Mapping[int, str]:
        """The truth's video name of every video id of the loader."""

    def content(self) -> Mapping[str, Any]:
        """Videos, categories and annotations as in a VIPSeg file."""

    def read(self, video: str, frames: Sequence[str]) -> Iterator[NDArray[Any]]:
        """The (H, W) true ids of a video's frames, in order."""


class TruthFiles:
    """A VIPSeg file and its maps.

    Args:
        annotations: the JSON file.
        maps: the folder of PNGs, or an .npz.
        dataset: the dataset of the loader; its `videos` have an id and a name, the file's video_id.
    """

    def __init__(self, annotations: str | Path, maps: str | Path, dataset: Any) -> None:
        self.annotations = annotations
        self._maps = open_maps(maps, "gt")
        self.names = {video.id: str(video.name) for video in dataset.videos}

    def content(self) -> Mapping[str, Any]:
        """The parsed file."""
        content: Mapping[str, Any] = read_json(self.annotations)
        return content

    def read(self, video: str, frames: Sequence[str]) -> Iterator[NDArray[Any]]:
        """The (H, W) true ids of a video's frames, in order."""
        return self._maps(video, frames)


class VPSEvaluator:
    """Evaluator with the interface of detectron2's and detrex's evaluation loops.

    Args:
        truth: the truth.
        classes: {id, name} per label; entry k has the category id of label k.
        output_dir: folder of `pan_pred/<video>/<frame>.png`, written during prediction, and of `pred.json`, written by
            `evaluate`; names of second decisions end in `_final`.  None writes nothing.

    Attributes:
        videos: the results of every processed video by its name; those of other processes may be added.

    Raises:
        UserError: the truth is malformed, or a class is not among its categories.
    """

    def __init__(
        self, truth: Truth, classes: Sequence[Mapping[str, Any]], output_dir: str | Path | None = None
    ) -> None:
        self._source = truth
        self.truth = parse_truth(truth.content())
        known = self.truth.positions
        for entry in classes:
            if entry["id"] not in known:
                raise UserError(
                    f"class {entry['id']} ({entry.get('name')}) of the model is not a category of the truth: "
                    "evaluate on a data set whose classes the model has"
                )
        self.categories = [int(c["id"]) for c in classes]
        self._positions = [known[identity] for identity in self.categories]
        self._things = thing_flags(self.truth.categories)
        self.output_dir = None if output_dir is None else Path(output_dir)
        for name in self.truth.frames:
            if not stays_inside(name):
                raise UserError(f"video {name}: a name that leads out of the output folder; rename the video")
        unknown = sorted(set(truth.names.values()) - set(self.truth.frames))
        if unknown:
            raise UserError(
                f"video {unknown[0]} of the test set is not in the truth: evaluate the split of the truth"
            )
        self.reset()

    def reset(self) -> None:
        """Discards all processed videos."""
        self.videos: dict[str, dict[str, tuple[VideoCounts, dict[str, Any]]]] = {}

    def process(self, inputs: Sequence[Clip], outputs: Iterable[PanopticVideo]) -> None:
        """Reads the frames of each result; a video that was processed before is skipped."""
        for result in outputs:
            name = self._source.names[result.video_id]
            if name in self.videos:
                continue
            decisions = self.videos[name] = {"": self._count(name, result.frames, "")}
            if result.final is not None:
                decisions["_final"] = self._count(name, result.final(), "_final")

    def _count(
        self, name: str, results: Iterable[PanopticFrame], suffix: str
    ) -> tuple[VideoCounts, dict[str, Any]]:
        """The counts of one video and its entry of pred.json."""
        frames = self.truth.frames[name]
        folder = None if self.output_dir is None else self.output_dir / f"pan_pred{suffix}" / name
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        overlaps, entries = [], []
        for frame, true, result in zip(frames, self._source.read(name, frames), results, strict=True):
            ids = result.ids.numpy().astype(np.uint32)
            if folder is not None:
                require_space(folder, ids.nbytes, f"{name}/{frame}.png")
                write_ids(ids, folder / f"{frame}.png")
            segments = [Segment(s.id, self._positions[s.label], s.area) for s in result.segments]
            place = f"video {name}, frame {frame}"
            overlaps.append(overlap_frame(place, true, ids, self.truth.segments[name][frame], segments))
            listed = [
                {"id": s.id, "category_id": self.categories[s.label], "iscrowd": 0, "area": s.area}
                for s in result.segments
            ]
            entries.append({"file_name": f"{frame}.png", "image_id": frame, "segments_info": listed})
        counts = count_video(name, overlaps, self._things)
        return counts, {"video_id": name, "annotations": entries}

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Scores the videos of all ranks, on rank 0; the other ranks return {}.

        Returns:
            {"panoptic": scores} in percent: VPQ, VPQ_Th, VPQ_St (means over windows of 1, 2, 4 and 6 frames, as in
            papers), VPQ_1 to VPQ_8 by window, VPQ_script (the mean over all five), STQ, SQ, AQ; -1 is undefined.  With
            second decisions also {"panoptic_final": scores} and {"final_minus_online": differences}.
        """
        videos = gather(self.videos)
        if not is_first():
            return {}
        scores = {}
        for suffix in sorted({""}.union(*videos.values())):
            counted = [videos[name][suffix] for name in self.truth.frames if name in videos]
            if self.output_dir is not None:
                self._write([entry for _, entry in counted], self.output_dir / f"pred{suffix}.json")
            summary = summarize([counts for counts, _ in counted], self.truth.categories)
            scores[f"panoptic{suffix}"] = flat_scores(summary)
        if "panoptic_final" in scores:
            pairs = scores["panoptic_final"].items()
            scores["final_minus_online"] = {key: value - scores["panoptic"][key] for key, value in pairs}
        return scores

    @staticmethod
    def _write(entries: Sequence[Mapping[str, Any]], path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as partial:
            partial.write_text(json.dumps({"annotations": entries}), encoding="utf-8")


def flat_scores(scores: Mapping[str, Any]) -> dict[str, float]:
    """The scores of `summarize` as one flat table in percent; -1 is undefined."""

    def percent(value: float | None, factor: float = 100) -> float:
        return -1.0 if value is None else factor * value

    names = {"all": "VPQ", "thing": "VPQ_Th", "stuff": "VPQ_St"}
    flat = {name: percent(scores["VPQ"][group], 1) for group, name in names.items()}
    for length, window in scores["vpq_windows"].items():
        flat[f"VPQ_{length}"] = percent(window["all"] and window["all"]["pq"])
    flat["VPQ_script"] = percent(scores["VPQ_script_final_5_windows"]["all"], 1)
    return {**flat, **{name: percent(scores["stq"][name]) for name in ("STQ", "SQ", "AQ")}}
