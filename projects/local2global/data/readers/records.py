"""Videos whose frames are image files: records that read their rows in flat tables.

A table holds all videos, file names and masks of a dataset in a few tensors.  Worker processes share their memory.
Lists of Python objects would be copied to every worker, because reading an object changes its reference count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import UserError
from ...results.segment_ids import Ids, read_ids
from .archives import ImageFile, ImageRoot
from .images import image_path, read_sized
from .rle import Outline, decode_outlines, pack_outline, sample_outlines, unpack_outline


class Packed:
    """A sequence of byte strings in two tensors.

    Args:
        items: the byte strings.
    """

    def __init__(self, items: Iterable[bytes]) -> None:
        items = list(items)
        self._ends = _offsets(map(len, items))
        joined = bytearray().join(items)
        self._data = (
            torch.frombuffer(joined, dtype=torch.uint8) if joined else torch.zeros(0, dtype=torch.uint8)
        )

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> bytes:
        """The byte string at an index of 0 or more."""
        start, end = self._ends[index : index + 2].tolist()
        return bytes(self._data[start:end].numpy().tobytes())

    def filled(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) which of the byte strings at `indices` are not empty."""
        ends = self._ends.numpy()
        return np.asarray(ends[indices + 1] > ends[indices])


def _offsets(counts: Iterable[int]) -> Tensor:
    """(n + 1,) int64 cumulative sums of n counts, from 0."""
    return torch.tensor(list(accumulate(counts, initial=0)), dtype=torch.int64)


@dataclass(frozen=True)
class Files:
    """File names relative to a folder or to a folder in a zip file.

    Attributes:
        root: the folder.
        names: the names.
    """

    root: ImageRoot
    names: Packed

    def __getitem__(self, index: int) -> ImageFile:
        return image_path(self.root, self.names[index].decode())


@dataclass(frozen=True)
class VideoRow:
    """A video that is written into a table.

    Attributes:
        id: the video's id, unique in its dataset.
        name: its folder.
        size: (height, width) of every frame.
        files: the file name of every frame.
    """

    id: int
    name: str
    size: tuple[int, int]
    files: Sequence[str]


class VideoTable:
    """The videos of a dataset in flat tensors.

    Args:
        root: the folder to which the file names are relative.
        rows: the videos.
    """

    def __init__(self, root: ImageRoot, rows: Sequence[VideoRow]) -> None:
        self.ids = torch.tensor([row.id for row in rows], dtype=torch.int64)
        self.names = Packed(row.name.encode() for row in rows)
        self.sizes = torch.tensor([row.size for row in rows], dtype=torch.int64).reshape(-1, 2)
        self.first_frame = _offsets(len(row.files) for row in rows)
        self.files = Files(root, Packed(file.encode() for row in rows for file in row.files))


class FileVideo:
    """The part of a `VideoRecord` that is the same for every annotation format.

    Args:
        table: the videos of the dataset.
        index: the video's row.
    """

    __slots__ = ("_index", "_table")

    def __init__(self, table: VideoTable, index: int) -> None:
        self._table, self._index = table, index

    @property
    def id(self) -> int:
        """The video's id, unique in its dataset."""
        return int(self._table.ids[self._index])

    @property
    def name(self) -> str:
        """Its folder."""
        return self._table.names[self._index].decode()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of every frame."""
        height, width = self._table.sizes[self._index].tolist()
        return height, width

    @property
    def length(self) -> int:
        """The number of frames."""
        first, end = self._table.first_frame[self._index : self._index + 2].tolist()
        return int(end - first)

    def _frame_index(self, t: int) -> int:
        """The row of frame `t` in the table of frames.

        Raises:
            IndexError: if the video has no such frame.
        """
        first, end = self._table.first_frame[self._index : self._index + 2].tolist()
        if not 0 <= t < end - first:
            raise IndexError(f"video {self.name} has frames 0 to {end - first - 1}, not {t}")
        return int(first + t)

    def file(self, t: int) -> ImageFile:
        """The image file of frame `t`."""
        return self._table.files[self._frame_index(t)]

    @property
    def files(self) -> tuple[ImageFile, ...]:
        """The image file of every frame."""
        return tuple(self.file(t) for t in range(self.length))

    def frame(self, t: int) -> Tensor:
        """(3, H, W) uint8 RGB of frame `t`.

        Raises:
            UserError: if the file cannot be read or does not have the annotated size.
        """
        return read_sized(self.file(t), self.size).contiguous()

    def shrunk(self, t: int, factor: int) -> Tensor:
        """(3, H / factor, W / factor) uint8 of frame `t`, or full size if the format cannot be decoded smaller."""
        return read_sized(self.file(t), self.size, factor)


@dataclass(frozen=True)
class Track:
    """One annotation of a video that is written into a table.

    Attributes:
        id: the annotation's id.
        label: position in the class list.
        outlines: the mask of every frame, None where the instance has no pixel.
    """

    id: int
    label: int
    outlines: Sequence[Outline | None]


class AnnotatedTable(VideoTable):
    """Videos and the tracks of an annotation file.

    Args:
        root: the folder to which the file names are relative.
        rows: the videos.
        tracks: the tracks of every video.
    """

    def __init__(self, root: ImageRoot, rows: Sequence[VideoRow], tracks: Sequence[Sequence[Track]]) -> None:
        super().__init__(root, rows)
        self.first_track = _offsets(map(len, tracks))
        self.track_ids = torch.tensor([track.id for part in tracks for track in part], dtype=torch.int64)
        self.labels = torch.tensor([track.label for part in tracks for track in part], dtype=torch.int64)
        self.first_mask = _offsets(len(row.files) * len(part) for row, part in zip(rows, tracks, strict=True))
        outlines = (o for part in tracks for track in part for o in track.outlines)
        self.masks = Packed([o.encode() if type(o) is str else pack_outline(o) for o in outlines])


class AnnotatedVideo(FileVideo):
    """A `VideoRecord` of image files and the tracks of an annotation file."""

    __slots__ = ()
    _table: AnnotatedTable

    def _tracks(self) -> slice:
        return slice(*self._table.first_track[self._index : self._index + 2].tolist())

    @property
    def labels(self) -> Tensor:
        """(M,) int64 positions in the class list."""
        return self._table.labels[self._tracks()]

    @property
    def ids(self) -> Tensor:
        """(M,) int64 annotation ids."""
        return self._table.track_ids[self._tracks()]

    def _masks(self, t: int) -> NDArray[np.int64]:
        """(M,) the rows of the masks of frame `t` in the table of masks."""
        self._frame_index(t)
        first, end = self._table.first_mask[self._index : self._index + 2].tolist()
        return np.arange(first + t, end, self.length)

    def outlines(self, t: int) -> list[Outline | None]:
        """The mask of every instance in frame `t`, None where it has no pixel."""
        return [unpack_outline(self._table.masks[i]) for i in self._masks(t).tolist()]

    def masks(self, t: int) -> Tensor:
        """(M, H, W) bool of frame `t`."""
        return decode_outlines(self.outlines(t), self.size)

    def sampled(
        self, t: int, rows: NDArray[np.int64], columns: NDArray[np.int64], instances: NDArray[np.bool_]
    ) -> Tensor:
        """(m, h, w) bool: the masks of m selected instances in frame `t`, at some rows and columns."""
        selected = self._masks(t)[instances].tolist()
        outlines = [unpack_outline(self._table.masks[i]) for i in selected]
        return sample_outlines(outlines, self.size, rows, columns)

    def present(self, t: int) -> NDArray[np.bool_]:
        """(M,) which instances have a mask in frame `t`.

        A polygon too thin to contain a pixel counts: it is not rasterised here.
        """
        return self._table.masks.filled(self._masks(t))


def annotated_videos(
    root: ImageRoot, rows: Sequence[VideoRow], tracks: Sequence[Sequence[Track]]
) -> list[AnnotatedVideo]:
    """The records of a new table; arguments as in `AnnotatedTable`."""
    table = AnnotatedTable(root, rows, tracks)
    return [AnnotatedVideo(table, index) for index in range(len(rows))]


@dataclass(frozen=True)
class PanopticRow(VideoRow):
    """A video with a panoptic PNG per frame that is written into a table.

    Attributes:
        maps: the file name of every frame's PNG; empty if the video is not annotated.
        instances: (annotation id, label) of every row.
        segments: for each frame (segment id, row) of every segment in it.
    """

    maps: Sequence[str]
    instances: Sequence[tuple[int, int]]
    segments: Sequence[Sequence[tuple[int, int]]]


class PanopticTable(VideoTable):
    """Videos with panoptic PNGs.

    Args:
        root: the folder to which the names of images are relative.
        maps: the folder to which the names of PNGs are relative.
        rows: the videos.
    """

    def __init__(self, root: ImageRoot, maps: ImageRoot, rows: Sequence[PanopticRow]) -> None:
        super().__init__(root, rows)
        self.maps = Files(maps, Packed(file.encode() for row in rows for file in row.maps))
        self.first_row = _offsets(len(row.instances) for row in rows)
        self.instances = _pairs(pair for row in rows for pair in row.instances)
        self.first_segment = _offsets(len(frame) for row in rows for frame in row.segments)
        self.segments = _pairs(pair for row in rows for frame in row.segments for pair in frame)


def _pairs(items: Iterable[tuple[int, int]]) -> Tensor:
    """(n, 2) int64."""
    return torch.tensor(list(items), dtype=torch.int64).reshape(-1, 2)


def _read_map(path: ImageFile, size: tuple[int, int]) -> Ids:
    """`read_ids` of a file that must have `size` (height, width)."""
    ids = read_ids(path)
    if ids.shape != size:
        problem = f"{ids.shape[0]}x{ids.shape[1]} pixels (height x width), but its annotations say {size[0]}x{size[1]}"
        raise UserError(f"{path}: {problem}.")
    return ids


class PanopticVideo(FileVideo):
    """A `VideoRecord` whose masks are read from panoptic PNGs."""

    __slots__ = ()
    _table: PanopticTable

    @property
    def _instances(self) -> Tensor:
        first, end = self._table.first_row[self._index : self._index + 2].tolist()
        return self._table.instances[first:end]

    @property
    def labels(self) -> Tensor:
        """(M,) int64 positions in the class list."""
        return self._instances[:, 1]

    @property
    def ids(self) -> Tensor:
        """(M,) int64 annotation ids."""
        return self._instances[:, 0]

    def segments(self, t: int) -> list[tuple[int, int]]:
        """(segment id, row) of every segment of frame `t`."""
        frame = self._frame_index(t)
        first, end = self._table.first_segment[frame : frame + 2].tolist()
        return [(segment, row) for segment, row in self._table.segments[first:end].tolist()]

    def masks(self, t: int) -> Tensor:
        """(M, H, W) bool of frame `t`."""
        rows, columns = (np.arange(side) for side in self.size)
        return self.sampled(t, rows, columns, np.ones(len(self._instances), dtype=np.bool_))

    def sampled(
        self, t: int, rows: NDArray[np.int64], columns: NDArray[np.int64], instances: NDArray[np.bool_]
    ) -> Tensor:
        """(m, h, w) bool: the masks of m selected instances in frame `t`, at some rows and columns."""
        masks = torch.zeros((int(instances.sum()), len(rows), len(columns)), dtype=torch.bool)
        segments = self.segments(t)
        if not segments:
            return masks
        file = self._table.maps[self._frame_index(t)]
        ids = torch.from_numpy(_read_map(file, self.size)[np.ix_(rows, columns)])
        places = np.cumsum(instances) - 1
        for segment, row in segments:
            if instances[row]:
                masks[places[row]] |= ids == segment
        return masks

    def present(self, t: int) -> NDArray[np.bool_]:
        """(M,) which instances are annotated in frame `t`."""
        present = np.zeros(len(self._instances), dtype=np.bool_)
        present[[row for _, row in self.segments(t)]] = True
        return present


def panoptic_videos(root: ImageRoot, maps: ImageRoot, rows: Sequence[PanopticRow]) -> list[PanopticVideo]:
    """The records of a new table; arguments as in `PanopticTable`."""
    table = PanopticTable(root, maps, rows)
    return [PanopticVideo(table, index) for index in range(len(rows))]
