"""oneDNN's fused layers against the plain ones, and that kept weights follow the layer's own."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from local2global.modeling import layers, onednn
from local2global.modeling.backbone import FrozenBatchNorm

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN"
)
TOLERANCE = {torch.float32: {"atol": 1e-5, "rtol": 1e-5}, torch.bfloat16: {"atol": 3e-2, "rtol": 3e-2}}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request):
    """The type to compute in, by autocast if it is not the weights' own."""
    if request.param == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN has no bfloat16 on this CPU")
    with torch.autocast("cpu", torch.bfloat16, enabled=request.param == torch.bfloat16):
        yield request.param


@pytest.fixture
def frozen():
    """A convolution with a bias, and a frozen norm whose every term says something."""
    torch.manual_seed(0)
    norm = FrozenBatchNorm(6)
    for buffer in norm.buffers():
        buffer.uniform_(0.5, 2.0)
    return nn.Conv2d(3, 6, 3, stride=2, padding=1), norm


def fused(function, *arguments, **options):
    """With and without oneDNN: the same call without and with gradients."""
    plain = function(*arguments, **options).detach()
    with torch.no_grad():
        return function(*arguments, **options), plain


@pytest.mark.parametrize("relu", [False, True])
def test_a_linear_layer_is_the_plain_one(dtype, relu):
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 12), torch.randn(2, 5, 8)
    ours, plain = fused(layers.linear, layer, x, relu)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, plain, **TOLERANCE[dtype])


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("added", [False, True])
def test_a_convolution_with_all_that_follows_is_the_plain_one(dtype, frozen, relu, added):
    conv, norm = frozen
    x = torch.randn(2, 3, 7, 10)
    with torch.no_grad():
        add = torch.randn(2, 6, 4, 5) if added else None
        expected = norm(conv(x)).to(dtype)
        expected = expected if add is None else expected + add.to(dtype)
        expected = expected.relu() if relu else expected
        ours = layers.convolution(conv, x, norm, None if add is None else add.clone(), relu)
    plain = layers.convolution(conv, x, norm, add, relu)
    torch.testing.assert_close(ours, expected, **TOLERANCE[dtype])
    torch.testing.assert_close(plain.to(dtype), expected, **TOLERANCE[dtype])


def test_kept_weights_follow_a_layer_that_is_written_loaded_replaced_or_moved(frozen):
    conv, norm = frozen
    x = torch.randn(1, 3, 6, 6)

    def is_the_plain_one():
        ours, plain = fused(layers.convolution, conv, x, norm)
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
        return ours

    seen = [is_the_plain_one()]
    with torch.no_grad():
        conv.weight.mul_(2)
    seen.append(is_the_plain_one())
    norm.load_state_dict({name: value + 0.5 for name, value in norm.state_dict().items()})
    seen.append(is_the_plain_one())
    conv.bias = nn.Parameter(torch.ones(6))
    seen.append(is_the_plain_one())
    conv.double().float().weight.data = torch.randn(6, 3, 3, 3)
    seen.append(is_the_plain_one())
    assert all((a - b).abs().max() > 1e-3 for a, b in pairwise(seen))


@pytest.mark.parametrize("fused_step", [False, True])
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_kept_weights_follow_an_optimizer(optimizer, fused_step):
    """Fused ones write without a word in the weights' versions."""
    layer, x = nn.Linear(8, 12), torch.randn(5, 8)
    fused(layers.linear, layer, x)  # kept
    steps = optimizer(layer.parameters(), lr=0.5, fused=fused_step)
    layer(x).square().sum().backward()
    steps.step()
    ours, plain = fused(layers.linear, layer, x)
    torch.testing.assert_close(ours, plain, **TOLERANCE[torch.float32])


def test_a_map_of_another_size_is_taken_too(frozen):
    for side in (6, 9, 6):
        ours, plain = fused(layers.convolution, frozen[0], torch.randn(1, 3, side, side))
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


def test_weights_are_prepared_once(monkeypatch):
    made = []
    prepare = torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(
        torch.ops.mkldnn, "_reorder_linear_weight", lambda weight: made.append(1) or prepare(weight)
    )
    layer = nn.Linear(8, 8)
    with torch.no_grad():
        for _ in range(3):
            layers.linear(layer, torch.randn(4, 8))
    assert len(made) == 1


def test_kept_weights_go_with_their_layer():
    layer = nn.Linear(8, 8)
    with torch.no_grad():
        layers.linear(layer, torch.randn(4, 8))
    assert layer.weight in onednn._KEPT
    before = len(onednn._KEPT)
    del layer
    assert len(onednn._KEPT) == before - 1


def test_a_compiler_takes_the_operator_whole(dtype):
    """No graph break, the same numbers; the backend that compiles nothing is enough to see it."""
    mlp, x = layers.MLP(8, 16, 4, 2), torch.randn(3, 8)
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        expected = mlp(x)
        found = torch.compile(mlp, backend=keep, fullgraph=True)(x)
    torch.testing.assert_close(found, expected, **TOLERANCE[dtype])
    called = [str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert sum("local2global.linear" in name for name in called) == 2


def test_a_compiler_takes_a_feed_forward_network_as_one_operator(dtype):
    """In rows that a cache holds, more than one of them here."""
    network, x = layers.FeedForward(8, 16), torch.randn(2, 700, 8)
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        expected = network(x)
        found = torch.compile(network, backend=keep, fullgraph=True)(x)
    torch.testing.assert_close(found, expected, **TOLERANCE[dtype])
    called = [str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert [name for name in called if "local2global" in name] == ["local2global.two_layers"]


def test_the_operators_keep_torchs_rules():
    given = torch.randn(3, 8), torch.randn(5, 8), torch.randn(5), torch.randn(7, 5), None
    for test in ("test_schema", "test_faketensor"):
        torch.library.opcheck(torch.ops.local2global.two_layers.default, given, test_utils=test)
    for relu in (False, True):
        given = torch.randn(3, 8), torch.randn(5, 8), torch.randn(5), relu
        torch.library.opcheck(torch.ops.local2global.linear.default, given, test_utils="test_schema")
        torch.library.opcheck(torch.ops.local2global.linear.default, given, test_utils="test_faketensor")


def test_weights_made_in_inference_mode_are_taken_but_not_kept():
    with torch.inference_mode():
        layer, x = nn.Linear(8, 8), torch.randn(4, 8)
        before = layers.linear(layer, x)
        layer.weight.mul_(2)
        after = layers.linear(layer, x)
    assert (before - after).abs().max() > 1e-3
    assert layer.weight not in onednn._KEPT


def test_what_needs_gradients_is_left_to_torch():
    layer, x = nn.Linear(8, 8), torch.randn(4, 8)
    assert not onednn.takes(layer.weight, x)
    assert layers.linear(layer, x).requires_grad
    with torch.no_grad():
        assert onednn.takes(layer.weight, x)
        assert not onednn.takes(layer.weight.double(), x.double())
        assert not onednn.takes(layer.weight, x.half())
