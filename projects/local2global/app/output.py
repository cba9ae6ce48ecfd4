"""Output shared by the commands: Markdown and CSV tables, JSON files and progress bars."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, ProgressColumn

from ..errors import UserError, make_folder
from ..files import write_text


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[str] = ()) -> str:
    """Formats a Markdown table; the columns named in `right` are right-aligned."""
    rule = ["---:" if name in right else "---" for name in head]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *rows])


def csv_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Formats a CSV table; None is written as an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()


def write_json(path: Path, content: Any, option: str = "--json") -> None:
    """Writes a JSON file atomically and creates its folder.

    Args:
        path: the file.
        content: anything that `json.dumps` accepts.
        option: the command-line option that sets the path, for error messages.

    Raises:
        UserError: if the path is a folder, or its folder cannot be created.
    """
    make_folder(path.parent, option)
    if path.is_dir():
        raise UserError(f"{path}: {option} names a folder; it needs the name of a file")
    write_text(path, json.dumps(content, indent=1) + "\n")


@contextmanager
def progress_bar(*columns: ProgressColumn) -> Iterator[Progress]:
    """Shows a progress bar on standard error if it is a terminal."""
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield bar
