"""VIPSeg as published (masks hold id + 1, frames of every size) as its 720p panoptic dataset."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...config.class_lists import VIPSEG_CLASSES
from ...errors import UserError
from ...results.segment_ids import Ids, segment_id, write_ids
from ..readers.json_lists import ListWriter
from ..writers import QUALITY, describe_segments, new_folder
from .common import Converted, folder_of, folders, images_of, natural

_STUFF_BELOW = 125
"""Values below are stuff, id + 1; those of things are (id + 1) * 100 + instance."""
_PER_CLASS = 100
_SPLITS = ("train", "val", "test")


def convert_vipseg(source: str | Path, out: str | Path, height: int = 720, workers: int = 4) -> Converted:
    """Writes `images/`, `panomasksRGB/` and `panoptic_gt_VIPSeg_{train,val,test}.json`.

    Frames are resized to the height (bilinear), masks likewise (nearest), the width being that of the published
    script.  Segment ids are the same in all frames of a video.  Without `train.txt`, `val.txt` or `test.txt` in the
    source all videos go to `panoptic_gt_VIPSeg.json`.  Frames without a mask are left out.

    Args:
        source: the folder with `imgs/<video>/` and `panomasks/<video>/`.
        out: the folder to make, usually VIPSeg_720P.
        height: rows of the new frames.
        workers: threads that decode and encode.

    Raises:
        UserError: for a mask without frame, of another size, or with a value that stands for no class.
    """
    root = Path(source)
    images, masks = folder_of(root, "imgs", "images"), folder_of(root, "panomasks")
    classes = _classes(root)
    splits = _splits(root)
    entries: dict[str, list[dict[str, Any]]] = {
        split: [] for split in {*splits.values(), *(() if splits else ("",))}
    }
    skipped: Counter[str] = Counter()
    undrawn = {video.name for video in folders(images)} - {video.name for video in folders(masks)}
    if undrawn:
        skipped["videos without masks"] += len(undrawn)
    frames = segments = 0
    with new_folder(Path(out)) as folder, ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(max(1, workers)))
        files = {split: folder / _file_name(split) for split in entries}
        writers = {split: stack.enter_context(ListWriter(files[split], "annotations")) for split in entries}
        for video in folders(masks):
            split = splits.get(video.name) if splits else ""
            if split is None:
                skipped["videos of no split"] += 1
                continue
            job = _Video(video, images / video.name, folder, height, {int(c["id"]): c for c in classes})
            pairs = list(pool.map(job.convert, job.pairs(skipped)))
            entries[split].append({"video_id": video.name, "images": [image for image, _ in pairs]})
            writers[split].write({"video_id": video.name, "annotations": [a for _, a in pairs]})
            frames += len(pairs)
            segments += len({s["id"] for _, a in pairs for s in a["segments_info"]})
        for split, writer in writers.items():
            writer.close({"videos": entries[split], "categories": classes})
        if not frames:
            raise UserError(
                f"{masks}: no folder of PNG masks in it{' that a split names' if splits else ''}."
            )
    written = tuple(Path(out) / _file_name(split) for split in entries)
    return Converted(written, sum(map(len, entries.values())), frames, segments, skipped)


def _file_name(split: str) -> str:
    return f"panoptic_gt_VIPSeg{f'_{split}' if split else ''}.json"


def _classes(root: Path) -> list[dict[str, Any]]:
    """The categories of `panoVIPSeg_categories.json` where there is one, else the known ones."""
    path = root / "panoVIPSeg_categories.json"
    if not path.is_file():
        return [dict(c) for c in VIPSEG_CLASSES]
    try:
        classes = json.loads(path.read_bytes())
        return [{**c, "id": int(c["id"]), "isthing": int(c["isthing"])} for c in classes]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a list of categories with id, name and isthing ({error!r}).") from None


def _splits(root: Path) -> dict[str, str]:
    """The split of each video, from the lists of names beside the folders."""
    found: dict[str, str] = {}
    for split in _SPLITS:
        path = root / f"{split}.txt"
        if path.is_file():
            found.update(dict.fromkeys(path.read_text(encoding="utf-8").split(), split))
    return found


@dataclass(frozen=True)
class _Video:
    """One video's frames and masks, old and new.

    Attributes:
        masks: the folder of its masks.
        images: the folder of its frames.
        out: the dataset that is made.
        height: rows of the new frames.
        classes: the categories by id.
    """

    masks: Path
    images: Path
    out: Path
    height: int
    classes: Mapping[int, Mapping[str, Any]]

    def pairs(self, skipped: Counter[str]) -> Sequence[tuple[Path, Path]]:
        """(frame, mask) in order; makes the folders."""
        for kind in ("images", "panomasksRGB"):
            (self.out / kind / self.masks.name).mkdir(parents=True)
        frames = {image.stem: image for image in images_of(self.images)}
        masks = sorted(self.masks.glob("*.png"), key=natural)
        for mask in masks:
            if mask.stem not in frames:
                raise UserError(f"{mask}: no frame {mask.stem} in {self.images}.")
        if len(frames) > len(masks):
            skipped["frames without a mask"] += len(frames) - len(masks)
        return [(frames[mask.stem], mask) for mask in masks]

    def convert(self, pair: tuple[Path, Path]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Writes one frame and its map; their entries."""
        image, mask = pair
        values = self._resize(image, mask)
        categories: dict[int, int] = {}
        ids: Ids = np.zeros(values.shape, dtype=np.int32)
        for value in np.unique(values).tolist():
            if value:
                category = (value if value < _STUFF_BELOW else value // _PER_CLASS) - 1
                if category not in self.classes:
                    raise UserError(
                        f"{mask}: value {value} stands for class {category}, which is not listed."
                    )
                categories[segment_id(value)] = category
                ids[values == value] = segment_id(value)
        file = f"{mask.stem}.png"
        write_ids(ids, self.out / "panomasksRGB" / self.masks.name / file)
        entry = {"id": mask.stem, "width": ids.shape[1], "height": ids.shape[0], "file_name": file}
        segments = describe_segments(ids, categories)
        return entry, {"image_id": mask.stem, "file_name": file, "segments_info": segments}

    def _resize(self, image: Path, mask: Path) -> NDArray[np.int64]:
        """Writes the frame at its new size; (H, W) the mask's values at that size."""
        target = self.out / "images" / self.masks.name / image.name
        try:
            with Image.open(image) as picture, Image.open(mask) as labels:
                if picture.size != labels.size:
                    sizes = f"{labels.height}x{labels.width} for a frame of {picture.height}x{picture.width}"
                    raise UserError(f"{mask}: a mask of {sizes}.")
                size = (int(self.height * picture.width / picture.height), self.height)
                values = np.asarray(labels.resize(size, Image.Resampling.NEAREST)).astype(np.int64)
                if picture.size == size:
                    shutil.copyfile(image, target)
                else:
                    small = picture.convert("RGB").resize(size, Image.Resampling.BILINEAR)
                    small.save(target, quality=QUALITY)
        except UserError:
            raise
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(
                f"{image} or {mask}: not a readable image ({error}). Replace the file."
            ) from error
        if values.ndim != 2:
            raise UserError(f"{mask}: {values.shape[2]} channels; raw masks hold one number a pixel.")
        return values
