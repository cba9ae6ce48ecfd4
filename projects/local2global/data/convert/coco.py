"""COCO instances under the classes of a video dataset: the images that pre-training and pseudo-clips use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...config.class_lists import COCO_TO_VIDEO, VIDEO_CLASSES
from ...errors import UserError, make_folder
from ..readers.json_lists import ListWriter, read_entries
from .common import Converted


def convert_coco(annotations: str | Path, out: str | Path, target: str) -> Converted:
    """Writes the COCO file of the annotations that have a class in the target, and of the images that have any.

    The file is read twice, entry by entry, so memory does not grow with it.  Images stay where they are.

    Args:
        annotations: a COCO instance file, e.g. instances_train2017.json.
        out: the file to write, e.g. coco2ytvis2021_train.json.
        target: a key of `COCO_TO_VIDEO`: ytvis2019, ytvis2021 (2022's too) or ovis.

    Raises:
        UserError: if the target is unknown or the file is no COCO instance file.
    """
    source, path = Path(annotations), Path(out)
    if target not in COCO_TO_VIDEO:
        raise UserError(f'no class list "{target}". Choose one of: {", ".join(COCO_TO_VIDEO)}.')
    mapping = COCO_TO_VIDEO[target]
    kept: set[int] = set()
    skipped: Counter[str] = Counter()
    for annotation in _each(source, "annotations", ("image_id", "category_id")):
        if annotation["category_id"] in mapping:
            kept.add(annotation["image_id"])
        else:
            skipped["annotations of other classes"] += 1
    if not kept:
        raise UserError(f"{source}: no annotation of a class that {target} has.")
    return _write(source, path, target, mapping, kept, skipped)


def _each(source: Path, key: str, needed: tuple[str, ...]) -> Any:
    for name, entry in read_entries(source):
        if name == key:
            missing = [k for k in needed if not isinstance(entry, Mapping) or k not in entry]
            if missing:
                raise UserError(f"{source}: an entry of {key} without {missing[0]}: {str(entry)[:80]}")
            yield entry


def _write(
    source: Path, path: Path, target: str, mapping: Mapping[int, int], kept: set[int], skipped: Counter[str]
) -> Converted:
    make_folder(path.parent, "the output file")
    images: list[dict[str, Any]] = []
    rest: dict[str, Any] = {}
    with ListWriter(path, "annotations") as writer:
        for name, entry in read_entries(source):
            if name == "images":
                if entry["id"] in kept:
                    images.append(entry)
                else:
                    skipped["images left empty"] += 1
            elif name == "annotations" and entry["category_id"] in mapping:
                writer.write({**entry, "category_id": mapping[entry["category_id"]]})
            elif name == "licenses":
                rest.setdefault("licenses", []).append(entry)
            elif name == "info":
                rest["info"] = entry
        lost = kept - {image["id"] for image in images}
        if lost:
            raise UserError(f"{source}: annotations of image {min(lost)}, which is not listed.")
        writer.close({**rest, "images": images, "categories": VIDEO_CLASSES[target]})
    return Converted((path,), len(images), len(images), writer.count, skipped)
