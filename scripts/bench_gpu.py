"""Section `gpu`: what a stream gives on a GPU, launch by launch, as one CUDA graph, and fused; nothing on a CPU.

A `step` is what the device does for a frame that lies there: uint8 in, masks at stride 4 out.  A `stream` is what a
user waits for: frames from the host in, run lengths of ten masks at 720p out, by the clock.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from bench_inference import LIMITS
from bench_measure import Bench, Row, apart
from bench_setup import OUTPUT, SIZES, compiled, frame_of, masks_of, pair, past_of, precision
from peer_layout import upsample_twice
from pycocotools import mask as coco_mask

from local2global.modeling.model import Local2Global
from local2global.results.instances import VideoPostprocessor, one_behind
from local2global.structures import FramePredictions

FRAMES = 20  # of a stream: the first is never recorded


def gpu(bench: Bench) -> Iterator[Row]:
    """Both sizes, every mode and precision."""
    if bench.device.type == "cpu":
        sys.stderr.write("gpu: these rows are a GPU's; add --device cuda\n")
        return
    largest = SIZES[-1]
    for size in (largest,) if bench.quick else SIZES:
        # to compile takes a minute or two each
        modes = ("eager", *(("compiled",) if bench.compiled and size == largest else ()))
        for mode in modes:
            for dtype in ("fp32", "bf16"):
                yield from _rows(bench, size, mode, dtype)


def in_mode(model: Local2Global, mode: str) -> Local2Global:
    """The model, or a copy whose streams are compiled."""
    return compiled(model) if mode == "compiled" else model


@torch.inference_mode()
def _rows(bench: Bench, size: tuple[int, int], mode: str, dtype: str) -> Iterator[Row]:
    both = pair(bench.device)
    model, peer = in_mode(both.ours, mode), both.peer
    image, past = frame_of(size, 3, bench.device), past_of(both.ours, size)
    labels = {"mode": mode, "dtype": dtype}
    name = f"{size[0]}x{size[1]}"

    def ours() -> FramePredictions:
        with precision(bench.device, dtype):
            return model.step(model.encode([image]), past)

    def theirs() -> FramePredictions:
        return peer.step(peer.encode([image]), past)

    difference = apart(ours().logits, theirs().logits)
    yield bench.compare("frame", f"{name} step", ours, theirs, difference, LIMITS[dtype], **labels)
    yield _stream_row(bench, size, model, peer, labels)


def _stream_row(
    bench: Bench, size: tuple[int, int], model: Local2Global, peer: Local2Global, labels: dict[str, str]
) -> Row:
    frames = [frame_of(size, seed) for seed in range(FRAMES)]
    first_ten = masks_of(10, 100, size, bench.device)  # drawn weights score all alike: ten are chosen

    def shown(found: FramePredictions) -> FramePredictions:
        return replace(found, logits=first_ten.logits, masks=first_ten.masks)

    def ours() -> list[int]:
        with precision(bench.device, labels["dtype"]), VideoPostprocessor(OUTPUT) as post:
            seen = one_behind(model.stream(frames), lambda found: post.update(shown(found)), bench.device)
            return [len(result.ids) for result in seen]

    def theirs() -> list[int]:
        return [len(_run_lengths(shown(found), size)) for found in peer.stream(frames)]

    alike = float(ours() != theirs())
    return {
        **_by_the_clock(bench, ours, theirs),
        "section": "frame",
        "name": f"{size[0]}x{size[1]} stream",
        "pass": "forward",
        "agree": not alike,
        "difference": alike,
        **labels,
    }


def _run_lengths(found: FramePredictions, size: tuple[int, int]) -> list[Any]:
    full = upsample_twice(found.masks, size, size, OUTPUT)
    best = found.logits[0].sigmoid().amax(1)
    masks = (full > 0)[best >= 0.3].cpu().numpy()
    return [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]


def _by_the_clock(bench: Bench, ours: Callable[[], Any], theirs: Callable[[], Any]) -> Row:
    """Seconds a frame of both, turn by turn."""
    row = bench.by_clock.compare("frame", "", ours, theirs, 0.0, 0.0, warm=False)
    return {**row, "ours_s": row["ours_s"] / FRAMES, "peer_s": row["peer_s"] / FRAMES}
