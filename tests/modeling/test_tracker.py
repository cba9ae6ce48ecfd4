"""What crosses frames, in every variant of Tables 3 and 6."""

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
from local2global.modeling.tracker import FromLocal, FromProposals, Learned, Tracker
from local2global.structures import LayerPredictions, Proposals, Queries

DIM, N = 16, 5
EMBED = Decoder(DIM, 2, 1, 16, 2).embed_boxes


def tracker(aligner=True, positions=None, local=None, first=None):
    return Tracker(
        L2GAligner(DIM, 2, 24, 2) if aligner else None,
        positions or TrajectoryPositions(),
        local or StaticLocalPositions(N, DIM),
        first or FromLocal(),
    )


@pytest.fixture
def local():
    boxes = torch.rand(2, N, 4)
    predictions = LayerPredictions(torch.zeros(2, N, 3), None, torch.zeros(2, N, DIM))
    return Proposals(torch.randn(2, N, DIM), predictions, lambda: boxes)


@pytest.fixture
def past():
    return Queries(torch.randn(2, N, DIM), torch.rand(2, N, 4))


def test_eq_3_word_for_word(past, local):
    module = tracker()
    embed, positions = module(past, local, EMBED)
    g_pos, l_pos = EMBED(past.boxes), module.local_positions.embed.weight.expand(2, N, DIM)
    torch.testing.assert_close(embed, module.aligner(past.embed, local.embed, g_pos, l_pos))
    torch.testing.assert_close(positions.embed, g_pos)
    assert torch.equal(positions.boxes, past.boxes)


def test_the_first_frames_queries_are_the_local_ones_aligned(local):
    module = tracker()
    embed, positions = module(None, local, EMBED)
    l_pos = module.local_positions.embed.weight.expand(2, N, DIM)
    torch.testing.assert_close(embed, module.aligner(local.embed, local.embed, EMBED(local.boxes), l_pos))
    assert torch.equal(positions.boxes, local.boxes)
    assert positions.current


def test_bypass_hands_the_local_queries_to_the_decoder_on_the_first_frame_only(past, local):
    module = tracker(first=FromLocal(align=False))
    assert torch.equal(module(None, local, EMBED)[0], local.embed)
    assert not torch.equal(module(past, local, EMBED)[0], past.embed)


def test_slots_may_start_at_the_encoders_boxes_whatever_the_masks_cover(local):
    own = torch.rand(2, N, 4, requires_grad=True)
    alike = Proposals(local.embed, replace(local.predictions, boxes=own), lambda: torch.full((2, N, 4), 0.5))
    _, positions = tracker(first=FromProposals())(None, alike, EMBED)
    assert torch.equal(positions.boxes, own)
    assert not positions.boxes.requires_grad


def test_learned_queries_stand_where_the_local_ones_are(local):
    module = tracker(first=Learned(N, DIM))
    embed, positions = module(None, local, EMBED)
    learned = module.first_frame.embed.weight.expand(2, N, DIM)
    l_pos = module.local_positions.embed.weight.expand(2, N, DIM)
    torch.testing.assert_close(embed, module.aligner(learned, local.embed, EMBED(local.boxes), l_pos))
    assert torch.equal(positions.boxes, local.boxes)


def test_without_an_aligner_queries_go_straight_on_and_there_is_no_l_pos(past, local):
    module = tracker(aligner=False, positions=StaticPositions(N, DIM))
    assert module.local_positions is None
    assert torch.equal(module(past, local, EMBED)[0], past.embed)
    assert not [name for name, p in module.named_parameters() if p.requires_grad]


def test_static_positions_leave_the_boxes_to_the_decoder_after_the_first_frame(past, local):
    module = tracker(positions=StaticPositions(N, DIM))
    _, later = module(past, local, EMBED)
    assert not later.current
    assert torch.equal(later.embed, module.positions.embed.weight.expand(2, N, DIM))
    _, first = module(None, local, EMBED)
    assert first.current
    assert torch.equal(first.boxes, local.boxes)


def test_dynamic_l_pos_has_no_parameters_of_its_own(past, local):
    module = tracker(local=DynamicLocalPositions())
    embed, _ = module(past, local, EMBED)
    expected = module.aligner(past.embed, local.embed, EMBED(past.boxes), EMBED(local.boxes))
    torch.testing.assert_close(embed, expected)
    assert not list(module.local_positions.parameters())


def test_local_boxes_are_not_looked_for_unless_needed(past):
    """Mask2Box of the local queries costs a mask product: only the first frame and dynamic l_pos ask for it."""
    predictions = LayerPredictions(torch.zeros(2, N, 3), None, torch.zeros(2, N, DIM))

    def fail():
        raise AssertionError("located")

    local = Proposals(torch.randn(2, N, DIM), predictions, fail)
    tracker()(past, local, EMBED)
    tracker(aligner=False)(past, local, EMBED)
    with pytest.raises(AssertionError, match="located"):
        tracker(local=DynamicLocalPositions())(past, local, EMBED)
