"""Object tracks as the files of video instance segmentation write them, read and checked.

What makes no sense is a `UserError` that names the entry; what is odd, but scored by the official scorers, is noted in
an `Oddities` and scored as they do.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .masks import Document, MaskReader, Masks
from .oddities import Oddities

Array = NDArray[Any]
Groups = dict[tuple[Any, Any], list["Track"]]

MOST_TRACKS = 100  # predictions of one category that are looked at in one video
OCCLUSION = {"no_occlusion": 0.0, "slight_occlusion": 0.25, "severe_occlusion": 0.75}


@dataclass(frozen=True)
class Track:
    """One object of one video, predicted or true.

    Attributes:
        id: the annotation's id, or the prediction's position in the results.
        masks: the table that its masks stand in.
        span: the first row there and the one behind its last; one row a frame.
        area: the mean of its non-zero areas, in pixels: the size that area ranges ask for.
        score: a prediction's confidence.
        crowd: whether a truth track stands for a crowd.
        occlusion: a truth track's occlusion in [0, 1].
    """

    id: int
    masks: Masks
    span: tuple[int, int]
    area: float
    score: float = 0.0
    crowd: bool = False
    occlusion: float = 0.0

    @property
    def pixels(self) -> Array:
        """(frames,) int64 the area of each mask, 0 where there is none."""
        found: Array = self.masks.facts[slice(*self.span), 0]
        return found


@dataclass(frozen=True)
class Video:
    """What the truth says of a video; None for what it does not say."""

    size: tuple[int, int] | None
    length: int | None


def _videos(truth: Mapping[str, Any]) -> dict[Any, Video]:
    videos = {}
    for index, entry in enumerate(truth["videos"]):
        if "id" not in entry:
            raise UserError(f"truth, video {index}: no key `id`")
        edges = entry.get("height"), entry.get("width")
        told = [edge for edge in (*edges, entry.get("length")) if edge is not None]
        if not all(isinstance(edge, Real) for edge in told):
            raise UserError(f"truth, video {entry['id']}: height, width and length must be numbers")
        length = entry.get("length", len(entry["file_names"]) if entry.get("file_names") else None)
        size = (int(edges[0]), int(edges[1])) if None not in edges else None
        videos[entry["id"]] = Video(size, length)
    return videos


def occlusion_score(levels: Sequence[str | None]) -> float:
    """OVIS: the mean over the most occluded half (rounded up) of the frames that have a level; in [0, 1]."""
    values = sorted((OCCLUSION[level] for level in levels if level is not None), reverse=True)
    half = values[: (len(values) + 1) // 2]
    return sum(half) / len(half) if half else 0.0


def _mean_area(areas: Sequence[float | None], name: str) -> float:
    try:
        found = [area for area in areas if area]
        return float(np.mean(found)) if found else 0.0
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: `areas` must be a list with a number or null a frame") from error


def _mean_areas(masks: Masks, spans: Sequence[tuple[int, int]]) -> Array:
    """(n,) the mean of the non-zero areas of each track's masks, 0 if there are none."""
    sums = np.concatenate([[0], np.cumsum(masks.facts[:, 0])])
    counts = np.concatenate([[0], np.cumsum(masks.facts[:, 0] > 0)])
    edges = np.asarray(spans, dtype=np.int64).reshape(-1, 2)
    pixels, frames = (c[edges[:, 1]] - c[edges[:, 0]] for c in (sums, counts))
    mean: Array = pixels / np.maximum(frames, 1)
    return mean


def _check_frames(
    masks: Masks,
    spans: Sequence[tuple[int, int]],
    videos: Sequence[Video],
    place: Callable[[int], str],
    oddities: Oddities,
) -> None:
    """Notes tracks whose lists or masks do not have the length and the size of their videos."""
    edges = np.asarray(spans, dtype=np.int64).reshape(-1, 2)
    lengths = edges[:, 1] - edges[:, 0]
    sizes = np.array([v.size or (-1, -1) for v in videos], dtype=np.int64).reshape(-1, 2)
    owner = np.repeat(np.arange(len(edges)), lengths)
    rows = masks.rows[np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths - edges[:, 0], lengths)]
    differ = (rows[:, 0] >= 0) & (sizes[owner, 0] >= 0) & (rows[:, 2:] != sizes[owner]).any(1)
    expected = np.array([-1 if v.length is None else v.length for v in videos], dtype=np.int64)
    for n in np.flatnonzero((expected >= 0) & (lengths != expected)):
        oddities.note(
            "not one mask or null per frame of the video; the shorter list decides how far tracks are compared",
            f"{place(int(n))}, {lengths[n]} masks for {expected[n]} frames",
        )
    for n in np.unique(owner[differ]):
        oddities.note(
            "masks of another size than the video's add nothing where both sides have one", place(int(n))
        )


def _check_annotation(entry: Any, index: int) -> str:
    """The name of a truth entry, once it has what it must have."""
    for key in ("id", "video_id", "category_id", "segmentations"):
        if key not in entry:
            raise UserError(f"truth, annotation {index} (by position): no key `{key}`")
    return f"annotation {entry['id']}"


def _listed(
    truth: Mapping[str, Any], videos: Mapping[Any, Video], oddities: Oddities
) -> list[Mapping[str, Any]]:
    """The annotations of listed videos and categories, in file order."""
    categories = {category["id"] for category in truth["categories"]}
    by_id: dict[Any, Mapping[str, Any]] = {}
    for index, entry in enumerate(truth["annotations"] or ()):
        name = _check_annotation(entry, index)
        if entry["id"] in by_id:
            oddities.note("an id that was given before; the official scorer scores the last one twice", name)
        by_id[entry["id"]] = entry
    kept = []
    for entry in truth["annotations"] or ():
        if not isinstance(entry["video_id"], Hashable) or entry["video_id"] not in videos:
            oddities.note("a video that is not listed; left out", f"annotation {entry['id']}")
        elif not isinstance(entry["category_id"], Hashable) or entry["category_id"] not in categories:
            oddities.note("a category that is not listed; left out", f"annotation {entry['id']}")
        else:
            kept.append(by_id[entry["id"]])
    return kept


def _note_truth(entry: Mapping[str, Any], name: str, oddities: Oddities) -> None:
    if entry["id"] == 0:
        oddities.note("a track with id 0 never counts as found; number tracks from 1", name)
    if "iscrowd" not in entry:
        oddities.note("no key `iscrowd`; taken as 0", name)
    if "areas" not in entry:
        oddities.note("no key `areas`; the masks' areas stand in", name)


def _occlusion(entry: Mapping[str, Any], name: str) -> float:
    try:
        return occlusion_score(entry.get("occlusion") or ())
    except KeyError as error:
        raise UserError(
            f"{name}: unknown occlusion level {error}; known are {', '.join(OCCLUSION)}"
        ) from error


def parse_truth(
    truth: Mapping[str, Any], document: Document | None = None, oddities: Oddities | None = None
) -> Groups:
    """The true tracks of every (video, category) that is listed, in file order.

    Args:
        truth: parsed YouTube-VIS annotations.
        document: where they come from, if from a file without its masks.
        oddities: where to note what is odd.

    Raises:
        UserError: an entry lacks a key, or a mask is malformed.
    """
    oddities = oddities or Oddities()
    videos = _videos(truth)
    entries = _listed(truth, videos, oddities)
    names = [f"annotation {entry['id']}" for entry in entries]
    reader = MaskReader(document or Document(truth))

    def place(index: int, frame: int) -> str:
        return names[index] if frame < 0 else f"{names[index]}, frame {frame}"

    spans = [
        reader.add(e["segmentations"], partial(place, i), _size(videos.get(e["video_id"])))
        for i, e in enumerate(entries)
    ]
    masks = reader.finish(spans, place)
    own = [videos.get(entry["video_id"], Video(None, None)) for entry in entries]
    _check_frames(masks, spans, own, lambda n: names[n], oddities)
    drawn = _mean_areas(masks, spans)
    tracks: Groups = defaultdict(list)
    for index, (entry, name) in enumerate(zip(entries, names, strict=True)):
        _note_truth(entry, name, oddities)
        tracks[entry["video_id"], entry["category_id"]].append(
            Track(
                entry["id"],
                masks,
                spans[index],
                _mean_area(entry["areas"], name) if "areas" in entry else float(drawn[index]),
                crowd=bool(entry.get("iscrowd", 0)),
                occlusion=_occlusion(entry, name),
            )
        )
    return tracks


def _size(video: Video | None) -> tuple[int, int] | None:
    return video.size if video else None


def _check_result(entry: Any, index: int, videos: Mapping[Any, Video]) -> float:
    """The entry's score, once the entry is known to be sound but for its masks."""
    if not isinstance(entry, Mapping):
        raise UserError(f"results entry {index}: expected an object, got {type(entry).__name__}")
    missing = [key for key in ("video_id", "category_id", "score", "segmentations") if key not in entry]
    if missing:
        raise UserError(f"results entry {index}: no key `{missing[0]}`")
    if not isinstance(entry["video_id"], Hashable) or entry["video_id"] not in videos:
        raise UserError(f"results entry {index}: video {entry['video_id']} is not in the truth")
    if not isinstance(entry["category_id"], Hashable):
        raise UserError(f"results entry {index}: category_id {entry['category_id']!r} is not a number")
    value = entry["score"]
    if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
        raise UserError(f"results entry {index}: score {value!r} is not a number")
    return float(value)


def _note_listed_runs(
    entries: Sequence[Mapping[str, Any]], masks: Masks, spans: Sequence[tuple[int, int]], oddities: Oddities
) -> None:
    """Predictions with runs as a list of numbers, which the official loaders refuse."""
    listed = np.concatenate([[0], np.cumsum(masks.facts[:, 4])])
    for index, (first, stop) in enumerate(spans):
        if listed[stop] > listed[first]:
            place = f"results entry {index} (video {entries[index]['video_id']})"
            oddities.note("counts as a list of runs, which the official loaders refuse", place)


def parse_results(
    results: Sequence[Mapping[str, Any]],
    truth: Mapping[str, Any],
    document: Document | None = None,
    oddities: Oddities | None = None,
) -> Groups:
    """The best 100 predictions of every video and category, best first; equal scores keep file order.

    Args:
        results: predicted tracks.
        truth: parsed YouTube-VIS annotations; only videos and categories are read.
        document: where the results come from, if from a file without its masks.
        oddities: where to note what is odd.

    Raises:
        UserError: an entry is not sound: an unknown video, a score that is no number, a malformed mask.
    """
    if not isinstance(results, list):
        raise UserError(f"results: expected a list of predicted tracks, got {type(results).__name__}")
    oddities = oddities or Oddities()
    videos = _videos(truth)
    categories = {category["id"] for category in truth["categories"]}
    reader = MaskReader(document or Document(results))

    def place(index: int, frame: int = -1) -> str:
        where = f"results entry {index} (video {results[index]['video_id']})"
        return where if frame < 0 else f"{where}, frame {frame}"

    groups: dict[tuple[Any, Any], list[tuple[float, int]]] = defaultdict(list)
    spans = []
    for index, entry in enumerate(results):
        value = _check_result(entry, index, videos)
        spans.append(reader.add(entry["segmentations"], lambda t, i=index: place(i, t)))  # type: ignore[misc]
        if entry["category_id"] in categories:
            groups[entry["video_id"], entry["category_id"]].append((value, index))
        else:
            oddities.note("a category that the truth does not list; left out", place(index))
    masks = reader.finish(spans, place)
    _note_listed_runs(results, masks, spans, oddities)
    _check_frames(masks, spans, [videos[entry["video_id"]] for entry in results], place, oddities)
    areas = _mean_areas(masks, spans)
    tracks: Groups = {}
    for key, group in groups.items():
        best = sorted(group, key=lambda pair: -pair[0])[:MOST_TRACKS]
        tracks[key] = [Track(i, masks, spans[i], float(areas[i]), score=value) for value, i in best]
    return tracks
