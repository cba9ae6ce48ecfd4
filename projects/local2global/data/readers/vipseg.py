"""Videos in which every pixel has a segment: the reader of VIPSeg's panoptic PNG and JSON.

A thing is an instance by its segment id, a stuff class is one instance of its video; both are learnt alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import UserError
from ..datasets import VideoDataset, read_sized
from .annotations import JsonFile, check_classes

#: A segment's number in a PNG: red + 256 green + 65536 blue.
WEIGHTS = torch.tensor([1, 256, 65536], dtype=torch.int32)


@dataclass(frozen=True)
class PanopticVideo:
    """A `VideoRecord` whose masks are read from the PNG of a frame.

    Attributes:
        id: the video's position in the file, from 1; VIPSeg's own ids are names.
        name: VIPSeg's own id.
        size: (height, width) of every frame.
        files: the frames.
        maps: the PNGs, one for each frame.
        instances: (annotation id, label) of every row.
        segments: for each frame (segment id, row) of every segment in it.
    """

    id: int
    name: str
    size: tuple[int, int]
    files: tuple[Path, ...]
    maps: tuple[Path, ...]
    instances: tuple[tuple[int, int], ...]
    segments: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def length(self) -> int:
        """The number of frames."""
        return len(self.files)

    @property
    def labels(self) -> Tensor:
        """(M,) int64 positions in the class list."""
        return torch.tensor([label for _, label in self.instances], dtype=torch.int64)

    @property
    def ids(self) -> Tensor:
        """(M,) int64 annotation ids."""
        return torch.tensor([identity for identity, _ in self.instances], dtype=torch.int64)

    def frame(self, t: int) -> Tensor:
        """(3, H, W) uint8 RGB of frame `t`.

        Raises:
            UserError: if the file cannot be read or has not the size that the annotations say.
        """
        return read_sized(self.files[t], self.size).contiguous()

    def shrunk(self, t: int, factor: int) -> Tensor:
        """(3, H / factor, W / factor) uint8 of frame `t`, or the whole where the file cannot be read smaller."""
        return read_sized(self.files[t], self.size, factor)

    def masks(self, t: int) -> Tensor:
        """(M, H, W) bool of frame `t`."""
        whole = np.ones(len(self.instances), dtype=np.bool_)
        return self._masks(t, read_sized(self.maps[t], self.size), whole)

    def sampled(
        self, t: int, rows: NDArray[np.int64], columns: NDArray[np.int64], wanted: NDArray[np.bool_]
    ) -> Tensor:
        """(m, h, w) bool: the pixels of frame `t` at some rows and columns, of the wanted instances."""
        image = read_sized(self.maps[t], self.size)
        return self._masks(t, image[:, torch.from_numpy(rows)][:, :, torch.from_numpy(columns)], wanted)

    def present(self, t: int) -> NDArray[np.bool_]:
        """(M,) which instances the annotations name in frame `t`."""
        present = np.zeros(len(self.instances), dtype=np.bool_)
        present[[row for _, row in self.segments[t]]] = True
        return present

    def _masks(self, t: int, image: Tensor, wanted: NDArray[np.bool_]) -> Tensor:
        """Masks from (3, h, w) of a PNG's pixels."""
        numbers = (image.permute(1, 2, 0).int() * WEIGHTS).sum(dim=-1, dtype=torch.int32)
        places = np.cumsum(wanted) - 1
        masks = torch.zeros((int(wanted.sum()), *numbers.shape), dtype=torch.bool)
        for segment, row in self.segments[t]:
            if wanted[row]:
                masks[places[row]] |= numbers == segment
        return masks


@dataclass(frozen=True)
class PanopticVideos(VideoDataset):
    """Videos of one panoptic file; an entry of `classes` has `isthing` too.

    Attributes:
        file: the annotation file.
        maps: the folder of the PNGs.
    """

    file: Path
    maps: Path


class PanopticFile(JsonFile):
    """VIPSeg's form: videos with images, and for each video a list of frames with `segments_info`."""

    what = "videos"
    kind = "a panoptic video annotation file"

    def panoptic_classes(self) -> list[dict[str, Any]]:
        """{id, name, isthing} of the categories: things first, each by id."""
        entries = self._entries("categories", "category", {"name": str, "isthing": int})
        plain = [{"id": c["id"], "name": c["name"], "isthing": int(c["isthing"])} for c in entries]
        return sorted(plain, key=lambda c: (not c["isthing"], c["id"]))

    def videos(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Name and images of every video."""
        seen: set[str] = set()
        for position, video in enumerate(self.content["videos"]):
            if not isinstance(video, dict) or "video_id" not in video or not video.get("images"):
                self.fail(f"video at position {position}", "no 'video_id', or no 'images'")
            name = str(video["video_id"])
            for image in video["images"]:
                self._need(f'video "{name}"', image, {"file_name": str, "height": int, "width": int})
            if name in seen:
                self.fail(f'video "{name}"', "this id is used twice")
            seen.add(name)
            yield name, video["images"]

    def frames(self) -> dict[str, list[dict[str, Any]]]:
        """The annotated frames of every video by its name; none at all in a test half."""
        found: dict[str, list[dict[str, Any]]] = {}
        for position, entry in enumerate(self.content.get("annotations") or ()):
            if not isinstance(entry, dict) or "video_id" not in entry:
                self.fail(f"annotation at position {position}", "no 'video_id'")
            name = str(entry["video_id"])
            for frame in entry.get("annotations") or ():
                self._need(f'video "{name}"', frame, {"file_name": str, "segments_info": list})
                for segment in frame["segments_info"]:
                    place = f'video "{name}", frame {frame["file_name"]}'
                    self._need(place, segment, {"id": int, "category_id": int})
            found[name] = entry.get("annotations") or []
        return found

    def _need(self, place: str, entry: Any, kinds: Mapping[str, type]) -> None:
        for key, kind in kinds.items():
            if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
                self.fail(place, f"no '{key}' of type {kind.__name__}")


def load_panoptic(
    images: str | Path,
    maps: str | Path,
    annotations: str | Path,
    classes: Sequence[Mapping[str, Any]] | None = None,
) -> VideoDataset:
    """The videos of a file in VIPSeg's format.

    Args:
        images: the folder that holds a folder of frames for each video.
        maps: the folder that holds a folder of PNGs for each video.
        annotations: the JSON file; a test half without annotations gives videos without instances.
        classes: {id, name, isthing} of every class, in the order of the model's labels; None takes the file's, things
            first, each by id.

    Raises:
        UserError: for anything malformed, with the file, the video and the frame in one line.
    """
    file = PanopticFile(Path(annotations))
    frames = file.frames()
    for folder in (Path(images), Path(maps)) if frames else (Path(images),):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder.")
    if classes is not None:
        check_classes(file, classes)
    kept = file.panoptic_classes() if classes is None else [dict(c) for c in classes]
    if not all({"id", "name", "isthing"} <= set(c) for c in kept):
        raise UserError("a class list for panoptic videos needs id, name and isthing of every class.")
    videos: list[PanopticVideo] = []
    first = 1
    for number, (name, entries) in enumerate(file.videos(), start=1):
        annotated = frames.get(name, [])
        if annotated and len(annotated) != len(entries):
            file.fail(f'video "{name}"', f"{len(entries)} images, but {len(annotated)} annotated frames")
        instances, segments = _instances(file, name, annotated or [{}] * len(entries), kept, first)
        videos.append(
            PanopticVideo(
                id=number,
                name=name,
                size=(entries[0]["height"], entries[0]["width"]),
                files=tuple(Path(images, name, image["file_name"]) for image in entries),
                maps=tuple(Path(maps, name, frame["file_name"]) for frame in annotated),
                instances=instances,
                segments=segments,
            )
        )
        first += len(instances)
    return PanopticVideos(videos, kept, file.path, Path(maps))


def _instances(
    file: PanopticFile,
    name: str,
    frames: Sequence[Mapping[str, Any]],
    classes: Sequence[Mapping[str, Any]],
    first: int,
) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[tuple[int, int], ...], ...]]:
    """A video's rows, and the segments of its frames; crowds are nobody's."""
    positions = {c["id"]: k for k, c in enumerate(classes)}
    rows: dict[tuple[int, int | None], int] = {}
    labels: list[int] = []
    segments = []
    for frame in frames:
        found = []
        for segment in frame.get("segments_info", ()):
            category = segment["category_id"]
            if category not in positions:
                place = f'video "{name}", frame {frame["file_name"]}, segment {segment["id"]}'
                file.fail(place, f"category {category} is not among the {len(classes)} classes")
            if segment.get("iscrowd"):
                continue
            label = positions[category]
            row = rows.setdefault((label, segment["id"] if classes[label]["isthing"] else None), len(rows))
            labels += [label] * (row == len(labels))
            found.append((segment["id"], row))
        segments.append(tuple(found))
    return tuple((first + row, label) for row, label in enumerate(labels)), tuple(segments)
