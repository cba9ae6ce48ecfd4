"""Files made from the record of a stream: one module per format, one table of all formats."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ...errors import UserError
from ..record import Recording
from .coco import write_coco
from .images import write_crops, write_id_maps, write_masks
from .mots import write_mots
from .text import write_csv, write_mot
from .youtube_vis import write_annotations, write_results


@dataclass(frozen=True)
class Export:
    """A format.

    Attributes:
        file: name of the file, or of the folder, in the output folder.
        write: writes it from a recording; an existing one is replaced when the new one is complete.
        needs_frames: whether the frames of the video are read again.
    """

    file: str
    write: Callable[[Path, Recording], None]
    needs_frames: bool = False


EXPORTS = {
    "annotations": Export("annotations.json", write_annotations),
    "results": Export("results.json", write_results),
    "png": Export("png", write_id_maps),
    "masks": Export("masks", write_masks),
    "coco": Export("coco.json", write_coco),
    "mot": Export("mot.txt", write_mot),
    "mots": Export("mots", write_mots),
    "csv": Export("objects.csv", write_csv),
    "crops": Export("crops", write_crops, needs_frames=True),
}
ALWAYS = ("annotations", "results")
OPTIONAL = tuple(name for name in EXPORTS if name not in ALWAYS)


def check_exports(names: Iterable[str]) -> tuple[str, ...]:
    """The names of optional formats, without duplicates, in the order of the table.

    Raises:
        UserError: if there is no such format.
    """
    asked = set(names)
    unknown = sorted(asked - set(OPTIONAL))
    if unknown:
        raise UserError(f"--save: no format '{unknown[0]}'; the formats are {', '.join(OPTIONAL)}")
    return tuple(name for name in OPTIONAL if name in asked)


def write_exports(folder: Path, recording: Recording, names: Iterable[str]) -> list[Path]:
    """Writes formats into a folder, one after another, and returns the paths."""
    paths = []
    for name in names:
        export = EXPORTS[name]
        export.write(folder / export.file, recording)
        paths.append(folder / export.file)
    return paths
