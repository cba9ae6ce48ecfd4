"""Timelines: the score curve of an identity as an SVG path, with gaps where it was not reported."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .run import Identity

#: Width and height of the view box.
WIDTH, HEIGHT = 1000, 40
#: Points of a curve over the whole width; of more frames, the best score of each column is drawn.
_COLUMNS = 500


def edges(times: NDArray[np.float64], fps: float) -> NDArray[np.float64]:
    """(T + 1,) start of every frame and end of the last, in seconds since the first frame."""
    steps = np.diff(times)
    last = float(np.median(steps)) if len(steps) and np.median(steps) > 0 else 1 / fps
    out: NDArray[np.float64] = np.append(times, times[-1] + last) - times[0]
    return out


def positions(edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """(T + 1,) x of the edges of all frames in the view box."""
    x: NDArray[np.float64] = edges / edges[-1] * WIDTH
    return x


def curve(identity: Identity, x: NDArray[np.float64]) -> str:
    """The area under the scores as the `d` of an SVG path, one sub-path per interval without a gap.

    Args:
        identity: the scores; 0 is drawn on the base line, 1 at the top.
        x: `positions` of the video.
    """
    frames = np.frombuffer(identity.frames, np.uint32).astype(np.int64)
    y = HEIGHT * (1 - np.frombuffer(identity.scores, np.float32).astype(np.float64))
    column = (x[frames] * (_COLUMNS / WIDTH)).astype(np.int64)
    # A point starts where the column changes or a gap ends.
    new = np.flatnonzero(np.append(True, (np.diff(column) > 0) | (np.diff(frames) > 1)))
    y = np.minimum.reduceat(y, new)
    first, last = frames[new], np.append(frames[new[1:] - 1], frames[-1])
    starts = np.append(True, first[1:] - last[:-1] > 1)
    parts = []
    for i, start in enumerate(starts):
        left, right = x[first[i]], x[last[i] + 1]
        parts.append(f"M{left:.5g} {HEIGHT}V{y[i]:.3g}" if start else f"L{left:.5g} {y[i]:.3g}")
        if i + 1 == len(starts) or starts[i + 1]:
            parts.append(f"H{right:.5g}V{HEIGHT}Z")
    return "".join(parts)


def gaps(identity: Identity) -> list[tuple[int, int]]:
    """Intervals [first, last] of frames between the first and the last report without one."""
    spans = identity.spans()
    return [(end + 1, start - 1) for (_, end), (start, _) in pairwise(spans)]


def gap_path(identity: Identity, x: NDArray[np.float64]) -> str:
    """The base line in the gaps, as the `d` of an SVG path."""
    return "".join(f"M{x[a]:.5g} {HEIGHT - 1}H{x[b + 1]:.5g}" for a, b in gaps(identity))
