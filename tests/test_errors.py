"""Messages of user errors."""

from __future__ import annotations

import pytest

from local2global.errors import MAX_MESSAGE, UserError, first_line


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("a/b\nc.png: no such file", "a/b c.png: no such file"),
        ("two  spaces of a path stay", "two  spaces of a path stay"),
        ("\x1b[31mred\x00", " [31mred "),
        ("malformed node: <ast.Name object at 0x7faf0d7b8b80>", "malformed node: <ast.Name object>"),
    ],
)
def test_a_message_is_one_line_without_control_characters(message, line):
    assert str(UserError(message)) == line


def test_the_middle_of_a_long_message_is_left_out():
    line = str(UserError("file.json: " + "x" * 5000 + " Fix it."))
    assert line.startswith("file.json: xxx")
    assert line.endswith("xxx Fix it.")
    assert len(line) == MAX_MESSAGE + len(" ... ")


def test_a_librarys_error_without_a_message_is_named():
    assert first_line(EOFError()) == "EOFError"
    assert first_line(ValueError("\n bad header \nmore")) == "bad header "
