"""tracks.json: one video's tracks as YouTube-VIS JSON, written mask by mask so that memory stays constant."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..structures import VideoResult


def best_tracks(
    result: VideoResult, slots: Collection[int], labels: Collection[int] | None = None
) -> Iterator[int]:
    """The tracks of a result that stand for an object of their own: of every slot its best class.

    Args:
        result: tracks by falling score; a slot may occur once per class.
        slots: only these.
        labels: only these classes; None for all.

    Yields:
        indices into the result, by falling score.
    """
    seen: set[int] = set()
    for index, (slot, label) in enumerate(zip(result.slots.tolist(), result.labels.tolist(), strict=True)):
        if slot in slots and slot not in seen and (labels is None or label in labels):
            seen.add(slot)
            yield index


def write_tracks(
    path: str | Path,
    result: VideoResult,
    indices: Iterator[int],
    classes: Sequence[Mapping[str, Any]],
    video: Mapping[str, Any],
) -> None:
    """Writes the file; it appears only when it is whole.

    Args:
        path: where to.
        result: the video's tracks.
        indices: which of them, and in which order.
        classes: {id, name} per label.
        video: what else to say of the video, e.g. its name and rate.
    """
    height, width = result.size
    head = {"id": result.video_id, "width": width, "height": height, "length": result.length, **video}
    target = Path(path)
    temporary = target.with_name(target.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            categories = json.dumps([dict(c) for c in classes], ensure_ascii=False)
            file.write(
                f'{{"videos": [{json.dumps(head, ensure_ascii=False)}],\n"categories": {categories},\n'
            )
            file.write('"annotations": [')
            for count, index in enumerate(indices):
                fields = {
                    "id": int(result.slots[index]),
                    "video_id": result.video_id,
                    "category_id": classes[int(result.labels[index])]["id"],
                    "score": round(float(result.scores[index]), 6),
                }
                file.write((",\n" if count else "\n") + json.dumps(fields)[:-1] + ', "segmentations": [')
                for t, rle in enumerate(result.segmentations(index)):
                    file.write((", " if t else "") + json.dumps(rle))
                file.write("]}")
            file.write("\n]}\n")
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
