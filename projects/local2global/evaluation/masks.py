"""The masks of a whole file as one table: their runs, their sizes, their pixels.

A file's masks are found by pattern and never become Python objects: what a JSON parser sees of a list of masks is the
list's number.  The text itself is read piece by piece and let go.  Lists that are not written as usual go through the
parser, and masks that come as objects are written into a text of their own, so that one table and one code serve
files and memory.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .kernels import MOST_PIXELS, ROOM, buffer, decode, scan

Array = NDArray[Any]
Place = Callable[[int], str]  # the words for the frame in which a fault stands

_KEY = b'"segmentations"'
_LIST = re.compile(rb'(?<!\\)"segmentations"\s*:\s*(?=\S)')
_ABSENT = (-1, 0, 0)
_PIECE = 1 << 21  # bytes, doubled for lists that are longer
_ROOM = 1 << 14  # rows, doubled as needed
_HEAD = 256  # bytes by which lists that may be alike are found


def _table(rows: int, columns: int) -> Array:
    return np.empty((rows, columns), dtype=np.int64)


def _no_runs() -> Array:
    return np.empty(0, dtype=np.int8)


@dataclass(frozen=True)
class Masks:
    """The masks of a file.

    Attributes:
        runs: (bytes,) int8 of `kernels`.
        rows: (n, 4) int64 of `kernels`: one mask or missing mask each.
        facts: (n, 5) int64 of `kernels.decode`.
    """

    runs: Array = field(default_factory=_no_runs)
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


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A file, or of a zip, as the servers take it, its `results.json`; and the number of its bytes."""
    try:
        with path.open("rb", buffering=0) as file:
            if file.read(4) == b"PK\x03\x04":
                with ZipFile(path) as bundle, bundle.open("results.json") as member:
                    yield cast("BinaryIO", member), bundle.getinfo("results.json").file_size
            else:
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                yield cast("BinaryIO", file), size
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: a folder; name the JSON file in it") from error
    except (KeyError, BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: a zip without a sound results.json at its top") from error


def _pieces(file: BinaryIO, length: int) -> Iterator[tuple[bytearray, int]]:
    """A file in pieces that each end before a list of masks, or where the file ends.

    Args:
        file: where it is read from.
        length: the bytes of a piece; more where a list is longer.

    Yields:
        a buffer, and how many bytes of it are the piece; both are good until the next one.
    """
    # Not mapped: a file that is cut while it is read would take the process with it.
    room, kept = bytearray(length), 0
    while True:
        filled = kept
        while filled < len(room):
            count = file.readinto(memoryview(room)[filled:])  # type: ignore[attr-defined]
            if not count:
                yield room, filled
                return
            filled += count
        # What stands before a key says whether it is one.
        cut = room.rfind(_KEY) - 1
        if cut > 0:
            yield room, cut
            kept = filled - cut
            room[:kept] = room[cut:]
        else:
            room, kept = room + bytes(len(room)), filled


class _Scanner:
    """Gathers the masks of the lists in a text.

    Args:
        length: the bytes of the text.
    """

    def __init__(self, length: int) -> None:
        # Memory that is never touched is never taken.
        self._runs = np.empty(ROOM * length, dtype=np.int8)
        self._rows, self._facts = _table(_ROOM, 4), _table(_ROOM, 5)
        self._used = self._count = 0
        self.spans: list[tuple[int, int]] = []

    @property
    def masks(self) -> Masks:
        """Those found so far."""
        return Masks(self._runs[: self._used], self._rows[: self._count], self._facts[: self._count])

    def read(self, piece: bytearray, stop: int) -> list[bytes | bytearray] | None:
        """Takes the next piece of the text, the first `stop` bytes of a buffer.

        Returns:
            what a parser is to see of it; None if it has a number where a list should be.
        """
        text = buffer(piece)[:stop]
        known: dict[bytes, tuple[int, int, int]] = {}  # by its head the place of a list and its number
        parts: list[bytes | bytearray] = []
        done = 0
        found = _LIST.search(piece, 0, stop)
        while found is not None:
            at = found.end()
            if piece[at] != 91:
                return None
            # Predictions of one slot under several classes have the same masks: they are read and kept once.
            head = bytes(piece[at : at + _HEAD])
            begin, end, number = known.get(head, (0, 0, 0))
            if end and piece.startswith(piece[begin:end], at, stop):
                behind = at + end - begin
                self.spans.append(self.spans[number])
            else:
                behind = self._list(text, at + 1)
                known[head] = at, max(behind, 0), len(self.spans) - 1
            if behind >= 0:
                parts += [piece[done:at], str(len(self.spans) - 1).encode()]
                done = behind
            found = _LIST.search(piece, max(behind, at), stop)
        parts.append(piece[done:stop])
        return parts

    def _list(self, text: Array, at: int) -> int:
        """Adds the list whose first item begins at `at`; the position behind it, -1 if unusual."""
        while True:
            used, count, behind = scan(text, at, self._runs, self._used, self._rows, self._facts, self._count)
            if behind == -2:
                self._rows, self._facts = _doubled(self._rows), _doubled(self._facts)
            else:
                break
        if behind >= 0:
            self.spans.append((self._count, count))
            self._used, self._count = used, count
        return int(behind)


def _doubled(table: Array) -> Array:
    return np.concatenate([table, np.empty_like(table)])


def read_document(path: str | Path) -> Document:
    """Reads a JSON file but for its masks.

    Raises:
        UserError: there is no such file, or it is not JSON.
    """
    path = Path(path)
    with _opened(path) as (file, length):
        if not length:
            raise UserError(f"{path}: the file is empty")
        lists = _Scanner(length)
        parts: list[bytes | bytearray] = []
        for piece, stop in _pieces(file, min(_PIECE, length + 1)):
            found = lists.read(piece, stop)
            if found is None:
                break
            parts += found
        else:
            with suppress(ValueError):
                return Document(json.loads(b"".join(parts)), lists.masks, lists.spans)
    # A number where a list of masks should be, a place that looks like masks and is none, or a file that is no JSON:
    # the parser knows, and says where.
    with _opened(path) as (file, _):
        text = file.read()
    try:
        return Document(json.loads(text))
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
        self._known: dict[int, tuple[Any, tuple[int, int]]] = {}  # a list that is kept keeps its id

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
        _, span = self._known.get(id(segmentations), (None, None))
        if span is None:
            begin = len(self.document.masks.rows) + len(self._added)
            for t, mask in enumerate(segmentations):
                try:
                    self._added.append(self._append(mask, size) if mask else _ABSENT)
                except (KeyError, TypeError, ValueError, OverflowError) as error:
                    raise complaint(
                        place(t), f"no {error}" if isinstance(error, KeyError) else error
                    ) from error
            span = begin, begin + len(segmentations)
            self._known[id(segmentations)] = segmentations, span
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
        runs = np.empty(ROOM * len(text), dtype=np.int8)
        rows, facts = np.concatenate([_table(len(added), 2), added[:, 1:]], axis=1), _table(len(added), 5)
        used = decode(text, added[:, 0].copy(), runs, rows, facts)
        bad = set((np.flatnonzero(facts[:, 0] < 0) + len(known.rows)).tolist())
        for index, (first, stop) in enumerate(spans if bad else ()):
            for row in sorted(bad.intersection(range(first, stop))):
                raise self._complaint(row - len(known.rows), place(index, row - first))
        rows[:, :2] += np.where(rows[:, :1] < 0, 0, len(known.runs))
        return Masks(
            np.concatenate([known.runs, runs[:used]]),
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
