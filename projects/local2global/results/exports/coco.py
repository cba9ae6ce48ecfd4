"""COCO: every frame is an image, every object on it an annotation with its `track_id`."""

from __future__ import annotations

import json
from pathlib import Path

from pycocotools import mask as coco_mask

from ...files import atomic_path
from ..record import Recording


def write_coco(path: Path, recording: Recording) -> None:
    """Writes {images, annotations, categories}, which pycocotools loads.

    Image id = frame index + 1; track_id = slot + 1, as in `annotations.json`.
    """
    size = {"width": recording.video["width"], "height": recording.video["height"]}
    names = recording.file_names
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8") as file:
        categories = json.dumps([dict(category) for category in recording.categories])
        file.write(f'{{"categories": {categories},\n"images": [')
        for t, line in enumerate(recording.lines()):
            image = {"id": t + 1, "file_name": names[t], **size, "frame_index": t, "time": line["time"]}
            file.write((",\n" if t else "\n") + json.dumps(image))
        file.write('],\n"annotations": [')
        count = 0
        for t, line in enumerate(recording.lines()):
            for entry in line["objects"]:
                count += 1
                annotation = {
                    "id": count,
                    "image_id": t + 1,
                    "track_id": entry["id"] + 1,
                    "category_id": entry["category_id"],
                    "iscrowd": 0,
                    "score": entry["score"],
                    "bbox": entry["bbox"],
                    "area": int(coco_mask.area(entry["segmentation"])),
                    "segmentation": entry["segmentation"],
                }
                file.write((",\n" if count > 1 else "\n") + json.dumps(annotation))
        file.write("]}\n")
