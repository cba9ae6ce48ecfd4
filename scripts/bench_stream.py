"""Sections on streaming: `attention`, `frame` and `scaling`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from bench_common import (
    LIMITS,
    MASK_LIMIT,
    OUTPUT,
    SIZES,
    Bench,
    Row,
    attention_inputs,
    compiled,
    make_frame,
    make_predictions,
    mask_difference,
    models,
    past_queries,
    precision,
    relative_difference,
    resident_memory,
)
from bench_training import instance_rows
from peer_layout import grid_sample_levels, read_out
from torch import Tensor

from local2global.modeling.model import Local2Global
from local2global.modeling.ops import deformable_sample
from local2global.results.instances import VideoPostprocessor
from local2global.structures import FramePredictions

# --- attention ---


def attention(bench: Bench) -> Iterator[Row]:
    """The sampling sum of deformable attention, without projections, against one `grid_sample` per level."""
    for size in SIZES[: 1 if bench.quick else 2]:
        for place in ("encoder", "decoder"):
            yield from _attention_rows(bench, place, size)


def _attention_rows(bench: Bench, place: str, size: tuple[int, int]) -> Iterator[Row]:
    shapes, values, locations, weights = attention_inputs(place, size, bench.device)
    x, y = locations[..., 0].contiguous(), locations[..., 1].contiguous()
    name = place if size == SIZES[0] else f"{place} {size[0]}x{size[1]}"
    functions: dict[str, Callable[..., Tensor]] = {"eager": deformable_sample}
    if bench.compiled:
        functions["compiled"] = torch.compile(deformable_sample, dynamic=False)

    def peer() -> Tensor:
        return grid_sample_levels(values, shapes, locations, weights)

    with torch.no_grad():
        expected = peer()
        for dtype in ("fp32", "bf16"):
            low = values.bfloat16() if dtype == "bf16" else values
            for mode, function in functions.items():

                def ours(function: Any = function, low: Tensor = low) -> Tensor:
                    return function(low, shapes, x, y, weights.to(low.dtype))

                difference = relative_difference(ours(), expected)
                labels = {"mode": mode, "dtype": dtype}
                yield bench.compare("attention", name, ours, peer, difference, LIMITS[dtype], **labels)
    yield _attention_training_row(bench, name, shapes, (values, locations, weights))


def _attention_training_row(bench: Bench, name: str, shapes: Any, tensors: tuple[Tensor, ...]) -> Row:
    """Forward and backward, with gradients of values, locations and weights."""
    values, locations, weights = leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    cotangent = torch.randn(1, locations.shape[1], values[0, 0].numel(), device=values.device)

    def ours() -> tuple[Tensor, ...]:
        out = deformable_sample(values, shapes, locations[..., 0], locations[..., 1], weights)
        return torch.autograd.grad(out, leaves, cotangent)

    def peer() -> tuple[Tensor, ...]:
        out = grid_sample_levels(values, shapes, locations, weights)
        return torch.autograd.grad(out, leaves, cotangent)

    difference = max(relative_difference(a, b) for a, b in zip(ours(), peer(), strict=True))
    return bench.compare("attention", name, ours, peer, difference, 1e-3, **{"pass": "train"})


# --- frame ---


@torch.inference_mode()
def frame(bench: Bench) -> Iterator[Row]:
    """A frame of a stream end to end: uint8 image to ten masks at 720p."""
    for size in SIZES[: 1 if bench.quick else 2]:
        yield from _frame_rows(bench.by_clock, size)


def _frame_rows(bench: Bench, size: tuple[int, int]) -> Iterator[Row]:
    ours_eager, peer_model = models(bench.device)
    image, past = make_frame(size, 3, bench.device), past_queries(ours_eager, size)
    # Random weights give all slots nearly the same score, so ten slots are selected here.
    logits = make_predictions(10, past.embed.shape[1], size, bench.device).logits

    def peer() -> Any:
        predictions = peer_model.step(peer_model.encode([image]), past)
        return predictions, read_out(replace(predictions, logits=logits), size, size, OUTPUT)

    expected, (slots, _, peer_masks) = peer()
    # Section `gpu` measures the compiled step of a GPU.
    for mode in ("eager", "compiled") if bench.compiled and bench.device.type == "cpu" else ("eager",):
        model = ours_eager if mode == "eager" else compiled(ours_eager)
        for dtype in ("fp32", "bf16"):

            def ours(dtype: str = dtype, model: Local2Global = model) -> Any:
                with precision(bench.device, dtype):
                    predictions = model.step(model.encode([image]), past)
                    post = VideoPostprocessor(OUTPUT, threshold=0.3, spill=False)
                    return predictions, post.update(replace(predictions, logits=logits))

            start = time.perf_counter()
            predictions, result = ours()  # compiles
            first_call = time.perf_counter() - start
            rows = [int((slots == slot).nonzero()[0, 0]) for slot in result.ids]
            unlike = mask_difference(result.masks, peer_masks[rows].cpu())
            row = bench.compare(
                "frame",
                f"{size[0]}x{size[1]}",
                ours,
                peer,
                relative_difference(predictions.logits, expected.logits),
                LIMITS[dtype],
                warm=bench.device.type == "cuda",
                mode=mode,
                dtype=dtype,
                masks=len(result.ids),
                masks_unlike=unlike,
                first_call_s=first_call,
            )
            compile_s = max(0.0, first_call - row["ours_s"]) if mode == "compiled" else None
            yield {**row, "agree": row["agree"] and unlike <= MASK_LIMIT, "compile_s": compile_s}


# --- scaling ---


def scaling(bench: Bench) -> Iterator[Row]:
    """Time and memory against video length, reported masks, instances and queries."""
    yield from _length_rows(bench)
    for visible in (1, 10) if bench.quick else (1, 3, 10, 30, 100):
        yield _mask_row(bench.by_clock, visible)
    yield from instance_rows(bench, (1, 10) if bench.quick else (1, 3, 10, 25, 50))
    yield from _query_rows(bench)


class _Video:
    """A stream of the small model over a video of a given length, restarted at its end."""

    def __init__(self, bench: Bench, length: int) -> None:
        self.bench, self.length, self.t = bench.by_clock, length, 0
        self.model = models(bench.device, 12, "configs/demo/l2g_tiny.py").ours
        self.frames = [make_frame((96, 160), seed, bench.device) for seed in range(8)]
        self.seconds: list[float] = []
        self.state_bytes = 0

    def advance(self, record: bool) -> None:
        """Process one frame; its time is recorded if it lies in the second half of the video."""
        if self.t == 0:
            self.post = VideoPostprocessor((360, 600), threshold=0.0, spill=True)
            self.predictions = self.model.stream(self.frames[t % 8] for t in range(self.length))
        seconds = self.bench.read(self._step)
        if record and self.t >= self.length // 2:
            self.seconds.append(seconds)
        self.t = (self.t + 1) % self.length
        if self.t == 0:
            self.post.close()

    def _step(self) -> None:
        predictions = next(self.predictions)
        self.post.update(predictions)
        state = predictions.queries.embed, predictions.queries.boxes
        self.state_bytes = sum(x.numel() * x.element_size() for x in state)


@torch.inference_mode()
def _length_rows(bench: Bench) -> Iterator[Row]:
    """Seconds per frame by video length; videos take turns frame by frame.

    `resident_growth` is the growth of the process over the last nine tenths of the longest video.
    """
    videos = [_Video(bench, length) for length in ((10, 100) if bench.quick else (10, 100, 1000))]
    longest, before = videos[-1].length, 0
    for turn in range(longest):
        if turn == longest // 10:
            before = resident_memory()
        for video in videos[:: 1 if turn % 2 else -1]:
            video.advance(record=turn >= longest // 2)
    growth = resident_memory() - before
    shortest = statistics.median(videos[0].seconds)
    for video in videos:
        median = statistics.median(video.seconds)
        yield {
            "section": "scaling",
            "name": f"T={video.length}",
            "mode": "eager",
            "dtype": "fp32",
            "pass": "forward",
            "ours_s": median,
            "peer_s": None,
            "ratio": None,
            "iqr": None,
            "agree": None,
            "times_shortest": median / shortest,
            "state_bytes": video.state_bytes,
            "resident_growth": growth if video.length == longest else None,
        }


def _mask_row(bench: Bench, visible: int) -> Row:
    """Mask logits of 100 slots to boolean masks at 720p of the visible ones."""
    size = SIZES[0]
    predictions = make_predictions(visible, 100, size, bench.device)

    def ours() -> Tensor:
        return VideoPostprocessor(OUTPUT, threshold=0.3, spill=False).update(predictions).masks

    def peer() -> Tensor:
        slots, scores, masks = read_out(predictions, size, size, OUTPUT)
        rows = (scores >= 0.3).nonzero()[:, 0]
        return masks[rows[slots[rows].argsort()]].cpu()

    difference = mask_difference(ours(), peer())
    return bench.compare("scaling", f"masks visible={visible}", ours, peer, difference, MASK_LIMIT)


@torch.inference_mode()
def _query_rows(bench: Bench) -> Iterator[Row]:
    """The step after the encoder with N = 100 and 300 queries."""
    size = SIZES[0]
    for queries in (100, 300):
        model, peer_model = models(bench.device, queries)
        features, past = model.encode([make_frame(size, 3, bench.device)]), past_queries(model, size)

        def ours(model: Any = model, features: Any = features, past: Any = past) -> FramePredictions:
            return model.step(features, past)

        def peer(model: Any = peer_model, features: Any = features, past: Any = past) -> FramePredictions:
            return model.step(features, past)

        difference = relative_difference(ours().logits, peer().logits)
        yield bench.compare("scaling", f"step N={queries}", ours, peer, difference, LIMITS["fp32"])
