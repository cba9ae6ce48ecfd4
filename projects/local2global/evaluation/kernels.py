"""The loops over bytes and runs that the scores spend their time in, compiled by numba on their first call.

Compiled code is kept beside this file, or in the user's cache where that folder cannot be written; where neither
can, it is compiled anew in every process.

A *row* stands for one mask, still as text: (start, stop, height, width), the place of its counts in a buffer of
JSON text.  Before `start` stands `"` for a COCO string, in which a backslash is written twice, or `[` for a list of
runs.  A start of -1 is a frame without a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]

BACKSLASH, COMMA, OPEN = (ord(c) for c in "\\,[")


def compiled(function: Callable[..., Any]) -> Any:  # whose type numba would narrow wrongly
    """The function as machine code, kept between processes where there is a folder to keep it in."""
    try:
        return njit(cache=True)(function)
    except RuntimeError:  # an installation, and a home, that cannot be written
        return njit(function)


@compiled
def _number(text: Array, at: int, stop: int) -> tuple[int, int]:
    """A number of a COCO string and the position behind it, -1 if it does not end or is no number.

    Groups of five bits, the lowest first; bit 32 says "more follows", bit 16 of the last group is the sign.
    """
    value = shift = 0
    while at < stop and shift < 40:
        digit = np.int64(text[at]) - 48
        if digit < 0 or digit > 63:
            break
        if digit == BACKSLASH - 48:
            at += 1
            if at >= stop or text[at] != BACKSLASH:
                break
        at += 1
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32 == 0:
            return value - ((digit & 16) << (shift - 4)), at
    return 0, -1


@compiled
def _decimal(text: Array, at: int, stop: int) -> tuple[int, int]:
    """A whole number and the position behind the comma after it, -1 where there is none."""
    while at < stop and text[at] <= 32:
        at += 1
    value, begin = 0, at
    while at < stop and 48 <= text[at] <= 57 and at - begin < 12:
        value = 10 * value + text[at] - 48
        at += 1
    if at == begin:
        return 0, -1
    while at < stop and text[at] <= 32:
        at += 1
    if at == stop:
        return value, at
    return value, at + 1 if text[at] == COMMA else -1


@compiled
def _runs(text: Array, start: int, stop: int, places: Array) -> tuple[int, int, int, int, int]:
    """Decodes one mask.

    Args:
        text: the buffer.
        start: where the counts begin.
        stop: where they end.
        places: filled with the first pixel of each run of the mask and the one behind it, in turn; with room for
            one number a byte, or empty to leave it out.

    Returns:
        the numbers written to `places`; the pixels of the mask; those of the frame, -1 for a malformed mask; the
        mask's first pixel and the one behind its last, counted down the columns.
    """
    listed, keep = text[start - 1] == OPEN, len(places) > 0
    older = newer = position = area = first = last = count = 0
    at, wrong = start, 0
    while at < stop:
        digit = np.int64(text[at]) - 48
        if listed:
            run, at = _decimal(text, at, stop)
        elif digit >= 0 and digit < 32:  # most numbers have one digit
            run = digit - ((digit & 16) << 1)
            at += 1
        else:
            run, at = _number(text, at, stop)
        if at < 0:
            return 0, area, -1, first, last
        # From the fourth on a run is written as its difference to the one before the last.
        if count > 2 and not listed:
            run += older
        wrong |= run
        older, newer = newer, run
        position += run
        if keep:
            places[count] = position
        if count & 1:
            area += run
            last = position
        elif count == 0:
            first = position
        count += 1
    return count - (count & 1), area, position if wrong >= 0 and count > 0 else -1, first, last


@compiled
def measure(text: Array, rows: Array) -> Array:
    """Reads every mask once.

    Args:
        text: the buffer.
        rows: (n, 4).

    Returns:
        (n, 3) int64: a mask's pixels, its first pixel and the one behind its last, counted down the columns; the
        number of pixels is -1 if the mask is malformed or its runs do not cover its size.
    """
    facts = np.zeros((len(rows), 3), dtype=np.int64)
    nowhere = np.zeros(0, dtype=np.int64)
    for r in range(len(rows)):
        if rows[r, 0] >= 0:
            _, area, covered, first, last = _runs(text, rows[r, 0], rows[r, 1], nowhere)
            facts[r, 0] = area if covered == rows[r, 2] * rows[r, 3] else -1
            facts[r, 1], facts[r, 2] = first, last
    return facts


@compiled
def _shared(places: Array, i: int, i_end: int, j: int, j_end: int) -> int:
    """The number of pixels in both of the masks whose places are [i:i_end] and [j:j_end]."""
    pixels = 0
    while i < i_end and j < j_end:
        stop_i, stop_j = places[i + 1], places[j + 1]
        pixels += max(0, min(stop_i, stop_j) - max(places[i], places[j]))
        # Without branches: which mask goes on is as good as random.
        ahead = np.int64(stop_i < stop_j)
        i += 2 * ahead
        j += 2 - 2 * ahead
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


@compiled
def overlaps(
    p_text: Array, p_rows: Array, p_facts: Array, p_spans: Array,
    g_text: Array, g_rows: Array, g_facts: Array, g_spans: Array, least: float,
) -> Array:  # fmt: skip
    """IoU over the whole video of every predicted with every true track.

    Args:
        p_text: the buffer of the predictions.
        p_rows: (n, 4) its masks.
        p_facts: (n, 3) of `measure`.
        p_spans: (P, 2) the first row of each track and the one behind its last: one row a frame.
        g_text: the same of the truth.
        g_rows: (m, 4).
        g_facts: (m, 3).
        g_spans: (G, 2).
        least: pairs whose areas show that they stay below it need not be looked at: they get 0.

    Returns:
        (P, G) float64 in [0, 1].
    """
    P, G = len(p_spans), len(g_spans)
    total = np.zeros((P, G), dtype=np.int64)
    shared = np.zeros((P, G), dtype=np.int64)
    wanted = np.zeros((P, G), dtype=np.bool_)
    frames = 0
    for i in range(P):
        for j in range(G):
            most = 0
            length = min(p_spans[i, 1] - p_spans[i, 0], g_spans[j, 1] - g_spans[j, 0])
            for t in range(length):
                p, g = p_spans[i, 0] + t, g_spans[j, 0] + t
                if _comparable(p_rows[p], g_rows[g]):
                    total[i, j] += p_facts[p, 0] + g_facts[g, 0]
                    most += _most(p_facts[p], g_facts[g])
            if most > 0 and most / (total[i, j] - most) >= least:
                wanted[i, j] = True
                frames = max(frames, length)
    for t in range(frames):
        _share_frame(p_text, p_rows, p_facts, p_spans, g_text, g_rows, g_facts, g_spans, t, wanted, shared)
    iou = np.zeros((P, G))
    for i in range(P):
        for j in range(G):
            if wanted[i, j]:
                iou[i, j] = shared[i, j] / (total[i, j] - shared[i, j])
    return iou


@compiled
def _share_frame(
    p_text: Array, p_rows: Array, p_facts: Array, p_spans: Array,
    g_text: Array, g_rows: Array, g_facts: Array, g_spans: Array, t: int, wanted: Array, shared: Array,
) -> None:  # fmt: skip
    """Adds to `shared` what the wanted pairs share on frame `t`; every mask is decoded at most once."""
    P, G = wanted.shape
    # A mask's places, once decoded, are places[ends[n, 0]:ends[n, 1]], first of predictions and then of truths.
    ends = np.full((P + G, 2), -1, dtype=np.int64)
    room = 0
    for i in range(P):
        row = p_spans[i, 0] + t
        room += max(0, p_rows[row, 1] - p_rows[row, 0]) if row < p_spans[i, 1] else 0
    for j in range(G):
        row = g_spans[j, 0] + t
        room += max(0, g_rows[row, 1] - g_rows[row, 0]) if row < g_spans[j, 1] else 0
    places = np.empty(room, dtype=np.int64)
    used = 0
    for i in range(P):
        p = p_spans[i, 0] + t
        for j in range(G):
            g = g_spans[j, 0] + t
            if (
                not wanted[i, j] or p >= p_spans[i, 1] or g >= g_spans[j, 1]
                or not _comparable(p_rows[p], g_rows[g]) or _most(p_facts[p], g_facts[g]) == 0
            ):  # fmt: skip
                continue
            if ends[i, 0] < 0:
                count = _runs(p_text, p_rows[p, 0], p_rows[p, 1], places[used:])[0]
                ends[i] = used, used + count
                used += count
            if ends[P + j, 0] < 0:
                count = _runs(g_text, g_rows[g, 0], g_rows[g, 1], places[used:])[0]
                ends[P + j] = used, used + count
                used += count
            shared[i, j] += _shared(places, ends[i, 0], ends[i, 1], ends[P + j, 0], ends[P + j, 1])


@compiled
def assign(iou: Array, thresholds: Array, ignored: Array, crowd: Array, real: Array) -> tuple[Array, Array]:
    """Gives each prediction, best first, the free true track that it overlaps most, the last one among equals.

    Args:
        iou: (P, G) float64, predictions by falling score.
        thresholds: (T,) least IoU of a match.
        ignored: (A, G) bool, tracks that are taken only where no other will do, and do not count.
        crowd: (G,) bool, tracks that may be taken again.
        real: (G,) bool, tracks that count as found when they are taken.

    Returns:
        (A, T, P) bool, whether the prediction found a track, and whether the one that it took is ignored.
    """
    A, T, P, G = len(ignored), len(thresholds), len(iou), len(crowd)
    matched = np.zeros((A, T, P), dtype=np.bool_)
    spare = np.zeros((A, T, P), dtype=np.bool_)
    for a in range(A):
        for t in range(T):
            taken = np.zeros(G, dtype=np.bool_)
            for p in range(P):
                choice, best = -1, thresholds[t]
                for turn in range(2):
                    for g in range(G):
                        free = crowd[g] or not taken[g]
                        if free and ignored[a, g] == (turn == 1) and iou[p, g] >= best:
                            best, choice = iou[p, g], g
                    if choice >= 0:
                        break
                if choice >= 0:
                    taken[choice] = True
                    matched[a, t, p] = real[choice]
                    spare[a, t, p] = ignored[a, choice]
    return matched, spare
