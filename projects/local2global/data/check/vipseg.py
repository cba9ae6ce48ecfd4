"""Checks a VIPSeg panoptic file, its panoptic PNGs and its frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ...errors import UserError
from ...results.segment_ids import Ids, box_of, count_ids, read_ids
from ..readers.archives import ImageFile, ImageRoot
from ..readers.entries import shown
from ..readers.images import image_path
from ..readers.records import Track, VideoRow, annotated_videos
from ..readers.rle import encode_mask
from ..readers.vipseg import (
    FrameEntry,
    VideoEntry,
    frame_name,
    map_file,
    parse_classes,
    parse_segments,
    parse_videos,
)
from .findings import Notes, Options, Sample, Summary, sample_positions
from .images import ExpectedImage, check_images
from .masks import check_crowd, is_box

_BATCH = 32


@dataclass
class _Segments:
    """The segments of a video, followed over its frames.

    Attributes:
        categories: the category of a segment id when it first occurred, and where, by id.
        present: the frames in which a segment occurs, by id.
    """

    categories: dict[int, tuple[int, str]] = field(default_factory=dict)
    present: dict[int, set[int]] = field(default_factory=dict)


def check_vipseg(
    content: Mapping[str, Any], maps: ImageRoot | None, summary: Summary, notes: Notes, options: Options
) -> None:
    """Reports every problem, fills the summary and keeps some clips for pictures.

    Args:
        content: the file's content.
        maps: the folder of the panoptic PNGs, None to skip them.
        summary: filled with statistics; its `images` is the folder of the frames, None to skip them.
        notes: where problems are reported.
        options: how thoroughly to check.
    """
    classes = {c["id"]: c for c in parse_classes(content, notes)}
    videos = parse_videos(content, notes)
    for video in videos.values():
        size = next((frame.size for frame in video.frames.values() if frame.size), None)
        summary.add_video(size, len(video.frames))
    if summary.images is not None:
        check_images(list(_expected(videos, summary.images, notes)), notes, options)
    summary.annotated = bool(content.get("annotations"))
    if not summary.annotated:
        problem, fix = 'the list "annotations" is missing or empty', "Add the segments of every frame"
        notes.error("no-list", "", problem, fix)
        return
    sampled = sample_positions(len(videos), options.samples)
    for k, video in enumerate(videos.values()):
        if not video.annotations:
            fix = "Annotate it, or leave it out"
            notes.error("no-annotation", f"video {video.name}", "no annotation", fix)
            continue
        segments = _check_frames(video, classes, maps, notes, options)
        for identity, (category, _) in segments.categories.items():
            name = str(classes[category]["name"])
            if classes[category]["isthing"]:
                present = segments.present[identity]
                summary.add_track(name, [t in present for t in range(len(video.frames))])
            else:
                summary.instances[f"{name} (stuff)"] += 1
        if k in sampled and summary.images is not None and maps is not None:
            notes.report.samples += _sample(video, segments, classes, summary.images, maps)


def _expected(videos: Mapping[str, VideoEntry], images: ImageRoot, notes: Notes) -> Iterator[ExpectedImage]:
    for video in videos.values():
        for identity, frame in video.frames.items():
            where = f"{notes.file}: video {video.name}, image {identity}"
            folder = images / video.name
            yield ExpectedImage(image_path(folder, frame_name(folder, frame.file)), frame.size, where)


def _check_frames(
    video: VideoEntry, classes: Mapping[int, Any], maps: ImageRoot | None, notes: Notes, options: Options
) -> _Segments:
    """Reports every problem of a video's frames and maps; returns its segments."""
    segments = _Segments()
    frames = ((t, key) for t, key in enumerate(video.frames) if key in video.annotations)
    with ThreadPoolExecutor(max(1, options.workers)) as pool:
        while batch := list(islice(frames, _BATCH)):
            files = [None if maps is None else maps / video.name / map_file(video, key) for _, key in batch]
            for (t, key), file, ids in zip(batch, files, pool.map(_read, files), strict=True):
                listed = parse_segments(video, key, classes, notes)
                where = f"video {video.name}, image {key}"
                _follow(segments, t, listed, classes, where, notes)
                if isinstance(ids, str):
                    kind = "corrupt-map" if file and file.is_file() else "missing-map"
                    notes.error(kind, f"{notes.file}: {where}", ids, "Restore the file", file=str(file))
                elif ids is not None:
                    _check_map(video.frames[key], listed, ids, where, notes, str(file))
    return segments


def _read(file: ImageFile | None) -> Ids | str | None:
    """A map, the problem that it has, or None if maps are skipped."""
    if file is None:
        return None
    try:
        return read_ids(file)
    except UserError as error:
        return str(error).removeprefix(f"{file}: ").rstrip(".")


def _follow(
    segments: _Segments,
    t: int,
    listed: Mapping[int, Mapping[str, Any]],
    classes: Mapping[int, Any],
    where: str,
    notes: Notes,
) -> None:
    """Reports a segment id with two categories and stuff of one class with two ids."""
    stuff: dict[int, int] = {}
    for identity, segment in listed.items():
        at, category = f"{where}, segment {identity}", segment["category_id"]
        check_crowd(segment, at, notes)
        segments.present.setdefault(identity, set()).add(t)
        first, place = segments.categories.setdefault(identity, (category, at))
        if first != category:
            problem = f"category {category} ({classes[category]['name']}), but {first} in {place}"
            fix = "An id denotes one object throughout a video: change one of the two ids"
            notes.error("overlapping-ids", at, problem, fix)
        if not classes[category]["isthing"] and stuff.setdefault(category, identity) != identity:
            problem = f"stuff of this class is already segment {stuff[category]}"
            notes.warn("split-stuff", at, problem, "Paint the stuff of a class with one id")


def _check_map(
    frame: FrameEntry,
    listed: Mapping[int, Mapping[str, Any]],
    ids: Ids,
    where: str,
    notes: Notes,
    file: str,
) -> None:
    """Compares a map with the segments listed for it."""
    if frame.size is not None and ids.shape != frame.size:
        problem = f"a map of {ids.shape[0]}x{ids.shape[1]} for a frame of {frame.size[0]}x{frame.size[1]}"
        fix = "Resize the map without interpolation"
        notes.error("mask-size", f"{notes.file}: {where}", problem, fix, file=file)
    painted = count_ids(ids)
    for identity in painted.keys() - listed.keys() - {0}:
        problem = f"id {identity} is painted ({painted[identity]} pixels) but not listed"
        notes.error("painted-not-listed", where, problem, "Add it to segments_info, or paint it 0")
    for identity, segment in listed.items():
        at = f"{where}, segment {identity}"
        area = painted.get(identity, 0)
        if not area:
            fix = "Remove it from segments_info, or paint it"
            notes.error("listed-not-painted", at, "listed, but no pixel of the map has its id", fix)
            continue
        if segment.get("area", area) != area:
            problem = f"area {shown(segment['area'])}, but the map has {area} pixels"
            notes.error("area", at, problem, f"Make it {area}")
        if segment.get("bbox") is not None:
            _check_box(segment["bbox"], box_of(ids == identity), at, notes)


def _check_box(stated: Any, box: list[int], where: str, notes: Notes) -> None:
    if not is_box(stated):
        fix = "Give [x, y, width, height], or leave it out"
        notes.error("bbox", where, f"bbox {shown(stated)} is not a box", fix)
    elif max(abs(a - b) for a, b in zip(stated, box, strict=True)) > 1:  # some tools write width - 1
        notes.warn("bbox", where, f"bbox {shown(stated)}, but the map's is {box}", f"Make it {box}")


def _sample(
    video: VideoEntry, segments: _Segments, classes: Mapping[int, Any], images: ImageRoot, maps: ImageRoot
) -> list[Sample]:
    """A clip to draw, with the maps as masks; none if a map is unreadable or the frames have several sizes."""
    read = [_read(maps / video.name / map_file(video, key)) for key in video.frames]
    decoded = [ids for ids in read if ids is not None and not isinstance(ids, str)]
    if len(decoded) != len(read) or len({ids.shape for ids in decoded}) != 1:
        return []
    ordered = sorted(classes)
    tracks = []
    for number, (identity, (category, _)) in enumerate(segments.categories.items(), 1):
        masks = (ids == identity for ids in decoded)
        outlines = tuple(encode_mask(mask)["counts"] if mask.any() else None for mask in masks)
        tracks.append(Track(number, ordered.index(category), outlines))
    folder = images / video.name
    files = [f"{video.name}/{frame_name(folder, frame.file)}" for frame in video.frames.values()]
    height, width = decoded[0].shape
    row = VideoRow(video.position + 1, video.name, (height, width), files)
    (record,) = annotated_videos(images, [row], [tracks])
    return [Sample(record, [{"id": k, "name": classes[k]["name"]} for k in ordered])]
