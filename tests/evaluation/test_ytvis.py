"""YouTube-VIS scores against stored official numbers, COCOeval and hand-worked cases, and the evaluator."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from local2global.errors import UserError
from local2global.evaluation.masks import track_iou
from local2global.evaluation.tracks import occlusion_score, parse_results, parse_truth
from local2global.evaluation.ytvis import YTVISEvaluator, score
from local2global.results.rle import decode_counts
from local2global.structures import VideoResult

CASES = (
    "vis_basic",
    "vis_crowd_boundaries",
    "vis_frames_and_sizes",
    "vis_many_detections",
    "vis_no_predictions",
    "vis_ovis_like",
)


def rle(height, width, box):
    """The mask of the rectangle (x, y, w, h)."""
    mask = np.zeros((height, width), np.uint8, order="F")
    x, y, w, h = box
    mask[y : y + h, x : x + w] = 1
    actual = coco_mask.encode(mask)
    return {"size": [height, width], "counts": actual["counts"].decode()}


def area(mask):
    return float(coco_mask.area(mask)) if mask else None


def make_truth(tracks, *, categories=(1,), size=(20, 20), length=2):
    """YouTube-VIS annotations of (id, video, category, masks, further keys) tracks."""
    videos = sorted({track[1] for track in tracks})
    height, width = size
    return {
        "videos": [
            {"id": v, "height": height, "width": width, "length": length, "file_names": [f"clip{v}/0.jpg"]}
            for v in videos
        ],
        "categories": [{"id": c, "name": f"c{c}"} for c in categories],
        "annotations": [
            {
                "id": identity,
                "video_id": video,
                "category_id": category,
                "iscrowd": 0,
                "segmentations": masks,
                "areas": [area(m) for m in masks],
                **(further[0] if further else {}),
            }
            for identity, video, category, masks, *further in tracks
        ],
    }


def prediction(video, category, value, masks):
    return {"video_id": video, "category_id": category, "score": value, "segmentations": masks}


def iou_of(predictions, truths):
    return track_iou([track.masks for track in predictions], [track.masks for track in truths])


@pytest.fixture(scope="module")
def cases():
    shared = os.environ.get("L2G_SHARED")
    folder = (Path(shared) if shared else Path(__file__).parents[2].parent / "shared") / "eval_cases"
    if not folder.is_dir():
        pytest.skip("no evaluator test vectors: set L2G_SHARED to the folder that holds eval_cases")
    return folder


def load(cases, name):
    return (json.loads((cases / name / f"{part}.json").read_text()) for part in ("gt", "results", "scores"))


@pytest.mark.parametrize("name", CASES)
def test_scores_equal_the_official_ones(cases, name):
    truth, results, expected = load(cases, name)
    scores, official = score(truth, results), expected["ytvis"]
    assert scores.category_ids == official["category_ids"]
    for key, value in official["stats"].items():
        assert scores.stats[key] == pytest.approx(value, abs=1e-9), key
    per_category = {str(c): value for c, value in scores.per_category.items()}
    assert per_category == pytest.approx(official["per_category_AP"], abs=1e-9)
    precision = scores.precision.mean(1)[:, :, :4]
    np.testing.assert_allclose(precision, official["precision_mean_TKAM"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(scores.recall[:, :, :4], official["recall_TKAM"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_track_ious_equal_the_official_ones(cases, name):
    truth, results, expected = load(cases, name)
    predicted, true = parse_results(results, truth), parse_truth(truth)
    both = [key for key in predicted if true.get(key)]
    assert len(both) == len(expected["ytvis"]["track_iou"])
    for entry in expected["ytvis"]["track_iou"]:
        key = entry["video_id"], entry["category_id"]
        assert [track.id for track in predicted[key]] == entry["pred_index"]
        assert [track.id for track in true[key]] == entry["gt_ids"]
        np.testing.assert_allclose(iou_of(predicted[key], true[key]), entry["iou"], rtol=0, atol=1e-9)


def test_occlusion_scores_equal_those_of_the_ovis_scorer(cases):
    truth, results, expected = load(cases, "vis_ovis_like")
    actual = score(truth, results).stats
    assert actual == pytest.approx(expected["ovis"]["stats"], abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_one_frame_videos_score_like_images_in_cocoeval(seed):
    """On one frame the definition is COCO's, except for crowds and area ranges, which are set in COCOeval here."""
    draw = np.random.default_rng(seed)
    size = (300, 400)

    def box():
        w, h = draw.integers(5, 300, 2)
        return [
            int(v) for v in (draw.integers(0, 400 - w), draw.integers(0, max(1, 300 - h)), w, min(h, 300))
        ]

    def nudged(b):
        x, y, w, h = b
        dx, dy = draw.integers(-w // 4, w // 4 + 1), draw.integers(-h // 4, h // 4 + 1)
        return [int(np.clip(x + dx, 0, 399)), int(np.clip(y + dy, 0, 299)), w, h]

    boxes = [(v, int(draw.integers(1, 4)), box()) for v in range(1, 9) for _ in range(5)]
    truth = make_truth(
        [(i, v, c, [rle(*size, b)]) for i, (v, c, b) in enumerate(boxes, 1)],
        categories=(1, 2, 3, 4),
        size=size,
        length=1,
    )
    results = []
    for v, c, b in boxes:
        for _ in range(draw.integers(0, 4)):
            label = c if draw.random() < 0.8 else int(draw.integers(1, 5))
            results.append(prediction(v, label, round(float(draw.random()), 1), [rle(*size, nudged(b))]))
    coco, images = COCO(), truth["videos"]
    coco.dataset = {
        "images": images,
        "categories": truth["categories"],
        "annotations": [
            {**a, "image_id": a["video_id"], "segmentation": a["segmentations"][0], "area": a["areas"][0]}
            for a in truth["annotations"]
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        actual = coco.loadRes(
            [{**r, "image_id": r["video_id"], "segmentation": r["segmentations"][0]} for r in results]
        )
        cocoeval = COCOeval(coco, actual, "segm")
        cocoeval.params.areaRng = [[0, 1e10], [0, 128**2], [128**2, 256**2], [256**2, 1e10]]
        cocoeval.evaluate()
        cocoeval.accumulate()
        cocoeval.summarize()
    ours = score(truth, results)
    assert 0.1 < ours.stats["AP"] < 0.9
    np.testing.assert_allclose(ours.precision, cocoeval.eval["precision"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours.recall, cocoeval.eval["recall"], rtol=0, atol=1e-9)
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    np.testing.assert_allclose([ours.stats[name] for name in names], cocoeval.stats, rtol=0, atol=1e-9)


def test_track_iou_sums_over_frames_before_dividing():
    """Frame 0: 8 and 8 pixels, 4 common; frame 1: 4 pixels of the truth only: 4 / (12 + 4)."""
    truth = make_truth([(1, 1, 1, [rle(20, 20, (0, 0, 4, 2)), rle(20, 20, (0, 0, 2, 2))])])
    results = [prediction(1, 1, 0.5, [rle(20, 20, (2, 0, 4, 2)), None])]
    predicted, true = parse_results(results, truth)[1, 1], parse_truth(truth)[1, 1]
    assert iou_of(predicted, true).tolist() == [[4 / 16]]


def test_a_frame_with_masks_of_different_sizes_adds_nothing():
    truth = make_truth([(1, 1, 1, [rle(20, 20, (0, 0, 4, 2)), rle(20, 20, (0, 0, 4, 2))])])
    results = [prediction(1, 1, 0.5, [rle(20, 20, (0, 0, 4, 2)), rle(10, 10, (0, 0, 9, 9))])]
    predicted, true = parse_results(results, truth)[1, 1], parse_truth(truth)[1, 1]
    assert iou_of(predicted, true).tolist() == [[1.0]]


def test_a_true_track_with_id_zero_never_counts_as_found():
    mask = [rle(20, 20, (0, 0, 5, 5))] * 2
    results = [prediction(1, 1, 0.9, mask)]
    assert score(make_truth([(7, 1, 1, mask)]), results).stats["AP"] == pytest.approx(1)
    assert score(make_truth([(0, 1, 1, mask)]), results).stats["AP"] == 0


def test_iscrowd_is_ignored_and_the_ignore_key_is_not():
    mask = [rle(20, 20, (0, 0, 5, 5))] * 2
    actual = prediction(1, 1, 0.9, mask)
    assert score(make_truth([(7, 1, 1, mask, {"iscrowd": 1})]), [actual]).stats["AP"] == -1
    assert score(make_truth([(7, 1, 1, mask, {"ignore": 1})]), [actual]).stats["AP"] == pytest.approx(1)


def test_a_false_positive_with_a_higher_score_halves_the_precision():
    right, wrong = [rle(20, 20, (0, 0, 5, 5))] * 2, [rle(20, 20, (10, 10, 5, 5))] * 2
    results = [prediction(1, 1, 0.2, right), prediction(1, 1, 0.9, wrong)]
    stats = score(make_truth([(7, 1, 1, right)]), results).stats
    assert stats["AP"] == pytest.approx(0.5)
    assert (stats["AR1"], stats["AR10"]) == (0, 1)


def test_no_predictions_score_zero_where_there_is_truth_and_minus_one_elsewhere():
    stats = score(make_truth([(7, 1, 1, [rle(20, 20, (0, 0, 5, 5))] * 2)]), []).stats
    assert (stats["AP"], stats["APs"], stats["APl"], stats["AR10"]) == (0, 0, -1, 0)


def test_areas_of_more_than_255_masks_do_not_overflow():
    """300 masks of 60 x 60; pycocotools' own area() overflows beyond 255 masks under numpy 2."""
    mask = [rle(64, 64, (0, 0, 60, 60))] * 300
    truth = make_truth([(1, 1, 1, mask, {"areas": [3600] * 300})], size=(64, 64), length=300)
    (track,) = parse_results([prediction(1, 1, 0.5, mask)], truth)[1, 1]
    assert track.area == 3600
    assert track.masks.areas.tolist() == [3600] * 300


def test_decoded_runs_equal_those_that_pycocotools_encoded():
    draw = np.random.default_rng(0)
    for density in (0.01, 0.5, 0.99):
        mask = np.asfortranarray(draw.random((61, 47)) < density).astype(np.uint8)
        flat = mask.flatten(order="F")
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
        expected = np.diff([0, *edges, flat.size])
        (runs,) = decode_counts([coco_mask.encode(mask)["counts"]])
        assert runs.tolist() == expected.tolist()


def test_occlusion_of_a_track_is_the_mean_of_its_most_occluded_half():
    levels = ["no_occlusion", "severe_occlusion", None, "slight_occlusion"]
    assert occlusion_score(levels) == (0.75 + 0.25) / 2
    assert occlusion_score([None]) == 0


GOOD = rle(20, 20, (0, 0, 5, 5))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"video_id": 99}, "entry 1: video 99"),
        ({"score": float("nan")}, "entry 1: score nan"),
        ({"score": "high"}, "entry 1: score 'high'"),
        ({"segmentations": None}, "entry 1 .video 1.: expected a list"),
        ({"segmentations": [GOOD, {**GOOD, "counts": "5~"}]}, "entry 1 .video 1., frame 1: malformed"),
        ({"segmentations": [GOOD, {**GOOD, "size": [20, 21]}]}, "frame 1: .* cover 400 pixels"),
        ({"segmentations": [GOOD, {**GOOD, "counts": GOOD["counts"] + "P"}]}, "frame 1: .*not a run-length"),
        ({"segmentations": [GOOD, {"size": [20, 20], "counts": [500, -100]}]}, "frame 1: .*negative"),
        ({"segmentations": [GOOD, {"size": [20, 20]}]}, "frame 1: .*no 'counts'"),
        ({"segmentations": [GOOD, "mask"]}, "frame 1: malformed"),
    ],
)
def test_an_unusable_entry_is_named(change, words):
    truth = make_truth([(7, 1, 1, [GOOD, GOOD])])
    entry = prediction(1, 1, 0.9, [GOOD, GOOD])
    with pytest.raises(UserError, match=words):
        score(truth, [entry, {**entry, **change}])


def test_a_missing_key_is_named():
    entry = prediction(1, 1, 0.9, [GOOD, GOOD])
    del entry["score"]
    with pytest.raises(UserError, match="entry 0: no key `score`"):
        score(make_truth([(7, 1, 1, [GOOD, GOOD])]), [entry])


def test_predictions_of_other_categories_are_dropped():
    truth = make_truth([(7, 1, 1, [GOOD, GOOD])])
    results = [prediction(1, 1, 0.5, [GOOD, GOOD]), prediction(1, 8, 0.9, [GOOD, GOOD])]
    assert score(truth, results).stats["AP"] == pytest.approx(1)


def test_some_of_the_videos_are_scored_alone():
    other = rle(20, 20, (10, 10, 5, 5))
    truth = make_truth([(7, 1, 1, [GOOD, GOOD]), (8, 2, 1, [other, other])])
    results = [prediction(1, 1, 0.9, [GOOD, GOOD]), prediction(2, 1, 0.9, [GOOD, GOOD])]
    scores = score(truth, results)
    assert [round(scores.stats_of(videos)["AP50"], 9) for videos in ([1], [2])] == [1, 0]
    assert scores.stats_of([1, 2]) == scores.stats


def video_result(video, tracks):
    """A result of (slot, label, score, masks) tracks."""
    masks = {slot: list(actual) for slot, _, _, actual in tracks}
    return VideoResult(
        video,
        (20, 20),
        2,
        torch.tensor([slot for slot, *_ in tracks]),
        torch.tensor([label for _, label, *_ in tracks]),
        torch.tensor([value for *_, value, _ in tracks]),
        lambda slot: iter(masks[slot]),
    )


CLASSES = [{"id": 5, "name": "cat"}, {"id": 1, "name": "dog"}]


def test_the_evaluator_returns_percent_and_writes_the_scored_results(tmp_path):
    truth = make_truth([(7, 1, 1, [GOOD, GOOD]), (8, 2, 1, [GOOD, None])])
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    evaluator = YTVISEvaluator(str(tmp_path / "truth.json"), CLASSES, tmp_path / "out")
    evaluator.reset()
    evaluator.process([], [video_result(1, [(3, 1, 0.9, [GOOD, GOOD]), (3, 0, 0.4, [GOOD, GOOD])])])
    evaluator.process([], [video_result(2, [(0, 1, 0.8, [GOOD, None])])])
    scores = evaluator.evaluate()["segm"]
    assert list(scores) == ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10"]
    assert scores["AP"] == pytest.approx(100)
    assert scores["APl"] == -1
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(e["video_id"], e["category_id"]) for e in written] == [(1, 1), (1, 5), (2, 1)]
    assert written[2]["segmentations"] == [GOOD, None]
    assert score(truth, written).stats["AP"] == pytest.approx(scores["AP"] / 100)
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_a_video_repeated_by_a_padded_sampler_counts_once():
    class Dataset:
        def truth(self):
            return make_truth([(7, 1, 1, [GOOD, GOOD])])

    evaluator = YTVISEvaluator(Dataset(), CLASSES)
    for _ in range(2):
        evaluator.process([], [video_result(1, [(3, 1, 0.9, [GOOD, GOOD])])])
    assert evaluator.evaluate()["segm"]["AP50"] == pytest.approx(100)
    evaluator.reset()
    assert evaluator.evaluate()["segm"]["AP50"] == 0


def test_classes_without_a_category_in_the_truth_are_refused():
    with pytest.raises(UserError, match="none of the model's category ids"):
        YTVISEvaluator(make_truth([(7, 1, 1, [GOOD, GOOD])]), [{"id": 44, "name": "dog"}])


def test_a_missing_annotation_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json: no such file"):
        YTVISEvaluator(tmp_path / "nowhere.json", CLASSES)


def _rank(rank, store, queue):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    other = rle(20, 20, (10, 10, 5, 5))
    evaluator = YTVISEvaluator(make_truth([(7, 1, 1, [GOOD, GOOD]), (8, 2, 1, [other, other])]), CLASSES)
    evaluator.process([], [video_result(1, [(3, 1, 0.9, [GOOD, GOOD])])])
    if rank == 1:
        evaluator.process([], [video_result(2, [(0, 1, 0.8, [other, other])])])
    queue.put((rank, evaluator.evaluate()))
    dist.destroy_process_group()


def test_two_ranks_score_like_one(tmp_path):
    """Video 1 is processed on both ranks, video 2 on the second; only the first returns scores."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    ranks = [context.Process(target=_rank, args=(r, tmp_path / "store", queue)) for r in range(2)]
    for process in ranks:
        process.start()
    answers = dict(queue.get(timeout=60) for _ in ranks)
    for process in ranks:
        process.join()
    assert answers[1] == {}
    assert answers[0]["segm"]["AP"] == pytest.approx(100)


class Parts:
    """A dataset of two videos whose truth also exists in parts."""

    def __init__(self, annotated):
        mask = [GOOD, GOOD]
        self.whole = make_truth([(1, 1, 1, mask), (2, 2, 1, mask)])
        self.whole["annotations"] = self.whole["annotations"] if annotated else None

    def truth(self):
        return self.whole

    def truth_of_parts(self):
        whole = make_truth([(1, 1, 1, [GOOD, GOOD]), (2, 2, 1, [GOOD, GOOD])])
        return {
            name: {
                **whole,
                "videos": [v for v in whole["videos"] if v["id"] == video],
                "annotations": [a for a in whole["annotations"] if a["video_id"] == video],
            }
            for name, video in (("short", 1), ("long", 2))
        }


@pytest.mark.parametrize("annotated", [True, False])
def test_parts_of_the_videos_are_scored_apart(annotated):
    """YouTube-VIS 2022: the track of the short video is found, that of the long one is not."""
    evaluator = YTVISEvaluator(Parts(annotated), [{"id": 1, "name": "a"}])
    evaluator.videos = {1: [prediction(1, 1, 0.5, [GOOD, GOOD])], 2: []}
    scores = evaluator.evaluate()
    assert {task: round(values["AP"]) for task, values in scores.items()} == {
        **({"segm": 50} if annotated else {}),
        "segm_short": 100,
        "segm_long": 0,
        "segm_mean": 50,
    }
    assert scores["segm_mean"]["APl"] == -1


@pytest.mark.parametrize("key", ["videos", "categories"])
def test_ids_of_two_kinds_are_refused(key):
    truth = make_truth([(1, 1, 1, [GOOD, GOOD])])
    truth[key] = [*truth[key], {**truth[key][0], "id": "x"}]
    with pytest.raises(UserError, match=f"truth, {key}: some ids are numbers and some are texts"):
        score(truth, [])


def test_polygons_in_a_frame_larger_than_any_image_are_refused():
    """Pycocotools needs four bytes a pixel to join two polygons: 4 GB for this frame."""
    truth = make_truth([(1, 1, 1, [GOOD, GOOD])])
    truth["videos"][0].update(height=32768, width=32768)
    truth["annotations"][0]["segmentations"] = [[[0, 0, 9, 0, 9, 9]] * 2] * 2
    with pytest.raises(UserError, match="a polygon in a frame of 32768 x 32768, the limit is"):
        score(truth, [])
