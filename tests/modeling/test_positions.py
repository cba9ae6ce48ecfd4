"""Eq. (2): sines of boxes by hand, and the positions of each kind."""

import math

import pytest
import torch

from local2global.modeling.decoder import Decoder
from local2global.modeling.positions import (
    DynamicLocalPositions,
    NoPositions,
    StaticLocalPositions,
    StaticPositions,
    TrajectoryPositions,
    box_sine_embedding,
)
from local2global.structures import LayerPredictions, Proposals, Queries


def test_sines_are_in_the_order_y_x_w_h():
    """Two features per coordinate: sin and cos of 2 pi times the coordinate."""
    box = torch.tensor([0.25, 0.5, 0.125, 0.75])
    expected = [f(2 * math.pi * v) for v in (0.5, 0.25, 0.125, 0.75) for f in (math.sin, math.cos)]
    torch.testing.assert_close(box_sine_embedding(box, 2), torch.tensor(expected), atol=1e-6, rtol=0)


def test_wavelengths_grow_to_ten_thousand():
    """Four features per coordinate of a point: wavelengths 1 and 10000 ** (2 / 4) = 100."""
    x, y = 0.3, 0.1
    expected = [f(2 * math.pi * v / k) for v in (y, x) for k in (1, 100) for f in (math.sin, math.cos)]
    torch.testing.assert_close(box_sine_embedding(torch.tensor([x, y]), 4), torch.tensor(expected))


def test_bfloat16_boxes_are_embedded_in_float32():
    with torch.autocast("cpu", torch.bfloat16):
        assert box_sine_embedding(torch.rand(2, 4).bfloat16()).dtype == torch.float32


@pytest.fixture
def queries():
    return Queries(torch.randn(2, 5, 16), torch.rand(2, 5, 4))


@pytest.fixture
def local():
    predictions = LayerPredictions(torch.zeros(2, 5, 3), None, torch.zeros(2, 5, 16))
    return Proposals(torch.randn(2, 5, 16), torch.rand(2, 5, 4), predictions)


def test_trajectory_positions_embed_the_last_box(queries):
    decoder = Decoder(16, 2, 1, 16, 2)
    positions = TrajectoryPositions()(queries, decoder.embed_boxes)
    torch.testing.assert_close(positions.embed, decoder.ref_point_head(box_sine_embedding(queries.boxes, 8)))
    assert torch.equal(positions.boxes, queries.boxes)
    assert not list(TrajectoryPositions().parameters())


def test_static_positions_are_learned_and_have_no_boxes(queries):
    static = StaticPositions(5, 16)
    positions = static(queries, None)
    assert torch.equal(positions.embed, static.embed.weight.expand(2, 5, 16))
    assert positions.boxes is None


def test_without_positions_g_pos_is_zero(queries):
    positions = NoPositions()(queries, None)
    assert torch.equal(positions.embed, torch.zeros_like(queries.embed))
    assert positions.boxes is None


def test_static_l_pos_is_one_embedding_per_rank(local):
    static = StaticLocalPositions(5, 16)
    assert torch.equal(static(local, None), static.embed.weight.expand(2, 5, 16))
    assert sum(p.numel() for p in static.parameters()) == 5 * 16


def test_dynamic_l_pos_is_eq_2_on_the_local_boxes(local):
    decoder = Decoder(16, 2, 1, 16, 2)
    torch.testing.assert_close(
        DynamicLocalPositions()(local, decoder.embed_boxes),
        decoder.ref_point_head(box_sine_embedding(local.boxes, 8)),
    )
