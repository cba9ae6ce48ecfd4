"""Where datasets are on disk: the folders and files of a split.

<root>/{train,valid,test}/JPEGImages    <root>/{train,valid,test}.json                      YouTube-VIS
<root>/train/JPEGImages                 <root>/annotations/instances_{train,val}_sub.json   YouTube-VIS, SeqFormer's
<root>/{train,valid,test}               <root>/annotations/{train,valid,test}.json          OVIS
<root>/{train,valid,test}               <root>/annotations_{train,valid,test}.json          OVIS, as released
<root>/[{valid,annotations}/]{validGT,gt,gt_short,gt_long}.json                      truth of OVIS, YouTube-VIS 2022
<root>/{images,panomasksRGB}            <root>/panoptic_gt_VIPSeg_{train,val,test}.json     VIPSeg_720P

The first existing file is used.  Folders of images may be zip files: `train.zip`, or `train/JPEGImages.zip`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ...errors import UserError
from ..datasets import VideoDataset
from .archives import image_root
from .coco import load_coco
from .entries import RaiseProblems, parse_categories, read_json
from .formats import COCO, format_of
from .vipseg import load_panoptic
from .youtube_vis import load_youtube_vis

#: Annotation files of a split below a dataset's folder, in the order in which they are tried.
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
#: Files with the truth of validation videos that the challenges kept secret: of all videos, of short and of long ones.
TRUTH = {"": ("validGT.json", "gt.json"), "short": ("gt_short.json",), "long": ("gt_long.json",)}
#: Image folders of a split, in the order in which they are tried.
FOLDERS = ("{split}/JPEGImages", "{split}")


def load_split(
    root: str | Path,
    split: str,
    classes: Sequence[Mapping[str, Any]] | None = None,
    videos: Collection[str] | None = None,
    exclude: Collection[str] = (),
    skip_invalid_annotations: bool = False,
) -> VideoDataset:
    """A split of YouTube-VIS or OVIS.

    Args:
        root: the dataset's folder.
        split: "train", "valid" or "test".
        classes: as in `load_youtube_vis`.
        videos: names of the videos to load; None loads all.
        exclude: names of videos to leave out.
        skip_invalid_annotations: as in `load_youtube_vis`.

    Raises:
        UserError: if the split's files are in none of the expected places; as `load_youtube_vis` for invalid input.
    """
    root = Path(root)
    truth = find_truth(root, split)
    places = [*FILES, *(str(file.relative_to(root)) for file in truth.values())]
    file = _first(root, split, places, "annotation file", Path.is_file)
    folder = _first(root, split, FOLDERS, "image folder", lambda path: image_root(path) is not None)
    dataset = load_youtube_vis(folder, file, classes, videos, exclude, skip_invalid_annotations)
    return replace(dataset, truth_files=truth)


def find_truth(root: Path, split: str) -> dict[str, Path]:
    """The truth files of a validation split by part, "" for all videos; {} for other splits."""
    places = ("", "valid", "annotations") if split == "valid" else ()
    found = (
        (part, root / place / name) for part, names in TRUTH.items() for name in names for place in places
    )
    files: dict[str, Path] = {}
    for part, path in found:
        if path.is_file():
            files.setdefault(part, path)
    return files


def load_vipseg(
    root: str | Path, split: str, classes: Sequence[Mapping[str, Any]] | None = None
) -> VideoDataset:
    """A split of VIPSeg_720P.

    Args:
        root: the folder with `images`, `panomasksRGB` and the JSON files.
        split: "train", "val" or "test".
        classes: as in `load_panoptic`.

    Raises:
        UserError: as `load_panoptic`.
    """
    root = Path(root)
    file = root / f"panoptic_gt_VIPSeg_{split}.json"
    return load_panoptic(root / "images", root / "panomasksRGB", file, classes)


def load_annotated(
    images: str | Path,
    annotations: str | Path,
    classes: Sequence[Mapping[str, Any]] | None = None,
    skip_invalid_annotations: bool = False,
) -> VideoDataset:
    """Any videos or images: an image folder and a file in YouTube-VIS's or COCO's format.

    Args:
        images: the folder to which the file's names are relative.
        annotations: the JSON file; a file with a list "images" and no list "videos" is COCO's.
        classes: {id, name} of every class, in the order of the model's labels; None uses the file's, by id.
        skip_invalid_annotations: skip invalid annotations and log their number, instead of raising.

    Raises:
        UserError: as `load_youtube_vis` and `load_coco`.
    """
    skip = skip_invalid_annotations
    if format_of(read_json(Path(annotations))) == COCO:
        return load_coco(images, annotations, classes, skip_invalid_annotations=skip)
    return load_youtube_vis(images, annotations, classes, skip_invalid_annotations=skip)


def classes_of(path: str | Path) -> list[dict[str, Any]]:
    """{id, name} of the categories of an annotation file, by id.

    Raises:
        UserError: if the file cannot be read, or has no categories.
    """
    path = Path(path)
    try:
        state = path.stat()
        version = (state.st_mtime_ns, state.st_size)
    except OSError:
        version = None  # reading it raises
    return [dict(entry) for entry in _classes(path, version)]


@lru_cache(maxsize=16)
def _classes(path: Path, version: tuple[int, int] | None) -> list[dict[str, Any]]:
    """`classes_of` one version of a file: a config refers to its classes many times, and the file may be large."""
    del version
    content = read_json(path)
    names = parse_categories(content if isinstance(content, dict) else {}, RaiseProblems(path))
    return [{"id": k, "name": names[k]} for k in sorted(names)]


def _first(root: Path, split: str, places: Sequence[str], kind: str, exists: Callable[[Path], bool]) -> Path:
    short = {"valid": "val"}.get(split, split)
    tried = list(dict.fromkeys(place.format(split=split, short=short) for place in places))
    for place in tried:
        if exists(root / place):
            return root / place
    raise UserError(
        f"{root}: no {kind} of split '{split}': tried {', '.join(tried)}. "
        "Set DETECTRON2_DATASETS to the folder that holds the datasets."
    )


# In a config, "${classes_of:FILE}" is the class list of an annotation file, read when the value is accessed.
OmegaConf.register_new_resolver("classes_of", classes_of, replace=True)
