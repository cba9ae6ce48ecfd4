"""The bypass: frames by themselves, linked by likeness."""

import torch

from local2global.lazy import instantiate, load_config
from local2global.modeling.tracker import Tracker
from local2global.modeling.variants import BypassTracker, most_alike
from local2global.structures import FramePredictions, LayerPredictions, Proposals, Queries

PAPER = "configs/common/models/l2g_r50.py"


def found(embed):
    """Predictions whose every number tells its row."""
    batch, count = embed.shape[:2]
    row = torch.arange(count).float().expand(batch, -1)[..., None]
    layer = LayerPredictions(row, row.expand(-1, -1, 4), row)
    queries = Queries(embed, row.expand(-1, -1, 4))
    masks = row[..., None].expand(-1, -1, 2, 3)
    return FramePredictions(row, row.expand(-1, -1, 4), masks, torch.ones(batch, 2), queries, (layer,), layer)


def test_two_objects_that_swap_places_keep_their_slots():
    """A red and a blue query; on the next frame blue comes first and both have changed a little."""
    past = Queries(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.zeros(1, 2, 4))
    now = found(torch.tensor([[[0.1, 2.0], [3.0, 0.2]]]))
    linked = BypassTracker().link(past, now)
    assert linked.logits.flatten().tolist() == [1, 0]
    assert linked.boxes[0, :, 0].tolist() == [1, 0]
    assert linked.masks[0, :, 0, 0].tolist() == [1, 0]
    assert linked.queries.embed.tolist() == [[[3.0, 0.20000000298023224], [0.10000000149011612, 2.0]]]
    assert linked.layers[0].mask_embed.flatten().tolist() == [1, 0]
    assert linked.local is now.local


def test_likeness_is_the_angle_and_the_assignment_is_of_all_together():
    """Row 0 is nearest to column 0, but so is row 1, which has no other: the sum decides.  Length is nothing."""
    past = torch.tensor([[[1.0, 0.5], [1.0, 0.0]]])
    now = torch.tensor([[[100.0, 0.0], [0.6, 0.8]]])
    assert most_alike(past, now).tolist() == [[1, 0]]


def test_the_first_frame_is_as_it_is_found():
    now = found(torch.randn(1, 3, 4))
    assert BypassTracker().link(None, now) is now


def test_links_do_not_depend_on_the_order_within_a_frame():
    """However the second frame's rows are shuffled, slot i shows the same object; each clip by itself."""
    torch.manual_seed(0)
    past, now = torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    order = torch.stack([torch.randperm(6) for _ in range(2)])
    shuffled = now.gather(1, order[..., None].expand(-1, -1, 8))

    def slots(embed):
        return embed.gather(1, most_alike(past, embed)[..., None].expand(-1, -1, 8))

    assert torch.equal(slots(shuffled), slots(now))


def test_the_decoder_gets_the_local_queries_whatever_came_before():
    boxes = torch.rand(1, 3, 4)
    local = Proposals(torch.randn(1, 3, 8), LayerPredictions(boxes, boxes, boxes), lambda: boxes)
    past = Queries(torch.randn(1, 3, 8), torch.rand(1, 3, 4))
    embed, positions = BypassTracker()(past, local, lambda b: b.repeat(1, 1, 2))
    assert torch.equal(embed, local.embed)
    assert torch.equal(positions.boxes, boxes)
    assert positions.current
    assert not list(BypassTracker().parameters())


def test_a_model_with_it_streams_and_each_frame_is_an_image(tiny, make_clip):
    """Frame by frame the same sets of predictions as each frame alone, in the order of the slots."""
    model = tiny().eval()
    model.tracker = BypassTracker()
    frames = make_clip().frames
    streamed = list(model.stream(frames))
    assert len(streamed) == len(frames)
    for frame, result in zip(frames, streamed, strict=True):
        (alone,) = model.stream([frame])
        torch.testing.assert_close(result.logits[0].sum(0), alone.logits[0].sum(0))
        torch.testing.assert_close(result.masks[0].sum(0), alone.masks[0].sum(0))
    (first, *_) = streamed
    assert all(torch.isfinite(result.logits).all() for result in streamed)
    assert len(first.logits[0]) == len(streamed[-1].logits[0])


def test_a_tracked_models_predictions_are_left_as_they_are():
    now = found(torch.randn(1, 3, 4))
    assert Tracker.link(None, now.queries, now) is now


def test_one_word_is_another_tracker(root):
    cfg = load_config(root / PAPER, ["model.tracker=bypass"])
    assert isinstance(instantiate(cfg.model.tracker), BypassTracker)
    assert set(cfg.model.tracker) == {"_target_"}
