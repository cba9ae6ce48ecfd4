"""The last step of an annotated video: the fragmented mp4 and the sound of the source become a regular mp4."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from ..errors import UserError
from ..files import atomic_path
from .source import Sound
from .video_source import file_options

_COPIED = frozenset({"aac", "mp3", "opus"})  # codecs that browsers play from an mp4; others become AAC
_MAX_RATE = 48000  # Hz of the AAC

_log = logging.getLogger(__name__)


class _SoundError(Exception):
    """The sound cannot be read or written."""


def partial_path(path: Path) -> Path:
    """The fragmented mp4 that becomes `path`."""
    return path.with_suffix(".partial.mp4")


def finish_video(path: Path, sound: Sound | None = None, begin: float = 0.0, end: float = 0.0) -> bool:
    """Copies the fragmented `<name>.partial.mp4` to a regular mp4 with sound, without encoding the video again.

    Without a partial file, sound is added to an existing mp4 that has none.  Sound that an mp4 for browsers cannot
    hold is encoded as AAC.  Sound that cannot be read is left out, with a warning.

    Args:
        path: the mp4, replaced atomically; the partial file is deleted.
        sound: the sound of the source.
        begin: time stamp of the first frame of the mp4, in seconds after the first frame of the source.
        end: end of the last frame, likewise.

    Returns:
        Whether the mp4 was written.

    Raises:
        UserError: if the partial file holds no complete fragment.
    """
    partial = partial_path(path)
    source = partial if partial.is_file() else path
    if source == path and (sound is None or not path.is_file() or _has_sound(path)):
        return False
    try:
        try:
            _remux(source, path, sound, begin, end)
        except _SoundError as error:
            assert sound is not None
            _log.warning("l2g: %s: its sound cannot be copied (%s); the video has none", sound.path, error)
            _remux(source, path, None, begin, end)
    except av.error.FFmpegError as error:
        raise UserError(f"{source}: this video cannot be read ({error.strerror})") from error
    partial.unlink(missing_ok=True)
    return True


def _has_sound(path: Path) -> bool:
    try:
        with av.open(str(path)) as container:
            return bool(container.streams.audio)
    except av.error.FFmpegError as error:
        raise UserError(f"{path}: this video cannot be read ({error.strerror})") from error


def _remux(source: Path, path: Path, sound: Sound | None, begin: float, end: float) -> None:
    with ExitStack() as stack:
        whole = stack.enter_context(atomic_path(path))
        frames = stack.enter_context(av.open(str(source)))
        options = {"movflags": "+faststart"}
        target = stack.enter_context(av.open(str(whole), "w", format="mp4", container_options=options))
        video: Any = target.add_stream_from_template(frames.streams.video[0])
        packets = [_copied(frames, frames.streams.video[0], video)]
        if sound is not None:
            packets.append(_sound(stack, sound, target, sound.start + Fraction(begin), end - begin))
        # In the order of time: the muxer holds packets of one stream until those of the other arrive.
        for packet in heapq.merge(*packets, key=lambda packet: packet.dts * packet.time_base):
            target.mux(packet)


def _copied(container: Any, stream: Any, target: Any) -> Iterator[Any]:
    for packet in container.demux(stream):
        if packet.dts is not None:
            packet.stream = target
            yield packet


def _sound(stack: ExitStack, sound: Sound, target: Any, start: Fraction, duration: float) -> Iterator[Any]:
    """Adds a stream to the target and returns its packets, with time stamps relative to `start`.

    Raises:
        _SoundError: if the sound cannot be read; also while iterating.
    """
    try:
        container: Any = stack.enter_context(
            av.open(f"file:{sound.path}", options=file_options(), metadata_errors="replace")
        )
        stream = container.streams.best("audio")
        if stream is None or stream.codec_context is None:
            raise _SoundError("no decoder for its codec")
        if stream.codec_context.name in _COPIED:
            output = target.add_stream_from_template(stream)
            packets = _cut(container, stream, output, start, duration)
        else:
            rate = min(stream.codec_context.sample_rate, _MAX_RATE)
            layout = "mono" if stream.codec_context.channels == 1 else "stereo"
            output = target.add_stream("aac", rate=rate, layout=layout)
            packets = _encoded(container, stream, output, start, duration)
    except (av.error.FFmpegError, ValueError) as error:
        raise _SoundError(getattr(error, "strerror", None) or error) from error
    return _checked(packets)


def _checked(packets: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from packets
    except (av.error.FFmpegError, ValueError) as error:
        raise _SoundError(getattr(error, "strerror", None) or error) from error


def _cut(container: Any, stream: Any, output: Any, start: Fraction, duration: float) -> Iterator[Any]:
    """The packets between `start` and the end of the video."""
    for packet in container.demux(stream):
        if packet.pts is None or packet.dts is None:
            continue
        offset = round(start / packet.time_base)
        time = (packet.pts - offset) * packet.time_base
        if time >= duration:
            return
        if time >= 0:
            packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
            packet.stream = output
            yield packet


def _encoded(container: Any, stream: Any, output: Any, start: Fraction, duration: float) -> Iterator[Any]:
    """The samples between `start` and the end of the video, decoded and encoded again; damaged packets are skipped."""
    for frame in _samples(container, stream):
        if frame.pts is None:
            continue
        offset = round(start / frame.time_base)
        time = (frame.pts - offset) * frame.time_base
        if time >= duration:
            break
        if time >= 0:
            frame.pts -= offset
            yield from output.encode(frame)
    yield from output.encode(None)


def _samples(container: Any, stream: Any) -> Iterator[Any]:
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            continue
        yield from frames
