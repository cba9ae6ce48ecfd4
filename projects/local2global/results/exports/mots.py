"""MOTS PNG, which CVAT imports and `l2g data convert mots` reads: 16-bit maps of class * 1000 + instance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import UserError
from ...files import atomic_folder
from ..record import Recording
from .images import label_map, save_png

_IGNORED = 10  # MOTS: 10000 marks pixels that are excluded from scoring
_MAX_CLASSES, _MAX_INSTANCE = 64, 999  # 65 * 1000 + 999 needs more than 16 bits


def write_mots(path: Path, recording: Recording) -> None:
    """Writes `<video>/instances/<frame>.png` and `<video>/instances/labels.txt`, the class names by number.

    The classes of the objects are numbered from 1, without 10, whose line is `ignored`.  Instance = slot + 1.  Where
    masks overlap, the object with the higher score is in front.

    Raises:
        UserError: if the objects have more classes, or higher ids, than 16 bits can hold.
    """
    tracks = recording.tracks.tracks
    used = {track.category_id for track in tracks.values()}
    names = [
        " ".join(category["name"].split()) for category in recording.categories if category["id"] in used
    ]
    ids = [category["id"] for category in recording.categories if category["id"] in used]
    if len(ids) >= _IGNORED:
        names.insert(_IGNORED - 1, "ignored")
        ids.insert(_IGNORED - 1, None)
    numbers = {category: k for k, category in enumerate(ids, start=1)}
    if len(ids) > _MAX_CLASSES or max(tracks, default=0) + 1 > _MAX_INSTANCE:
        problem = f"MOTS holds {_MAX_CLASSES - 1} classes and ids up to {_MAX_INSTANCE - 1}"
        raise UserError(f"{path}: {problem}; select classes with --classes")
    values = {i: numbers[track.category_id] * 1000 + i + 1 for i, track in tracks.items()}
    size = (recording.video["height"], recording.video["width"])
    with atomic_folder(path) as folder:
        maps = folder / recording.video["name"] / "instances"
        maps.mkdir(parents=True)
        (maps / "labels.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        for stem, line in zip(recording.stems, recording.lines(), strict=True):
            labels = label_map(line["objects"], values, size, np.uint16)
            save_png(Image.fromarray(labels), maps / f"{stem}.png")
