"""Frames in and out: `open_source` opens videos and images as a `Source`, `VideoWriter` encodes an H.264 mp4.

Frames are (3, H, W) uint8 RGB tensors, upright, with square pixels, and decoded one at a time.
"""

from __future__ import annotations

import contextlib
import glob
import math
import os
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..files import atomic_path, cannot_write
from .image_source import IMAGE_SUFFIXES, open_images
from .live_source import open_address, open_camera, open_pipe
from .sound import finish_video, partial_path
from .source import MAX_SIDE, Source, checked_rate
from .video_source import open_video

# No B-frames: a fragmented mp4 cannot undo their delay, and the video would start two frames late.
ENCODERS = {"libx264": {"preset": "veryfast", "crf": "20", "bf": "0"}, "libopenh264": {}}


def open_source(path: str | Path, fps: Fraction | float | None = None) -> Source:
    """Opens a video file, a folder or glob of frames, an image file, a pipe, a camera or an address.

    Args:
        path: file, folder, glob or named pipe; "-" for standard input; the number of a camera, such as "0"; or an
            rtsp, rtsps, http or https address.  Frames are read in natural order (frame2 before frame10).
        fps: replaces the time stamps of the source; images without time stamps default to 10.

    Raises:
        UserError: if nothing can be read.  The message is one line that names the path.
    """
    text = str(path)
    place = Path(os.path.expanduser(text))  # `Path.expanduser` raises for an unknown user
    rate = None if fps is None else checked_rate(fps)
    if text == "-" or place.is_fifo():
        return open_pipe("-" if text == "-" else str(place), rate)
    if place.is_dir():
        frames = sorted((p for p in place.iterdir() if _is_frame(p)), key=natural_key)
        if not frames:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            raise UserError(f"{text}: no frames in this folder (looked for {suffixes})")
        return open_images(place.resolve().name, frames, rate)
    if place.is_file():
        is_image = place.suffix.lower() in IMAGE_SUFFIXES
        return open_images(place.stem, [place], rate) if is_image else open_video(place, rate)
    if re.fullmatch(r"\d{1,3}", text):
        return open_camera(int(text), rate)
    if "://" in text:
        return open_address(text, rate)
    if re.search(r"[*?\[]", text):
        return _glob(text, rate)
    raise UserError(f"{text}: no such file or folder")


def natural_key(path: str | Path) -> list[tuple[bool, int, str]]:
    """Sort key of a file name that compares runs of digits as numbers."""
    parts = re.split(r"(\d+)", Path(path).name)
    return [(not p.isdecimal(), int(p) if p.isdecimal() else 0, p) for p in parts if p]


def _is_frame(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _glob(pattern: str, fps: Fraction | None) -> Source:
    matches = map(Path, glob.glob(os.path.expanduser(pattern), recursive=True))
    files = sorted((p for p in matches if p.is_file()), key=lambda p: (str(p.parent), natural_key(p)))
    if not files:
        raise UserError(f"{pattern}: no file matches")
    if len(files) == 1:
        return open_source(files[0], fps)
    for file in files:
        if file.suffix.lower() not in IMAGE_SUFFIXES:
            problem = f"matches {file.name}, which is no image; a glob selects the frames of one video"
            raise UserError(f"{pattern}: {problem}")
    return open_images(files[0].resolve().parent.name, files, fps)


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
    the block ends, it becomes a regular mp4 (`finish_video`).  Frames of odd size are padded by repeating the last row
    or column, since 4:2:0 needs even sizes.

    Args:
        path: the file to write; its folder is created.
        fps: frames per second.
        size: (height, width) of the frames.
        keep_partial: leave the fragmented file to the caller, also after an exception, unless it is empty.
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
        self.partial = partial_path(self.path)
        self._keep_partial = keep_partial
        self._reformatter = VideoReformatter()  # keeps the tables of the conversion
        rate = checked_rate(fps)
        encoder = h264_encoder()
        padded = tuple(edge + edge % 2 for edge in size)
        if max(padded) > MAX_SIDE:
            raise UserError(
                f"{size[1]}x{size[0]} pixels: an H.264 video has at most {MAX_SIDE} on a side; resize the input"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        options = {"movflags": "+frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
        try:
            self._container = av.open(str(self.partial), "w", format="mp4", container_options=options)
        except OSError as error:
            raise cannot_write(self.partial, error) from error
        stream: Any = self._container.add_stream(encoder, rate=rate, options=dict(ENCODERS[encoder]))
        stream.height, stream.width = padded
        stream.pix_fmt = "yuv420p"
        # Players guess the colour space of untagged videos from the frame size, and guess differently.
        context = stream.codec_context
        context.gop_size = max(1, round(rate))  # one fragment per second
        context.colorspace = context.color_primaries = context.color_trc = int(Colorspace.ITU709)
        context.color_range = int(ColorRange.MPEG)
        self._stream = stream
        # Fine enough for a varying rate, and a multiple of the constant rate.
        scale = math.ceil(10_000 / rate.numerator)
        self._time_base = context.time_base = Fraction(1, rate.numerator * scale)
        self._interval, self._pts = rate.denominator * scale, -1
        try:
            context.open()
        except av.error.FFmpegError as error:
            self._container.close()
            self.partial.unlink(missing_ok=True)
            raise UserError(f"{size[1]}x{size[0]} pixels: {encoder} cannot encode this size") from error

    def write(self, frame: Tensor, time: float | None = None) -> None:
        """Appends a frame.

        Args:
            frame: (3, H, W) uint8 RGB of the writer's size.
            time: seconds since the first frame; default: one interval after the last frame.

        Raises:
            ValueError: if the frame has another shape or dtype.
        """
        if tuple(frame.shape) != (3, *self.size) or frame.dtype != torch.uint8:
            raise ValueError(
                f"expected (3, {self.size[0]}, {self.size[1]}) uint8, got {tuple(frame.shape)} {frame.dtype}"
            )
        pixels = frame.detach().cpu().permute(1, 2, 0).numpy()
        if any(edge % 2 for edge in self.size):
            pixels = np.pad(pixels, [(0, edge % 2) for edge in self.size] + [(0, 0)], mode="edge")
        height, width = pixels.shape[:2]
        source: Any = av.VideoFrame(width, height, "rgb24")
        plane = source.planes[0]
        if plane.line_size == 3 * width:
            plane.update(np.ascontiguousarray(pixels))
        else:  # rows are padded
            source = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        picture: Any = self._reformatter.reformat(
            source, format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        if time is None:
            self._pts += self._interval if self.count else 1
        else:
            self._pts = max(self._pts + 1, round(time / self._time_base))
        picture.pts, picture.time_base, picture.duration = self._pts, self._time_base, self._interval
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
                if not self._keep_partial:
                    finish_video(self.path)
        finally:
            with contextlib.suppress(av.error.FFmpegError):
                self._container.close()
            if not (self.count and self._keep_partial):
                self.partial.unlink(missing_ok=True)


class PictureWriter:
    """Context manager that writes the frame of a still image as a PNG.

    Args:
        path: the file to write; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        """Nothing is written."""
        self.path = path
        self.count = 0

    def write(self, frame: Tensor, time: float | None = None) -> None:
        """Writes the file; (3, H, W) uint8 RGB.  An image has no time stamp."""
        del time
        with atomic_path(self.path) as partial:
            Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()).save(partial, format="PNG")
        self.count += 1

    def __enter__(self) -> PictureWriter:
        """The writer itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """The file is complete."""


def write_webp(path: Path, images: Sequence[Image.Image], milliseconds: int) -> None:
    """Writes an endless animation, which web pages and README files show; `milliseconds` is the time of a frame."""
    with atomic_path(path) as partial:
        images[0].save(
            partial,
            format="WEBP",
            save_all=True,
            append_images=images[1:],
            duration=milliseconds,
            loop=0,
            quality=70,
            method=4,
        )


def open_writer(folder: Path, source: Source) -> VideoWriter | PictureWriter:
    """The writer of the annotated frames of a source: `image.png` of a still image, else `video.partial.mp4`.

    Those of an earlier run are deleted, since a folder holds one of them.
    """
    picture, video = folder / "image.png", folder / "video.mp4"
    for path in (picture, video):
        path.unlink(missing_ok=True)
    if source.is_still:
        return PictureWriter(picture)
    return VideoWriter(video, source.fps, source.size, keep_partial=True)
