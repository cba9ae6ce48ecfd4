"""VIPSeg as published (masks contain id + 1, frames of every size) as its 720p panoptic dataset."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...config.class_lists import VIPSEG_CLASSES
from ...errors import UserError
from ...files import parse_json
from ...results.segment_ids import Ids, segment_id, write_ids
from ..readers.images import open_image, reading_image, upright_pixels
from ..writers import QUALITY, describe_segments, new_folder, vipseg_file, write_json
from .common import Converted, folder_of, folders, match_frames, natural

_STUFF_BELOW = 125
"""Values below are stuff, id + 1; those of things are (id + 1) * 100 + instance."""
_PER_CLASS = 100
_SPLITS = ("train", "val", "test")


def convert_vipseg(source: str | Path, out: str | Path, height: int = 720, workers: int = 4) -> Converted:
    """Writes `images/`, `panomasksRGB/` and `panoptic_gt_VIPSeg_{train,val,test}.json`.

    Frames are resized to the height (bilinear), masks likewise (nearest); the width is that of the published script.
    Segment ids are the same in all frames of a video.  Without `train.txt`, `val.txt` and `test.txt` in the source, all
    videos go to `panoptic_gt_VIPSeg.json`.  Frames without a mask are left out.

    Args:
        source: the folder with `imgs/<video>/` and `panomasks/<video>/`.
        out: the folder to create, usually VIPSeg_720P.
        height: rows of the new frames.
        workers: threads that decode and encode.

    Raises:
        UserError: for a mask without frame, of another size, or with a value that belongs to no class.
    """
    root = Path(source)
    images, masks = folder_of(root, "imgs", "images"), folder_of(root, "panomasks")
    classes = _classes(root)
    splits = _splits(root)
    contents: dict[str, dict[str, list[Any]]] = {
        split: {"videos": [], "annotations": [], "categories": classes}
        for split in sorted({*splits.values(), *(() if splits else ("",))})
    }
    skipped: Counter[str] = Counter()
    unmasked = {video.name for video in folders(images)} - {video.name for video in folders(masks)}
    if unmasked:
        skipped["videos without masks"] += len(unmasked)
    frames = segments = 0
    by_id = {int(c["id"]): c for c in classes}
    with new_folder(Path(out)) as folder, ThreadPoolExecutor(max(1, workers)) as pool:
        for video in folders(masks):
            split = splits.get(video.name) if splits else ""
            if split is None:
                skipped["videos of no split"] += 1
                continue
            job = _Video(video, images / video.name, folder, height, by_id)
            pairs = list(pool.map(job.convert, job.pairs(skipped)))
            contents[split]["videos"].append({"video_id": video.name, "images": [i for i, _ in pairs]})
            contents[split]["annotations"].append(
                {"video_id": video.name, "annotations": [a for _, a in pairs]}
            )
            frames += len(pairs)
            segments += len({s["id"] for _, a in pairs for s in a["segments_info"]})
        if not frames:
            which = " that a split names" if splits else ""
            raise UserError(f"{masks}: no folder of PNG masks in it{which}.")
        for split, content in contents.items():
            write_json(content, folder / vipseg_file(split))
    written = tuple(Path(out) / vipseg_file(split) for split in contents)
    videos = sum(len(content["videos"]) for content in contents.values())
    return Converted(written, videos, frames, segments, skipped)


def _classes(root: Path) -> list[dict[str, Any]]:
    """The categories of `panoVIPSeg_categories.json` if it exists, else the published ones."""
    path = root / "panoVIPSeg_categories.json"
    if not path.is_file():
        return [dict(c) for c in VIPSEG_CLASSES]
    classes = parse_json(path.read_bytes(), path)
    try:
        return [{**c, "id": int(c["id"]), "isthing": int(c["isthing"])} for c in classes]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a list of categories with id, name and isthing ({error!r}).") from None


def _splits(root: Path) -> dict[str, str]:
    """The split of each video, from the lists of names beside the folders."""
    splits: dict[str, str] = {}
    for split in _SPLITS:
        path = root / f"{split}.txt"
        if path.is_file():
            splits.update(dict.fromkeys(path.read_text(encoding="utf-8").split(), split))
    return splits


@dataclass(frozen=True)
class _Video:
    """The conversion of one video.

    Attributes:
        masks: the folder of its masks.
        images: the folder of its frames.
        out: the new dataset's folder.
        height: rows of the new frames.
        classes: the categories by id.
    """

    masks: Path
    images: Path
    out: Path
    height: int
    classes: Mapping[int, Mapping[str, Any]]

    def pairs(self, skipped: Counter[str]) -> Sequence[tuple[Path, Path]]:
        """Creates the video's folders and returns (frame, mask) pairs in order."""
        for kind in ("images", "panomasksRGB"):
            (self.out / kind / self.masks.name).mkdir(parents=True)
        masks = sorted(self.masks.glob("*.png"), key=natural)
        return list(zip(match_frames(masks, self.images, skipped), masks, strict=True))

    def convert(self, pair: tuple[Path, Path]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Writes one frame and its map; returns their entries."""
        image, mask = pair
        values = self._resize(image, mask)
        categories: dict[int, int] = {}
        ids: Ids = np.zeros(values.shape, dtype=np.int32)
        for value in np.unique(values).tolist():
            if value:
                category = (value if value < _STUFF_BELOW else value // _PER_CLASS) - 1
                if category not in self.classes:
                    raise UserError(f"{mask}: value {value} is of class {category}, which is not listed.")
                categories[segment_id(value)] = category
                ids[values == value] = segment_id(value)
        file = f"{mask.stem}.png"
        write_ids(ids, self.out / "panomasksRGB" / self.masks.name / file)
        entry = {"id": mask.stem, "width": ids.shape[1], "height": ids.shape[0], "file_name": file}
        segments = describe_segments(ids, categories)
        return entry, {"image_id": mask.stem, "file_name": file, "segments_info": segments}

    def _resize(self, image: Path, mask: Path) -> NDArray[np.int64]:
        """Writes the frame at its new size; returns (H, W) the mask's values at that size."""
        target = self.out / "images" / self.masks.name / image.name
        with (
            reading_image(mask),
            open_image(mask) as labels,
            reading_image(image),
            open_image(image) as file,
        ):
            picture = Image.fromarray(upright_pixels(file))
            if picture.size != labels.size:
                both = f"{labels.height}x{labels.width} for a frame of {picture.height}x{picture.width}"
                raise UserError(f"{mask}: a mask of {both}.")
            size = (int(self.height * picture.width / picture.height), self.height)
            values = np.asarray(labels.resize(size, Image.Resampling.NEAREST)).astype(np.int64)
            if picture.size == size:
                shutil.copyfile(image, target)
            else:
                resized = picture.resize(size, Image.Resampling.BILINEAR)
                resized.save(target, quality=QUALITY)
        if values.ndim != 2:
            raise UserError(f"{mask}: {values.shape[2]} channels; raw masks have one number per pixel.")
        return values
