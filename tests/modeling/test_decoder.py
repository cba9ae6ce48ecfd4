"""The decoder D of Eq. (1): references, predicted boxes and gradients."""

import dataclasses

import pytest
import torch

from local2global.modeling.decoder import Decoder
from local2global.modeling.layers import inverse_sigmoid
from local2global.modeling.positions import box_sine_embedding


@pytest.fixture
def decoder(stirred):
    return stirred(Decoder(32, 2, 3, 48, 3), 0.1)


@pytest.fixture
def inputs(features_of):
    return torch.randn(2, 6, 32), torch.rand(2, 6, 4), features_of(valid=((1.0, 1.0), (0.5, 0.75)))


def test_layers_are_applied_as_in_the_formulas(decoder, inputs):
    """A layer's reference is the box refined by the previous raw output; positions are MLP(PE(box))."""
    queries, boxes, features = inputs
    output = decoder(*inputs)
    x, start = queries, boxes
    for i, layer in enumerate(decoder.layers):
        torch.testing.assert_close(output.references[i], start)
        pos = decoder.ref_point_head(box_sine_embedding(start, 16))
        scaled = start[:, :, None] * torch.cat((features.valid_ratios, features.valid_ratios), -1)[:, None]
        a = layer.self_attn(x, pos)
        b = layer.norm(
            a + layer.cross_attn(a + pos, scaled, features.memory, features.shapes, features.padding)
        )
        x = layer.ffn(b)
        torch.testing.assert_close(output.raw[i], x)
        torch.testing.assert_close(output.hidden[i], decoder.norm(x))
        start = (decoder.bbox_embed(x) + inverse_sigmoid(start)).sigmoid()


def test_next_reference_differs_from_the_predicted_box(decoder, inputs):
    """Boxes are predicted from the normed query, references from the raw one, as in MaskDINO; up to .05 apart."""
    output = decoder(*inputs)
    predicted = decoder.refine(output.hidden[0], output.references[0])
    assert (predicted - output.references[1]).abs().max() > 1e-3


def test_boxes_do_not_move_at_initialisation(inputs):
    decoder = Decoder(32, 2, 2, 48, 3)
    boxes = inputs[1].clamp(0.01, 0.99)
    output = decoder(inputs[0], boxes, inputs[2])
    torch.testing.assert_close(output.references[1], boxes)


def test_references_are_detached_between_layers(decoder, inputs):
    """The last layer's output depends on the box head through references only.

    The boxes passed by the caller are not detached.
    """
    queries, boxes, features = inputs
    boxes.requires_grad_()
    output = decoder(queries, boxes, features)
    output.raw[-1].square().sum().backward()
    assert boxes.grad is not None
    assert all(p.grad is None for p in decoder.bbox_embed.parameters())
    assert decoder.ref_point_head.layers[0].weight.grad.any()


def test_boxes_are_float32_under_autocast(decoder, inputs):
    queries, boxes, features = inputs
    with torch.autocast("cpu", torch.bfloat16):
        embedded = decoder.embed_boxes(boxes)
        refined = decoder.refine(queries.bfloat16(), boxes)
        output = decoder(queries, boxes, features)
    assert torch.equal(embedded, decoder.ref_point_head(box_sine_embedding(boxes, 16)))
    assert refined.dtype == torch.float32
    torch.testing.assert_close(refined, decoder.refine(queries.bfloat16().float(), boxes), rtol=0, atol=0)
    assert {r.dtype for r in output.references} == {torch.float32}


def test_boxes_on_the_border_give_finite_outputs(decoder, inputs):
    queries, _, features = inputs
    boxes = torch.tensor(
        [[0.0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [0.5, 0.5, 1, 1], [0, 1, 0, 1], [0.5, 0, 1, 0]]
    )
    output = decoder(queries, boxes.expand(2, 6, 4), features)
    assert all(r.isfinite().all() and (r >= 0).all() and (r <= 1).all() for r in output.references)
    assert output.raw[-1].isfinite().all()


def test_permuted_queries_give_permuted_outputs(decoder, inputs):
    queries, boxes, features = inputs
    order = torch.randperm(6)
    permuted = decoder(queries[:, order], boxes[:, order], features)
    torch.testing.assert_close(permuted.raw[-1], decoder(*inputs).raw[-1][:, order], atol=1e-5, rtol=1e-5)


def test_noise_in_padded_tokens_does_not_change_the_output(decoder, inputs):
    queries, boxes, features = inputs
    noisy = features.memory + 100 * torch.randn_like(features.memory) * features.padding[..., None]
    output = decoder(queries, boxes, dataclasses.replace(features, memory=noisy))
    torch.testing.assert_close(output.raw[-1], decoder(*inputs).raw[-1], atol=1e-5, rtol=0)
