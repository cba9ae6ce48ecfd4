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

from local2global.postprocess import VideoPostprocessor
from local2global.structures import Queries

LENGTHS = (10, 100, 1000)
VIDEO = (96, 160)  # the small model's frames: a thousand of them take half a minute


def scaling(bench: Bench) -> list[Row]:
    """All curves."""
    kept = (1, 10) if bench.quick else (1, 3, 10, 30, 100)
    instances = (1, 10) if bench.quick else (1, 3, 10, 25, 50)
    return [
        *(_length_row(bench, length) for length in LENGTHS),
        *(row for n in kept for row in readout_rows(bench, n, "scaling", f" kept={n}")),
        *(loss_row(bench, m, f"loss instances={m}", "scaling") for m in instances),
        *_query_rows(bench),
    ]


def _length_row(bench: Bench, length: int) -> Row:
    """Seconds a frame: the median of the later half of a stream, short ones several times; and what it carries."""
    model = pair(bench.device, 12, "configs/demo/l2g_tiny.py").ours
    frames = [frame_of(VIDEO, seed, bench.device) for seed in range(8)]
    state: list[Queries] = []

    def video() -> Iterator[torch.Tensor]:
        for t in range(length):
            yield frames[t % len(frames)]

    def stream() -> list[float]:
        with VideoPostprocessor((360, 600), threshold=0.0, spill=True) as post, torch.inference_mode():
            results = model.stream(video())
            took = []
            for _ in range(length):
                took.append(bench.read(lambda: state.append(_taken(post, next(results)))))
                del state[:-1]
        return took[length // 2 :]

    before = _status("VmRSS")
    readings = [seconds for _ in range(max(1, LENGTHS[1] // length)) for seconds in stream()]
    carried = sum(tensor.numel() * tensor.element_size() for tensor in (state[-1].embed, state[-1].boxes))
    return {
        "section": "scaling",
        "name": f"T={length}",
        "mode": "eager",
        "dtype": "fp32",
        "pass": "forward",
        "ours_s": statistics.median(readings),
        "peer_s": None,
        "ratio": None,
        "iqr": None,
        "agree": None,
        "state_bytes": carried,
        "resident_growth": _status("VmRSS") - before,
    }


def _taken(post: VideoPostprocessor, predictions: Any) -> Queries:
    post.update(predictions)
    return predictions.queries


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
