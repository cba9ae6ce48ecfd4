"""Text files with one line per object and frame: MOTChallenge results and CSV."""

from __future__ import annotations

import csv
from pathlib import Path

from pycocotools import mask as coco_mask

from ...files import atomic_path
from ..record import Recording


def write_mot(path: Path, recording: Recording) -> None:
    """Writes `frame,id,left,top,width,height,score,-1,-1,-1`, the form of MOTChallenge results.

    Frames, ids and pixel coordinates count from 1, as MOTChallenge prescribes: id = slot + 1.
    """
    with atomic_path(path) as partial, partial.open("w", encoding="ascii") as file:
        for t, line in enumerate(recording.lines(), start=1):
            for entry in line["objects"]:
                left, top, width, height = entry["bbox"]
                box = f"{left + 1:g},{top + 1:g},{width:g},{height:g}"
                file.write(f"{t},{entry['id'] + 1},{box},{entry['score']:.6g},-1,-1,-1\n")


def write_csv(path: Path, recording: Recording) -> None:
    """Writes one row per object and frame; the id is the drawn one, `class` is the name, `area` is in pixels."""
    names = {category["id"]: category["name"] for category in recording.categories}
    head = ("frame", "time", "id", "class", "category_id", "score", "x", "y", "width", "height", "area")
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(head)
        for t, line in enumerate(recording.lines()):
            for entry in line["objects"]:
                category, area = entry["category_id"], int(coco_mask.area(entry["segmentation"]))
                fields = (t, line["time"], entry["id"], _cell(names[category]), category, entry["score"])
                rows.writerow((*fields, *(f"{x:g}" for x in entry["bbox"]), area))


def _cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula; class names come from a stranger's checkpoint."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
