"""Frame reports and video results of hand-made predictions."""

from __future__ import annotations

import math
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from local2global.errors import UserError
from local2global.results.instances import VideoPostprocessor
from local2global.results.masks import decode_columns
from local2global.structures import FramePredictions, Queries


def frame(scores, filled, mask_logit=2.0):
    """Predictions (N slots, K classes) from class scores; the masks of the `filled` slots are the left half."""
    scores = torch.tensor(scores)
    masks = torch.full((len(scores), 4, 8), -2.0)
    masks[list(filled), :, :4] = mask_logit
    masks[:, :, 6:] = -math.inf
    boxes = torch.arange(len(scores) * 4).reshape(1, -1, 4) / 100
    return FramePredictions(
        logits=scores.logit()[None],
        boxes=boxes,
        masks=masks[None],
        extent=torch.tensor([[6.0, 4.0]]),
        queries=Queries(torch.zeros((1, len(scores), 2)), boxes),
    )


def test_a_frame_reports_confident_slots_with_a_mask():
    """Slot 0 is below the threshold, slot 1 has no mask, slot 2 is reported."""
    with VideoPostprocessor((16, 24), threshold=0.3) as post:
        report = post.update(frame([[0.2, 0.1], [0.9, 0.1], [0.1, 0.6]], filled=[0, 2]))
    assert (report.index, report.ids.tolist(), report.labels.tolist()) == (0, [2], [1])
    assert report.scores.tolist() == pytest.approx([0.6])
    assert report.boxes.tolist() == [pytest.approx([0.08, 0.09, 0.1, 0.11])]
    expected = torch.zeros((16, 24), dtype=torch.bool)
    expected[:, :16] = True
    assert torch.equal(report.masks[0], expected)


def test_the_reported_label_is_the_argmax_of_the_running_mean():
    with VideoPostprocessor((16, 24)) as post:
        labels = [post.update(frame([s], [0])).labels.item() for s in ([0.9, 0.1], [0.3, 0.6], [0.1, 0.95])]
    assert labels == [0, 0, 1]


def test_a_slot_that_is_confident_late_keeps_its_early_masks():
    """Slot 1 is confident on the last frame only and has a mask on all three."""
    with VideoPostprocessor((16, 24)) as post:
        reports = [post.update(frame([[0.1], [s]], [1])).ids.tolist() for s in (0.1, 0.1, 0.8)]
        result = post.result(9)
        assert reports == [[], [], [1]]
        assert (result.video_id, result.size, result.length) == (9, (16, 24), 3)
        assert result.slots.tolist() == [1]
        masks = list(result.read(1))
    assert [coco_mask.area(mask) for mask in masks] == [16 * 16] * 3


def test_frames_without_a_mask_are_none_and_slots_without_any_mask_are_dropped():
    with VideoPostprocessor((16, 24)) as post:
        for filled in ([], [0], [], []):
            post.update(frame([[0.7, 0.2], [0.9, 0.9]], filled))
        result = post.result(1)
        assert result.slots.tolist() == [0, 0]
        assert result.labels.tolist() == [0, 1]
        assert [mask is None for mask in result.read(0)] == [True, False, True, True]


@pytest.mark.parametrize(("aggregate", "expected"), [("top_quarter", 0.8), ("max", 0.9), ("mean", 0.35)])
def test_a_video_score_is_class_score_times_mask_certainty(aggregate, expected):
    """Eight frames: the best quarter is .9 and .7; every positive mask pixel has probability sigmoid(2)."""
    with VideoPostprocessor((16, 24), aggregate=aggregate) as post:
        for value in (0.9, 0.2, 0.2, 0.2, 0.7, 0.2, 0.2, 0.2):
            post.update(frame([[value]], [0]))
        (score,) = post.result(1).scores.tolist()
    assert score == pytest.approx(expected / (1 + math.exp(-2)), abs=1e-6)


def test_tracks_are_ranked_by_exact_scores():
    """Random scores of 40 frames: the order of all 300 pairs is that of the exact top-quarter means."""
    scores = torch.rand((40, 30, 10), generator=torch.Generator().manual_seed(0))
    with VideoPostprocessor((8, 12), keep=300) as post:
        for values in scores:
            post.update(frame(values.tolist(), range(30)))
        result = post.result(1)
    exact = scores.logit().sigmoid().sort(0, descending=True).values[:10].double().mean(0)
    order = exact.flatten().argsort(descending=True, stable=True)
    assert (result.slots * 10 + result.labels).tolist() == order.tolist()


def test_the_best_pairs_are_kept_in_order():
    with VideoPostprocessor((16, 24), keep=3) as post:
        post.update(frame([[0.3, 0.8], [0.9, 0.1]], [0, 1]))
        result = post.result(1)
    pairs = list(zip(result.slots.tolist(), result.labels.tolist(), strict=True))
    assert pairs == [(1, 0), (0, 1), (0, 0)]


def test_streaming_without_a_file_gives_the_same_reports_and_no_result():
    frames = [
        frame([[0.9, 0.1], [0.2, 0.4], [0.1, 0.1]], [0, 2]),
        frame([[0.2, 0.1], [0.2, 0.4], [0.5, 0.1]], [1, 2]),
    ]
    with VideoPostprocessor((16, 24)) as with_file, VideoPostprocessor((16, 24), spill=False) as without:
        for predictions in frames:
            expected, report = with_file.update(predictions), without.update(predictions)
            assert torch.equal(report.ids, expected.ids)
            assert torch.equal(report.masks, expected.masks)
        with pytest.raises(ValueError, match="spill=True"):
            without.result(1)


def test_only_the_masks_of_selected_slots_are_decoded(monkeypatch):
    decoded = []

    def decode(masks, *arguments):
        decoded.append(len(masks))
        return decode_columns(masks, *arguments)

    monkeypatch.setattr("local2global.results.instances.decode_columns", decode)
    calls = []

    def narrow(reported, scores, labels):
        calls.append((reported.tolist(), labels.tolist()))
        return reported & (scores < 0.8)

    post = VideoPostprocessor((16, 24), spill=False)
    report = post.update(frame([[0.9, 0.1], [0.4, 0.5], [0.1, 0.1], [0.6, 0.1]], [0, 1, 2]), narrow)
    assert report.ids.tolist() == [1]
    assert calls == [([True, True, False, False], [0, 1, 0, 0])], "of slots with a score and a mask"
    assert decoded == [1]


def test_masks_decoded_in_several_batches_keep_their_slots(monkeypatch):
    monkeypatch.setattr("local2global.results.instances.BATCH_PIXELS", 16 * 24)
    with VideoPostprocessor((16, 24)) as post:
        report = post.update(frame([[0.9], [0.2], [0.1], [0.6]], [0, 2, 3]))
        assert report.ids.tolist() == [0, 3]
        assert report.masks.shape == (2, 16, 24)
        assert sorted(post.result(1).slots.tolist()) == [0, 2, 3]


def test_several_results_may_be_read_at_the_same_time():
    """Video v has a mask on frame v only."""
    with ExitStack() as stack:
        results = []
        for video in range(3):
            post = stack.enter_context(VideoPostprocessor((16, 24)))
            for t in range(3):
                post.update(frame([[0.9]], [0] if t == video else []))
            results.append(post.result(video))
        readers = [result.read(0) for result in results]
        columns = [[next(reader) is not None for reader in readers] for _ in range(3)]
    assert columns == np.eye(3, dtype=bool).tolist()


def test_a_video_without_frames_has_an_empty_result():
    with VideoPostprocessor((16, 24)) as post:
        assert len(post.result(1)) == 0


def test_predictions_of_two_videos_are_refused():
    single = frame([[0.5]], [0])
    batch = FramePredictions(
        *(torch.cat([x, x]) for x in (single.logits, single.boxes, single.masks, single.extent)),
        queries=single.queries,
    )
    with VideoPostprocessor((16, 24)) as post, pytest.raises(ValueError, match="one video, got 2"):
        post.update(batch)


def test_an_unknown_aggregate_is_a_user_error():
    with pytest.raises(UserError, match="got 'median'"):
        VideoPostprocessor((16, 24), aggregate="median")
