"""Section `clip`: a training step, forward and backward, and what its parts cost."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from bench_common import Bench, Row, build_model, make_clip, models, precision

from local2global.app.plan import INSTANCES, count_step
from local2global.engine.memory import peak_memory

FRAMES = 4
PLAN_LIMIT = 0.15  # of the estimate of `l2g train --plan`
LIMITS = {"fp32": 2e-3, "bf16": 5e-2}  # of the loss; bf16 scores may order queries differently
#: Frames of a four-frame clip with a loss: reduced supervision skips one or two of the first three.
SUPERVISED = {1: [True, False, True, True], 2: [False, True, False, True]}


def total_loss(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum of all losses that require a gradient."""
    return torch.stack([value for value in losses.values() if value.requires_grad]).sum()


def step_of(
    model: Any, clips: Sequence[Any], bench: Bench, dtype: str = "fp32"
) -> Callable[[], torch.Tensor]:
    """Return an arm that runs forward and backward of a batch and returns the loss."""

    def step() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        with precision(bench.device, dtype):
            loss = total_loss(model(clips))
        loss.backward()
        return loss.detach()

    return step


def clip(bench: Bench) -> Iterator[Row]:
    """A step of four frames and six instances against the peer; then supervision, aligner and checkpointing.

    On a GPU also two clips in bf16, as the recipes train; the peer runs in float32.
    """
    if bench.device.type == "cuda":
        yield _step_row(bench, (480, 864))
        yield _step_row(bench, (480, 864), dtype="bf16", batch=2)
        return
    yield _step_row(bench, (160, 288))
    if not bench.quick:
        yield _step_row(bench, (256, 448))
        yield _step_row(bench, (256, 448), checkpointing=True)
    yield from _part_rows(bench, (160, 288))


def _step_row(
    bench: Bench, size: tuple[int, int], dtype: str = "fp32", batch: int = 1, checkpointing: bool = False
) -> Row:
    ours_model, peer_model = models(bench.device)
    clips = [make_clip(size, FRAMES, 6, seed, len(ours_model.classes)) for seed in range(batch)]
    name = f"{size[0]}x{size[1]}" + (f" x {batch}" if batch > 1 else "") + " checkpointed" * checkpointing
    encoder = ours_model.segmenter.encoder
    with mock.patch.object(encoder, "checkpointing", checkpointing), _training(ours_model, peer_model):
        ours, peer = step_of(ours_model, clips, bench, dtype), step_of(peer_model, clips, bench)
        loss, expected = float(ours()), float(peer())
        bytes_ours = _peak_bytes(ours, ours_model, bench)
        bytes_peer = _peak_bytes(peer, peer_model, bench)
        row = bench.by_clock.compare(
            "clip",
            name,
            ours,
            peer,
            abs(loss - expected) / abs(expected),
            LIMITS[dtype],
            warm=False,
            dtype=dtype,
            **{"pass": "train"},
            ours_bytes=bytes_ours,
            peer_bytes=bytes_peer,
            memory_ratio=bytes_ours / bytes_peer,
            ours_waits=count_synchronisations(ours, bench.device),
            peer_waits=count_synchronisations(peer, bench.device),
        )
        return {**row, "ours_steps_per_s": 1 / row["ours_s"]}


def _part_rows(bench: Bench, size: tuple[int, int]) -> Iterator[Row]:
    """The step against itself with a loss on every frame, and against itself without the aligner."""
    model = models(bench.device).ours
    clips = [make_clip(size, FRAMES, 6, num_classes=len(model.classes))]
    name = f"{size[0]}x{size[1]}"
    full = _supervised(model, clips, bench, [True] * FRAMES)
    with _training(model):
        for skipped, frames in SUPERVISED.items():
            label = f"{name} loss on {FRAMES - skipped} of {FRAMES} frames"
            arms = (_supervised(model, clips, bench, frames), full)
            yield _part_row(bench, label, arms, (model, model))
    plain = copy.deepcopy(model)
    plain.tracker.aligner = None
    with _training(model, plain):
        arms = step_of(model, clips, bench), step_of(plain, clips, bench)
        row = _part_row(bench, f"{name} with and without aligner", arms, (model, plain))
        yield {**row, "aligner_share": 1 - row["ratio"]}


def _supervised(
    model: Any, clips: Sequence[Any], bench: Bench, frames: list[bool]
) -> Callable[[], torch.Tensor]:
    step = step_of(model, clips, bench)

    def supervision(length: int, generator: torch.Generator) -> list[bool]:
        del length, generator
        return frames

    def arm() -> torch.Tensor:
        with mock.patch.object(model.criterion, "supervision", supervision):
            return step()

    return arm


def _part_row(bench: Bench, name: str, arms: Sequence[Callable[[], Any]], trained: Sequence[Any]) -> Row:
    """A row whose arms compute different losses: only time and memory are compared."""
    bytes_ours, bytes_peer = (
        _peak_bytes(arm, model, bench) for arm, model in zip(arms, trained, strict=True)
    )
    row = bench.by_clock.compare("clip", name, *arms, 0.0, 0.0, warm=False, **{"pass": "train"})
    return {
        **row,
        "agree": None,
        "difference": None,
        "ours_bytes": bytes_ours,
        "peer_bytes": bytes_peer,
        "memory_ratio": bytes_ours / bytes_peer,
    }


def _peak_bytes(arm: Callable[[], Any], model: Any, bench: Bench) -> int:
    """Peak bytes of a step beyond the weights, its gradients included."""
    model.zero_grad(set_to_none=True)
    return peak_memory(arm, bench.device)


def memory(bench: Bench) -> Iterator[Row]:
    """Peak memory of a step, gradients included, against the estimate of `l2g train --plan` from smaller steps."""
    model = build_model().to(bench.device)
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    if bench.device.type == "cuda":
        cases = [((480, 864), 1, "fp32"), ((480, 864), 2, "bf16"), ((736, 1312), 1, "bf16")]
    else:
        cases = [((256, 448), 1, "fp32"), ((384, 640), 1, "fp32"), ((256, 448), 2, "bf16")]
    for size, batch, dtype in cases[: 1 if bench.quick else None]:
        counted = build_model().train()
        cost = count_step(counted, torch.bfloat16 if dtype == "bf16" else None)
        clips = [make_clip(size, FRAMES, INSTANCES, seed, len(model.classes)) for seed in range(batch)]
        with _training(model):
            measured = _peak_bytes(step_of(model, clips, bench, dtype), model, bench)
        planned = cost.activations(batch * FRAMES, size[0] * size[1]) + gradients
        yield {
            "section": "memory",
            "name": f"{size[0]}x{size[1]}" + f" x {batch}" * (batch > 1),
            "dtype": dtype,
            "pass": "train",
            "ratio": planned / measured,
            "agree": abs(planned / measured - 1) <= PLAN_LIMIT,
            "planned_bytes": planned,
            "measured_bytes": measured,
        }


def instance_rows(bench: Bench, counts: Sequence[int]) -> Iterator[Row]:
    """A step of the small model with two frames and a growing number of instances."""
    ours_model, peer_model = models(bench.device, 100, "configs/demo/l2g_tiny.py")
    for count in counts:
        clips = [make_clip((192, 320), 2, count, num_classes=len(ours_model.classes))]
        with _training(ours_model, peer_model):
            ours, peer = step_of(ours_model, clips, bench), step_of(peer_model, clips, bench)
            expected = float(peer())
            difference = abs(float(ours()) - expected) / abs(expected)
            yield bench.by_clock.compare(
                "scaling",
                f"step instances={count}",
                ours,
                peer,
                difference,
                LIMITS["fp32"],
                **{"pass": "train"},
            )


def count_synchronisations(arm: Callable[[], Any], device: torch.device) -> int | None:
    """Number of device synchronisations of an arm as torch counts them; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            arm()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def _training(*trained: Any) -> ExitStack:
    """Put models into training mode; at exit, restore evaluation mode and free the gradients."""
    stack = ExitStack()
    for model in trained:
        model.train()
        stack.callback(model.eval)
        stack.callback(model.zero_grad, set_to_none=True)
    return stack
