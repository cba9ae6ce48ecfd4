"""scripts/carriers.py: a model whose queries carry objects is told from one whose slots do."""

import carriers
import pytest
import torch
import torch.nn.functional as F

from local2global.data.generated.shapes import load_shapes
from local2global.structures import FramePredictions, Queries

SLOTS = 5


class Told:
    """Every slot shows one object of the video: the one that its query names, or that its place does."""

    threshold, aggregate = 0.3, "mean"

    def __init__(self, video, by_query):
        self.video, self.by_query = video, by_query

    def encode(self, frames):
        (self.frame,) = frames
        return next(t for t in range(self.video.length) if torch.equal(self.video.frame(t), self.frame))

    def step(self, t, past):
        names = torch.arange(SLOTS) if past is None or not self.by_query else past.embed[0, :, 0].long()
        truth = F.avg_pool2d(self.video.masks(t).float()[None], 4)[0] - 0.5
        empty = torch.full((SLOTS - len(truth), *truth.shape[1:]), -1.0)
        masks = torch.cat([truth, empty])[names][None]
        height, width = masks.shape[2:]
        boxes = torch.full((1, SLOTS, 4), 0.5)
        return FramePredictions(
            logits=torch.full((1, SLOTS, 1), 9.0),
            boxes=boxes,
            masks=masks,
            extent=torch.tensor([[float(width), float(height)]]),
            queries=Queries(names[None, :, None].float(), boxes),
            layers=(),
            local=None,
        )


@pytest.mark.parametrize(("by_query", "carrier"), [(True, "query"), (False, "slot")])
def test_what_carries_an_object_is_found(by_query, carrier):
    video = load_shapes("demo", 1, seed=3, length=9).videos[0]
    fates = carriers.carriers(Told(video, by_query), video, torch.Generator().manual_seed(1), every=2)
    assert set(fates) == {carrier}
    assert fates[carrier] >= 3


def test_an_object_can_go_to_another_slot_or_to_none():
    assert [carriers.fate(owner, 2, 1) for owner in (2, 1, 3, None)] == list(carriers.FATES)
