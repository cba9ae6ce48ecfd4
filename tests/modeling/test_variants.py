"""Variants that are not the paper's: linking of image weights, and the aligner that starts as the identity."""

import pytest
import torch

from local2global.lazy import instantiate, load_config
from local2global.modeling.variants import BypassTracker, IdentityStartAligner, most_similar
from local2global.structures import FramePredictions, LayerPredictions, Proposals, Queries

PAPER = "configs/common/models/l2g_r50.py"


def predictions_of(embed):
    """Predictions of which every number is its row."""
    batch, count = embed.shape[:2]
    row = torch.arange(count).float().expand(batch, -1)[..., None]
    layer = LayerPredictions(row, row.expand(-1, -1, 4), row)
    queries = Queries(embed, row.expand(-1, -1, 4))
    masks = row[..., None].expand(-1, -1, 2, 3)
    return FramePredictions(row, row.expand(-1, -1, 4), masks, torch.ones(batch, 2), queries, (layer,), layer)


def test_two_objects_that_swap_rows_keep_their_slots():
    """On the second frame the rows are swapped and both queries have changed slightly."""
    past = Queries(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.zeros(1, 2, 4))
    current = predictions_of(torch.tensor([[[0.1, 2.0], [3.0, 0.2]]]))
    linked = BypassTracker().link(past, current)
    assert linked.logits.flatten().tolist() == [1, 0]
    assert linked.boxes[0, :, 0].tolist() == [1, 0]
    assert linked.masks[0, :, 0, 0].tolist() == [1, 0]
    torch.testing.assert_close(linked.queries.embed, torch.tensor([[[3.0, 0.2], [0.1, 2.0]]]))
    assert linked.layers[0].mask_embed.flatten().tolist() == [1, 0]
    assert linked.local is current.local


def test_the_assignment_maximises_the_sum_of_cosines():
    """Both rows are most similar to column 0; the sum decides.  The norm of a query has no effect."""
    past = torch.tensor([[[1.0, 0.5], [1.0, 0.0]]])
    current = torch.tensor([[[100.0, 0.0], [0.6, 0.8]]])
    assert most_similar(past, current).tolist() == [[1, 0]]


def test_links_do_not_depend_on_the_order_of_rows():
    """Each clip of the batch is linked by itself."""
    torch.manual_seed(0)
    past, current = torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    order = torch.stack([torch.randperm(6) for _ in range(2)])
    shuffled = current.gather(1, order[..., None].expand(-1, -1, 8))

    def slots(embed):
        return embed.gather(1, most_similar(past, embed)[..., None].expand(-1, -1, 8))

    assert torch.equal(slots(shuffled), slots(current))


def test_bypass_decodes_the_local_queries_on_every_frame():
    boxes = torch.rand(1, 3, 4)
    local = Proposals(torch.randn(1, 3, 8), boxes, LayerPredictions(boxes, boxes, boxes))
    past = Queries(torch.randn(1, 3, 8), torch.rand(1, 3, 4))
    queries, positions = BypassTracker()(past, local, lambda b: b.repeat(1, 1, 2))
    assert torch.equal(queries.embed, local.embed)
    assert torch.equal(positions.boxes, boxes)
    assert not list(BypassTracker().parameters())


def test_a_bypassed_stream_predicts_each_frame_as_an_image(tiny, make_clip):
    """Each frame's predictions are those of the frame alone, in the order of the slots."""
    model = tiny().eval()
    model.tracker = BypassTracker()
    frames = make_clip().frames
    streamed = list(model.stream(frames))
    assert len(streamed) == len(frames)
    for frame, result in zip(frames, streamed, strict=True):
        (alone,) = model.stream([frame])
        torch.testing.assert_close(result.logits[0].sum(0), alone.logits[0].sum(0))
        torch.testing.assert_close(result.masks[0].sum(0), alone.masks[0].sum(0), atol=1e-4, rtol=1e-4)
    expected = torch.cat([result.queries.embed for result in streamed[:2]])
    order = most_similar(expected[:1], expected[1:])
    assert order.tolist() == [list(range(order.shape[1]))]


def test_bypass_is_a_word_of_the_config(root):
    cfg = load_config(root / PAPER, ["model.tracker=bypass"])
    assert isinstance(instantiate(cfg.model.tracker), BypassTracker)
    assert set(cfg.model.tracker) == {"_target_"}


@pytest.fixture
def inputs():
    return tuple(torch.randn(2, n, 16) for n in (5, 7, 5, 7))


@pytest.mark.parametrize("cross_first", [False, True])
def test_identity_start_returns_normed_queries(inputs, cross_first):
    """Every residual branch is zero, so post-norm layers do not change what is normed."""
    queries, *rest = inputs
    normed = torch.nn.functional.layer_norm(queries, (16,))
    aligned = IdentityStartAligner(16, 2, 24, 2, cross_first)(normed, *rest)
    torch.testing.assert_close(aligned, normed, atol=1e-4, rtol=1e-4)


def test_identity_start_trains_every_parameter(inputs):
    """Only the last products start at zero: after two steps every parameter has changed."""
    aligner = IdentityStartAligner(16, 2, 24, 2)
    before = {name: p.detach().clone() for name, p in aligner.named_parameters()}
    optimizer = torch.optim.SGD(aligner.parameters(), lr=0.1)
    for _ in range(2):
        (aligner(*inputs) * torch.randn(2, 5, 16)).sum().backward()
        optimizer.step()
    assert [n for n, p in aligner.named_parameters() if torch.equal(p, before[n])] == []
