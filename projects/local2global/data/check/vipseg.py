"""Every problem of a VIPSeg panoptic file, of its maps and of its frames."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ...errors import UserError
from ...results.segment_ids import Ids, box_of, count_ids, read_ids
from ..datasets import AnnotatedVideo, Track
from ..readers.rle import encode_mask
from .entries import check_categories, check_category, check_crowd, is_int, positive_size
from .findings import Notes, Options, Sample, Summary, chosen
from .images import ExpectedImage, check_images
from .masks import is_box

_SUFFIXES = (".jpg", ".jpeg", ".png")
_BATCH = 32


@dataclass
class _Video:
    """What is usable of a video's entries.

    Attributes:
        name: its id and folder.
        frames: (stem, size, map file) of every frame, by the frame's id.
        position: in the file.
        categories: the category that a segment id had when it was first seen, and where.
        present: frames in which a segment is seen, by its id.
    """

    name: str
    position: int
    frames: dict[str, tuple[tuple[int, int] | None, str]] = field(default_factory=dict)
    categories: dict[int, tuple[int, str]] = field(default_factory=dict)
    present: dict[int, set[int]] = field(default_factory=dict)


def check_vipseg(
    content: Mapping[str, Any], maps: Path | None, summary: Summary, notes: Notes, options: Options
) -> None:
    """Notes every problem, fills the summary and keeps some clips for pictures.

    Args:
        content: what the annotation file holds.
        maps: the folder of the panoptic PNGs, or None to leave them alone.
        summary: what is counted; its `images` is the folder of the frames, or None to leave frames alone.
        notes: where problems go.
        options: how thoroughly to look.
    """
    names = check_categories(content, notes)
    things = _things(content, names, notes)
    videos = _read_videos(content, summary, notes)
    if summary.images is not None:
        check_images(list(_expected(videos, summary.images, notes)), notes, options)
    summary.annotated = bool(content.get("annotations"))
    if not summary.annotated:
        notes.error(
            "no-list", "", 'the list "annotations" is missing or empty', "Add the segments of every frame"
        )
        return
    checker = _Frames(names, things, maps, notes)
    wanted = chosen(len(videos), options.samples)
    for video, frames in _annotated(content, videos, notes):
        checker.check(video, frames, options)
        _count(video, names, things, summary)
        if video.position in wanted and summary.images is not None and maps is not None:
            sample = _sample(video, names, summary.images, maps)
            if sample is not None:
                notes.report.samples.append(sample)


def _things(content: Mapping[str, Any], names: Mapping[int, str], notes: Notes) -> set[int]:
    things = set()
    for category in content.get("categories") or ():
        if isinstance(category, dict) and category.get("id") in names:
            if category.get("isthing") not in (0, 1):
                problem = f"isthing is {json.dumps(category.get('isthing'))}"
                fix = "Make it 1 for countable things, 0 for stuff"
                notes.error("isthing", f"category {category['id']}", problem, fix)
            if category.get("isthing"):
                things.add(category["id"])
    return things


def _objects(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _text_id(entry: Mapping[str, Any], key: str, taken: Any, where: str, notes: Notes) -> str | None:
    """An id that is text, unique in `taken`; None, noted, if it is empty or repeated."""
    identity = entry.get(key)
    if not isinstance(identity, str) or not identity:
        notes.error(
            "empty-id", where, f"its {key} is {json.dumps(identity)}", "Give it a name of its own, as text"
        )
        return None
    if identity in taken:
        notes.error(
            "duplicate-id", f"{where}, {json.dumps(identity)}", f"this {key} is used twice", "Keep one"
        )
        return None
    return identity


def _read_videos(content: Mapping[str, Any], summary: Summary, notes: Notes) -> dict[str, _Video]:
    videos: dict[str, _Video] = {}
    for position, entry in enumerate(_objects(content.get("videos"))):
        name = _text_id(entry, "video_id", videos, f"video at position {position}", notes)
        if name is None:
            continue
        video = videos[name] = _Video(name, position)
        images = _objects(entry.get("images"))
        if not images:
            notes.error("no-frames", f"video {name}", "no images", "List its frames, or leave it out")
        for place, image in enumerate(images):
            where = f"video {name}, image at position {place}"
            identity = _text_id(image, "id", video.frames, where, notes)
            if identity is not None:
                size = positive_size(image, f"video {name}, image {identity}", notes)
                video.frames[identity] = size, str(image.get("file_name") or f"{identity}.png")
        sizes = {size for size, _ in video.frames.values() if size}
        if len(sizes) > 1:
            problem = f"frames of several sizes: {sorted(sizes)}"
            notes.error("frame-size", f"video {name}", problem, "Resize them to one size")
        summary.add_video(next(iter(sizes), (0, 0)), len(video.frames))
    return videos


def _image_file(folder: Path, file: str) -> Path:
    """The frame of a map: the same name with an image's suffix, as VIPSeg has JPEG frames for PNG maps."""
    found = (folder / Path(file).with_suffix(suffix) for suffix in _SUFFIXES)
    return next((path for path in found if path.is_file()), folder / Path(file).with_suffix(".jpg"))


def _expected(videos: Mapping[str, _Video], images: Path, notes: Notes) -> Iterator[ExpectedImage]:
    for video in videos.values():
        for identity, (size, file) in video.frames.items():
            where = f"{notes.file}: video {video.name}, image {identity}"
            yield ExpectedImage(_image_file(images / video.name, file), size, where)


def _annotated(
    content: Mapping[str, Any], videos: Mapping[str, _Video], notes: Notes
) -> Iterator[tuple[_Video, list[dict[str, Any]]]]:
    """Each video with its annotated frames; notes what is annotated twice, or not at all, or is unknown."""
    done: set[str] = set()
    for position, entry in enumerate(_objects(content["annotations"])):
        where = f"annotations at position {position}"
        name = _text_id(entry, "video_id", done, where, notes)
        if name is None:
            continue
        done.add(name)
        if name in videos:
            yield videos[name], _objects(entry.get("annotations"))
        else:
            fix = "Correct video_id, or list the video"
            notes.error("unknown-video", where, f"{json.dumps(name)} is no video of this file", fix)
    for name in videos:
        if name not in done:
            notes.error("no-annotation", f"video {name}", "no annotation", "Annotate it, or leave it out")


@dataclass(frozen=True)
class _Frames:
    """Checks a video's segments against its maps."""

    names: Mapping[int, str]
    things: set[int]
    maps: Path | None
    notes: Notes

    def check(self, video: _Video, annotations: list[dict[str, Any]], options: Options) -> None:
        """Notes every problem of a video's frames."""
        by_id: dict[str, dict[str, Any]] = {}
        for place, annotation in enumerate(annotations):
            where = f"video {video.name}, annotation at position {place}"
            identity = _text_id(annotation, "image_id", by_id, where, self.notes)
            if identity is None:
                continue
            by_id[identity] = annotation
            if identity not in video.frames:
                problem = f"{json.dumps(identity)} is no image of this video"
                self.notes.error("unknown-image", where, problem, "Correct image_id, or list the image")
        frames = iter(enumerate(video.frames.items()))
        with ThreadPoolExecutor(max(1, options.workers)) as pool:
            while batch := list(islice(frames, _BATCH)):
                files = [self._file(video, file) for _, (_, (_, file)) in batch]
                for (t, (identity, (size, _))), file, ids in zip(
                    batch, files, pool.map(_read, files), strict=True
                ):
                    self._frame(video, t, identity, size, by_id.get(identity), file, ids)

    def _file(self, video: _Video, file: str) -> Path | None:
        return None if self.maps is None else self.maps / video.name / file

    def _frame(
        self,
        video: _Video,
        t: int,
        identity: str,
        size: tuple[int, int] | None,
        annotation: dict[str, Any] | None,
        file: Path | None,
        ids: Ids | str | None,
    ) -> None:
        where = f"video {video.name}, image {identity}"
        if annotation is None:
            fix = "Add its segments, or leave the image out"
            self.notes.error("no-annotation", where, "no annotation for this frame", fix)
            return
        segments = self._segments(video, t, annotation, where)
        if isinstance(ids, str):
            missing = not (file and file.exists())
            kind = "missing-map" if missing else "corrupt-map"
            self.notes.error(kind, f"{self.notes.file}: {where}", ids, "Restore the file", file=str(file))
        elif ids is not None:
            if size is not None and ids.shape != size:
                problem = f"a map of {ids.shape[0]}x{ids.shape[1]} for a frame of {size[0]}x{size[1]}"
                fix = "Resize the map without interpolation"
                self.notes.error("mask-size", f"{self.notes.file}: {where}", problem, fix, file=str(file))
            self._compare(segments, ids, where)

    def _segments(
        self, video: _Video, t: int, annotation: Mapping[str, Any], where: str
    ) -> dict[int, dict[str, Any]]:
        """The frame's segments by id."""
        found: dict[int, dict[str, Any]] = {}
        stuff: dict[int, int] = {}
        for place, segment in enumerate(_objects(annotation.get("segments_info"))):
            identity = segment.get("id")
            at = f"{where}, segment {identity if is_int(identity) else f'at position {place}'}"
            if not is_int(identity) or not 0 < identity < 1 << 24:
                kind = "id-zero" if identity == 0 and is_int(identity) else "empty-id"
                problem = f"id {json.dumps(identity)}; 0 is void, ids run from 1 to {(1 << 24) - 1}"
                self.notes.error(kind, at, problem, "Give it another id, in the map too")
                continue
            if identity in found:
                problem = (
                    f"two segments of one frame share the id {identity}: their pixels cannot be told apart"
                )
                self.notes.error("overlapping-ids", at, problem, "Give every segment an id of its own")
                continue
            found[identity] = segment
            check_crowd(segment, at, self.notes)
            if check_category(segment, self.names, at, self.notes):
                self._follow(video, t, identity, segment["category_id"], at)
                if segment["category_id"] not in self.things:
                    other = stuff.setdefault(segment["category_id"], identity)
                    if other != identity:
                        problem = f"stuff of this class is segment {other} already"
                        self.notes.warn("split-stuff", at, problem, "Paint stuff of a class with one id")
        return found

    def _follow(self, video: _Video, t: int, identity: int, category: int, where: str) -> None:
        video.present.setdefault(identity, set()).add(t)
        first, place = video.categories.setdefault(identity, (category, where))
        if first != category:
            problem = f"category {category} ({self.names[category]}), but {first} in {place}"
            fix = "An id means one object throughout a video: give one of the two another"
            self.notes.error("overlapping-ids", where, problem, fix)

    def _compare(self, segments: Mapping[int, Mapping[str, Any]], ids: Ids, where: str) -> None:
        painted = count_ids(ids)
        for identity, area in painted.items():
            if identity and identity not in segments:
                problem = f"id {identity} is painted ({area} pixels) but not listed"
                fix = "Add it to segments_info, or paint it 0"
                self.notes.error("painted-not-listed", where, problem, fix)
        for identity, segment in segments.items():
            at = f"{where}, segment {identity}"
            area = painted.get(identity, 0)
            if not area:
                fix = "Remove it from segments_info, or paint it"
                self.notes.error("listed-not-painted", at, "listed, but no pixel of the map has its id", fix)
                continue
            if segment.get("area", area) != area:
                problem = f"area {json.dumps(segment['area'])}, but the map has {area} pixels"
                self.notes.error("area", at, problem, f"Make it {area}")
            self._compare_box(segment, partial(box_of, ids == identity), at)

    def _compare_box(self, segment: Mapping[str, Any], own: Any, where: str) -> None:
        stated = segment.get("bbox")
        if stated is None:
            return
        if not is_box(stated):
            fix = "Give [x, y, width, height], or leave it out"
            self.notes.error("bbox", where, f"bbox {json.dumps(stated)} is no box", fix)
            return
        box = own()
        # Some write width - 1 and height - 1.
        if max(abs(a - b) for a, b in zip(stated, box, strict=True)) > 1:
            problem = f"bbox {json.dumps(stated)}, but the map's is {box}"
            self.notes.warn("bbox", where, problem, f"Make it {box}")


def _read(file: Path | None) -> Ids | str | None:
    """A map, or what is wrong with it, or None where maps are left alone."""
    if file is None:
        return None
    try:
        return read_ids(file)
    except UserError as error:
        return str(error).removeprefix(f"{file}: ").rstrip(".")


def _count(video: _Video, names: Mapping[int, str], things: set[int], summary: Summary) -> None:
    for identity, (category, _) in video.categories.items():
        present = video.present[identity]
        if category in things:
            summary.add_track(names[category], [t in present for t in range(len(video.frames))])
        else:
            summary.instances[f"{names[category]} (stuff)"] += 1


def _sample(video: _Video, names: Mapping[int, str], images: Path, maps: Path) -> Sample | None:
    """A clip to look at, its maps as masks; None if its frames have several sizes or a map cannot be read."""
    read = [_read(maps / video.name / file) for _, file in video.frames.values()]
    shapes = {ids.shape for ids in read if not isinstance(ids, str) and ids is not None}
    if len(shapes) != 1 or any(isinstance(ids, str) for ids in read):
        return None
    ordered = sorted(names)
    tracks = []
    for number, (identity, (category, _)) in enumerate(video.categories.items(), 1):
        masks = [
            torch.from_numpy(ids == identity) for ids in read if not isinstance(ids, str) and ids is not None
        ]
        counts = tuple(encode_mask(mask)["counts"] if mask.any() else None for mask in masks)
        tracks.append(Track(number, ordered.index(category), counts))
    files = tuple(_image_file(images / video.name, file) for _, file in video.frames.values())
    size = next(iter(shapes))
    record = AnnotatedVideo(video.position + 1, video.name, (size[0], size[1]), files, tuple(tracks))
    return Sample(record, [{"id": identity, "name": names[identity]} for identity in ordered])
