"""tracks.json: one video's tracks as YouTube-VIS annotations, written mask by mask in constant memory."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..structures import VideoResult
from .files import atomic_path


def best_tracks(
    result: VideoResult, slots: Collection[int], labels: Collection[int] | None = None
) -> Iterator[int]:
    """Selects one track per object: the best-scoring class of each slot.

    Args:
        result: tracks by falling score; a slot may occur once per class.
        slots: the slots to select from.
        labels: the classes to select from; None selects from all.

    Yields:
        track indices into the result, by falling score.
    """
    seen: set[int] = set()
    for index, (slot, label) in enumerate(zip(result.slots.tolist(), result.labels.tolist(), strict=True)):
        if slot in slots and slot not in seen and (labels is None or label in labels):
            seen.add(slot)
            yield index


def write_tracks(
    path: str | Path,
    result: VideoResult,
    indices: Iterable[int],
    classes: Sequence[Mapping[str, Any]],
    video: Mapping[str, Any],
) -> None:
    """Writes the file atomically.

    Args:
        path: the output file.
        result: the video's tracks.
        indices: the tracks to write, in this order.
        classes: {id, name} per label.
        video: further keys of the video's entry, e.g. its name and frame rate.
    """
    height, width = result.size
    head = {"id": result.video_id, "width": width, "height": height, "length": result.length, **video}
    categories = json.dumps([dict(c) for c in classes], ensure_ascii=False)
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(f'{{"videos": [{json.dumps(head, ensure_ascii=False)}],\n"categories": {categories},\n')
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
