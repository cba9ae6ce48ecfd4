"""COCO instance annotation files: every image is a video of one frame."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ...errors import UserError
from ..datasets import VideoDataset, annotation_entry
from .entries import (
    Problems,
    RaiseProblems,
    SkipProblems,
    annotation_problems,
    check_category,
    class_list,
    is_id,
    parse_size,
    shown,
    walk,
)
from .formats import COCO, read_content
from .images import image_path
from .records import AnnotatedVideo, Track
from .rle import Outline, outline_counts, parse_outline


@dataclass(frozen=True)
class ImageEntry:
    """A validated entry of `images`.

    Attributes:
        id: the image's id.
        file: file name relative to the image folder, "?" if it is invalid.
        size: (height, width), None if the file states none.
    """

    id: int
    file: str
    size: tuple[int, int] | None


def parse_images(content: Mapping[str, Any], problems: Problems) -> dict[int, ImageEntry]:
    """The images by id."""
    images: dict[int, ImageEntry] = {}
    for where, entry, valid in walk(content, "images", "image", problems):
        size, file = parse_size(entry, where, problems), entry.get("file_name")
        if not isinstance(file, str) or not file:
            problems.error("file-name", where, f"its file_name is {shown(file)}", "Name its file")
            file = "?"
        if valid:
            images[entry["id"]] = ImageEntry(entry["id"], file, size)
    return images


def parse_annotation(
    annotation: Mapping[str, Any], images: Mapping[int, ImageEntry], where: str, problems: Problems
) -> tuple[ImageEntry, Outline] | None:
    """The image and the outline of an annotation; None if either is invalid."""
    identity = annotation.get("image_id")
    if not is_id(identity) or identity not in images:
        problem = f"image_id {shown(identity)} is not an image of this file"
        problems.error("unknown-image", where, problem, "Correct image_id, or list the image")
        return None
    image, segmentation = images[identity], annotation.get("segmentation")
    where = f"{where} (image {image.id})"
    if not segmentation:
        fix = "Add a polygon or an RLE; a box alone is not enough"
        problems.error("no-masks", where, "no segmentation", fix)
        return None
    if image.size is None:
        return None
    try:
        return image, parse_outline(segmentation, image.size)
    except ValueError as error:
        problems.error("malformed-mask", where, f"{error}", "Encode the mask again, as COCO RLE or polygons")
        return None


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
    root, path = Path(images), Path(annotations)
    if not root.is_dir():
        raise UserError(f"{root}: no such image folder.")
    content, problems = read_content(path, COCO), RaiseProblems(path)
    listed = class_list(content, classes, problems, check_names)
    labels = {c["id"]: k for k, c in enumerate(listed)}
    entries = parse_images(content, problems)
    tracks: dict[int, list[Track]] = {identity: [] for identity in entries}
    crowds = []
    for annotation, image, outline in _annotations(
        content, entries, labels.keys(), annotation_problems(path, skip_invalid_annotations)
    ):
        if annotation.get("iscrowd"):
            crowds.append(_crowd(annotation, image, outline))
        else:
            label = labels[annotation["category_id"]]
            tracks[image.id].append(Track(annotation["id"], label, (outline,)))
    records = [
        AnnotatedVideo(
            id=image.id,
            name=PurePosixPath(image.file.replace("\\", "/")).stem,
            size=image.size or (0, 0),
            files=(image_path(root, image.file),),
            tracks=tuple(tracks[image.id]),
        )
        for image in entries.values()
        if tracks[image.id] or keep_empty
    ]
    return AnnotatedImages(records, listed, tuple(crowds))


def _annotations(
    content: Mapping[str, Any],
    images: Mapping[int, ImageEntry],
    known: Collection[int],
    problems: RaiseProblems,
) -> Iterator[tuple[dict[str, Any], ImageEntry, Outline]]:
    """The valid annotations, each with its image and outline."""
    if content.get("annotations") is None:
        return
    skipped = 0
    for where, annotation, valid in walk(content, "annotations", "annotation", problems):
        parsed = parse_annotation(annotation, images, where, problems)
        if valid and check_category(annotation, known, where, problems) and parsed is not None:
            yield annotation, *parsed
        else:
            skipped += 1
    if isinstance(problems, SkipProblems):
        problems.log(skipped)


def _crowd(annotation: Mapping[str, Any], image: ImageEntry, outline: Outline) -> dict[str, Any]:
    assert image.size is not None
    mask = {"size": list(image.size), "counts": outline_counts(outline, image.size)}
    return annotation_entry(
        annotation["id"], image.id, annotation["category_id"], image.size, [mask], int(True)
    )
