"""`make load`: twenty visitors of `l2g serve` at once, for five minutes; no error, and flat memory."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import av
import httpx
import numpy as np
import pytest
from websockets.asyncio.client import connect

from serving import Server, serving

SECONDS = float(os.environ.get("L2G_LOAD_SECONDS", "300"))
CLIENTS = 20
FRAMES = 8


def clip() -> bytes:
    """A video of moving noise, 160 x 96 pixels."""
    file, noise = io.BytesIO(), np.random.default_rng(0).integers(0, 255, (96, 160, 3), np.uint8)
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for t in range(FRAMES):
            image = av.VideoFrame.from_ndarray(np.roll(noise, 4 * t, 1), format="rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    return file.getvalue()


@dataclass
class Counts:
    """What the visitors have done; `errors` are texts."""

    requests: int = 0
    videos: int = 0
    bytes: int = 0
    errors: Counter = field(default_factory=Counter)


async def visit(http: httpx.AsyncClient, address: str, video: bytes, counts: Counts) -> None:
    """Uploads a video, watches it to its end, downloads everything, opens the report, and deletes the video."""

    async def ask(method: str, path: str, status: int = 200, **options: object) -> httpx.Response:
        answer = await http.request(method, path, **options)
        counts.requests += 1
        counts.bytes += len(answer.content)
        assert answer.status_code == status, f"{method} {path.split('/')[-1]}: {answer.status_code}"
        return answer

    await ask("GET", "/")
    identity = (await ask("POST", "/jobs", 201, content=video)).json()["id"]
    state, images = "waiting", 0
    async with connect(f"{address.replace('http', 'ws')}/jobs/{identity}/frames", open_timeout=300) as socket:
        counts.requests += 1
        async for message in socket:
            head, _, image = message.partition(b"\n")
            about, images = json.loads(head), images + bool(image)
            state = about["state"]
    assert (state, about["frame"], images > 0) == ("done", FRAMES, True), about
    for name in about["files"]:
        await ask("GET", f"/jobs/{identity}/files/{name}")
    report = (await ask("GET", f"/jobs/{identity}/files/report.html")).text
    assert 'id="objects"' in report
    await ask("DELETE", f"/jobs/{identity}")
    counts.videos += 1


async def client(address: str, video: bytes, end: float, counts: Counts) -> None:
    """Visits until the time is over; an error does not end it."""
    async with httpx.AsyncClient(base_url=address, timeout=300) as http:
        while time.monotonic() < end:
            try:
                await visit(http, address, video, counts)
            except Exception as error:
                counts.errors[f"{type(error).__name__}: {error}"] += 1


async def watch(server: Server, begin: float, counts: Counts) -> list[float]:
    """Prints a line a minute; returns the resident memory of each, in MB."""
    memory: list[float] = []
    for part in range(1, 6):
        await asyncio.sleep(max(0.0, begin + part * SECONDS / 5 - time.monotonic()))
        memory.append(server.memory)
        sys.stdout.write(
            f"{time.monotonic() - begin:5.0f} s: {counts.requests} requests, {counts.videos} videos, "
            f"{counts.bytes / 1e6:.0f} MB down, {counts.errors.total()} errors, {memory[-1]:.0f} MB resident\n"
        )
        sys.stdout.flush()
    return memory


@pytest.mark.slow
def test_twenty_visitors_at_once_have_no_error_and_memory_is_flat(tmp_path):
    """Requests: page, upload, websocket, each file, report, delete.  The first fifth of the time warms up."""

    async def run(server: Server, counts: Counts) -> list[float]:
        begin, video = time.monotonic(), clip()
        visitors = [client(server.address, video, begin + SECONDS, counts) for _ in range(CLIENTS)]
        memory, *_ = await asyncio.gather(watch(server, begin, counts), *visitors)
        return memory

    counts = Counts()
    with serving(tmp_path, "demo", max_jobs=CLIENTS + 1) as server:
        memory = asyncio.run(run(server, counts))
    assert counts.errors == Counter()
    assert counts.videos >= CLIENTS
    assert memory[-1] < 1.1 * memory[0]
