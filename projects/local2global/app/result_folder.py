"""The output folder of `l2g predict`: the record of the stream, and the files made from it.

`frames.jsonl` and `video.partial.mp4` are written while the video runs.  `annotations.json`, `results.json` and
`video.mp4` follow at its end.  `stream.json` describes the video and the classes, which `finish` needs after a crash,
and the run, which `--resume` compares.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError, make_folder
from ..files import locked_folder
from ..results.exports.youtube_vis import write_annotations, write_results
from ..results.record import RecordedTracks, RecordWriter
from .checkpoint import Checkpoint
from .output import write_json
from .video import Source, finish_video


@dataclass(frozen=True)
class Prediction:
    """The output of `L2G.predict`.

    Attributes:
        folder: output folder; it holds `video.mp4`, `annotations.json`, `results.json` and `frames.jsonl`.
        frames: number of frames.
        objects: number of reported objects per class.
        seconds: elapsed time.
        announced: number of frames declared by the source, or None.
    """

    folder: Path
    frames: int
    objects: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    announced: int | None = None

    @property
    def video(self) -> Path:
        """The annotated mp4."""
        return self.folder / "video.mp4"

    @property
    def tracks(self) -> Path:
        """The tracks in the form of YouTube-VIS truth."""
        return self.folder / "annotations.json"


def finish(folder: Path) -> Prediction:
    """Writes `annotations.json`, `results.json` and `video.mp4` from the record and the partial video in a folder.

    Args:
        folder: output folder of an interrupted `L2G.predict`.

    Raises:
        UserError: if the folder holds no record, the record is invalid, or a run still writes to it.
    """
    record, about = folder / "frames.jsonl", folder / "stream.json"
    if not (record.is_file() and about.is_file()):
        raise UserError(f"{folder}: no frames.jsonl and stream.json of l2g predict in this folder")
    with locked_folder(folder, "--output"):
        return _finish(folder)


def _finish(folder: Path) -> Prediction:
    content = _read_about(folder / "stream.json")
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    with RecordedTracks(folder / "frames.jsonl") as recorded:
        unknown = {track.category_id for track in recorded.tracks.values()} - names.keys()
        if unknown:
            raise UserError(f"{folder}: stream.json has no category {min(unknown)}, which frames.jsonl names")
        write_annotations(folder / "annotations.json", recorded, content["video"], content["categories"])
        write_results(folder / "results.json", recorded)
        objects = Counter(names[track.category_id] for track in recorded.tracks.values())
        length = recorded.length
    finish_video(folder / "video.mp4")
    return Prediction(folder, length, dict(objects.most_common()))


def made_with(folder: Path) -> Any:
    """What stream.json says about the run that wrote a folder; None if it says nothing.

    Raises:
        UserError: if stream.json is damaged.
    """
    return _read_about(folder / "stream.json").get("run")


def _read_about(path: Path) -> dict[str, Any]:
    """The content of stream.json.

    Raises:
        UserError: if it is damaged.
    """
    try:
        content = json.loads(path.read_bytes())
        video, categories = content["video"], content["categories"]
        files = video["file_names"]
        sound = all(type(video[key]) is int for key in ("width", "height")) and isinstance(video["name"], str)
        sound &= files is None or (isinstance(files, list) and all(isinstance(file, str) for file in files))
        sound &= all(type(entry["id"]) is int and isinstance(entry["name"], str) for entry in categories)
    except (ValueError, TypeError, KeyError, RecursionError):
        sound = False
    if not sound:
        raise UserError(f"{path}: damaged; it describes the video and the classes of l2g predict")
    return dict(content)


@contextmanager
def open_record(
    folder: Path,
    source: Source,
    classes: Sequence[Mapping[str, Any]],
    run: Mapping[str, Any],
    checkpoint: Checkpoint,
    keep: int = 0,
) -> Iterator[RecordWriter]:
    """Opens the record of a stream; after an exception, the other files are made of the frames done so far.

    Args:
        folder: output folder.
        source: the video.
        classes: {id, name} of every class.
        run: what determines the results: source, model and options.
        checkpoint: saved after an exception, deleted at the end.
        keep: number of frames that an interrupted run has left.
    """
    height, width = source.size
    video = {"name": source.name, "width": width, "height": height, "fps": float(source.fps)}
    content = {
        "video": {**video, "file_names": source.files},
        "categories": [dict(entry) for entry in classes],
        "run": dict(run),
    }
    about = folder / "stream.json"
    with RecordWriter(folder / "frames.jsonl", classes, keep) as writer:
        checkpoint.save()
        write_json(about, content, "--output")
        try:
            yield writer
            checkpoint.delete()
        except BaseException as error:
            if writer.count == 0:
                about.unlink()
                checkpoint.delete()
                raise
            _finish(folder)
            checkpoint.save()
            done = f"the {writer.count} frames done are in {folder}"
            if isinstance(error, UserError):
                raise UserError(f"{error}; {done}") from error
            logging.getLogger(__name__).warning("l2g: interrupted: %s", done)
            raise


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
