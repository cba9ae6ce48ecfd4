"""The truth of a video, from a file in YouTube-VIS form, as a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from ...errors import UserError
from ...evaluation.files import read_json
from ...evaluation.tracks import Groups, check_truth, parse_truth
from .run import Frame, Run


def read_truth(path: Path, like: Run) -> Run:
    """The true objects of the video that `like` shows.

    Args:
        path: annotations; of one video, or with a video of the same name or folder.
        like: a run on the video.

    Raises:
        UserError: if the file is invalid or does not hold the video.
    """
    content = read_json(path)
    try:
        check_truth(content)
        video = _find_video(content["videos"], like.video)
        groups = parse_truth({**content, "videos": [video]})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    for tracks in groups.values():
        for track in tracks:
            if type(track.id) is not int or track.id < 0:
                raise UserError(f"{path}: annotation {track.id!r}: an id is a number of at least 0 here")
    names = {entry["id"]: str(entry.get("name", entry["id"])) for entry in content["categories"]}
    size, length = (video.get("height"), video.get("width")), _length(video, groups)
    if size != like.size:
        raise UserError(
            f"{path}: {size[1]}x{size[0]} pixels, but {like.name} has {like.size[1]}x{like.size[0]}"
        )
    return Run(
        name="truth",
        video=like.video,
        size=like.size,
        fps=like.fps,
        classes=names,
        frames=partial(_frames, groups, length, like.times.tolist()),
        details=[("annotations", str(path))],
    )


def _find_video(videos: list[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    if len(videos) == 1:
        return videos[0]
    names = {}
    for video in videos:
        files = video.get("file_names")
        first = files[0] if isinstance(files, list) and files and isinstance(files[0], str) else ""
        names[str(video.get("name") or Path(first).parent.name)] = video
    if name not in names:
        known = ", ".join(list(names)[:5])
        raise UserError(f"none of its {len(videos)} videos is named {name}; it has {known}, ...")
    return names[name]


def _length(video: Mapping[str, Any], groups: Groups) -> int:
    files = video.get("file_names")
    if isinstance(files, list) and files:
        return len(files)
    return max((len(track.masks) for tracks in groups.values() for track in tracks), default=0)


def _frames(groups: Groups, length: int, times: list[float]) -> Iterator[Frame]:
    """The frames in the form of `frames.jsonl`; every object that is visible has the score 1."""
    for t in range(length):
        objects = []
        for (_, category), tracks in groups.items():
            for track in tracks:
                rle = track.masks.rles[t] if t < len(track.masks) else None
                if rle is None or not track.masks.areas[t]:
                    continue
                counts = rle["counts"] if isinstance(rle["counts"], str) else rle["counts"].decode("ascii")
                mask = {"size": list(rle["size"]), "counts": counts}
                box = coco_mask.toBbox(mask).tolist()
                entry = {"id": track.id, "category_id": category, "score": 1.0, "bbox": box}
                objects.append({**entry, "segmentation": mask})
        yield {"index": t, "time": times[t] if t < len(times) else t, "objects": objects}
