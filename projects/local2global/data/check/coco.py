"""Every problem of a COCO instance file and of its images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..datasets import AnnotatedVideo, Track
from .entries import check_categories, check_category, check_crowd, check_zero, is_int, positive_size, walk
from .findings import Notes, Options, Sample, Summary, chosen
from .images import ExpectedImage, check_images
from .masks import Mask, check_area, check_box, read_mask


def check_coco(content: Mapping[str, Any], summary: Summary, notes: Notes, options: Options) -> None:
    """Notes every problem, fills the summary and keeps some images for pictures.

    Args:
        content: what the annotation file holds.
        summary: what is counted; its `images` is the folder of the images, or None to leave them alone.
        notes: where problems go.
        options: how thoroughly to look.
    """
    names = check_categories(content, notes)
    images, sizes = _read_images(content, summary, notes)
    if summary.images is not None:
        expected = [
            ExpectedImage(summary.images / file, sizes[identity], f"{notes.file}: image {identity}")
            for identity, file in images.items()
        ]
        check_images(expected, notes, options)
    labels = {identity: k for k, identity in enumerate(sorted(names))}
    annotated = {a.get("image_id") for a in content.get("annotations") or () if isinstance(a, dict)}
    candidates = [identity for identity in images if identity in annotated and sizes[identity]]
    kept: dict[int, list[Track]] = {candidates[i]: [] for i in chosen(len(candidates), options.samples)}
    for where, annotation in walk(content, "annotations", "annotation", notes):
        mask = _check_annotation(annotation, where, names, sizes, summary, notes)
        if mask and mask.area and annotation["image_id"] in kept and is_int(annotation.get("id")):
            label = labels[annotation["category_id"]]
            kept[annotation["image_id"]].append(Track(annotation["id"], label, (mask.counts,)))
    classes = [{"id": identity, "name": names[identity]} for identity in sorted(names)]
    for identity, tracks in kept.items():
        size = sizes[identity]
        if summary.images is not None and size is not None:
            file = summary.images / images[identity]
            record = AnnotatedVideo(identity, file.stem, size, (file,), tuple(tracks))
            notes.report.samples.append(Sample(record, classes))


def _read_images(
    content: Mapping[str, Any], summary: Summary, notes: Notes
) -> tuple[dict[int, str], dict[int, tuple[int, int] | None]]:
    files: dict[int, str] = {}
    sizes: dict[int, tuple[int, int] | None] = {}
    owners: dict[str, str] = {}
    for where, entry in walk(content, "images", "image", notes):
        size = positive_size(entry, where, notes)
        summary.add_video(size or (0, 0), 1)
        file = entry.get("file_name")
        if not isinstance(file, str) or not file:
            notes.error("file-name", where, f"its file_name is {json.dumps(file)}", "Name its file")
            file = "?"
        elif owners.setdefault(file, where) != where:
            fix = "Keep one of the two"
            notes.warn("repeated-frame", where, f"{file} is named by {owners[file]} too", fix)
        if is_int(entry.get("id")) and entry["id"] not in files:
            files[entry["id"]], sizes[entry["id"]] = file, size
    return files, sizes


def _check_annotation(
    annotation: dict[str, Any],
    where: str,
    names: Mapping[int, str],
    sizes: Mapping[int, tuple[int, int] | None],
    summary: Summary,
    notes: Notes,
) -> Mask | None:
    """Notes the problems of one annotation; its mask if it can be drawn, else None."""
    check_zero(annotation, where, notes)
    known = check_category(annotation, names, where, notes)
    crowd = check_crowd(annotation, where, notes)
    image = annotation.get("image_id")
    if not is_int(image) or image not in sizes:
        problem = f"image_id {json.dumps(image)} is no image of this file"
        notes.error("unknown-image", where, problem, "Correct image_id, or list the image")
        return None
    size, where = sizes[image], f"{where} (image {image})"
    if not annotation.get("segmentation"):
        fix = "Add a polygon or an RLE; boxes alone are not enough"
        notes.error("no-masks", where, "no segmentation", fix)
        return None
    mask = read_mask(annotation["segmentation"], size, where, notes) if size else None
    if mask is None or size is None:
        return None
    if not mask.area:
        fix = "Remove the annotation; readers drop it"
        notes.warn("empty-mask", where, "its polygon is too thin to hold a pixel", fix)
        return None
    exact = not isinstance(annotation["segmentation"], list)
    if annotation.get("area") is not None:
        check_area(mask, annotation["area"], exact, where, notes)
    if annotation.get("bbox") is not None:
        check_box(mask, size, annotation["segmentation"], annotation["bbox"], where, notes)
    if crowd:
        summary.crowds += 1
    elif known:
        summary.add_track(names[annotation["category_id"]], [True])
    return mask if known and not crowd else None
