"""Sections on training: `clip` (a whole step: time and peak memory) and `matcher` (costs, assignment and losses)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from bench_measure import Bench, Row, peak_memory
from bench_setup import Pair, clip_of, pair, precision
from peer_layout import DensePredictions, peer_of

from local2global.modeling.criterion import Criterion, FullSupervision
from local2global.modeling.losses import PointSampler
from local2global.modeling.matcher import Matcher
from local2global.structures import Clip, FrameFeatures, FramePredictions, LayerPredictions, Queries

FRAMES = 4
LIMIT = 2e-3  # of a loss: a sum over a dozen thousand points each
LIMITS = {"fp32": LIMIT, "bf16": 5e-2}  # rounded scores may rank queries, and so slots, another way


def total(losses: dict[str, Any]) -> torch.Tensor:
    """The number that is minimised."""
    return torch.stack([value for value in losses.values() if value.requires_grad]).sum()


def clip(bench: Bench) -> list[Row]:
    """One step of a four-frame clip with six instances: forward, backward; the optimiser is the same for both.

    Ours also with the encoder's layers made again on the way back.  On a GPU also of two clips in bfloat16, which is
    how the recipes train; the peer, as in the other sections, in float32.
    """
    if bench.device.type == "cuda":
        return [_clip_at(bench, (480, 864)), _clip_at(bench, (480, 864), "bf16", 2)]
    sizes = [(160, 288)] if bench.quick else [(160, 288), (256, 448)]
    again = (False,) if bench.quick else (False, True)
    return [_clip_at(bench, size, checkpointing=one) for size in sizes for one in again]


def _clip_at(
    bench: Bench, size: tuple[int, int], dtype: str = "fp32", batch: int = 1, checkpointing: bool = False
) -> Row:
    both = pair(bench.device)
    clips = [clip_of(size, FRAMES, 6, seed) for seed in range(batch)]

    def step(model: Any, dtype: str = "fp32") -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        with precision(bench.device, dtype):
            loss = total(model(clips))
        loss.backward()
        return loss.detach()

    def ours() -> torch.Tensor:
        return step(both.ours, dtype)

    def peer() -> torch.Tensor:
        return step(both.peer)

    _train(both, True)
    both.ours.segmenter.encoder.checkpointing = checkpointing
    try:
        mine, theirs = float(ours()), float(peer())
        for model in (both.ours, both.peer):
            model.zero_grad(set_to_none=True)  # what stands before a step is the weights
        bytes_ours, bytes_peer = (peak_memory(arm, bench.device) for arm in (ours, peer))
        row = bench.by_clock.compare(
            "clip",
            f"{size[0]}x{size[1]}" + (f" x {batch}" if batch > 1 else "") + " checkpointed" * checkpointing,
            ours,
            peer,
            abs(mine - theirs) / abs(theirs),
            LIMITS[dtype],
            warm=False,
            dtype=dtype,
            **{"pass": "train"},
            ours_bytes=bytes_ours,
            peer_bytes=bytes_peer,
            memory_ratio=bytes_ours / bytes_peer,
            ours_waits=waits(ours, bench.device),
            peer_waits=waits(peer, bench.device),
        )
        return {**row, "ours_steps_per_s": 1 / row["ours_s"]}
    finally:
        _train(both, False)
        both.ours.segmenter.encoder.checkpointing = False
        for model in (both.ours, both.peer):
            model.zero_grad(set_to_none=True)


def waits(arm: Callable[[], Any], device: torch.device) -> int | None:
    """How often an arm waits for the device, as torch counts it; None on a CPU, where nobody waits."""
    if device.type != "cuda":
        return None
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            arm()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in seen)


def _train(both: Pair, on: bool) -> None:
    both.ours.train(on)
    both.peer.train(on)


def predictions_of(
    clip: Clip, layers: int, queries: int, size: tuple[int, int], device: torch.device
) -> tuple[list[FrameFeatures], list[FramePredictions]]:
    """Drawn features and predictions of every frame, as a decoder of so many layers would give them."""
    generator = torch.Generator().manual_seed(5)
    height, width = size[0] // 4, size[1] // 4
    features, predictions = [], []

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(device)

    def layer(boxed: bool) -> LayerPredictions:
        boxes = draw(1, queries, 4).sigmoid().requires_grad_() if boxed else None
        logits, embed = draw(1, queries, 40), draw(1, queries, 256, scale=0.1)
        return LayerPredictions(logits.requires_grad_(), boxes, embed.requires_grad_())

    for _ in range(len(clip)):
        features.append(
            FrameFeatures(
                memory=torch.zeros(1, 1, 1, device=device),
                shapes=((1, 1),),
                padding=torch.zeros(1, 1, dtype=torch.bool, device=device),
                mask_features=draw(1, 256, height, width).requires_grad_(),
                extent=torch.tensor([[float(width), float(height)]], device=device),
                valid_ratios=torch.ones(1, 1, 2, device=device),
            )
        )
        every = tuple(layer(i > 0) for i in range(layers + 1))
        last = every[-1]
        predictions.append(
            FramePredictions(
                logits=last.logits,
                boxes=last.boxes,
                masks=torch.zeros(1, queries, 1, 1, device=device),
                extent=features[-1].extent,
                queries=Queries(torch.zeros(1, queries, 1, device=device), last.boxes.detach()),
                layers=every,
                local=layer(True),
            )
        )
    return features, predictions


def dense(features: list[FrameFeatures], predictions: list[FramePredictions]) -> list[FramePredictions]:
    """The same with the masks of all queries and layers, which the peer makes in its heads."""

    def full(one: LayerPredictions, step: FrameFeatures) -> DensePredictions:
        masks = torch.einsum("bnc,bchw->bnhw", one.mask_embed, step.mask_features)
        return DensePredictions(one.logits, one.boxes, one.mask_embed, masks)

    return [
        replace(made, layers=tuple(full(one, step) for one in made.layers), local=full(made.local, step))
        for made, step in zip(predictions, features, strict=True)
    ]


def leaves(features: list[FrameFeatures], predictions: list[FramePredictions]) -> list[torch.Tensor]:
    """What the losses are differentiated by."""
    found = [step.mask_features for step in features]
    for made in predictions:
        for one in (*made.layers, made.local):
            found += [x for x in (one.logits, one.boxes, one.mask_embed) if x is not None]
    return found


def matcher(bench: Bench) -> list[Row]:
    """Costs, assignments and losses of two frames: instances born on the first, or on both; and of the second alone."""
    return [loss_row(bench, 10, name) for name in ("first frame", "matched frame")]


def loss_row(bench: Bench, instances: int, name: str, section: str = "matcher") -> Row:
    """The losses of one frame, forward and backward.

    On a "matched frame" every instance has had its slot since a frame before, whose own losses are left out of both
    arms by subtraction: it is the second of two frames, less the first.
    """
    bench = bench.by_clock
    criterion = Criterion(Matcher(), PointSampler(), FullSupervision()).to(bench.device)
    peer_criterion = peer_of(criterion)
    size = (384, 640)
    length = 2 if name == "matched frame" else 1
    made = clip_of(size, length, instances)
    features, predictions = predictions_of(made, 9, 100, size, bench.device)
    targets = replace(made.targets.to(bench.device), visible=made.targets.visible)
    made = replace(made, targets=targets)
    wanted = leaves(features, predictions)

    def arm(judge: Any, frames: int, peer: bool) -> Any:
        part = _first(made, frames)

        def run() -> list[torch.Tensor | None]:
            steps = dense(features[:frames], predictions[:frames]) if peer else predictions[:frames]
            losses = judge([part], features[:frames], steps)
            return torch.autograd.grad(total(losses), wanted, allow_unused=True)

        return run

    ours, peer = (
        arm(criterion, length, False),
        arm(peer_criterion, length, True),
    )
    with torch.no_grad():
        mine = float(sum(criterion([made], features, predictions).values()))
        theirs = float(sum(peer_criterion([made], features, dense(features, predictions)).values()))
    row = bench.compare(
        section, name, ours, peer, abs(mine - theirs) / abs(theirs), LIMIT, **{"pass": "train"}
    )
    if length == 1:
        return row
    one = bench.compare(
        section,
        name,
        arm(criterion, 1, False),
        arm(peer_criterion, 1, True),
        abs(mine - theirs) / abs(theirs),
        LIMIT,
    )
    row["ours_s"], row["peer_s"] = row["ours_s"] - one["ours_s"], row["peer_s"] - one["peer_s"]
    row["ratio"] = row["peer_s"] / row["ours_s"]
    return row


def _first(made: Clip, frames: int) -> Clip:
    targets = replace(
        made.targets,
        masks=made.targets.masks[:, :frames],
        boxes=made.targets.boxes[:, :frames],
        visible=made.targets.visible[:, :frames],
    )
    return replace(made, frames=made.frames[:frames], frame_ids=made.frame_ids[:frames], targets=targets)
