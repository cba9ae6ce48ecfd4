"""Linear layers and folded convolutions against torch's own, both ways."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from local2global.modeling import backbone, products
from local2global.modeling.products import linear, two_layers


def plain(layer, x, relu=False):
    out = F.linear(x, layer.weight, layer.bias)
    return out.relu() if relu else out


def gradients(function, layers, x, cotangent):
    x = x.detach().clone().requires_grad_()
    out = function(x)
    parameters = [p for layer in layers for p in layer.parameters()]
    return [out, *torch.autograd.grad(out, [x, *parameters], cotangent)]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_and_its_gradients_are_torchs(relu, bias):
    """Tokens as they come, every other one (memory with gaps), a single row, none, and one without rows."""
    layer, tokens = nn.Linear(16, 24, bias=bias), torch.randn(2, 14, 16)
    for x in (tokens, tokens[:, ::2], tokens[0], tokens[0, :1], tokens[:, :0], tokens[0, 0]):
        cotangent = torch.randn(*x.shape[:-1], 24)
        ours = gradients(lambda x: linear(layer, x, relu), [layer], x, cotangent)
        theirs = gradients(lambda x: plain(layer, x, relu), [layer], x, cotangent)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        with torch.inference_mode():
            torch.testing.assert_close(linear(layer, x, relu), theirs[0].detach())


@pytest.mark.parametrize("frozen", ["x", "weight", "bias"])
def test_only_the_gradients_that_are_asked_for(frozen):
    layer, x = nn.Linear(3, 5), torch.randn(4, 3, requires_grad=True)
    given = {"x": x, "weight": layer.weight, "bias": layer.bias}
    given[frozen].requires_grad_(False)
    linear(layer, x).sum().backward()
    assert {name: tensor.grad is not None for name, tensor in given.items()} == {
        name: name != frozen for name in given
    }


@pytest.mark.parametrize("rows", [3, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_layers_and_their_gradients_are_torchs(rows, dtype, monkeypatch):
    """A few rows at a time, the last time fewer, or all at once."""
    monkeypatch.setattr(products, "ROWS_AT_A_TIME", rows)
    one, two = nn.Linear(8, 20).to(dtype), nn.Linear(20, 8).to(dtype)
    x, cotangent = torch.randn(2, 7, 8, dtype=dtype), torch.randn(2, 7, 8, dtype=dtype)
    ours = gradients(lambda x: two_layers(one, two, x), [one, two], x, cotangent)
    theirs = gradients(lambda x: plain(two, plain(one, x, relu=True)), [one, two], x, cotangent)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_two_layers_keep_their_input_only():
    one, two = nn.Linear(8, 64), nn.Linear(64, 8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        two_layers(one, two, torch.randn(5, 8))
    assert [shape for shape in kept if shape[0] == 5] == [(5, 8)]


def test_under_autocast_gradients_are_float32_and_near_torchs():
    """By the norm of their difference: which of two roundings a ReLU near zero saw is chance."""
    one, two = nn.Linear(32, 64), nn.Linear(64, 32)
    x, cotangent = torch.randn(40, 32), torch.randn(40, 32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = gradients(lambda x: two_layers(one, two, x), [one, two], x, cotangent.bfloat16())
        theirs = gradients(
            lambda x: plain(two, plain(one, x, relu=True)), [one, two], x, cotangent.bfloat16()
        )
        single = gradients(lambda x: linear(one, x), [one], x, torch.randn(40, 64).bfloat16())
    assert [g.dtype for g in (*ours[1:], *single[1:])] == [torch.float32] * 8
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() <= 0.01 * other.norm()


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_convolution_with_its_norm_folded_in_has_the_gradients_of_the_two(kernel, stride, dtype):
    conv = nn.Conv2d(3, 5, kernel, stride, padding=kernel // 2, bias=False)
    norm = backbone.FrozenBatchNorm(5)
    for buffer in norm.buffers():
        buffer.uniform_(0.5, 2)
    layer = nn.Module()
    layer.convolution, layer.normalization = conv.to(dtype), norm.to(dtype)
    x = torch.randn(2, 3, 6, 7, dtype=dtype).contiguous(memory_format=torch.channels_last)
    cotangent = torch.randn_like(conv(x))
    ours = gradients(lambda x: backbone._convolved(layer, x, relu=False), [conv], x, cotangent)
    theirs = gradients(lambda x: norm(conv(x)), [conv], x, cotangent)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_backbone_in_bfloat16_trains_float32_weights():
    network = backbone.ResNet(depths=(1, 1), hidden_sizes=(16, 32), embedding_size=8)
    twin = copy.deepcopy(network)
    for module, half in ((network, True), (twin, False)):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            maps = module(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        sum(x.float().square().mean() for x in maps.values()).backward()
    for one, other in zip(network.parameters(), twin.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(
                one.grad, other.grad, atol=0.05 * other.grad.abs().max().item(), rtol=0
            )
