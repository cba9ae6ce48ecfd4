"""From frame predictions to one video's result: masks, spill file, score histogram, reports."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch.nn import functional

from local2global.errors import UserError
from local2global.results.instances import (
    ScoreHistogram,
    Spill,
    VideoPostprocessor,
    decode_masks,
    encode,
    one_behind,
    write_tracks,
)
from local2global.structures import FramePredictions, Queries


def smooth_logits(count, height, width, seed=0):
    coarse = torch.randn((1, count, 3, 4), generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(coarse, (height, width), mode="bicubic")[0] - 0.5


@pytest.mark.parametrize("size", [(96, 160), (90, 171), (24, 40), (480, 640)])
def test_decoding_is_plain_bilinear_interpolation_on_a_frame_without_padding(size):
    """At (480, 640) masks are decoded one by one in their boxes, below that all in one call."""
    logits = smooth_logits(5, 24, 40)
    plain = functional.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    decoded = decode_masks(logits, (40.0, 24.0), size)
    assert decoded.shape == (5, *size)
    sure = plain.abs() > 1e-5
    assert torch.equal(decoded[sure], plain[sure] > 0)
    assert 0.05 < decoded.float().mean() < 0.95


@pytest.mark.parametrize("padding", [-math.inf, 50.0, math.nan])
def test_padding_never_leaks_in(padding):
    logits = smooth_logits(4, 24, 40)
    padded = torch.full((4, 32, 48), padding)
    padded[:, :24, :40] = logits
    assert torch.equal(
        decode_masks(padded, (40.0, 24.0), (96, 160)), decode_masks(logits, (40.0, 24.0), (96, 160))
    )


def test_a_fractional_extent_maps_the_frame_not_the_grid():
    """A frame of 10 x 6 input pixels is 2.5 x 1.5 mask pixels; the edge x = 1 is at 4 of 10 output pixels."""
    logits = torch.full((1, 2, 4), -math.inf)
    logits[0, :, :3] = torch.tensor([1.0, -1.0, -1.0])
    decoded = decode_masks(logits, (2.5, 1.5), (6, 10))
    assert decoded[0].tolist() == [[True] * 4 + [False] * 6] * 6


def test_an_empty_mask_and_no_mask_decode_to_nothing():
    assert not decode_masks(torch.full((2, 8, 8), -1.0), (8.0, 8.0), (32, 32)).any()
    assert decode_masks(torch.zeros((0, 8, 8)), (8.0, 8.0), (32, 32)).shape == (0, 32, 32)


def test_encoding_can_be_undone_by_pycocotools():
    mask = decode_masks(smooth_logits(1, 24, 40), (40.0, 24.0), (96, 160))[0]
    rle = encode(mask)
    assert rle["size"] == [96, 160]
    assert isinstance(rle["counts"], str)
    assert np.array_equal(coco_mask.decode(rle).astype(bool), mask.numpy())


def test_a_spilled_slot_comes_back_in_frame_order():
    spill = Spill()
    for frame in (0, 1, 5):
        spill.write(frame, {7: f"seven {frame}", 2: f"two {frame}"})
    assert list(spill.read(7)) == [(0, "seven 0"), (1, "seven 1"), (5, "seven 5")]
    assert list(spill.read(3)) == []
    spill.close()
    spill.close()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to see open files")
def test_the_spill_is_on_disk_has_no_name_and_goes_with_its_owner():
    def spilled():
        links = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
        names = {os.readlink(link) for link in links if link.is_symlink()}
        return {name for name in names if "etilqs" in name}

    assert not spilled()
    spill = Spill(cache_mib=1)
    for frame in range(200):
        spill.write(frame, dict.fromkeys(range(10), "x" * 2000))
    (name,) = spilled()
    assert name.endswith("(deleted)")
    assert sum(len(counts) for _, counts in spill.read(3)) == 400_000
    del spill
    gc.collect()
    assert not spilled()


@pytest.mark.parametrize("count", [1, 7, 25, 100])
def test_a_top_mean_is_exact_to_within_a_bin(count):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn((100, 6, 4), generator=generator).sigmoid()
    histogram = ScoreHistogram(6, 4, bins=64)
    for frame in scores:
        histogram.add(frame)
    exact = scores.sort(0, descending=True).values[:count].double().mean(0)
    assert (histogram.top_mean(count) - exact).abs().max() <= 1 / 64
    torch.testing.assert_close(histogram.mean(), scores.double().mean(0))
    assert torch.equal(histogram.max, scores.amax(0))
    if count == 100:
        torch.testing.assert_close(histogram.top_mean(count), exact)


def test_scores_of_exactly_zero_and_one_have_a_bin():
    histogram = ScoreHistogram(1, 2)
    histogram.add(torch.tensor([[0.0, 1.0]]))
    assert histogram.top_mean(1).tolist() == [[0.0, 1.0]]


def frame(scores, filled, mask_logit=2.0):
    """Predictions (N slots, K classes) by score; the masks of the `filled` slots are the left half."""
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


def test_a_frame_reports_confident_slots_that_have_a_mask():
    """Slot 2 is confident, slot 0 not, slot 1 has no mask."""
    with VideoPostprocessor((16, 24), threshold=0.3) as post:
        report = post.update(frame([[0.2, 0.1], [0.9, 0.1], [0.1, 0.6]], filled=[0, 2]))
    assert (report.index, report.ids.tolist(), report.labels.tolist()) == (0, [2], [1])
    assert report.scores.tolist() == pytest.approx([0.6])
    assert report.boxes.tolist() == [pytest.approx([0.08, 0.09, 0.1, 0.11])]
    expected = torch.zeros((16, 24), dtype=torch.bool)
    expected[:, :16] = True
    assert torch.equal(report.masks[0], expected)


def test_the_label_of_a_stream_is_that_of_the_running_mean():
    with VideoPostprocessor((16, 24)) as post:
        labels = [post.update(frame([s], [0])).labels.item() for s in ([0.9, 0.1], [0.3, 0.6], [0.1, 0.95])]
    assert labels == [0, 0, 1]


def test_a_late_newcomer_keeps_its_early_frames():
    """Slot 1 is confident on the last frame only; its masks were there before."""
    with VideoPostprocessor((16, 24)) as post:
        reports = [post.update(frame([[0.1], [s]], [1])).ids.tolist() for s in (0.1, 0.1, 0.8)]
        result = post.result(9)
        assert reports == [[], [], [1]]
        assert (result.video_id, result.size, result.length) == (9, (16, 24), 3)
        assert result.slots.tolist() == [1]
        masks = list(result.segmentations(0))
    assert [coco_mask.area(mask) for mask in masks] == [16 * 16] * 3


def test_absent_frames_are_none_and_slots_never_seen_are_dropped():
    with VideoPostprocessor((16, 24)) as post:
        for filled in ([], [0], [], []):
            post.update(frame([[0.7, 0.2], [0.9, 0.9]], filled))
        result = post.result(1)
        assert result.slots.tolist() == [0, 0]
        assert result.labels.tolist() == [0, 1]
        assert [mask is None for mask in result.segmentations(1)] == [True, False, True, True]


@pytest.mark.parametrize(("aggregate", "expected"), [("top_quarter", 0.8), ("max", 0.9), ("mean", 0.35)])
def test_a_video_score_is_class_score_times_mask_certainty(aggregate, expected):
    """Eight frames: the best quarter is two of them, .9 and .7; the masks' own pixels are sigmoid(2) sure."""
    with VideoPostprocessor((16, 24), aggregate=aggregate) as post:
        for value in (0.9, 0.2, 0.2, 0.2, 0.7, 0.2, 0.2, 0.2):
            post.update(frame([[value]], [0]))
        (found,) = post.result(1).scores.tolist()
    assert found == pytest.approx(expected / (1 + math.exp(-2)), abs=1e-6)


def test_the_best_pairs_are_kept_best_first():
    with VideoPostprocessor((16, 24), keep=3) as post:
        post.update(frame([[0.3, 0.8], [0.9, 0.1]], [0, 1]))
        result = post.result(1)
    pairs = list(zip(result.slots.tolist(), result.labels.tolist(), strict=True))
    assert pairs == [(1, 0), (0, 1), (0, 0)]


def test_streaming_without_a_file_reports_the_same_and_has_no_result():
    frames = [
        frame([[0.9, 0.1], [0.2, 0.4], [0.1, 0.1]], [0, 2]),
        frame([[0.2, 0.1], [0.2, 0.4], [0.5, 0.1]], [1, 2]),
    ]
    with VideoPostprocessor((16, 24)) as kept, VideoPostprocessor((16, 24), spill=False) as streamed:
        for predictions in frames:
            one, other = kept.update(predictions), streamed.update(predictions)
            assert torch.equal(one.ids, other.ids)
            assert torch.equal(one.masks, other.masks)
        with pytest.raises(ValueError, match="spill=True"):
            streamed.result(1)


def test_large_masks_decoded_a_few_at_a_time_keep_their_slots(monkeypatch):
    monkeypatch.setattr("local2global.results.instances.BATCH_PIXELS", 16 * 24)
    with VideoPostprocessor((16, 24)) as post:
        report = post.update(frame([[0.9], [0.2], [0.1], [0.6]], [0, 2, 3]))
        assert report.ids.tolist() == [0, 3]
        assert report.masks.shape == (2, 16, 24)
        assert sorted(post.result(1).slots.tolist()) == [0, 2, 3]


def test_a_video_without_frames_has_an_empty_result():
    with VideoPostprocessor((16, 24)) as post:
        assert len(post.result(1)) == 0


def test_two_videos_at_once_are_refused():
    one = frame([[0.5]], [0])
    both = FramePredictions(
        *(torch.cat([x, x]) for x in (one.logits, one.boxes, one.masks, one.extent)), queries=one.queries
    )
    with VideoPostprocessor((16, 24)) as post, pytest.raises(ValueError, match="one video, got 2"):
        post.update(both)


def test_an_unknown_aggregate_is_named():
    with pytest.raises(UserError, match="got 'median'"):
        VideoPostprocessor((16, 24), aggregate="median")


CLASSES = [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}]


def videos():
    for video in (3, 4):
        with VideoPostprocessor((16, 24), keep=2) as post:
            for filled in ([0], []):
                post.update(frame([[0.7, 0.2]], filled))
            yield post.result(video)


def test_tracks_are_written_as_a_youtube_vis_results_file(tmp_path):
    write_tracks(videos(), CLASSES, tmp_path / "tracks.json")
    found = json.loads((tmp_path / "tracks.json").read_text())
    assert [(entry["video_id"], entry["category_id"]) for entry in found] == [(3, 5), (3, 9), (4, 5), (4, 9)]
    assert found[0]["score"] == pytest.approx(0.7 / (1 + math.exp(-2)))
    first, second = found[0]["segmentations"]
    assert coco_mask.area(first) == 16 * 16
    assert second is None
    write_tracks([], CLASSES, tmp_path / "none.json")
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_a_failure_while_writing_leaves_the_old_file_alone(tmp_path):
    def failing():
        yield from videos()
        raise RuntimeError("video 5")

    (tmp_path / "tracks.json").write_text("old")
    with pytest.raises(RuntimeError, match="video 5"):
        write_tracks(failing(), CLASSES, tmp_path / "tracks.json")
    assert [path.name for path in tmp_path.iterdir()] == ["tracks.json"]
    assert (tmp_path / "tracks.json").read_text() == "old"


class _Clock:
    """Stands for `torch.cuda`: notes what is enqueued and on which stream."""

    def __init__(self):
        self.notes, self.stream_now = [], "main"

    def Stream(self, device):  # noqa: N802 - torch's name
        return types.SimpleNamespace(wait_event=lambda event: self.notes.append(("wait", event.of)))

    def Event(self):  # noqa: N802
        event = types.SimpleNamespace(of=None)
        event.record = lambda stream: setattr(event, "of", self.notes[-1][1])
        return event

    def current_stream(self, device):
        return "main"

    @contextlib.contextmanager
    def stream(self, stream):
        self.stream_now = "aside"
        yield
        self.stream_now = "main"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_on_a_gpu_a_frame_is_taken_when_the_next_is_under_way(monkeypatch, count):
    """Each waits for its own step, not for the next; nothing is lost, and the order is kept."""
    clock = _Clock()
    monkeypatch.setattr(torch, "cuda", clock)

    def steps():
        for t in range(count):
            assert clock.stream_now == "main"
            clock.notes.append(("step", t))
            yield t

    def take(t):
        assert clock.stream_now == "aside"
        clock.notes.append(("take", t))
        return 10 * t

    assert list(one_behind(steps(), take, torch.device("cuda"))) == [10 * t for t in range(count)]
    order = [("step", t) for t in range(count)]
    expected = [
        *order[:1],
        *(x for t in range(count) for x in (*order[t + 1 : t + 2], ("wait", t), ("take", t))),
    ]
    assert clock.notes == expected


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_error_in_a_frame_costs_none_before_it(monkeypatch, device):
    """It comes out where the frame's result would have."""
    monkeypatch.setattr(torch, "cuda", _Clock())

    def steps():
        yield from (0, 1)
        raise OSError("frame 2")

    torch.cuda.notes.append(("step", 0))
    taken = one_behind(steps(), lambda t: 10 * t, torch.device(device))
    assert [next(taken), next(taken)] == [0, 10]
    with pytest.raises(OSError, match="frame 2"):
        next(taken)
    assert list(taken) == []


def test_on_a_cpu_a_frame_is_taken_before_the_next_is_asked_for():
    notes = []
    steps = (notes.append(f"step {t}") or t for t in range(2))
    assert list(one_behind(steps, lambda t: notes.append(f"take {t}") or t, torch.device("cpu"))) == [0, 1]
    assert notes == ["step 0", "take 0", "step 1", "take 1"]
