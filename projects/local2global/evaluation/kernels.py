"""Run-length masks read from the bytes of a file, by loops that numba compiles on their first call.

Compiled code is kept beside this file, or in the user's cache where that folder cannot be written; where neither
can, it is compiled anew in every process.  All loops that call one another stand in this file, as numba compiles
anew what is kept only when the caller's own file changes.  Places in the innermost loops are `np.uintp`, which spares
the question whether they count from the end.

A mask is decoded once and kept in signed bytes: its first pixel, and then in turn the backgrounds (the first of which
is 0) and the runs of the mask down the columns, each as the difference to the last of its kind.  A number that a byte
does not hold, and always the first pixel, is a mark and two or four bytes, the lowest first.  A *row* stands for one
mask: (begin, end, height, width), where its bytes begin and end in a table; a begin of -1 is a frame without a mask.
A *text* is JSON, in which a backslash is written twice; before a mask's counts stands `"` for a COCO string or `[` for
a list of numbers.
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
PAIR, FOUR = -128, -127  # marks of numbers of two and of four bytes
AT_ONCE = 8  # numbers of one digit that are read without a question about any of them; even
ROOM = 3  # bytes that the runs in a byte of text take at most: five where a number has two digits or more
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
def _short(first: int, second: int, third: int) -> tuple[int, int]:
    """The number that three digits, of bytes less 48, begin with, and how many it has: 1 to 3, or 0 for none or more.

    Digits, not the text: handing an array on in the innermost loop costs more than all else in it.
    """
    if first >= 0 and first < 32:
        return (first ^ 16) - 16, 1
    if first >= 32 and first < 64 and first != BACKSLASH - 48:
        if second >= 0 and second < 32:
            return (first & 31) + (((second ^ 16) - 16) << 5), 2
        if second >= 32 and second < 64 and second != BACKSLASH - 48 and third >= 0 and third < 32:
            return (first & 31) + ((second & 31) << 5) + (((third ^ 16) - 16) << 10), 3
    return 0, 0


@compiled
def _marked(run: int, runs: Array, used: int) -> int:
    """Writes a number behind a mark; how many bytes are written then."""
    if run >= -(1 << 15) and run < 1 << 15:
        runs[np.uintp(used)] = PAIR
        runs[np.uintp(used + 1)] = run & 255
        runs[np.uintp(used + 2)] = run >> 8
        return used + 3
    runs[used] = FOUR
    for n in range(4):
        runs[used + 1 + n] = (run >> (8 * n)) & 255
    return used + 5


@compiled
def _keep(run: int, runs: Array, used: int) -> int:
    """Writes a number; how many bytes are written then."""
    if run > FOUR and run <= 127:
        runs[np.uintp(used)] = run
        return used + 1
    behind: int = _marked(run, runs, used)
    return behind


@compiled
def _begin(first: int, runs: Array) -> int:
    """Writes the first background, and a gap of nothing so that runs can be read in pairs."""
    used: int = _marked(first, runs, 0)
    runs[used] = 0
    return used + 1


@compiled
def long_run(runs: Array, at: int) -> tuple[int, int]:
    """The number whose mark stands at `at`, and the place of its last byte."""
    if runs[np.uintp(at)] == PAIR:
        low = np.int64(runs[np.uintp(at + 1)]) & 255
        return low | (np.int64(runs[np.uintp(at + 2)]) << 8), at + 2
    value = np.int64(runs[at + 4])  # its sign is the number's
    for n in range(3, 0, -1):
        value = (value << 8) | (np.int64(runs[at + n]) & 255)
    return value, at + 4


@compiled
def _coded_runs(text: Array, at: int, runs: Array) -> tuple[int, int, int, int, int, int]:  # noqa: C901
    """`_runs` of a COCO string; one loop, as parts of it that take arrays would make it twice as slow."""
    end = len(text) - 1  # a sound mask has a quotation mark behind it
    first, at = _number(text, at)
    if at < 0:
        return 0, 0, -1, 0, 0, end
    used = _begin(first, runs)
    position, wrong, area, last, kept = first, first, 0, first, 0
    # From the fourth on a run is written as its difference to the one before the last; the third starts anew.
    on = off = 0
    while at < end:
        # Most numbers have one digit: where so many in turn do, nothing is asked of any one of them.
        while at + AT_ONCE <= end:
            digits = 0
            for n in range(AT_ONCE):
                digits |= np.int64(text[np.uintp(at + n)]) - 48
            if digits & -32:
                break
            for n in range(0, AT_ONCE, 2):
                run = ((np.int64(text[np.uintp(at + n)]) - 48) ^ 16) - 16
                runs[np.uintp(used + n)] = run
                on += run
                area += on
                position += on
                last = position
                run = ((np.int64(text[np.uintp(at + n + 1)]) - 48) ^ 16) - 16
                runs[np.uintp(used + n + 1)] = run
                off += run
                position += off
                wrong |= on | off
            at, used, kept = at + AT_ONCE, used + AT_ONCE, used + AT_ONCE - 1
        if at >= end:
            break
        run, digits = _short(
            np.int64(text[np.uintp(at)]) - 48,
            np.int64(text[np.uintp(at + 1)]) - 48,
            np.int64(text[np.uintp(min(at + 2, end))]) - 48,
        )
        if digits == 0:
            run, behind = _number(text, at)
            if behind < 0:
                break
            digits = behind - at
        at += digits
        on += run
        wrong |= on
        area += on
        position += on
        last = position
        kept = used = _keep(run, runs, used)
        # The run after it, in the same turn, so that nothing asks which one it is.
        if at >= end:
            break
        run, digits = _short(
            np.int64(text[np.uintp(at)]) - 48,
            np.int64(text[np.uintp(at + 1)]) - 48,
            np.int64(text[np.uintp(min(at + 2, end))]) - 48,
        )
        if digits == 0:
            run, behind = _number(text, at)
            if behind < 0:
                break
            digits = behind - at
        at += digits
        off += run
        wrong |= off
        position += off
        used = _keep(run, runs, used)
    sound = wrong >= 0 and at <= end and text[np.uintp(at)] == QUOTE
    return kept, area, position if sound else -1, first, last, at


@compiled
def _listed_runs(text: Array, at: int, runs: Array) -> tuple[int, int, int, int, int, int]:
    """`_runs` of a list of numbers."""
    position = area = first = last = used = kept = count = 0
    before = other = 0  # the run before the last, and the last
    sound = False
    while True:
        at = _blank(text, at)
        run, begin = 0, at
        while at < len(text):
            digit = np.int64(text[np.uintp(at)]) - 48
            if digit < 0 or digit > 9:
                break
            run = 10 * run + digit
            at += 1
        if at == begin or at - begin > 12:
            break
        position += run
        written = run - before
        if count == 0:
            first, other = run, 0  # so that the third starts anew
            used = _begin(run, runs)
        else:
            used = _keep(written, runs, used)
            before, other = other, run
        if count & 1:
            area += run
            last, kept = position, used
        count += 1
        at = _blank(text, at)
        if at >= len(text) or text[np.uintp(at)] != COMMA:
            sound = at < len(text) and text[np.uintp(at)] == CLOSE
            break
        at += 1
    return kept, area, position if sound else -1, first, last, at


@compiled
def _runs(text: Array, at: int, runs: Array) -> tuple[int, int, int, int, int, int]:
    """Decodes one mask.

    Args:
        text: the buffer.
        at: where the counts begin.
        runs: filled; with ROOM for each byte of text.

    Returns:
        the number of bytes that stand for the mask; the pixels of the mask; those of the frame, -1 for a malformed
        mask; the mask's first pixel and the one behind its last; where the counts end, or where they are malformed.
    """
    found: tuple[int, int, int, int, int, int]
    found = _listed_runs(text, at, runs) if text[at - 1] == OPEN else _coded_runs(text, at, runs)
    return found


@compiled
def _decode(text: Array, at: int, runs: Array, used: int, row: Array, fact: Array) -> tuple[int, int]:
    """Decodes one mask.

    Args:
        text: the buffer.
        at: where the counts begin.
        runs: filled from `used` on.
        used: the number of bytes that are filled.
        row: (4,) its begin and end are filled.
        fact: (5,) filled as by `decode`.

    Returns:
        the number of bytes that are filled now, and where the counts end or are malformed.
    """
    count, fact[0], fact[3], fact[1], fact[2], end = _runs(text, at, runs[used:])
    row[0], row[1] = used, used + count
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
        runs: filled with the runs of all masks; int8, with ROOM for each byte of text.
        rows: (n, 4) with height and width; begin and end are filled.
        facts: (n, 5) filled: a mask's pixels, -1 if it is malformed; its first pixel and the one behind its last;
            the number of pixels that its runs cover, -1 if they are no runs; whether they are a list of numbers.

    Returns:
        the number of bytes that are filled.
    """
    used = 0
    for r in range(len(starts)):
        facts[r] = 0
        if starts[r] < 0:
            rows[r] = -1, -1, 0, 0
            continue
        used, _ = _decode(text, starts[r], runs, used, rows[r], facts[r])
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
        the number of bytes that are filled now, and the position behind it and blanks, -1 if it does not
        stand here.
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
        the number of bytes that are filled now, and the position behind it and blanks, -1 if it is
        malformed or not written as usual.
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
        used: the number of bytes that are filled.
        rows: filled from row `n` on.
        facts: likewise.
        n: the number of rows that are filled.

    Returns:
        the numbers of bytes and of rows that are filled now, and the position behind the list; -1 for one that is
        not written as usual or holds a malformed mask, -2 where there is no room for its rows.
    """
    at = _blank(text, at)
    while n < len(rows):
        behind = _past(text, at, NULL)
        facts[n] = 0
        if behind >= 0:
            rows[n] = -1, -1, 0, 0
        else:
            used, behind = _item(text, at, runs, used, rows[n], facts[n])
        if behind < 0 or behind >= len(text):
            return used, n, -1
        n += 1
        if text[behind] == CLOSE:
            return used, n, behind + 1
        if text[behind] != COMMA:
            return used, n, -1
        at = _blank(text, behind + 1)
    return used, n, -2
