"""The masks of a whole file as one table: where each stands in the text, its size, its pixels.

A file's masks are found by pattern and never become Python objects: what a JSON parser sees of a list of masks is the
list's number.  Lists that are not written as usual go through the parser, and masks that come as objects are
written into a text of their own, so that one table and one code serve files and memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .kernels import measure

Array = NDArray[Any]
Place = Callable[[int], str]  # the words for the frame in which a fault stands

_LIST = re.compile(rb'(?<!\\)"segmentations"\s*:\s*(?=\S)')
_SIZE = rb'"size"\s*:\s*\[\s*(\d{1,9})\s*,\s*(\d{1,9})\s*\]'
_COUNTS = rb'"counts"\s*:\s*(?:"([^"]*)"|\[([^\]]*)\])'
_ITEM = re.compile(
    rb"\s*(?:null|\{\s*(?:" + _SIZE + rb"\s*,\s*" + _COUNTS + rb"|" + _COUNTS + rb"\s*,\s*" + _SIZE
    + rb")\s*\})\s*([,\]])"
)  # fmt: skip
_ABSENT = (-1, -1, 0, 0)


@dataclass(frozen=True)
class Masks:
    """The masks of a file.

    Attributes:
        text: (bytes,) uint8.
        rows: (n, 4) int64 of `kernels`: one mask or missing mask each.
        facts: (n, 3) int64 of `kernels.measure`.
    """

    text: Array
    rows: Array
    facts: Array


@dataclass(frozen=True)
class Document:
    """A JSON file whose lists of masks are still text.

    Attributes:
        content: what the parser makes of it, a list of masks being its number.
        text: the file's bytes.
        rows: the masks' rows.
        spans: the first row of each list and the one behind its last.
    """

    content: Any
    text: bytes = b""
    rows: Sequence[tuple[int, int, int, int]] = ()
    spans: Sequence[tuple[int, int]] = ()


def _read(path: Path) -> bytes:
    """A file's bytes; of a zip, as the servers take it, those of its `results.json`."""
    try:
        with path.open("rb") as file:
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


def _list_rows(text: bytes, at: int, rows: list[tuple[int, int, int, int]]) -> int:
    """Appends the rows of the list whose first item begins at `at`; the position behind it, -1 if unusual."""
    match = _ITEM.match
    sizes: dict[bytes, tuple[int, int]] = {}  # a file has few
    while True:
        item = match(text, at)
        if item is None:
            return -1
        # The groups in turn: size, counts as string or list; counts, size, for the other order; what follows.
        _, h, w, s, u, s2, u2, h2, w2, mark = item.regs
        if h[0] < 0:
            h, w, s, u = h2, w2, s2, u2
        if h[0] < 0:
            rows.append(_ABSENT)
        else:
            start, stop = s if s[0] >= 0 else u
            size = text[h[0] : w[1]]
            edges = sizes.get(size)
            if edges is None:
                edges = sizes[size] = int(text[h[0] : h[1]]), int(text[w[0] : w[1]])
            rows.append((start, stop, *edges))
        at = mark[1]
        if text[mark[0]] == 93:  # ]
            return at


def read_document(path: str | Path) -> Document:
    """Reads a JSON file but for its masks.

    Raises:
        UserError: there is no such file, or it is not JSON.
    """
    path = Path(path)
    text = _read(path)
    rows: list[tuple[int, int, int, int]] = []
    spans: list[tuple[int, int]] = []
    parts: list[bytes] = []
    done = 0
    found = _LIST.search(text)
    while found is not None:
        at, before = found.end(), len(rows)
        if text[at] != 91:
            # A number here must stand for a list and nothing else: this file is the parser's.
            rows, spans, parts, done = [], [], [], 0
            break
        behind = _list_rows(text, at + 1, rows)
        if behind >= 0:
            parts += [text[done:at], str(len(spans)).encode()]
            spans.append((before, len(rows)))
            done = behind
        else:
            del rows[before:]
        found = _LIST.search(text, max(behind, at))
    parts.append(text[done:])
    try:
        return Document(json.loads(b"".join(parts)), text, rows, spans)
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
        self.rows: list[tuple[int, int, int, int]] = list(document.rows)
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
            begin = len(self.rows)
            for t, mask in enumerate(segmentations):
                try:
                    self.rows.append(self._append(mask, size) if mask else _ABSENT)
                except (KeyError, TypeError, ValueError, OverflowError) as error:
                    raise complaint(
                        place(t), f"no {error}" if isinstance(error, KeyError) else error
                    ) from error
            span = self._known[id(segmentations)] = (begin, len(self.rows))
        return span

    def _append(self, mask: Any, size: tuple[int, int] | None) -> tuple[int, int, int, int]:
        if isinstance(mask, list) and size is not None:
            mask = _fill(mask, size)
        height, width = (_whole(edge) for edge in mask["size"])
        counts = mask["counts"]
        if isinstance(counts, bytes):
            counts = counts.decode("ascii")
        if isinstance(counts, str):
            written = ('"' + counts.replace("\\", "\\\\")).encode("ascii")
        else:
            runs = [_whole(run) for run in counts]
            if min(runs, default=0) < 0:
                raise ValueError("a run is negative")
            written = ("[" + ",".join(map(str, runs))).encode("ascii")
        start = self._end + 1
        self._end += len(written)
        self._written.append(written)
        return start, self._end, height, width

    def finish(self, spans: Iterable[tuple[int, int]], place: Callable[[int, int], str]) -> Masks:
        """The table, every mask of the given tracks checked.

        Args:
            spans: those that `add` gave.
            place: names a track, by its position in `spans`, and a frame.

        Raises:
            UserError: a mask is malformed.
        """
        masks = self._table()
        wrong = np.flatnonzero(masks.facts[:, 0] < 0)
        if not len(wrong):
            return masks
        bad, repaired = set(wrong.tolist()), False
        for index, (first, stop) in enumerate(spans):
            for row in sorted(bad.intersection(range(first, stop))):
                self._repair(row, place(index, row - first))
                bad.discard(row)
                repaired = True
        return self._table() if repaired else masks

    def _table(self) -> Masks:
        text = np.frombuffer(self.document.text, dtype=np.uint8)
        if self._written:
            parts = b"".join(self._written)
            whole = np.concatenate([text, np.frombuffer(parts, dtype=np.uint8)]) if len(text) else parts
            text = np.frombuffer(whole, dtype=np.uint8)
        text.flags.writeable = False  # of one kind always: what is compiled depends on it
        rows = np.array(self.rows, dtype=np.int64).reshape(-1, 4)
        return Masks(text, rows, measure(text, rows))

    def _repair(self, row: int, where: str) -> None:
        """Reads once more, as a JSON parser would, a mask that is malformed at first sight: escapes are rare."""
        start, stop, height, width = self.rows[row]
        try:
            if start > len(self.document.text):
                text = b"".join(self._written)
                piece = text[start - 1 - len(self.document.text) : stop - len(self.document.text)]
            else:
                piece = self.document.text[start - 1 : stop]
            counts = json.loads(piece + (b'"' if piece[:1] == b'"' else b"]"))
            runs = rle_runs(counts)
            if runs.sum() != height * width:
                raise ValueError(f"its runs cover {runs.sum()} pixels, its size is {height} x {width}")
            self.rows[row] = self._append({"size": [height, width], "counts": counts}, None)
        except (TypeError, ValueError, OverflowError) as error:
            raise complaint(where, error) from error


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
