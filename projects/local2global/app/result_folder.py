"""The output folder of `l2g predict`: the record of the stream, and the files made from it.

`frames.jsonl` and `video.partial.mp4` are written while the video runs.  `annotations.json`, `results.json` and
`video.mp4` follow at its end, and the formats of `--save`.  `stream.json` describes the video, the classes and the
formats, which `finish` needs after a crash, and the run, which `--resume` compares.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from ..data.readers.entries import is_file_name
from ..errors import UserError, make_folder
from ..files import cannot_write, locked_folder
from ..results.exports import ALWAYS, EXPORTS, OPTIONAL, check_exports, write_exports
from ..results.record import RecordedTracks, Recording, RecordWriter
from .checkpoint import Checkpoint
from .output import write_json
from .sound import finish_video
from .source import Source


@dataclass(frozen=True)
class Seen:
    """An object of a video: the id, the class name, and when it was first and last reported, in seconds."""

    id: int
    name: str
    first: float
    last: float


@dataclass(frozen=True)
class Prediction:
    """The output of `L2G.predict`.

    Attributes:
        folder: output folder; it holds `video.mp4`, `annotations.json`, `results.json` and `frames.jsonl`.
        frames: number of frames.
        objects: number of reported objects per class.
        seconds: elapsed time.
        announced: number of frames declared by the source; None if unknown, or if a live source dropped frames.
        seen: the reported objects, in order of appearance.
        saved: files and folders of the optional formats.
        threshold: minimal score of a reported object, or None if unknown.
        best_score: highest score of any object with a mask, reported or not, of the selected classes; None if unknown.
    """

    folder: Path
    frames: int
    objects: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    announced: int | None = None
    seen: tuple[Seen, ...] = ()
    saved: tuple[Path, ...] = ()
    threshold: float | None = None
    best_score: float | None = None

    @property
    def video(self) -> Path:
        """The annotated mp4, or the PNG of a still image."""
        picture = self.folder / "image.png"
        return picture if picture.is_file() else self.folder / "video.mp4"

    @property
    def warning(self) -> str | None:
        """A line if fewer frames could be read than the source declares."""
        if self.frames >= (self.announced or 0):
            return None
        return (
            f"l2g: {self.folder.name}: the file declares {self.announced} frames, "
            f"{self.frames} could be read; is it complete?"
        )

    @property
    def tracks(self) -> Path:
        """The tracks in the form of YouTube-VIS truth."""
        return self.folder / "annotations.json"


def finish(folder: Path, save: Sequence[str] = (), source: Source | None = None) -> Prediction:
    """Writes the other files from the record and the partial video in a folder.

    Args:
        folder: output folder of an earlier `L2G.predict`, complete or interrupted.
        save: optional formats, besides those that were asked for at the time.
        source: the video, for its sound, and if a format needs its frames.

    Raises:
        UserError: if the folder holds no record, the record is invalid, a format is unknown or needs the frames, or a
            run still writes to it.
    """
    record, about = folder / "frames.jsonl", folder / "stream.json"
    save = check_exports(save)
    if not (record.is_file() and about.is_file()):
        raise UserError(f"{folder}: no frames.jsonl and stream.json of l2g predict in this folder")
    with locked_folder(folder, "--output"):
        content = read_about(folder)
        if set(save) - set(content["save"]):
            content["save"] = list(check_exports([*content["save"], *save]))
            write_json(about, content, "--output")
        return _finish(folder, source)


def _finish(folder: Path, source: Source | None) -> Prediction:
    content = read_about(folder)
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    # A camera or a pipe has other frames when it is read again.
    frames = None if source is None or source.identity is None else partial(iter, source)
    with RecordedTracks(folder / "frames.jsonl") as recorded:
        tracks = recorded.tracks.values()
        unknown = {track.category_id for track in tracks} - names.keys()
        if unknown:
            raise UserError(f"{folder}: stream.json has no category {min(unknown)}, which frames.jsonl names")
        files = content["video"]["file_names"]
        if files is not None and len(files) < recorded.length:
            problem = f"stream.json names {len(files)} frames, but frames.jsonl has {recorded.length}"
            raise UserError(f"{folder}: {problem}")
        times, fps = recorded.times, content["video"]["fps"]
        if recorded.length:
            sound = None if source is None else source.sound
            finish_video(folder / "video.mp4", sound, times[0], times[-1] + 1 / fps)
        recording = Recording(recorded, content["video"], content["categories"], frames)
        write_exports(folder, recording, ALWAYS)
        saved = write_exports(folder, recording, content["save"])
        seen = tuple(
            Seen(
                track.id,
                names[track.category_id],
                times[track.frames[0]],
                times[track.frames[-1]],
            )
            for track in tracks
        )
    objects = Counter(entry.name for entry in seen).most_common()
    return Prediction(
        folder,
        recorded.length,
        dict(objects),
        seen=seen,
        saved=tuple(saved),
        threshold=content.get("threshold"),
    )


def read_about(folder: Path) -> dict[str, Any]:
    """The content of stream.json: `video`, `categories`, `save`, and perhaps `run`, `made` and `threshold`.

    Raises:
        UserError: if it is damaged.
    """
    path = folder / "stream.json"
    try:
        content = json.loads(path.read_bytes())
        video, categories = content["video"], content["categories"]
        files = video["file_names"]
        valid = all(type(video[key]) is int for key in ("width", "height")) and isinstance(video["name"], str)
        valid &= files is None or (isinstance(files, list) and all(map(is_file_name, files)))
        valid &= isinstance(video["fps"], (int, float)) and video["fps"] > 0
        valid &= video["name"] not in (".", "..") and not set("/\0") & set(video["name"])
        valid &= all(type(entry["id"]) is int and isinstance(entry["name"], str) for entry in categories)
        content.setdefault("save", [])
        valid &= set(content["save"]) <= set(OPTIONAL)
        valid &= isinstance(content.get("threshold", 0.0), (int, float))
    except (ValueError, TypeError, KeyError, RecursionError):
        valid = False
    if not valid:
        raise UserError(f"{path}: damaged; it describes the video and the classes of l2g predict")
    return dict(content)


@contextmanager
def open_record(
    folder: Path,
    source: Source,
    classes: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    checkpoint: Checkpoint,
    keep: int = 0,
    lines: BinaryIO | None = None,
) -> Iterator[RecordWriter]:
    """Opens the record of a stream; after an exception, the other files are made of the frames done so far.

    Args:
        folder: output folder.
        source: the video.
        classes: {id, name} of every class.
        facts: `run`, what determines the results: source, model and options; `threshold`, the minimal score; and
            `save`, the optional formats; `made`, what a reader wants to know: video, model, weights, command.
        checkpoint: saved after an exception, deleted at the end.
        keep: number of frames that an interrupted run has left.
        lines: a file to which each new line is written too.
    """
    height, width = source.size
    video = {"name": source.name, "width": width, "height": height, "fps": float(source.fps)}
    content = {
        "video": {**video, "file_names": source.files},
        "categories": [dict(entry) for entry in classes],
        **facts,
    }
    about = folder / "stream.json"
    with RecordWriter(folder / "frames.jsonl", classes, keep, lines) as writer:
        checkpoint.save()
        _delete_exports(folder)
        write_json(about, content, "--output")
        try:
            yield writer
            checkpoint.delete()
        except BaseException as error:
            if writer.count == 0:
                about.unlink(missing_ok=True)
                checkpoint.delete()
                raise
            done = f"the {writer.count} frames done are in {folder}"
            try:
                _finish(folder, source)
            except (UserError, OSError):  # the disk is full, or the folder was deleted
                done = f"{writer.count} frames are done, continue with --resume"
                if not about.is_file():
                    done = "the files of this run were deleted"
            with suppress(UserError):  # of a full disk: the state that was saved before is continued
                checkpoint.save()
            if isinstance(error, (UserError, OSError)):
                problem = (
                    error if isinstance(error, UserError) else cannot_write(error.filename or folder, error)
                )
                raise UserError(f"{problem}; {done}") from error
            logging.getLogger(__name__).warning("l2g: interrupted: %s", done)
            raise


def _delete_exports(folder: Path) -> None:
    """Deletes the optional formats of an earlier run in a folder, which belong to other frames."""
    about = folder / "stream.json"
    try:
        names = read_about(folder)["save"] if about.is_file() else []
    except UserError:
        return
    for path in (folder / EXPORTS[name].file for name in names):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Creates a folder; after an exception it is removed if empty, and so are the parents created with it."""
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder, "--output")
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for path in created or [folder]:
                path.rmdir()
        raise
