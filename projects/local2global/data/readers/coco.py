"""COCO instance annotation files, read as YouTube-VIS files: every image is a video of one frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..datasets import VideoDataset, annotation_entry
from .archives import find_image_root
from .entries import RaiseProblems, class_list
from .formats import COCO, read_content
from .records import Track, VideoRow, annotated_videos
from .rle import outline_counts
from .youtube_vis import AnnotationFile, parse_videos


def as_videos(content: Mapping[str, Any]) -> dict[str, Any]:
    """A COCO file's content in the form of YouTube-VIS: one file name, one segmentation, one area, one box."""
    videos = [_with_lists(image, {"file_name": "file_names"}) for image in content["images"]]
    keys = {"segmentation": "segmentations", "area": "areas", "bbox": "bboxes"}
    annotations = content.get("annotations")
    if isinstance(annotations, list):
        annotations = [_with_lists(annotation, keys) for annotation in annotations]
    return {**content, "videos": videos, "annotations": annotations}


def _with_lists(entry: Any, keys: Mapping[str, str]) -> Any:
    """An entry whose values at `keys` are lists of one value under other keys; empty values are left out."""
    if not isinstance(entry, dict):
        return entry
    entry = dict(entry)
    for old, new in keys.items():
        value = entry.pop(old, None)
        if value not in (None, [], {}):
            entry[new] = [value]
    if "image_id" in entry:
        entry["video_id"] = entry.pop("image_id")
    return entry


@dataclass(frozen=True)
class AnnotatedImages(VideoDataset):
    """Images of one COCO file; the ground truth also has the crowds, which no record contains.

    Attributes:
        crowds: YouTube-VIS annotations of the crowds.
    """

    crowds: tuple[dict[str, Any], ...]

    def truth(self) -> dict[str, Any]:
        """The YouTube-VIS dict of these videos of one frame."""
        truth = super().truth()
        images = {video.id for video in self.videos}
        truth["annotations"] += [crowd for crowd in self.crowds if crowd["video_id"] in images]
        return truth


def load_coco(
    images: str | Path,
    annotations: str | Path,
    classes: Sequence[Mapping[str, Any]] | None = None,
    keep_empty: bool = False,
    check_names: bool = True,
    skip_invalid_annotations: bool = False,
) -> VideoDataset:
    """The images of a file in COCO's instance format, each a video of one frame.

    Args:
        images: the folder to which the file's `file_name`s are relative.
        annotations: the JSON file.
        classes: {id, name} of every class, in the order of the model's labels; None uses the file's, by id.
        keep_empty: keep images without an instance.
        check_names: raise if the class list and the file name a category differently.  Files whose category ids were
            mapped to another class list (`coco2ytvis2021_train.json`) often keep COCO's names.
        skip_invalid_annotations: skip invalid annotations and log their number, instead of raising.

    Raises:
        UserError: for invalid input: one line with the file and the annotation's id.
    """
    root, path = find_image_root(images), Path(annotations)
    content, problems = as_videos(read_content(path, COCO)), RaiseProblems(path)
    listed = class_list(content, classes, problems, check_names)
    labels = {c["id"]: k for k, c in enumerate(listed)}
    entries = parse_videos(content, problems, "image")
    source = AnnotationFile(path, content, entries, listed, skip_invalid_annotations, "image")
    tracks: dict[int, list[Track]] = {identity: [] for identity in entries}
    crowds = []
    for annotation, image, outlines in source.annotations(entries, crowds=True):
        category, size = annotation["category_id"], image.size
        if annotation.get("iscrowd"):
            assert size is not None
            if outlines[0] is None:  # an RLE without a pixel
                continue
            mask = {"size": list(size), "counts": outline_counts(outlines[0], size)}
            crowds.append(annotation_entry(annotation["id"], image.id, category, size, [mask], iscrowd=1))
        else:
            tracks[image.id].append(Track(annotation["id"], labels[category], outlines))
    chosen = [image for image in entries.values() if tracks[image.id] or keep_empty]
    rows = [VideoRow(image.id, _stem(image.files[0]), image.size or (0, 0), image.files) for image in chosen]
    records = annotated_videos(root, rows, [tracks[image.id] for image in chosen])
    return AnnotatedImages(records, listed, tuple(crowds))


def _stem(file: str) -> str:
    return PurePosixPath(file.replace("\\", "/")).stem
