"""The camera of a visitor: JPEG images that arrive over a websocket become a live source."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ...data.augment import resize_frames
from ...errors import UserError
from ...limits import check_pixels
from ..source import Source, TimedFrame

_FPS = Fraction(10)  # announced; the time stamps are those of the arrival

Pixels = NDArray[np.uint8]


class CameraFrames:
    """The newest frame of a visitor's camera; older frames are dropped.

    Args:
        idle: seconds without a frame after which the camera counts as closed.
    """

    def __init__(self, idle: float) -> None:
        self._idle = idle
        self._changed = threading.Condition()
        self._newest: Pixels | None = None
        self._closed = False

    def put(self, jpeg: bytes) -> None:
        """Replaces the newest frame.

        Raises:
            UserError: if the bytes are no JPEG image of a usable size.
        """
        try:
            with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
                check_pixels(*image.size)
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError("the camera sent something else than a JPEG image") from error
        with self._changed:
            self._newest = pixels
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the video."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def read(self) -> Iterator[TimedFrame]:
        """Frames, resized to the size of the first frame, with their times of arrival."""
        begin, size = None, None
        while (pixels := self._next()) is not None:
            now = time.monotonic()
            begin = now if begin is None else begin
            frame = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
            size = size or (frame.shape[1], frame.shape[2])
            if tuple(frame.shape[1:]) != size:
                frame = resize_frames(frame[None], size)[0]
            yield frame, now - begin

    def _next(self) -> Pixels | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._newest is not None, self._idle)
            newest, self._newest = self._newest, None
            return newest


def camera_source(camera: CameraFrames) -> Callable[[], Source]:
    """Waits for the first frame of a camera, and opens it."""

    def opened() -> Source:
        frames = camera.read()
        first = next(frames, None)
        if first is None:
            raise UserError("the camera sent no frame")

        def read() -> Iterator[TimedFrame]:
            yield first
            yield from frames

        height, width = first[0].shape[1:]
        return Source("camera", _FPS, (height, width), None, read, live=True)

    return opened
