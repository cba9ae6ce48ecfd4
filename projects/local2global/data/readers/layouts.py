"""Where datasets lie on disk: the folders and files that a split of a dataset may be made of.

<root>/{train,valid,test}/JPEGImages    <root>/{train,valid,test}.json                      YouTube-VIS
<root>/train/JPEGImages                 <root>/annotations/instances_{train,val}_sub.json   YouTube-VIS, SeqFormer's
<root>/{train,valid,test}               <root>/annotations/{train,valid,test}.json          OVIS
<root>/{train,valid,test}               <root>/annotations_{train,valid,test}.json          OVIS, as released
<root>/{images,panomasksRGB}            <root>/panoptic_gt_VIPSeg_{train,val,test}.json     VIPSeg_720P

The first of these that is there is taken.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ...errors import UserError
from ..datasets import VideoDataset, load_youtube_vis
from .annotations import classes_of, holds
from .coco import load_coco
from .vipseg import load_panoptic

#: Annotation files of a split below a dataset's folder, in the order in which they are looked for.
FILES = (
    "{split}.json",
    "annotations/{split}.json",
    "annotations_{split}.json",
    "annotations/annotations_{split}.json",
    "annotations/instances_{split}_sub.json",
    "annotations/instances_{short}_sub.json",
    "annotations/instances_{split}.json",
    "{split}/instances.json",
)
#: Image folders of a split, likewise.
FOLDERS = ("{split}/JPEGImages", "{split}")


def load_split(
    root: str | Path,
    split: str,
    classes: Sequence[Mapping[str, Any]] | None = None,
    videos: Collection[str] | None = None,
    exclude: Collection[str] = (),
) -> VideoDataset:
    """A split of YouTube-VIS or OVIS, wherever its files lie below `root`.

    Args:
        root: the dataset's folder.
        split: "train", "valid" or "test".
        classes: see `load_youtube_vis`; likewise `videos` and `exclude`.
        videos: names of the videos to keep; None keeps all.
        exclude: names of videos to leave out.

    Raises:
        UserError: if nothing lies where it may, with all places; as `load_youtube_vis` for what is malformed.
    """
    root = Path(root)
    file = _first(root, split, FILES, "annotation file", Path.is_file)
    folder = _first(root, split, FOLDERS, "image folder", Path.is_dir)
    return load_youtube_vis(folder, file, classes, videos, exclude)


def load_vipseg(
    root: str | Path, split: str, classes: Sequence[Mapping[str, Any]] | None = None
) -> VideoDataset:
    """A split of VIPSeg_720P.

    Args:
        root: the folder with `images`, `panomasksRGB` and the JSON files.
        split: "train", "val" or "test".
        classes: see `load_panoptic`.

    Raises:
        UserError: as `load_panoptic`.
    """
    root = Path(root)
    return load_panoptic(
        root / "images", root / "panomasksRGB", root / f"panoptic_gt_VIPSeg_{split}.json", classes
    )


def load_annotated(
    images: str | Path, annotations: str | Path, classes: Sequence[Mapping[str, Any]] | None = None
) -> VideoDataset:
    """Anybody's videos or images: an image folder and a file in YouTube-VIS's or COCO's format.

    Args:
        images: the folder that the file's names are relative to.
        annotations: the JSON file; a list "images" makes it COCO's.
        classes: {id, name} of every class, in the order of the model's labels; None takes the file's, by id.

    Raises:
        UserError: as `load_youtube_vis` and `load_coco`.
    """
    if holds(annotations, "images") and not holds(annotations, "videos"):
        return load_coco(images, annotations, classes)
    return load_youtube_vis(images, annotations, classes)


def _first(root: Path, split: str, places: Sequence[str], what: str, there: Any) -> Path:
    short = {"valid": "val"}.get(split, split)
    tried = list(dict.fromkeys(place.format(split=split, short=short) for place in places))
    for place in tried:
        if there(root / place):
            return root / place
    raise UserError(
        f"{root}: no {what} of split '{split}': looked for {', '.join(tried)}. "
        "Set DETECTRON2_DATASETS to the folder that holds the datasets."
    )


# A config may say "${classes_of:FILE}" where it would hold a class list; it is read when somebody asks for it.
OmegaConf.register_new_resolver("classes_of", classes_of, replace=True)
