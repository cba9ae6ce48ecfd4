"""YouTube-VIS and OVIS annotation files: videos, and one annotation per object with a mask for every frame."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ...errors import UserError
from ..datasets import VideoDataset
from .archives import find_image_root
from .entries import (
    Problems,
    RaiseProblems,
    SkipProblems,
    annotation_problems,
    check_category,
    class_list,
    is_crowd,
    is_file_name,
    is_id,
    parse_size,
    shown,
    walk,
)
from .formats import YOUTUBE_VIS, read_content
from .records import Track, VideoRow, annotated_videos
from .rle import Outline, count_pixels, describe_masks, outline_counts, parse_outline, sound_areas


@dataclass(frozen=True)
class VideoEntry:
    """A validated entry of `videos`.

    Attributes:
        id: the video's id.
        name: its folder.
        size: (height, width) of every frame, None if the file states none.
        files: file names relative to the image folder, "?" where a name is invalid.
        word: "video", or "image" for an image of a COCO file.
    """

    id: int
    name: str
    size: tuple[int, int] | None
    files: tuple[str, ...]
    word: str

    @property
    def title(self) -> str:
        """What messages call the video."""
        return f'video {self.id}, "{self.name}"' if self.word == "video" else f"image {self.id}"


def parse_videos(
    content: Mapping[str, Any], problems: Problems, word: str = "video"
) -> dict[int, VideoEntry]:
    """The videos by id; `word` is "image" for a COCO file (`coco.as_videos`)."""
    videos: dict[int, VideoEntry] = {}
    for where, entry, valid in walk(content, "videos", word, problems):
        size = parse_size(entry, where, problems)
        files = _parse_files(entry, where, problems)
        if valid:
            name = str(entry.get("name") or _folder(files) or entry["id"])
            videos[entry["id"]] = VideoEntry(entry["id"], name, size, tuple(files), word)
    return videos


def _folder(files: Sequence[str]) -> str:
    return PurePosixPath(files[0].replace("\\", "/")).parent.name if files else ""


def _parse_files(entry: Mapping[str, Any], where: str, problems: Problems) -> list[str]:
    files = entry.get("file_names")
    if not isinstance(files, list) or not files:
        fix = 'Add "file_names": ["video/00000.jpg", ...], one for each frame'
        problems.error("no-frames", where, "no file_names", fix)
        return []
    for t, file in enumerate(files):
        if not is_file_name(file):
            problem = f"frame {t}: its file name is {shown(file)}"
            problems.error("file-name", where, problem, "Name its file")
    length = entry.get("length", len(files))
    if length != len(files):
        problem = f"length {shown(length)}, but {len(files)} file names"
        fix = "Make length the number of file_names, or complete them"
        problems.error("video-length", where, problem, fix)
    return [file if is_file_name(file) else "?" for file in files]


def find_video(
    annotation: Mapping[str, Any],
    videos: Mapping[int, VideoEntry],
    where: str,
    problems: Problems,
    word: str = "video",
) -> VideoEntry | None:
    """The video of an annotation, if the annotation has one segmentation per frame."""
    identity = annotation.get("video_id")
    if not is_id(identity) or identity not in videos:
        problem = f"{word}_id {shown(identity)}, but the file has no such {word}"
        problems.error(f"unknown-{word}", where, problem, f"Correct {word}_id, or list the {word}")
        return None
    video, masks = videos[identity], annotation.get("segmentations")
    where = f"{where} ({video.title})"
    if not isinstance(masks, list):
        fix = "Add a polygon or an RLE for every frame, null where the object is absent"
        problems.error("no-masks", where, "no segmentations", fix)
        return None
    if len(masks) != len(video.files):
        problem = f"{len(masks)} segmentations for a video of {len(video.files)} frames"
        fix = "Give one entry per frame, null where the object is absent"
        problems.error("list-length", where, problem, fix)
        return None
    return video


def _parse_mask(segmentation: Any, size: tuple[int, int], where: str, problems: Problems) -> Outline | None:
    if isinstance(segmentation, Mapping) and segmentation.get("size") != list(size):
        problem = (
            f"a mask of size {shown(segmentation.get('size'))} (height, width) on a frame of {list(size)}"
        )
        fix = "Redraw the mask at the frame's size, or correct the size"
        problems.error("mask-size", where, problem, fix)
        return None
    try:
        return parse_outline(segmentation, size)
    except ValueError as error:
        problems.error("malformed-mask", where, f"{error}", "Encode the mask again, as COCO RLE or polygons")
        return None


def parse_masks(
    annotation: Mapping[str, Any], video: VideoEntry, where: str, problems: Problems
) -> tuple[Outline | None, ...] | None:
    """The outline of every frame, None if a mask is invalid.

    The outline of a frame is None where the object is absent, or its RLE has no pixel.
    """
    if video.size is None:
        return None
    counts = _sound_counts(annotation["segmentations"], video.size)
    if counts is not None:
        return counts
    outlines: list[Outline | None] = []
    valid, where = True, f"{where} ({video.title})"
    for t, segmentation in enumerate(annotation["segmentations"]):
        outline = None
        if segmentation is not None:
            at = f"{where}: frame {t}" if video.word == "video" else where
            outline = _parse_mask(segmentation, video.size, at, problems)
            valid &= outline is not None
            if isinstance(outline, str) and not count_pixels([outline], video.size)[0]:
                outline = None
        outlines.append(outline)
    return tuple(outlines) if valid else None


def _sound_counts(segmentations: Sequence[Any], size: tuple[int, int]) -> tuple[str | None, ...] | None:
    """The counts of every frame, if all masks are sound compressed RLEs; None if they must be read one by one."""
    shape, found, texts = [*size], [], []
    for segmentation in segmentations:
        counts = None
        if segmentation is not None:
            if type(segmentation) is not dict or segmentation.get("size") != shape:
                return None
            counts = segmentation.get("counts")
            if type(counts) is not str:
                return None
            texts.append(counts)
        found.append(counts)
    areas = sound_areas(texts, size[0] * size[1])
    if areas is None:
        return None
    if all(areas):
        return tuple(found)
    filled = iter(areas)
    return tuple(text if text is not None and next(filled) else None for text in found)


def rasterise(outlines: Sequence[Outline | None], size: tuple[int, int]) -> tuple[str | None, ...]:
    """Compressed counts of outlines, None for a mask without a pixel."""
    return tuple(o if o is None or isinstance(o, str) else _rasterised(o, size) for o in outlines)


def _rasterised(outline: Outline, size: tuple[int, int]) -> str | None:
    counts = outline_counts(outline, size)
    return counts if count_pixels([counts], size)[0] else None


@dataclass(frozen=True)
class AnnotationFile:
    """An annotation file that is read for training or scoring.

    Attributes:
        path: the file.
        content: its JSON object.
        videos: its videos by id.
        classes: the model's class list.
        skip_invalid: whether invalid annotations are skipped instead of raised.
        word: "video", or "image" for a COCO file.
    """

    path: Path
    content: Mapping[str, Any]
    videos: Mapping[int, VideoEntry]
    classes: list[dict[str, Any]]
    skip_invalid: bool
    word: str = "video"

    def annotations(
        self, selected: Collection[int], crowds: bool
    ) -> Iterator[tuple[dict[str, Any], VideoEntry, tuple[Outline | None, ...]]]:
        """The valid annotations of the selected videos, each with its video and outlines.

        Annotations of other videos are validated, but not their masks.
        """
        if self.content.get("annotations") is None:
            return
        problems = annotation_problems(self.path, self.skip_invalid)
        known = {c["id"] for c in self.classes}
        skipped = 0
        for where, annotation, valid in walk(self.content, "annotations", "annotation", problems):
            video = find_video(annotation, self.videos, where, problems, self.word)
            if video is not None:
                at = f"{where} ({video.title})"
                valid &= check_category(annotation, known, at, problems)
                crowd = is_crowd(annotation, at, problems)
                valid &= crowd is not None
            if video is None or not valid:
                skipped += 1
            elif video.id in selected and (crowds or not crowd):
                outlines = parse_masks(annotation, video, where, problems)
                if outlines is None:
                    skipped += 1
                else:
                    yield annotation, video, outlines
        if isinstance(problems, SkipProblems):
            problems.log(skipped)


def _open(
    path: Path, classes: Sequence[Mapping[str, Any]] | None, skip_invalid: bool, names: bool = True
) -> AnnotationFile:
    content, problems = read_content(path, YOUTUBE_VIS), RaiseProblems(path)
    listed = class_list(content, classes, problems, names)
    return AnnotationFile(path, content, parse_videos(content, problems), listed, skip_invalid)


@dataclass(frozen=True)
class AnnotatedVideos(VideoDataset):
    """Videos of one YouTube-VIS file.

    Attributes:
        file: the annotation file, which `truth` reads again.
        skip_invalid: whether invalid annotations are skipped.
        truth_files: files with the truth of these videos, by part: "" for all videos, or e.g. "short".
    """

    file: Path
    skip_invalid: bool
    truth_files: Mapping[str, Path] = field(default_factory=dict)

    def truth(self) -> dict[str, Any]:
        """The ground truth of these videos, crowds included, every mask as compressed RLE.

        Areas and boxes are the file's, or the masks' if the file has none.  The key "annotations" is absent if the
        file has none, as in the test sets of public datasets.
        """
        return self._read_truth(self.truth_files.get("", self.file))

    def truth_of_parts(self) -> dict[str, dict[str, Any]]:
        """The ground truth of parts of these videos, such as the short and the long ones, by name."""
        return {part: self._read_truth(file) for part, file in self.truth_files.items() if part}

    def _read_truth(self, file: Path) -> dict[str, Any]:
        source = _open(file, self.classes, self.skip_invalid, names=False)
        lengths = {video.id: video.length for video in self.videos}
        for video in source.videos.values():
            if lengths.get(video.id, len(video.files)) != len(video.files):
                raise UserError(
                    f"{file}: {video.title}: {len(video.files)} frames, but {lengths[video.id]} in {self.file.name}. "
                    "Both files must describe the same videos."
                )
        selected = lengths.keys()
        videos = [video for video in source.content["videos"] if video["id"] in selected]
        truth: dict[str, Any] = {"videos": videos, "categories": [dict(c) for c in self.classes]}
        if source.content.get("annotations") is not None:
            truth["annotations"] = []
            for annotation, video, outlines in source.annotations(selected, crowds=True):
                assert video.size is not None
                counts = rasterise(outlines, video.size)
                masks = [None if c is None else {"size": list(video.size), "counts": c} for c in counts]
                measured = {} if {"areas", "bboxes"} <= annotation.keys() else describe_masks(masks)
                entry = {"iscrowd": 0, **measured, **annotation, "segmentations": masks}
                truth["annotations"].append(entry)
        return truth


def load_youtube_vis(
    images: str | Path,
    annotations: str | Path,
    classes: Sequence[Mapping[str, Any]] | None = None,
    videos: Collection[str] | None = None,
    exclude: Collection[str] = (),
    skip_invalid_annotations: bool = False,
) -> AnnotatedVideos:
    """The videos of a YouTube-VIS or OVIS file.  Crowds (`iscrowd`) belong to the ground truth, not to the records.

    Args:
        images: the folder to which the file's `file_names` are relative, or its place in a zip file (`image_root`).
        annotations: the JSON file.
        classes: {id, name} of every class, in the order of the model's labels; None uses the file's, by id.
        videos: names (folders) of the videos to load; None loads all.
        exclude: names of videos to leave out.
        skip_invalid_annotations: skip invalid annotations and log their number, instead of raising.

    Raises:
        UserError: for invalid input: one line with the file, the annotation's id and the video.
    """
    root = find_image_root(images)
    source = _open(Path(annotations), classes, skip_invalid_annotations)
    names = _select(source, videos, exclude)
    tracks: dict[int, list[Track]] = {video.id: [] for video in source.videos.values() if video.name in names}
    labels = {c["id"]: k for k, c in enumerate(source.classes)}
    for annotation, video, outlines in source.annotations(tracks.keys(), crowds=False):
        assert video.size is not None
        counts = rasterise(outlines, video.size)
        tracks[video.id].append(Track(annotation["id"], labels[annotation["category_id"]], counts))
    chosen = [video for video in source.videos.values() if video.id in tracks]
    rows = [VideoRow(video.id, video.name, video.size or (0, 0), video.files) for video in chosen]
    records = annotated_videos(root, rows, [tracks[video.id] for video in chosen])
    return AnnotatedVideos(records, source.classes, source.path, skip_invalid_annotations)


def _select(source: AnnotationFile, videos: Collection[str] | None, exclude: Collection[str]) -> set[str]:
    """The names in `videos` (all if None) without `exclude`.

    Raises:
        UserError: for a name that the file does not have.
    """
    names = {video.name for video in source.videos.values()}
    for name in (*(videos or ()), *exclude):
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f' Did you mean "{near[0]}"?' if near else ""
            raise UserError(f'{source.path.name}: no video "{name}".{hint}')
    return set(names if videos is None else videos) - set(exclude)
