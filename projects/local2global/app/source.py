"""`Source`: frames with time stamps; and the selection of some of them."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..data.augment import resize_frames, shortest_edge_size
from ..data.readers.images import rgb_pixels
from ..errors import UserError
from ..files import PARTIAL
from ..limits import check_pixels

FOLDER_FPS = Fraction(10)  # image files carry no rate; datasets of frames are sampled at 5 to 10 per second
_SAMPLE = 1 << 12  # bytes at both ends of a file that enter its identity
MAX_FPS = 1000  # a container that declares more has no usable rate

_TOLERANCE = 1e-6  # seconds: rounding of time stamps
MAX_SIDE = 16384  # pixels: the limit of libx264
Frame = Tensor | NDArray[np.uint8] | Image.Image
"""A frame in any form that `to_frame` converts."""

Item = TypeVar("Item")
TimedFrame = tuple[Tensor, float]
"""A (3, H, W) uint8 RGB frame and its time stamp: seconds since the first frame."""


@dataclass(frozen=True)
class Sound:
    """The sound of a video file.

    Attributes:
        path: the file.
        start: time stamp of the first video frame in the file, in seconds.
    """

    path: Path
    start: Fraction


@dataclass(frozen=True)
class Source:
    """Frames that can be iterated in constant memory, repeatedly unless `identity` is None.

    Attributes:
        name: short name for output files.
        fps: frames per second; the mean if the rate varies.
        size: (height, width) of every frame, upright, with square pixels.
        length: number of frames declared by the container, or None.
        read: returns an iterator of frames with increasing time stamps; it raises UserError for corrupt frames.
        files: names of the frames with their folder, such as "clip/00001.jpg"; None for other sources.
        identity: a hash that is equal for equal frames; None if the frames cannot be read a second time.
        sound: the sound that belongs to the time stamps, or None.
        live: frames come at the speed at which they are recorded, so those that come too fast are dropped.
        path: file, folder of the files, or address of either; None if the frames come from elsewhere.
    """

    name: str
    fps: Fraction
    size: tuple[int, int]
    length: int | None
    read: Callable[[], Iterator[TimedFrame]] = field(repr=False)
    files: tuple[str, ...] | None = field(default=None, repr=False)
    identity: str | None = field(default=None, repr=False)
    sound: Sound | None = None
    live: bool = False
    path: Path | str | None = field(default=None, repr=False)

    @property
    def is_still(self) -> bool:
        """Whether the source is one image."""
        return self.files is not None and len(self.files) == 1

    def __iter__(self) -> Iterator[Tensor]:
        """Iterates over the frames without their time stamps."""
        return (frame for frame, _ in self.read())


def select(
    source: Source, start: float = 0.0, end: float | None = None, every: int = 1, size: int | None = None
) -> Source:
    """Selects frames of a source, and resizes them.  Time stamps stay those of the source.

    The defaults select the source as it is.

    Args:
        source: the source.
        start: seconds; earlier frames are skipped.
        end: seconds; the source is read up to here.
        every: 2 selects every second frame from the first selected one.
        size: shorter edge in pixels of the resized frames, which keep their aspect.

    Raises:
        UserError: if a value is out of range.
    """
    _check_selection(start, end, every, size)
    if (start, end, every, size) == (0.0, None, 1, None):
        return source
    edges = source.size if size is None else _resized(source.size, size)

    def chosen(times: Iterable[tuple[Item, float]]) -> Iterator[tuple[Item, float]]:
        since = (pair for pair in times if pair[1] >= start - _TOLERANCE)
        until = itertools.takewhile(lambda pair: end is None or pair[1] < end - _TOLERANCE, since)
        return itertools.islice(until, 0, None, every)

    def read() -> Iterator[TimedFrame]:
        empty = True
        for frame, time in chosen(source.read()):
            empty = False
            yield resize_frames(frame, edges), time
        if empty:
            raise UserError(
                f"{source.name}: no frame between {start} s and {'its end' if end is None else f'{end} s'}"
            )

    length, files, identity = source.length, source.files, source.identity
    if files is not None:
        times = ((name, float(index / source.fps)) for index, name in enumerate(files))
        files = tuple(name for name, _ in chosen(times))
        length = len(files)
    elif length is not None:
        length = -(-length // every) if not start and end is None else None
    if identity is not None:
        identity = f"{identity} {start} {end} {every} {size}"
    return replace(
        source, fps=source.fps / every, size=edges, length=length, read=read, files=files, identity=identity
    )


def _resized(size: tuple[int, int], edge: int) -> tuple[int, int]:
    """(height, width) of frames whose shorter edge has `edge` pixels."""
    height, width = shortest_edge_size(size, edge, MAX_SIDE)
    try:
        check_pixels(width, height)
    except ValueError as error:
        raise UserError(f"size {edge}: frames of {error}") from error
    return height, width


def _check_selection(start: float, end: float | None, every: int, size: int | None) -> None:
    if start < 0 or (end is not None and end <= start):
        raise UserError(f"start {start} s, end {end} s: expected 0 <= start < end")
    if every < 1 or (size is not None and size < 1):
        raise UserError(f"every {every}, size {size}: expected numbers of at least 1")


def check_name(name: str, place: object) -> None:
    """Check that a name can be that of an output folder inside another folder.

    Args:
        name: of a source.
        place: the file or address that it comes from, for the message.

    Raises:
        UserError: if it is no part of a path, as the ".." of a file "...mp4", or that of a temporary file.
    """
    if name in ("", ".", "..") or set("/\0") & set(name) or name.endswith(PARTIAL):
        raise UserError(f"{place}: its output folder would be '{name}', which is no name for one. Rename it.")


def unique_name(name: str, taken: Container[str]) -> str:
    """The name, or the first of NAME-2, NAME-3 and so on, that is not taken."""
    names = itertools.chain((name,), (f"{name}-{number}" for number in itertools.count(2)))
    return next(name for name in names if name not in taken)


def identity_of(paths: Iterable[Path], *options: object) -> str:
    """A hash of files, by their names, sizes and first and last bytes, and of the options that select frames."""
    digest = hashlib.sha256(repr(options).encode())
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLE))
            file.seek(max(0, size - _SAMPLE))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def at_rate(frames: Iterable[Tensor], fps: Fraction) -> Iterator[TimedFrame]:
    """Frames with the time stamps of a constant rate."""
    return ((frame, float(index / fps)) for index, frame in enumerate(frames))


def checked_rate(fps: Fraction | float) -> Fraction:
    """A rate as a fraction.

    Raises:
        UserError: if the rate is not in (0, `MAX_FPS`].
    """
    rate = Fraction(fps).limit_denominator(65535) if math.isfinite(fps) else Fraction(0)
    if not 0 < rate <= MAX_FPS:
        raise UserError(f"{fps} frames per second: expected more than 0 and at most {MAX_FPS}")
    return rate


def to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """(3, H, W) from (H, W, 3); the pixels stay in the order of the image, which the encoder of the output needs."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def to_frame(image: Frame, bgr: bool = False) -> Tensor:
    """(3, H, W) uint8 RGB of a frame in another form.

    Args:
        image: a (3, H, W) uint8 tensor, an (H, W, 3) uint8 array or a Pillow image.
        bgr: the channels of tensors and arrays are in the order blue, green, red, as OpenCV reads them.

    Raises:
        UserError: if the frame has another type or shape.
    """
    if isinstance(image, Image.Image):
        return to_tensor(rgb_pixels(image))
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UserError(f"a frame of shape {image.shape} {image.dtype}: expected (H, W, 3) uint8")
        return to_tensor(image[..., ::-1] if bgr else image)
    if not isinstance(image, Tensor) or image.ndim != 3 or len(image) != 3 or image.dtype != torch.uint8:
        form = f"{tuple(image.shape)} {image.dtype}" if isinstance(image, Tensor) else type(image).__name__
        raise UserError(
            f"a frame of {form}: expected a (3, H, W) uint8 tensor, an (H, W, 3) array or an image"
        )
    return image.flip(0) if bgr else image
