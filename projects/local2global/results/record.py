"""The record of a stream: `frames.jsonl`, one JSON line per frame, written while the stream runs.

A line is {"index": t, "time": seconds, "objects": [...]}; an object is {"id": slot, "category_id", "score" in [0, 1],
"bbox": [x, y, width, height] in pixels, "segmentation": compressed COCO RLE}.  There is no header.  If the process is
killed, the file is valid up to its last complete line.  All other output files are made from it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import tempfile
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from ..errors import UserError
from ..files import locked_folder, require_space
from ..structures import FrameResult
from .masks import encode_columns

MAX_SLOTS = (1 << 16) - 1  # id + 1 is stored in 16-bit images


class RecordWriter:
    """Context manager that appends the results of a stream to `frames.jsonl`.

    Args:
        path: the file.
        classes: {id, name} of every class, indexed by label.
        keep: number of frames of an existing file that are kept; later ones are deleted.
        copy: a file to which each new line is written too.

    Attributes:
        count: number of frames in the file.

    Raises:
        UserError: if another process writes to the folder, or the file has fewer frames than `keep`.
    """

    def __init__(
        self, path: Path, classes: Sequence[Mapping[str, Any]], keep: int = 0, copy: BinaryIO | None = None
    ) -> None:
        """Opens the file and locks its folder."""
        self.path = path
        self.count = keep
        self._copy = copy
        self._category_ids = [entry["id"] for entry in classes]
        self._stack = ExitStack()
        self._stack.enter_context(locked_folder(path.parent, "--output"))
        try:
            self._file = self._stack.enter_context(path.open("r+b" if keep else "wb"))
            for number in range(keep):
                if not self._file.readline().endswith(b"\n"):
                    raise UserError(f"{path}: {number} frames, but {keep} were done; run without --resume")
            self._file.seek(self._file.tell())
            self._file.truncate()
        except BaseException:
            self._stack.close()
            raise

    def append(self, result: FrameResult, time: float) -> FrameResult:
        """Writes the line of the next frame and flushes it.

        Args:
            result: the objects of the frame.
            time: time stamp of the frame in seconds.

        Returns:
            the result as `read_results` reads it: with rounded scores and the boxes of the masks.

        Raises:
            UserError: if the disk has no room for this line, the files made from the record, and the copy of the video
                that is made at its end.
        """
        size = list(result.masks.shape[1:])
        counts = encode_columns(result.masks.cpu().transpose(1, 2).contiguous())
        rles = [{"size": size, "counts": text} for text in counts]
        fields = zip(result.ids.tolist(), result.labels.tolist(), result.scores.tolist(), rles, strict=True)
        objects = [
            {
                "id": identity,
                "category_id": self._category_ids[label],
                "score": round(score, 6),
                "bbox": coco_mask.toBbox(rle).tolist(),
                "segmentation": rle,
            }
            for identity, label, score, rle in fields
        ]
        content = {"index": self.count, "time": round(time, 6), "objects": objects}
        line = json.dumps(content).encode("ascii") + b"\n"
        folder = self.path.parent
        videos = sum(file.stat().st_size for file in folder.glob("*.mp4"))
        # annotations.json and results.json repeat the masks, and so does a temporary file while they are written.
        require_space(folder, len(line) + 3 * self._file.tell() + videos, f"frame {self.count}")
        self._file.write(line)
        self._file.flush()
        self.count += 1
        if self._copy is not None:
            self._copy.write(line)
            self._copy.flush()
        scores = torch.tensor([entry["score"] for entry in objects], dtype=torch.float32)
        boxes = _boxes([entry["bbox"] for entry in objects], result.masks.shape[1:])
        return dataclasses.replace(result, scores=scores, boxes=boxes)

    def __enter__(self) -> RecordWriter:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the file; deletes it if no frame was written."""
        if self.count == 0:
            self.path.unlink(missing_ok=True)
        self._stack.close()


def read_record(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the frames of a record; an incomplete last line is dropped.

    Raises:
        UserError: if a complete line is not valid.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                frame = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}:{number}: invalid frame record ({error})") from error
            if not _is_frame(frame):
                raise UserError(f"{path}:{number}: invalid frame record: its objects are incomplete")
            yield frame


def read_results(
    path: Path, classes: Sequence[Mapping[str, Any]], size: tuple[int, int], count: int
) -> Iterator[FrameResult]:
    """The results of the first frames of a record; boxes are those of the masks.

    Args:
        path: the record.
        classes: {id, name} of every class, indexed by label.
        size: (height, width) of the masks.
        count: number of frames.

    Raises:
        UserError: if a line is invalid, or names another class or another size.
    """
    labels = {entry["id"]: label for label, entry in enumerate(classes)}
    height, width = size
    for index, frame in enumerate(itertools.islice(read_record(path), count)):
        objects = frame["objects"]
        if any(
            entry["category_id"] not in labels or entry["segmentation"]["size"] != [height, width]
            for entry in objects
        ):
            raise UserError(f"{path}:{index + 1}: classes or masks of another video")
        rles = [entry["segmentation"] for entry in objects]
        masks = coco_mask.decode(rles) if rles else np.zeros((height, width, 0), np.uint8)
        yield FrameResult(
            index,
            torch.tensor([entry["id"] for entry in objects], dtype=torch.int64),
            torch.tensor([labels[entry["category_id"]] for entry in objects], dtype=torch.int64),
            torch.tensor([entry["score"] for entry in objects], dtype=torch.float32),
            torch.from_numpy(masks.transpose(2, 0, 1)).bool(),
            _boxes([entry["bbox"] for entry in objects], size),
        )


def _boxes(boxes: Sequence[Sequence[float]], size: Sequence[int]) -> Tensor:
    """(n, 4) boxes (cx, cy, w, h) in [0, 1] of [x, y, w, h] in pixels."""
    height, width = size
    pixels = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    centred = torch.cat([pixels[:, :2] + pixels[:, 2:] / 2, pixels[:, 2:]], dim=1)
    return centred / torch.tensor([width, height, width, height])


def _is_frame(frame: Any) -> bool:
    return (
        isinstance(frame, dict)
        and _is_number(frame.get("time"))
        and isinstance(frame.get("objects"), list)
        and all(map(_is_object, frame["objects"]))
    )


def _is_object(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    mask = entry.get("segmentation")
    return (
        all(type(entry.get(key)) is int for key in ("id", "category_id"))
        and 0 <= entry["id"] < MAX_SLOTS
        and _is_number(entry.get("score"))
        and isinstance(entry.get("bbox"), list)
        and len(entry["bbox"]) == 4
        and all(map(_is_number, entry["bbox"]))
        and isinstance(mask, dict)
        and _is_size(mask.get("size"))
        and isinstance(mask.get("counts"), str)
        # pycocotools reads beyond the end of counts whose last run has no end.
        and re.fullmatch("[0-o]*[0-O]", mask["counts"]) is not None
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 1e15


def _is_size(size: Any) -> bool:
    return isinstance(size, list) and len(size) == 2 and all(type(n) is int and 0 < n < 1 << 15 for n in size)


@dataclass
class RecordedTrack:
    """One object of a record.

    Attributes:
        id: slot.
        category_id: class on the last frame, which is the class of the highest mean score over the video.
        frames: the frames on which the object was reported.
        scores: its score on each of these frames.
    """

    id: int
    category_id: int = 0
    frames: array[int] = field(default_factory=lambda: array("I"))
    scores: array[float] = field(default_factory=lambda: array("d"))
    _offsets: array[int] = field(default_factory=lambda: array("Q"), repr=False)

    def score(self, length: int) -> float:
        """Video score: mean of the best quarter of a video's frames; a frame without the object counts as 0."""
        best = max(1, length // 4)
        return sum(sorted(self.scores, reverse=True)[:best]) / best


class RecordedTracks:
    """Context manager that gives access to a record by object; masks stay in a temporary file.

    Args:
        path: the record.

    Attributes:
        length: number of frames.
        times: time stamp of every frame in seconds.
        tracks: the objects by slot, in order of appearance.
    """

    def __init__(self, path: Path) -> None:
        """Reads the record once."""
        self.path = path
        self.length = 0
        self.times = array("d")
        self.tracks: dict[int, RecordedTrack] = {}
        self._file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 - closed by `__exit__`
        for frame in read_record(path):
            for entry in frame["objects"]:
                track = self.tracks.setdefault(entry["id"], RecordedTrack(entry["id"]))
                track.category_id = entry["category_id"]
                track.frames.append(self.length)
                track.scores.append(entry["score"])
                track._offsets.append(self._file.tell())
                self._file.write(json.dumps(entry).encode("ascii") + b"\n")
            self.times.append(frame["time"])
            self.length += 1

    def objects(self, track: RecordedTrack) -> Iterator[dict[str, Any] | None]:
        """Yields the object on every frame of the video, None where it was not reported."""
        t = 0
        for frame, offset in zip(track.frames, track._offsets, strict=True):
            for _ in range(t, frame):
                yield None
            self._file.seek(offset)
            yield json.loads(self._file.readline())
            t = frame + 1
        for _ in range(t, self.length):
            yield None

    def __enter__(self) -> RecordedTracks:
        """The tracks themselves."""
        return self

    def __exit__(self, *_: object) -> None:
        """Deletes the temporary file."""
        self._file.close()


@dataclass(frozen=True)
class Recording:
    """A record and the description of its video: the input of every export.

    Attributes:
        tracks: the objects of the record.
        video: name, width, height, fps, and file_names or None.
        categories: {id, name} of every class.
        frames: returns an iterator of the (3, H, W) uint8 RGB frames of the video, or None if they cannot be read
            again.
    """

    tracks: RecordedTracks
    video: Mapping[str, Any]
    categories: Sequence[Mapping[str, Any]]
    frames: Callable[[], Iterator[Tensor]] | None = None

    @property
    def file_names(self) -> list[str]:
        """One image name per frame, with its folder: the source's, or `<name>/00000.jpg` and so on."""
        length = self.tracks.length
        names = self.video.get("file_names") or [f"{self.video['name']}/{t:05d}.jpg" for t in range(length)]
        return list(names[:length])

    @property
    def stems(self) -> list[str]:
        """File names for one file per frame: those of the source's images if they are distinct, else numbers."""
        stems = [Path(name).stem for name in self.file_names]
        return stems if len(set(stems)) == len(stems) else [f"{t:05d}" for t in range(len(stems))]

    def lines(self) -> Iterator[dict[str, Any]]:
        """The frames of the record; the category of an object is that of its track.

        Raises:
            UserError: if a mask does not have the size of the video.
        """
        size = [self.video["height"], self.video["width"]]
        for t, line in enumerate(read_record(self.tracks.path)):
            for entry in line["objects"]:
                if entry["segmentation"]["size"] != size:
                    other = entry["segmentation"]["size"]
                    raise UserError(
                        f"{self.tracks.path}:{t + 1}: a mask of {other}, but the video has {size}"
                    )
                entry["category_id"] = self.tracks.tracks[entry["id"]].category_id
            yield line
