"""Panoptic truth and predictions as they lie on disk, read video by video and scored.

A list is a VIPSeg JSON; the maps are PNGs `<folder>/<video>/<frame>.png` with id = R + 256 G + 65536 B, or arrays
`<side>/<video>` (T, H, W) of one .npz.  Videos and frames are found by name, never by their place in a list.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .panoptic import Oddities, Segment, TableBuilder, parse_segments
from .png import read_map
from .vps import VideoCounts, count_video, summarize, thing_flags

Map = NDArray[Any]


class Maps(Protocol):
    """Where panoptic maps come from."""

    def read(self, video: str, frames: Sequence[str]) -> Iterator[Map]:
        """The (H, W) ids of a video's frames, one after the other."""


@dataclass(frozen=True)
class FolderMaps:
    """PNGs below a folder, one folder for each video."""

    root: Path

    def read(self, video: str, frames: Sequence[str]) -> Iterator[Map]:
        """Decodes one frame after the other."""
        return (read_map(self.root / video / f"{frame}.png") for frame in frames)


@dataclass(frozen=True)
class ArchiveMaps:
    """Arrays of an .npz, named `<side>/<video>`.

    Attributes:
        path: the file.
        side: "gt" or "pred".
    """

    path: Path
    side: str

    def read(self, video: str, frames: Sequence[str]) -> Iterator[Map]:
        """Loads the video's array; its frames are those of the truth, in order."""
        name = f"{self.side}/{video}"
        with np.load(self.path) as archive:
            if name not in archive.files:
                raise UserError(f"{self.path}: no maps `{name}`")
            try:
                maps = archive[name]
            except (OSError, ValueError, zlib.error, zipfile.BadZipFile) as error:
                raise UserError(f"{self.path}: `{name}` is damaged ({error})") from error
        if maps.ndim != 3 or len(maps) != len(frames) or maps.dtype.kind not in "iu":
            shape = "x".join(map(str, maps.shape))
            raise UserError(
                f"{self.path}: `{name}` is {shape} of {maps.dtype}; expected whole numbers, {len(frames)} frames of "
                "height x width"
            )
        return iter(maps)


def open_maps(path: str | Path, side: str) -> Maps:
    """The maps of a folder or of an .npz.

    Args:
        path: either.
        side: "gt" or "pred", the first part of the names in an .npz.

    Raises:
        UserError: there is neither.
    """
    path = Path(path)
    if path.is_dir():
        return FolderMaps(path)
    if not path.is_file():
        raise UserError(f"{path}: no such folder or .npz of panoptic maps")
    try:
        np.load(path).close()
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not an .npz of panoptic maps: name one, or a folder of PNGs") from error
    return ArchiveMaps(path, side)


def read_json(path: str | Path) -> Any:
    """A JSON file.

    Raises:
        UserError: it is missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON: {error}") from error


def frame_name(entry: Any, place: str) -> str:
    """The name of an image or of a frame's annotation: its file name without folder and suffix, or its id.

    Raises:
        UserError: it has neither.
    """
    if isinstance(entry, Mapping):
        name = next(
            (entry[key] for key in ("file_name", "image_id", "id") if entry.get(key) is not None), None
        )
        if name is not None:
            return Path(str(name)).stem
    raise UserError(f"{place}: a frame needs a file_name (or an id)")


@dataclass(frozen=True)
class PanopticTruth:
    """What a VIPSeg truth file says.

    Attributes:
        categories: {id, isthing, ...}.
        frames: for every video, in the order of the file, its frames' names.
        segments: for every video and frame name its list.
    """

    categories: tuple[Mapping[str, Any], ...]
    frames: Mapping[str, tuple[str, ...]]
    segments: Mapping[str, Mapping[str, Sequence[Segment]]]

    @property
    def positions(self) -> dict[int, int]:
        """The place of every category id."""
        return {category["id"]: k for k, category in enumerate(self.categories)}


def _by_video(content: Any, side: str) -> dict[str, dict[str, Any]]:
    """The `segments_info` of every frame of every video of a file."""
    annotations = content.get("annotations") if isinstance(content, Mapping) else None
    if not isinstance(annotations, Sequence):
        raise UserError(f"{side}: expected an object with a list `annotations`, one entry for each video")
    found: dict[str, dict[str, Any]] = {}
    for index, video in enumerate(annotations):
        if not isinstance(video, Mapping) or "video_id" not in video or "annotations" not in video:
            raise UserError(f"{side}: annotations entry {index} needs video_id and annotations")
        if not isinstance(video["annotations"], Sequence):
            raise UserError(
                f"{side}: video {video['video_id']}: expected a list `annotations`, one entry a frame"
            )
        name = str(video["video_id"])
        if name in found:
            raise UserError(f"{side}: video {name} is there twice")
        frames = found[name] = {}
        for entry in video["annotations"]:
            frame = frame_name(entry, f"{side}: video {name}")
            if frame in frames:
                raise UserError(f"{side}: video {name}, frame {frame} is there twice")
            frames[frame] = entry.get("segments_info")
    return found


def parse_truth(content: Any) -> PanopticTruth:
    """A VIPSeg truth: `videos`, `categories`, `annotations`.

    Raises:
        UserError: something is missing, twice there, or malformed; with its place.
    """
    for key in ("videos", "categories", "annotations"):
        if not isinstance(content, Mapping) or not isinstance(content.get(key), Sequence):
            raise UserError(f"truth: expected an object with a list `{key}`")
    categories = tuple(content["categories"])
    thing_flags(categories)
    positions = {category["id"]: k for k, category in enumerate(categories)}
    lists = _by_video(content, "truth")
    frames: dict[str, tuple[str, ...]] = {}
    segments: dict[str, dict[str, list[Segment]]] = {}
    for entry, video in enumerate(content["videos"]):
        if not isinstance(video, Mapping) or "video_id" not in video or "images" not in video:
            raise UserError(f"truth: videos entry {entry} needs video_id and images")
        if not isinstance(video["images"], Sequence):
            raise UserError(f"truth: video {video['video_id']}: expected a list `images`, one entry a frame")
        name = str(video["video_id"])
        if name in frames:
            raise UserError(f"truth: video {name} is there twice")
        frames[name] = tuple(frame_name(image, f"truth: video {name}") for image in video["images"])
        segments[name] = _lists_of(lists, name, frames[name], positions, "truth")
    unknown = sorted(lists.keys() - frames.keys())
    if unknown:
        raise UserError(f"truth: annotations of video {unknown[0]}, which `videos` does not list")
    return PanopticTruth(categories, frames, segments)


def _lists_of(
    lists: Mapping[str, Mapping[str, Any]],
    video: str,
    frames: Sequence[str],
    positions: Mapping[int, int],
    side: str,
) -> dict[str, list[Segment]]:
    if video not in lists:
        raise UserError(f"{side}: no annotations of video {video}")
    for frame in frames:
        if frame not in lists[video]:
            raise UserError(f"{side}: video {video}: frame {frame} has no annotations")
    unknown = sorted(lists[video].keys() - set(frames))
    if unknown:
        raise UserError(f"{side}: video {video}: frame {unknown[0]} is not among the truth's images")
    place = f"{side}: video {video}, frame"
    areas = side == "truth"
    return {
        frame: parse_segments(lists[video][frame], positions, f"{place} {frame}", areas) for frame in frames
    }


def parse_predictions(content: Any, truth: PanopticTruth) -> dict[str, dict[str, list[Segment]]]:
    """A `pred.json`: for every video of the truth and every frame its list.

    Raises:
        UserError: a video or frame is missing, unknown or there twice; an entry is malformed.
    """
    lists = _by_video(content, "predictions")
    unknown = sorted(lists.keys() - truth.frames.keys())
    if unknown:
        raise UserError(f"predictions: video {unknown[0]} is not in the truth")
    positions = truth.positions
    return {
        video: _lists_of(lists, video, frames, positions, "predictions")
        for video, frames in truth.frames.items()
    }


def count_videos(
    truth: PanopticTruth,
    predictions: Mapping[str, Mapping[str, Sequence[Segment]]],
    true_maps: Maps,
    predicted_maps: Maps,
    oddities: Oddities | None = None,
) -> list[VideoCounts]:
    """The counts of every video; what is odd about the truth goes to `oddities`."""
    things = thing_flags(truth.categories)
    counts = []
    for video, frames in truth.frames.items():
        builder = TableBuilder(video, oddities)
        maps = zip(frames, true_maps.read(video, frames), predicted_maps.read(video, frames), strict=True)
        for frame, true, predicted in maps:
            builder.add(frame, true, predicted, truth.segments[video][frame], predictions[video][frame])
        counts.append(count_video(builder.build(), things))
    return counts


def score_files(
    truth: str | Path,
    predictions: str | Path,
    truth_maps: str | Path,
    prediction_maps: str | Path,
    strict: bool = False,
) -> tuple[dict[str, Any], list[str]]:
    """Scores of files on disk.

    Args:
        truth: the truth's JSON.
        predictions: the predictions' JSON.
        truth_maps: a folder of PNGs or an .npz.
        prediction_maps: likewise.
        strict: whether an oddity in the truth is an error.

    Returns:
        What `summarize` gives, and a line for every kind of oddity in the truth that is scored nevertheless.

    Raises:
        UserError: anything missing or malformed, in one line with its place.
    """
    true = parse_truth(read_json(truth))
    predicted = parse_predictions(read_json(predictions), true)
    maps = open_maps(truth_maps, "gt"), open_maps(prediction_maps, "pred")
    oddities = Oddities(strict)
    counts = count_videos(true, predicted, *maps, oddities)
    return summarize(counts, true.categories), oddities.lines()
