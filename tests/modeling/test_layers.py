"""Small layers against hand-written formulas."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from local2global.errors import UserError
from local2global.modeling.backbone import ResNet
from local2global.modeling.deformable import DeformableAttention
from local2global.modeling.layers import MLP, Attention, ConvNorm, FeedForward, inverse_sigmoid, mask_logits
from local2global.modeling.ops import blocks


def test_attention_adds_positions_to_queries_and_keys_but_never_to_values():
    """Written out: softmax((x + p) Wq ((m + q) Wk)^T / sqrt(d)) m Wv, residual, norm."""
    module = Attention(8, 2)
    x, x_pos, memory, memory_pos = (torch.randn(2, n, 8) for n in (3, 3, 5, 5))
    inner = module.attention
    query, key, value = (
        (source @ w.T + b).unflatten(-1, (2, 4)).transpose(1, 2)
        for source, w, b in zip(
            (x + x_pos, memory + memory_pos, memory),
            inner.in_proj_weight.chunk(3),
            inner.in_proj_bias.chunk(3),
            strict=True,
        )
    )
    weights = (query @ key.transpose(-1, -2) / math.sqrt(4)).softmax(-1)
    read = inner.out_proj((weights @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(
        module(x, x_pos, memory, memory_pos), F.layer_norm(x + read, (8,)), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(module(x, x_pos), module(x, x_pos, x, x_pos))


def test_mlp_has_relu_between_and_not_after():
    module = MLP(1, 2, 1, 2)
    for layer, weight in zip(module.layers, ([[1.0], [-1.0]], [[1.0, -3.0]]), strict=True):
        layer.weight.data = torch.tensor(weight)
        layer.bias.data.zero_()
    assert module(torch.tensor([[2.0], [-2.0]])).tolist() == [[2.0], [-6.0]]
    assert [tuple(p.shape) for p in MLP(4, 8, 3, 3).parameters() if p.ndim > 1] == [(8, 4), (8, 8), (3, 8)]


def test_feed_forward_is_residual_and_post_normed():
    module = FeedForward(4, 6)
    x = torch.randn(2, 4)
    expected = F.layer_norm(x + module.linear2(module.linear1(x).clamp(min=0)), (4,))
    torch.testing.assert_close(module(x), expected)


def test_feed_forward_works_in_equal_blocks_and_calls_its_layers(monkeypatch):
    """Seven tokens in blocks of at most 3 are blocks of 3, 3 and 1; with gradients they are one block."""
    monkeypatch.setattr(blocks, "BLOCK", 3)
    module, x, seen = FeedForward(4, 6), torch.randn(2, 7, 4), []
    module.linear1.register_forward_hook(lambda *given: seen.append(given[2].shape[1]))
    expected = module(x)
    with torch.no_grad():
        torch.testing.assert_close(module(x), expected)
    assert seen == [7, 3, 3, 1]


def test_a_hook_that_changes_a_layers_output_changes_every_block(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 2)
    module, x = FeedForward(4, 6), torch.randn(1, 5, 4)
    module.linear2.register_forward_hook(lambda *given: given[2] * 0)
    with torch.no_grad():
        torch.testing.assert_close(module(x), F.layer_norm(x, (4,)))


def test_a_network_can_be_traced():
    network, x = MLP(4, 8, 2, 3), torch.randn(5, 4)
    with torch.no_grad():
        traced = torch.jit.trace(network, x)
        torch.testing.assert_close(traced(x), network(x))


def test_conv_norm_has_detectron2s_names_and_no_bias():
    module = ConvNorm(3, 8, 3, norm=partial(nn.GroupNorm, 2))
    assert set(module.state_dict()) == {"weight", "norm.weight", "norm.bias"}
    assert module(torch.randn(1, 3, 5, 6)).shape == (1, 8, 5, 6)


def test_inverse_sigmoid_is_held_within_its_epsilon():
    x = torch.tensor([0.5, 0.0, 1.0, -3.0, 7.0])
    edge = math.log((1 - 0) / 1e-5)
    torch.testing.assert_close(inverse_sigmoid(x), torch.tensor([0.0, -edge, edge, -edge, edge]))
    middle = torch.linspace(0.01, 0.99, 9)
    torch.testing.assert_close(inverse_sigmoid(middle).sigmoid(), middle)


def test_masks_are_zero_in_padding_and_full_precision(features_of):
    features = features_of(valid=((0.5, 0.75),))
    embed = torch.randn(1, 2, 32)
    masks = mask_logits(embed, features.mask_features, features.extent)
    expected = torch.einsum("nc,chw->nhw", embed[0], features.mask_features[0])
    torch.testing.assert_close(masks[0, :, :12, :12], expected[:, :12, :12])
    assert not masks[..., 12:, :].any()
    assert not masks[..., 12:].any()
    with torch.autocast("cpu", torch.bfloat16):
        assert mask_logits(embed, features.mask_features, features.extent).dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FeedForward(8, 0), "dim_feedforward=0: expected at least 1"),
        (lambda: ConvNorm(3, 0, 1, norm=nn.Identity), "channels=0: expected at least 1"),
        (lambda: DeformableAttention(8, 2, 1, 0), "num_points=0: expected at least 1"),
        (lambda: ResNet(depths=(1, 0, 1, 1)), "depths=0: expected at least 1"),
    ],
)
def test_sizes_below_one_are_refused_by_name(make, message):
    with pytest.raises(UserError, match=message):
        make()
