"""Trackers on damaged true masks: an object that is missed for a frame."""

from __future__ import annotations

import linking
import pytest
import torch

from local2global.data.datasets import VideoDataset

SIZE = (24, 40)


class Clip:
    """Two squares that move to the right by 2 pixels a frame."""

    id, name, size, length = 1, "clip", SIZE, 12
    labels, ids = torch.zeros(2, dtype=torch.int64), torch.tensor([1, 2])

    def masks(self, t):
        masks = torch.zeros(2, *SIZE, dtype=torch.bool)
        for row in range(2):
            masks[row, 2 + 12 * row : 10 + 12 * row, 2 + 2 * t : 10 + 2 * t] = True
        return masks

    def frame(self, t):
        return torch.where(self.masks(t).any(0), 200, 30).to(torch.uint8).expand(3, *SIZE)

    def present(self, t):
        return self.masks(t).flatten(1).any(1).numpy()


def test_damage_erodes_and_drops():
    whole = [linking.damaged(Clip(), drop, 1, seed=0) for drop in (0.0, 0.5)]
    kept, dropped = (torch.stack(list(frames)) for frames in whole)
    assert kept[0, 0].nonzero().tolist() == [[y, x] for y in range(3, 9) for x in range(3, 9)]
    present = dropped.flatten(2).any(2)
    assert 4 < present.sum() < 20
    assert torch.equal(dropped[present], kept[present])


@pytest.mark.parametrize("name", [name for name, make in linking.LINKERS.items() if make])
def test_without_damage_every_linker_keeps_both_objects(name):
    tracks = linking.track(Clip(), linking.LINKERS[name](), drop=0.0, erosion=0, seed=0)
    expected = torch.stack([Clip().masks(t) for t in range(12)], 1)
    found = torch.stack([torch.stack(masks) for masks in tracks.values()])
    assert sorted(map(str, found.tolist())) == sorted(map(str, expected.tolist()))


def test_a_missed_object_keeps_its_number_with_a_memory_only():
    scores = {}
    pytest.importorskip("trackeval", reason="trackeval is not installed")
    dataset = VideoDataset([Clip()], [{"id": 1, "name": "square"}])
    for name, make in linking.LINKERS.items():
        scores[name] = linking.measure(dataset, make, drop=0.2, erosion=0, seed=0)["IDF1"]
    assert scores["true identities"] == scores["image tracker"]
    assert scores["IoU of consecutive frames"] < scores["image tracker"] - 0.05
