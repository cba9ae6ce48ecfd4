"""The loops over bytes and runs that the scores spend their time in, compiled by numba on their first call.

Compiled code is kept beside this file, or in the user's cache where that folder cannot be written; where neither
can, it is compiled anew in every process.  All loops that call one another stand in this file, as numba compiles
anew what is kept only when the caller's own file changes.

A mask is decoded once, to its *places*: the first pixel of each of its runs and the one behind it, in turn, counted
down the columns.  A *row* stands for one mask: (begin, end, height, width), where its places begin and end in a
table of places; a begin of -1 is a frame without a mask.  A *text* is JSON, bytes in which a backslash is written
twice; before a mask's counts stands `"` for a COCO string or `[` for a list of runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]

BACKSLASH, COMMA, OPEN, CLOSE, QUOTE, SPACE, COLON, BEGIN, END = (ord(c) for c in '\\,[]" :{}')
MOST_PIXELS = 1 << 31
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
def _coded_runs(text: Array, at: int, places: Array) -> tuple[int, int, int, int]:  # noqa: C901 -- unrolled by two
    """`_runs` of a COCO string."""
    end = len(text) - 1  # a sound mask has a quotation mark behind it
    first, behind = _number(text, at)
    if behind < 0:
        return 0, 0, -1, at
    places[0] = first
    at, position, wrong, count, area = behind, first, first, 1, 0
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
        places[count] = position
        at += digits
        count += 1
    sound = wrong >= 0 and at <= end and text[at] == QUOTE
    return count - (count & 1), area, position if sound else -1, at


@compiled
def _listed_runs(text: Array, at: int, places: Array) -> tuple[int, int, int, int]:
    """`_runs` of a list of numbers."""
    position = area = count = 0
    sound = False
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
        places[count] = position
        if count & 1:
            area += run
        count += 1
        at = _blank(text, at)
        if at >= len(text) or text[at] != COMMA:
            sound = at < len(text) and text[at] == CLOSE
            break
        at += 1
    return count - (count & 1), area, position if sound else -1, at


@compiled
def _runs(text: Array, at: int, places: Array) -> tuple[int, int, int, int]:
    """Decodes one mask.

    Args:
        text: the buffer.
        at: where the counts begin.
        places: filled; with room for one number a byte.

    Returns:
        the numbers written to `places`; the pixels of the mask; those of the frame, -1 for a malformed mask; where
        the counts end, or where they are malformed.
    """
    found: tuple[int, int, int, int]
    found = _listed_runs(text, at, places) if text[at - 1] == OPEN else _coded_runs(text, at, places)
    return found


@compiled
def _decode(text: Array, at: int, places: Array, used: int, row: Array, fact: Array) -> tuple[int, int]:
    """Decodes one mask.

    Args:
        text: the buffer.
        at: where the counts begin.
        places: filled from `used` on.
        used: the number of places that are filled.
        row: (4,) its begin and end are filled.
        fact: (5,) filled as by `decode`.

    Returns:
        the number of places that are filled now, and where the counts end or are malformed.
    """
    count, fact[0], fact[3], end = _runs(text, at, places[used:])
    row[0], row[1] = used, used + count
    fact[1] = places[used] if count else 0
    fact[2] = places[used + count - 1] if count else 0
    fact[4] = text[at - 1] == OPEN
    return used + count, end


@compiled
def _sound(row: Array, fact: Array) -> bool:
    """Whether a mask's runs cover its frame, and places can be told in 31 bits."""
    return bool(fact[3] == row[2] * row[3] and fact[3] < MOST_PIXELS)


@compiled
def decode(text: Array, starts: Array, places: Array, rows: Array, facts: Array) -> int:
    """Decodes masks.

    Args:
        text: the buffer.
        starts: (n,) where the counts of each mask begin; -1 for a frame without a mask.
        places: filled with the places of all masks; (bytes,) int32.
        rows: (n, 4) with height and width; begin and end are filled.
        facts: (n, 5) filled: a mask's pixels, -1 if it is malformed; its first pixel and the one behind its last;
            the number of pixels that its runs cover, -1 if they are no runs; whether they are a list of numbers.

    Returns:
        the number of places that are filled.
    """
    used = 0
    for r in range(len(starts)):
        facts[r] = 0
        if starts[r] < 0:
            rows[r] = -1, -1, 0, 0
            continue
        used, _ = _decode(text, starts[r], places, used, rows[r], facts[r])
        if not _sound(rows[r], facts[r]):
            facts[r, 0] = -1
    return used


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
def _counts(text: Array, at: int, places: Array, used: int, row: Array, fact: Array) -> tuple[int, int]:
    """Reads `"counts": "..."` or `"counts": [...]`, as `_decode` does.

    Returns:
        the number of places that are filled now, and the position behind it and blanks, -1 if it does not stand here.
    """
    at = _mark(text, _past(text, at, COUNTS), COLON)
    if at < 0 or at >= len(text) or (text[at] != QUOTE and text[at] != OPEN):
        return used, -1
    used, at = _decode(text, at + 1, places, used, row, fact)
    return used, _blank(text, at + 1) if fact[3] >= 0 else -1


@compiled
def _item(text: Array, at: int, places: Array, used: int, row: Array, fact: Array) -> tuple[int, int]:
    """Reads the object of one mask, its size and its counts in either order, as `_decode` does.

    Returns:
        the number of places that are filled now, and the position behind it and blanks, -1 if it is malformed or not
        written as usual.
    """
    at = _mark(text, at, BEGIN)
    behind = _size(text, at, row)
    if behind >= 0:
        used, at = _counts(text, _mark(text, behind, COMMA), places, used, row, fact)
    else:
        used, at = _counts(text, at, places, used, row, fact)
        at = _size(text, _mark(text, at, COMMA), row)
    at = _mark(text, at, END)
    return used, at if at >= 0 and _sound(row, fact) else -1


@compiled
def scan(
    text: Array, at: int, places: Array, used: int, rows: Array, facts: Array, n: int
) -> tuple[int, int, int]:
    """Reads a list of masks.

    Args:
        text: the buffer.
        at: where the list's first item begins.
        places: filled from `used` on, as by `decode`.
        used: the number of places that are filled.
        rows: filled from row `n` on.
        facts: likewise.
        n: the number of rows that are filled.

    Returns:
        the numbers of places and of rows that are filled now, and the position behind the list; -1 for one that is
        not written as usual or holds a malformed mask, -2 for one that has no room.
    """
    at = _blank(text, at)
    while n < len(rows):
        behind = _past(text, at, NULL)
        facts[n] = 0
        if behind >= 0:
            rows[n] = -1, -1, 0, 0
        else:
            used, behind = _item(text, at, places, used, rows[n], facts[n])
        if behind < 0 or behind >= len(text):
            return used, n, -1
        n += 1
        if text[behind] == CLOSE:
            return used, n, behind + 1
        if text[behind] != COMMA:
            return used, n, -1
        at = _blank(text, behind + 1)
    return used, n, -2


@compiled
def _shared(first: Array, i: int, i_end: int, second: Array, j: int, j_end: int) -> int:
    """The number of pixels in both of the masks whose places are first[i:i_end] and second[j:j_end]."""
    pixels = 0
    while i < i_end:
        start, stop = np.int64(first[i]), np.int64(first[i + 1])
        # Run by run of the one mask, as the next of the other nearly always meets it: branches that are foreseen.
        while j < j_end and second[j + 1] <= start:
            j += 2
        behind = j
        while behind < j_end and second[behind] < stop:
            pixels += min(stop, np.int64(second[behind + 1])) - max(start, np.int64(second[behind]))
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
    p_places: Array, p_rows: Array, p_facts: Array, p_spans: Array,
    g_places: Array, g_rows: Array, g_facts: Array, g_spans: Array, least: float,
) -> Array:  # fmt: skip
    """IoU over the whole video of every predicted with every true track.

    Args:
        p_places: the places of the predictions.
        p_rows: (n, 4) their masks.
        p_facts: (n, 5) of `decode`.
        p_spans: (P, 2) the first row of each track and the one behind its last: one row a frame.
        g_places: the same of the truth.
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
                p_places, p_rows[p : p + frames], p_facts[p : p + frames],
                g_places, g_rows[g : g + frames], g_facts[g : g + frames], least,
            )  # fmt: skip
    return iou


@compiled
def _overlap(
    p_places: Array, p_rows: Array, p_facts: Array,
    g_places: Array, g_rows: Array, g_facts: Array, least: float,
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
            shared += _shared(p_places, p_rows[t, 0], p_rows[t, 1], g_places, g_rows[t, 0], g_rows[t, 1])
    return shared / (total - shared) if _reaches(shared, most, total, least) else 0.0


@compiled
def _reaches(shared: int, most: int, total: int, least: float) -> bool:
    """Whether a pair that shares so much, and at most so much more, may have an IoU that is positive and `least`."""
    best = shared + most
    return best > 0 and best / (total - best) >= least
