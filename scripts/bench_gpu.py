"""Section `gpu`: what only a GPU can show, in at most eight minutes.

    python scripts/benchmark.py gpu --device cuda --json gpu.json --markdown gpu.md

Each part has a time limit.  A part that fails or exceeds its limit is reported, and the next one runs.  On a CPU the
same parts run with the demo's model at small size, to try them out; `--compile` adds the compiled model there.
"""

from __future__ import annotations

import copy
import math
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from types import FrameType
from typing import Any
from unittest import mock

import numpy as np
import torch
from bench_common import (
    LIMITS,
    OUTPUT,
    Bench,
    Row,
    attention_inputs,
    build_model,
    compiled,
    make_clip,
    make_frame,
    make_predictions,
    models,
    past_queries,
    precision,
    relative_difference,
)
from bench_peers import videomt
from bench_training import FRAMES, step_of
from peer_layout import upsample_twice
from pycocotools import mask as coco_mask
from torch import Tensor

from local2global.engine.memory import peak_memory
from local2global.errors import first_line
from local2global.modeling import criterion
from local2global.modeling.deformable import sample_definition
from local2global.modeling.model import Local2Global
from local2global.modeling.ops import deformable_sample
from local2global.randomness import keyed_generator
from local2global.results.instances import VideoPostprocessor
from local2global.structures import FramePredictions

RATE = 5e-5  # learning rate of the recipes


@dataclass(frozen=True)
class Size:
    """Sizes of the section on a device.

    Attributes:
        config: the model.
        queries: number of slots.
        frame: (height, width) of training and streams.
        check: (height, width) of the step that also runs on the CPU.
        kernel: (height, width) of the attention inputs; each has an encoder's and a decoder's shape.
        steps: training steps in bf16.
        stream: frames of a stream.
    """

    config: str
    queries: int
    frame: tuple[int, int]
    check: tuple[int, int]
    kernel: tuple[tuple[int, int], ...]
    steps: int
    stream: int


GPU = Size(
    "configs/ytvis2021/l2g_r50.py", 100, (480, 864), (160, 288), ((160, 288), (384, 640), (480, 864)), 50, 20
)
SMALL = Size("configs/demo/l2g_tiny.py", 12, (96, 160), (96, 160), ((32, 64), (64, 96), (96, 160)), 3, 4)


class PartTimeoutError(Exception):
    """A part exceeded its time limit."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `PartTimeoutError` inside the `with` after some seconds."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise PartTimeoutError(f"stopped after {seconds:.0f} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def gpu(bench: Bench) -> Iterator[Row]:
    """Rows of all parts."""
    size = GPU if bench.device.type == "cuda" else SMALL
    for name, (seconds, part) in PARTS.items():
        rows: list[Row] = []
        start = time.perf_counter()
        try:
            with time_limit(seconds):
                rows.extend(part(bench, size))
        except Exception as error:
            rows.append({"name": name, "error": f"{type(error).__name__}: {first_line(error)}"})
        taken = time.perf_counter() - start
        yield from ({**row, "section": "gpu", "part": name, "part_s": taken} for row in rows)


def kernel(bench: Bench, size: Size) -> Iterator[Row]:
    """The sampling sum, forward and backward, against its definition by `grid_sample`."""
    for frame in size.kernel:
        for place in ("encoder", "decoder"):
            shapes, values, locations, weights = attention_inputs(place, frame, bench.device)
            x, y = (locations[..., i].contiguous() for i in range(2))
            leaves = [tensor.requires_grad_() for tensor in (values, x, y, weights)]
            cotangent = torch.randn(1, x.shape[1], values.shape[2] * values.shape[3], device=bench.device)

            def both(
                function: Callable[..., Tensor],
                leaves: Any = leaves,
                shapes: Any = shapes,
                c: Tensor = cotangent,
            ) -> list[Tensor]:
                out = function(leaves[0], shapes, *leaves[1:])
                return [out, *torch.autograd.grad(out, leaves, c)]

            def ours(both: Any = both) -> list[Tensor]:
                return both(deformable_sample)

            def definition(both: Any = both) -> list[Tensor]:
                return both(sample_definition)

            pairs = zip(ours(), definition(), strict=True)
            difference = max(relative_difference(one, other) for one, other in pairs)
            name = f"kernel {place} {frame[0]}x{frame[1]}"
            yield bench.compare("gpu", name, ours, definition, difference, 1e-3, **{"pass": "train"})


def check(bench: Bench, size: Size) -> Iterator[Row]:
    """Loss and gradient norm of one step, against those of the CPU with the same weights and random points."""
    clips = [make_clip(size.check, 2, 3, num_classes=3)]
    found = []
    for device in (bench.device, torch.device("cpu")):
        model = build_model(size.queries, size.config).to(device).train()
        with drawn_on_cpu(device):
            loss = float(step_of(model, clips, replace(bench, device=device))())
        gradients = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        found.append((loss, float(torch.stack(gradients).norm())))
    differences = [abs(one - other) / abs(other) for one, other in zip(*found, strict=True)]
    row = _row("step as on the CPU", differences[0] <= 1e-3 and differences[1] <= 1e-2)
    yield {**row, "difference": max(differences), "loss": found[0][0], "gradient_norm": found[0][1]}


@contextmanager
def drawn_on_cpu(device: torch.device) -> Iterator[None]:
    """Random points are drawn on the CPU, whose generators differ from a GPU's."""
    rand = torch.rand

    def on_cpu(*size: Any, generator: Any = None, device: Any = None, **options: Any) -> Tensor:
        return rand(*size, generator=generator, **options).to(target)

    target = device
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch, "rand", on_cpu))
        keyed = mock.patch.object(
            criterion, "keyed_generator", lambda *key, device="cpu": keyed_generator(*key)
        )
        stack.enter_context(keyed)
        yield


def training(bench: Bench, size: Size) -> Iterator[Row]:
    """Optimizer steps on clips of four frames: iterations per second, peak memory, and finite losses."""
    model = build_model(size.queries, size.config).to(bench.device).train()
    start = copy.deepcopy(model.state_dict())
    clips = [make_clip(size.frame, FRAMES, 6, seed, len(model.classes)) for seed in range(4)]
    for dtype, steps in (
        ("bf16", size.steps),
        ("fp16", max(3, size.steps // 5)),
        ("fp32", max(3, size.steps // 5)),
    ):
        if bench.device.type == "cpu" and dtype == "fp16":
            continue
        model.load_state_dict(start)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], RATE)
        scaler = torch.amp.GradScaler(bench.device.type, enabled=dtype == "fp16")
        losses: list[Tensor] = []

        def step(
            i: int, state: tuple[str, Any, Any, list[Tensor]] = (dtype, optimizer, scaler, losses)
        ) -> None:
            dtype, optimizer, scaler, losses = state
            optimizer.zero_grad(set_to_none=True)
            with precision(bench.device, dtype):
                total = torch.stack([value.float() for value in model([clips[i % 4]]).values()]).sum()
            scaler.scale(total).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            scaler.step(optimizer)
            scaler.update()
            losses.append(total.detach())

        peak = peak_memory(lambda step=step: step(0), bench.device)
        _synchronize(bench)
        begin = time.perf_counter()
        for i in range(1, steps):
            step(i)
        _synchronize(bench)
        seconds = (time.perf_counter() - begin) / (steps - 1)
        values = torch.stack(losses).tolist()
        row = _row(
            f"training {size.frame[0]}x{size.frame[1]} {steps} steps", all(map(math.isfinite, values)), dtype
        )
        yield {
            **row,
            "pass": "train",
            "ours_s": seconds,
            "iterations_per_s": 1 / seconds,
            "peak_bytes": peak,
            "first_loss": values[0],
            "last_loss": values[-1],
        }


@torch.inference_mode()
def graphs(bench: Bench, size: Size) -> Iterator[Row]:
    """A stream of the compiled model (on a GPU: CUDA graphs) against the eager one: equal scores and masks."""
    if bench.device.type == "cpu" and not bench.compiled:
        return
    eager = models(bench.device, size.queries, size.config).ours
    frames = [make_frame(size.frame, seed) for seed in range(size.stream)]
    model = compiled(eager)
    start = time.perf_counter()
    found = _outputs(model, frames)
    first = time.perf_counter() - start
    differences = [relative_difference(a, b) for a, b in zip(found, _outputs(eager, frames), strict=True)]

    def ours() -> list[Tensor]:
        return _outputs(model, frames)

    def peer() -> list[Tensor]:
        return _outputs(eager, frames)

    row = bench.by_clock.compare(
        "gpu", "stream: compiled, eager", ours, peer, max(differences), 1e-2, warm=False, mode="compiled"
    )
    yield {**row, "first_call_s": first}


def _outputs(model: Local2Global, frames: list[Tensor]) -> list[Tensor]:
    """Class and mask logits of every frame of a stream; copied, because a graph reuses its memory."""
    outputs: list[Tensor] = []
    for predictions in model.stream(frames):
        outputs += [predictions.logits.clone(), predictions.masks.clone()]
    return outputs


@torch.inference_mode()
def frame(bench: Bench, size: Size) -> Iterator[Row]:
    """A step on a frame in device memory, and a stream from host frames to RLE at 720p, against detrex's layout."""
    for mode, dtype in (("eager", "fp32"), ("eager", "bf16"), ("eager", "fp16"), ("compiled", "bf16")):
        if bench.device.type == "cuda" or (mode == "eager" and dtype != "fp16"):
            yield from _frame_rows(bench, size, mode, dtype)


def _frame_rows(bench: Bench, size: Size, mode: str, dtype: str) -> Iterator[Row]:
    ours_eager, peer_model = models(bench.device, size.queries, size.config)
    model = ours_eager if mode == "eager" else compiled(ours_eager)
    image, past = make_frame(size.frame, 3, bench.device), past_queries(ours_eager, size.frame)
    count = size.queries
    selected = make_predictions(min(10, count), count, size.frame, bench.device)
    frames = [make_frame(size.frame, seed) for seed in range(size.stream)]

    def select(predictions: FramePredictions) -> FramePredictions:
        return replace(predictions, logits=selected.logits, masks=selected.masks)

    def step() -> FramePredictions:
        with precision(bench.device, dtype):
            return model.step(model.encode([image]), past)

    def peer_step() -> FramePredictions:
        return peer_model.step(peer_model.encode([image]), past)

    def stream() -> list[int]:
        with precision(bench.device, dtype), VideoPostprocessor(OUTPUT) as post:
            return [len(post.update(select(p)).ids) for p in model.stream(frames)]

    def peer_stream() -> list[int]:
        return [len(peer_rles(select(p), size.frame)) for p in peer_model.stream(frames)]

    labels, name = {"mode": mode, "dtype": dtype}, f"{size.frame[0]}x{size.frame[1]}"
    start = time.perf_counter()
    logits = step().logits.clone()
    _synchronize(bench)
    labels["first_call_s"] = time.perf_counter() - start
    difference = relative_difference(logits, peer_step().logits)
    limit = LIMITS["fp32" if dtype == "fp32" else "bf16"]
    yield bench.compare("gpu", f"frame {name} step", step, peer_step, difference, limit, **labels)
    difference = float(stream() != peer_stream())
    row = bench.by_clock.compare(
        "gpu", f"frame {name} stream", stream, peer_stream, difference, 0.0, warm=False, **labels
    )
    yield {**row, "ours_s": row["ours_s"] / size.stream, "peer_s": row["peer_s"] / size.stream}


def peer_rles(predictions: FramePredictions, size: tuple[int, int]) -> list[Any]:
    """Run-length masks at 720p of all slots with score >= 0.3; every mask is upsampled twice first."""
    full = upsample_twice(predictions.masks, size, size, OUTPUT)
    best = predictions.logits[0].sigmoid().amax(dim=1)
    masks = (full > 0)[best >= 0.3].cpu().numpy()
    return [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]


def peers(bench: Bench, size: Size) -> Iterator[Row]:
    """VidEoMT of `transformers` at its own size, with random weights: only its time is compared."""
    if bench.device.type == "cuda":
        yield from videomt(bench)


@torch.inference_mode()
def streams(bench: Bench, size: Size) -> Iterator[Row]:
    """Several streams in threads, each with a CUDA stream, against the same streams in sequence: equal results."""
    model = models(bench.device, size.queries, size.config).ours
    for count in (2, 4):
        videos = [[make_frame(size.frame, 10 * n + t) for t in range(size.stream)] for n in range(count)]

        def one(frames: list[Tensor]) -> list[Tensor]:
            stream = torch.cuda.stream(torch.cuda.Stream()) if bench.device.type == "cuda" else nullcontext()
            with torch.inference_mode(), stream, precision(bench.device, "bf16"):
                return [predictions.logits.cpu() for predictions in model.stream(frames)]

        def together(videos: Any = videos, one: Any = one) -> list[list[Tensor]]:
            with ThreadPoolExecutor(len(videos)) as pool:
                return list(pool.map(one, videos))

        def in_turn(videos: Any = videos, one: Any = one) -> list[list[Tensor]]:
            return [one(frames) for frames in videos]

        pairs = zip(chain(*together()), chain(*in_turn()), strict=True)
        difference = max(relative_difference(a, b) for a, b in pairs)
        row = bench.by_clock.compare(
            "gpu", f"{count} streams", together, in_turn, difference, LIMITS["bf16"], warm=False, dtype="bf16"
        )
        frames = count * size.stream
        per_frame = {key: row[key] / frames for key in ("ours_s", "peer_s")}
        yield {**row, **per_frame, "frames_per_s": frames / row["ours_s"]}


def _row(name: str, agree: bool, dtype: str = "fp32") -> Row:
    return {"name": name, "mode": "eager", "dtype": dtype, "pass": "train", "agree": agree}


def _synchronize(bench: Bench) -> None:
    if bench.device.type == "cuda":
        torch.cuda.synchronize()


#: Time limit in seconds and function of each part; eight minutes in all.
PARTS: dict[str, tuple[int, Callable[[Bench, Size], Iterator[Row]]]] = {
    "kernel": (40, kernel),
    "check": (45, check),
    "training": (100, training),
    "frame": (110, frame),
    "graphs": (100, graphs),
    "peers": (45, peers),
    "streams": (40, streams),
}
