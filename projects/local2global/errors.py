"""What a person did that cannot work, said in one line."""

from __future__ import annotations

from pathlib import Path


class UserError(ValueError):
    """Bad input: the message says what, where and how to fix it; the command prints it without a traceback."""


def make_folder(folder: Path, setting: str) -> None:
    """Make an output folder, with those above it; nothing happens if it is there.

    Args:
        folder: the folder.
        setting: what the user changes to get another one, e.g. "--output".

    Raises:
        UserError: if it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: this folder cannot be made ({error.strerror}). Choose another with {setting}."
        ) from error
