"""Panoptic results as an evaluation loop makes them: maps written as they come, scored frame by frame, and forgotten.

The scores are those of `vps.py`; the files are those that `l2g score vps` and the official programs read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..results.segment_ids import write_ids
from ..structures import Clip, PanopticFrame, PanopticVideo
from .gather import gather, is_first
from .panoptic import Segment, TableBuilder
from .panoptic_files import open_maps, parse_truth, read_json
from .vps import VideoCounts, count_video, summarize, thing_flags


class Truth(Protocol):
    """Where the truth comes from."""

    @property
    def names(self) -> Mapping[int, str]:
        """The truth's name of every video id that a loader gives."""

    def content(self) -> Mapping[str, Any]:
        """Videos, categories and annotations as in a VIPSeg file."""

    def read(self, video: str, frames: Sequence[str]) -> Iterator[NDArray[Any]]:
        """The (H, W) true ids of a video's frames, one after the other."""


class TruthFiles:
    """A VIPSeg file and its maps.

    Args:
        annotations: the JSON file.
        maps: the folder of PNGs, or an .npz.
        dataset: what the videos are loaded from; `videos` with id and name, the file's video_id.
    """

    def __init__(self, annotations: str | Path, maps: str | Path, dataset: Any) -> None:
        self.annotations = annotations
        self._maps = open_maps(maps, "gt")
        self.names = {video.id: str(video.name) for video in dataset.videos}

    def content(self) -> Mapping[str, Any]:
        """What the file says."""
        content: Mapping[str, Any] = read_json(self.annotations)
        return content

    def read(self, video: str, frames: Sequence[str]) -> Iterator[NDArray[Any]]:
        """The (H, W) true ids of a video's frames, one after the other."""
        return self._maps.read(video, frames)


class VPSEvaluator:
    """Scores panoptic videos one after the other, in the shape that detectron2's and detrex's loops expect.

    Args:
        truth: the truth.
        classes: {id, name} per label; entry k gives the category id of label k.
        output_dir: where `pan_pred/<video>/<frame>.png` go as they come, and `pred.json` at the end (with `_final`
            in the name, those of the second decision); None writes nothing.

    Raises:
        UserError: the truth is malformed, or a class is not among its categories.
    """

    def __init__(
        self, truth: Truth, classes: Sequence[Mapping[str, Any]], output_dir: str | Path | None = None
    ) -> None:
        self._source = truth
        self.truth = parse_truth(truth.content())
        known = self.truth.positions
        missing = [c for c in classes if c["id"] not in known]
        if missing:
            raise UserError(
                f"class {missing[0]['id']} ({missing[0].get('name')}) of the model is not a category of the truth: "
                "evaluate on a data set whose classes the model has"
            )
        self.categories = [int(c["id"]) for c in classes]
        self._positions = [known[identity] for identity in self.categories]
        self._things = thing_flags(self.truth.categories)
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.reset()

    def reset(self) -> None:
        """Forgets everything processed."""
        self._found: dict[str, dict[str, tuple[VideoCounts, dict[str, Any]]]] = {}

    def process(self, inputs: Sequence[Clip], outputs: Iterable[PanopticVideo]) -> None:
        """Reads the results' frames; a video seen before is passed over."""
        for result in outputs:
            name = self._source.names[result.video_id]
            if name in self._found:
                continue
            decisions = self._found[name] = {"": self._take(name, result.frames, "")}
            if result.final is not None:
                decisions["_final"] = self._take(name, result.final(), "_final")

    def _take(
        self, name: str, results: Iterable[PanopticFrame], suffix: str
    ) -> tuple[VideoCounts, dict[str, Any]]:
        """The counts of one video and its entry of pred.json."""
        frames = self.truth.frames[name]
        folder = None if self.output_dir is None else self.output_dir / f"pan_pred{suffix}" / name
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        builder, entries = TableBuilder(name), []
        for frame, true, result in zip(frames, self._source.read(name, frames), results, strict=True):
            ids = result.ids.numpy().astype(np.uint32)
            if folder is not None:
                write_ids(ids, folder / f"{frame}.png")
            segments = [Segment(s.id, self._positions[s.label], s.area) for s in result.segments]
            builder.add(frame, true, ids, self.truth.segments[name][frame], segments)
            listed = [
                {"id": s.id, "category_id": self.categories[s.label], "iscrowd": 0, "area": s.area}
                for s in result.segments
            ]
            entries.append({"file_name": f"{frame}.png", "image_id": frame, "segments_info": listed})
        counts = count_video(builder.build(), self._things)
        return counts, {"video_id": name, "annotations": entries}

    def evaluate(self) -> dict[str, dict[str, float]]:
        """The scores of all ranks' videos, on rank 0; {} on the others.

        Returns:
            {"panoptic": scores} in percent: VPQ, VPQ_Th, VPQ_St (means over windows of 1, 2, 4 and 6 frames, as in
            papers), VPQ_1 to VPQ_8 by window, VPQ_script (the mean over all five), STQ, SQ, AQ.  -1 where a score is
            undefined.  Where frames were decided a second time, {"panoptic_final": ...} too, and {"final_minus_online":
            ...}, what knowing the whole video is worth.
        """
        found = gather(self._found)
        if not is_first():
            return {}
        scores = {}
        for suffix in sorted({""}.union(*found.values())):
            taken = [found[name][suffix] for name in self.truth.frames if name in found]
            if self.output_dir is not None:
                self._write([entry for _, entry in taken], self.output_dir / f"pred{suffix}.json")
            scores[f"panoptic{suffix}"] = flat_scores(
                summarize([counts for counts, _ in taken], self.truth.categories)
            )
        if "panoptic_final" in scores:
            pairs = scores["panoptic_final"].items()
            scores["final_minus_online"] = {key: value - scores["panoptic"][key] for key, value in pairs}
        return scores

    @staticmethod
    def _write(entries: Sequence[Mapping[str, Any]], path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".tmp")
        partial.write_text(json.dumps({"annotations": entries}), encoding="utf-8")
        os.replace(partial, path)


def flat_scores(scores: Mapping[str, Any]) -> dict[str, float]:
    """The columns of a table, in percent, from what `summarize` gives; -1 where a score is undefined."""

    def percent(value: float | None, factor: float = 100) -> float:
        return -1.0 if value is None else factor * value

    names = {"all": "VPQ", "thing": "VPQ_Th", "stuff": "VPQ_St"}
    flat = {name: percent(scores["VPQ"][group], 1) for group, name in names.items()}
    for length, window in scores["vpq_windows"].items():
        flat[f"VPQ_{length}"] = percent(window["all"] and window["all"]["pq"])
    flat["VPQ_script"] = percent(scores["VPQ_script_final_5_windows"]["all"], 1)
    return {**flat, **{name: percent(scores["stq"][name]) for name in ("STQ", "SQ", "AQ")}}
