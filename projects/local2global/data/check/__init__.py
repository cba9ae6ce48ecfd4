"""Checks a dataset on disk: every problem with file, entry and remedy, and a summary of the content."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..readers.archives import ImageRoot, image_root
from ..readers.coco import as_videos
from ..readers.entries import is_file_name, read_json
from ..readers.formats import COCO, COCOVID, REMEDIES, VIPSEG, YOUTUBE_VIS, format_of
from ..readers.places import annotation_files, find_images
from ..readers.vipseg import objects
from .findings import Finding, Notes, Options, Report, Sample, Summary
from .vipseg import check_vipseg
from .youtube_vis import check_youtube_vis

__all__ = ["Finding", "Options", "Report", "Sample", "Summary", "check_dataset"]


def check_dataset(
    path: str | Path,
    images: str | Path | None = None,
    maps: str | Path | None = None,
    options: Options | None = None,
) -> Report:
    """Reads a dataset from end to end and reports every problem.

    Args:
        path: an annotation file (YouTube-VIS, OVIS, COCO or VIPSeg), or a folder that contains some.
        images: the folder of the frames; None searches near the annotation file.
        maps: the folder of VIPSeg's panoptic PNGs; None searches near the annotation file.
        options: how thoroughly to check.

    Raises:
        UserError: if there is nothing at `path` that can be checked.
    """
    place = Path(path)
    roots = [_stated_root(folder, option) for folder, option in ((images, "images"), (maps, "maps"))]
    check = _Check(Report(), roots[0], roots[1], options or Options())
    if place.is_dir():
        check.folder(place)
    elif place.is_file():
        check.file(place)
    else:
        raise UserError(f"{place}: no such file or folder.")
    return check.report


def _stated_root(folder: str | Path | None, option: str) -> ImageRoot | None:
    root = None if folder is None else image_root(folder)
    if folder is not None and root is None:
        raise UserError(f"{folder}: no such folder. Correct --{option}.")
    return root


class _Check:
    """One run of `check_dataset`, see its arguments."""

    def __init__(
        self, report: Report, images: ImageRoot | None, maps: ImageRoot | None, options: Options
    ) -> None:
        self.report, self.images, self.maps, self.options = report, images, maps, options

    def folder(self, folder: Path) -> None:
        """Checks the nearest annotation files of a folder."""
        others: list[Path] = []
        for files in annotation_files(folder):
            for file in files:
                try:
                    content = read_json(file)
                except UserError as error:
                    self._not_json(file, error)
                    continue
                if format_of(content):
                    self._content(file, content)
                else:
                    others.append(file)
            if self.report.summaries:
                return
        if not self.report.findings:
            tried = f" ({others[0].name} is not one)" if others else ""
            raise UserError(
                f"{folder}: no annotation file of YouTube-VIS, COCO or VIPSeg form in this folder{tried}. "
                "Name the file itself, with --images."
            )

    def file(self, file: Path) -> None:
        """Checks one annotation file."""
        try:
            content = read_json(file)
        except UserError as error:
            self._not_json(file, error)
            return
        if format_of(content) is None:
            forms = '"videos" (YouTube-VIS, VIPSeg) or "images" (COCO), "annotations" and "categories"'
            problem, fix = "neither YouTube-VIS, COCO nor VIPSeg", f"A dataset has {forms}"
            Notes(self.report, file.name).error("not-a-dataset", "", problem, fix)
            return
        self._content(file, content)

    def _not_json(self, file: Path, error: UserError) -> None:
        problem = str(error).removeprefix(f"{file}: ").rstrip(".")
        fix = "Write the file again, or restore it from its source"
        Notes(self.report, file.name).error("not-json", "", problem, fix)

    def _content(self, file: Path, content: dict[str, Any]) -> None:
        layout, notes = format_of(content), Notes(self.report, file.name)
        if layout == COCOVID:
            problem = "CocoVID's form, one annotation per frame and object"
            notes.error("cocovid", "", problem, REMEDIES[COCOVID])
            return
        names = {YOUTUBE_VIS: _youtube_vis_names, COCO: _coco_names, VIPSEG: _vipseg_names}[str(layout)]
        images = self._find(file, names(content), self.images, "images", "frames", notes)
        summary = Summary(file, str(layout), images)
        self.report.summaries.append(summary)
        if layout == YOUTUBE_VIS:
            check_youtube_vis(content, summary, notes, self.options)
        elif layout == COCO:
            check_youtube_vis(as_videos(content), summary, notes, self.options, "image")
        else:
            maps = self._find(file, _vipseg_maps(content), self.maps, "maps", "panoptic PNGs", notes)
            check_vipseg(content, maps, summary, notes, self.options)

    def _find(
        self, file: Path, names: Iterable[str], stated: ImageRoot | None, option: str, what: str, notes: Notes
    ) -> ImageRoot | None:
        folder = stated or find_images(file, names, maps=option == "maps")
        if folder is None:
            problem = f"no folder near it contains its {what}, so none was checked"
            notes.error(f"no-{option}", "", problem, f"Name the folder with --{option}")
        return folder


def _youtube_vis_names(content: Mapping[str, Any]) -> Iterator[str]:
    for video in objects(content.get("videos")):
        files = video.get("file_names")
        if isinstance(files, list):
            yield from filter(is_file_name, files[:2])


def _coco_names(content: Mapping[str, Any]) -> Iterator[str]:
    return filter(is_file_name, (i.get("file_name") for i in objects(content.get("images"))))


def _vipseg_maps(content: Mapping[str, Any]) -> Iterator[str]:
    for video in objects(content.get("videos")):
        for image in objects(video.get("images"))[:2]:
            name = f"{video.get('video_id')}/{Path(str(image.get('file_name'))).stem}.png"
            if is_file_name(name):
                yield name


def _vipseg_names(content: Mapping[str, Any]) -> Iterator[str]:
    return (f"{glob.escape(name.removesuffix('.png'))}.[jJpP]*" for name in _vipseg_maps(content))
