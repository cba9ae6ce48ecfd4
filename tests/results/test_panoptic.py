"""Panoptic maps of hand-made predictions: assignment of pixels, segment ids, second-pass maps.

Frames are 2 x 4 pixels, and so are masks; a slot is (class scores, the pixels of its mask), a pixel a letter.
"""

from __future__ import annotations

import gc

import pytest
import torch

from local2global.results.panoptic import Panoptic, PanopticPostprocessor
from local2global.structures import Clip, FramePredictions, Queries

CLASSES, THINGS = 4, 2  # two things, then two kinds of stuff
CAR, DOG, SKY, ROAD = range(CLASSES)
SIZE = (2, 4)


def slot(pixels, sure=9.0, **scores):
    """A slot whose mask is the pixels marked #, with these class scores and almost 0 for the others."""
    mask = torch.tensor([[sure if p == "#" else -9.0 for p in row] for row in pixels.split("/")])
    names = {"car": CAR, "dog": DOG, "sky": SKY, "road": ROAD}
    score = torch.full((CLASSES,), 1e-4)
    for name, value in scores.items():
        score[names[name]] = value
    return torch.logit(score), mask


def frame(*slots):
    logits, masks = (torch.stack(part)[None] for part in zip(*slots, strict=True))
    boxes = torch.full((1, len(slots), 4), 0.5)
    extent = torch.tensor([[float(masks.shape[-1]), float(masks.shape[-2])]])
    return FramePredictions(logits, boxes, masks, extent, Queries(torch.zeros(1, len(slots), 8), boxes))


def decide(*frames, **settings):
    post = PanopticPostprocessor(Panoptic(things=THINGS, **settings), SIZE)
    return [post.update(predictions) for predictions in frames]


def thing(slot, label):
    """The segment id of a thing."""
    return 1 + label + CLASSES * (1 + slot)


def stuff(label):
    return 1 + label


def test_each_pixel_is_assigned_to_the_slot_of_the_highest_weighted_mask():
    """The car gets the left two columns, the sky the others."""
    (result,) = decide(frame(slot("##../##..", car=0.9), slot("..##/..##", sky=0.8)))
    assert result.ids.tolist() == [[thing(0, CAR)] * 2 + [stuff(SKY)] * 2] * 2
    assert [(s.id, s.label, s.area) for s in result.segments] == [
        (stuff(SKY), SKY, 4),
        (thing(0, CAR), CAR, 4),
    ]
    assert result.segments[1].score == pytest.approx(0.9, abs=1e-4)


def test_a_pixel_is_weighted_by_score_times_mask_probability():
    """Both masks cover all pixels; the dog's has the higher probability."""
    certain, unsure = slot("####/####", 9.0, dog=0.8), slot("####/####", 0.5, car=0.85)
    (result,) = decide(frame(unsure, certain))
    assert set(result.ids.flatten().tolist()) == {thing(1, DOG)}


def test_a_slot_with_two_similar_class_scores_weighs_less():
    """Temperature .06: scores of .6 and .59 give the weight .54, a score of .5 alone gives .999."""
    torn, clear = slot("####/####", dog=0.6, car=0.59), slot("####/####", sky=0.5)
    (result,) = decide(frame(torn, clear))
    assert set(result.ids.flatten().tolist()) == {stuff(SKY)}


def test_a_slot_below_the_threshold_is_ignored():
    (result,) = decide(frame(slot("####/####", car=0.25), slot("####/....", sky=0.26)))
    assert result.ids.tolist() == [[stuff(SKY)] * 4, [0] * 4]


def test_without_a_confident_slot_the_map_is_void():
    (result,) = decide(frame(slot("####/####", car=0.1)))
    assert (result.ids.tolist(), result.segments) == ([[0] * 4] * 2, ())


def test_a_segment_that_wins_too_little_of_its_mask_is_dropped_and_becomes_void():
    """The dog wins 2 of the car's 8 pixels, which leaves 6 / 8 < .8."""
    car, dog = slot("####/####", car=0.6), slot("##../....", dog=0.9)
    (result,) = decide(frame(car, dog))
    assert result.ids.tolist() == [[thing(1, DOG)] * 2 + [0] * 2, [0] * 4]
    (result,) = decide(frame(car, dog), overlap=0.75)
    assert result.ids.tolist() == [[thing(1, DOG)] * 2 + [thing(0, CAR)] * 2, [thing(0, CAR)] * 4]


def test_stuff_of_one_class_is_one_segment_and_things_are_not():
    (result,) = decide(frame(slot("#.../#...", sky=0.9), slot("...#/...#", sky=0.8)))
    assert result.ids.tolist() == [[stuff(SKY), 0, 0, stuff(SKY)]] * 2
    assert [(s.id, s.area) for s in result.segments] == [(stuff(SKY), 4)]
    (result,) = decide(frame(slot("#.../#...", car=0.9), slot("...#/...#", car=0.8)))
    assert [s.id for s in result.segments] == [thing(0, CAR), thing(1, CAR)]


def test_segment_ids_of_things_and_stuff_are_unique():
    ids = [stuff(label) for label in range(THINGS, CLASSES)]
    ids += [thing(s, label) for s in range(300) for label in range(THINGS)]
    assert len(set(ids)) == len(ids)
    assert min(ids) > 0
    assert 1 + 123 + 124 * 301 < 1 << 24  # 300 slots and VIPSeg's classes fit into a PNG


def test_a_slot_keeps_its_segment_id():
    first, second = decide(
        frame(slot("#.../#...", car=0.9), slot("...#/...#", dog=0.9)),
        frame(slot("...#/...#", car=0.9), slot("#.../#...", dog=0.9)),
    )
    assert first.ids.tolist() == [[thing(0, CAR), 0, 0, thing(1, DOG)]] * 2
    assert second.ids.tolist() == [[thing(1, DOG), 0, 0, thing(0, CAR)]] * 2


def test_the_class_is_the_argmax_of_the_running_mean_and_a_change_opens_a_new_id():
    """Car .6, then dog .5 and .9: the means of car and dog are .6 and 0, .3 and .25, .2 and .47."""
    everywhere = "####/####"
    results = decide(
        frame(slot(everywhere, car=0.6)), frame(slot(everywhere, dog=0.5)), frame(slot(everywhere, dog=0.9))
    )
    assert [r.segments[0].id for r in results] == [thing(0, CAR), thing(0, CAR), thing(0, DOG)]


def test_frames_on_which_a_slot_is_below_the_threshold_do_not_count():
    """Between two frames with car .9 is one with no score above .25: the mean stays .9."""
    everywhere = "####/####"
    results = decide(
        frame(slot(everywhere, car=0.9)), frame(slot(everywhere, dog=0.2)), frame(slot(everywhere, car=0.9))
    )
    assert results[1].segments == ()
    assert results[2].segments[0].score == pytest.approx(0.9, abs=1e-4)


def test_a_map_is_emitted_before_the_next_frame_is_read():
    read = []

    def predictions():
        for t in range(3):
            read.append(t)
            yield frame(slot("####/####", car=0.9))

    clip = Clip(torch.zeros(3, 3, *SIZE, dtype=torch.uint8), SIZE, video_id=7)
    video = Panoptic(things=THINGS)(predictions(), clip)
    assert (video.video_id, video.size, video.length, video.final, read) == (7, SIZE, 3, None, [])
    for t, result in enumerate(video.frames):
        assert (result.index, read) == (t, list(range(t + 1)))


def test_the_second_decision_uses_the_means_of_the_whole_video():
    """Car .5 on the first frame, dog .9 on the second: the recomputed label is dog on both."""
    everywhere = "####/####"
    clip = Clip(torch.zeros(2, 3, *SIZE, dtype=torch.uint8), SIZE)
    stream = [frame(slot(everywhere, car=0.5)), frame(slot(everywhere, dog=0.9))]
    video = Panoptic(things=THINGS, final=True)(stream, clip)
    assert [r.segments[0].label for r in video.frames] == [CAR, DOG]
    final = list(video.final())
    assert [(r.index, r.segments[0].label) for r in final] == [(0, DOG), (1, DOG)]
    assert [r.segments[0].label for r in video.final()] == [DOG, DOG]  # `final` can be called again


def test_both_decisions_agree_on_the_last_frame():
    """On the last frame both use the mean scores of the whole video."""
    draw = torch.Generator().manual_seed(0)
    post = PanopticPostprocessor(Panoptic(things=THINGS, keep=0.5, overlap=0.2, final=True), (13, 22))
    for _ in range(3):
        logits, masks = (
            torch.randn(1, 6, CLASSES, generator=draw),
            3 * torch.randn(1, 6, 4, 8, generator=draw),
        )
        boxes = torch.full((1, 6, 4), 0.5)
        extent = torch.tensor([[5.5, 3.25]])
        online = post.update(
            FramePredictions(logits, boxes, masks, extent, Queries(torch.zeros(1, 6, 8), boxes))
        )
    *_, last = post.redecide()
    assert torch.equal(last.ids, online.ids)
    assert last.segments == online.segments
    assert sum(s.area for s in last.segments) == int((last.ids > 0).sum()) > 0


def test_a_second_decision_without_masks_is_refused():
    post = PanopticPostprocessor(Panoptic(things=THINGS), SIZE)
    with pytest.raises(ValueError, match="final=True"):
        next(post.redecide())


def test_predictions_of_two_videos_are_refused():
    one = frame(slot("####/####", car=0.9))
    two = FramePredictions(
        one.logits.repeat(2, 1, 1),
        one.boxes.repeat(2, 1, 1),
        one.masks.repeat(2, 1, 1, 1),
        one.extent.repeat(2, 1),
        one.queries,
    )
    with pytest.raises(ValueError, match="one video, got 2"):
        decide(two)


def live_bytes():
    """Bytes of all live tensors."""
    gc.collect()
    return sum(o.numel() * o.element_size() for o in gc.get_objects() if isinstance(o, torch.Tensor))


def test_memory_does_not_grow_with_the_video():
    post = PanopticPostprocessor(Panoptic(things=THINGS), (24, 40))
    one = frame(slot("##../##..", car=0.9), slot("..##/..##", sky=0.8))
    for _ in range(2):
        post.update(one)
    before = live_bytes()
    for _ in range(20):
        post.update(one)
    assert live_bytes() == before
