"""Scores and masks of one video in a temporary file, so that memory does not grow with the video.

The file holds one record per frame:

- (N, K) float32 class scores;
- (N,) int32 lengths of the masks' COCO counts, 0 for an empty mask;
- the COCO counts of all non-empty masks, in slot order.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..files import require_space

Floats = NDArray[np.floating[Any]]

#: Bytes of scores that `top_mean` holds at a time.
SCORE_BYTES = 1 << 24


class Spill:
    """The temporary file of one video.

    The file has no name and lies in the system's folder for temporary files (`TMPDIR`).  The operating system frees its
    space when it is closed, and also when the process is killed.

    Args:
        queries: N slots.
        classes: K classes.

    Attributes:
        length: number of frames written.
        masked: (N,) whether a slot has a mask on any frame.
    """

    def __init__(self, queries: int, classes: int) -> None:
        self.queries, self.classes = queries, classes
        self.length = 0
        self.masked = np.zeros(queries, np.bool_)
        self._fixed = 4 * queries * (classes + 1)  # bytes of a record's scores and lengths
        self._file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 - closed by `close`
        self._finalizer = weakref.finalize(self, self._file.close)

    def append(self, scores: Floats, counts: Mapping[int, str]) -> None:
        """Writes the record of the next frame.

        Args:
            scores: (N, K) class scores in [0, 1].
            counts: the COCO counts of the non-empty masks by slot.

        Raises:
            UserError: the file cannot be written, e.g. because the disk is full.
        """
        lengths = np.zeros(self.queries, np.int32)
        texts = [counts[slot].encode("ascii") for slot in sorted(counts)]
        lengths[sorted(counts)] = [len(text) for text in texts]
        record = b"".join([scores.astype(np.float32).tobytes(), lengths.tobytes(), *texts])
        what, remedy = f"masks of frame {self.length}", "Set TMPDIR to a folder with more space."
        require_space(tempfile.gettempdir(), len(record), what, remedy)
        try:
            self._file.seek(0, os.SEEK_END)
            self._file.write(record)
        except OSError as error:
            raise UserError(
                f"{tempfile.gettempdir()}: the {what} cannot be written ({error.strerror}). {remedy}"
            ) from error
        self.length += 1
        self.masked |= lengths > 0

    def _records(self) -> Iterator[tuple[int, NDArray[np.int32]]]:
        """Position and (N,) mask lengths of every record."""
        position, scores = 0, 4 * self.queries * self.classes
        for _ in range(self.length):
            lengths = np.frombuffer(self._bytes(4 * self.queries, position + scores), np.int32)
            yield position, lengths
            position += self._fixed + int(lengths.sum())

    def _bytes(self, size: int, position: int) -> bytes:
        self._file.seek(position)  # on every call, so that several slots may be read alternately
        return self._file.read(size)

    def read(self, slot: int) -> Iterator[str | None]:
        """The COCO counts of one slot on every frame, None where its mask is empty."""
        for position, lengths in self._records():
            size = int(lengths[slot])
            start = position + self._fixed + int(lengths[:slot].sum())
            yield self._bytes(size, start).decode("ascii") if size else None

    def top_mean(self, count: int) -> NDArray[np.float64]:
        """(N, K) mean of the `count` largest scores of each slot and class, 1 <= count <= frames."""
        pairs = self.queries * self.classes
        block = max(1, SCORE_BYTES // (4 * max(1, self.length)))
        means = np.zeros(pairs)
        for start in range(0, pairs, block):
            scores = np.empty((self.length, min(block, pairs - start)), np.float32)
            for row, (position, _) in zip(scores, self._records(), strict=True):
                row[:] = np.frombuffer(self._bytes(4 * len(row), position + 4 * start), np.float32)
            scores.partition(self.length - count, axis=0)
            means[start : start + block] = scores[self.length - count :].mean(axis=0, dtype=np.float64)
        return means.reshape(self.queries, self.classes)

    def close(self) -> None:
        """Deletes the file; a second call does nothing."""
        self._finalizer()
