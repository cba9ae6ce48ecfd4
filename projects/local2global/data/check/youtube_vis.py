"""Checks a YouTube-VIS, OVIS or COCO file and its frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..readers.entries import check_category, is_id, parse_categories, shown, walk
from ..readers.images import image_path
from ..readers.records import Track, VideoRow, annotated_videos
from ..readers.rle import count_pixels
from ..readers.youtube_vis import VideoEntry, find_video, parse_masks, parse_videos, rasterise
from .findings import Notes, Options, Sample, Summary, sample_positions
from .images import ExpectedImage, check_images
from .masks import check_area, check_backslashes, check_box, check_crowd, check_id, check_range

_LISTS = ("areas", "bboxes", "occlusion")
"""Keys of an annotation with one value per frame, besides `segmentations`."""


def check_youtube_vis(
    content: Mapping[str, Any], summary: Summary, notes: Notes, options: Options, word: str = "video"
) -> None:
    """Reports every problem, fills the summary and keeps some clips for pictures.

    Args:
        content: the file's content.
        summary: filled with statistics; its `images` is the folder of the frames, None to skip them.
        notes: where problems are reported.
        options: how thoroughly to check.
        word: "video", or "image" for the content of a COCO file (`readers.coco.as_videos`).
    """
    names = parse_categories(content, notes)
    videos = parse_videos(content, notes, word)
    _check_videos(content, videos, summary, notes)
    if summary.images is not None:
        expected = [
            ExpectedImage(
                image_path(summary.images, file),
                video.size,
                f"{notes.file}: {video.title}" + (f", frame {t}" if word == "video" else ""),
            )
            for video in videos.values()
            for t, file in enumerate(video.files)
        ]
        check_images(expected, notes, options)
    summary.annotated = content.get("annotations") is not None
    if not summary.annotated:
        return
    ids = [video.id for video in videos.values() if word == "video" or video.id in _annotated(content)]
    tracks: dict[int, list[Track]] = {ids[k]: [] for k in sorted(sample_positions(len(ids), options.samples))}
    labels = {identity: k for k, identity in enumerate(sorted(names))}
    checker = _Annotations(videos, names, summary, notes, word)
    for where, annotation, valid in walk(content, "annotations", "annotation", notes):
        counts = checker.check(annotation, where)
        if counts is not None and valid and annotation["video_id"] in tracks:
            label = labels[annotation["category_id"]]
            tracks[annotation["video_id"]].append(Track(annotation["id"], label, counts))
    if word == "video":
        checker.report_unannotated()
    classes = [{"id": identity, "name": names[identity]} for identity in sorted(names)]
    for identity, listed in tracks.items():
        video = videos[identity]
        if summary.images is not None and video.size is not None and video.files:
            row = VideoRow(identity, video.name, video.size, video.files)
            (record,) = annotated_videos(summary.images, [row], [listed])
            notes.report.samples.append(Sample(record, classes))


def _annotated(content: Mapping[str, Any]) -> set[int]:
    return {a["video_id"] for a in content["annotations"] if isinstance(a, dict) and is_id(a.get("video_id"))}


def _check_videos(
    content: Mapping[str, Any], videos: Mapping[int, VideoEntry], summary: Summary, notes: Notes
) -> None:
    if not content["videos"]:
        notes.error("no-videos", "", "no video is listed", "List the videos and their frames")
    check_backslashes((file for video in videos.values() for file in video.files), notes)
    for video in videos.values():
        summary.add_video(video.size, len(video.files))
    for (file, owner), times in Counter(
        (file, video.id if video.word == "video" else None)
        for video in videos.values()
        for file in video.files
    ).items():
        if times > 1 and file != "?":
            where = "" if owner is None else f"video {owner}"
            notes.warn("repeated-frame", where, f"{file} is named {times} times", "Name every frame once")


class _Annotations:
    """Checks annotations one after another against the videos and classes."""

    def __init__(
        self,
        videos: Mapping[int, VideoEntry],
        names: Mapping[int, str],
        summary: Summary,
        notes: Notes,
        word: str,
    ) -> None:
        self._word = word
        self._videos, self._names, self._summary, self._notes = videos, names, summary, notes
        self._first: dict[int, str] = {}
        self._annotated: set[int] = set()

    def check(self, annotation: dict[str, Any], where: str) -> tuple[str | None, ...] | None:
        """Reports the problems of an annotation; returns every frame's counts if it is a valid instance."""
        notes = self._notes
        check_id(annotation, where, notes)
        known = check_category(annotation, self._names, where, notes)
        crowd = check_crowd(annotation, where, notes)
        if is_id(annotation.get("video_id")):
            self._annotated.add(annotation["video_id"])
        video = find_video(annotation, self._videos, where, notes, self._word)
        if video is None:
            return None
        outlines = parse_masks(annotation, video, where, notes)
        where = f"{where} ({video.title})"
        self._check_lists(annotation, video, where)
        if outlines is None or video.size is None:
            return None
        counts = rasterise(outlines, video.size)
        self._check_masks(annotation, video, counts, where)
        if not any(counts) and self._word == "image":
            return None
        if not any(counts):
            fix = "Remove the annotation: no model can find it, and it lowers recall"
            notes.error("empty-track", where, "it is visible in no frame", fix)
            return None
        other = self._first.setdefault(hash((video.id, counts)), where)
        if other != where:
            notes.warn("same-masks", where, f"the same masks as {other}", "Remove one of the two")
        if crowd:
            self._summary.crowds += 1
        elif known:
            name = self._names[annotation["category_id"]]
            self._summary.add_track(name, [c is not None for c in counts])
        return counts if known and not crowd else None

    def report_unannotated(self) -> None:
        """Reports videos without annotation."""
        for identity, video in self._videos.items():
            if identity not in self._annotated:
                problem, fix = "no annotation; training cannot use it", "Annotate it, or leave it out"
                self._notes.warn("no-annotation", video.title, problem, fix)

    def _check_lists(self, annotation: Mapping[str, Any], video: VideoEntry, where: str) -> None:
        notes, frames = self._notes, len(video.files)
        for key in _LISTS:
            values = annotation.get(key)
            if isinstance(values, list) and len(values) != frames:
                problem = f"{len(values)} {key} for a video of {frames} frames"
                fix = "Give one entry per frame, null where the object is absent"
                notes.error("list-length", where, problem, fix)
            elif key in annotation and not isinstance(values, list):
                notes.error("list-length", where, f"{key} is not a list", "Give one entry per frame")
        size = video.size or (annotation.get("height"), annotation.get("width"))
        for key, value in (("height", size[0]), ("width", size[1]), ("length", frames)):
            if annotation.get(key, value) != value:
                problem = f"{key} {shown(annotation[key])}, but its video has {value}"
                notes.error("annotation-size", where, problem, f"Make it {value}")

    def _check_masks(
        self, annotation: Mapping[str, Any], video: VideoEntry, counts: Sequence[str | None], where: str
    ) -> None:
        assert video.size is not None
        pixels = iter(count_pixels([text for text in counts if text is not None], video.size))
        for t, (segmentation, text) in enumerate(zip(annotation["segmentations"], counts, strict=True)):
            at = f"{where}: frame {t}" if self._word == "video" else where
            area, box = (_at(annotation.get(key), t) for key in ("areas", "bboxes"))
            if segmentation is None:
                self._check_absent(area, box, at)
                continue
            check_range(segmentation, video.size, at, self._notes)
            if text is None:
                fix = "Write null where it is absent" if self._word == "video" else "Remove the annotation"
                self._notes.warn("empty-mask", at, "a mask without a pixel", fix)
                continue
            measured = next(pixels)
            if area is not None:
                exact = not isinstance(segmentation, list)
                check_area(measured, area, exact, at, self._notes)
            if box is not None:
                check_box(text, video.size, segmentation, box, at, self._notes)

    def _check_absent(self, area: Any, box: Any, where: str) -> None:
        for key, value in (("area", area), ("bbox", box)):
            if value not in (None, 0, [0, 0, 0, 0]):
                problem = f"{key} {shown(value)}, but no mask"
                self._notes.warn(key, where, problem, "Write null where it is absent")


def _at(values: Any, t: int) -> Any:
    return values[t] if isinstance(values, list) and t < len(values) else None
