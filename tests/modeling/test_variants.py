"""Variants that are not the paper's: linking of image weights, and the aligner that starts as the identity."""

import dataclasses

import pytest
import torch

from local2global.boxes import mask_to_box
from local2global.errors import UserError
from local2global.lazy import instantiate, load_config
from local2global.modeling.memory import ObjectMemory, colour_histograms, restart
from local2global.modeling.positions import StaticPositions
from local2global.modeling.variants import (
    IdentityStartAligner,
    ImageTracker,
    RememberingTracker,
    RestartingTracker,
)
from local2global.structures import FramePredictions, LayerPredictions, Proposals, Queries

PAPER = "configs/common/models/l2g_r50.py"


SIZE = (12, 24)  # of the frames below, in mask pixels


def frame(*detections, count=4):
    """Predictions of one frame: (x, y, query, score) each, a 4 x 4 square at x, y; the other rows have no mask."""
    masks = torch.full((1, count, *SIZE), -5.0)
    embed, logits = torch.zeros(1, count, 2), torch.full((1, count, 1), -9.0)
    for row, (x, y, query, score) in enumerate(detections):
        masks[0, row, y : y + 4, x : x + 4] = 5.0
        embed[0, row] = torch.tensor(query)
        logits[0, row] = torch.tensor(score).logit()
    extent = torch.tensor([[float(SIZE[1]), float(SIZE[0])]])
    boxes = mask_to_box(masks, torch.zeros(1, count, 4), extent[:, None])
    return FramePredictions(logits, boxes, masks, extent, Queries(embed, boxes))


RED, BLUE = (1.0, 0.0), (0.0, 1.0)


def track(frames, tracker=None):
    """The column of the object's mask in each slot and frame, None where a slot reports nothing."""
    past, columns = None, []
    for predictions in frames:
        linked = (tracker or ImageTracker()).link(past, predictions)
        past = linked.queries
        shown = (linked.masks[0] > 0).any(1)
        reported = linked.logits[0, :, 0] > 0
        columns.append(
            [int(r.int().argmax()) if r.any() and s else None for r, s in zip(shown, reported, strict=True)]
        )
    return columns


def test_two_objects_that_swap_rows_keep_their_slots():
    """The more confident one has slot 0."""
    frames = [frame((2, 2, RED, 0.8), (16, 2, BLUE, 0.9)), frame((15, 2, BLUE, 0.7), (3, 2, RED, 0.9))]
    assert track(frames) == [[16, 2, None, None], [15, 3, None, None]]


def test_look_alikes_are_told_apart_by_place():
    frames = [frame((2, 2, RED, 0.9), (8, 2, RED, 0.8)), frame((9, 2, RED, 0.9), (3, 2, RED, 0.8))]
    assert track(frames)[1] == [3, 9, None, None]


def test_objects_that_cross_are_told_apart_by_their_queries():
    """Each box is now nearer to where the other was."""
    frames = [frame((6, 2, RED, 0.9), (11, 2, BLUE, 0.8)), frame((10, 2, RED, 0.8), (7, 2, BLUE, 0.9))]
    assert track(frames)[1] == [10, 7, None, None]


@pytest.mark.parametrize(("memory", "slot"), [(0, 1), (3, 1), (4, 0), (30, 0)])
def test_a_lost_object_returns_to_its_slot_within_the_memory(memory, slot):
    """It is hidden for four frames and has moved a little; afterwards its slot counts as lost, and it is a new one."""
    frames = [frame((4, 2, RED, 0.9)), *[frame()] * 4, frame((6, 2, RED, 0.9))]
    columns = track(frames, ImageTracker(memory=memory))
    assert columns[1:5] == [[None] * 4] * 4
    assert columns[5] == [6 if k == slot else None for k in range(4)]


def test_a_lost_object_is_looked_for_where_it_was_going():
    """Two look-alikes move to the right by 4 columns a frame, hidden for a frame; one is now where the other was."""
    frames = [
        frame((0, 0, RED, 0.9), (8, 0, RED, 0.8)),
        frame((4, 0, RED, 0.9), (12, 0, RED, 0.8)),
        frame(),
        frame((20, 0, RED, 0.9), (12, 0, RED, 0.8)),
    ]
    assert track(frames, ImageTracker(least=0.1))[3] == [12, 20, None, None]


def test_an_unsure_detection_keeps_its_slot_and_starts_none():
    frames = [frame((2, 2, RED, 0.9)), frame((2, 2, RED, 0.1), (16, 2, BLUE, 0.1)), frame((2, 2, RED, 0.9))]
    past = None
    for predictions in frames:
        past = ImageTracker().link(past, predictions).queries
    assert past.taken.tolist() == [[True, False, False, False]]
    assert past.lost[0, 0] == 0


def test_a_newcomer_takes_a_fresh_slot_first_then_the_one_lost_longest():
    """The objects of slots 0 and 1 are lost, in this order; the fourth object finds only their slots free."""
    frames = [
        frame((0, 0, RED, 0.9), (8, 0, RED, 0.8), count=3),
        frame((8, 0, RED, 0.8), count=3),
        frame((20, 8, BLUE, 0.9), count=3),
        frame((20, 8, BLUE, 0.9), (20, 0, BLUE, 0.8), count=3),
    ]
    assert track(frames)[2:] == [[None, None, 20], [20, None, 20]]


def test_of_two_detections_of_an_object_the_more_confident_one_is_reported():
    """Detections one column apart have an IoU of .6; the sure one changes, the slot stays."""
    frames = [frame((4, 2, RED, 0.9), (5, 2, RED, 0.8)), frame((4, 2, RED, 0.7), (5, 2, RED, 0.9))]
    assert track(frames) == [[4, None, None, None], [5, None, None, None]]
    assert track(frames, ImageTracker(duplicate=0.7))[0] == [4, 5, None, None]


def test_the_mask_of_an_object_is_the_average_of_its_detections_by_score():
    """The second square is one column to the right: its column 6 is lost, column 2 stays.  The third is elsewhere."""
    predictions = frame((2, 2, RED, 0.8), (3, 2, RED, 0.4), (16, 2, BLUE, 0.9))
    linked = ImageTracker().link(None, predictions)
    row = linked.masks[0, 1, 3]
    weight = 0.8 / (0.8 + 0.4)
    assert row[2] == pytest.approx(5 * weight - 5 * (1 - weight), abs=1e-4)
    assert row[6] == pytest.approx(5 * (1 - weight) - 5 * weight, abs=1e-4)
    assert row[3] == pytest.approx(5.0)
    assert torch.equal(linked.masks[0, 0], predictions.masks[0, 2])


@pytest.mark.parametrize(("smoothing", "query"), [(0.0, [0.0, 1.0]), (0.5, [0.5, 0.5])])
def test_the_query_of_a_slot_is_a_moving_average(smoothing, query):
    """A new object in a slot starts with its own query."""
    tracker = ImageTracker(smoothing=smoothing)
    first = tracker.link(None, frame((2, 2, (3.0, 0.0), 0.9)))
    assert first.queries.query[0, 0].tolist() == [3.0, 0.0]
    second = tracker.link(first.queries, frame((2, 2, (0.0, 2.0), 0.9)))
    assert second.queries.query[0, 0].tolist() == query


def test_an_unsure_detection_does_not_change_the_query_of_its_slot():
    tracker, past = ImageTracker(smoothing=0.5), None
    for predictions in (frame((2, 2, RED, 0.9)), frame((2, 2, BLUE, 0.2))):
        past = tracker.link(past, predictions).queries
    assert past.query[0, 0].tolist() == list(RED)


def test_a_hidden_object_is_not_replaced_by_an_unsure_detection_that_resembles_it():
    """The false detection is elsewhere; the object returns to its slot."""
    frames = [frame((2, 2, RED, 0.9)), *[frame((6, 7, RED, 0.2))] * 3, frame((3, 2, RED, 0.9))]
    columns = track(frames)
    assert [column[0] for column in columns] == [2, None, None, None, 3]


def coloured(predictions, *colours):
    """The predictions of a frame whose k-th mask has the k-th colour; the background is black."""
    image = torch.zeros(1, 3, *SIZE)
    for mask, colour in zip(predictions.masks[0] > 0, colours, strict=False):
        image[0, :, mask] = torch.tensor(colour)[:, None]
    return dataclasses.replace(predictions, colours=image)


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_objects_with_equal_queries_that_cross_are_told_apart_by_their_colours(weight):
    """Each box is now nearer to where the other was."""
    orange, green = (0.9, 0.5, 0.1), (0.1, 0.9, 0.2)
    frames = [
        coloured(frame((6, 2, RED, 0.9), (11, 2, RED, 0.8)), orange, green),
        coloured(frame((10, 2, RED, 0.8), (7, 2, RED, 0.9)), orange, green),
    ]
    tracker = ImageTracker(colours=weight)
    assert track(frames, tracker)[1] == [10, 7, None, None]
    assert track([dataclasses.replace(f, colours=None) for f in frames], tracker)[1] == [7, 10, None, None]


def test_colour_histograms_have_unit_length_and_change_little_with_the_light():
    masks = frame((2, 2, RED, 0.9), (8, 2, RED, 0.8), (14, 2, RED, 0.8))
    one, dimmer, other, nothing = colour_histograms(
        coloured(masks, (0.80, 0.4, 0.1), (0.77, 0.4, 0.1), (0.1, 0.2, 0.9))
    )[0]
    assert one.norm() == pytest.approx(1)
    assert 0.9 < float(one @ dimmer) < 0.999
    assert float(one @ other) == 0
    assert not nothing.any()
    assert not colour_histograms(masks).any()


def test_a_histogram_is_the_square_root_of_the_shares_of_the_colours():
    """Half of the mask is black, half white: both corners of the colour cube have a share of .5."""
    predictions = frame((0, 0, RED, 0.9))
    image = torch.zeros(1, 3, *SIZE)
    image[..., :2] = 1.0
    histogram = colour_histograms(dataclasses.replace(predictions, colours=image))[0, 0]
    assert histogram[[0, -1]].tolist() == pytest.approx([0.5**0.5] * 2)
    assert int((histogram > 0).sum()) == 2


def test_links_do_not_depend_on_the_order_of_detections():
    torch.manual_seed(0)
    places = [(2, 2), (9, 2), (16, 2)]
    queries = torch.randn(3, 2).tolist()
    first = frame(
        *[(x, y, q, 0.9 - 0.1 * i) for i, ((x, y), q) in enumerate(zip(places, queries, strict=True))]
    )
    second = [(x + 1, y, q, 0.9 - 0.1 * i) for i, ((x, y), q) in enumerate(zip(places, queries, strict=True))]
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        assert track([first, frame(*[second[i] for i in order])])[1] == [3, 10, 17, None]


def test_a_clip_of_a_batch_is_linked_by_itself():
    """Two clips at once are the clips one by one, and the state has a constant size."""
    clips = [
        [frame((2, 2, RED, 0.9), (16, 2, BLUE, 0.8)), frame((16, 2, BLUE, 0.8)), frame((3, 2, RED, 0.9))],
        [frame((2, 6, RED, 0.9)), frame((2, 6, BLUE, 0.9), (9, 6, RED, 0.8)), frame((9, 6, RED, 0.8))],
    ]

    def stack(one, other):
        fields = ("logits", "boxes", "masks", "extent")
        both = {name: torch.cat((getattr(one, name), getattr(other, name))) for name in fields}
        queries = (one.queries, other.queries)
        return FramePredictions(
            **both,
            queries=Queries(*(torch.cat([getattr(q, n) for q in queries]) for n in ("embed", "boxes"))),
        )

    together = None
    alone = [None, None]
    for pair in zip(*clips, strict=True):
        linked = ImageTracker().link(together, stack(*pair))
        single = [
            ImageTracker().link(past, predictions) for past, predictions in zip(alone, pair, strict=True)
        ]
        torch.testing.assert_close(linked.masks, torch.cat([s.masks for s in single]))
        together, alone = linked.queries, [s.queries for s in single]
        for field in dataclasses.fields(together):
            assert getattr(together, field.name).shape[:2] == (2, 4)


def test_given_objects_have_the_first_slots():
    """Their masks are given, their queries are not known: the detections are found by place."""
    boxes = torch.tensor([[0.75, 0.333, 0.1667, 0.333], [0.167, 0.333, 0.1667, 0.333]])[None]
    masks = torch.zeros(1, 2, *SIZE, dtype=torch.bool)
    masks[0, 0, 2:6, 16:20] = masks[0, 1, 2:6, 2:6] = True
    local = Proposals(torch.zeros(1, 4, 2), torch.zeros(1, 4, 4), LayerPredictions(None, None, None))
    past = ImageTracker().start(boxes, masks, local)
    linked = ImageTracker().link(past, frame((2, 2, RED, 0.9), (9, 7, RED, 0.8), (16, 2, RED, 0.7)))
    shown = [int(row.nonzero()[0]) for row in (linked.masks[0, :3] > 0).any(1)]
    assert shown == [16, 2, 9]


def test_image_tracker_decodes_the_local_queries_on_every_frame():
    boxes = torch.rand(1, 3, 4)
    local = Proposals(torch.randn(1, 3, 8), boxes, LayerPredictions(boxes, boxes, boxes))
    past = Queries(torch.randn(1, 3, 8), torch.rand(1, 3, 4))
    queries, positions = ImageTracker()(past, local, lambda b: b.repeat(1, 1, 2))
    assert torch.equal(queries.embed, local.embed)
    assert torch.equal(positions.boxes, boxes)
    assert not list(ImageTracker().parameters())


def test_a_linked_stream_predicts_each_frame_as_an_image(tiny, make_clip):
    """Without confident detections, no slot is reserved: each frame's predictions are those of the frame alone."""
    model = tiny().eval()
    model.tracker = ImageTracker(threshold=1.0, duplicate=1.0)
    frames = make_clip().frames
    streamed = list(model.stream(frames))
    assert len(streamed) == len(frames)
    for image, result in zip(frames, streamed, strict=True):
        (alone,) = model.stream([image])
        torch.testing.assert_close(result.logits[0].sum(0), alone.logits[0].sum(0))
        torch.testing.assert_close(result.masks[0].sum(0), alone.masks[0].sum(0), atol=1e-4, rtol=1e-4)


@pytest.fixture
def remembering():
    """The demo's tracker."""
    return instantiate(load_config("configs/demo/l2g_tiny.py").model).tracker.eval()


def test_objects_whose_slots_are_exchanged_keep_their_numbers(remembering):
    """The slots are propagated in the order of the objects, too."""
    frames = [frame((2, 2, RED, 0.9), (16, 2, BLUE, 0.8)), frame((16, 2, BLUE, 0.8), (2, 2, RED, 0.9))]
    assert track(frames, remembering) == [[2, 16, None, None]] * 2
    first = remembering.link(None, frames[0]).queries
    second = remembering.link(first, frames[1]).queries
    assert second.embed[0, :2].tolist() == [list(RED), list(BLUE)]
    assert torch.equal(second.boxes[0, :2], frames[1].queries.boxes[0, [1, 0]])


def test_an_object_that_another_slot_takes_up_again_has_its_number(remembering):
    """The slot of the hidden object is on a false detection when the object returns."""
    frames = [
        frame((2, 2, RED, 0.9), (16, 2, BLUE, 0.8)),
        *[frame((9, 7, BLUE, 0.1), (16, 2, BLUE, 0.8))] * 4,
        frame((9, 7, BLUE, 0.1), (16, 2, BLUE, 0.8), (3, 2, RED, 0.9)),
    ]
    columns = track(frames, remembering)
    assert [column[:2] for column in columns] == [[2, 16], *[[None, 16]] * 4, [3, 16]]


def test_of_two_slots_on_one_object_one_is_reported(remembering):
    alone, both = frame((2, 2, RED, 0.8), (16, 2, RED, 0.1)), frame((2, 2, RED, 0.5), (2, 2, RED, 0.9))
    assert track([alone, both, both], remembering) == [[2, None, None, None]] * 3


def test_every_slot_is_propagated_whether_it_is_reported_or_not(remembering):
    detections = [
        (2, 2, (1.0, 0.1), 0.9),
        (2, 2, (1.0, 0.2), 0.8),
        (16, 2, (1.0, 0.3), 0.1),
        (9, 2, (1.0, 0.4), 0.9),
    ]
    past = None
    for _ in range(3):
        past = remembering.link(past, frame(*detections)).queries
        assert sorted(past.embed[0, :, 1].tolist()) == pytest.approx([0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("setting", [{"colours": 1.5}, {"least": -0.1}, {"memory": -1}])
def test_a_memory_refuses_values_outside_their_range(setting):
    (name,) = setting
    with pytest.raises(UserError, match=name):
        ImageTracker(**setting)


def test_a_memory_does_not_change_training(remembering):
    both = frame((2, 2, RED, 0.9), (2, 2, RED, 0.8))
    assert remembering.train().link(None, both) is both


def test_a_memory_changes_the_order_of_the_predictions_only(tiny, make_clip):
    """Slot by slot, the stream is the one without memory, whatever the positions."""
    model = tiny(positions=StaticPositions(6, 32)).eval()
    frames = make_clip().frames
    plain = list(model.stream(frames))
    tracker = model.tracker
    parts = (tracker.aligner, tracker.positions, tracker.local_positions, tracker.first_frame)
    model.tracker = RememberingTracker(*parts, memory=ObjectMemory(threshold=0.001)).eval()
    for expected, predictions in zip(plain, model.stream(frames), strict=True):
        queries = predictions.queries
        torch.testing.assert_close(
            expected.queries.embed.gather(1, queries.row[..., None].expand_as(queries.embed)), queries.embed
        )
    assert queries.row.tolist() != [list(range(6))]
    assert queries.taken.any()


def local_queries(*boxes):
    """Local queries at (cx, cy) with boxes of .2, the most confident first; row i has the content 10 + i."""
    embed = 10.0 + torch.arange(len(boxes))[None, :, None].expand(1, -1, 2)
    places = torch.tensor([[x, y, 0.2, 0.2] for x, y in boxes])[None]
    return Proposals(embed, places, LayerPredictions(embed, places, embed))


def test_slots_without_an_object_in_view_start_from_local_queries_elsewhere():
    """Row 0 lies on the object in view, row 2 on row 1; rows 1 and 3 are new and go to the first free slots."""
    places = torch.tensor(
        [[[0.2, 0.2, 0.2, 0.2], [0.3, 0.8, 0.2, 0.2], [0.9, 0.1, 0.2, 0.2], [0.1, 0.9, 0.2, 0.2]]]
    )
    slots = Queries(torch.arange(4.0)[None, :, None].expand(1, -1, 2), places)
    seen = torch.tensor([[True, False, True, False]])
    local = local_queries((0.21, 0.2), (0.6, 0.6), (0.61, 0.6), (0.2, 0.5))
    started = restart(slots, seen, local)
    assert started.embed[0, :, 0].tolist() == [0, 11, 2, 13]
    torch.testing.assert_close(started.boxes[0, [1, 3]], local.boxes[0, [1, 3]])
    torch.testing.assert_close(started.boxes[0, [0, 2]], places[0, [0, 2]])


def test_slots_keep_their_queries_where_local_queries_run_out():
    slots = Queries(torch.arange(3.0)[None, :, None].expand(1, -1, 2), torch.full((1, 3, 4), 0.5))
    started = restart(slots, torch.zeros(1, 3, dtype=torch.bool), local_queries((0.2, 0.2), (0.2, 0.21)))
    assert started.embed[0, :, 0].tolist() == [10, 1, 2]


def test_restarting_propagates_the_slots_of_objects_in_view(tiny, make_clip):
    """The decoder's input on the second frame: rows with an object in view are the propagated ones, others local."""
    model = tiny(positions=StaticPositions(6, 32)).eval()
    frames, tracker = make_clip().frames, model.tracker
    parts = (tracker.aligner, tracker.positions, tracker.local_positions, tracker.first_frame)
    restarting = RestartingTracker(*parts, memory=ObjectMemory(threshold=0.001)).eval()
    model.tracker = restarting
    past = next(iter(model.stream(frames))).queries
    corners = torch.tensor([[[0.1 * k, 0.05, 0.02, 0.02] for k in range(1, 7)]])
    local = dataclasses.replace(model.segmenter.propose(model.encode([frames[1]])), boxes=corners)
    propagated = RememberingTracker.propagate(restarting, past, local)
    started = restarting.propagate(past, local)
    seen = past.seen.gather(1, past.row.argsort(1))
    assert seen.any()
    assert not seen.all()
    torch.testing.assert_close(started.embed[seen], propagated.embed[seen])
    torch.testing.assert_close(started.embed[~seen], local.embed[:, : int((~seen).sum())][0])


def test_a_given_object_is_in_view_whatever_its_score(tiny, make_clip):
    """Its slot is neither restarted nor given to another object."""
    model = tiny().eval()
    tracker = model.tracker
    parts = (tracker.aligner, tracker.positions, tracker.local_positions, tracker.first_frame)
    model.tracker = RestartingTracker(*parts, memory=ObjectMemory(threshold=1.0)).eval()
    frames = make_clip().frames
    objects = torch.zeros(1, *frames.shape[-2:], dtype=torch.bool)
    objects[0, 4:20, 4:20] = True
    assert next(iter(model.stream(frames, objects=objects))).queries.seen.tolist() == [[True] + [False] * 5]


def test_the_model_links_the_slots_of_every_frame(tiny, make_clip):
    """Also where the tracker has no slots of its own for given objects."""
    model = tiny().eval()
    frames = make_clip().frames
    tracker = model.tracker
    model.tracker = RememberingTracker(
        tracker.aligner, tracker.positions, tracker.local_positions, tracker.first_frame
    ).eval()
    streamed = list(model.stream(frames))
    assert [hasattr(predictions.queries, "lost") for predictions in streamed] == [True] * len(frames)
    objects = torch.zeros(1, *frames.shape[-2:], dtype=torch.bool)
    objects[0, 4:20, 4:20] = True
    given = list(model.stream(frames, objects=objects))
    assert [hasattr(predictions.queries, "lost") for predictions in given] == [True] * len(frames)


def test_bypass_is_a_word_of_the_config(root):
    cfg = load_config(root / PAPER, ["model.tracker=bypass", "model.tracker.memory=8"])
    tracker = instantiate(cfg.model.tracker)
    assert isinstance(tracker, ImageTracker)
    assert tracker.objects.memory == 8


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
