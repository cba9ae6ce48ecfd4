"""Annotation files, every entry checked as it is read: YouTube-VIS's, of videos, and COCO's, of images."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from ...errors import UserError
from .rle import compress


class JsonFile:
    """An annotation file's content, checked entry by entry as it is read.

    Attributes:
        what: the list that it must hold.
        kind: what a file with such a list is.
    """

    what = "annotations"
    kind = "an annotation file"

    def __init__(self, path: Path) -> None:
        self.path = path
        content = _read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get(self.what), list):
            raise UserError(f'{path.name}: no list "{self.what}": not {self.kind}.')
        self.content: dict[str, Any] = content
        # The public validation and test files hold null, or nothing, in place of annotations.
        self.annotated = self.content.get("annotations") is not None

    def fail(self, what: str, problem: str) -> NoReturn:
        """Raise a UserError that names this file, the entry and what is wrong with it."""
        raise UserError(f"{self.path.name}: {what}: {problem}.")

    def _entries(self, key: str, word: str, kinds: Mapping[str, type]) -> Iterable[dict[str, Any]]:
        entries = self.content.get(key) or []
        if not isinstance(entries, list):
            raise UserError(f'{self.path.name}: "{key}" is not a list.')
        seen: set[int] = set()
        for position, entry in enumerate(entries):
            if not isinstance(entry, dict) or not isinstance(entry.get("id"), int):
                self.fail(f"{word} at position {position}", "no integer 'id'")
            for name, kind in kinds.items():
                if name not in entry:
                    self.fail(f"{word} {entry['id']}", f"no key '{name}'")
                if not isinstance(entry[name], kind):
                    problem = f"'{name}' is not of type {kind.__name__}"
                    self.fail(f"{word} {entry['id']}", problem)
            if entry["id"] in seen:
                self.fail(f"{word} {entry['id']}", "this id is used twice")
            seen.add(entry["id"])
            yield entry

    def classes(self) -> list[dict[str, Any]]:
        """{id, name} of the categories, by id."""
        kinds = {"name": str}
        categories = self._entries("categories", "category", kinds)
        return sorted(({"id": c["id"], "name": c["name"]} for c in categories), key=lambda c: int(c["id"]))


class ImageAnnotationFile(JsonFile):
    """COCO's form."""

    what = "images"
    kind = "a COCO annotation file"

    def images(self) -> Iterable[dict[str, Any]]:
        """The images."""
        return self._entries("images", "image", {"height": int, "width": int, "file_name": str})

    def annotations(self) -> Iterable[dict[str, Any]]:
        """The annotations, masks as they stand in the file."""
        kinds = {"image_id": int, "category_id": int, "segmentation": object}
        return self._entries("annotations", "annotation", kinds)


class AnnotationFile(JsonFile):
    """YouTube-VIS's form."""

    what = "videos"
    kind = "a YouTube-VIS annotation file"

    def videos(self) -> Iterable[dict[str, Any]]:
        """The videos; their length is the number of their files."""
        for video in self._entries("videos", "video", {"height": int, "width": int, "file_names": list}):
            frames = len(video["file_names"])
            if not all(isinstance(name, str) for name in video["file_names"]):
                self.fail(f"video {video['id']}", "a file name that is no text")
            if not frames:
                self.fail(f"video {video['id']}", "no frames: 'file_names' is empty")
            if video.get("length", frames) != frames:
                self.fail(f"video {video['id']}", f"length {video['length']}, but {frames} file names")
            yield video

    def annotations(self) -> Iterable[dict[str, Any]]:
        """The annotations, masks as they stand in the file."""
        kinds = {"video_id": int, "category_id": int, "segmentations": list}
        return self._entries("annotations", "annotation", kinds)

    def counts(self, annotation: dict[str, Any], size: tuple[int, int]) -> tuple[str | None, ...]:
        """Every frame's compressed counts, None where there is no pixel."""
        counts: list[str | None] = []
        for t, segmentation in enumerate(annotation["segmentations"]):
            try:
                text, area = (None, 0) if segmentation is None else compress(segmentation, size)
            except (ValueError, TypeError, IndexError) as error:
                problem = f"frame {t}: {error} (video {annotation['video_id']})"
                self.fail(f"annotation {annotation['id']}", problem)
            counts.append(text if area else None)
        return tuple(counts)


def holds(path: str | Path, key: str) -> bool:
    """Whether an annotation file has a list of that name, "videos" or "images".

    Raises:
        UserError: if the file cannot be read.
    """
    content = _read_json(Path(path))
    return isinstance(content, dict) and isinstance(content.get(key), list)


def classes_of(path: str | Path) -> list[dict[str, Any]]:
    """{id, name} of the categories of an annotation file in either form, by id.

    Raises:
        UserError: if the file cannot be read, or has no categories.
    """
    path = Path(path)
    form: type[JsonFile] = AnnotationFile if holds(path, "videos") else ImageAnnotationFile
    classes = form(path).classes()
    if not classes:
        raise UserError(f'{path.name}: no "categories": a model needs classes.')
    return classes


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such annotation file.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not JSON: byte {error.start} is not text.") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{path}: not JSON: {place}: {error.msg}.") from None


def check_classes(file: JsonFile, classes: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a class list that gives one of the file's ids another name, as another dataset's would."""
    given = {c["id"]: str(c["name"]) for c in classes}
    for category in file.classes():
        name = given.get(category["id"], category["name"])
        if _letters(name) != _letters(category["name"]):
            file.fail(f"category {category['id']}", f'"{category["name"]}", but the class list says "{name}"')


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))


def video_name(video: Mapping[str, Any]) -> str:
    """The folder that holds the frames, as YouTube-VIS and OVIS name their videos."""
    return str(video.get("name") or PurePosixPath(video["file_names"][0]).parent.name or video["id"])


def choose(
    file: AnnotationFile, names: Collection[str], videos: Collection[str] | None, exclude: Collection[str]
) -> set[str]:
    """The names of `videos` (all if None) without `exclude`; a name that the file lacks is an error."""
    for name in (*(videos or ()), *exclude):
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f' Did you mean "{near[0]}"?' if near else ""
            raise UserError(f'{file.path.name}: no video "{name}".{hint}')
    return set(names if videos is None else videos) - set(exclude)
