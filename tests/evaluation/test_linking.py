"""Reference trackers on frames of one row of pixels; a mask is two pixels."""

from __future__ import annotations

import torch

from local2global.evaluation.linking import IoULinker, oracle_rows


def masks(*starts):
    rows = torch.zeros((len(starts), 1, 12), dtype=torch.bool)
    for row, start in zip(rows, starts, strict=True):
        if start is not None:
            row[0, start : start + 2] = True
    return rows


def test_the_oracle_gives_each_object_its_best_free_mask():
    """Both objects overlap mask 1; the first gets it exactly, the second gets the shifted mask 0."""
    assert oracle_rows(masks(4, 7), masks(8, 4, 0)).tolist() == [1, 0]


def test_the_oracle_gives_a_hidden_object_no_mask():
    assert oracle_rows(masks(None, 4), masks(4, 0)).tolist() == [-1, 0]
    assert oracle_rows(masks(4), masks()).tolist() == [-1]


def test_linking_follows_masks_whatever_their_order():
    linker = IoULinker(slots=3)
    assert linker.rows(masks(0, 6), torch.tensor([0.9, 0.8])).tolist() == [0, 1, -1]
    assert linker.rows(masks(7, 1), torch.tensor([0.9, 0.8])).tolist() == [1, 0, -1]


def test_a_new_track_starts_where_no_track_was_and_only_with_a_confident_mask():
    linker = IoULinker(slots=3)
    linker.rows(masks(0), torch.tensor([0.9]))
    assert linker.rows(masks(0, 4, 8), torch.tensor([0.9, 0.2, 0.5])).tolist() == [0, 2, -1]


def test_a_track_is_linked_after_a_short_gap_only():
    for gap, expected in ((2, [0, -1]), (3, [-1, 0])):
        linker = IoULinker(slots=2, memory=3)
        linker.rows(masks(4), torch.tensor([0.9]))
        for _ in range(gap):
            assert linker.rows(masks(), torch.zeros(0)).tolist() == [-1, -1]
        assert linker.rows(masks(4), torch.tensor([0.9])).tolist() == expected


def test_objects_beyond_the_slots_are_dropped_the_least_confident_first():
    linker = IoULinker(slots=2)
    assert linker.rows(masks(0, 4, 8), torch.tensor([0.5, 0.9, 0.8])).tolist() == [1, 2]
