"""Zip files in the form of the challenges: `results.json` at the top, checked before it is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

from ..errors import UserError, make_folder
from ..files import atomic_path
from .files import read_json
from .oddities import Oddities
from .tracks import parse_results


def write_bundle(truth: Mapping[str, Any], results: str | Path, target: str | Path) -> tuple[int, int, int]:
    """Checks results against the list of videos and writes the zip atomically.

    Args:
        truth: annotations with `videos` and `categories`, such as a challenge's `valid.json`.
        results: the file of predicted tracks.
        target: the zip.

    Returns:
        The number of tracks, of videos with tracks, and of listed videos without tracks.

    Raises:
        UserError: an entry that a scorer would refuse or misread: an unknown video or category, a list of another
            length than the video, a mask of another size, a bad score.
    """
    target = Path(target)
    entries = read_json(results)
    if not entries:
        raise UserError(f"{results}: no predictions; challenges refuse an empty list")
    parse_results(entries, truth, Oddities(strict=True))
    make_folder(target.parent, "--submit")
    with atomic_path(target) as partial, ZipFile(partial, "w", ZIP_DEFLATED) as bundle:
        bundle.write(results, "results.json")
    videos = {entry["video_id"] for entry in entries}
    return len(entries), len(videos), len({video["id"] for video in truth["videos"]} - videos)
