"""VIPSeg annotation files: every pixel of a video has a segment, stored in a panoptic PNG per frame.

A thing is one instance per segment id.  The stuff of one class is one instance per video.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ...errors import UserError
from ..datasets import VideoDataset
from .archives import ImageRoot, find_image_root
from .entries import (
    Problems,
    RaiseProblems,
    check_category,
    class_list,
    is_crowd,
    is_file_name,
    is_folder_name,
    is_id,
    is_int,
    parse_categories,
    parse_size,
    shown,
)
from .formats import VIPSEG, read_content
from .images import image_path
from .records import PanopticRow, panoptic_videos

MAX_ID = (1 << 24) - 1


@dataclass(frozen=True)
class FrameEntry:
    """A validated entry of `images`.

    Attributes:
        file: the image's file name.
        size: (height, width), None if the file states none.
    """

    file: str
    size: tuple[int, int] | None


@dataclass
class VideoEntry:
    """A validated entry of `videos` and its entry of `annotations`.

    Attributes:
        name: its id, which is the name of its folders.
        position: in the file.
        frames: the frames by image id.
        annotations: the annotations by image id.
    """

    name: str
    position: int
    frames: dict[str, FrameEntry] = field(default_factory=dict)
    annotations: dict[str, dict[str, Any]] = field(default_factory=dict)


def objects(value: Any) -> list[dict[str, Any]]:
    """The JSON objects in a list."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _objects(
    entry: Mapping[str, Any], key: str, where: str, problems: Problems
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Position and content of the JSON objects in a list of an entry; other content is reported."""
    value = entry.get(key, [])
    if not isinstance(value, list):
        problems.error("no-list", where, f'"{key}" is not a list', f'Write it as "{key}": [...]')
        return
    for place, item in enumerate(value):
        if isinstance(item, dict):
            yield place, item
        else:
            at = f"{where}, {key}" if where else key
            fix = "Remove it, or write it as {...}"
            problems.error("no-entry", f"{at} at position {place}", "not a JSON object", fix)


def parse_classes(content: Mapping[str, Any], problems: Problems) -> list[dict[str, Any]]:
    """{id, name, isthing} of the categories: things first, each by id."""
    names = parse_categories(content, problems)
    things = set()
    for category in objects(content.get("categories")):
        if category.get("isthing") not in (0, 1):
            problem, where = f"isthing is {shown(category.get('isthing'))}", f"category {category.get('id')}"
            problems.error("isthing", where, problem, "Make it 1 for countable things, 0 for stuff")
        elif category["isthing"] and is_id(category.get("id")):
            things.add(category["id"])
    listed = [{"id": k, "name": name, "isthing": int(k in things)} for k, name in names.items()]
    return sorted(listed, key=lambda c: (-c["isthing"], c["id"]))


def _text_id(entry: Mapping[str, Any], key: str, taken: Any, where: str, problems: Problems) -> str | None:
    """An id that names a folder, or a file in it, and is not in `taken`."""
    identity = entry.get(key)
    if not is_folder_name(identity):
        fix = "Give it a unique name, as text"
        problems.error("empty-id", where, f"its {key} is {shown(identity)}", fix)
        return None
    if identity in taken:
        where = f"{where}, {shown(identity)}"
        problems.error("duplicate-id", where, f"this {key} is used twice", "Keep one")
        return None
    return identity


def parse_videos(content: Mapping[str, Any], problems: Problems) -> dict[str, VideoEntry]:
    """The videos by name, with their annotations."""
    videos: dict[str, VideoEntry] = {}
    for position, entry in _objects(content, "videos", "", problems):
        name = _text_id(entry, "video_id", videos, f"video at position {position}", problems)
        if name is not None:
            videos[name] = VideoEntry(name, position, _parse_frames(entry, name, problems))
    annotated: set[str] = set()
    for position, entry in _objects(content, "annotations", "", problems):
        where = f"annotations at position {position}"
        name = _text_id(entry, "video_id", annotated, where, problems)
        if name is None:
            continue
        annotated.add(name)
        if name in videos:
            videos[name].annotations.update(_parse_annotations(entry, videos[name], problems))
        else:
            fix = "Correct video_id, or list the video"
            problems.error("unknown-video", where, f"{shown(name)} is not a video of this file", fix)
    return videos


def _parse_frames(entry: Mapping[str, Any], name: str, problems: Problems) -> dict[str, FrameEntry]:
    frames: dict[str, FrameEntry] = {}
    images = list(_objects(entry, "images", f"video {name}", problems))
    if not images:
        problems.error("no-frames", f"video {name}", "no images", "List its frames, or leave it out")
    for place, image in images:
        where = f"video {name}, image at position {place}"
        identity = _text_id(image, "id", frames, where, problems)
        if identity is not None:
            size = parse_size(image, f"video {name}, image {identity}", problems)
            frames[identity] = FrameEntry(_file_name(image, where, problems) or f"{identity}.png", size)
    sizes = {frame.size for frame in frames.values() if frame.size}
    if len(sizes) > 1:
        problem = f"frames of several sizes: {sorted(sizes)}"
        problems.error("frame-size", f"video {name}", problem, "Resize them to one size")
    return frames


def _file_name(entry: Mapping[str, Any], where: str, problems: Problems) -> str | None:
    """The `file_name` of an image or an annotation; None if the entry has none."""
    file = entry.get("file_name") or None
    if file is not None and not is_file_name(file):
        problems.error(
            "file-name", where, f"its file name is {shown(file)}", "Name its file, or leave it out"
        )
        return None
    return file


def _parse_annotations(
    entry: Mapping[str, Any], video: VideoEntry, problems: Problems
) -> dict[str, dict[str, Any]]:
    annotations: dict[str, dict[str, Any]] = {}
    for place, annotation in _objects(entry, "annotations", f"video {video.name}", problems):
        where = f"video {video.name}, annotation at position {place}"
        identity = _text_id(annotation, "image_id", annotations, where, problems)
        if identity is None:
            continue
        annotations[identity] = {**annotation, "file_name": _file_name(annotation, where, problems)}
        if identity not in video.frames:
            problem = f"{shown(identity)} is not an image of this video"
            problems.error("unknown-image", where, problem, "Correct image_id, or list the image")
    if annotations:
        for identity in video.frames:
            if identity not in annotations:
                fix = "Add its segments, or leave the image out"
                where = f"video {video.name}, image {identity}"
                problems.error("no-annotation", where, "no annotation for this frame", fix)
    return annotations


def frame_name(folder: ImageRoot, file: str) -> str:
    """The name of a frame's image file.

    In VIPSeg as published, `file_name` is that of the PNG map, and the frame is the JPEG file with the same stem.
    """
    if image_path(folder, file).is_file():
        return file
    listed = PurePosixPath(file.replace("\\", "/"))
    names = [str(listed.with_suffix(suffix)) for suffix in (".jpg", ".jpeg", ".JPG", ".JPEG", ".png")]
    return next((name for name in names if (folder / name).is_file()), names[0])


def map_file(video: VideoEntry, identity: str) -> str:
    """The file name of a frame's panoptic PNG: the annotation's, else the image's with the suffix of a PNG."""
    stated: str | None = video.annotations.get(identity, {}).get("file_name")
    return stated or f"{Path(video.frames[identity].file).stem}.png"


def parse_segments(
    video: VideoEntry, identity: str, known: Mapping[int, Any], problems: Problems
) -> dict[int, dict[str, Any]]:
    """The segments of a frame by id; those with an unknown category are left out."""
    segments: dict[int, dict[str, Any]] = {}
    image = f"video {video.name}, image {identity}"
    if "segments_info" not in video.annotations[identity]:
        problems.error("no-list", image, 'no "segments_info"', 'Write it as "segments_info": [...]')
    for place, segment in _objects(video.annotations[identity], "segments_info", image, problems):
        number = segment.get("id")
        where = f"{image}, segment "
        where += str(number) if is_int(number) else f"at position {place}"
        if not is_int(number) or not 0 < number <= MAX_ID:
            kind = "id-zero" if number == 0 and is_int(number) else "empty-id"
            problem = f"id {shown(number)}; 0 is void, ids run from 1 to {MAX_ID}"
            problems.error(kind, where, problem, "Give it another id, in the map too")
        elif number in segments:
            problem = f"two segments of one frame have the id {number}"
            problems.error("overlapping-ids", where, problem, "Give every segment a unique id")
        elif check_category(segment, known, where, problems):
            segments[number] = segment
    return segments


def load_panoptic(
    images: str | Path,
    maps: str | Path,
    annotations: str | Path,
    classes: Sequence[Mapping[str, Any]] | None = None,
) -> VideoDataset:
    """The videos of a file in VIPSeg's format.

    Args:
        images: the folder with a folder of frames for each video.
        maps: the folder with a folder of panoptic PNGs for each video.
        annotations: the JSON file; videos of a file without annotations have no instances.
        classes: {id, name, isthing} of every class, in the order of the model's labels; None uses the file's, things
            first, each by id.

    Raises:
        UserError: for invalid input: one line with the file, the video and the frame.
    """
    path = Path(annotations)
    content, problems = read_content(path, VIPSEG), RaiseProblems(path)
    videos = parse_videos(content, problems)
    annotated = any(video.annotations for video in videos.values())
    frames_root = find_image_root(images)
    maps_root = find_image_root(maps) if annotated else Path(maps)
    if classes is None:
        listed = parse_classes(content, problems)
    else:
        class_list(content, classes, problems)
        listed = [dict(c) for c in classes]
    if not all({"id", "name", "isthing"} <= set(c) for c in listed):
        raise UserError("a class list for panoptic videos needs id, name and isthing of every class.")
    rows: list[PanopticRow] = []
    first = 1
    for number, video in enumerate(videos.values(), start=1):
        labels, segments = _instances(video, listed, problems)
        frames = video.frames.values()
        rows.append(
            PanopticRow(
                id=number,
                name=video.name,
                size=next(iter(frames)).size or (0, 0),
                files=[
                    f"{video.name}/{frame_name(frames_root / video.name, frame.file)}" for frame in frames
                ],
                maps=[f"{video.name}/{map_file(video, identity)}" for identity in video.frames],
                instances=tuple(enumerate(labels, first)),
                segments=segments,
            )
        )
        first += len(labels)
    return VideoDataset(panoptic_videos(frames_root, maps_root, rows), listed)


def _instances(
    video: VideoEntry, classes: Sequence[Mapping[str, Any]], problems: Problems
) -> tuple[list[int], tuple[tuple[tuple[int, int], ...], ...]]:
    """The label of every row of a video, and (segment id, row) of every frame; crowds are left out."""
    positions = {c["id"]: k for k, c in enumerate(classes)}
    rows: dict[tuple[int, int | None], int] = {}
    frames = []
    for identity in video.frames:
        parsed = parse_segments(video, identity, positions, problems) if video.annotations else {}
        frame = []
        for number, segment in parsed.items():
            if not is_crowd(segment, f"video {video.name}, image {identity}, segment {number}", problems):
                label = positions[segment["category_id"]]
                key = (label, number if classes[label]["isthing"] else None)
                frame.append((number, rows.setdefault(key, len(rows))))
        frames.append(tuple(frame))
    return [label for label, _ in rows], tuple(frames)
