"""Entries of annotation files, validated: the code that readers and `l2g data check` share.

Every function reports what is wrong to a `Problems` object.  A reader's object raises on the first error.  The
checker's object records all of them.  Functions return None, or skip the entry, where an error was reported.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeGuard

from ...errors import UserError
from ...files import parse_json, stays_inside
from ...limits import MAX_PIXELS

logger = logging.getLogger(__name__)

#: The longest side of a frame, in pixels: beyond it the C code of pycocotools overflows.
MAX_SIDE = 1 << 15

#: Characters of a path in an annotation file, and bytes of one of its parts, the limit of usual file systems.
MAX_PATH, MAX_PART = 2000, 255


class Problems(Protocol):
    """Receives the problems of one annotation file."""

    def error(self, kind: str, where: str, problem: str, fix: str, file: str | None = None) -> None:
        """Reports an entry that cannot be read, or that a scorer rejects.

        Args:
            kind: a short name shared by similar problems, e.g. "missing-frame".
            where: the entry, "" for the whole file.
            problem: what is wrong.
            fix: what to do.
            file: the file to look into; None for the annotation file.
        """

    def warn(self, kind: str, where: str, problem: str, fix: str, file: str | None = None) -> None:
        """Reports an entry that can be read but looks wrong."""


def format_problem(file: str, where: str, problem: str, fix: str) -> str:
    """A problem as one line."""
    return f"{file}: {where}: {problem}. {fix}." if where else f"{file}: {problem}. {fix}."


class RaiseProblems:
    """Problems of a reader: the first error is raised as a UserError, warnings are ignored.

    Args:
        path: the annotation file.
        hint: a sentence appended to every message.
    """

    def __init__(self, path: Path, hint: str = "") -> None:
        self.file, self.hint = path.name, hint

    def error(self, kind: str, where: str, problem: str, fix: str, file: str | None = None) -> None:
        """Raises the error."""
        raise UserError(format_problem(file or self.file, where, problem, fix) + self.hint)

    def warn(self, kind: str, where: str, problem: str, fix: str, file: str | None = None) -> None:
        """Ignores the warning."""


class SkipProblems(RaiseProblems):
    """Problems of a reader that skips invalid annotations: counts them and logs the number."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.messages: list[str] = []

    def error(self, kind: str, where: str, problem: str, fix: str, file: str | None = None) -> None:
        """Records the error."""
        self.messages.append(format_problem(file or self.file, where, problem, fix))

    def log(self, skipped: int) -> None:
        """Logs how many annotations were skipped, with the first message."""
        if skipped:
            first, noun = self.messages[0], "annotation" if skipped == 1 else "annotations"
            logger.warning("%s: skipped %d invalid %s. First: %s", self.file, skipped, noun, first)


def annotation_problems(path: Path, skip_invalid: bool) -> RaiseProblems:
    """The `Problems` of the annotations of a file: skipped and counted, or raised with a hint how to skip."""
    hint = " To skip and count invalid annotations, set skip_invalid_annotations=true on the dataset"
    example = "data.skip_invalid_annotations=true"
    return SkipProblems(path) if skip_invalid else RaiseProblems(path, f"{hint} (custom configs: {example}).")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: if the file is missing, unreadable or not JSON.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such annotation file.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    return parse_json(data, path)


def is_int(value: Any) -> TypeGuard[int]:
    """Whether a JSON value is an integer; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_id(value: Any) -> TypeGuard[int]:
    """Whether a JSON value is an integer that a 64-bit tensor can hold."""
    return is_int(value) and -(1 << 63) <= value < 1 << 63


def is_file_name(value: Any) -> TypeGuard[str]:
    """Whether a JSON value can be the path of a file: it names one, and a file system accepts its length."""
    if not isinstance(value, str) or "\0" in value or len(value) > MAX_PATH:
        return False
    path = PurePosixPath(value)
    return bool(path.name) and all(len(part.encode()) <= MAX_PART for part in path.parts)


def is_folder_name(value: Any) -> TypeGuard[str]:
    """Whether a JSON value can name a folder of outputs."""
    return is_file_name(value) and stays_inside(value)


def is_crowd(entry: Mapping[str, Any], where: str, problems: Problems) -> bool | None:
    """Whether an annotation or a segment is an ignore region; None if its `iscrowd` is invalid."""
    crowd = entry.get("iscrowd", 0)
    if crowd in (0, 1):
        return bool(crowd)
    problems.error("iscrowd", where, f"iscrowd is {shown(crowd)}", "Make it 0 or 1")
    return None


def shown(value: Any) -> str:
    """A JSON value for a message, at most 40 characters."""
    try:
        text = json.dumps(value)
    except ValueError:  # an integer of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 40 else f"{text[:37]}..."


def walk(
    content: Mapping[str, Any], key: str, word: str, problems: Problems
) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """The entries of a list that are JSON objects, with their ids checked.

    Args:
        content: the file's content.
        key: the name of the list.
        word: what messages call an entry, e.g. "annotation".
        problems: where errors are reported.

    Yields:
        The entry's name in messages, the entry, and whether its id is valid and unique.
    """
    entries = content.get(key)
    if not isinstance(entries, list):
        what = "is not a list" if key in content else "is missing"
        problems.error("no-list", "", f'the list "{key}" {what}', f'Add "{key}": [...]')
        return
    positions: dict[Any, int] = {}
    for position, entry in enumerate(entries):
        where = f"{word} at position {position}"
        if not isinstance(entry, dict):
            problems.error("no-entry", where, "not a JSON object", "Remove it, or write it as {...}")
            continue
        identity = entry.get("id")
        valid = is_id(identity)
        if not valid:
            problem = f"its id is {shown(identity)}" if "id" in entry else "no id"
            problems.error("empty-id", where, problem, "Give it a 64-bit integer as id, from 1 on")
        else:
            where = f"{word} {identity}"
            if identity in positions:
                valid = False
                problem = f"this id is used twice (positions {positions[identity]} and {position})"
                problems.error("duplicate-id", where, problem, "Give every entry a unique id, from 1 on")
            positions.setdefault(identity, position)
        yield where, entry, valid


def parse_categories(content: Mapping[str, Any], problems: Problems) -> dict[int, str]:
    """The class names by category id."""
    names: dict[int, str] = {}
    for where, category, _ in walk(content, "categories", "category", problems):
        name = category.get("name")
        if not isinstance(name, str) or not name.strip():
            problems.error("category-name", where, "no name", 'Add "name": "..."')
            name = ""
        if name and name in names.values():
            fix = "Merge the two, or rename one of them"
            problems.warn("category-name", where, f'the name "{name}" is used twice', fix)
        if is_id(category.get("id")):
            names.setdefault(category["id"], name)
    if not names and isinstance(content.get("categories"), list):
        fix = 'List every class as {"id": 1, "name": "..."}'
        problems.error("no-categories", "", "no category is listed", fix)
    return names


def class_list(
    content: Mapping[str, Any],
    classes: Sequence[Mapping[str, Any]] | None,
    problems: Problems,
    check_names: bool = True,
) -> list[dict[str, Any]]:
    """The model's class list: `classes`, or the file's categories by id if `classes` is None.

    Reports a class list that gives one of the file's category ids another name, as another dataset's would.
    """
    if classes is None:
        names = parse_categories(content, problems)
        return [{"id": k, "name": names[k]} for k in sorted(names)]
    expected = {int(c["id"]): str(c["name"]) for c in classes}
    if check_names and content.get("categories"):
        for identity, name in parse_categories(content, problems).items():
            other = expected.get(identity, name)
            if _letters(other) != _letters(name):
                problem = f'"{name}", but the class list says "{other}"'
                fix = "Use the class list of this dataset"
                problems.error("class-name", f"category {identity}", problem, fix)
    return [{"id": k, "name": name} for k, name in expected.items()]


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))


def parse_size(entry: Mapping[str, Any], where: str, problems: Problems) -> tuple[int, int] | None:
    """(height, width) of a video or an image."""
    height, width = entry.get("height"), entry.get("width")
    if (
        is_int(height)
        and is_int(width)
        and 0 < height <= MAX_SIDE
        and 0 < width <= MAX_SIDE
        and height * width <= MAX_PIXELS
    ):
        return height, width
    problem = f"height {shown(height)} and width {shown(width)}"
    fix = f"Give both in pixels, as integers from 1 to {MAX_SIDE}, with a product of at most {MAX_PIXELS}"
    problems.error("no-size", where, problem, fix)
    return None


def check_category(entry: Mapping[str, Any], known: Collection[int], where: str, problems: Problems) -> bool:
    """Whether an annotation's category is one of the known ids; reported if not."""
    category = entry.get("category_id")
    if is_id(category) and category in known:
        return True
    listed = ", ".join(map(str, sorted(known)[:10])) + (", ..." if len(known) > 10 else "")
    problem = f"category_id {shown(category)} is not among the categories ({listed or 'none'})"
    problems.error("unknown-category", where, problem, "Correct category_id, or add the category")
    return False
