"""Run-length masks read from the bytes of a file, by loops that numba compiles on their first call.

Compiled code is kept beside this file, or in the user's cache where that folder cannot be written; where neither
can, it is compiled anew in every process.  All loops that call one another stand in this file, as numba compiles
anew what is kept only when the caller's own file changes.

A mask is decoded once, to its *runs* down the columns, background and mask in turn: lengths in 16 bits, where a longer
run is parted by runs of no pixels.  A *row* stands for one mask: (begin, end, height, width), where its runs begin and
end in a table of runs, the background behind the mask left out; a begin of -1 is a frame without a mask.  A *text* is
JSON, bytes in which a backslash is written twice; before a mask's counts stands `"` for a COCO string or `[` for a list
of numbers.
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
LONGEST = (1 << 16) - 1
NULL, SIZE, COUNTS = (np.frombuffer(word, dtype=np.uint8) for word in (b"null", b'"size"', b'"counts"'))


def compiled(function: Callable[..., Any]) -> Any:  # whose type numba would narrow wrongly
    """The function as machine code, kept between processes where there is a folder to keep it in."""
    try:
        return njit(cache=True)(function)
    except RuntimeError:  # an installation, and a home, that cannot be written
        return njit(function)


def buffer(text: bytes | bytearray) -> Array:
    """The bytes as (bytes,) uint8, of one kind always: what is compiled depends on it."""
    found = np.frombuffer(text, dtype=np.uint8)
    found.flags.writeable = False
    return found


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
def _keep(run: int, runs: Array, count: int, room: int) -> int:
    """Writes a run of any length, in parts; how many runs are written then, -1 where there is no room."""
    if run > MOST_PIXELS:
        run = 0  # the mask is malformed, as its total will say
    if run > LONGEST and count + 2 * (run // LONGEST) > room:
        return -1
    while run > LONGEST:
        runs[count] = LONGEST
        runs[count + 1] = 0
        run -= LONGEST
        count += 2
    runs[count] = run
    return count + 1


@compiled
def _coded_runs(text: Array, at: int, runs: Array) -> tuple[int, int, int, int, int]:
    """`_runs` of a COCO string."""
    end = len(text) - 1  # a sound mask has a quotation mark behind it
    room = len(runs) - (len(text) - at)
    first, at = _number(text, at)
    if at < 0:
        return 0, 0, -1, 0, end
    count = _keep(first, runs, 0, room)
    position, wrong, area, last = first, first, 0, first
    # From the fourth on a run is written as its difference to the one before the last; the third starts anew.
    on = off = 0
    while at < end and count >= 0:
        run, digits = _short(np.int64(text[at]) - 48, np.int64(text[at + 1]) - 48)
        if digits == 0:
            run, behind = _number(text, at)
            if behind < 0:
                break
            digits = behind - at
        on += run
        wrong |= on
        area += on
        position += on
        last = position
        if on <= LONGEST:
            runs[count] = on
            count += 1
        else:
            count = _keep(on, runs, count, room)
        at += digits
        # The run after it, in the same turn, so that nothing asks which one it is.
        if at >= end or count < 0:
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
        if off <= LONGEST:
            runs[count] = off
            count += 1
        else:
            count = _keep(off, runs, count, room)
        at += digits
    sound = wrong >= 0 and at <= end and text[at] == QUOTE
    return count, area, position if sound else -1, last, at


@compiled
def _listed_runs(text: Array, at: int, runs: Array) -> tuple[int, int, int, int, int]:
    """`_runs` of a list of numbers."""
    position = area = count = last = 0
    room = len(runs) - (len(text) - at)
    masked = sound = False
    while count >= 0:
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
        count = _keep(run, runs, count, room)
        if masked:
            area += run
            last = position
        masked = not masked
        at = _blank(text, at)
        if at >= len(text) or text[at] != COMMA:
            sound = at < len(text) and text[at] == CLOSE
            break
        at += 1
    return count, area, position if sound else -1, last, at


@compiled
def _runs(text: Array, at: int, runs: Array) -> tuple[int, int, int, int, int]:
    """Decodes one mask.

    Args:
        text: the buffer.
        at: where the counts begin.
        runs: filled; with room for one run a byte of text from `at` on.

    Returns:
        the number of runs that are written, -1 if there are so many long ones that there is no room; the pixels of
        the mask; those of the frame, -1 for a malformed mask; the pixel behind the mask's last; where the counts
        end, or where they are malformed.
    """
    found: tuple[int, int, int, int, int]
    found = _listed_runs(text, at, runs) if text[at - 1] == OPEN else _coded_runs(text, at, runs)
    return found


@compiled
def _decode(text: Array, at: int, runs: Array, used: int, row: Array, fact: Array) -> tuple[int, int]:
    """Decodes one mask.

    Args:
        text: the buffer.
        at: where the counts begin.
        runs: filled from `used` on.
        used: the number of runs that are filled.
        row: (4,) its begin and end are filled.
        fact: (5,) filled as by `decode`.

    Returns:
        the number of runs that are filled now, -1 where there is no room, and where the counts end or are malformed.
    """
    count, fact[0], fact[3], fact[2], end = _runs(text, at, runs[used:])
    if count < 0:
        return -1, end
    count -= count & 1
    row[0], row[1] = used, used + count
    fact[1] = 0
    for n in range(used, used + count, 2):
        fact[1] += runs[n]
        if runs[n + 1]:
            break
    fact[4] = text[at - 1] == OPEN
    return used + count, end


@compiled
def _sound(row: Array, fact: Array) -> bool:
    """Whether a mask's runs cover its frame, and no more pixels than are looked at."""
    return bool(fact[3] == row[2] * row[3] and fact[3] < MOST_PIXELS)


@compiled
def decode(text: Array, starts: Array, runs: Array, rows: Array, facts: Array) -> int:
    """Decodes masks.

    Args:
        text: the buffer.
        starts: (n,) where the counts of each mask begin; -1 for a frame without a mask.
        runs: filled with the runs of all masks; uint16, room for one a byte of text and for all long ones.
        rows: (n, 4) with height and width; begin and end are filled.
        facts: (n, 5) filled: a mask's pixels, -1 if it is malformed; its first pixel and the one behind its last;
            the number of pixels that its runs cover, -1 if they are no runs; whether they are a list of numbers.

    Returns:
        the number of runs that are filled, -1 where there is no room.
    """
    used = 0
    for r in range(len(starts)):
        facts[r] = 0
        if starts[r] < 0:
            rows[r] = -1, -1, 0, 0
            continue
        used, _ = _decode(text, starts[r], runs, used, rows[r], facts[r])
        if used < 0:
            break
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
def _counts(text: Array, at: int, runs: Array, used: int, row: Array, fact: Array) -> tuple[int, int]:
    """Reads `"counts": "..."` or `"counts": [...]`, as `_decode` does.

    Returns:
        the number of runs that are filled now, -1 where there is no room, and the position behind it and blanks, -1
        if it does not stand here.
    """
    at = _mark(text, _past(text, at, COUNTS), COLON)
    if at < 0 or at >= len(text) or (text[at] != QUOTE and text[at] != OPEN):
        return used, -1
    used, at = _decode(text, at + 1, runs, used, row, fact)
    return used, _blank(text, at + 1) if fact[3] >= 0 else -1


@compiled
def _item(text: Array, at: int, runs: Array, used: int, row: Array, fact: Array) -> tuple[int, int]:
    """Reads the object of one mask, its size and its counts in either order, as `_decode` does.

    Returns:
        the number of runs that are filled now, -1 where there is no room, and the position behind it and blanks, -1
        if it is malformed or not written as usual.
    """
    at = _mark(text, at, BEGIN)
    behind = _size(text, at, row)
    if behind >= 0:
        used, at = _counts(text, _mark(text, behind, COMMA), runs, used, row, fact)
    else:
        used, at = _counts(text, at, runs, used, row, fact)
        at = _size(text, _mark(text, at, COMMA), row)
    at = _mark(text, at, END)
    return used, at if at >= 0 and _sound(row, fact) else -1


@compiled
def scan(
    text: Array, at: int, runs: Array, used: int, rows: Array, facts: Array, n: int
) -> tuple[int, int, int]:
    """Reads a list of masks.

    Args:
        text: the buffer.
        at: where the list's first item begins.
        runs: filled from `used` on, as by `decode`.
        used: the number of runs that are filled.
        rows: filled from row `n` on.
        facts: likewise.
        n: the number of rows that are filled.

    Returns:
        the numbers of runs and of rows that are filled now, and the position behind the list; -1 for one that is
        not written as usual or holds a malformed mask, -2 where there is no room for its rows, -3 for its runs.
    """
    at = _blank(text, at)
    while n < len(rows):
        if len(runs) - used < len(text) - at:
            return used, n, -3
        behind = _past(text, at, NULL)
        facts[n] = 0
        if behind >= 0:
            rows[n] = -1, -1, 0, 0
        else:
            used, behind = _item(text, at, runs, used, rows[n], facts[n])
        if used < 0:
            return used, n, -3
        if behind < 0 or behind >= len(text):
            return used, n, -1
        n += 1
        if text[behind] == CLOSE:
            return used, n, behind + 1
        if text[behind] != COMMA:
            return used, n, -1
        at = _blank(text, behind + 1)
    return used, n, -2
