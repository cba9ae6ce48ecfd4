"""What the benchmark's sections work on: the paper's model with drawn weights, its peer, frames and masks.

No trained weights are needed: time does not depend on them, but for how many masks there are and how large, and those
are given.  Weights are stirred, so that no branch is idle and a wrong one would show.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from peer_layout import peer_of
from torch import Tensor

from local2global.lazy import instantiate, load_config
from local2global.modeling.model import Local2Global
from local2global.structures import Clip, ClipTargets, FramePredictions, Queries

ROOT = Path(__file__).resolve().parents[1]
SIZES = ((384, 640), (480, 864))
OUTPUT = (720, 1280)


@dataclass(frozen=True)
class Pair:
    """A model and its peer."""

    ours: Local2Global
    peer: Local2Global


@cache
@torch.inference_mode(False)  # whatever the section's mode: weights made in it tell nobody when they change
def pair(device: torch.device, queries: int = 100, config: str = "configs/ytvis2021/l2g_r50.py") -> Pair:
    """The paper's model for 40 classes and its peer, in evaluation mode."""
    torch.manual_seed(0)
    loaded = load_config(str(ROOT / config), [f"model.segmenter.num_queries={queries}"])
    model = instantiate(loaded.model).to(device).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "backbone" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return Pair(model, peer_of(model))


@cache
@torch.inference_mode(False)
def compiled(model: Local2Global) -> Local2Global:
    """A copy of a model whose layers are compiled when they are first called."""
    copied = copy.deepcopy(model)
    copied.compile_stream()
    return copied


def frame_of(size: tuple[int, int], seed: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """A (3, H, W) uint8 frame of smooth blots: noise would be every network's strangest input."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, 9, 16, generator=generator) * 255
    big = torch.nn.functional.interpolate(small, size, mode="bicubic", align_corners=False)
    return (big[0] + torch.randn(3, *size, generator=generator) * 8).clamp(0, 255).byte().to(device)


def past_of(model: Local2Global, size: tuple[int, int]) -> Queries:
    """The slots after two frames, so that the third is like any other."""
    with torch.inference_mode():
        return list(model.stream([frame_of(size, 1), frame_of(size, 2)]))[-1].queries


def blots(count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """(count, h, w) mask logits of ellipses, each about a twentieth of the frame, with a soft edge and a wavy one."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    centre = torch.rand(count, 2, 1, 1, generator=generator)
    radius = 0.06 + 0.12 * torch.rand(count, 2, 1, 1, generator=generator)
    distance = ((y - centre[:, 0]) / radius[:, 0]) ** 2 + ((x - centre[:, 1]) / radius[:, 1]) ** 2
    return 6 * (1 - distance) + 0.5 * torch.sin(40 * x + 30 * y)


def masks_of(
    kept: int, queries: int, input_size: tuple[int, int], device: torch.device, classes: int = 40
) -> FramePredictions:
    """A frame's predictions: `kept` slots score .9 with a blot each, the others nothing with an empty mask."""
    height, width = input_size[0] // 4, input_size[1] // 4
    masks = torch.full((1, queries, height, width), -5.0)
    masks[0, :kept] = blots(kept, (height, width))
    logits = torch.full((1, queries, classes), -4.0)
    logits[0, :kept, 0] = 2.2
    boxes = torch.full((1, queries, 4), 0.5)
    made = FramePredictions(
        logits=logits.to(device),
        boxes=boxes.to(device),
        masks=masks.to(device),
        extent=torch.tensor([[float(width), float(height)]], device=device),
        queries=Queries(torch.zeros(1, queries, 8, device=device), boxes.to(device)),
    )
    return made


def clip_of(size: tuple[int, int], length: int, instances: int, seed: int = 0) -> Clip:
    """A training clip: blots that move, all visible on all frames."""
    masks = torch.stack(
        [torch.roll(blots(instances, size, seed) > 0, (3 * t, 5 * t), (1, 2)) for t in range(length)], 1
    )
    boxes = torch.zeros(instances, length, 4)
    for i in range(instances):
        for t in range(length):
            rows, columns = masks[i, t].any(1).nonzero()[:, 0], masks[i, t].any(0).nonzero()[:, 0]
            top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
            boxes[i, t] = torch.tensor(
                [
                    (left + right) / 2 / size[1],
                    (top + bottom) / 2 / size[0],
                    (right - left) / size[1],
                    (bottom - top) / size[0],
                ]
            )
    targets = ClipTargets(
        torch.arange(instances) % 40, torch.arange(instances), masks, boxes, masks.flatten(2).any(-1)
    )
    frames = torch.stack([frame_of(size, seed + t) for t in range(length)])
    return Clip(frames, size, frame_ids=tuple(range(length)), targets=targets, key=(seed, 0, 0))


@contextmanager
def precision(device: torch.device, dtype: str) -> Iterator[None]:
    """Ours under autocast for "bf16", as it is for "fp32"."""
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16"):
        yield
