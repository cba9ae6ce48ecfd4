"""The masks of a whole file as one table: their places, their sizes, their pixels.

A file's masks are found by pattern and never become Python objects: what a JSON parser sees of a list of masks is the
list's number.  Lists that are not written as usual go through the parser, and masks that come as objects are
written into a text of their own, so that one table and one code serve files and memory.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import RawIOBase
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .kernels import MOST_PIXELS, decode, scan

Array = NDArray[Any]
Place = Callable[[int], str]  # the words for the frame in which a fault stands

_LIST = re.compile(rb'(?<!\\)"segmentations"\s*:\s*(?=\S)')
_ABSENT = (-1, 0, 0)
_ROOM = 1 << 14  # rows, doubled as needed
_HEAD = 256  # bytes by which lists that may be alike are found


def _table(rows: int, columns: int) -> Array:
    return np.empty((rows, columns), dtype=np.int64)


@dataclass(frozen=True)
class Masks:
    """The masks of a file.

    Attributes:
        places: (places,) int32 of `kernels`.
        rows: (n, 4) int64 of `kernels`: one mask or missing mask each.
        facts: (n, 5) int64 of `kernels.decode`.
    """

    places: Array = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    rows: Array = field(default_factory=lambda: _table(0, 4))
    facts: Array = field(default_factory=lambda: _table(0, 5))


@dataclass(frozen=True)
class Document:
    """A JSON file and its masks.

    Attributes:
        content: what the parser makes of it, a list of masks being its number.
        masks: those of all lists that are numbers.
        spans: the first row of each list and the one behind its last; lists that are alike share theirs.
    """

    content: Any
    masks: Masks = field(default_factory=Masks)
    spans: Sequence[tuple[int, int]] = ()


def _read(path: Path) -> Array:
    """A file's bytes, (bytes,) uint8; of a zip, as the servers take it, those of its `results.json`."""
    try:
        with path.open("rb", buffering=0) as file:
            if file.read(4) == b"PK\x03\x04":
                with ZipFile(path) as bundle:
                    return buffer(bundle.read("results.json"))
            # Not mapped: a file that is cut while it is read would take the process with it.
            text = np.empty(file.seek(0, os.SEEK_END), dtype=np.uint8)
            file.seek(0)
            text = text[: _fill_from(file, text)]
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: a folder; name the JSON file in it") from error
    except (KeyError, BadZipFile) as error:
        raise UserError(f"{path}: a zip without a results.json at its top") from error
    if not len(text):
        raise UserError(f"{path}: the file is empty")
    text.flags.writeable = False
    return text


def _fill_from(file: RawIOBase, room: Array) -> int:
    """Reads until the room is full or the file at its end; the number of bytes."""
    done = 0
    while done < len(room):
        count = file.readinto(memoryview(room)[done:])
        if not count:
            break
        done += count
    return done


class _Scanner:
    """Gathers the masks of a text's lists.

    Args:
        text: (bytes,) uint8.
    """

    def __init__(self, text: Array) -> None:
        self.text = text
        # A place takes a byte of text or more, and memory that is never touched is never taken.
        self._places = np.empty(len(text), dtype=np.int32)
        self._rows, self._facts = _table(_ROOM, 4), _table(_ROOM, 5)
        self._used = self._count = 0
        self.spans: list[tuple[int, int]] = []
        self._known: dict[bytes, tuple[int, int, int]] = {}  # by its head the place of a list and its number

    @property
    def masks(self) -> Masks:
        """Those found so far."""
        return Masks(self._places[: self._used], self._rows[: self._count], self._facts[: self._count])

    def read(self, at: int) -> int:
        """Adds the list whose first item begins at `at`; the position behind it, -1 if unusual."""
        # Predictions of one slot under several classes have the same masks: they are read and kept once.
        head = self.text[at : at + _HEAD].tobytes()
        if head in self._known:
            begin, end, number = self._known[head]
            if np.array_equal(self.text[begin:end], self.text[at : at + end - begin]):
                self.spans.append(self.spans[number])
                return at + end - begin
        while True:
            used, stop, behind = scan(
                self.text, at, self._places, self._used, self._rows, self._facts, self._count
            )
            if behind != -2:
                break
            self._rows, self._facts = (
                np.concatenate([table, np.empty_like(table)]) for table in (self._rows, self._facts)
            )
        if behind >= 0:
            self._known[head] = at, behind, len(self.spans)
            self.spans.append((self._count, stop))
            self._used, self._count = used, stop
        return int(behind)


def read_document(path: str | Path) -> Document:
    """Reads a JSON file but for its masks.

    Raises:
        UserError: there is no such file, or it is not JSON.
    """
    path = Path(path)
    text = _read(path)
    lists = _Scanner(text)
    view = memoryview(text)
    parts: list[memoryview | bytes] = []
    done = 0
    found = _LIST.search(view)
    while found is not None:
        at = found.end()
        if text[at] != 91:
            # A number here must stand for a list and nothing else: this file is the parser's.
            lists, parts, done = _Scanner(text), [], 0
            break
        behind = lists.read(at + 1)
        if behind >= 0:
            parts += [view[done:at], str(len(lists.spans) - 1).encode()]
            done = behind
        found = _LIST.search(view, max(behind, at))
    parts.append(view[done:])
    try:
        return Document(json.loads(b"".join(parts)), lists.masks, lists.spans)
    except ValueError:
        pass
    try:
        # A place that looks like masks and is none, or a file that is no JSON: the parser knows, and says where.
        return Document(json.loads(view.tobytes()))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error


class MaskReader:
    """Gathers the masks of entries, as a document or a program gives them, into one table.

    Args:
        document: where the entries come from.
    """

    def __init__(self, document: Document) -> None:
        self.document = document
        self._added: list[tuple[int, int, int]] = []  # where its counts begin, height, width
        self._written: list[bytes] = []
        self._end = 0
        self._known: dict[int, tuple[int, int]] = {}

    def add(self, segmentations: Any, place: Place, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """The first row of a track's masks and the one behind its last.

        Args:
            segmentations: the number of a list of the document, or one RLE, None or list of polygons per frame.
            place: names a frame for a complaint.
            size: (height, width) for polygons; None where they are not accepted.

        Raises:
            UserError: for something else.
        """
        if type(segmentations) is int and 0 <= segmentations < len(self.document.spans):
            return self.document.spans[segmentations]
        if not isinstance(segmentations, Sequence) or isinstance(segmentations, (str, bytes)):
            raise UserError(f"{place(-1)}: expected a list `segmentations`, one mask or null per frame")
        # Predictions of one slot under several classes share a list: its masks are written once.
        span = self._known.get(id(segmentations))
        if span is None:
            begin = len(self.document.masks.rows) + len(self._added)
            for t, mask in enumerate(segmentations):
                try:
                    self._added.append(self._append(mask, size) if mask else _ABSENT)
                except (KeyError, TypeError, ValueError, OverflowError) as error:
                    raise complaint(
                        place(t), f"no {error}" if isinstance(error, KeyError) else error
                    ) from error
            span = self._known[id(segmentations)] = (begin, begin + len(segmentations))
        return span

    def _append(self, mask: Any, size: tuple[int, int] | None) -> tuple[int, int, int]:
        if isinstance(mask, list) and size is not None:
            mask = _fill(mask, size)
        height, width = (_whole(edge) for edge in mask["size"])
        if not (0 <= height < MOST_PIXELS and 0 <= width < MOST_PIXELS):
            raise ValueError(f"a size of {height} x {width}")
        counts = mask["counts"]
        if isinstance(counts, bytes):
            counts = counts.decode("ascii")
        if isinstance(counts, str):
            written = ('"' + counts.replace("\\", "\\\\") + '"').encode("ascii")
        else:
            runs = [_whole(run) for run in counts]
            if min(runs, default=0) < 0:
                raise ValueError("a run is negative")
            written = ("[" + ",".join(map(str, runs)) + "]").encode("ascii")
        start = self._end + 1
        self._end += len(written)
        self._written.append(written)
        return start, height, width

    def finish(self, spans: Iterable[tuple[int, int]], place: Callable[[int, int], str]) -> Masks:
        """The table, every mask of the given tracks checked.

        Args:
            spans: those that `add` gave.
            place: names a track, by its position in `spans`, and a frame.

        Raises:
            UserError: a mask is malformed.
        """
        known = self.document.masks
        if not self._added:
            return known
        added = np.array(self._added, dtype=np.int64)
        text = buffer(b"".join(self._written))
        places = np.empty(len(text), dtype=np.int32)
        rows, facts = np.concatenate([_table(len(added), 2), added[:, 1:]], axis=1), _table(len(added), 5)
        places = places[: decode(text, added[:, 0], places, rows, facts)]
        bad = set((np.flatnonzero(facts[:, 0] < 0) + len(known.rows)).tolist())
        for index, (first, stop) in enumerate(spans if bad else ()):
            for row in sorted(bad.intersection(range(first, stop))):
                raise self._complaint(row - len(known.rows), place(index, row - first))
        rows[:, :2] += np.where(rows[:, :1] < 0, 0, len(known.places))
        return Masks(
            np.concatenate([known.places, places]),
            np.concatenate([known.rows, rows]),
            np.concatenate([known.facts, facts]),
        )

    def _complaint(self, index: int, where: str) -> UserError:
        """What is wrong with the mask that was added in this turn."""
        start, height, width = self._added[index]
        text = b"".join(self._written)
        counts, _ = json.JSONDecoder().raw_decode(text[start - 1 :].decode("ascii"))
        try:
            pixels = rle_runs(counts).sum()
        except (ValueError, OverflowError) as error:
            return complaint(where, error)
        if pixels != height * width:
            return complaint(where, f"its runs cover {pixels} pixels, its size is {height} x {width}")
        return complaint(where, f"{height} x {width} are more pixels than are looked at")


def buffer(text: bytes) -> Array:
    """The bytes as (bytes,) uint8, of one kind always: what is compiled depends on it."""
    found = np.frombuffer(text, dtype=np.uint8)
    found.flags.writeable = False
    return found


def complaint(where: str, reason: object) -> UserError:
    """What is said of a mask that cannot be read."""
    return UserError(f"{where}: malformed run-length mask: {reason}")


def _whole(number: Any) -> int:
    if isinstance(number, (bool, str)) or int(number) != number:
        raise ValueError(f"{number!r} is not a whole number")
    return int(number)


def _fill(polygons: Sequence[Any], size: tuple[int, int]) -> Mapping[str, Any]:
    """The mask of a list of polygons."""
    from pycocotools import mask as coco_mask

    mask: Mapping[str, Any] = coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
    return mask


def rle_runs(counts: str | bytes | Sequence[int]) -> Array:
    """The run lengths of a mask, background first.

    Args:
        counts: the compressed COCO string, or the run lengths themselves.

    Raises:
        ValueError: the string is not a COCO run-length string, or a run is negative.
    """
    if isinstance(counts, (str, bytes)):
        text = counts.encode("ascii") if isinstance(counts, str) else counts
        digits = np.frombuffer(text, np.uint8).astype(np.int64) - 48
        if not len(digits) or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
            raise ValueError("not a run-length string")
        # Little-endian groups of five bits, bit 32 says "more follows", bit 16 of the last group is the sign.
        ends = np.flatnonzero(digits < 32)
        starts = np.concatenate([[0], ends[:-1] + 1])
        lengths = ends - starts + 1
        if lengths.max() > 8:
            raise ValueError("a run of more than 40 bits")
        shifts = 5 * (np.arange(len(digits)) - np.repeat(starts, lengths))
        runs = np.add.reduceat((digits & 31) << shifts, starts)
        runs -= np.where(digits[ends] & 16, np.left_shift(1, 5 * lengths), 0)
        # From the fourth on, a run is written as its difference to the one before the last.
        runs[1::2] = np.cumsum(runs[1::2])
        runs[2::2] = np.cumsum(runs[2::2])
    else:
        runs = np.asarray([_whole(run) for run in counts], dtype=np.int64)
    if runs.ndim != 1 or not len(runs) or runs.min() < 0:
        raise ValueError("a run is negative")
    return runs
