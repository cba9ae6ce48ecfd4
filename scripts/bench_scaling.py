"""Section `scaling`: what grows and what must not.

Time per frame and memory against the length of the video, against kept objects, against instances, against N.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import torch
from bench_inference import readout_rows
from bench_measure import Bench, Row, _status
from bench_setup import frame_of, pair, past_of
from bench_training import loss_row

from local2global.results.instances import VideoPostprocessor
from local2global.structures import Queries

LENGTHS = (10, 100, 1000)
VIDEO = (96, 160)  # the small model's frames: a thousand of them take half a minute


def scaling(bench: Bench) -> list[Row]:
    """All curves."""
    kept = (1, 10) if bench.quick else (1, 3, 10, 30, 100)
    instances = (1, 10) if bench.quick else (1, 3, 10, 25, 50)
    return [
        *_length_rows(bench),
        *(row for n in kept for row in readout_rows(bench, n, "scaling", f" kept={n}")),
        *(loss_row(bench, m, f"loss instances={m}", "scaling") for m in instances),
        *_query_rows(bench),
    ]


class _Video:
    """A video of a given length that begins anew when it ends, read frame by frame."""

    def __init__(self, bench: Bench, length: int) -> None:
        self.bench, self.length, self.at = bench.by_clock, length, 0
        self.model = pair(bench.device, 12, "configs/demo/l2g_tiny.py").ours
        self.frames = [frame_of(VIDEO, seed, bench.device) for seed in range(8)]
        self.late: list[float] = []
        self.state: Queries | None = None

    def read(self, noted: bool) -> None:
        """One frame; its seconds are noted if asked, and if it lies in the later half of the video."""
        if self.at == 0:
            self.post = VideoPostprocessor((360, 600), threshold=0.0, spill=True)
            self.results = self.model.stream(self.frames[t % 8] for t in range(self.length))
        seconds = self.bench.read(self._step)
        if noted and self.at >= self.length // 2:
            self.late.append(seconds)
        self.at = (self.at + 1) % self.length
        if self.at == 0:
            self.post.close()

    def _step(self) -> None:
        predictions = next(self.results)
        self.post.update(predictions)
        self.state = predictions.queries

    def row(self, shortest: float, growth: int | None) -> Row:
        """What a frame takes late in a video of this length, and what crosses from one to the next."""
        assert self.state is not None
        middle = statistics.median(self.late)
        return {
            "section": "scaling",
            "name": f"T={self.length}",
            "mode": "eager",
            "dtype": "fp32",
            "pass": "forward",
            "ours_s": middle,
            "peer_s": None,
            "ratio": None,
            "iqr": None,
            "agree": None,
            "times_shortest": middle / shortest,
            "state_bytes": sum(x.numel() * x.element_size() for x in (self.state.embed, self.state.boxes)),
            "resident_growth": growth,
        }


@torch.inference_mode()
def _length_rows(bench: Bench) -> list[Row]:
    """Seconds a frame by the video's length.  The videos take turns frame by frame, so that the machine is the same.

    The growth is that of the process from the tenth part of the longest video to its end.
    """
    lengths = LENGTHS[:2] if bench.quick else LENGTHS
    videos = [_Video(bench, length) for length in lengths]
    longest, before = lengths[-1], 0
    for turn in range(longest):
        if turn == longest // 10:
            before = _status("VmRSS")
        for video in videos[:: 1 if turn % 2 else -1]:
            video.read(noted=turn >= longest // 2)
    growth = _status("VmRSS") - before
    shortest = statistics.median(videos[0].late)
    return [video.row(shortest, growth if video.length == longest else None) for video in videos]


def _query_rows(bench: Bench) -> Iterator[Row]:
    """The step after the encoder with N = 100 and 300."""
    size = (384, 640)
    for queries in (100, 300):
        both = pair(bench.device, queries)
        with torch.inference_mode():
            features = both.ours.encode([frame_of(size, 3, bench.device)])
            past = past_of(both.ours, size)

            def ours(both: Any = both, features: Any = features, past: Any = past) -> Any:
                return both.ours.step(features, past)

            def peer(both: Any = both, features: Any = features, past: Any = past) -> Any:
                return both.peer.step(features, past)

            difference = float((ours().logits - peer().logits).abs().max())
            yield bench.compare("scaling", f"step N={queries}", ours, peer, difference, 1e-3)
