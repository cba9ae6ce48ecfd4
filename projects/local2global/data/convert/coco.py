"""COCO instances with the classes of a video dataset: the images of pre-training and pseudo-clips."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ...config.class_lists import COCO_TO_VIDEO, VIDEO_CLASSES
from ...errors import UserError, make_folder
from ..readers.formats import COCO, read_content
from ..readers.vipseg import objects
from ..writers import write_json
from .common import Converted


def convert_coco(annotations: str | Path, out: str | Path, target: str) -> Converted:
    """Writes the annotations of a COCO file that have a class in the target dataset, and their images.

    The images stay in their folder.

    Args:
        annotations: a COCO instance file, e.g. instances_train2017.json.
        out: the file to write, e.g. coco2ytvis2021_train.json.
        target: a key of `COCO_TO_VIDEO`: ytvis2019, ytvis2021 (also for 2022) or ovis.

    Raises:
        UserError: if the target is unknown or the file is not a COCO instance file.
    """
    source, path = Path(annotations), Path(out)
    if target not in COCO_TO_VIDEO:
        raise UserError(f'no class list "{target}". Choose one of: {", ".join(COCO_TO_VIDEO)}.')
    mapping = COCO_TO_VIDEO[target]
    content = read_content(source, COCO)
    entries = objects(content.get("annotations"))
    for annotation in entries:
        for key in ("image_id", "category_id"):
            if not isinstance(annotation.get(key), int):
                raise UserError(f"{source}: annotation {annotation.get('id')}: no integer {key}.")
    mapped = [{**a, "category_id": mapping[a["category_id"]]} for a in entries if a["category_id"] in mapping]
    if not mapped:
        raise UserError(f"{source}: no annotation of a class that {target} has.")
    image_ids = {annotation["image_id"] for annotation in mapped}
    listed = [image for image in objects(content["images"]) if isinstance(image.get("id"), int)]
    images = [image for image in listed if image["id"] in image_ids]
    missing = image_ids - {image["id"] for image in images}
    if missing:
        raise UserError(f"{source}: annotations of image {min(missing)}, which is not listed.")
    skipped = {
        "annotations of other classes": len(entries) - len(mapped),
        "images left empty": len(content["images"]) - len(images),
    }
    make_folder(path.parent, "the output file")
    other = {key: content[key] for key in ("info", "licenses") if key in content}
    categories = VIDEO_CLASSES[target]
    write_json({"annotations": mapped, **other, "images": images, "categories": categories}, path)
    return Converted((path,), len(images), len(images), len(mapped), +Counter(skipped))
