"""A model that streams without a network: what it finds is known beforehand."""

from __future__ import annotations

import torch
from torch import nn

from local2global.structures import FramePredictions, Queries

CLASSES = [{"id": 5, "name": "person"}, {"id": 9, "name": "dog"}]


class Fake(nn.Module):
    """Three slots: a dog on the left half, a person on top in even frames, one that is never sure."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.classes, self.test_size = CLASSES, (32, 64)
        self.threshold, self.aggregate = 0.3, "top_quarter"
        self.read: list[tuple[int, ...]] = []

    def stream(self, frames, past=None, objects=None):
        """The content of the slots is the number of frames done."""
        start = 0 if past is None else int(past.embed[0, 0, 0])
        for t, frame in enumerate(frames, start):
            self.read.append(tuple(frame.shape))
            height, width = -(-frame.shape[1] // 4), -(-frame.shape[2] // 4)
            masks = torch.full((1, 3, height, width), -5.0)
            masks[0, 0, :, : width // 2] = 5.0
            if t % 2 == 0:
                masks[0, 1, : height // 2] = 5.0
            masks[0, 2] = 5.0
            logits = torch.tensor([[[-3.0, 3.0], [1.0, -1.0], [-4.0, -4.0]]])
            boxes = torch.full((1, 3, 4), 0.5)
            extent = torch.tensor([[frame.shape[2] / 4, frame.shape[1] / 4]])
            yield FramePredictions(
                logits, boxes, masks, extent, Queries(torch.full((1, 3, 2), t + 1.0), boxes)
            )
