"""Frames in and out: `open_source` opens videos and images as a `Source`, `VideoWriter` encodes an H.264 mp4.

Frames are (3, H, W) uint8 RGB tensors, rotated upright and decoded one at a time.
"""

from __future__ import annotations

import contextlib
import glob
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..data.readers.images import rgb_pixels
from ..errors import UserError
from ..files import atomic_path

FOLDER_FPS = Fraction(10)  # image files carry no rate; datasets of frames are sampled at 5 to 10 per second
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
ENCODERS = {"libx264": {"preset": "veryfast", "crf": "20"}, "libopenh264": {}}
_MAX_FPS = 1000  # a container that declares more has no usable rate


@dataclass(frozen=True)
class Source:
    """Frames that can be iterated repeatedly, each time from the first frame, in constant memory.

    Attributes:
        name: short name for output files.
        fps: frames per second.
        size: (height, width) of every frame, upright.
        length: number of frames declared by the container, or None.
        read: returns an iterator of (3, H, W) uint8 RGB tensors, which raises UserError for corrupt frames.
        files: names of the frames with their folder, such as "clip/00001.jpg"; None for video files.
    """

    name: str
    fps: Fraction
    size: tuple[int, int]
    length: int | None
    read: Callable[[], Iterator[Tensor]] = field(repr=False)
    files: tuple[str, ...] | None = field(default=None, repr=False)

    def __iter__(self) -> Iterator[Tensor]:
        """Iterates from the first frame."""
        return self.read()


def open_source(path: str | Path, fps: Fraction | float | None = None) -> Source:
    """Opens a video file, a folder of frames, a glob of frames or a single image.

    Args:
        path: file, folder or glob.  Frames are read in natural order (frame2 before frame10).
        fps: overrides the rate of the source; images default to 10.

    Raises:
        UserError: if nothing can be read.  The message is one line that names the path.
    """
    text = str(path)
    place = Path(text).expanduser()
    rate = None if fps is None else _rate(fps)
    if place.is_dir():
        frames = sorted((p for p in place.iterdir() if _is_frame(p)), key=natural_key)
        if not frames:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            raise UserError(f"{text}: no frames in this folder (looked for {suffixes})")
        return _images(place.resolve().name, frames, rate)
    if place.is_file():
        is_image = place.suffix.lower() in IMAGE_SUFFIXES
        return _images(place.stem, [place], rate) if is_image else _video(place, rate)
    if re.search(r"[*?\[]", text):
        return _glob(text, rate)
    raise UserError(f"{text}: no such file or folder")


def natural_key(path: str | Path) -> list[tuple[bool, int, str]]:
    """Sort key of a file name that compares runs of digits as numbers."""
    parts = re.split(r"(\d+)", Path(path).name)
    return [(not p.isdigit(), int(p) if p.isdigit() else 0, p) for p in parts if p]


def _is_frame(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _rate(fps: Fraction | float) -> Fraction:
    rate = Fraction(fps).limit_denominator(65535)
    if not 0 < rate <= _MAX_FPS:
        raise UserError(f"{fps} frames per second: expected more than 0 and at most {_MAX_FPS}")
    return rate


def _glob(pattern: str, fps: Fraction | None) -> Source:
    matches = map(Path, glob.glob(str(Path(pattern).expanduser()), recursive=True))
    files = sorted((p for p in matches if p.is_file()), key=lambda p: (str(p.parent), natural_key(p)))
    if not files:
        raise UserError(f"{pattern}: no file matches")
    if len(files) == 1:
        return open_source(files[0], fps)
    for file in files:
        if file.suffix.lower() not in IMAGE_SUFFIXES:
            problem = f"matches {file.name}, which is no image; a glob selects the frames of one video"
            raise UserError(f"{pattern}: {problem}")
    return _images(files[0].resolve().parent.name, files, fps)


# --- Images ---


def _images(name: str, paths: Sequence[Path], fps: Fraction | None) -> Source:
    size = _image_size(paths[0])
    for path in paths[1:]:
        other = _image_size(path)
        if other != size:
            raise UserError(
                f"{path}: {other[1]}x{other[0]} pixels, but {paths[0].name} has {size[1]}x{size[0]}; "
                "the frames of a video must all have one size"
            )
    names = tuple(f"{path.resolve().parent.name}/{path.name}" for path in paths)
    return Source(
        name, fps or FOLDER_FPS, size, len(paths), lambda: (_read_image(path) for path in paths), names
    )


@contextlib.contextmanager
def _image(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            # Reading the EXIF block of a PNG decodes the whole image, so the key is checked first.
            yield ImageOps.exif_transpose(image) if "exif" in image.info else image
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not an image") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: this image cannot be read ({error}); replace or remove it") from error


def _image_size(path: Path) -> tuple[int, int]:
    with _image(path) as image:
        return image.height, image.width


def _read_image(path: Path) -> Tensor:
    with _image(path) as image:
        return _to_tensor(rgb_pixels(image))


def _to_tensor(pixels: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


# --- Video files ---


def _video(path: Path, fps: Fraction | None) -> Source:
    if path.stat().st_size == 0:
        raise UserError(f"{path}: this file is empty")
    with _open_video(path) as (container, stream):
        length = stream.frames or None
        declared = stream.average_rate or stream.guessed_rate
        frame = next(container.decode(stream), None)
        if frame is None:
            raise UserError(f"{path}: this video has no frames")
        size = (frame.width, frame.height) if _quarter_turns(frame) % 2 else (frame.height, frame.width)
    usable = declared is not None and 0 < declared <= _MAX_FPS
    rate = fps or (Fraction(declared) if usable else FOLDER_FPS)
    return Source(path.stem, rate, size, length, lambda: _decode(path, size))


@contextlib.contextmanager
def _open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path}: no video stream in this file")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except av.error.FFmpegError as error:
        raise UserError(
            f"{path}: this video cannot be read ({error.strerror}); is the file complete?"
        ) from error


def _decode(path: Path, size: tuple[int, int]) -> Iterator[Tensor]:
    with _open_video(path) as (container, stream):
        for index, frame in enumerate(container.decode(stream)):
            pixels = np.rot90(frame.to_ndarray(format="rgb24"), _quarter_turns(frame))
            if pixels.shape[:2] != size:
                height, width = pixels.shape[:2]
                raise UserError(
                    f"{path}: frame {index} has {width}x{height} pixels, the first {size[1]}x{size[0]}; "
                    "re-encode the video to one size"
                )
            yield _to_tensor(pixels)


def _quarter_turns(frame: Any) -> int:
    """Number of counter-clockwise quarter turns that rotate a frame upright."""
    return int(round(frame.rotation / 90) % 4)


# --- Writing ---


def h264_encoder() -> str:
    """Returns the H.264 encoder of the installed PyAV.

    Raises:
        UserError: if there is none.
    """
    for name in ENCODERS:
        with contextlib.suppress(ValueError):
            av.codec.Codec(name, "w")
            return name
    raise UserError(
        "this PyAV has no H.264 encoder; install the official wheel: pip install --force-reinstall av"
    )


class VideoWriter:
    """Context manager that writes an H.264 mp4 for browsers.

    The frames are written to a fragmented mp4, `<name>.partial.mp4`, which plays even if the process is killed.  When
    the block ends, it is copied to a regular mp4 without encoding again, and deleted.  Frames of odd size are padded
    by repeating the last row or column, since 4:2:0 needs even sizes.

    Args:
        path: the file to write; its folder is created.
        fps: frames per second.
        size: (height, width) of the frames.
        keep_partial: after an exception, finish the file with the frames written so far instead of deleting it.
    """

    def __init__(
        self,
        path: str | Path,
        fps: Fraction | float,
        size: tuple[int, int],
        keep_partial: bool = False,
    ) -> None:
        """Creates the folder and opens the encoder."""
        self.path = Path(path)
        self.size = size
        self.count = 0
        self.partial = self.path.with_suffix(".partial.mp4")
        self._keep_partial = keep_partial
        rate = _rate(fps)
        encoder = h264_encoder()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        options = {"movflags": "+frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
        self._container = av.open(str(self.partial), "w", format="mp4", container_options=options)
        stream: Any = self._container.add_stream(encoder, rate=rate, options=dict(ENCODERS[encoder]))
        stream.height, stream.width = (edge + edge % 2 for edge in size)
        stream.pix_fmt = "yuv420p"
        # Players guess the colour space of untagged videos from the frame size, and guess differently.
        context = stream.codec_context
        context.gop_size = max(1, round(rate))  # one fragment per second
        context.colorspace = context.color_primaries = context.color_trc = int(Colorspace.ITU709)
        context.color_range = int(ColorRange.MPEG)
        self._stream = stream
        self._time_base = 1 / rate

    def write(self, frame: Tensor) -> None:
        """Appends a frame.

        Args:
            frame: (3, H, W) uint8 RGB of the writer's size.

        Raises:
            ValueError: if the frame has another shape or dtype.
        """
        if tuple(frame.shape) != (3, *self.size) or frame.dtype != torch.uint8:
            raise ValueError(
                f"expected (3, {self.size[0]}, {self.size[1]}) uint8, got {tuple(frame.shape)} {frame.dtype}"
            )
        pixels = frame.detach().cpu().permute(1, 2, 0).numpy()
        pixels = np.pad(pixels, [(0, edge % 2) for edge in self.size] + [(0, 0)], mode="edge")
        picture: Any = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        picture = picture.reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        picture.pts, picture.time_base = self.count, self._time_base
        self._container.mux(self._stream.encode(picture))
        self.count += 1

    def __enter__(self) -> VideoWriter:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finishes the file, or deletes it after an exception.

        Raises:
            ValueError: if no frame was written.
        """
        try:
            if kind is None and self.count == 0:
                raise ValueError(f"{self.path}: no frame was written")
            if self.count and (kind is None or self._keep_partial):
                self._container.mux(self._stream.encode(None))
                self._container.close()
                finish_video(self.path)
        finally:
            with contextlib.suppress(av.error.FFmpegError):
                self._container.close()
            self.partial.unlink(missing_ok=True)


def finish_video(path: Path) -> bool:
    """Copies the fragmented `<name>.partial.mp4` of an interrupted `VideoWriter` to a regular mp4 and deletes it.

    Args:
        path: the mp4, replaced atomically.

    Returns:
        Whether there was a partial file.

    Raises:
        UserError: if the partial file holds no complete fragment.
    """
    partial = path.with_suffix(".partial.mp4")
    if not partial.is_file():
        return False
    options = {"movflags": "+faststart"}
    try:
        with (
            atomic_path(path) as whole,
            av.open(str(partial)) as source,
            av.open(str(whole), "w", format="mp4", container_options=options) as target,
        ):
            stream: Any = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
    except av.error.FFmpegError as error:
        raise UserError(f"{partial}: this video cannot be read ({error.strerror})") from error
    partial.unlink()
    return True
