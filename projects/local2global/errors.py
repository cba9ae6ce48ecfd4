"""What a person did that cannot work, said in one line."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input: the message says what, where and how to fix it; the command prints it without a traceback."""
