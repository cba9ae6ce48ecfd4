"""Every problem of a YouTube-VIS or OVIS file and of its frames."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..datasets import AnnotatedVideo, Track
from ..readers.annotations import video_name
from .entries import check_categories, check_category, check_crowd, check_zero, is_int, positive_size, walk
from .findings import Notes, Options, Sample, Summary, chosen
from .images import ExpectedImage, check_images
from .masks import Mask, check_area, check_box, read_mask

_LISTS = ("segmentations", "areas", "bboxes", "occlusion")
"""What an annotation holds once per frame."""


@dataclass(frozen=True)
class _Video:
    """What is usable of a video's entry."""

    id: int
    name: str
    size: tuple[int, int] | None
    files: tuple[str, ...]

    @property
    def title(self) -> str:
        return f'video {self.id}, "{self.name}"'


def check_youtube_vis(content: Mapping[str, Any], summary: Summary, notes: Notes, options: Options) -> None:
    """Notes every problem, fills the summary and keeps some clips for pictures.

    Args:
        content: what the annotation file holds.
        summary: what is counted; its `images` is the folder of the frames, or None to leave frames alone.
        notes: where problems go.
        options: how thoroughly to look.
    """
    names = check_categories(content, notes)
    videos = _check_videos(content, summary, notes)
    if summary.images is not None:
        expected = [
            ExpectedImage(summary.images / file, video.size, f"{notes.file}: {video.title}, frame {t}")
            for video in videos.values()
            for t, file in enumerate(video.files)
        ]
        check_images(expected, notes, options)
    tracks: dict[int, list[Track]] = {video: [] for video in videos}
    summary.annotated = content.get("annotations") is not None
    if summary.annotated:
        labels = {identity: k for k, identity in enumerate(sorted(names))}
        wanted = {list(videos)[i] for i in chosen(len(videos), options.samples)}
        masks = _Tracks(videos, names, summary, notes)
        for where, annotation in walk(content, "annotations", "annotation", notes):
            track = masks.check(annotation, where)
            if track is not None and annotation["video_id"] in wanted:
                tracks[annotation["video_id"]].append(
                    Track(annotation["id"], labels[annotation["category_id"]], track)
                )
        masks.close()
        classes = [{"id": identity, "name": names[identity]} for identity in sorted(names)]
        for video in (videos[identity] for identity in sorted(wanted)):
            if summary.images is not None and video.size is not None and video.files:
                files = tuple(summary.images / file for file in video.files)
                record = AnnotatedVideo(video.id, video.name, video.size, files, tuple(tracks[video.id]))
                notes.report.samples.append(Sample(record, classes))


def _check_videos(content: Mapping[str, Any], summary: Summary, notes: Notes) -> dict[int, _Video]:
    videos: dict[int, _Video] = {}
    for where, entry in walk(content, "videos", "video", notes):
        size = positive_size(entry, where, notes)
        files = _check_files(entry, where, notes)
        summary.add_video(size or (0, 0), len(files))
        if is_int(entry.get("id")) and entry["id"] not in videos:
            name = video_name({**entry, "file_names": files or ["?"]})
            videos[entry["id"]] = _Video(entry["id"], name, size, tuple(files))
    if not videos and isinstance(content.get("videos"), list):
        notes.error("no-videos", "", "no video is listed", "List the videos and their frames")
    return videos


def _check_files(entry: Mapping[str, Any], where: str, notes: Notes) -> list[str]:
    files = entry.get("file_names")
    if not isinstance(files, list) or not files:
        fix = 'Add "file_names": ["video/00000.jpg", ...], one for each frame'
        notes.error("no-frames", where, "no file_names", fix)
        return []
    odd = [t for t, file in enumerate(files) if not isinstance(file, str) or not file]
    for t in odd:
        notes.error(
            "file-name", where, f"frame {t}: its file name is {json.dumps(files[t])}", "Name its file"
        )
    names = [file if isinstance(file, str) and file else "?" for file in files]
    length = entry.get("length")
    if "length" in entry and length != len(files):
        problem = f"length {json.dumps(length)}, but {len(files)} file names"
        notes.error("video-length", where, problem, "Make length the number of file_names, or complete them")
    for file, times in Counter(names).items():
        if times == 1 or file == "?":
            continue
        notes.warn("repeated-frame", where, f"{file} is named {times} times", "Name every frame once")
    return names


class _Tracks:
    """Checks one annotation after another against the videos and classes."""

    def __init__(
        self, videos: Mapping[int, _Video], names: Mapping[int, str], summary: Summary, notes: Notes
    ) -> None:
        self._videos, self._names, self._summary, self._notes = videos, names, summary, notes
        self._same: dict[int, str] = {}
        self._used: set[int] = set()

    def check(self, annotation: dict[str, Any], where: str) -> tuple[str | None, ...] | None:
        """Notes its problems; the runs of every frame if they can be drawn, else None."""
        notes = self._notes
        check_zero(annotation, where, notes)
        known = check_category(annotation, self._names, where, notes)
        crowd = check_crowd(annotation, where, notes)
        video = self._video(annotation, where)
        if video is None:
            return None
        self._used.add(video.id)
        where = f"{where} ({video.title})"
        usable = self._check_lists(annotation, video, where)
        if not usable or video.size is None:
            return None
        masks = self._check_masks(annotation, video, where)
        counts = tuple(mask.counts if mask and mask.area else None for mask in masks)
        self._count(annotation, known, crowd, counts, where)
        whole = known and not crowd and is_int(annotation.get("id")) and len(counts) == len(video.files)
        return counts if whole else None

    def close(self) -> None:
        """Notes videos without annotation."""
        for identity, video in self._videos.items():
            if identity not in self._used:
                problem = "no annotation; it cannot be learned from"
                self._notes.warn("no-annotation", video.title, problem, "Annotate it, or leave it out")

    def _video(self, annotation: Mapping[str, Any], where: str) -> _Video | None:
        identity = annotation.get("video_id")
        if is_int(identity) and identity in self._videos:
            return self._videos[identity]
        problem = f"video_id {json.dumps(identity)} is no video of this file"
        self._notes.error("unknown-video", where, problem, "Correct video_id, or list the video")
        return None

    def _check_lists(self, annotation: Mapping[str, Any], video: _Video, where: str) -> bool:
        notes, frames = self._notes, len(video.files)
        if not isinstance(annotation.get("segmentations"), list):
            fix = "Add one mask per frame, null where it is absent"
            notes.error("no-masks", where, "no list of segmentations", fix)
            return False
        for key in _LISTS:
            values = annotation.get(key)
            if key in annotation and not isinstance(values, list):
                notes.error("list-length", where, f"{key} is no list", "Give one entry per frame")
            elif isinstance(values, list) and len(values) != frames:
                problem = f"{len(values)} {key} for a video of {frames} frames"
                fix = "Give one entry per frame, null where the instance is absent"
                notes.error("list-length", where, problem, fix)
        size = video.size or (annotation.get("height"), annotation.get("width"))
        stated = {"height": size[0], "width": size[1], "length": frames}
        for key, value in stated.items():
            if annotation.get(key, value) != value:
                problem = f"{key} {json.dumps(annotation[key])}, but its video has {value}"
                notes.error("annotation-size", where, problem, f"Make it {value}")
        return True

    def _check_masks(self, annotation: Mapping[str, Any], video: _Video, where: str) -> list[Mask | None]:
        assert video.size is not None
        masks: list[Mask | None] = []
        for t, segmentation in enumerate(annotation["segmentations"]):
            at = f"{where}: frame {t}"
            mask = None if segmentation is None else read_mask(segmentation, video.size, at, self._notes)
            if mask is not None and not mask.area:
                self._notes.warn("empty-mask", at, "a mask without a pixel", "Write null where it is absent")
            masks.append(mask)
            self._check_stated(annotation, t, mask, segmentation, video.size, at)
        return masks

    def _check_stated(
        self,
        annotation: Mapping[str, Any],
        t: int,
        mask: Mask | None,
        segmentation: Any,
        size: tuple[int, int],
        where: str,
    ) -> None:
        area, box = (_at(annotation.get(key), t) for key in ("areas", "bboxes"))
        if segmentation is None:
            for key, value in (("area", area), ("bbox", box)):
                if value not in (None, 0, [0, 0, 0, 0]):
                    problem = f"{key} {json.dumps(value)}, but no mask"
                    self._notes.warn(key, where, problem, "Write null where it is absent")
        elif mask is not None and mask.area:
            exact = not isinstance(segmentation, list)
            if area is not None:
                check_area(mask, area, exact, where, self._notes)
            if box is not None:
                check_box(mask, size, segmentation, box, where, self._notes)

    def _count(
        self,
        annotation: Mapping[str, Any],
        known: bool,
        crowd: bool,
        counts: tuple[str | None, ...],
        where: str,
    ) -> None:
        if not any(counts):
            fix = "Remove the annotation: nobody can find it, and it lowers recall"
            self._notes.error("empty-track", where, "no frame shows it", fix)
            return
        other = self._same.setdefault(hash((annotation["video_id"], counts)), where)
        if other != where:
            self._notes.warn("same-masks", where, f"the same masks as {other}", "Remove one of the two")
        if crowd:
            self._summary.crowds += 1
        elif known:
            name = self._names[annotation["category_id"]]
            self._summary.add_track(name, [c is not None for c in counts])


def _at(values: Any, t: int) -> Any:
    return values[t] if isinstance(values, list) and t < len(values) else None
