"""The identity meter on hand-worked timelines; frames are one row of pixels.

An object is two pixels; a timeline names, frame by frame, the slot that covers it, "-" for none and " " for a
frame in which the object cannot be seen.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from local2global.evaluation.identity import IdentityMeter, owners
from local2global.structures import FrameResult

WIDTH = 8


def result(index=0, slots=(), masks=None, scores=None):
    masks = torch.zeros((0, 1, WIDTH), dtype=torch.bool) if masks is None else masks
    count = len(slots)
    return FrameResult(
        index=index,
        ids=torch.tensor(slots, dtype=torch.int64),
        labels=torch.zeros(count, dtype=torch.int64),
        scores=torch.ones(count) if scores is None else torch.tensor(scores),
        masks=masks,
        boxes=torch.zeros(count, 4),
    )


def row(*pixels):
    mask = torch.zeros((1, WIDTH), dtype=torch.bool)
    mask[0, list(pixels)] = True
    return mask


def measure(*timelines, outside=(), **settings):
    """Objects 11, 12, ... at pixels (0, 1), (2, 3), ...; on the frames `outside` no object is inside the frame."""
    meter = IdentityMeter(**settings)
    ids = torch.arange(11, 11 + len(timelines))
    for t, marks in enumerate(zip(*timelines, strict=True)):
        truth = torch.stack([row(2 * i, 2 * i + 1) & (mark != " ") for i, mark in enumerate(marks)])
        owned = [i for i, mark in enumerate(marks) if mark not in "- "]
        found = result(t, [int(marks[i]) for i in owned], truth[owned]) if owned else result(t)
        meter.update(found, ids, truth, np.full(len(ids), t not in outside))
    meter.finish()
    return meter.summary()


def test_owner_is_the_slot_of_highest_iou_and_not_of_highest_score():
    found = result(slots=[4, 9], masks=torch.stack([row(0, 1, 2), row(0, 1)]), scores=[0.9, 0.4])
    assert owners(found, row(0, 1)[None]) == [9]


def test_an_iou_of_one_half_makes_an_owner_and_a_smaller_one_does_not():
    half = result(slots=[4], masks=row(0, 1, 2, 3)[None])
    assert owners(half, torch.stack([row(0, 1), row(2), row()])) == [4, None, None]


def test_a_slot_below_the_minimum_score_is_no_owner():
    found = result(slots=[4, 9], masks=torch.stack([row(0, 1), row(0, 1, 2)]), scores=[0.29, 0.31])
    assert owners(found, row(0, 1)[None]) == [9]


def test_masks_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"frame 0: masks of \(1, 8\) pixels for a truth of \(2, 8\)"):
        owners(result(), torch.ones(1, 2, WIDTH, dtype=torch.bool))


def test_the_same_owner_after_three_hidden_frames_is_kept():
    got = measure("77   77")
    assert (got["occlusions"], got["kept"], got["kept_rate"]) == (1, 1, 1.0)


def test_another_owner_after_three_hidden_frames_is_not_kept():
    got = measure("77   88")
    assert (got["occlusions"], got["kept"], got["kept_rate"]) == (1, 0, 0.0)


def test_two_hidden_frames_are_no_occlusion():
    got = measure("77  88")
    assert (got["occlusions"], got["kept_rate"]) == (0, None)


def test_hidden_frames_before_the_first_or_after_the_last_visible_one_are_no_occlusion():
    assert measure("   777    ")["occlusions"] == 0


def test_the_owner_before_is_that_of_the_last_owned_frame_however_long_ago():
    assert measure("87------   7")["kept"] == 1


def test_the_fifth_frame_after_the_occlusion_still_counts_and_the_sixth_does_not():
    assert measure("7   ----7")["kept"] == 1
    assert measure("7   -----7")["kept"] == 0


def test_only_the_first_owner_after_the_occlusion_counts():
    assert measure("7   -87")["kept"] == 0
    assert measure("7   -78")["kept"] == 1


def test_two_gaps_before_the_next_owner_are_two_occlusions():
    got = measure("7   -   7")
    assert (got["occlusions"], got["kept"]) == (2, 2)


def test_an_object_not_owned_before_its_occlusion_is_not_kept_and_counted_separately():
    got = measure("--   77")
    assert (got["occlusions"], got["occlusions_unowned"], got["kept"]) == (1, 1, 0)


def test_a_video_that_ends_before_the_object_is_owned_again_has_not_kept_it():
    got = measure("77   -")
    assert (got["occlusions"], got["kept"]) == (1, 0)


def test_a_gap_with_a_frame_outside_is_an_absence_and_not_an_occlusion():
    got = measure("77   77", outside={3})
    assert (got["occlusions"], got["absences"], got["absences_kept_rate"]) == (0, 1, 1.0)


def test_an_absence_does_not_change_the_kind_of_the_next_gap():
    got = measure("7   7   8", outside={2})
    assert (got["absences"], got["absences_kept"], got["occlusions"], got["kept"]) == (1, 1, 1, 0)


def test_without_inside_flags_every_gap_is_an_occlusion():
    meter, ids = IdentityMeter(), torch.tensor([5])
    for t, seen in enumerate((True, False, False, False, True)):
        mask = row(0, 1)[None] & seen
        meter.update(result(t, [2], mask) if seen else result(t), ids, mask)
    meter.finish()
    assert meter.summary()["kept"] == 1


def test_never_owned_objects_are_counted_and_never_visible_ones_are_not():
    got = measure("--7-", "----", "    ")
    assert (got["objects"], got["never_owned"]) == (2, 1)


def test_appearances_are_visible_objects_summed_over_frames():
    got = measure("--7-", "88 8", "    ")
    assert (got["appearances"], got["owned"], got["owned_rate"]) == (7, 4, 4 / 7)


def test_a_change_to_an_unused_slot_is_no_switch():
    got = measure("7788", "    ")
    assert (got["owner_changes"], got["switches"]) == (1, 0)


def test_a_change_to_the_slot_of_another_object_is_a_switch():
    got = measure("7799", "99--")
    assert (got["owner_changes"], got["switches"], got["takeovers"]) == (1, 1, 0)


def test_two_objects_that_exchange_slots_are_two_switches():
    assert measure("7799", "9977")["switches"] == 2


def test_a_return_to_the_own_former_slot_is_no_switch():
    got = measure("787", "---")
    assert (got["owner_changes"], got["switches"]) == (2, 0)


def test_a_return_to_a_slot_that_another_object_used_since_is_a_switch():
    got = measure("7887", "-7--")
    assert (got["owner_changes"], got["switches"], got["takeovers"]) == (2, 1, 1)


def test_a_newcomer_in_the_slot_of_another_object_is_a_takeover_and_no_switch():
    got = measure("77   ", "  777")
    assert (got["takeovers"], got["switches"], got["owner_changes"]) == (1, 0, 0)


def test_slots_and_identities_are_reset_between_videos():
    meter = IdentityMeter()
    for identity in (1, 2):
        meter.update(result(0, [7], row(0, 1)[None]), torch.tensor([identity]), row(0, 1)[None])
        meter.finish()
    got = meter.summary()
    assert (got["videos"], got["objects"], got["takeovers"], got["never_owned"]) == (2, 2, 0, 0)


class Record:
    """One object, hidden on frames 1 to 3; if `leaves`, it is outside the frame on frame 2."""

    ids = torch.tensor([3])

    def __init__(self, leaves):
        self.leaves = leaves

    def masks(self, t):
        return row(0, 1)[None] & (t in (0, 4))

    def inside(self, t):
        return np.array([not (self.leaves and t == 2)])


@pytest.mark.parametrize(("leaves", "kind"), [(False, "occlusions"), (True, "absences")])
def test_follow_uses_the_truth_of_every_frame(leaves, kind):
    meter, record = IdentityMeter(), Record(leaves)
    seen = [bool(record.masks(t).any()) for t in range(5)]
    meter.follow((result(t, [6], row(0, 1)[None]) if seen[t] else result(t) for t in range(5)), record)
    got = meter.summary()
    assert (got["videos"], got["occlusions"] + got["absences"], got[kind]) == (1, 1, 1)
