"""The criterion: matching and losses computed by hand on four quadrants.

Frames are 32 x 32 pixels, masks 8 x 8.  Channel q of the mask features is 10 inside quadrant q and -10 outside, so a
one-hot mask embedding at q predicts the mask of quadrant q.
"""

import dataclasses
import itertools
import math
from collections import Counter
from unittest.mock import patch

import pytest
import torch

from local2global.modeling import criterion as module
from local2global.modeling.criterion import WEIGHTS, Criterion, FullSupervision, ReducedSupervision
from local2global.modeling.losses import (
    BOX_LOSSES,
    LABEL_LOSSES,
    MASK_LOSSES,
    PointSampler,
    sigmoid_focal_loss,
)
from local2global.modeling.matcher import Matcher
from local2global.modeling.variants import HiddenMasksCriterion
from local2global.randomness import keyed_generator
from local2global.structures import (
    Clip,
    ClipTargets,
    FrameFeatures,
    FramePredictions,
    LayerPredictions,
    Queries,
    padded_pixels,
)

K = 3
BOXES = torch.tensor([[x, y, 0.5, 0.5] for y in (0.25, 0.75) for x in (0.25, 0.75)])
NOTHING = None
#: Query predictions as (quadrant, label).
A, B, C, D = (0, 0), (1, 1), (2, 2), (3, 0)


@dataclasses.dataclass(frozen=True)
class Only:
    """Supervises the listed frames."""

    frames: tuple[int, ...]

    def __call__(self, length, generator):
        return [t in self.frames for t in range(length)]


def quadrant_features():
    masks = torch.full((4, 8, 8), -10.0)
    for q, (y, x) in enumerate(itertools.product((0, 4), (0, 4))):
        masks[q, y : y + 4, x : x + 4] = 10.0
    return masks


def make_features(batch=1, length=1):
    step = FrameFeatures(
        memory=torch.zeros(batch, 1, 4),
        shapes=((1, 1),),
        padding=torch.zeros(batch, 1, dtype=torch.bool),
        mask_features=quadrant_features()[None].repeat(batch, 1, 1, 1),
        extent=torch.tensor([[8.0, 8.0]]).repeat(batch, 1),
        valid_ratios=torch.ones(batch, 1, 2),
    )
    return [step] * length


def make_layer(rows):
    """Predictions for B clips; a row lists (quadrant, label) or NOTHING for each query."""
    logits, boxes, embed = [], [], []
    for query in itertools.chain(*rows):
        logit, vector = torch.full((K,), -4.0), torch.full((4,), 0.5)
        box = torch.tensor([0.5, 0.5, 0.02, 0.02])
        if query is not NOTHING:
            quadrant, label = query
            logit[label] = 4.0
            vector, box = torch.eye(4)[quadrant], BOXES[quadrant]
        logits.append(logit)
        boxes.append(box)
        embed.append(vector)
    shape = (len(rows), len(rows[0]), -1)
    return LayerPredictions(*(torch.stack(x).view(shape).requires_grad_() for x in (logits, boxes, embed)))


def make_predictions(rows, local=None):
    """One time step of three layers with equal values; layer 0 has no boxes."""
    layers = (dataclasses.replace(make_layer(rows), boxes=None), make_layer(rows), make_layer(rows))
    last = layers[-1]
    masks = torch.einsum("bnc,chw->bnhw", last.mask_embed.detach(), quadrant_features())
    return FramePredictions(
        last.logits,
        last.boxes,
        masks,
        torch.tensor([[8.0, 8.0]]).repeat(len(rows), 1),
        Queries(torch.zeros(*last.logits.shape[:2], 4), last.boxes.detach()),
        layers,
        make_layer(local or rows),
    )


def make_clip(*instances, length=1, key=(0, 0, 0)):
    """Instances as (label, track): the quadrant on each frame, `.` where the instance is absent."""
    count = len(instances)
    masks = torch.zeros(count, length, 32, 32, dtype=torch.bool)
    boxes = torch.zeros(count, length, 4)
    for i, (_, track) in enumerate(instances):
        assert len(track) == length
        for t, quadrant in enumerate(track):
            if quadrant != ".":
                q = int(quadrant)
                masks[i, t, 16 * (q // 2) : 16 * (q // 2) + 16, 16 * (q % 2) : 16 * (q % 2) + 16] = True
                boxes[i, t] = BOXES[q]
    labels = torch.tensor([label for label, _ in instances], dtype=torch.int64)
    targets = ClipTargets(labels, torch.arange(count), masks, boxes, masks.flatten(2).any(-1))
    return Clip(torch.zeros(length, 3, 32, 32, dtype=torch.uint8), (32, 32), targets=targets, key=key)


def criterion(supervision=None, **weights):
    supervision = supervision or FullSupervision()
    return Criterion(Matcher(num_points=64), PointSampler(32), supervision, WEIGHTS | weights)


def matched_slots(clips, predictions, supervision=None):
    """The slots assigned to each clip's instances."""
    slots = []

    def spy(costs, visible):
        slots.append(match_clip(costs, visible))
        return slots[-1]

    match_clip = module.match_clip
    with patch.object(module, "match_clip", spy):
        criterion(supervision)(clips, make_features(len(clips), len(predictions)), predictions)
    return [found[: len(clip.targets)].tolist() for found, clip in zip(slots, clips, strict=True)]


# Matching


def test_instances_match_the_queries_that_predict_them():
    assert matched_slots([make_clip((1, "1"), (0, "0"))], [make_predictions([[NOTHING, A, NOTHING, B]])]) == [
        [3, 1]
    ]


def test_an_instance_is_matched_once():
    """Query 0 owns the instance from frame 0; on frame 1 query 2 has a far lower cost."""
    predictions = [make_predictions([[A, NOTHING, NOTHING]]), make_predictions([[NOTHING, NOTHING, A]])]
    assert matched_slots([make_clip((0, "00"), length=2)], predictions) == [[0]]


def test_an_instance_is_matched_on_the_first_frame_where_it_is_visible():
    predictions = [make_predictions([[A, NOTHING, NOTHING]]), make_predictions([[NOTHING, NOTHING, A]])]
    assert matched_slots([make_clip((0, ".0"), length=2)], predictions) == [[2]]


def test_an_instance_that_is_never_visible_has_no_slot():
    clip = make_clip((0, ".."), (1, ".1"), length=2)
    assert matched_slots([clip], [make_predictions([[A, B]])] * 2) == [[-1, 1]]


@pytest.mark.parametrize("track", ["0.", "00"], ids=["occluded", "visible"])
def test_a_new_instance_does_not_take_an_owned_slot(track):
    """Instance 0 owns query 0; on frame 1 query 0 fits the new instance perfectly."""
    predictions = [make_predictions([[A, NOTHING, NOTHING]]), make_predictions([[B, NOTHING, NOTHING]])]
    (slots,) = matched_slots([make_clip((0, track), (1, ".1"), length=2)], predictions)
    assert slots[0] == 0
    assert slots[1] in (1, 2)


def test_slots_are_barred_within_a_clip_only():
    predictions = [
        make_predictions([[A, NOTHING], [A, NOTHING]]),
        make_predictions([[NOTHING, NOTHING], [A, NOTHING]]),
    ]
    clips = [make_clip((0, "0."), length=2), make_clip((0, ".0"), length=2, key=(0, 0, 1))]
    assert matched_slots(clips, predictions) == [[0], [0]]


def test_instances_are_matched_on_unsupervised_frames_too():
    predictions = [make_predictions([[NOTHING, A]]), make_predictions([[A, NOTHING]])]
    assert matched_slots([make_clip((0, "00"), length=2)], predictions, Only((1,))) == [[1]]


def test_all_layers_use_the_matching_of_the_final_layer():
    predictions = make_predictions([[NOTHING, A]])
    swapped = dataclasses.replace(make_layer([[A, NOTHING]]), boxes=None)
    layers = (swapped, make_layer([[A, NOTHING]]), predictions.layers[-1])
    predictions = dataclasses.replace(predictions, layers=layers)
    assert matched_slots([make_clip((0, "0"))], [predictions]) == [[1]]
    losses = criterion()([make_clip((0, "0"))], make_features(), [predictions])
    assert losses["loss_cls"] < 0.1 < losses["loss_cls_0"]
    assert losses["loss_mask_1"] > 3 * losses["loss_mask"]


def test_with_more_instances_than_queries_the_costliest_are_unmatched():
    clip, predictions = make_clip((0, "0"), (1, "1"), (2, "2")), [make_predictions([[B, A]])]
    assert matched_slots([clip], predictions) == [[1, 0, -1]]
    losses = criterion()([clip], make_features(), predictions)
    assert all(value.isfinite() for value in losses.values())


def test_a_new_instance_is_unmatched_when_all_slots_are_owned():
    clip = make_clip((0, "00"), (1, "1."), (1, ".1"), length=2)
    assert matched_slots([clip], [make_predictions([[A, B]])] * 2) == [[0, 1, -1]]


def test_local_queries_are_rematched_on_every_frame():
    """Local queries that swap places lose nothing, although the slots of the tracked queries do not swap."""
    clip = make_clip((0, "00"), (1, "11"), length=2)
    fixed = make_predictions([[A, B]], local=[[A, B]])
    swapped = make_predictions([[A, B]], local=[[B, A]])
    first = criterion()([clip], make_features(1, 2), [fixed, fixed])
    second = criterion()([clip], make_features(1, 2), [fixed, swapped])
    for term in WEIGHTS:
        name = f"loss_{term}_local"
        torch.testing.assert_close(second[name], first[name], atol=1e-4, rtol=0)
    assert first["loss_cls_local"] < 0.1


@pytest.mark.parametrize("cost_class", [None, 0.0])
def test_costs_use_the_loss_weights_unless_the_matcher_has_its_own(cost_class):
    """Query 0 has the right class, query 1 the right mask and box.  A class weight of 1000 decides for query 0."""
    matcher = Matcher(num_points=64, cost_class=cost_class)
    judge = Criterion(matcher, PointSampler(32), FullSupervision(), WEIGHTS | {"cls": 1000.0})
    losses = judge([make_clip((0, "0"))], make_features(), [make_predictions([[(3, 0), (0, 1)]])])
    assert (losses["loss_box"] > 1) == (cost_class is None)


# Losses


def test_names_of_the_losses():
    """Three layers: layer 0 has no box terms, layer 2 is the final one; then the local queries."""
    losses = criterion()([make_clip((0, "0"))], make_features(), [make_predictions([[A, B]])])
    expected = {f"loss_{term}{name}" for term in WEIGHTS for name in ("", "_1", "_local")}
    assert set(losses) == expected | {"loss_cls_0", "loss_mask_0", "loss_dice_0"}


def focal(logit, positive):
    p = 1 / (1 + math.exp(-logit))
    return 0.25 * (1 - p) ** 2 * -math.log(p) if positive else 0.75 * p**2 * -math.log(1 - p)


def test_class_targets_are_one_hot_for_visible_instances_and_zeros_for_absent_ones():
    """Query 0 predicts its instance on both frames: one logit of 4, five of -4.  On frame 1 the 4 is wrong."""
    predictions = [make_predictions([[A, NOTHING]])] * 2
    losses = criterion()([make_clip((0, "0."), length=2)], make_features(1, 2), predictions)
    right = focal(4, True) + 5 * focal(-4, False)
    wrong = focal(4, False) + 5 * focal(-4, False)
    assert losses["loss_cls"].item() == pytest.approx(4 * (right + wrong), rel=1e-4)


def test_absent_instances_have_no_mask_and_box_loss():
    """The instance is absent on frame 1, where its query predicts another quadrant."""
    predictions = [make_predictions([[A, NOTHING]]), make_predictions([[D, NOTHING]])]
    losses = criterion()([make_clip((0, "0."), length=2)], make_features(1, 2), predictions)
    assert losses["loss_box"] == 0
    assert losses["loss_giou"].item() == pytest.approx(0, abs=1e-4)
    assert losses["loss_dice"].item() < 0.5
    sum(losses.values()).backward()
    assert not predictions[1].boxes.grad.any()


def test_box_losses_by_hand():
    """The predicted box is the true one shifted by half a frame: L1 .5, GIoU 0 (no overlap, hull = union)."""
    predictions = make_predictions([[A, NOTHING]])
    shifted = dataclasses.replace(predictions.layers[-1], boxes=BOXES[[1, 1]][None])
    layers = (*predictions.layers[:-1], shifted)
    predictions = dataclasses.replace(predictions, layers=layers, boxes=shifted.boxes)
    losses = criterion()([make_clip((0, "0"))], make_features(), [predictions])
    assert losses["loss_box"].item() == pytest.approx(5 * 0.5, rel=1e-5)
    assert losses["loss_giou"].item() == pytest.approx(2 * 1.0, rel=1e-4)


def test_a_weight_scales_its_term_in_every_set():
    clip, predictions = make_clip((0, "0")), [make_predictions([[B, NOTHING]])]
    first, second = (criterion(dice=weight)([clip], make_features(), predictions) for weight in (5.0, 10.0))
    for name in first:
        torch.testing.assert_close(second[name], first[name] * (2 if "dice" in name else 1))


@pytest.mark.parametrize("table", [LABEL_LOSSES, MASK_LOSSES, BOX_LOSSES])
def test_a_new_loss_is_a_function_in_a_table_and_a_weight(monkeypatch, table):
    """A copy of an existing term under a new name, at ten times its weight, is ten times its loss in every set."""
    term, function = next(iter(table.items()))
    clip, predictions = make_clip((0, "0")), [make_predictions([[B, NOTHING]])]
    plain = criterion()([clip], make_features(), predictions)
    monkeypatch.setitem(table, "extra", function)
    losses = criterion(extra=10 * WEIGHTS[term])([clip], make_features(), predictions)
    assert set(losses) - set(plain) == {
        name.replace(term, "extra") for name in plain if name.startswith(f"loss_{term}")
    }
    for name in set(losses) - set(plain):
        torch.testing.assert_close(losses[name], 10 * plain[name.replace("extra", term)])


@pytest.mark.parametrize("weights", [{"cls": 1.0}, WEIGHTS | {"boundary": 1.0}])
def test_missing_and_unknown_weights_raise(weights):
    with pytest.raises(ValueError, match="weights"):
        Criterion(Matcher(), PointSampler(), FullSupervision(), weights)


def test_padded_mask_pixels_do_not_change_the_losses():
    """The frame fills 6 of 8 columns and 4 of 8 rows."""
    generator = torch.Generator().manual_seed(0)
    clean = dataclasses.replace(make_features()[0], extent=torch.tensor([[6.0, 4.0]]))
    noise = 100 * torch.randn(1, 4, 8, 8, generator=generator) * padded_pixels(clean.extent, 8, 8)[:, None]
    noisy = dataclasses.replace(clean, mask_features=clean.mask_features + noise)
    clip, predictions = make_clip((0, "0"), (1, "1")), [make_predictions([[A, B, C]])]
    first, second = (criterion()([clip], [features], predictions) for features in (clean, noisy))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-5, rtol=0)


def test_stuff_has_no_box_loss():
    """Labels 0 and 2, one thing class: the box losses are those of the first instance alone."""
    predictions = make_predictions([[(0, 0), (1, 2), NOTHING]])
    for layer in predictions.layers[1:]:
        layer.boxes.data[:] = 0.5
    clip, first_only = make_clip((0, "0"), (2, "1")), make_clip((0, "0"))
    panoptic = criterion()
    panoptic.things = 1
    losses, all_things = (judge([clip], make_features(), [predictions]) for judge in (panoptic, criterion()))
    reference = criterion()([first_only], make_features(), [predictions])
    for term in ("box", "giou"):
        # Two instances are visible in `clip`, one in `first_only`.
        assert losses[f"loss_{term}"].item() == pytest.approx(reference[f"loss_{term}"].item() / 2)
        assert losses[f"loss_{term}"] < all_things[f"loss_{term}"]
    for term in ("cls", "mask", "dice"):
        assert torch.equal(losses[f"loss_{term}"], all_things[f"loss_{term}"])


# Empty inputs


def test_a_clip_without_instances_is_background():
    """Only the class loss is not zero, and every prediction has a gradient, which DDP needs."""
    predictions = [make_predictions([[A, NOTHING]])]
    losses = criterion()([make_clip()], make_features(), predictions)
    expected = 4 * sigmoid_focal_loss(predictions[0].logits, torch.zeros(1, 2, K)).sum()
    torch.testing.assert_close(losses["loss_cls"], expected)
    for name in ("mask", "dice", "box", "giou"):
        assert losses[f"loss_{name}"] == 0
    sum(losses.values()).backward()
    for output in (*predictions[0].layers, predictions[0].local):
        for value in (output.logits, output.boxes, output.mask_embed):
            assert value is None or value.grad is not None


def test_a_batch_of_clips_without_instances_is_background():
    rows = [[A, NOTHING], [B, C]]
    clips = [make_clip(length=2), make_clip(length=2, key=(0, 0, 1))]
    losses = criterion()(clips, make_features(2, 2), [make_predictions(rows)] * 2)
    per_clip = [
        criterion()([clip], make_features(1, 2), [make_predictions([row])] * 2)
        for clip, row in zip(clips, rows, strict=True)
    ]
    for name, value in losses.items():
        torch.testing.assert_close(value, per_clip[0][name] + per_clip[1][name])
        assert ("cls" in name) == (value > 0)


def test_a_clip_without_instances_beside_one_with_an_instance():
    """The normaliser is 1: the empty clip adds the focal loss of its queries and nothing else."""
    rows = [[A, NOTHING], [B, NOTHING]]
    clips = [make_clip((0, "0")), make_clip(key=(0, 0, 1))]
    together = criterion()(clips, make_features(2), [make_predictions(rows)])
    first = criterion()(clips[:1], make_features(1), [make_predictions(rows[:1])])
    second = criterion()(clips[1:], make_features(1), [make_predictions(rows[1:])])
    for name, value in together.items():
        torch.testing.assert_close(value, first[name] + second[name])


def test_an_empty_batch_raises():
    with pytest.raises(ValueError, match="at least one clip"):
        criterion()([], make_features(), [make_predictions([[A]])])


# Normaliser


def test_each_frame_is_normalised_by_its_own_visible_instances():
    """Two instances are visible on frame 0, one on frame 1."""
    rows = [[(3, 2), (3, 2)]]
    clip = make_clip((0, "00"), (1, "1."), length=2)
    both, first, second = (
        criterion(Only(frames))([clip], make_features(1, 2), [make_predictions(rows)] * 2)["loss_box"]
        for frames in ((0, 1), (0,), (1,))
    )
    torch.testing.assert_close(both, first + second)
    assert first.item() == pytest.approx(5 * (1.0 + 0.5) / 2, rel=1e-4)
    assert second.item() == pytest.approx(5 * 1.0, rel=1e-4)


def test_a_clip_that_skips_a_frame_does_not_count_there():
    """Frame 0 is supervised in the first of two clips only: its loss there equals that of the first clip alone."""
    keys = [(0, 0, 0), (0, 0, 1)]
    first_seed = keyed_generator(*keys[0], "supervision").initial_seed()

    def by_clip(length, generator):
        return [generator.initial_seed() == first_seed, True]

    rows = [[(3, 2), NOTHING], [(3, 2), NOTHING]]
    clips = [
        make_clip((0, "0."), length=2, key=keys[0]),
        make_clip((0, "00"), (1, "11"), length=2, key=keys[1]),
    ]
    losses = criterion(by_clip)(clips, make_features(2, 2), [make_predictions(rows)] * 2)
    alone = criterion(Only((0,)))(clips[:1], make_features(1, 2), [make_predictions(rows[:1])] * 2)
    last = criterion(Only((1,)))(clips, make_features(2, 2), [make_predictions(rows)] * 2)
    for name in losses:
        torch.testing.assert_close(losses[name], alone[name] + last[name])
    assert criterion(by_clip).normalizer(clips).tolist() == [1, 2]


def two_clips():
    rows = [[(3, 2), A, NOTHING], [B, (2, 0), C]]
    clips = [
        make_clip((0, "00"), (1, "1."), length=2, key=(0, 4, 0)),
        make_clip((2, ".2"), (1, "13"), (0, "03"), length=2, key=(0, 4, 1)),
    ]
    return rows, clips


def test_the_loss_of_a_batch_is_the_weighted_mean_over_its_clips():
    """Frame 0 shows 2 + 2 instances, frame 1 shows 1 + 3."""
    rows, clips = two_clips()
    for t, counts in ((0, (2, 2)), (1, (1, 3))):
        judge = criterion(Only((t,)))
        together = judge(clips, make_features(2, 2), [make_predictions(rows)] * 2)
        per_clip = [
            judge([clip], make_features(1, 2), [make_predictions([row])] * 2)
            for row, clip in zip(rows, clips, strict=True)
        ]
        for name, value in together.items():
            expected = sum(losses[name] * n for losses, n in zip(per_clip, counts, strict=True)) / sum(counts)
            torch.testing.assert_close(value, expected)


def test_micro_batches_with_the_normalizer_of_the_step_add_up_to_the_whole_batch():
    rows, clips = two_clips()
    judge = criterion(ReducedSupervision())
    together = judge(clips, make_features(2, 2), [make_predictions(rows)] * 2)
    normalizer = judge.normalizer(clips)
    parts = [
        judge([clip], make_features(1, 2), [make_predictions([row])] * 2, normalizer)
        for row, clip in zip(rows, clips, strict=True)
    ]
    for name, value in together.items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], value)


def test_the_normalizer_of_clips_of_different_lengths_is_as_long_as_the_longest():
    clips = [make_clip((0, "0")), make_clip((0, "00"), (1, ".1"), length=2), make_clip(length=3)]
    assert criterion().normalizer(clips).tolist() == [2, 2, 1]


# Random draws


def test_the_order_of_clips_does_not_change_the_losses():
    rows, clips = two_clips()
    judge = criterion(ReducedSupervision())
    forwards = judge(clips, make_features(2, 2), [make_predictions(rows)] * 2)
    backwards = judge(clips[::-1], make_features(2, 2), [make_predictions(rows[::-1])] * 2)
    for name, value in forwards.items():
        torch.testing.assert_close(backwards[name], value)
    slots = matched_slots(clips, [make_predictions(rows)] * 2)
    assert slots == matched_slots(clips[::-1], [make_predictions(rows[::-1])] * 2)[::-1]


def test_draws_depend_on_the_clip_key_and_not_on_the_global_generator():
    rows, clips = two_clips()
    rows = [[row[0], NOTHING, NOTHING] for row in rows]

    def losses(seed, clips):
        torch.manual_seed(seed)
        return criterion()(clips, make_features(2, 2), [make_predictions(rows)] * 2)

    first = losses(1, clips)
    assert losses(2, clips) == first
    assert losses(1, [dataclasses.replace(clip, key=(0, 5, i)) for i, clip in enumerate(clips)]) != first


def drawn(length, times=600):
    return Counter(
        tuple(ReducedSupervision()(length, keyed_generator(0, i, 0, "supervision"))) for i in range(times)
    )


@pytest.mark.parametrize("length", [1, 2])
def test_clips_of_one_and_two_frames_are_fully_supervised(length):
    assert drawn(length, 20) == {(True,) * length: 20}


def test_of_three_frames_one_of_the_first_two_is_skipped():
    counts = drawn(3)
    assert set(counts) == {(False, True, True), (True, False, True)}
    assert all(n > 240 for n in counts.values())


def test_of_four_frames_one_or_two_are_skipped_with_equal_probability():
    """Section 3.2: k in {1, 2} uniformly, then a uniform subset of the first three: six subsets of 1/6."""
    counts = drawn(4)
    assert len(counts) == 6
    assert all(frames[-1] for frames in counts)
    assert all(60 < n < 145 for n in counts.values())
    assert 240 < sum(n for frames, n in counts.items() if sum(frames) == 3) < 360


def test_of_five_frames_at_least_two_are_supervised():
    counts = drawn(5)
    assert {sum(frames) for frames in counts} == {2, 3, 4}
    assert all(frames[-1] for frames in counts)
    assert len(counts) == 4 + 6 + 4


def test_full_supervision_is_full():
    assert FullSupervision()(4, keyed_generator(0)) == [True] * 4


def test_clips_of_one_batch_skip_different_frames():
    subsets = {tuple(ReducedSupervision()(4, keyed_generator(0, 0, c, "supervision"))) for c in range(40)}
    assert len(subsets) == 6


# Variants


def test_a_hidden_instance_has_an_empty_target_mask():
    """The instance is hidden on frame 1, where its query predicts another quadrant: dice 1 - 1 / (16 + 1)."""
    predictions = [make_predictions([[A, NOTHING]]), make_predictions([[D, NOTHING]])]
    args = [make_clip((0, "0."), length=2)], make_features(1, 2), predictions
    parts = Matcher(num_points=64), PointSampler(4096), FullSupervision()
    plain, hidden = (
        {k: v.item() for k, v in c(*parts)(*args).items()} for c in (Criterion, HiddenMasksCriterion)
    )
    # A quarter of the points lie in the predicted quadrant.
    assert hidden["loss_dice"] - plain["loss_dice"] == pytest.approx(5, abs=0.2)
    assert hidden["loss_mask"] > plain["loss_mask"] + 1
    changed = {name for name in hidden if hidden[name] != plain[name]}
    assert changed == {f"loss_{term}{layer}" for term in ("mask", "dice") for layer in ("", "_0", "_1")}


def test_an_instance_that_has_not_appeared_yet_has_no_target_mask():
    predictions = [make_predictions([[D, NOTHING]]), make_predictions([[A, NOTHING]])]
    args = [make_clip((0, ".0"), length=2)], make_features(1, 2), predictions
    hidden = HiddenMasksCriterion(Matcher(num_points=64), PointSampler(32), FullSupervision())(*args)
    assert {name: loss.item() for name, loss in hidden.items()} == {
        name: loss.item() for name, loss in criterion()(*args).items()
    }
