"""A run as the pages show it: the objects of a record, or of a truth file, by identity."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ...limits import check_pixels
from ...results.record import read_record
from ..result_folder import read_about
from .outlines import cell_size, outline_bytes

#: An identity has at most one outline per this many frames; between outlines, the box moves the nearest outline.
OUTLINE_PERIOD = 5
#: Bytes of an outline in the page.  In base64 that is 60 characters.
OUTLINE_BYTES = 45
#: Bytes that all outlines of a page may use beyond that, and the limit of a single outline.
SPARE_BYTES, MAX_OUTLINE_BYTES = 2_000_000, 600

Frame = dict[str, Any]


@dataclass
class Identity:
    """One identity of a run.

    Attributes:
        id: slot, or id of the true object.
        frames: the frames on which it was reported.
        scores: in [0, 1], one per entry of `frames`.
        boxes: left, top, right, bottom in pixels, four numbers per entry of `frames`.
        classes: (frame, category id) of the first frame and of every frame on which the class changed.
        outlines: position in `frames` and encoded outline.
        best: position in `frames` of the highest score.
        best_mask: the compressed RLE there.
    """

    id: int
    frames: array[int] = field(default_factory=lambda: array("I"))
    scores: array[float] = field(default_factory=lambda: array("f"))
    boxes: array[float] = field(default_factory=lambda: array("f"))
    classes: list[tuple[int, int]] = field(default_factory=list)
    outlines: list[tuple[int, bytes]] = field(default_factory=list)
    best: int = 0
    best_mask: dict[str, Any] | None = None

    @property
    def category_id(self) -> int:
        """Class on the last frame."""
        return self.classes[-1][1]

    def spans(self) -> list[tuple[int, int]]:
        """Intervals [first, last] of consecutive frames."""
        frames = np.frombuffer(self.frames, np.uint32).astype(np.int64)
        breaks = np.flatnonzero(np.diff(frames) > 1)
        starts, ends = np.append(frames[0], frames[breaks + 1]), np.append(frames[breaks], frames[-1])
        return list(zip(starts.tolist(), ends.tolist(), strict=True))


@dataclass
class Run:
    """A video's objects.

    Attributes:
        name: short name of the run.
        video: name of the video.
        size: (height, width) of the frames.
        fps: frames per second.
        times: time stamp of every frame in seconds.
        classes: name by category id.
        frames: iterates over the frames in the form of `frames.jsonl`.
        details: label and text of facts about the run.
        source: path of the video and `Source.identity` of its frames, if the record names them.
        fingerprint: hash of the model's weights, if the record names it.
        identities: by id, in order of appearance.
    """

    name: str
    video: str
    size: tuple[int, int]
    fps: float
    classes: dict[int, str]
    frames: Callable[[], Iterator[Frame]]
    details: list[tuple[str, str]] = field(default_factory=list)
    source: tuple[str, str] | None = None
    fingerprint: str | None = None
    times: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    identities: dict[int, Identity] = field(default_factory=dict)

    def class_name(self, category_id: int) -> str:
        """Name of a class; its number if the record does not name it."""
        return self.classes.get(category_id, f"class {category_id}")


def read_run(folder: Path, name: str | None = None) -> Run:
    """Opens the output folder of `l2g predict`; `load` reads its objects.

    Raises:
        UserError: if it holds no record.
    """
    record = folder / "frames.jsonl"
    if not record.is_file():
        raise UserError(f"{folder}: no frames.jsonl in this folder; expected an output folder of l2g predict")
    about = read_about(folder)
    video = about["video"]
    try:
        check_pixels(video["width"], video["height"])
    except ValueError as error:
        raise UserError(f"{folder / 'stream.json'}: {error}") from error
    return Run(
        name=name or folder.resolve().name,
        video=video["name"],
        size=(video["height"], video["width"]),
        fps=_rate(video.get("fps")),
        classes={entry["id"]: entry["name"] for entry in about["categories"]},
        frames=lambda: read_record(record),
        details=_details(about.get("made")),
        source=_source(about),
        fingerprint=_fingerprint(about.get("run")),
    )


def _rate(fps: Any) -> float:
    return float(fps) if isinstance(fps, (int, float)) and 0 < fps <= 1000 else 10.0


def _details(about: Any) -> list[tuple[str, str]]:
    if not isinstance(about, dict):
        return []
    return [
        (str(key), value if isinstance(value, str) else json.dumps(value)) for key, value in about.items()
    ]


def _source(about: Mapping[str, Any]) -> tuple[str, str] | None:
    made, run = about.get("made"), about.get("run")
    if not (isinstance(made, dict) and isinstance(run, dict)):
        return None
    path, identity = made.get("video"), run.get("source")
    return (path, identity) if isinstance(path, str) and isinstance(identity, str) else None


def _fingerprint(run: Any) -> str | None:
    value = run.get("model") if isinstance(run, dict) else None
    return value if isinstance(value, str) else None


def load(run: Run) -> Run:
    """Reads the objects of a run; one outline per identity is taken every `OUTLINE_PERIOD` frames.

    Raises:
        UserError: if the record is invalid or has no frame.
    """
    times: list[float] = []
    pending: list[tuple[Identity, int, Any]] = []
    for t, frame in enumerate(run.frames()):
        times.append(_time(frame, t, run))
        for entry in frame["objects"]:
            identity = run.identities.setdefault(entry["id"], Identity(entry["id"]))
            _append(run, identity, t, entry)
            position = len(identity.frames) - 1
            last = identity.outlines[-1][0] if identity.outlines else None
            if last is None or t - identity.frames[last] >= OUTLINE_PERIOD:
                identity.outlines.append((position, b""))
                pending.append((identity, len(identity.outlines) - 1, entry["segmentation"]))
    if not times:
        raise UserError(f"{run.name}: the record has no complete frame")
    run.times = np.maximum.accumulate(np.array(times))
    limit = min(MAX_OUTLINE_BYTES, OUTLINE_BYTES + SPARE_BYTES // max(1, len(pending)))
    cell = cell_size(run.size)
    for identity, index, rle in pending:
        position = identity.outlines[index][0]
        try:
            identity.outlines[index] = (position, outline_bytes(rle, cell, limit))
        except ValueError as error:  # pycocotools: the runs cover more pixels than the frame has
            t = identity.frames[position]
            raise UserError(f"{run.name}, frame {t}: malformed mask of identity {identity.id}") from error
    return run


def _time(frame: Frame, t: int, run: Run) -> float:
    time = frame.get("time")
    return float(time) if isinstance(time, (int, float)) and 0 <= time < 1e9 else t / run.fps


def _append(run: Run, identity: Identity, t: int, entry: dict[str, Any]) -> None:
    if identity.frames and identity.frames[-1] == t:
        raise UserError(f"{run.name}, frame {t}: identity {identity.id} is listed twice")
    if entry["segmentation"]["size"] != list(run.size):
        height, width = run.size
        raise UserError(f"{run.name}, frame {t}: a mask's size differs from the video's, {width}x{height}")
    left, top, wide, high = entry["bbox"]
    if not identity.classes or identity.classes[-1][1] != entry["category_id"]:
        identity.classes.append((t, entry["category_id"]))
    if not identity.frames or entry["score"] > identity.scores[identity.best]:
        identity.best, identity.best_mask = len(identity.frames), entry["segmentation"]
    identity.frames.append(t)
    identity.scores.append(entry["score"])
    identity.boxes.extend((left, top, left + wide, top + high))


def common_classes(runs: Sequence[Run]) -> dict[int, str]:
    """Names of the classes of all runs; the first run that names a class decides."""
    return {key: name for run in reversed(runs) for key, name in run.classes.items()}
