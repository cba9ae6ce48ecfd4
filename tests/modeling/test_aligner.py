"""Eq. (3): the paper's size, and identities that hold for any weights."""

import pytest
import torch

from local2global.modeling.aligner import AlignerLayer, L2GAligner


@pytest.fixture(params=[False, True], ids=["self first", "cross first"])
def aligner(request, stirred):
    return stirred(L2GAligner(16, 2, 24, 2, cross_first=request.param), 0.1).eval()


@pytest.fixture
def inputs():
    return tuple(torch.randn(2, n, 16) for n in (5, 7, 5, 7))


@pytest.mark.parametrize(("hidden", "parameters"), [(512, 2_372_352), (1024, 3_160_320), (2048, 4_736_256)])
@pytest.mark.parametrize("cross_first", [False, True])
def test_size_is_the_papers(hidden, parameters, cross_first):
    """Sec. 4.2: three layers of hidden size 1024 are 3.2M parameters (l_pos apart)."""
    with torch.device("meta"):
        aligner = L2GAligner(256, 8, hidden, 3, cross_first)
    assert sum(p.numel() for p in aligner.parameters()) == parameters


def test_default_size_is_the_papers():
    with torch.device("meta"):
        assert sum(p.numel() for p in L2GAligner().parameters()) == 3_160_320


def test_slot_i_stays_slot_i(aligner, inputs):
    queries, local, g_pos, l_pos = inputs
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = aligner(queries[:, order], local, g_pos[:, order], l_pos)
    torch.testing.assert_close(permuted, aligner(*inputs)[:, order], atol=1e-5, rtol=1e-5)


def test_order_of_local_queries_matters_through_l_pos_only(aligner, inputs):
    queries, local, g_pos, l_pos = inputs
    order = torch.randperm(7)
    same = aligner(queries, local[:, order], g_pos, l_pos[:, order])
    torch.testing.assert_close(same, aligner(*inputs), atol=1e-5, rtol=1e-5)
    assert (aligner(queries, local[:, order], g_pos, l_pos) - aligner(*inputs)).abs().max() > 1e-3


def test_clips_of_a_batch_are_independent(aligner, inputs):
    alone = aligner(*(x[1:] for x in inputs))
    torch.testing.assert_close(aligner(*inputs)[1:], alone, atol=1e-5, rtol=1e-5)


def test_positions_are_not_added_to_values():
    """With one local and one global query, attention weights are 1 and positions have no effect."""
    layer = AlignerLayer(16, 2, 24)
    queries, local = torch.randn(1, 1, 16), torch.randn(1, 1, 16)
    zero, other = torch.zeros(1, 1, 16), torch.randn(1, 1, 16)
    torch.testing.assert_close(layer(queries, local, zero, zero), layer(queries, local, other, 9 * other))


@pytest.mark.parametrize("i", range(4), ids=["queries", "local", "g_pos", "l_pos"])
def test_every_input_matters(aligner, inputs, i):
    changed = list(inputs)
    changed[i] = changed[i] + torch.randn_like(changed[i])
    assert (aligner(*changed) - aligner(*inputs)).abs().max() > 1e-3


def test_sub_layers_run_in_the_configured_order(inputs):
    """Self-attention before cross-attention, or after; the feed-forward network last."""
    for cross_first in (False, True):
        layer, ran = AlignerLayer(16, 2, 24, cross_first), []
        for name in ("self_attn", "cross_attn", "ffn"):
            getattr(layer, name).register_forward_hook(lambda *_, name=name, ran=ran: ran.append(name))
        layer(*inputs)
        first = ["cross_attn", "self_attn"] if cross_first else ["self_attn", "cross_attn"]
        assert ran == [*first, "ffn"]


def test_no_dropout():
    aligner = L2GAligner(16, 2, 24, 2).train()
    inputs = tuple(torch.randn(1, 3, 16) for _ in range(4))
    assert torch.equal(aligner(*inputs), aligner(*inputs))
