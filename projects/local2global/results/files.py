"""Atomic output files: a file appears under its own name only after it was written completely."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to `path` when the block ends and deleted if the block raises.

    Args:
        path: the output file; an existing file is replaced.

    Yields:
        the path to write to, in the same folder.
    """
    target = Path(path)
    partial = target.with_name(target.name + ".tmp")
    try:
        yield partial
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
