"""Video files as sources: choice of the stream, upright frames of square pixels, time stamps, lost frames."""

from __future__ import annotations

import contextlib
import functools
import logging
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from numpy.typing import NDArray

from ..errors import UserError
from ..limits import MAX_PIXELS, check_pixels
from .source import FOLDER_FPS, MAX_FPS, Sound, Source, TimedFrame, identity_of, to_tensor

_MAX_ASPECT = 8  # wider pixels are a mistake of the file
_MAX_GAP = Fraction(3600)  # seconds: a longer step between two frames is a break in the time stamps

_PLAYLISTS = {"concat", "dash", "hls", "imf", "rtp", "rtsp", "sap", "sdp"}
_TEXT = {"tty"}  # draws the characters of a text file

_log = logging.getLogger(__name__)


def open_video(path: Path, fps: Fraction | None) -> Source:
    """Opens a video file.

    Of several video streams, pictures such as cover art are skipped; then a stream of several frames, the default
    stream and the longest stream have priority, in this order.  Pixels that are not square are resampled.

    Args:
        path: the file.
        fps: replaces the time stamps of the file by a constant rate.

    Raises:
        UserError: if there is no video stream, or none of its frames can be decoded.
    """
    if path.stat().st_size == 0:
        raise UserError(f"{path}: this file is empty")
    place = Place(str(path), f"file:{path}", file_options())
    index = _choose_stream(place)
    with opened(place, index) as (container, stream):
        video = Video.of(stream, place, fps)
        frame = next(_decoded(container, stream, _Losses(Fraction(1, MAX_FPS))), None)
        if frame is None:
            raise UserError(f"{path}: this video has no frames that can be decoded")
        height, width = _upright(frame, video.aspect).shape[:2]
        first = Fraction(0) if frame.pts is None else frame.pts * Fraction(frame.time_base)
        sound = Sound(path.resolve(), first) if container.streams.audio and fps is None else None

    def read() -> Iterator[TimedFrame]:
        with opened(place, index) as (container, stream):
            yield from video.frames(container, stream)

    identity = identity_of([path], fps)
    return Source(
        path.stem, video.rate, (height, width), video.length, read, None, identity, sound, path=path.resolve()
    )


def key_times(path: Path) -> list[float]:
    """Time stamps of the key frames of a video file, and of its end, in seconds since the first frame.

    Only packets are read; nothing is decoded.

    Raises:
        UserError: if the file cannot be read.
    """
    place = Place(str(path), f"file:{path}", file_options())
    with opened(place, _choose_stream(place)) as (container, stream):
        packets = [
            (packet.pts, packet.duration or 0, packet.is_keyframe)
            for packet in container.demux(stream)
            if packet.pts is not None
        ]
        keys = [pts for pts, _, is_key in packets if is_key]
        end = max((pts + duration for pts, duration, _ in packets), default=0)
        return [float((pts - keys[0]) * stream.time_base) for pts in [*keys, end]] if keys else []


def open_once(name: str, place: Place, fps: Fraction | None, live: bool) -> Source:
    """Opens a video that cannot be read a second time: a pipe, a camera or a network stream.

    Args:
        name: of the source.
        place: what is opened.
        fps: replaces the time stamps by a constant rate.
        live: whether the frames come at the speed at which they are recorded.

    Raises:
        UserError: if it cannot be opened, has no video stream, or delivers no frame.
    """
    with ExitStack() as opening:
        container, stream = opening.enter_context(opened(place, None))
        video = Video.of(stream, place, fps)
        frames = video.frames(container, stream)
        first = next(frames)
        stack = opening.pop_all()
    waiting = [chain([first], frames)]

    def read() -> Iterator[TimedFrame]:
        if not waiting:
            raise UserError(f"{place}: can be read only once")
        with stack:
            yield from waiting.pop()

    size = (first[0].shape[1], first[0].shape[2])
    return Source(name, video.rate, size, video.length, read, live=live)


@dataclass(frozen=True)
class Place:
    """What PyAV opens.

    Attributes:
        name: for messages.
        target: an address or an open file.
        options: of the container; they limit the protocols and formats.
        format: of the container, if it is not detected.
        timeout: seconds until a network peer or a device that sends nothing is an error.
    """

    name: str
    target: Any
    options: Mapping[str, str]
    format: str | None = None
    timeout: float | None = None

    def __str__(self) -> str:
        """The name."""
        return self.name


@dataclass(frozen=True)
class Video:
    """A video stream: what is known before its frames are decoded."""

    place: Place
    aspect: Fraction
    length: int | None
    rate: Fraction
    constant_rate: bool

    @classmethod
    def of(cls, stream: Any, place: Place, fps: Fraction | None) -> Video:
        """Describes an open stream; `fps` replaces its time stamps."""
        declared = stream.average_rate or stream.guessed_rate
        usable = declared is not None and 0 < declared <= MAX_FPS
        rate = fps or (Fraction(declared) if usable else FOLDER_FPS)
        length = stream.frames
        if length and stream.container.format.name.startswith(
            "mov"
        ):  # without frames that an edit list hides
            length = sum(not entry.is_discard for entry in stream.index_entries)
        return cls(place, _pixel_aspect(stream, place), length or None, rate, fps is not None)

    def frames(self, container: Any, stream: Any) -> Iterator[TimedFrame]:
        """Decodes the frames, at least one; lost frames are counted and logged at the end."""
        losses = _Losses(1 / self.rate)
        count, time, pts = 0, Fraction(0), None
        size: tuple[int, ...] = ()
        for frame in _decoded(container, stream, losses):
            pixels = _upright(frame, self.aspect)
            size = size or pixels.shape[:2]
            if pixels.shape[:2] != size:
                height, width = pixels.shape[:2]
                raise UserError(
                    f"{self.place}: frame {count} has {width}x{height} pixels, "
                    f"the first {size[1]}x{size[0]}; re-encode the video to one size"
                )
            time += self._step(frame, pts) if count else 0
            count, pts = count + 1, frame.pts
            yield to_tensor(pixels), float(time)
        if count == 0:
            raise UserError(f"{self.place}: this video has no frames that can be decoded")
        # Fewer frames than the container declares are reported at the end of `l2g predict`.
        lost = losses.count if count >= (self.length or 0) else 0
        counts = {"lost": lost, "decoded in part": losses.damaged}
        found = [f"{n} {'frame' if n == 1 else 'frames'} {kind}" for kind, n in counts.items() if n]
        if found:
            _log.warning("l2g: %s: at least %s: the data are damaged", self.place, " and ".join(found))

    def _step(self, frame: Any, previous: int | None) -> Fraction:
        """Seconds between a frame and the previous frame, whose time stamp is `previous`."""
        if not self.constant_rate and frame.pts is not None and previous is not None:
            step: Fraction = (frame.pts - previous) * frame.time_base
            if 0 < step <= _MAX_GAP:
                return step
        return 1 / self.rate


# --- Streams ---


def file_options() -> dict[str, str]:
    """Options of a container in a file: it opens no other file and no address."""
    return {"protocol_whitelist": "file", "format_whitelist": file_formats()}


@functools.cache
def file_formats() -> str:
    """The container formats that hold frames; without text files, and playlists, which open further files."""
    return ",".join(sorted(av.formats_available - _PLAYLISTS - _TEXT))


@contextlib.contextmanager
def opened(place: Place, index: int | None) -> Iterator[tuple[Any, Any]]:
    """Opens a container and one of its video streams.

    Args:
        place: what is opened.
        index: of the stream; None: the first that is no attached picture.

    Raises:
        UserError: if it cannot be opened or, inside the block, cannot be read.
    """
    try:
        with av.open(
            place.target,
            format=place.format,
            options=dict(place.options),
            timeout=place.timeout,
            metadata_errors="replace",
        ) as container:
            stream: Any = container.streams[index] if index is not None else _streams(container, place)[0]
            if stream.codec_context is None:
                raise UserError(f"{place}: this PyAV has no decoder for its video codec")
            check_pixels(stream.width, stream.height)
            # Frames may be larger than the container says.
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            stream.thread_type = "AUTO"
            yield container, stream
    except av.error.FFmpegError as error:
        hint = (
            "is the file complete?"
            if place.target == f"file:{place}"
            else "is it a video that can be read here?"
        )
        raise UserError(f"{place}: this video cannot be read ({error.strerror}); {hint}") from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{place}: this video cannot be read ({error})") from error


def _streams(container: Any, place: Place) -> list[Any]:
    """The video streams of a container without attached pictures; those that can be decoded, and the default, first."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        only = " (only a cover picture)" if container.streams.video else ""
        raise UserError(f"{place}: no video stream in this file{only}")
    return sorted(streams, key=lambda s: (s.codec_context is None, not s.disposition & Disposition.default))


def _choose_stream(place: Place) -> int:
    """Index of the stream to read; a choice among several is logged."""
    with opened(place, None) as (container, _):
        streams = sorted(_streams(container, place), key=lambda s: int(s.index))
        if len(streams) == 1:
            return int(streams[0].index)
        spans = {stream.index: _Span() for stream in streams}
        for packet in container.demux(*streams):
            if packet.size:
                spans[packet.stream.index].add(packet)
        best = max(streams, key=lambda s: spans[s.index].rank(bool(s.disposition & Disposition.default)))
        size = f"{best.codec_context.width}x{best.codec_context.height}" if best.codec_context else "unknown"
        _log.warning(
            "l2g: %s: %d video streams; stream %d (%s pixels) is read", place, len(streams), best.index, size
        )
        return int(best.index)


@dataclass
class _Span:
    """Number and duration of the packets of a stream."""

    packets: int = 0
    times: list[float] = field(default_factory=list)  # the first and the last

    def add(self, packet: Any) -> None:
        self.packets += 1
        if packet.pts is not None:
            time = float(packet.pts * packet.time_base)
            low, high = self.times or (time, time)
            self.times = [min(low, time), max(high, time)]

    def rank(self, default: bool) -> tuple[bool, bool, float, int]:
        span = self.times[1] - self.times[0] if self.times else 0.0
        return self.packets > 1, default, span, self.packets


# --- Frames ---


@dataclass
class _Losses:
    """Counts the damaged frames, and the packets without a frame, by their time stamps.

    A packet counts if its time stamp is far from the frames before and after it.  So second fields and hidden
    reference frames, which yield no frame of their own, do not count.

    Attributes:
        interval: smallest interval between frames so far, in seconds.
        count: number of lost frames.
        damaged: number of frames of which the decoder guessed a part, or whose packet is incomplete.
    """

    interval: Fraction
    count: int = 0
    damaged: int = 0
    _incomplete: set[int | None] = field(default_factory=set)
    _pending: set[int] = field(default_factory=set)
    _last: int | None = None
    _time_base: Fraction = Fraction(1)

    def sent(self, packet: Any) -> None:
        """A packet was passed to the decoder."""
        if packet.is_corrupt:
            self._incomplete.add(packet.pts)
        if packet.pts is not None and packet.size and not packet.is_discard:
            self._time_base = packet.time_base
            self._pending.add(packet.pts)

    def received(self, frame: Any) -> None:
        """A frame was decoded; frames come in the order of their time stamps."""
        pts: int | None = frame.pts
        self.damaged += frame.is_corrupt or pts in self._incomplete
        if pts is None:
            return
        self._pending.discard(pts)
        self._settle(pts)
        if self._last is not None and pts > self._last:
            self.interval = min(self.interval, (pts - self._last) * self._time_base)
        self._last = pts

    def end(self) -> None:
        """No frame follows."""
        self._settle(None)

    def _settle(self, pts: int | None) -> None:
        """Decides on the packets before a frame."""
        before = {p for p in self._pending if pts is None or p < pts}
        self._pending -= before
        near = float(self.interval / self._time_base) * 0.75
        neighbours = [p for p in (self._last, pts) if p is not None]
        self.count += sum(all(abs(p - neighbour) >= near for neighbour in neighbours) for p in before)


def _decoded(container: Any, stream: Any, losses: _Losses) -> Iterator[Any]:
    """Decodes the frames of a stream; packets that the decoder rejects are skipped, and count as lost."""
    for packet in container.demux(stream):
        losses.sent(packet)
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            continue
        for frame in frames:
            losses.received(frame)
            yield frame
    losses.end()


def _pixel_aspect(stream: Any, place: Place) -> Fraction:
    """Width of a pixel, divided by its height; unusable values count as 1."""
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    if 1 / _MAX_ASPECT <= aspect <= _MAX_ASPECT:
        return aspect
    _log.warning("l2g: %s: pixels of %s:%s are read as square", place, aspect.numerator, aspect.denominator)
    return Fraction(1)


def _upright(frame: Any, aspect: Fraction) -> NDArray[np.uint8]:
    """(H, W, 3) RGB with square pixels, rotated and mirrored by the display matrix of the file."""
    height, width = frame.height, frame.width
    if aspect > 1:
        width = round(width * aspect)
    else:
        height = round(height / aspect)
    check_pixels(width, height)
    if (height, width) != (frame.height, frame.width):
        frame = frame.reformat(width=width, height=height, format="rgb24", interpolation="BICUBIC")
    data = frame.side_data.get(SideData.DISPLAYMATRIX)
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    if data is None:
        return pixels
    # x' = ax + cy, y' = bx + dy; rotations between quarter turns are rounded.
    a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    pixels = pixels[:, ::-1] if a < 0 else pixels
    return pixels[::-1] if d < 0 else pixels
