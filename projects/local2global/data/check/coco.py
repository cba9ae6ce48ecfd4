"""Checks a COCO instance file and its images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..readers.coco import ImageEntry, parse_annotation, parse_images
from ..readers.entries import check_category, parse_categories, walk
from ..readers.images import image_path
from ..readers.records import AnnotatedVideo, Track
from ..readers.rle import count_pixels, outline_counts
from .findings import Notes, Options, Sample, Summary, sample_positions
from .images import ExpectedImage, check_images
from .masks import check_area, check_backslashes, check_box, check_crowd, check_id, check_range


def check_coco(content: Mapping[str, Any], summary: Summary, notes: Notes, options: Options) -> None:
    """Reports every problem, fills the summary and keeps some images for pictures.

    Args:
        content: the file's content.
        summary: filled with statistics; its `images` is the folder of the images, None to skip them.
        notes: where problems are reported.
        options: how thoroughly to check.
    """
    names = parse_categories(content, notes)
    images = parse_images(content, notes)
    _check_files(images, summary, notes, options)
    labels = {identity: k for k, identity in enumerate(sorted(names))}
    annotated = {a.get("image_id") for a in content["annotations"] if isinstance(a, dict) and _hashable(a)}
    candidates = [image for image in images.values() if image.id in annotated and image.size]
    tracks: dict[int, list[Track]] = {
        candidates[i].id: [] for i in sample_positions(len(candidates), options.samples)
    }
    for where, annotation, valid in walk(content, "annotations", "annotation", notes):
        check_id(annotation, where, notes)
        known = check_category(annotation, names, where, notes)
        crowd = check_crowd(annotation, where, notes)
        counts = _check_mask(annotation, images, where, notes)
        if counts is None:
            continue
        if crowd:
            summary.crowds += 1
        elif known:
            category, image = annotation["category_id"], annotation["image_id"]
            summary.add_track(names[category], [True])
            if valid and image in tracks:
                tracks[image].append(Track(annotation["id"], labels[category], (counts,)))
    classes = [{"id": identity, "name": names[identity]} for identity in sorted(names)]
    for image_id, listed in tracks.items():
        entry = images[image_id]
        if summary.images is not None and entry.size is not None:
            file = image_path(summary.images, entry.file)
            record = AnnotatedVideo(image_id, file.stem, entry.size, (file,), tuple(listed))
            notes.report.samples.append(Sample(record, classes))


def _hashable(annotation: Mapping[str, Any]) -> bool:
    return not isinstance(annotation.get("image_id"), (list, dict))


def _check_files(images: Mapping[int, ImageEntry], summary: Summary, notes: Notes, options: Options) -> None:
    first: dict[str, int] = {}
    for image in images.values():
        summary.add_video(image.size, 1)
        other = first.setdefault(image.file, image.id)
        if other != image.id and image.file != "?":
            problem = f"{image.file} is also named by image {other}"
            notes.warn("repeated-frame", f"image {image.id}", problem, "Keep one of the two")
    if summary.images is not None:
        expected = [
            ExpectedImage(
                image_path(summary.images, image.file), image.size, f"{notes.file}: image {image.id}"
            )
            for image in images.values()
        ]
        check_images(expected, notes, options)
    check_backslashes((image.file for image in images.values()), notes)


def _check_mask(
    annotation: Mapping[str, Any], images: Mapping[int, ImageEntry], where: str, notes: Notes
) -> str | None:
    """The compressed counts of an annotation's mask; None if it is invalid or empty."""
    parsed = parse_annotation(annotation, images, where, notes)
    if parsed is None:
        return None
    image, outline = parsed
    assert image.size is not None
    where, segmentation = f"{where} (image {image.id})", annotation["segmentation"]
    check_range(segmentation, image.size, where, notes)
    counts = outline_counts(outline, image.size)
    area = count_pixels(counts, image.size)
    if not area:
        fix = "Remove the annotation; readers drop it"
        notes.warn("empty-mask", where, "its polygon is too thin to contain a pixel", fix)
        return None
    if annotation.get("area") is not None:
        check_area(area, annotation["area"], not isinstance(segmentation, list), where, notes)
    if annotation.get("bbox") is not None:
        check_box(counts, image.size, segmentation, annotation["bbox"], where, notes)
    return counts
