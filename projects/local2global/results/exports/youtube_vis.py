"""YouTube-VIS files of one video: `annotations.json` in annotation format, `results.json` in result format.

Both are written mask by mask.  Frames on which an object was not reported have no mask.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO

from pycocotools import mask as coco_mask

from ...files import atomic_path
from ..record import RecordedTrack, RecordedTracks, Recording

VIDEO_ID = 1


def write_results(path: Path, recording: Recording) -> None:
    """Writes a list of {video_id, category_id, score, segmentations}, the input of evaluation servers."""
    recorded = recording.tracks
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8") as file:
        separator = "["
        for track in recorded.tracks.values():
            head = {
                "video_id": VIDEO_ID,
                "category_id": track.category_id,
                "score": round(track.score(recorded.length), 6),
            }
            file.write(f"{separator}{json.dumps(head)[:-1]}, ")
            _write_masks(file, recorded, track)
            file.write("}")
            separator = ",\n"
        file.write("[]\n" if separator == "[" else "]\n")


def write_annotations(path: Path, recording: Recording) -> None:
    """Writes {videos, categories, annotations} as in a dataset.

    An annotation has the usual keys, `score`, and the frames' scores in `scores`.  Its id is the slot + 1.
    """
    recorded, video = recording.tracks, recording.video
    length = recorded.length
    entry = {**video, "id": VIDEO_ID, "length": length, "file_names": recording.file_names}
    size = {"width": video["width"], "height": video["height"], "length": length}
    head = {"videos": [entry], "categories": [dict(category) for category in recording.categories]}
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(f'{json.dumps(head)[:-1]},\n"annotations": [')
        for count, track in enumerate(recorded.tracks.values()):
            fields = {
                "id": track.id + 1,
                "video_id": VIDEO_ID,
                "category_id": track.category_id,
                "iscrowd": 0,
                **size,
                "score": round(track.score(length), 6),
            }
            file.write((",\n" if count else "\n") + json.dumps(fields)[:-1] + ", ")
            lists = _write_masks(file, recorded, track)
            file.write(f", {json.dumps(lists)[1:]}")
        file.write("\n]}\n")


def _write_masks(file: TextIO, recorded: RecordedTracks, track: RecordedTrack) -> dict[str, list[Any]]:
    """Writes the `segmentations` of a track; returns the other lists that have one value per frame."""
    lists: dict[str, list[Any]] = {"bboxes": [], "areas": [], "scores": []}
    file.write('"segmentations": [')
    for t, entry in enumerate(recorded.objects(track)):
        rle = entry and entry["segmentation"]
        file.write((", " if t else "") + json.dumps(rle))
        lists["bboxes"].append(entry and entry["bbox"])
        lists["areas"].append(entry and int(coco_mask.area(rle)))
        lists["scores"].append(entry and entry["score"])
    file.write("]")
    return lists
