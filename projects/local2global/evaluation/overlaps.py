"""How much of two tracks is shared over a whole video: loops over the runs of masks that `kernels` read."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .kernels import FOUR, compiled, long_run

Array = NDArray[Any]


@compiled
def overlaps(
    p_runs: Array, p_rows: Array, p_facts: Array, p_spans: Array,
    g_runs: Array, g_rows: Array, g_facts: Array, g_spans: Array, least: float,
) -> Array:  # fmt: skip
    """IoU over the whole video of every predicted with every true track.

    Args:
        p_runs: the runs of the predictions.
        p_rows: (n, 4) their masks.
        p_facts: (n, 5) of `decode`.
        p_spans: (P, 2) the first row of each track and the one behind its last: one row a frame.
        g_runs: the same of the truth.
        g_rows: (m, 4).
        g_facts: (m, 5).
        g_spans: (G, 2).
        least: pairs that are seen to stay below it need not be looked at further: they get 0.

    Returns:
        (P, G) float64 in [0, 1].
    """
    P, G = len(p_spans), len(g_spans)
    iou = np.zeros((P, G))
    for i in range(P):
        for j in range(G):
            p, g = p_spans[i, 0], g_spans[j, 0]
            frames = min(p_spans[i, 1] - p, g_spans[j, 1] - g)
            iou[i, j] = _overlap(
                p_runs, p_rows[p : p + frames], p_facts[p : p + frames],
                g_runs, g_rows[g : g + frames], g_facts[g : g + frames], least,
            )  # fmt: skip
    return iou


@compiled
def _overlap(
    p_runs: Array, p_rows: Array, p_facts: Array,
    g_runs: Array, g_rows: Array, g_facts: Array, least: float,
) -> float:  # fmt: skip
    """IoU of two tracks of as many frames; 0 as soon as it is seen to stay below `least`."""
    total = most = shared = 0
    for t in range(len(p_rows)):
        if _comparable(p_rows[t], g_rows[t]):
            total += p_facts[t, 0] + g_facts[t, 0]
            most += _most(p_facts[t], g_facts[t])
    for t in range(len(p_rows)):
        if not _reaches(shared, most, total, least):
            return 0.0
        possible = _most(p_facts[t], g_facts[t])
        if possible and _comparable(p_rows[t], g_rows[t]):
            most -= possible
            shared += _shared(p_runs, p_rows[t, 0], p_rows[t, 1], g_runs, g_rows[t, 0], g_rows[t, 1])
    return shared / (total - shared) if _reaches(shared, most, total, least) else 0.0


@compiled
def _reaches(shared: int, most: int, total: int, least: float) -> bool:
    """Whether a pair that shares so much, and at most so much more, may have an IoU that is positive and `least`."""
    best = shared + most
    return best > 0 and best / (total - best) >= least


@compiled
def _shared(first: Array, i: int, i_end: int, second: Array, j: int, j_end: int) -> int:
    """The number of pixels in both of the masks whose runs are first[i:i_end] and second[j:j_end]."""
    if i == i_end or j == j_end:
        return 0
    pixels = on = off = other_on = other_off = 0
    stop, i = long_run(first, i)
    other, j = long_run(second, j)
    i, j, other_stop = i + 1, j + 1, other
    while i < i_end:
        step = np.int64(first[np.uintp(i)])
        if step <= FOUR:
            step, i = long_run(first, i)
        off, i = off + step, i + 1
        start = stop + off
        step = np.int64(first[np.uintp(i)])
        if step <= FOUR:
            step, i = long_run(first, i)
        on, i = on + step, i + 1
        stop = start + on
        # Run by run of the one mask, as the next of the other nearly always meets it: branches that are foreseen.
        while True:
            pixels += max(0, min(stop, other_stop) - max(start, other))
            if other_stop >= stop or j >= j_end:
                break  # it may meet the next run too
            step = np.int64(second[np.uintp(j)])
            if step <= FOUR:
                step, j = long_run(second, j)
            other_off, j = other_off + step, j + 1
            other = other_stop + other_off
            step = np.int64(second[np.uintp(j)])
            if step <= FOUR:
                step, j = long_run(second, j)
            other_on, j = other_on + step, j + 1
            other_stop = other + other_on
    return pixels


@compiled
def _most(first: Array, second: Array) -> int:
    """The most pixels that two masks can share, from their areas and outermost pixels."""
    reach = min(first[2], second[2]) - max(first[1], second[1])
    return max(0, int(min(first[0], second[0], reach)))


@compiled
def _comparable(first: Array, second: Array) -> bool:
    """Whether not both rows are masks, or both have one size."""
    return bool(first[0] < 0 or second[0] < 0 or (first[2] == second[2] and first[3] == second[3]))
