"""Large JSON files entry by entry: lists that are read and written without ever being held."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from ...errors import UserError

_CHUNK = 1 << 20
_SPACE = " \t\r\n"


class _Text:
    """A file's text from the current position on; more is read when a value does not end in what is there."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._text, self._at = file, "", 0
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is no space, "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self, expected: str) -> None:
        """Pass over one character that must be next."""
        found = self.peek()
        if found != expected:
            raise ValueError(f"expected {expected!r}, found {found!r}" if found else "it ends too early")
        self._at += 1

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # A value that goes on behind the text fails near its end; any other failure is final.
                if self._more():
                    continue
                raise ValueError(error.msg) from error
            # A number may go on in what was not read yet.
            if end < len(self._text) or not self._more():
                self._at = end
                return value

    def _more(self) -> bool:
        chunk = self._file.read(max(_CHUNK, len(self._text) - self._at))
        self._text, self._at = self._text[self._at :] + chunk, 0
        return bool(chunk)


def read_entries(path: Path) -> Iterator[tuple[str, Any]]:
    """(key, entry) for each entry of each list of a JSON object, in file order; other values as (key, value).

    Memory is that of the largest entry.

    Raises:
        UserError: if the file is missing or no JSON object.
    """
    try:
        with path.open(encoding="utf-8") as file:
            yield from _entries(_Text(file))
    except FileNotFoundError:
        raise UserError(f"{path}: no such annotation file.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not JSON: byte {error.start} is not text.") from None
    except ValueError as error:
        raise UserError(f"{path}: not a JSON object: {error}.") from error


def _entries(text: _Text) -> Iterator[tuple[str, Any]]:
    text.take("{")
    while text.peek() != "}":
        key = str(text.value())
        text.take(":")
        if text.peek() == "[":
            yield from ((key, entry) for entry in _list(text))
        else:
            yield key, text.value()
        if text.peek() != "}":
            text.take(",")
    text.take("}")


def _list(text: _Text) -> Iterator[Any]:
    text.take("[")
    while text.peek() != "]":
        yield text.value()
        if text.peek() != "]":
            text.take(",")
    text.take("]")


class ListWriter:
    """Writes {KEY: [entry, entry, ...], **rest}; the file appears only when it is whole.

    Args:
        path: the file; until the end it is `<path>.tmp`.
        key: the name of the long list.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.count = 0
        self._temporary = path.with_name(path.name + ".tmp")
        self._file = self._temporary.open("w", encoding="utf-8")
        self._file.write(f"{{{json.dumps(key)}: [")

    def write(self, entry: Any) -> None:
        """Appends one entry."""
        self._file.write((",\n" if self.count else "\n") + json.dumps(entry))
        self.count += 1

    def close(self, rest: Mapping[str, Any]) -> None:
        """Ends the list, writes what else the object holds, and puts the file in its place."""
        self._file.write("\n]")
        for key, value in rest.items():
            self._file.write(f",\n{json.dumps(key)}: {json.dumps(value)}")
        self._file.write("}\n")
        self._file.close()
        os.replace(self._temporary, self.path)

    def __enter__(self) -> ListWriter:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drops a file that was not closed."""
        if not self._file.closed:
            self._file.close()
            self._temporary.unlink(missing_ok=True)
