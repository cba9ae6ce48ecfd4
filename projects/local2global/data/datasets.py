"""Videos and their truth, read lazily: what a dataset is, and the reader of YouTube-VIS and OVIS files."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as rle
from torch import Tensor

from ..errors import UserError
from .readers.annotations import AnnotationFile, check_classes, choose, video_name
from .readers.images import read_image
from .readers.records import VideoRecord as VideoRecord
from .readers.records import sampled_masks, shrunk_frame
from .readers.rle import Grid, encode_mask


@dataclass(frozen=True)
class VideoDataset:
    """Some videos that share a class list.

    Attributes:
        videos: the records.
        classes: a model label k is the k-th entry; `id` is the dataset's category id.
    """

    videos: Sequence[VideoRecord]
    classes: list[dict[str, Any]]

    def __len__(self) -> int:
        """The number of videos."""
        return len(self.videos)

    def truth(self) -> dict[str, Any]:
        """A YouTube-VIS dict (videos, annotations, categories), every mask of every record encoded."""
        annotations = [a for video in self.videos for a in self._annotations(video)]
        videos = [
            {"id": v.id, "name": v.name, "height": v.size[0], "width": v.size[1], "length": v.length}
            for v in self.videos
        ]
        return {"videos": videos, "annotations": annotations, "categories": [dict(c) for c in self.classes]}

    def _annotations(self, video: VideoRecord) -> list[dict[str, Any]]:
        tracks: list[list[dict[str, Any] | None]] = [[] for _ in video.ids]
        for t in range(video.length):
            present = video.present(t)
            masks = video.masks(t) if present.any() else None
            for row, track in enumerate(tracks):
                track.append(encode_mask(masks[row]) if masks is not None and present[row] else None)
        return [
            {
                "id": int(identity),
                "video_id": video.id,
                "category_id": self.classes[int(label)]["id"],
                "iscrowd": 0,
                "height": video.size[0],
                "width": video.size[1],
                "length": video.length,
                "segmentations": track,
                "areas": [None if s is None else int(rle.area(s)) for s in track],
                "bboxes": [None if s is None else [float(x) for x in rle.toBbox(s)] for s in track],
            }
            for identity, label, track in zip(video.ids, video.labels, tracks, strict=True)
        ]


def read_sized(path: Path, size: tuple[int, int], shrink: int = 1) -> Tensor:
    """`read_image` of a file whose size is known.

    Raises:
        UserError: as `read_image`, and if the size is another.
    """
    image = read_image(path, shrink)
    found = tuple(image.shape[1:])
    if found != size and found != (size[0] // shrink, size[1] // shrink):
        raise UserError(
            f"{path}: {found[0]}x{found[1]} pixels (height x width), "
            f"but its annotations say {size[0]}x{size[1]}."
        )
    return image


def read_grid(
    size: tuple[int, int],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    counts: Sequence[str | None],
) -> Tensor:
    """(m, h, w) bool of m masks of a frame at some of its rows and columns; None is an empty mask."""
    grid = Grid(size, rows, columns)
    masks = torch.zeros((len(counts), len(rows), len(columns)), dtype=torch.bool)
    for mask, text in zip(masks, counts, strict=True):
        if text is not None:
            mask.copy_(grid.read(text))
    return masks


@dataclass(frozen=True)
class Track:
    """One annotation of a video.

    Attributes:
        id: the annotation's id.
        label: position in the class list.
        counts: for every frame the compressed RLE counts, None where no pixel shows the instance.
    """

    id: int
    label: int
    counts: tuple[str | None, ...]


@dataclass(frozen=True)
class AnnotatedVideo:
    """A `VideoRecord` of a folder of images and the tracks of an annotation file; see there."""

    id: int
    name: str
    size: tuple[int, int]
    files: tuple[Path, ...]
    tracks: tuple[Track, ...]

    @property
    def length(self) -> int:
        """The number of frames."""
        return len(self.files)

    @property
    def labels(self) -> Tensor:
        """(M,) int64 positions in the class list."""
        return torch.tensor([track.label for track in self.tracks], dtype=torch.int64)

    @property
    def ids(self) -> Tensor:
        """(M,) int64 annotation ids."""
        return torch.tensor([track.id for track in self.tracks], dtype=torch.int64)

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
        masks = torch.zeros((len(self.tracks), *self.size), dtype=torch.bool)
        for mask, track in zip(masks, self.tracks, strict=True):
            counts = track.counts[t]
            if counts is not None:
                mask.copy_(torch.from_numpy(rle.decode({"size": list(self.size), "counts": counts})))
        return masks

    def sampled(
        self, t: int, rows: NDArray[np.int64], columns: NDArray[np.int64], wanted: NDArray[np.bool_]
    ) -> Tensor:
        """(m, h, w) bool: the pixels of frame `t` at some rows and columns, of the wanted instances."""
        tracks = [self.tracks[i] for i in np.flatnonzero(wanted)]
        return read_grid(self.size, rows, columns, [track.counts[t] for track in tracks])

    def present(self, t: int) -> NDArray[np.bool_]:
        """(M,) which instances have a pixel in frame `t`."""
        return np.array([track.counts[t] is not None for track in self.tracks], dtype=np.bool_)


@dataclass(frozen=True)
class AnnotatedVideos(VideoDataset):
    """Videos of one YouTube-VIS file.

    Attributes:
        file: the annotation file, read again when `truth` is asked for.
    """

    file: Path

    def truth(self) -> dict[str, Any]:
        """What the file says of these videos, crowds included, every mask as compressed RLE.

        Areas and boxes are the file's own where it has them.  "annotations" is absent where the file has
        none, as in the test halves of public datasets.
        """
        kept = {video.id for video in self.videos}
        content = AnnotationFile(self.file)
        categories = [dict(c) for c in self.classes]
        videos = [v for v in content.videos() if v["id"] in kept]
        truth: dict[str, Any] = {"videos": videos, "categories": categories}
        if content.annotated:
            sizes = {video.id: video.size for video in self.videos}
            own = (a for a in content.annotations() if a["video_id"] in kept)
            truth["annotations"] = [self._plain(content, a, sizes[a["video_id"]]) for a in own]
        return truth

    def _plain(
        self, content: AnnotationFile, annotation: dict[str, Any], size: tuple[int, int]
    ) -> dict[str, Any]:
        counts = content.counts(annotation, size)
        track = [None if c is None else {"size": list(size), "counts": c} for c in counts]
        plain = {"iscrowd": 0, **annotation, "segmentations": track}
        if "areas" not in plain:
            plain["areas"] = [None if s is None else int(rle.area(s)) for s in track]
        if "bboxes" not in plain:
            plain["bboxes"] = [None if s is None else [float(x) for x in rle.toBbox(s)] for s in track]
        return plain


def load_youtube_vis(
    images: str | Path,
    annotations: str | Path,
    classes: Sequence[Mapping[str, Any]] | None = None,
    videos: Collection[str] | None = None,
    exclude: Collection[str] = (),
) -> VideoDataset:
    """The videos of a YouTube-VIS or OVIS file.  Crowds (`iscrowd`) are part of the truth only.

    Args:
        images: the folder that the file's `file_names` are relative to.
        annotations: the JSON file.
        classes: {id, name} of every class, in the order of the model's labels; None takes the file's, by id.
        videos: names (folders) of the videos to keep; None keeps all.
        exclude: names of videos to leave out.

    Raises:
        UserError: for anything malformed, with the file, the annotation's id and the video in one line.
    """
    root, file = Path(images), AnnotationFile(Path(annotations))
    if not root.is_dir():
        raise UserError(f"{root}: no such image folder.")
    if classes is not None:
        check_classes(file, classes)
    kept_classes = [{"id": int(c["id"]), "name": str(c["name"])} for c in classes or file.classes()]
    found = list(file.videos())
    names = choose(file, [video_name(v) for v in found], videos, exclude)
    tracks = _read_tracks(file, found, {v["id"] for v in found if video_name(v) in names}, kept_classes)
    records = [
        AnnotatedVideo(
            id=video["id"],
            name=video_name(video),
            size=(video["height"], video["width"]),
            files=tuple(root / name for name in video["file_names"]),
            tracks=tuple(tracks[video["id"]]),
        )
        for video in found
        if video_name(video) in names
    ]
    return AnnotatedVideos(records, kept_classes, file.path)


def _read_tracks(
    file: AnnotationFile,
    videos: Sequence[Mapping[str, Any]],
    kept: set[int],
    classes: Sequence[Mapping[str, Any]],
) -> dict[int, list[Track]]:
    by_id = {video["id"]: video for video in videos}
    positions = {c["id"]: k for k, c in enumerate(classes)}
    tracks: dict[int, list[Track]] = {identity: [] for identity in kept}
    for annotation in file.annotations():
        fail = partial(file.fail, f"annotation {annotation['id']}")
        video = by_id.get(annotation["video_id"])
        if video is None:
            fail(f"no video {annotation['video_id']} in this file")
        place = f'video {video["id"]}, "{video_name(video)}"'
        frames, category = len(video["file_names"]), annotation["category_id"]
        if category not in positions:
            fail(f"category {category} is not among the {len(classes)} classes ({place})")
        if len(annotation["segmentations"]) != frames:
            count = len(annotation["segmentations"])
            fail(f"{count} segmentations for a video of {frames} frames ({place})")
        if video["id"] in kept and not annotation.get("iscrowd"):
            counts = file.counts(annotation, (video["height"], video["width"]))
            tracks[video["id"]].append(Track(annotation["id"], positions[category], counts))
    return tracks


@dataclass(frozen=True)
class Renumbered:
    """A record of a merged dataset: the same video under other ids and labels.

    Attributes:
        record: the video as its own dataset knows it.
        id: its id in the merged dataset.
        first: the annotation id of row 0; the others follow.
        positions: for each label of the own dataset the one in the merged class list.
    """

    record: VideoRecord
    id: int
    first: int
    positions: tuple[int, ...]

    @property
    def name(self) -> str:
        """What people call it."""
        return self.record.name

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of every frame."""
        return self.record.size

    @property
    def length(self) -> int:
        """The number of frames."""
        return self.record.length

    @property
    def labels(self) -> Tensor:
        """(M,) int64 positions in the merged class list."""
        return torch.tensor(self.positions, dtype=torch.int64)[self.record.labels]

    @property
    def ids(self) -> Tensor:
        """(M,) int64 annotation ids in the merged truth."""
        return self.first + torch.arange(len(self.record.labels))

    def frame(self, t: int) -> Tensor:
        """(3, H, W) uint8 RGB of frame `t`."""
        return self.record.frame(t)

    def masks(self, t: int) -> Tensor:
        """(M, H, W) bool of frame `t`."""
        return self.record.masks(t)

    def shrunk(self, t: int, factor: int) -> Tensor:
        """As the video's own dataset gives it."""
        return shrunk_frame(self.record, t, factor)

    def sampled(
        self, t: int, rows: NDArray[np.int64], columns: NDArray[np.int64], wanted: NDArray[np.bool_]
    ) -> Tensor:
        """As the video's own dataset gives it."""
        return sampled_masks(self.record, t, rows, columns, wanted)

    def present(self, t: int) -> NDArray[np.bool_]:
        """(M,) which instances have a pixel in frame `t`."""
        return self.record.present(t)


@dataclass(frozen=True)
class MergedVideos(VideoDataset):
    """Several datasets as one.

    Attributes:
        parts: the datasets, in the order of `videos`.
    """

    parts: tuple[VideoDataset, ...]

    def truth(self) -> dict[str, Any]:
        """The parts' truths under the merged ids; what no record knows (crowds) is numbered last."""
        records = iter(self.videos)
        videos: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        annotated = False
        unknown = 1 + sum(len(video.labels) for video in self.videos)
        for part in self.parts:
            pairs = [(own, next(records)) for own in part.videos]
            video_ids = {own.id: new.id for own, new in pairs}
            own_ids = torch.cat([own.ids for own, _ in pairs]).tolist()
            ids = dict(zip(own_ids, torch.cat([new.ids for _, new in pairs]).tolist(), strict=True))
            truth = part.truth()
            annotated |= "annotations" in truth
            videos += [{**video, "id": video_ids[video["id"]]} for video in truth["videos"]]
            for annotation in truth.get("annotations", ()):
                identity = ids.get(annotation["id"], unknown)
                unknown += identity == unknown
                video_id = video_ids[annotation["video_id"]]
                annotations.append({**annotation, "id": identity, "video_id": video_id})
        merged: dict[str, Any] = {"videos": videos, "categories": [dict(c) for c in self.classes]}
        return {**merged, "annotations": annotations} if annotated else merged


def union_of_classes(lists: Iterable[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One class list out of several, ordered by id.

    Raises:
        UserError: if two lists give one id two names.
    """
    names: dict[int, str] = {}
    for category in (c for classes in lists for c in classes):
        known = names.setdefault(category["id"], category["name"])
        if known != category["name"]:
            both = f'"{known}" in one dataset and "{category["name"]}" in another'
            raise UserError(f"merge: category {category['id']} is {both}.")
    return [{"id": identity, "name": names[identity]} for identity in sorted(names)]


def merge(*datasets: VideoDataset) -> VideoDataset:
    """Several datasets as one: videos and annotations renumbered from 1, the class list their union by id.

    Datasets that already share one class list keep it as it is.

    Raises:
        UserError: if there is none, or if two class lists give one id two names.
    """
    if not datasets:
        raise UserError("merge: no dataset given.")
    same = all(d.classes == datasets[0].classes for d in datasets)
    classes = datasets[0].classes if same else union_of_classes(d.classes for d in datasets)
    order = {c["id"]: k for k, c in enumerate(classes)}
    records: list[VideoRecord] = []
    first = 1
    for dataset in datasets:
        positions = tuple(order[c["id"]] for c in dataset.classes)
        for record in dataset.videos:
            records.append(Renumbered(record, len(records) + 1, first, positions))
            first += len(record.labels)
    return MergedVideos(records, classes, datasets)
