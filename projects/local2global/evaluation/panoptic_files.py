"""Panoptic truth and predictions on disk, scored video by video.

The lists are VIPSeg JSON.  The maps are PNGs `<folder>/<video>/<frame>.png` with id = R + 256 G + 65536 B, or arrays
`<side>/<video>` (T, H, W) of one .npz.  Videos and frames are identified by name.
"""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError, first_line
from ..limits import MAX_MAPS
from ..results.segment_ids import read_ids
from .files import read_json
from .oddities import Oddities
from .panoptic import Segment, overlap_frame, parse_segments
from .vps import VideoCounts, count_video, summarize, thing_flags

#: What NumPy and zipfile raise for damaged files; RuntimeError for an encrypted one.
_DAMAGED = (
    OSError, ValueError, EOFError, KeyError, RuntimeError, SyntaxError, tokenize.TokenError, MemoryError, zlib.error,
    zipfile.BadZipFile, OverflowError,
)  # fmt: skip

Lists = Mapping[str, Mapping[str, Sequence[Segment]]]  # by video and frame name


#: Reads the (H, W) ids of a video's frames, in order; called with the video's name and the frames' names.
Maps = Callable[[str, Sequence[str]], Iterator[NDArray[Any]]]


def read_folder(root: Path, video: str, frames: Sequence[str]) -> Iterator[NDArray[Any]]:
    """Maps of PNGs, one folder per video, decoded one at a time."""
    return (read_ids(root / video / f"{frame}.png") for frame in frames)


def read_archive(path: Path, side: str, video: str, frames: Sequence[str]) -> Iterator[NDArray[Any]]:
    """Maps of the array `<side>/<video>` of an .npz, with the frames of the truth in order."""
    name = f"{side}/{video}"
    with np.load(path) as archive:
        _check(name in archive.files, f"{path}: no maps `{name}`")
        size = archive.zip.getinfo(f"{name}.npy").file_size
        _check(size <= MAX_MAPS, f"{path}: `{name}` has {size} bytes, the limit is {MAX_MAPS}")
        try:
            maps = archive[name]
        except _DAMAGED as error:
            raise UserError(f"{path}: `{name}` is damaged ({first_line(error)})") from error
    shape = "x".join(map(str, maps.shape))
    _check(
        maps.ndim == 3 and len(maps) == len(frames) and maps.dtype.kind in "iu",
        f"{path}: `{name}` is {shape} of {maps.dtype}; "
        f"expected whole numbers, {len(frames)} frames of height x width",
    )
    return iter(maps)


def open_maps(path: str | Path, side: str) -> Maps:
    """The maps of a folder or of an .npz.

    Args:
        path: the folder or the file.
        side: "gt" or "pred", the first part of the names in an .npz.

    Raises:
        UserError: neither exists.
    """
    path = Path(path)
    if path.is_dir():
        return partial(read_folder, path)
    _check(path.is_file(), f"{path}: no such folder or .npz of panoptic maps")
    try:
        np.load(path).close()
    except (*_DAMAGED, AttributeError) as error:
        raise UserError(f"{path}: not an .npz of panoptic maps: name one, or a folder of PNGs") from error
    return partial(read_archive, path, side)


@dataclass(frozen=True)
class PanopticTruth:
    """A VIPSeg truth file.

    Attributes:
        categories: {id, isthing, ...}.
        frames: names of the frames by video, in the order of the file.
        segments: the listed segments by video and frame.
    """

    categories: tuple[Mapping[str, Any], ...]
    frames: Mapping[str, tuple[str, ...]]
    segments: Lists

    @property
    def positions(self) -> dict[int, int]:
        """Position of every category id in the class list."""
        return {category["id"]: k for k, category in enumerate(self.categories)}


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def _is_list(content: Any, key: str) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get(key), Sequence)


def frame_name(entry: Any, place: str) -> str:
    """The name of a frame: its file name without folder and suffix, or its id.

    Raises:
        UserError: it has neither.
    """
    for key in ("file_name", "image_id", "id"):
        if isinstance(entry, Mapping) and entry.get(key) is not None:
            return Path(str(entry[key])).stem
    raise UserError(f"{place}: a frame needs a file_name (or an id)")


def _lists_by_video(content: Any, side: str) -> dict[str, dict[str, Any]]:
    """The unparsed `segments_info` of every video and frame."""
    _check(
        _is_list(content, "annotations"),
        f"{side}: expected an object with a list `annotations`, one entry for each video",
    )
    videos: dict[str, dict[str, Any]] = {}
    for index, video in enumerate(content["annotations"]):
        complete = isinstance(video, Mapping) and {"video_id", "annotations"} <= video.keys()
        _check(complete, f"{side}: annotations entry {index} needs video_id and annotations")
        place = f"{side}: video {video['video_id']}"
        _check(_is_list(video, "annotations"), f"{place}: expected a list `annotations`, one entry a frame")
        _check(str(video["video_id"]) not in videos, f"{place} is there twice")
        frames = videos[str(video["video_id"])] = {}
        for entry in video["annotations"]:
            frame = frame_name(entry, place)
            _check(frame not in frames, f"{place}, frame {frame} is there twice")
            frames[frame] = entry.get("segments_info")
    return videos


def _parse_lists(
    lists: Mapping[str, Mapping[str, Any]],
    frames: Mapping[str, Sequence[str]],
    positions: Mapping[int, int],
    side: str,
) -> dict[str, dict[str, list[Segment]]]:
    """The segments of every video and frame of the truth."""
    parsed: dict[str, dict[str, list[Segment]]] = {}
    for video, names in frames.items():
        place = f"{side}: video {video}"
        _check(video in lists, f"{side}: no annotations of video {video}")
        for frame in names:
            _check(frame in lists[video], f"{place}: frame {frame} has no annotations")
        for frame in sorted(lists[video].keys() - set(names)):
            raise UserError(f"{place}: frame {frame} is not among the truth's images")
        parsed[video] = {
            frame: parse_segments(lists[video][frame], positions, f"{place}, frame {frame}", side == "truth")
            for frame in names
        }
    return parsed


def parse_truth(content: Any) -> PanopticTruth:
    """Parses a VIPSeg truth: `videos`, `categories`, `annotations`.

    Raises:
        UserError: an entry is missing, repeated or malformed.
    """
    for key in ("videos", "categories", "annotations"):
        _check(_is_list(content, key), f"truth: expected an object with a list `{key}`")
    categories = tuple(content["categories"])
    thing_flags(categories)
    frames: dict[str, tuple[str, ...]] = {}
    for index, video in enumerate(content["videos"]):
        complete = isinstance(video, Mapping) and {"video_id", "images"} <= video.keys()
        _check(complete, f"truth: videos entry {index} needs video_id and images")
        place = f"truth: video {video['video_id']}"
        _check(_is_list(video, "images"), f"{place}: expected a list `images`, one entry a frame")
        _check(str(video["video_id"]) not in frames, f"{place} is there twice")
        frames[str(video["video_id"])] = tuple(frame_name(image, place) for image in video["images"])
    lists = _lists_by_video(content, "truth")
    for video in sorted(lists.keys() - frames.keys()):
        raise UserError(f"truth: annotations of video {video}, which `videos` does not list")
    positions = {category["id"]: k for k, category in enumerate(categories)}
    return PanopticTruth(categories, frames, _parse_lists(lists, frames, positions, "truth"))


def parse_predictions(content: Any, truth: PanopticTruth) -> dict[str, dict[str, list[Segment]]]:
    """Parses a `pred.json`.

    Raises:
        UserError: a video or frame is missing, unknown or repeated, or an entry is malformed.
    """
    lists = _lists_by_video(content, "predictions")
    for video in sorted(lists.keys() - truth.frames.keys()):
        raise UserError(f"predictions: video {video} is not in the truth")
    return _parse_lists(lists, truth.frames, truth.positions, "predictions")


def count_videos(
    truth: PanopticTruth,
    predictions: Lists,
    true_maps: Maps,
    predicted_maps: Maps,
    oddities: Oddities | None = None,
) -> list[VideoCounts]:
    """The counts of every video; unusual entries of the truth are noted in `oddities`."""
    things = thing_flags(truth.categories)
    counts = []
    for video, names in truth.frames.items():
        maps = zip(names, true_maps(video, names), predicted_maps(video, names), strict=True)
        frames = [
            overlap_frame(
                f"video {video}, frame {frame}",
                true,
                predicted,
                truth.segments[video][frame],
                predictions[video][frame],
                oddities,
            )
            for frame, true, predicted in maps
        ]
        counts.append(count_video(video, frames, things))
    return counts


def score_files(
    truth: str | Path,
    predictions: str | Path,
    truth_maps: str | Path,
    prediction_maps: str | Path,
    strict: bool = False,
) -> tuple[dict[str, Any], list[str]]:
    """Scores two JSON files and their maps, each a folder of PNGs or an .npz.

    With `strict`, unusual entries of the truth are errors.

    Returns:
        The scores of `summarize`, and one warning per kind of unusual entry in the truth.

    Raises:
        UserError: a file is missing or malformed.
    """
    true = parse_truth(read_json(truth))
    predicted = parse_predictions(read_json(predictions), true)
    maps = open_maps(truth_maps, "gt"), open_maps(prediction_maps, "pred")
    oddities = Oddities(strict)
    counts = count_videos(true, predicted, *maps, oddities)
    return summarize(counts, true.categories), oddities.lines()
