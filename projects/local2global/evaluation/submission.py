"""The zip that the evaluation servers (CodaLab) take: `results.json` at its top, checked before it is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

from ..errors import UserError, make_folder
from .masks import read_document
from .oddities import Oddities
from .tracks import parse_results


@dataclass(frozen=True)
class Bundle:
    """What went into a zip: its tracks, the videos they are of, and the listed videos that have none."""

    tracks: int
    videos: int
    empty: int


def write_bundle(truth: Mapping[str, Any], results: str | Path, target: str | Path) -> Bundle:
    """Checks results against the list of videos and zips them.

    Args:
        truth: annotations with `videos` and `categories`, such as a challenge's `valid.json`.
        results: the file of predicted tracks.
        target: the zip; it appears only when it is whole.

    Raises:
        UserError: an entry that a server would refuse or score otherwise than meant, by its place: an unknown
            video or category, a list of another length than the video, a mask of another size, a bad score.
    """
    target = Path(target)
    document = read_document(results)
    if not document.content:
        raise UserError(f"{results}: no predictions; the servers refuse an empty list")
    parse_results(document.content, truth, document, Oddities(strict=True))
    make_folder(target.parent, "--submit")
    partial = target.with_name(target.name + ".tmp")
    try:
        with ZipFile(partial, "w", ZIP_DEFLATED) as bundle:
            bundle.write(results, "results.json")
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    seen = {entry["video_id"] for entry in document.content}
    return Bundle(len(document.content), len(seen), len({video["id"] for video in truth["videos"]} - seen))
