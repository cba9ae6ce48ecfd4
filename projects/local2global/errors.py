"""Errors caused by user input."""

from __future__ import annotations

import math
import re
from pathlib import Path

#: Characters of a message; the middle of a longer one is left out.
MAX_MESSAGE = 1500
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of an object
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029]+")  # line breaks, and what a terminal would act on


class UserError(ValueError):
    """Invalid input.  The message names the problem, its place and the remedy, and is printed without a traceback.

    Args:
        message: becomes one line of at most `MAX_MESSAGE` characters, whatever a stranger's file contributes to it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(message: str) -> str:
    """A message without control characters, addresses of objects, and the middle of more than `MAX_MESSAGE`."""
    line = _CONTROL.sub(" ", _ADDRESS.sub("", message))
    half = MAX_MESSAGE // 2
    return line if len(line) <= MAX_MESSAGE else f"{line[:half]} ... {line[-half:]}"


def first_line(error: BaseException) -> str:
    """The first line of a library's message; the name of the exception if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def wrapped_user_error(error: BaseException) -> UserError | None:
    """The UserError that caused another exception, or the exception itself; None if there is none.

    Interpolations and constructors run inside libraries, which wrap the exceptions of our functions.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__ or cause.__context__
    return cause


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Check that a number lies in [low, high].

    Args:
        name: the parameter, such as "SceneCuts.end".
        value: its value.
        low: smallest allowed value.
        high: largest allowed value.

    Raises:
        UserError: if it does not.
    """
    if not low <= value <= high:
        limits = f"at least {low:,}" if high == math.inf else f"a number from {low:,} to {high:,}"
        raise UserError(f"{name}={value}: expected {limits}")


def make_folder(folder: Path, setting: str) -> None:
    """Create an output folder and its parents, if they do not exist.

    Args:
        folder: the folder.
        setting: the option that selects another folder, such as "--output".

    Raises:
        UserError: if it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: this folder cannot be created ({error.strerror}). Choose another with {setting}."
        ) from error
