"""Every problem of a dataset on disk, with file, entry and remedy, and a summary of what it holds."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import UserError
from .coco import check_coco
from .entries import read_content
from .findings import Finding, Notes, Options, Report, Sample, Summary
from .layout import COCO, VIPSEG, YOUTUBE_VIS, candidates, find_images, layout_of
from .vipseg import check_vipseg
from .youtube_vis import check_youtube_vis

__all__ = ["Finding", "Options", "Report", "Sample", "Summary", "check_dataset"]


def check_dataset(
    path: str | Path,
    images: str | Path | None = None,
    maps: str | Path | None = None,
    options: Options | None = None,
) -> Report:
    """Reads a dataset from end to end and reports everything that is wrong with it.

    Args:
        path: an annotation file (YouTube-VIS, OVIS, COCO or VIPSeg), or a folder that holds some.
        images: the folder of the frames; None looks near the annotation file.
        maps: the folder of VIPSeg's panoptic PNGs; None looks near the annotation file.
        options: how thoroughly to look.

    Raises:
        UserError: if there is nothing at `path` that could be checked.
    """
    place, report = Path(path), Report()
    given = tuple(None if folder is None else Path(folder) for folder in (images, maps))
    if place.is_dir():
        _check_folder(place, (given[0], given[1]), report, options or Options())
    elif place.is_file():
        _check_file(place, (given[0], given[1]), report, options or Options())
    else:
        raise UserError(f"{place}: no such file or folder.")
    return report


Folders = tuple[Path | None, Path | None]


def _check_folder(folder: Path, given: Folders, report: Report, options: Options) -> None:
    unknown: list[Path] = []
    for files in candidates(folder):
        for file in files:
            trial = Report()
            content = read_content(file, Notes(trial, file.name))
            if content is not None and layout_of(content):
                _check_content(file, content, given, report, options)
            elif content is None and trial.findings[0].kind == "not-json":
                report.findings += trial.findings
            else:
                unknown.append(file)
        if report.summaries:
            return
    if not report.findings:
        tried = f" ({unknown[0].name} is none)" if unknown else ""
        raise UserError(
            f"{folder}: no annotation file of YouTube-VIS, COCO or VIPSeg form in this folder{tried}. "
            "Name the file itself, with --images."
        )


def _check_file(file: Path, given: Folders, report: Report, options: Options) -> None:
    notes = Notes(report, file.name)
    content = read_content(file, notes)
    if content is None:
        return
    if layout_of(content) is None:
        fix = (
            'A dataset has "videos" (YouTube-VIS, VIPSeg) or "images" (COCO), "annotations" and "categories"'
        )
        notes.error("not-a-dataset", "", "neither YouTube-VIS, COCO nor VIPSeg", fix)
        return
    _check_content(file, content, given, report, options)


def _check_content(
    file: Path, content: dict[str, Any], given: Folders, report: Report, options: Options
) -> None:
    layout, notes = layout_of(content), Notes(report, file.name)
    assert layout is not None
    names = {YOUTUBE_VIS: _youtube_vis_names, COCO: _coco_names, VIPSEG: _vipseg_names}[layout]
    images = find_images(file, names(content), given[0], "image")
    if images is None:
        fix = "Name the folder with --images"
        notes.error("no-images", "", "no folder near it holds its frames, so none was looked at", fix)
    summary = Summary(file, layout, images)
    report.summaries.append(summary)
    if layout == YOUTUBE_VIS:
        check_youtube_vis(content, summary, notes, options)
    elif layout == COCO:
        check_coco(content, summary, notes, options)
    else:
        maps = find_images(file, _vipseg_maps(content), given[1], "map")
        if maps is None:
            fix = "Name the folder with --maps"
            notes.error(
                "no-maps", "", "no folder near it holds its panoptic PNGs, so none was looked at", fix
            )
        check_vipseg(content, maps, summary, notes, options)


def _entries(content: Mapping[str, Any], key: str) -> Iterator[dict[str, Any]]:
    value = content.get(key)
    return (entry for entry in value if isinstance(entry, dict)) if isinstance(value, list) else iter(())


def _youtube_vis_names(content: Mapping[str, Any]) -> Iterator[str]:
    for video in _entries(content, "videos"):
        files = video.get("file_names")
        if isinstance(files, list):
            yield from (file for file in files[:2] if isinstance(file, str))


def _coco_names(content: Mapping[str, Any]) -> Iterator[str]:
    return (i["file_name"] for i in _entries(content, "images") if isinstance(i.get("file_name"), str))


def _vipseg_maps(content: Mapping[str, Any]) -> Iterator[str]:
    for video in _entries(content, "videos"):
        for image in list(_entries(video, "images"))[:2]:
            yield f"{video.get('video_id')}/{image.get('file_name')}"


def _vipseg_names(content: Mapping[str, Any]) -> Iterator[str]:
    return (f"{glob.escape(str(Path(name).with_suffix('')))}.[jJ]*" for name in _vipseg_maps(content))
