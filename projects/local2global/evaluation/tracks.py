"""Object tracks of YouTube-VIS and OVIS files, parsed and checked.

An unusable entry raises a `UserError` that names it.  An unusual entry that the official scorers accept is noted in
`Oddities` and scored as they score it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from ..errors import UserError
from .masks import MaskTrack, parse_track
from .oddities import Oddities

Groups = dict[tuple[Any, Any], list["Track"]]
Entry = Mapping[str, Any]

MAX_TRACKS = 100  # predictions scored per video and category
OCCLUSION = {"no_occlusion": 0.0, "slight_occlusion": 0.25, "severe_occlusion": 0.75}


@dataclass(frozen=True)
class Track:
    """One object of one video, predicted or true.

    Attributes:
        id: the annotation's id, or the prediction's position in the results.
        masks: its masks.
        area: mean of its non-zero areas in pixels, which decides its area range.
        score: confidence of a prediction.
        crowd: whether a truth track is a crowd.
        occlusion: occlusion of a truth track in [0, 1].
    """

    id: int
    masks: MaskTrack
    area: float
    score: float = 0.0
    crowd: bool = False
    occlusion: float = 0.0


@dataclass(frozen=True)
class _Video:
    """(height, width) and number of frames of a video, None where the truth does not state them."""

    size: tuple[int, int] | None
    length: int | None


def check_truth(truth: Any) -> None:
    """Checks the lists of a YouTube-VIS annotation file.

    Raises:
        UserError: a list is missing, or an entry is not an object or has no usable id.
    """
    if not isinstance(truth, Mapping):
        raise UserError(f"truth: expected an object with YouTube-VIS annotations, got {type(truth).__name__}")
    for key in ("videos", "categories", "annotations"):
        if key not in truth:
            raise UserError(f"truth: no key `{key}`; expected YouTube-VIS annotations")
        entries = truth[key]
        if entries is None and key == "annotations":  # hidden annotations of a challenge
            continue
        if not isinstance(entries, Sequence) or isinstance(entries, str):
            raise UserError(f"truth: expected a list `{key}`, got {type(entries).__name__}")
        _check_ids(key, entries)


def _check_ids(key: str, entries: Sequence[Any]) -> None:
    for index, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            raise UserError(f"truth, {key} entry {index}: expected an object, got {type(entry).__name__}")
        if "id" not in entry and key != "annotations":
            raise UserError(f"truth, {key} entry {index}: no key `id`")
        if "id" in entry and not isinstance(entry["id"], (Integral, str)):
            raise UserError(f"truth, {key} entry {index}: `id` must be a number, not {entry['id']!r:.80}")
    if len({isinstance(entry["id"], str) for entry in entries if "id" in entry}) > 1:
        raise UserError(f"truth, {key}: some ids are numbers and some are texts. Make all of them numbers")


def _videos(truth: Entry) -> dict[Any, _Video]:
    videos = {}
    for entry in truth["videos"]:
        height, width = entry.get("height"), entry.get("width")
        files = entry.get("file_names")
        if not isinstance(files, list | None):
            raise UserError(f"truth, video {entry['id']}: file_names must be a list")
        length = entry.get("length", len(files) if files else None)
        if not all(
            value is None or (isinstance(value, Real) and math.isfinite(value))
            for value in (height, width, entry.get("length"))
        ):
            raise UserError(f"truth, video {entry['id']}: height, width and length must be numbers")
        size = None if height is None or width is None else (int(height), int(width))
        videos[entry["id"]] = _Video(size, length)
    return videos


def _category_ids(truth: Entry) -> set[Any]:
    return {category["id"] for category in truth["categories"]}


def occlusion_score(levels: Sequence[str | None]) -> float:
    """OVIS occlusion of a track in [0, 1]: mean over the most occluded half (rounded up) of its labelled frames."""
    values = sorted((OCCLUSION[level] for level in levels if level is not None), reverse=True)
    half = values[: (len(values) + 1) // 2]
    return sum(half) / len(half) if half else 0.0


def _check_frames(masks: MaskTrack, video: _Video, place: str, oddities: Oddities) -> None:
    """Notes a track whose length or mask sizes differ from those of its video."""
    if video.length is not None and len(masks) != video.length:
        oddities.note(
            "not one mask or null per frame of the video; the shorter list decides how far tracks are compared",
            f"{place}, {len(masks)} masks for {video.length} frames",
        )
    if video.size is not None and ((masks.sizes[:, 0] >= 0) & (masks.sizes != video.size).any(1)).any():
        oddities.note("masks of another size than the video's add nothing where both sides have one", place)


def _listed(truth: Entry, videos: Mapping[Any, _Video], oddities: Oddities) -> list[Entry]:
    """The annotations of listed videos and categories, in file order; of repeated ids, the last one each time."""
    categories = _category_ids(truth)
    by_id: dict[Any, Entry] = {}
    for index, entry in enumerate(truth["annotations"] or ()):
        for key in ("id", "video_id", "category_id", "segmentations"):
            if key not in entry:
                raise UserError(f"truth, annotation {index} (by position): no key `{key}`")
        if entry["id"] in by_id:
            oddities.note(
                "an id that was given before; the official scorer scores the last one twice",
                f"annotation {entry['id']}",
            )
        by_id[entry["id"]] = entry
    listed = []
    for entry in truth["annotations"] or ():
        if not isinstance(entry["video_id"], Hashable) or entry["video_id"] not in videos:
            oddities.note("a video that is not listed; left out", f"annotation {entry['id']}")
        elif not isinstance(entry["category_id"], Hashable) or entry["category_id"] not in categories:
            oddities.note("a category that is not listed; left out", f"annotation {entry['id']}")
        else:
            listed.append(by_id[entry["id"]])
    return listed


def _place(name: str) -> Callable[[int], str]:
    return lambda frame: name if frame < 0 else f"{name}, frame {frame}"


def parse_truth(truth: Entry, oddities: Oddities | None = None) -> Groups:
    """The true tracks of every listed (video, category), in file order.

    Args:
        truth: YouTube-VIS annotations.
        oddities: collects unusual entries.

    Raises:
        UserError: an entry lacks a key, or a mask is malformed.
    """
    oddities = oddities or Oddities()
    videos = _videos(truth)
    tracks: Groups = defaultdict(list)
    for entry in _listed(truth, videos, oddities):
        video = videos.get(entry["video_id"], _Video(None, None))
        track = _true_track(entry, video, oddities)
        tracks[entry["video_id"], entry["category_id"]].append(track)
    return tracks


def _true_track(entry: Entry, video: _Video, oddities: Oddities) -> Track:
    name = f"annotation {entry['id']}"
    masks = parse_track(entry["segmentations"], _place(name), video.size)
    _check_frames(masks, video, name, oddities)
    if entry["id"] == 0:
        oddities.note("a track with id 0 never counts as found; number tracks from 1", name)
    if entry.get("iscrowd", 0) not in (0, 1):
        raise UserError(f"{name}: `iscrowd` is {entry['iscrowd']!r:.40}; make it 0 or 1")
    if "iscrowd" not in entry:
        oddities.note("no key `iscrowd`; taken as 0", name)
    if "areas" not in entry:
        oddities.note("no key `areas`; the masks' areas are used instead", name)
    try:
        areas = [area for area in entry["areas"] if area] if "areas" in entry else None
        area = masks.mean_area if areas is None else float(np.mean(areas)) if areas else 0.0
        if not math.isfinite(area):
            raise ValueError("not finite")
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{name}: `areas` must be a list with a number or null a frame") from error
    try:
        occlusion = occlusion_score(entry.get("occlusion") or ())
    except KeyError as error:
        levels = ", ".join(OCCLUSION)
        raise UserError(f"{name}: unknown occlusion level {error}; known are {levels}") from error
    except TypeError as error:
        raise UserError(f"{name}: `occlusion` must be a list with a level a frame") from error
    return Track(entry["id"], masks, area, crowd=bool(entry.get("iscrowd", 0)), occlusion=occlusion)


def _check_result(entry: Any, index: int, videos: Mapping[Any, _Video]) -> float:
    """Checks all of a prediction but its masks, and returns its score."""
    if not isinstance(entry, Mapping):
        raise UserError(f"results entry {index}: expected an object, got {type(entry).__name__}")
    for key in ("video_id", "category_id", "score", "segmentations"):
        if key not in entry:
            raise UserError(f"results entry {index}: no key `{key}`")
    if not isinstance(entry["video_id"], Hashable) or entry["video_id"] not in videos:
        raise UserError(f"results entry {index}: video {entry['video_id']!r:.80} is not in the truth")
    if not isinstance(entry["category_id"], Hashable):
        raise UserError(f"results entry {index}: category_id {entry['category_id']!r:.80} is not a number")
    score = entry["score"]
    try:
        number = float(score) if isinstance(score, Real) and not isinstance(score, bool) else math.nan
    except OverflowError:  # an integer
        number = math.inf
    if not math.isfinite(number):
        raise UserError(f"results entry {index}: score {score!r:.80} is not a number")
    return number


def _mask_key(segmentations: Any) -> Hashable:
    """A key equal for equal lists of compressed masks, or None.

    Predictions of one slot under several classes have equal masks, which are parsed once.
    """
    try:
        key = tuple((rle["counts"], *rle["size"]) if rle else None for rle in segmentations)
        hash(key)
    except (KeyError, TypeError):
        return None
    return key


def parse_results(results: Sequence[Entry], truth: Entry, oddities: Oddities | None = None) -> Groups:
    """The 100 best predictions of every (video, category), best first; equal scores keep file order.

    Args:
        results: predicted tracks.
        truth: YouTube-VIS annotations; only `videos` and `categories` are read.
        oddities: collects unusual entries.

    Raises:
        UserError: an unusable entry: an unknown video, a score that is not a number, a malformed mask.
    """
    if not isinstance(results, list):
        raise UserError(f"results: expected a list of predicted tracks, got {type(results).__name__}")
    oddities = oddities or Oddities()
    videos, categories = _videos(truth), _category_ids(truth)
    parsed: dict[Hashable, MaskTrack] = {}
    groups: Groups = defaultdict(list)
    for index, entry in enumerate(results):
        score = _check_result(entry, index, videos)
        place = f"results entry {index} (video {entry['video_id']})"
        key = _mask_key(entry["segmentations"])
        masks = parsed.get(key) or parse_track(entry["segmentations"], _place(place))
        if key is not None:
            parsed[key] = masks
        if masks.listed:
            oddities.note("counts as a list of runs, which the official loaders refuse", place)
        _check_frames(masks, videos[entry["video_id"]], place, oddities)
        if entry["category_id"] in categories:
            track = Track(index, masks, masks.mean_area, score=score)
            groups[entry["video_id"], entry["category_id"]].append(track)
        else:
            oddities.note("a category that the truth does not list; left out", place)
    return {key: sorted(group, key=lambda track: -track.score)[:MAX_TRACKS] for key, group in groups.items()}
