"""CocoVID files (mmtracking, BDD100K: one annotation per frame and object) as YouTube-VIS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..readers.coco import as_videos
from ..readers.entries import (
    RaiseProblems,
    check_category,
    is_crowd,
    is_folder_name,
    is_id,
    parse_categories,
    read_json,
    shown,
    walk,
)
from ..readers.formats import COCOVID, format_of, read_content
from ..readers.images import image_path, image_size
from ..readers.places import annotation_files, find_images
from ..readers.vipseg import objects
from ..readers.youtube_vis import VideoEntry, find_video, parse_masks, parse_videos, rasterise
from .common import Converted, SourceVideo, Tracks, write_videos


def convert_cocovid(
    source: str | Path, out: str | Path, images: str | Path | None = None, link: bool = False
) -> Converted:
    """Writes `JPEGImages/` and `instances.json`.

    Frames are ordered by `frame_id`.  An object is an `instance_id` of a video.  Annotations without a mask are
    left out.

    Args:
        source: a CocoVID file, or a folder that contains one.
        out: the folder to create.
        images: the folder to which the file's names are relative; None searches near the file.
        link: link frames instead of copying them.

    Raises:
        UserError: if there is no CocoVID file, or for an invalid entry, with the file and the annotation's id.
    """
    path = _annotation_file(Path(source))
    content, problems = read_content(path, COCOVID), RaiseProblems(path)
    listed = as_videos(content)
    names = parse_categories(content, problems)
    entries = parse_videos(listed, problems, "image")
    folder = Path(images) if images is not None else find_images(path, (e.files[0] for e in entries.values()))
    if not isinstance(folder, Path) or not folder.is_dir():
        raise UserError(f"{folder or path}: no folder with the frames. Name it with --images.")
    skipped: Counter[str] = Counter()
    videos = _videos({**listed, "videos": content["videos"]}, entries, names, folder, problems, skipped)
    classes = {name: k for k, name in names.items()}
    return write_videos(videos, classes, out, link, skipped, f"{path}: no video with frames in it.")


def _annotation_file(source: Path) -> Path:
    if source.is_file():
        return source
    if not source.is_dir():
        raise UserError(f"{source}: no such file or folder.")
    for files in annotation_files(source):
        for file in files:
            if format_of(read_json(file)) == COCOVID:
                return file
    raise UserError(f"{source}: no CocoVID file (videos, and images with video_id) in this folder.")


def _videos(
    content: Mapping[str, Any],
    entries: Mapping[int, VideoEntry],
    names: Mapping[int, str],
    folder: Path,
    problems: RaiseProblems,
    skipped: Counter[str],
) -> Iterator[SourceVideo]:
    frames = _frames(content, problems)
    annotations: dict[int, list[tuple[str, dict[str, Any]]]] = {}
    for where, annotation, _ in walk(content, "annotations", "annotation", problems):
        if annotation.get("segmentations"):
            annotations.setdefault(_integer(annotation, "video_id", where, problems), []).append(
                (where, annotation)
            )
        else:
            skipped["annotations without a mask"] += 1
    for where, video, _ in walk(content, "videos", "video", problems):
        image_ids = frames.get(video["id"], [])
        if not image_ids:
            skipped["videos without frames"] += 1
            continue
        tracks = Tracks(len(image_ids))
        for t, image_id in enumerate(image_ids):
            for place, annotation in annotations.get(image_id, ()):
                _add(tracks, t, annotation, entries, names, place, problems)
        paths = [image_path(folder, entries[image_id].files[0]) for image_id in image_ids]
        name = str(video.get("name") or paths[0].parent.name).replace("/", "-").replace("\\", "-")
        name = name if is_folder_name(name) and name.strip(".") else where.replace(" ", "")
        yield SourceVideo(name, paths, image_size(paths[0]), tracks)


def _frames(content: Mapping[str, Any], problems: RaiseProblems) -> dict[int, list[int]]:
    """The image ids of each video, ordered by `frame_id`."""
    frames: dict[int, list[tuple[int, int]]] = {}
    for image in objects(content["images"]):
        where = f"image {image['id']}"
        position = _integer(image, "frame_id", where, problems)
        frames.setdefault(_integer(image, "video_id", where, problems), []).append((position, image["id"]))
    return {video: [image_id for _, image_id in sorted(listed)] for video, listed in frames.items()}


def _integer(entry: Mapping[str, Any], key: str, where: str, problems: RaiseProblems) -> int:
    value = entry.get(key)
    if not is_id(value):
        problems.error("empty-id", where, f"its {key} is {shown(value)}", "Give it an integer")
    return int(value)  # type: ignore[arg-type]  # an error was raised if it is not an integer


def _add(
    tracks: Tracks,
    t: int,
    annotation: Mapping[str, Any],
    entries: Mapping[int, VideoEntry],
    names: Mapping[int, str],
    where: str,
    problems: RaiseProblems,
) -> None:
    """Adds the mask of an annotation to its track."""
    check_category(annotation, names, where, problems)
    image = find_video(annotation, entries, where, problems, "image")
    assert image is not None, "an error was raised"
    outlines = parse_masks(annotation, image, where, problems)
    assert outlines is not None, "an error was raised"
    assert image.size is not None
    crowd = bool(is_crowd(annotation, where, problems))
    instance = _integer(annotation, "instance_id", where, problems)
    (counts,) = rasterise(outlines, image.size)
    if counts is None:
        return
    mask = {"size": list(image.size), "counts": counts}
    try:
        tracks.add((instance, crowd), t, mask, annotation["category_id"], crowd)
    except ValueError as error:
        problems.error(
            "track", where, str(error).replace(str((instance, crowd)), str(instance)), "Correct instance_id"
        )
