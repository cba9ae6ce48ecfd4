"""Sections on one frame: `attention`, `stages`, `frame`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from bench_measure import Bench, Row, apart, disagreement
from bench_setup import OUTPUT, SIZES, compiled, frame_of, masks_of, pair, past_of, precision
from peer_layout import grid_sample_levels, read_out, upsample_twice
from pycocotools import mask as coco_mask
from torch import Tensor

from local2global.modeling.ops import deformable_sample
from local2global.results.instances import VideoPostprocessor

HEADS, DEPTH, LEVELS, POINTS = 8, 32, 4, 4
#: The most of the pixels of either arm's masks that may differ.
MASKS_UNLIKE = 0.02
#: Largest parts of the largest entry that two arms may differ by.
LIMITS = {"fp32": 1e-4, "bf16": 5e-2}


def levels_of(size: tuple[int, int]) -> list[tuple[int, int]]:
    """(height, width) at strides 64, 32, 16 and 8."""
    return [(-(-size[0] // s), -(-size[1] // s)) for s in (64, 32, 16, 8)]


def attention_inputs(place: str, size: tuple[int, int], device: torch.device) -> tuple[Tensor, ...]:
    """Values, places (B, Q, heads, L, points, 2) and weights, as a trained model's: points a few pixels away."""
    generator = torch.Generator().manual_seed(0)
    shapes = levels_of(size)
    centres = []
    for height, width in shapes:
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        centres.append(torch.stack((x / width, y / height), -1).flatten(0, 1))
    references = torch.cat(centres) if place == "encoder" else torch.rand(100, 2, generator=generator)
    tokens, queries = sum(height * width for height, width in shapes), len(references)
    values = torch.randn(1, tokens, HEADS, DEPTH, generator=generator)
    offsets = torch.randn(1, queries, HEADS, LEVELS, POINTS, 2, generator=generator) * 3
    sizes = torch.tensor([(width, height) for height, width in shapes])[:, None]
    places = references[None, :, None, None, None] + offsets / sizes
    weights = torch.randn(1, queries, HEADS, LEVELS * POINTS, generator=generator).softmax(-1)
    given = values, places, weights.unflatten(-1, (LEVELS, POINTS))
    return tuple(tensor.to(device) for tensor in given)


def attention(bench: Bench) -> list[Row]:
    """The sum over sampled pixels, without the projections round it."""
    return [
        row
        for size in SIZES[: 1 if bench.quick else 2]
        for place in ("encoder", "decoder")
        for row in _attention_at(bench, place, size)
    ]


def _attention_at(bench: Bench, place: str, size: tuple[int, int]) -> Iterator[Row]:
    shapes = levels_of(size)
    values, places, weights = attention_inputs(place, size, bench.device)
    x, y = places[..., 0].contiguous(), places[..., 1].contiguous()
    functions: dict[str, Callable[..., Tensor]] = {"eager": deformable_sample}
    if bench.compiled:
        functions["compiled"] = torch.compile(deformable_sample, dynamic=False)  # as `compile_stream`
    label = f"{place}" if size == SIZES[0] else f"{place} {size[0]}x{size[1]}"
    with torch.no_grad():
        expected = grid_sample_levels(values, shapes, places, weights)
        for dtype in ("fp32", "bf16"):
            cast = values.bfloat16() if dtype == "bf16" else values
            shares = weights.to(cast.dtype)
            for mode, function in functions.items():

                def ours(function: Any = function, cast: Any = cast, shares: Any = shares) -> Tensor:
                    return function(cast, shapes, x, y, shares)

                modes = {mode: ours, "graph": bench.graphed(ours) if mode == "eager" else None}
                for name, arm in modes.items():
                    if arm is not None:
                        yield bench.compare(
                            "attention",
                            label,
                            arm,
                            lambda: grid_sample_levels(values, shapes, places, weights),
                            apart(ours(), expected),
                            LIMITS[dtype],
                            mode=name,
                            dtype=dtype,
                        )
    yield _attention_training(bench, label, shapes, (values, places, weights))


def _attention_training(bench: Bench, label: str, shapes: Any, given: tuple[Tensor, ...]) -> Row:
    values, places, weights = (tensor.clone().requires_grad_() for tensor in given)
    cotangent = torch.randn(1, places.shape[1], HEADS * DEPTH, device=values.device)

    def ours() -> tuple[Tensor, ...]:
        out = deformable_sample(values, shapes, places[..., 0], places[..., 1], weights)
        return torch.autograd.grad(out, (values, places, weights), cotangent)

    def peer() -> tuple[Tensor, ...]:
        out = grid_sample_levels(values, shapes, places, weights)
        return torch.autograd.grad(out, (values, places, weights), cotangent)

    difference = max(apart(one, other) for one, other in zip(ours(), peer(), strict=True))
    return bench.compare("attention", label, ours, peer, difference, 1e-3, **{"pass": "train"})


@torch.inference_mode()
def stages(bench: Bench) -> list[Row]:
    """The parts of one frame, each given what the peer's part before it made."""
    size = SIZES[0]
    both = pair(bench.device)
    ours, peer = both.ours.segmenter, both.peer.segmenter
    frame, past = frame_of(size, 3, bench.device), past_of(both.ours, size)
    images = (frame.float() - both.ours.pixel_mean) / both.ours.pixel_std
    images, valid = images[None], images.new_ones(1, 2)
    maps = peer.backbone(images)
    features = peer.encoder(maps, valid)
    local = peer.propose(features)
    embed, positions = both.peer.tracker(past, local, peer.decoder.embed_boxes)

    def heads(model: Any) -> Any:
        return model.decode(embed, positions, features, local.predictions)

    def worst(one: Any, other: Any) -> float:
        return max(apart(one[k], other[k]) for k in one)

    def row(name: str, mine: Any, theirs: Any, read: Callable[[Any], Tensor] | None) -> Row:
        one, other = mine(), theirs()
        difference = worst(one, other) if read is None else apart(read(one), read(other))
        return bench.compare("stages", name, mine, theirs, difference, LIMITS["fp32"])

    rows = [
        row("backbone", lambda: ours.backbone(images), lambda: peer.backbone(images), None),
        row(
            "encoder",
            lambda: ours.encoder(maps, valid),
            lambda: peer.encoder(maps, valid),
            lambda made: made.memory,
        ),
        row(
            "propose", lambda: ours.propose(features), lambda: peer.propose(features), lambda made: made.embed
        ),
        row(
            "aligner",
            lambda: both.ours.tracker(past, local, ours.decoder.embed_boxes),
            lambda: both.peer.tracker(past, local, peer.decoder.embed_boxes),
            lambda made: made[0],
        ),
        row("decoder", lambda: heads(ours), lambda: heads(peer), lambda made: made.logits),
    ]
    return [*rows, *readout_rows(bench, 10)]


def readout_rows(bench: Bench, kept: int, section: str = "stages", suffix: str = "") -> list[Row]:
    """Logits of 100 queries to the masks of the kept ones at 720p, and on to their run lengths."""
    size = SIZES[0]
    predictions = masks_of(kept, 100, size, bench.device)

    def ours() -> Tensor:
        post = VideoPostprocessor(OUTPUT, threshold=0.3, spill=False)
        return post.update(predictions).masks

    def peer() -> Tensor:
        slots, scores, masks = read_out(predictions, size, size, OUTPUT)
        shown = (scores >= 0.3).nonzero()[:, 0]
        return masks[shown[slots[shown].argsort()]].cpu()

    def ours_rle() -> Any:
        with VideoPostprocessor(OUTPUT, threshold=0.3) as post:
            post.update(predictions)
            return [next(post._read(slot)) for slot in range(kept)]

    def peer_rle() -> Any:
        full = upsample_twice(predictions.masks, size, size, OUTPUT)
        best = predictions.logits[0].sigmoid().amax(1)
        masks = (full > 0)[best >= 0.3].cpu().numpy()
        return [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]

    bench = bench.by_clock
    theirs = [torch.from_numpy(coco_mask.decode(rle)).bool() for rle in peer_rle()]
    mine = [torch.from_numpy(coco_mask.decode(rle)).bool() for rle in ours_rle()]
    return [
        bench.compare(section, f"masks{suffix}", ours, peer, disagreement(ours(), peer()), MASKS_UNLIKE),
        bench.compare(
            section,
            f"RLE{suffix}",
            ours_rle,
            peer_rle,
            disagreement(torch.stack(mine), torch.stack(theirs)),
            MASKS_UNLIKE,
        ),
    ]


@torch.inference_mode()
def frame(bench: Bench) -> list[Row]:
    """A frame of a stream, end to end: uint8 in, the masks of ten objects at 720p out."""
    return [row for size in SIZES[: 1 if bench.quick else 2] for row in _frame_at(bench, size)]


def _frame_at(bench: Bench, size: tuple[int, int]) -> Iterator[Row]:
    bench = bench.by_clock
    both = pair(bench.device)
    image, past = frame_of(size, 3, bench.device), past_of(both.ours, size)
    first_ten = masks_of(10, 100, size, bench.device).logits  # drawn weights score all alike: ten are chosen

    def peer() -> Any:
        found = both.peer.step(both.peer.encode([image]), past)
        return found, read_out(replace(found, logits=first_ten), size, size, OUTPUT)

    theirs, (slots, _, masks) = peer()
    # section `gpu` compiles a GPU's step as a whole
    for mode in ("eager", "compiled") if bench.compiled and bench.device.type == "cpu" else ("eager",):
        model = both.ours if mode == "eager" else compiled(both.ours)
        for dtype in ("fp32", "bf16"):

            def ours(dtype: str = dtype, model: Any = model) -> Any:
                with precision(bench.device, dtype):
                    found = model.step(model.encode([image]), past)
                    post = VideoPostprocessor(OUTPUT, threshold=0.3, spill=False)
                    return found, post.update(replace(found, logits=first_ten))

            start = time.perf_counter()
            mine, shown = ours()  # compiles
            first = time.perf_counter() - start
            wanted = [int((slots == slot).nonzero()[0, 0]) for slot in shown.ids]
            unlike = disagreement(shown.masks, masks[wanted].cpu())
            with torch.autocast(bench.device.type, enabled=False):
                row = bench.compare(
                    "frame",
                    f"{size[0]}x{size[1]}",
                    ours,
                    peer,
                    apart(mine.logits, theirs.logits),
                    LIMITS[dtype],
                    warm=bench.device.type == "cuda",  # on a CPU both have been called, and take long
                    mode=mode,
                    dtype=dtype,
                    masks=len(shown.ids),
                    masks_unlike=unlike,
                    first_call_s=first,
                )
            yield {**row, "agree": row["agree"] and unlike <= MASKS_UNLIKE}
