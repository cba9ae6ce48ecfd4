"""Small models and clips for tests; noise is added to the weights so that none is zero."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from local2global.modeling.aligner import L2GAligner
from local2global.modeling.criterion import Criterion, ReducedSupervision
from local2global.modeling.decoder import Decoder
from local2global.modeling.encoder import PixelEncoder
from local2global.modeling.losses import PointSampler
from local2global.modeling.matcher import Matcher
from local2global.modeling.model import Local2Global
from local2global.modeling.positions import StaticLocalPositions, TrajectoryPositions
from local2global.modeling.segmenter import Segmenter
from local2global.modeling.tracker import FromLocal, Tracker
from local2global.structures import Clip, ClipTargets, FrameFeatures

DIM, QUERIES, LEVELS = 32, 6, 3
CHANNELS = {"res2": 8, "res3": 8, "res4": 12, "res5": 16}
CLASSES = [{"id": 10 * (k + 1), "name": f"class {k}"} for k in range(3)]


class ToyBackbone(nn.Module):
    """Non-overlapping patches, downsampled three times: no patch sees another."""

    def __init__(self) -> None:
        super().__init__()
        widths = list(CHANNELS.values())
        self.patch = nn.Conv2d(3, widths[0], 4, stride=4)
        self.halve = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))

    def forward(self, images):
        x = self.patch(images).tanh()
        maps = {"res2": x}
        for i, conv in enumerate(self.halve):
            x = conv(x).tanh()
            maps[f"res{i + 3}"] = x
        return maps


def stir(module, scale=0.15, seed=1):
    """Add noise to every parameter, so that zero-initialised ones have an effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return module


@pytest.fixture(scope="session")
def stirred():
    return stir


@pytest.fixture(scope="session")
def toy_backbone():
    return ToyBackbone


@pytest.fixture(scope="session")
def tiny():
    """Factory of a Local2Global of width 32: 2 encoder layers, 2 decoder layers, 6 queries, 3 classes."""

    def build(
        aligner=True,
        positions=None,
        local_positions=None,
        first_frame=None,
        supervision=None,
        cross_first=False,
        backbone=None,
        channels=None,
        scale=0.15,
        **options,
    ):
        torch.manual_seed(0)
        model = Local2Global(
            Segmenter(
                backbone or ToyBackbone(),
                PixelEncoder(channels or CHANNELS, DIM, 2, 2, 48, LEVELS, groups=4),
                Decoder(DIM, 2, 2, 48, LEVELS),
                num_classes=len(CLASSES),
                num_queries=QUERIES,
                dim=DIM,
            ),
            Tracker(
                L2GAligner(DIM, 2, 48, 2, cross_first=cross_first) if aligner else None,
                positions or TrajectoryPositions(),
                local_positions or StaticLocalPositions(QUERIES, DIM),
                first_frame or FromLocal(),
            ),
            Criterion(
                Matcher(num_points=128), PointSampler(num_points=64), supervision or ReducedSupervision()
            ),
            CLASSES,
            **options,
        )
        return stir(model, scale) if scale else model

    return build


@pytest.fixture(scope="session")
def make_clip():
    """Factory of clips of moving rectangles; `visible` is (M, T)."""

    def build(visible=((1, 1, 1), (1, 0, 1)), size=(64, 96), labels=None, key=(0, 0, 0), seed=0):
        seen = torch.as_tensor(visible, dtype=torch.bool)
        count, length = seen.shape if seen.numel() else (0, seen.shape[-1])
        seen = seen.reshape(count, length)
        height, width = size
        generator = torch.Generator().manual_seed(seed)
        frames = torch.randint(0, 256, (length, 3, height, width), generator=generator, dtype=torch.uint8)
        masks = torch.zeros(count, length, height, width, dtype=torch.bool)
        boxes = torch.zeros(count, length, 4)
        for i in range(count):
            for t in range(length):
                if seen[i, t]:
                    w, h = width // 4 + i, height // 4 + i
                    x, y = (5 + 11 * i + 3 * t) % (width - w), (3 + 7 * i + 2 * t) % (height - h)
                    masks[i, t, y : y + h, x : x + w] = True
                    frames[t, i % 3, y : y + h, x : x + w] = 250
                    boxes[i, t] = torch.tensor([x + w / 2, y + h / 2, w, h])
        boxes /= torch.tensor([width, height, width, height])
        labels = torch.tensor(
            labels if labels is not None else [i % 3 for i in range(count)], dtype=torch.int64
        )
        targets = ClipTargets(labels, torch.arange(count) + 100, masks, boxes, seen)
        return Clip(frames, size, frame_ids=tuple(range(length)), targets=targets, key=key)

    return build


@pytest.fixture(scope="session")
def features_of():
    """Random features of B frames with the given padding: (B, 2) valid part of width and height."""

    def build(valid=((1.0, 1.0),), shapes=((2, 3), (4, 6), (8, 12)), seed=0, dim=DIM):
        generator = torch.Generator().manual_seed(seed)
        valid = torch.tensor(valid)
        batch = len(valid)
        padding = []
        for height, width in shapes:
            columns = (valid[:, 0] * width).ceil()[:, None]
            rows = (valid[:, 1] * height).ceil()[:, None]
            beyond = (torch.arange(width) >= columns)[:, None] | (torch.arange(height) >= rows)[:, :, None]
            padding.append(beyond.flatten(1))
        tokens = sum(height * width for height, width in shapes)
        height, width = 2 * shapes[-1][0], 2 * shapes[-1][1]
        return FrameFeatures(
            memory=torch.randn(batch, tokens, dim, generator=generator),
            shapes=tuple(shapes),
            padding=torch.cat(padding, dim=1),
            mask_features=torch.randn(batch, dim, height, width, generator=generator),
            extent=valid * torch.tensor([width, height]),
            valid_ratios=valid[:, None].expand(-1, len(shapes), -1),
        )

    return build
