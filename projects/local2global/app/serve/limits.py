"""What a visitor of the page may ask of the server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        upload: bytes of a video.
        seconds: length of a video; the rest of a longer one is not read.
        jobs: videos that wait or run.
        stored: jobs whose folders exist.
        keep: seconds until the folder of a finished job is deleted.
        idle: seconds without data after which an upload, a camera or a paused job ends.
        connections: open connections; further ones are refused with status 503.
    """

    upload: int = 500_000_000
    seconds: float = 600.0
    jobs: int = 8
    stored: int = 32
    keep: float = 1800.0
    idle: float = 60.0
    connections: int = 100
