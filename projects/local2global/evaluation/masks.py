"""The masks of a whole file as one table: where each stands in the text, its size, its pixels.

A file's masks are found by pattern and never become Python objects: what a JSON parser sees of a list of masks is the
list's number.  Lists that are not written as usual go through the parser, and masks that come as objects are
written into a text of their own, so that one table and one code serve files and memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .kernels import measure, scan

Array = NDArray[Any]
Place = Callable[[int], str]  # the words for the frame in which a fault stands

_LIST = re.compile(rb'(?<!\\)"segmentations"\s*:\s*(?=\S)')
_ABSENT = (-1, -1, 0, 0)
_ROOM = 1 << 14  # rows, doubled as needed
_HEAD = 256  # bytes by which lists that may be alike are found


@dataclass(frozen=True)
class Masks:
    """The masks of a file.

    Attributes:
        text: (bytes,) uint8.
        rows: (n, 4) int64 of `kernels`: one mask or missing mask each.
        facts: (n, 4) int64 of `kernels.measure`.
    """

    text: Array
    rows: Array
    facts: Array


def _no_rows() -> Array:
    return np.zeros((0, 4), dtype=np.int64)


@dataclass(frozen=True)
class Document:
    """A JSON file whose lists of masks are still text.

    Attributes:
        content: what the parser makes of it, a list of masks being its number.
        text: the file's bytes.
        rows: (n, 4) int64 the masks' rows.
        facts: (n, 4) int64 of `kernels.measure`.
        spans: the first row of each list and the one behind its last; lists that are alike share theirs.
    """

    content: Any
    text: bytes = b""
    rows: Array = field(default_factory=_no_rows)
    facts: Array = field(default_factory=_no_rows)
    spans: Sequence[tuple[int, int]] = ()


def _read(path: Path) -> bytes:
    """A file's bytes; of a zip, as the servers take it, those of its `results.json`."""
    try:
        with path.open("rb", buffering=0) as file:
            if file.read(4) == b"PK\x03\x04":
                with ZipFile(path) as bundle:
                    return bundle.read("results.json")
            # Not mapped: a file that is cut while it is read would take the process with it.
            file.seek(0)
            text = file.read()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: a folder; name the JSON file in it") from error
    except (KeyError, BadZipFile) as error:
        raise UserError(f"{path}: a zip without a results.json at its top") from error
    if not text:
        raise UserError(f"{path}: the file is empty")
    return text


class _Scanner:
    """Gathers the rows of a text's lists of masks, in tables that grow."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.bytes = buffer(text)
        self.rows, self.facts = (np.empty((_ROOM, 4), dtype=np.int64) for _ in range(2))
        self.count = 0
        self.spans: list[tuple[int, int]] = []
        self._known: dict[bytes, tuple[int, int, int]] = {}  # by its head the place of a list and its number

    def read(self, at: int) -> int:
        """Adds the list whose first item begins at `at`; the position behind it, -1 if unusual."""
        # Predictions of one slot under several classes have the same masks: they are read and kept once.
        head = self.text[at : at + _HEAD]
        if head in self._known:
            begin, end, number = self._known[head]
            if self.text.startswith(self.text[begin:end], at):
                self.spans.append(self.spans[number])
                return at + end - begin
        while True:
            stop, behind = scan(self.bytes, at, self.rows, self.facts, self.count)
            if behind != -2:
                break
            self.rows, self.facts = (
                np.concatenate([table, np.empty_like(table)]) for table in (self.rows, self.facts)
            )
        if behind >= 0:
            self._known[head] = at, int(behind), len(self.spans)
            self.spans.append((self.count, stop))
            self.count = stop
        return int(behind)


def read_document(path: str | Path) -> Document:
    """Reads a JSON file but for its masks.

    Raises:
        UserError: there is no such file, or it is not JSON.
    """
    path = Path(path)
    text = _read(path)
    lists = _Scanner(text)
    parts: list[bytes] = []
    done = 0
    found = _LIST.search(text)
    while found is not None:
        at = found.end()
        if text[at] != 91:
            # A number here must stand for a list and nothing else: this file is the parser's.
            lists, parts, done = _Scanner(text), [], 0
            break
        behind = lists.read(at + 1)
        if behind >= 0:
            parts += [text[done:at], str(len(lists.spans) - 1).encode()]
            done = behind
        found = _LIST.search(text, max(behind, at))
    parts.append(text[done:])
    try:
        rows, facts = (table[: lists.count] for table in (lists.rows, lists.facts))
        return Document(json.loads(b"".join(parts)), text, rows, facts, lists.spans)
    except ValueError:
        pass
    try:
        # A place that looks like masks and is none, or a file that is no JSON: the parser knows, and says where.
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
        self._added: list[tuple[int, int, int, int]] = []
        self._repaired: dict[int, tuple[int, int, int, int]] = {}
        self._written: list[bytes] = []
        self._end = len(document.text)
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
            begin = len(self.document.rows) + len(self._added)
            for t, mask in enumerate(segmentations):
                try:
                    self._added.append(self._append(mask, size) if mask else _ABSENT)
                except (KeyError, TypeError, ValueError, OverflowError) as error:
                    raise complaint(
                        place(t), f"no {error}" if isinstance(error, KeyError) else error
                    ) from error
            span = self._known[id(segmentations)] = (begin, begin + len(segmentations))
        return span

    def _append(self, mask: Any, size: tuple[int, int] | None) -> tuple[int, int, int, int]:
        if isinstance(mask, list) and size is not None:
            mask = _fill(mask, size)
        height, width = (_whole(edge) for edge in mask["size"])
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
        return start, self._end - 1, height, width

    def finish(self, spans: Iterable[tuple[int, int]], place: Callable[[int, int], str]) -> Masks:
        """The table, every mask of the given tracks checked.

        Args:
            spans: those that `add` gave.
            place: names a track, by its position in `spans`, and a frame.

        Raises:
            UserError: a mask is malformed.
        """
        masks = self._table()
        bad = set(np.flatnonzero(masks.facts[:, 0] < 0).tolist())
        for index, (first, stop) in enumerate(spans if bad else ()):
            for row in sorted(bad.intersection(range(first, stop))):
                self._repair(masks.rows[row].tolist(), row, place(index, row - first))
                bad.discard(row)
        return self._table() if self._repaired else masks

    def _table(self) -> Masks:
        text, rows, facts = buffer(self.document.text), self.document.rows, self.document.facts
        if self._added or self._repaired:
            text = buffer(b"".join([self.document.text, *self._written]))
            rows = np.concatenate([rows, np.array(self._added, dtype=np.int64).reshape(-1, 4)])
            fresh = np.array([*self._repaired, *range(len(facts), len(rows))], dtype=np.int64)
            for index, row in self._repaired.items():
                rows[index] = row
            facts = np.concatenate([facts, np.zeros((len(rows) - len(facts), 4), dtype=np.int64)])
            facts[fresh] = measure(text, rows[fresh])
        return Masks(text, rows, facts)

    def _repair(self, row: Sequence[int], index: int, where: str) -> None:
        """Reads once more, as a JSON parser would, a mask that is malformed at first sight: escapes are rare."""
        start, stop, height, width = row
        try:
            if start > len(self.document.text):
                text = b"".join(self._written)
                piece = text[start - 1 - len(self.document.text) : stop + 1 - len(self.document.text)]
            else:
                piece = self.document.text[start - 1 : stop + 1]
            counts = json.loads(piece)
            runs = rle_runs(counts)
            if runs.sum() != height * width:
                raise ValueError(f"its runs cover {runs.sum()} pixels, its size is {height} x {width}")
            self._repaired[index] = self._append({"size": [height, width], "counts": counts}, None)
        except (TypeError, ValueError, OverflowError) as error:
            raise complaint(where, error) from error


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
