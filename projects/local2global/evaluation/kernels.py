"""The loops over bytes and runs that the scores spend their time in, compiled by numba on their first call.

Compiled code is kept beside this file, or in the user's cache where that folder cannot be written; where neither
can, it is compiled anew in every process.  All loops that call one another stand in this file, as numba compiles
anew what is kept only when the caller's own file changes.

A *row* stands for one mask, still as text: (start, stop, height, width), the place of its counts in a buffer of
JSON text.  Before `start` stands `"` for a COCO string, in which a backslash is written twice, or `[` for a list of
runs; at `stop` the mark that closes it.  A start of -1 is a frame without a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]

BACKSLASH, COMMA, OPEN, CLOSE, QUOTE, SPACE, COLON, BEGIN, END = (ord(c) for c in '\\,[]" :{}')
NULL, SIZE, COUNTS = (np.frombuffer(word, dtype=np.uint8) for word in (b"null", b'"size"', b'"counts"'))


def compiled(function: Callable[..., Any]) -> Any:  # whose type numba would narrow wrongly
    """The function as machine code, kept between processes where there is a folder to keep it in."""
    try:
        return njit(cache=True)(function)
    except RuntimeError:  # an installation, and a home, that cannot be written
        return njit(function)


@compiled
def _number(text: Array, at: int) -> tuple[int, int]:
    """A number of a COCO string and the position behind it, -1 if there is none.

    Groups of five bits, the lowest first; bit 32 says "more follows", bit 16 of the last group is the sign.
    """
    value = shift = 0
    while at < len(text) and shift < 40:
        digit = np.int64(text[at]) - 48
        if digit < 0 or digit > 63:
            break
        if digit == BACKSLASH - 48:
            at += 1
            if at >= len(text) or text[at] != BACKSLASH:
                break
        at += 1
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32 == 0:
            return value - ((digit & 16) << (shift - 4)), at
    return 0, -1


@compiled
def _blank(text: Array, at: int) -> int:
    """The position of the first byte from `at` that is no blank."""
    while at < len(text) and (text[at] == SPACE or (text[at] >= 9 and text[at] <= 13)):
        at += 1
    return at


@compiled
def _short(first: int, second: int) -> tuple[int, int]:
    """The number that two digits, of bytes less 48, begin with, and how many it has: 1, 2, or 0 for none or more.

    Digits, not the text: handing an array on in the innermost loop costs more than all else in it.
    """
    if first >= 0 and first < 32:
        return (first ^ 16) - 16, 1
    if first >= 32 and first < 64 and first != BACKSLASH - 48 and second >= 0 and second < 32:
        return (first & 31) + (((second ^ 16) - 16) << 5), 2
    return 0, 0


@compiled
def _coded_runs(  # noqa: C901 -- unrolled by two
    text: Array, at: int, places: Array
) -> tuple[int, int, int, int, int, int]:
    """`_runs` of a COCO string."""
    keep, end = len(places) > 0, len(text) - 1  # a sound mask has a quotation mark behind it
    first, behind = _number(text, at)
    if behind < 0:
        return 0, 0, -1, 0, 0, at
    if keep:
        places[0] = first
    at, position, wrong, last, count, area = behind, first, first, first, 1, 0
    # From the fourth on a run is written as its difference to the one before the last; the third starts anew.
    on = off = 0
    while at < end:
        run, digits = _short(np.int64(text[at]) - 48, np.int64(text[at + 1]) - 48)
        if digits == 0:
            run, behind = _number(text, at)
            if behind < 0:
                break
            digits = behind - at
        on += run
        wrong |= on
        position += on
        area += on
        last = position
        if keep:
            places[count] = position
        at += digits
        count += 1
        # The run after it, in the same turn, so that nothing asks which one it is.
        if at >= end:
            break
        run, digits = _short(np.int64(text[at]) - 48, np.int64(text[at + 1]) - 48)
        if digits == 0:
            run, behind = _number(text, at)
            if behind < 0:
                break
            digits = behind - at
        off += run
        wrong |= off
        position += off
        if keep:
            places[count] = position
        at += digits
        count += 1
    sound = wrong >= 0 and at <= end and text[at] == QUOTE
    return count - (count & 1), area, position if sound else -1, first, last, at


@compiled
def _listed_runs(text: Array, at: int, places: Array) -> tuple[int, int, int, int, int, int]:
    """`_runs` of a list of numbers."""
    position = area = first = last = count = 0
    keep, sound = len(places) > 0, False
    while True:
        at = _blank(text, at)
        run, begin = 0, at
        while at < len(text):
            digit = np.int64(text[at]) - 48
            if digit < 0 or digit > 9:
                break
            run = 10 * run + digit
            at += 1
        if at == begin or at - begin > 12:
            break
        position += run
        if keep:
            places[count] = position
        if count & 1:
            area += run
            last = position
        elif count == 0:
            first = position
        count += 1
        at = _blank(text, at)
        if at >= len(text) or text[at] != COMMA:
            sound = at < len(text) and text[at] == CLOSE
            break
        at += 1
    return count - (count & 1), area, position if sound else -1, first, last, at


@compiled
def _runs(text: Array, at: int, places: Array) -> tuple[int, int, int, int, int, int]:
    """Decodes one mask.

    Args:
        text: the buffer.
        at: where the counts begin.
        places: filled with the first pixel of each run of the mask and the one behind it, in turn; with room for
            one number a byte, or empty to leave it out.

    Returns:
        the numbers written to `places`; the pixels of the mask; those of the frame, -1 for a malformed mask; the
        mask's first pixel and the one behind its last, counted down the columns; where the counts end, or where
        they are malformed.
    """
    found: tuple[int, int, int, int, int, int]
    found = _listed_runs(text, at, places) if text[at - 1] == OPEN else _coded_runs(text, at, places)
    return found


@compiled
def _past(text: Array, at: int, word: Array) -> int:
    """The position behind `word` and the blanks after it if it stands at `at`, else -1."""
    if at < 0 or at + len(word) > len(text):
        return -1
    for n in range(len(word)):
        if text[at + n] != word[n]:
            return -1
    behind: int = _blank(text, at + len(word))
    return behind


@compiled
def _mark(text: Array, at: int, mark: int) -> int:
    """The position behind the byte `mark` and the blanks after it if it stands at `at`, else -1."""
    if at < 0 or at >= len(text) or text[at] != mark:
        return -1
    behind: int = _blank(text, at + 1)
    return behind


@compiled
def _edge(text: Array, at: int) -> tuple[int, int]:
    """A whole number of at most nine digits and the position behind it and blanks, -1 if there is none."""
    value, begin = 0, at
    while at >= 0 and at < len(text) and at - begin < 9 and text[at] >= 48 and text[at] <= 57:
        value = 10 * value + np.int64(text[at]) - 48
        at += 1
    return value, _blank(text, at) if at > begin else -1


@compiled
def _size(text: Array, at: int, row: Array) -> int:
    """Reads `"size": [h, w]` into the row; the position behind it and blanks, -1 if it does not stand here."""
    at = _mark(text, _mark(text, _past(text, at, SIZE), COLON), OPEN)
    row[2], at = _edge(text, at)
    row[3], at = _edge(text, _mark(text, at, COMMA))
    behind: int = _mark(text, at, CLOSE)
    return behind


@compiled
def _counts(text: Array, at: int, row: Array, fact: Array) -> int:
    """Reads `"counts": "..."` or `"counts": [...]` into row and facts.

    Returns:
        the position behind it and blanks, -1 if it does not stand here.
    """
    at = _mark(text, _past(text, at, COUNTS), COLON)
    if at < 0 or at >= len(text) or (text[at] != QUOTE and text[at] != OPEN):
        return -1
    close = CLOSE if text[at] == OPEN else QUOTE
    row[0] = at + 1
    at = _measure(text, at + 1, fact)
    while at < len(text) and text[at] != close:
        at += 1
    row[1] = at
    behind: int = _blank(text, at + 1)
    return behind


@compiled
def _measure(text: Array, at: int, fact: Array) -> int:
    """Fills the facts of `measure` of the mask whose counts begin at `at`; where they end or are malformed."""
    end: int
    _, fact[0], fact[3], fact[1], fact[2], end = _runs(text, at, fact[:0])
    return end


@compiled
def measure(text: Array, rows: Array) -> Array:
    """Reads every mask once.

    Args:
        text: the buffer.
        rows: (n, 4).

    Returns:
        (n, 4) int64: a mask's pixels, its first pixel and the one behind its last, counted down the columns, and
        the number of pixels that its runs cover, -1 if it is malformed; the first is -1 unless that is its size.
    """
    facts = np.zeros((len(rows), 4), dtype=np.int64)
    for r in range(len(rows)):
        if rows[r, 0] >= 0:
            _measure(text, rows[r, 0], facts[r])
            if facts[r, 3] != rows[r, 2] * rows[r, 3]:
                facts[r, 0] = -1
    return facts


@compiled
def _item(text: Array, at: int, row: Array, fact: Array) -> int:
    """Reads the object of one mask, its size and its counts in either order.

    Args:
        text: the buffer.
        at: where the object begins.
        row: (4,) filled.
        fact: (4,) filled as by `measure`.

    Returns:
        the position behind it and blanks, -1 if it is not written as usual.
    """
    at = _mark(text, at, BEGIN)
    behind = _size(text, at, row)
    if behind >= 0:
        at = _counts(text, _mark(text, behind, COMMA), row, fact)
    else:
        at = _size(text, _mark(text, _counts(text, at, row, fact), COMMA), row)
    if fact[3] != row[2] * row[3]:
        fact[0] = -1
    end: int = _mark(text, at, END)
    return end


@compiled
def scan(text: Array, at: int, rows: Array, facts: Array, n: int) -> tuple[int, int]:
    """Reads a list of masks.

    Args:
        text: the buffer.
        at: where the list's first item begins.
        rows: filled from row `n` on, with -1, -1, 0, 0 for null.
        facts: filled as by `measure`.
        n: the number of rows that are filled.

    Returns:
        the number of rows that are filled now, and the position behind the list; -1 for one that is not written as
        usual, -2 for one that has no room.
    """
    at = _blank(text, at)
    while n < len(rows):
        behind = _past(text, at, NULL)
        if behind >= 0:
            rows[n, 0], rows[n, 1], rows[n, 2], rows[n, 3] = -1, -1, 0, 0
            facts[n] = 0
        else:
            behind = _item(text, at, rows[n], facts[n])
        if behind < 0 or behind >= len(text):
            return n, -1
        n += 1
        if text[behind] == CLOSE:
            return n, behind + 1
        if text[behind] != COMMA:
            return n, -1
        at = _blank(text, behind + 1)
    return n, -2


@compiled
def _shared(places: Array, i: int, i_end: int, j: int, j_end: int) -> int:
    """The number of pixels in both of the masks whose places are [i:i_end] and [j:j_end]."""
    pixels = 0
    while i < i_end:
        start, stop = places[i], places[i + 1]
        # Run by run of the one mask, as the next of the other nearly always meets it: branches that are foreseen.
        while j < j_end and places[j + 1] <= start:
            j += 2
        behind = j
        while behind < j_end and places[behind] < stop:
            pixels += min(stop, places[behind + 1]) - max(start, places[behind])
            behind += 2
        if behind > j:
            j = behind - 2  # it may meet the next run too
        i += 2
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
        p_facts: (n, 4) of `measure`.
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
    most = np.zeros((P, G), dtype=np.int64)  # the most that they can share from here on
    wanted = np.zeros((P, G), dtype=np.bool_)
    frames = 0
    for i in range(P):
        for j in range(G):
            length = min(p_spans[i, 1] - p_spans[i, 0], g_spans[j, 1] - g_spans[j, 0])
            for t in range(length):
                p, g = p_spans[i, 0] + t, g_spans[j, 0] + t
                if _comparable(p_rows[p], g_rows[g]):
                    total[i, j] += p_facts[p, 0] + g_facts[g, 0]
                    most[i, j] += _most(p_facts[p], g_facts[g])
            wanted[i, j] = _reaches(0, most[i, j], total[i, j], least)
            if wanted[i, j]:
                frames = max(frames, length)
    places = np.empty(_room(p_rows, p_spans, frames) + _room(g_rows, g_spans, frames), dtype=np.int64)
    for t in range(frames):
        _share_frame(
            p_text, p_rows, p_facts, p_spans, g_text, g_rows, g_facts, g_spans,
            t, wanted, shared, most, total, least, places,
        )  # fmt: skip
    iou = np.zeros((P, G))
    for i in range(P):
        for j in range(G):
            if wanted[i, j]:
                iou[i, j] = shared[i, j] / (total[i, j] - shared[i, j])
    return iou


@compiled
def _reaches(shared: int, most: int, total: int, least: float) -> bool:
    """Whether a pair that shares so much, and at most so much more, may have an IoU that is positive and `least`."""
    best = shared + most
    return best > 0 and best / (total - best) >= least


@compiled
def _room(rows: Array, spans: Array, frames: int) -> int:
    """The most bytes that the masks of all tracks have on one frame."""
    most = 0
    for t in range(frames):
        room = 0
        for i in range(len(spans)):
            row = spans[i, 0] + t
            if row < spans[i, 1]:
                room += rows[row, 1] - rows[row, 0]
        most = max(most, room)
    return most


@compiled
def _share_frame(
    p_text: Array, p_rows: Array, p_facts: Array, p_spans: Array,
    g_text: Array, g_rows: Array, g_facts: Array, g_spans: Array,
    t: int, wanted: Array, shared: Array, most: Array, total: Array, least: float, places: Array,
) -> None:  # fmt: skip
    """Adds to `shared` what the wanted pairs share on frame `t`; every mask is decoded at most once.

    What a pair may share on this frame is taken from `most`, and a pair that cannot reach `least` is wanted no more.
    `places` is room for all masks of a frame.
    """
    P, G = wanted.shape
    # A mask's places, once decoded, are places[ends[n, 0]:ends[n, 1]], first of predictions and then of truths.
    ends = np.full((P + G, 2), -1, dtype=np.int64)
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
                count = _runs(p_text, p_rows[p, 0], places[used:])[0]
                ends[i] = used, used + count
                used += count
            if ends[P + j, 0] < 0:
                count = _runs(g_text, g_rows[g, 0], places[used:])[0]
                ends[P + j] = used, used + count
                used += count
            shared[i, j] += _shared(places, ends[i, 0], ends[i, 1], ends[P + j, 0], ends[P + j, 1])
            most[i, j] -= _most(p_facts[p], g_facts[g])
            wanted[i, j] = _reaches(shared[i, j], most[i, j], total[i, j], least)
