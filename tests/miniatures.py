"""Miniatures of the public datasets on disk: all folders and files that the readers expect, with tiny images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (24, 32)


def picture(path: Path, seed: int) -> None:
    """Writes a JPEG or PNG of random blocks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize(SIZE[::-1], Image.Resampling.NEAREST).save(path)


def runs(top: int, left: int, high: int, wide: int) -> dict[str, Any]:
    """Uncompressed RLE of a rectangle."""
    mask = np.zeros(SIZE, dtype=int)
    mask[top : top + high, left : left + wide] = 1
    flat = np.concatenate([[0], mask.T.ravel()])
    ends = np.flatnonzero(np.diff(flat))
    return {"size": list(SIZE), "counts": np.diff(ends, prepend=0, append=mask.size).tolist()}


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_videos(
    images: Path, file: Path, classes: Sequence[dict[str, Any]], annotated: bool = True, videos: int = 3
) -> None:
    """Writes videos of three frames with one object each, alternately of the last and the first class."""
    content: dict[str, Any] = {"videos": [], "categories": [dict(c) for c in classes]}
    annotations = []
    for v in range(1, videos + 1):
        names = [f"video{v}/{t:05d}.jpg" for t in range(3)]
        for t, name in enumerate(names):
            picture(images / name, 10 * v + t)
        size = {"height": SIZE[0], "width": SIZE[1], "length": 3}
        content["videos"].append({"id": v, "file_names": names, **size})
        entry = {"id": v, "video_id": v, "category_id": classes[-(v % 2)]["id"], "iscrowd": 0, **size}
        annotations.append({**entry, "segmentations": [runs(2 + t, 4 * v, 12, 10) for t in range(3)]})
    if annotated:
        content["annotations"] = annotations
    write_json(file, content)


def write_images(images: Path, file: Path, categories: Sequence[dict[str, Any]], ids: Sequence[int]) -> None:
    """Writes four images: three with a polygon, the last with a crowd only."""
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [dict(c) for c in categories]}
    for i in range(1, 5):
        picture(images / f"{i:012d}.jpg", i)
        size = {"height": SIZE[0], "width": SIZE[1]}
        content["images"].append({"id": i, "file_name": f"{i:012d}.jpg", **size})
        entry = {"id": 100 + i, "image_id": i, "category_id": ids[i % len(ids)], "iscrowd": int(i == 4)}
        polygon = [[4.0, 2.0, 20.0, 2.0, 20.0, 18.0, 4.0, 18.0]]
        entry["segmentation"] = runs(0, 0, 5, 5) if i == 4 else polygon
        content["annotations"].append(entry)
    write_json(file, content)


def write_panoptic(root: Path, split: str, classes: Sequence[dict[str, Any]]) -> None:
    """Writes two videos of two frames: a thing in front of stuff; the second frame has no thing."""
    thing, stuff = classes[0]["id"], classes[-1]["id"]
    content: dict[str, Any] = {"videos": [], "annotations": [], "categories": [dict(c) for c in classes]}
    for name in (f"1_{split}", f"2_{split}"):
        images, frames = [], []
        for t in range(2):
            picture(root / "images" / name / f"{t:08d}.jpg", t)
            ids = np.full(SIZE, 70000)
            ids[:4] = 0
            if t == 0:
                ids[6:16, 8:20] = 300
            segments = [
                {"id": i, "category_id": category, "iscrowd": 0, "area": int((ids == i).sum())}
                for i, category in ((70000, stuff), (300, thing))
                if (ids == i).any()
            ]
            path = root / "panomasksRGB" / name / f"{t:08d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)).save(path)
            size = {"height": SIZE[0], "width": SIZE[1]}
            images.append({"id": f"{t:08d}", "file_name": f"{t:08d}.jpg", **size})
            frames.append({"image_id": f"{t:08d}", "file_name": f"{t:08d}.png", "segments_info": segments})
        content["videos"].append({"video_id": name, "images": images})
        content["annotations"].append({"video_id": name, "annotations": frames})
    write_json(root / f"panoptic_gt_VIPSeg_{split}.json", content)
