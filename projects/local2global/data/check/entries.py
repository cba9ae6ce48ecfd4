"""The lists of an annotation file, walked to the end whatever is wrong with an entry."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from .findings import Notes


def is_int(value: Any) -> TypeGuard[int]:
    """Whether JSON holds a whole number here (true and false are none)."""
    return isinstance(value, int) and not isinstance(value, bool)


def read_content(path: Path, notes: Notes) -> dict[str, Any] | None:
    """The object that a JSON file holds, or None, noted."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        problem = f"not readable as JSON ({error})"
        notes.error("not-json", "", problem, "Write the file again, or restore it from its source")
        return None
    if not isinstance(content, dict):
        fix = "Give the annotation file, not a list of results"
        notes.error("not-a-dataset", "", "no JSON object", fix)
        return None
    return content


def walk(
    content: Mapping[str, Any], key: str, word: str, notes: Notes
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(how it is called, entry) of each entry that is an object; notes empty and repeated ids."""
    entries = content.get(key)
    if not isinstance(entries, list):
        what = "is not a list" if key in content else "is missing"
        notes.error("no-list", "", f'the list "{key}" {what}', f'Add "{key}": [...]')
        return
    seen: dict[Any, int] = {}
    for position, entry in enumerate(entries):
        where = f"{word} at position {position}"
        if not isinstance(entry, dict):
            notes.error("no-entry", where, "not a JSON object", "Remove it, or write it as {...}")
            continue
        identity = entry.get("id")
        if is_int(identity):
            where = f"{word} {identity}"
            if identity in seen:
                problem = f"this id is used twice (positions {seen[identity]} and {position})"
                notes.error("duplicate-id", where, problem, "Give every entry an id of its own, from 1 on")
            seen.setdefault(identity, position)
        else:
            problem = f"its id is {json.dumps(identity)}" if "id" in entry else "no id"
            notes.error("empty-id", where, problem, "Give it a whole number as id, from 1 on")
        yield where, entry


def check_categories(content: Mapping[str, Any], notes: Notes) -> dict[int, str]:
    """The class names by id; notes what is wrong with the list."""
    names: dict[int, str] = {}
    for where, category in walk(content, "categories", "category", notes):
        name = category.get("name")
        if not isinstance(name, str) or not name.strip():
            notes.error("category-name", where, "no name", 'Add "name": "..."')
            name = ""
        if name and name in names.values():
            fix = "Merge the two, or name them apart"
            notes.warn("category-name", where, f'the name "{name}" is used twice', fix)
        if is_int(category.get("id")):
            names.setdefault(category["id"], name)
    if not names and isinstance(content.get("categories"), list):
        notes.error(
            "no-categories", "", "no category is listed", 'List every class as {"id": 1, "name": "..."}'
        )
    return names


def check_category(annotation: Mapping[str, Any], names: Mapping[int, str], where: str, notes: Notes) -> bool:
    """Whether an annotation's category is listed; noted if not."""
    category = annotation.get("category_id")
    if is_int(category) and category in names:
        return True
    listed = ", ".join(map(str, sorted(names)[:10])) + (", ..." if len(names) > 10 else "")
    problem = f"category_id {json.dumps(category)} is not among the categories ({listed or 'none'})"
    notes.error("unknown-category", where, problem, "Correct category_id, or add the category")
    return False


def check_crowd(annotation: Mapping[str, Any], where: str, notes: Notes) -> bool:
    """Whether an annotation is an ignore region; notes a missing or odd `iscrowd`."""
    crowd = annotation.get("iscrowd")
    if "iscrowd" not in annotation:
        fix = 'Add "iscrowd": 0, or 1 for an ignore region'
        notes.error("no-iscrowd", where, "no iscrowd, which the official scorers ask for", fix)
    elif crowd not in (0, 1):
        notes.error("iscrowd", where, f"iscrowd is {json.dumps(crowd)}", "Make it 0 or 1")
    return bool(crowd)


def check_zero(entry: Mapping[str, Any], where: str, notes: Notes) -> None:
    """Notes an annotation id of 0."""
    identity = entry.get("id")
    if is_int(identity) and identity == 0:
        problem = "id 0, which the official scorer never counts as found"
        notes.error("id-zero", where, problem, "Number annotations from 1 on")
    elif is_int(identity) and identity < 0:
        notes.error("id-negative", where, "a negative id", "Number annotations from 1 on")


def positive_size(entry: Mapping[str, Any], where: str, notes: Notes) -> tuple[int, int] | None:
    """(height, width) of a video or an image, or None, noted."""
    height, width = entry.get("height"), entry.get("width")
    if is_int(height) and is_int(width) and height > 0 and width > 0:
        return height, width
    problem = f"height {json.dumps(height)} and width {json.dumps(width)}"
    notes.error("no-size", where, problem, "Give both in pixels, as whole numbers")
    return None
