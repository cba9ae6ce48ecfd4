"""Eq. (3): the paper's size, and identities that hold whatever the weights."""

import pytest
import torch

from local2global.modeling.aligner import AlignerLayer, IdentityStartAligner, L2GAligner


@pytest.fixture(params=[False, True], ids=["self first", "cross first"])
def aligner(request, stirred):
    return stirred(L2GAligner(16, 2, 24, 2, cross_first=request.param), 0.1).eval()


@pytest.fixture
def given():
    return tuple(torch.randn(2, n, 16) for n in (5, 7, 5, 7))


@pytest.mark.parametrize(("hidden", "parameters"), [(512, 2_372_352), (1024, 3_160_320), (2048, 4_736_256)])
@pytest.mark.parametrize("cross_first", [False, True])
def test_size_is_the_papers(hidden, parameters, cross_first):
    """Sec. 4.2: three layers of hidden size 1024 are 3.2M parameters (l_pos apart)."""
    with torch.device("meta"):
        aligner = L2GAligner(256, 8, hidden, 3, cross_first)
    assert sum(p.numel() for p in aligner.parameters()) == parameters


def test_the_default_is_the_papers():
    with torch.device("meta"):
        assert sum(p.numel() for p in L2GAligner().parameters()) == 3_160_320


@pytest.mark.parametrize("cross_first", [False, True])
def test_an_aligner_that_starts_as_identity_hands_queries_on(given, cross_first):
    """Every residual branch starts at zero, so post-norm layers leave what is normed already."""
    queries, *rest = given
    normed = torch.nn.functional.layer_norm(queries, (16,))
    handed = IdentityStartAligner(16, 2, 24, 2, cross_first)(normed, *rest)
    torch.testing.assert_close(handed, normed, atol=1e-4, rtol=1e-4)


def test_an_aligner_that_starts_as_identity_learns(given):
    """Zero are the last products only: after two steps every parameter has moved."""
    aligner = IdentityStartAligner(16, 2, 24, 2)
    before = {name: p.detach().clone() for name, p in aligner.named_parameters()}
    step = torch.optim.SGD(aligner.parameters(), lr=0.1)
    for _ in range(2):
        (aligner(*given) * torch.randn(2, 5, 16)).sum().backward()
        step.step()
    assert [n for n, p in aligner.named_parameters() if torch.equal(p, before[n])] == []


def test_slot_i_stays_slot_i(aligner, given):
    queries, local, g_pos, l_pos = given
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = aligner(queries[:, order], local, g_pos[:, order], l_pos)
    torch.testing.assert_close(permuted, aligner(*given)[:, order], atol=1e-5, rtol=1e-5)


def test_the_order_of_the_local_queries_is_in_l_pos_alone(aligner, given):
    queries, local, g_pos, l_pos = given
    order = torch.randperm(7)
    same = aligner(queries, local[:, order], g_pos, l_pos[:, order])
    torch.testing.assert_close(same, aligner(*given), atol=1e-5, rtol=1e-5)
    assert (aligner(queries, local[:, order], g_pos, l_pos) - aligner(*given)).abs().max() > 1e-3


def test_clips_of_a_batch_do_not_meet(aligner, given):
    alone = aligner(*(x[1:] for x in given))
    torch.testing.assert_close(aligner(*given)[1:], alone, atol=1e-5, rtol=1e-5)


def test_positions_are_never_values():
    """Where every key is alike, positions cannot matter: one local query, one tracked query."""
    layer = AlignerLayer(16, 2, 24)
    queries, local = torch.randn(1, 1, 16), torch.randn(1, 1, 16)
    zero, other = torch.zeros(1, 1, 16), torch.randn(1, 1, 16)
    torch.testing.assert_close(layer(queries, local, zero, zero), layer(queries, local, other, 9 * other))


@pytest.mark.parametrize("i", range(4), ids=["queries", "local", "g_pos", "l_pos"])
def test_every_input_matters(aligner, given, i):
    changed = list(given)
    changed[i] = changed[i] + torch.randn_like(changed[i])
    assert (aligner(*changed) - aligner(*given)).abs().max() > 1e-3


def test_sub_layers_run_in_the_order_that_is_asked_for(given):
    """Post-norm: the last norm that runs is the feed-forward's; self-attention runs before cross-attention or after."""
    for cross_first in (False, True):
        layer, ran = AlignerLayer(16, 2, 24, cross_first), []
        for name in ("self_attn", "cross_attn", "ffn"):
            getattr(layer, name).register_forward_hook(lambda *_, name=name, ran=ran: ran.append(name))
        layer(*given)
        first = ["cross_attn", "self_attn"] if cross_first else ["self_attn", "cross_attn"]
        assert ran == [*first, "ffn"]


def test_no_dropout():
    aligner = L2GAligner(16, 2, 24, 2).train()
    given = tuple(torch.randn(1, 3, 16) for _ in range(4))
    assert torch.equal(aligner(*given), aligner(*given))
