"""Who owns what, and the losses by hand, in a world of four quadrants.

Frames are 32 x 32, masks 8 x 8.  Channel q of the mask features is 10 inside quadrant q and -10 outside, so a mask
embedding that is one-hot at q paints quadrant q.
"""

import dataclasses
import itertools
import math
from collections import Counter

import pytest
import torch

from local2global.modeling import criterion as module
from local2global.modeling.criterion import WEIGHTS, Criterion, FullSupervision, ReducedSupervision
from local2global.modeling.losses import PointSampler, sigmoid_focal_loss
from local2global.modeling.matcher import Matcher
from local2global.randomness import keyed_generator
from local2global.structures import (
    Clip,
    ClipTargets,
    FrameFeatures,
    FramePredictions,
    LayerPredictions,
    Queries,
)

K = 3
BOXES = torch.tensor([[x, y, 0.5, 0.5] for y in (0.25, 0.75) for x in (0.25, 0.75)])
NOTHING = None


@dataclasses.dataclass(frozen=True)
class Only:
    """Supervises the frames it is told to."""

    frames: tuple[int, ...]

    def __call__(self, length, generator):
        return [t in self.frames for t in range(length)]


def paint():
    masks = torch.full((4, 8, 8), -10.0)
    for q, (y, x) in enumerate(itertools.product((0, 4), (0, 4))):
        masks[q, y : y + 4, x : x + 4] = 10.0
    return masks


def features(batch=1, length=1):
    one = FrameFeatures(
        memory=torch.zeros(batch, 1, 4),
        shapes=((1, 1),),
        padding=torch.zeros(batch, 1, dtype=torch.bool),
        mask_features=paint()[None].repeat(batch, 1, 1, 1),
        extent=torch.tensor([[8.0, 8.0]]).repeat(batch, 1),
        valid_ratios=torch.ones(batch, 1, 2),
    )
    return [one] * length


def layer(rows):
    """Rows of B clips; a row is (quadrant, label) or NOTHING for each query."""
    logits, boxes, embed = [], [], []
    for row in rows:
        for what in row:
            logit, vector = torch.full((K,), -4.0), torch.full((4,), 0.5)
            box = torch.tensor([0.5, 0.5, 0.02, 0.02])
            if what is not NOTHING:
                quadrant, label = what
                logit[label] = 4.0
                vector, box = torch.eye(4)[quadrant], BOXES[quadrant]
            logits.append(logit)
            boxes.append(box)
            embed.append(vector)
    shape = (len(rows), len(rows[0]), -1)
    return LayerPredictions(*(torch.stack(x).view(shape).requires_grad_() for x in (logits, boxes, embed)))


def answer(rows, local=None):
    last, middle, first = layer(rows), layer(rows), dataclasses.replace(layer(rows), boxes=None)
    masks = torch.einsum("bnc,chw->bnhw", last.mask_embed.detach(), paint())
    return FramePredictions(
        last.logits,
        last.boxes,
        masks,
        torch.tensor([[8.0, 8.0]]).repeat(len(rows), 1),
        Queries(torch.zeros(*last.logits.shape[:2], 4), last.boxes.detach()),
        (first, middle, last),
        layer(local or rows),
    )


def clip(*instances, length=1, key=(0, 0, 0)):
    """Instances as (label, where), where a string of quadrants per frame, `.` for absent."""
    count = len(instances)
    masks = torch.zeros(count, length, 32, 32, dtype=torch.bool)
    boxes = torch.zeros(count, length, 4)
    for i, (_, where) in enumerate(instances):
        assert len(where) == length
        for t, quadrant in enumerate(where):
            if quadrant != ".":
                q = int(quadrant)
                masks[i, t, 16 * (q // 2) : 16 * (q // 2) + 16, 16 * (q % 2) : 16 * (q % 2) + 16] = True
                boxes[i, t] = BOXES[q]
    labels = torch.tensor([label for label, _ in instances], dtype=torch.int64)
    targets = ClipTargets(labels, torch.arange(count), masks, boxes, masks.flatten(2).any(-1))
    return Clip(torch.zeros(length, 3, 32, 32, dtype=torch.uint8), (32, 32), targets=targets, key=key)


def criterion(supervision=None, **weights):
    return Criterion(
        Matcher(num_points=64), PointSampler(32), supervision or FullSupervision(), WEIGHTS | weights
    )


def tracks(clips, predictions, supervision=None):
    """The slots of each clip's instances."""
    found = []

    class Spy(Criterion):
        @staticmethod
        def track(costs, visible, count):
            result = Criterion.track(costs, visible, count)
            found.append(result.slots.tolist())
            return result

    judge = Spy(Matcher(num_points=64), PointSampler(32), supervision or FullSupervision())
    judge(clips, features(len(clips), len(predictions)), predictions)
    return found


A, B, C, D = (0, 0), (1, 1), (2, 2), (3, 0)


def test_each_instance_is_given_the_query_that_sees_it():
    assert tracks([clip((1, "1"), (0, "0"))], [answer([[NOTHING, A, NOTHING, B]])]) == [[3, 1]]


def test_an_instance_is_matched_once_whatever_happens_later():
    """Query 0 has it on frame 0; on frame 1 query 2 would be far cheaper."""
    predictions = [answer([[A, NOTHING, NOTHING]]), answer([[NOTHING, NOTHING, A]])]
    assert tracks([clip((0, "00"), length=2)], predictions) == [[0]]


def test_an_instance_is_matched_on_the_first_frame_where_it_is_visible():
    predictions = [answer([[A, NOTHING, NOTHING]]), answer([[NOTHING, NOTHING, A]])]
    assert tracks([clip((0, ".0"), length=2)], predictions) == [[2]]


def test_an_instance_that_is_never_visible_owns_nothing():
    assert tracks([clip((0, ".."), (1, ".1"), length=2)], [answer([[A, B]]), answer([[A, B]])]) == [[-1, 1]]


def test_a_newcomer_does_not_take_the_slot_of_an_occluded_object():
    """Instance 0 owns query 0 and is hidden on frame 1, where query 0 fits the newcomer perfectly."""
    predictions = [answer([[A, NOTHING, NOTHING]]), answer([[B, NOTHING, NOTHING]])]
    (slots,) = tracks([clip((0, "0."), (1, ".1"), length=2)], predictions)
    assert slots[0] == 0
    assert slots[1] in (1, 2)


def test_a_newcomer_does_not_take_the_slot_of_a_visible_object():
    predictions = [answer([[A, NOTHING, NOTHING]]), answer([[B, NOTHING, NOTHING]])]
    (slots,) = tracks([clip((0, "00"), (1, ".1"), length=2)], predictions)
    assert slots[0] == 0
    assert slots[1] in (1, 2)


def test_slots_of_other_clips_bar_nothing():
    predictions = [answer([[A, NOTHING], [A, NOTHING]]), answer([[NOTHING, NOTHING], [A, NOTHING]])]
    clips = [clip((0, "0."), length=2), clip((0, ".0"), length=2, key=(0, 0, 1))]
    assert tracks(clips, predictions) == [[0], [0]]


def test_skipped_frames_still_match_newcomers():
    predictions = [answer([[NOTHING, A]]), answer([[A, NOTHING]])]
    assert tracks([clip((0, "00"), length=2)], predictions, Only((1,))) == [[1]]


def test_the_final_layer_decides_for_all():
    one = answer([[NOTHING, A]])
    swapped = dataclasses.replace(layer([[A, NOTHING]]), boxes=None)
    one = dataclasses.replace(one, layers=(swapped, layer([[A, NOTHING]]), one.layers[-1]))
    assert tracks([clip((0, "0"))], [one]) == [[1]]
    losses = criterion()([clip((0, "0"))], features(), [one])
    assert losses["loss_cls"] < 0.1 < losses["loss_cls_0"]
    assert losses["loss_mask_1"] > 3 * losses["loss_mask"]


def test_more_instances_than_queries_leaves_the_dearest_out():
    given = clip((0, "0"), (1, "1"), (2, "2"))
    predictions = [answer([[B, A]])]
    assert tracks([given], predictions) == [[1, 0, -1]]
    losses = criterion()([given], features(), predictions)
    assert all(value.isfinite() for value in losses.values())


def test_when_every_slot_is_owned_a_newcomer_gets_none():
    predictions = [answer([[A, B]]), answer([[A, B]])]
    assert tracks([clip((0, "00"), (1, "1."), (1, ".1"), length=2)], predictions) == [[0, 1, -1]]


def test_no_instances_is_all_background():
    predictions = [answer([[A, NOTHING]])]
    losses = criterion()([clip()], features(), predictions)
    expected = 4 * sigmoid_focal_loss(predictions[0].logits, torch.zeros(1, 2, K)).sum()
    torch.testing.assert_close(losses["loss_cls"], expected)
    for name in ("mask", "dice", "box", "giou"):
        assert losses[f"loss_{name}"] == 0
    sum(losses.values()).backward()
    for each in (*predictions[0].layers, predictions[0].local):
        for value in (each.logits, each.boxes, each.mask_embed):
            assert value is None or value.grad is not None


def test_a_clip_without_instances_beside_one_with_some_is_background_only():
    """One object in all: the empty clip adds the focal loss of its answers and nothing else."""
    rows = [[A, NOTHING], [B, NOTHING]]
    clips = [clip((0, "0")), clip(key=(0, 0, 1))]
    both = criterion()(clips, features(2), [answer(rows)])
    alone = criterion()(clips[:1], features(1), [answer(rows[:1])])
    empty = criterion()(clips[1:], features(1), [answer(rows[1:])])
    for name, value in both.items():
        torch.testing.assert_close(value, alone[name] + empty[name])


def test_names_of_the_losses():
    """Three layers: 0 has no box, 2 is the final one; and the local queries."""
    losses = criterion()([clip((0, "0"))], features(), [answer([[A, B]])])
    expected = {f"loss_{term}" for term in WEIGHTS} | {f"loss_{term}_local" for term in WEIGHTS}
    expected |= {f"loss_{term}_1" for term in WEIGHTS} | {
        f"loss_{term}_0" for term in ("cls", "mask", "dice")
    }
    assert set(losses) == expected


def focal(logit, true):
    p = 1 / (1 + math.exp(-logit))
    return 0.25 * (1 - p) ** 2 * -math.log(p) if true else 0.75 * p**2 * -math.log(1 - p)


def test_classes_are_one_hot_for_visible_and_zeros_for_absent_instances():
    """Frame 0: query 0 owns an object of class 0 and says so.  Frame 1: hidden, the same answer is a mistake.

    One true logit of 4 and five of -4 that are right; on frame 1 the 4 is wrong.
    """
    predictions = [answer([[A, NOTHING]]), answer([[A, NOTHING]])]
    losses = criterion()([clip((0, "0."), length=2)], features(1, 2), predictions)
    right = focal(4, True) + 5 * focal(-4, False)
    wrong = focal(4, False) + 5 * focal(-4, False)
    assert losses["loss_cls"].item() == pytest.approx(4 * (right + wrong), rel=1e-4)


def test_masks_and_boxes_are_compared_where_the_object_is_visible_only():
    """On frame 1 it is hidden and the query's mask and box are anything: nothing but classes is lost."""
    predictions = [answer([[A, NOTHING]]), answer([[(3, 0), NOTHING]])]
    losses = criterion()([clip((0, "0."), length=2)], features(1, 2), predictions)
    assert losses["loss_box"] == 0
    assert losses["loss_giou"].item() == pytest.approx(0, abs=1e-4)
    assert losses["loss_dice"].item() < 0.5
    sum(losses.values()).backward()
    assert not predictions[1].boxes.grad.any()


def test_box_terms_by_hand():
    """The true box is the predicted one moved by half a frame: L1 .5, and GIoU 0 (no overlap, hull = both)."""
    one = answer([[A, NOTHING]])
    wrong = dataclasses.replace(one.layers[-1], boxes=BOXES[[1, 1]][None])
    one = dataclasses.replace(one, layers=(*one.layers[:-1], wrong), boxes=wrong.boxes)
    losses = criterion()([clip((0, "0"))], features(), [one])
    assert losses["loss_box"].item() == pytest.approx(5 * 0.5, rel=1e-5)
    assert losses["loss_giou"].item() == pytest.approx(2 * 1.0, rel=1e-4)


def test_the_normaliser_counts_visible_instances_of_supervised_frames_of_each_time():
    """Frame 0 sees two objects, frame 1 one of them: each frame's sum is divided by its own count."""
    rows = [[(3, 2), (3, 2)]]
    predictions = [answer(rows), answer(rows)]
    given = clip((0, "00"), (1, "1."), length=2)
    both = criterion()([given], features(1, 2), predictions)["loss_box"]
    first, second = (criterion(Only((t,)))([given], features(1, 2), predictions)["loss_box"] for t in (0, 1))
    torch.testing.assert_close(both, first + second)
    assert first.item() == pytest.approx(5 * (1.0 + 0.5) / 2, rel=1e-4)
    assert second.item() == pytest.approx(5 * 1.0, rel=1e-4)


def test_a_clip_that_skips_a_frame_counts_for_nothing_there():
    """Two clips, frame 0 supervised by the first alone: as if the second were not there."""

    class OfKey:
        def __call__(self, length, generator):
            return [True, True] if generator.initial_seed() == mine else [False, True]

    keys = [(0, 0, 0), (0, 0, 1)]
    mine = keyed_generator(*keys[0], "supervision").initial_seed()
    rows = [[(3, 2), NOTHING], [(3, 2), NOTHING]]
    predictions = [answer(rows), answer(rows)]
    clips = [clip((0, "0."), length=2, key=keys[0]), clip((0, "00"), (1, "11"), length=2, key=keys[1])]
    losses = criterion(OfKey())(clips, features(2, 2), predictions)
    alone = criterion(Only((0,)))(clips[:1], features(1, 2), [answer(rows[:1]), answer(rows[:1])])
    at_1 = criterion(Only((1,)))(clips, features(2, 2), predictions)
    for name in losses:
        torch.testing.assert_close(losses[name], alone[name] + at_1[name])


def two_clips():
    rows = [[(3, 2), A, NOTHING], [B, (2, 0), C]]
    clips = [
        clip((0, "00"), (1, "1."), length=2, key=(0, 4, 0)),
        clip((2, ".2"), (1, "13"), (0, "03"), length=2, key=(0, 4, 1)),
    ]
    return rows, clips


def test_two_clips_together_are_the_two_alone_recombined():
    """Frame 0 has 2 + 2 visible objects, frame 1 has 1 + 3: sums add up over counts that add up."""
    rows, clips = two_clips()
    for t, counts in ((0, (2, 2)), (1, (1, 3))):
        together = criterion(Only((t,)))(clips, features(2, 2), [answer(rows)] * 2)
        alone = [
            criterion(Only((t,)))([c], features(1, 2), [answer([r])] * 2)
            for r, c in zip(rows, clips, strict=True)
        ]
        for name, value in together.items():
            expected = sum(one[name] * n for one, n in zip(alone, counts, strict=True)) / sum(counts)
            torch.testing.assert_close(value, expected)


def test_two_ranks_are_one_process(monkeypatch):
    """Each rank divides by the mean count of the ranks; the mean of their losses is the one process's."""
    rows, clips = two_clips()
    together = criterion()(clips, features(2, 2), [answer(rows)] * 2)
    for name, fake in {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "get_world_size": lambda: 2,
        "all_reduce": lambda counts: counts.copy_(torch.full((2,), 4.0)),
    }.items():
        monkeypatch.setattr(module.dist, name, fake)
    ranks = [criterion()([c], features(1, 2), [answer([r])] * 2) for r, c in zip(rows, clips, strict=True)]
    for name, value in together.items():
        torch.testing.assert_close((ranks[0][name] + ranks[1][name]) / 2, value)


def test_the_order_of_clips_changes_nothing():
    rows, clips = two_clips()
    one = criterion(ReducedSupervision())(clips, features(2, 2), [answer(rows)] * 2)
    other = criterion(ReducedSupervision())(clips[::-1], features(2, 2), [answer(rows[::-1])] * 2)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value)
    assert tracks(clips, [answer(rows)] * 2) == tracks(clips[::-1], [answer(rows[::-1])] * 2)[::-1]


def test_draws_belong_to_the_key():
    rows, clips = two_clips()
    rows = [[*row[:1], NOTHING, NOTHING] for row in rows]

    def losses(given):
        return criterion()(given, features(2, 2), [answer(rows)] * 2)

    torch.manual_seed(1)
    one = losses(clips)
    torch.manual_seed(2)
    assert losses(clips) == one
    assert losses([dataclasses.replace(c, key=(0, 5, i)) for i, c in enumerate(clips)]) != one


def test_the_local_queries_are_matched_anew_on_every_frame():
    """Perfect locals that swap places: no loss beyond the perfect one's; the tracked ones would be wrong."""
    given = clip((0, "00"), (1, "11"), length=2)
    fixed = answer([[A, B]], local=[[A, B]])
    moved = answer([[A, B]], local=[[B, A]])
    one = criterion()([given], features(1, 2), [fixed, fixed])
    other = criterion()([given], features(1, 2), [fixed, moved])
    for term in WEIGHTS:
        torch.testing.assert_close(other[f"loss_{term}_local"], one[f"loss_{term}_local"], atol=1e-4, rtol=0)
    assert one["loss_cls_local"] < 0.1


def test_a_weight_scales_its_term_everywhere():
    given, predictions = clip((0, "0")), [answer([[B, NOTHING]])]
    one, other = (criterion(dice=w)([given], features(), predictions) for w in (5.0, 10.0))
    for name in one:
        torch.testing.assert_close(other[name], one[name] * (2 if "dice" in name else 1))


@pytest.mark.parametrize("weights", [{"cls": 1.0}, WEIGHTS | {"boundary": 1.0}])
def test_a_weight_too_few_or_too_many_is_an_error(weights):
    with pytest.raises(ValueError, match="weights"):
        Criterion(Matcher(), PointSampler(), FullSupervision(), weights)


def drawn(length, times=600):
    return Counter(
        tuple(ReducedSupervision()(length, keyed_generator(0, i, 0, "supervision"))) for i in range(times)
    )


@pytest.mark.parametrize("length", [1, 2])
def test_short_clips_are_supervised_whole(length):
    assert drawn(length, 20) == {(True,) * length: 20}


def test_three_frames_lose_one_of_the_first_two():
    counts = drawn(3)
    assert set(counts) == {(False, True, True), (True, False, True)}
    assert all(n > 240 for n in counts.values())


def test_four_frames_lose_one_or_two_with_equal_odds():
    """Section 3.2: k in {1, 2} uniformly, then a uniform subset of the first three: six sets of 1/6."""
    counts = drawn(4)
    assert len(counts) == 6
    assert all(kept[-1] for kept in counts)
    assert all(60 < n < 145 for n in counts.values())
    assert 240 < sum(n for kept, n in counts.items() if sum(kept) == 3) < 360


def test_five_frames_keep_two_at_least():
    counts = drawn(5)
    assert {sum(kept) for kept in counts} == {2, 3, 4}
    assert all(kept[-1] for kept in counts)
    assert len(counts) == 4 + 6 + 4


def test_full_supervision_is_full():
    assert FullSupervision()(4, keyed_generator(0)) == [True] * 4


def test_clips_draw_their_frames_apart():
    """In one batch different clips skip different frames."""
    seen = {tuple(ReducedSupervision()(4, keyed_generator(0, 0, c, "supervision"))) for c in range(40)}
    assert len(seen) == 6


def test_noise_in_padded_mask_pixels_changes_nothing():
    """The frame fills 6 of 8 columns and 4 of 8 rows."""
    generator = torch.Generator().manual_seed(0)
    base = dataclasses.replace(features()[0], extent=torch.tensor([[6.0, 4.0]]))
    noise = 100 * torch.randn(1, 4, 8, 8, generator=generator) * base.mask_padding[:, None]
    noisy = dataclasses.replace(base, mask_features=base.mask_features + noise)
    given, predictions = clip((0, "0"), (1, "1")), [answer([[A, B, C]])]
    one, other = criterion()([given], [base], predictions), criterion()([given], [noisy], predictions)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=1e-5, rtol=0)


def test_stuff_has_no_box():
    """The same clip, labels 0 and 2; with one thing, the box losses are the first instance's alone."""
    torch.manual_seed(1)
    rows = [[(0, 0), (1, 2), NOTHING]]
    wrong = answer(rows)
    for one in wrong.layers[1:]:
        one.boxes.data[:] = 0.5
    both, alone = clip((0, "0"), (2, "1")), clip((0, "0"))
    boxed = criterion()
    boxed.things = 1
    found, whole = boxed([both], features(), [wrong]), criterion()([both], features(), [wrong])
    reference = criterion()([alone], features(), [wrong])
    for term in ("box", "giou"):
        # Divided by two instances there, by one here.
        assert float(found[f"loss_{term}"]) == pytest.approx(float(reference[f"loss_{term}"]) / 2)
        assert found[f"loss_{term}"] < whole[f"loss_{term}"]
    for term in ("cls", "mask", "dice"):
        assert torch.equal(found[f"loss_{term}"], whole[f"loss_{term}"])


def test_a_box_says_nothing_about_stuff_when_matching():
    logits, masks = torch.zeros(1, 2, K), torch.zeros(1, 2, 8)
    boxes, labels = BOXES[None, :2], torch.tensor([[0, 2]])
    costs = Matcher(num_points=8).cost(
        logits,
        boxes,
        masks,
        labels,
        BOXES[None, :2],
        torch.zeros(1, 2, 8),
        boxed=torch.tensor([[True, False]]),
    )[0]
    assert costs[0, 1] == costs[1, 1]
    assert costs[0, 0] < costs[1, 0]
