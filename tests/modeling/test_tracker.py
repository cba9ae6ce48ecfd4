"""Query propagation in every variant of Tables 3 and 6."""

from dataclasses import replace

import pytest
import torch

from local2global.modeling.aligner import L2GAligner
from local2global.modeling.decoder import Decoder
from local2global.modeling.positions import (
    DynamicLocalPositions,
    StaticLocalPositions,
    StaticPositions,
    TrajectoryPositions,
)
from local2global.modeling.tracker import FromLocal, Learned, Tracker
from local2global.modeling.variants import FromProposals
from local2global.structures import LayerPredictions, Proposals, Queries

DIM, N = 16, 5
EMBED = Decoder(DIM, 2, 1, 16, 2).embed_boxes


def make_tracker(aligner=True, positions=None, local=None, first=None):
    return Tracker(
        L2GAligner(DIM, 2, 24, 2) if aligner else None,
        positions or TrajectoryPositions(),
        local or StaticLocalPositions(N, DIM),
        first or FromLocal(),
    )


@pytest.fixture
def local():
    predictions = LayerPredictions(torch.zeros(2, N, 3), None, torch.zeros(2, N, DIM))
    return Proposals(torch.randn(2, N, DIM), torch.rand(2, N, 4), predictions)


@pytest.fixture
def past():
    return Queries(torch.randn(2, N, DIM), torch.rand(2, N, 4))


def test_slots_are_aligned_as_in_eq_3(past, local):
    tracker = make_tracker()
    queries, positions = tracker(past, local, EMBED)
    g_pos, l_pos = EMBED(past.boxes), tracker.local_positions.embed.weight.expand(2, N, DIM)
    torch.testing.assert_close(queries.embed, tracker.aligner(past.embed, local.embed, g_pos, l_pos))
    torch.testing.assert_close(positions.embed, g_pos)
    assert torch.equal(positions.boxes, past.boxes)
    assert torch.equal(queries.boxes, past.boxes)


def test_first_frame_aligns_the_local_queries_with_themselves(local):
    tracker = make_tracker()
    queries, positions = tracker(None, local, EMBED)
    l_pos = tracker.local_positions.embed.weight.expand(2, N, DIM)
    expected = tracker.aligner(local.embed, local.embed, EMBED(local.boxes), l_pos)
    torch.testing.assert_close(queries.embed, expected)
    assert torch.equal(positions.boxes, local.boxes)


def test_unaligned_first_frame_skips_the_aligner_on_that_frame_only(past, local):
    tracker = make_tracker(first=FromLocal(align=False))
    assert torch.equal(tracker(None, local, EMBED)[0].embed, local.embed)
    assert not torch.equal(tracker(past, local, EMBED)[0].embed, past.embed)


def test_from_proposals_starts_at_the_encoders_boxes(local):
    boxes = torch.rand(2, N, 4, requires_grad=True)
    local = replace(local, predictions=replace(local.predictions, boxes=boxes))
    _, positions = make_tracker(first=FromProposals())(None, local, EMBED)
    assert torch.equal(positions.boxes, boxes)
    assert not positions.boxes.requires_grad


def test_learned_queries_start_at_the_local_boxes(local):
    tracker = make_tracker(first=Learned(N, DIM))
    queries, positions = tracker(None, local, EMBED)
    learned = tracker.first_frame.embed.weight.expand(2, N, DIM)
    l_pos = tracker.local_positions.embed.weight.expand(2, N, DIM)
    expected = tracker.aligner(learned, local.embed, EMBED(local.boxes), l_pos)
    torch.testing.assert_close(queries.embed, expected)
    assert torch.equal(positions.boxes, local.boxes)


def test_without_an_aligner_slots_are_unchanged_and_there_is_no_l_pos(past, local):
    tracker = make_tracker(aligner=False, positions=StaticPositions(N, DIM))
    assert tracker.local_positions is None
    assert torch.equal(tracker(past, local, EMBED)[0].embed, past.embed)
    assert not [name for name, p in tracker.named_parameters() if p.requires_grad]


def test_static_positions_have_boxes_on_the_first_frame_only(past, local):
    """On the first frame the boxes of the local masks are those of the current frame."""
    tracker = make_tracker(positions=StaticPositions(N, DIM))
    queries, positions = tracker(past, local, EMBED)
    assert positions.boxes is None
    assert torch.equal(queries.boxes, past.boxes)
    assert torch.equal(positions.embed, tracker.positions.embed.weight.expand(2, N, DIM))
    _, first = tracker(None, local, EMBED)
    assert torch.equal(first.boxes, local.boxes)


def test_dynamic_l_pos_has_no_parameters(past, local):
    tracker = make_tracker(local=DynamicLocalPositions())
    queries, _ = tracker(past, local, EMBED)
    expected = tracker.aligner(past.embed, local.embed, EMBED(past.boxes), EMBED(local.boxes))
    torch.testing.assert_close(queries.embed, expected)
    assert not list(tracker.local_positions.parameters())
