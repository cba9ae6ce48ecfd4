"""VPQ and STQ: stored official numbers, every rule on a few pixels, a second scorer, errors.

A picture is a row of pixels, one letter each; a letter is an id and `.` is void.  `kinds` gives the category of an id.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter

import numpy as np
import pytest

import plain_scorers
from local2global.errors import UserError
from local2global.evaluation.oddities import Oddities
from local2global.evaluation.panoptic import Segment, joint_histogram, overlap_frame
from local2global.evaluation.panoptic_files import (
    count_videos,
    open_maps,
    parse_predictions,
    parse_truth,
    score_files,
)
from local2global.evaluation.vps import count_matches, count_tubes, count_video, summarize
from local2global.results.segment_ids import read_ids, write_ids

CASES = ("vps_basic", "vps_exact_half", "vps_missing_segments", "vps_short_videos")
SKY, GRASS, CAT, DOG = range(4)
THINGS = np.array([False, False, True, True])
CATEGORIES = [{"id": k, "isthing": int(thing)} for k, thing in enumerate(THINGS)]


def paint(picture):
    return np.array([[0 if pixel == "." else ord(pixel) for pixel in picture]], np.uint32)


def listing(picture, kinds, crowd="", unlisted="", areas=None, extra=""):
    """The list of one frame in the order of `kinds`, with the painted areas unless `areas` gives others."""
    pixels = Counter(picture)
    return [
        Segment(ord(name), kind, (areas or {}).get(name, pixels[name]), name in crowd)
        for name, kind in kinds.items()
        if (name in pixels and name not in unlisted) or name in extra
    ]


def overlaps(truth, prediction, kinds, predicted_kinds=None, **how):
    """One video from the pictures of its frames."""
    frames = []
    for t, (true, predicted) in enumerate(zip(truth, prediction, strict=True)):
        options = {name: value[t] if isinstance(value, tuple) else value for name, value in how.items()}
        kinds_now = kinds[t] if isinstance(kinds, tuple) else kinds
        guesses = kinds_now if predicted_kinds is None else predicted_kinds
        lists = listing(true, kinds_now, **options), listing(predicted, guesses)
        frames.append(overlap_frame(f"video v, frame {t}", paint(true), paint(predicted), *lists))
    return frames


def matches(truth, prediction, kinds, predicted_kinds=None, length=1, **how):
    """{category: (iou, tp, fp, fn)} of the categories with a count."""
    frames = overlaps(truth, prediction, kinds, predicted_kinds, **how)
    counts = count_matches("v", frames, length, len(CATEGORIES))
    return {k: tuple(row) for k, row in enumerate(counts.tolist()) if any(row)}


# Joint histograms.


def test_a_joint_histogram_counts_pairs():
    """Of aab / xyy: a meets x once and y once, b meets y once."""
    pairs = [(chr(g), chr(p), n) for (g, p), n in joint_histogram(paint("aab"), paint("xyy")).items()]
    assert pairs == [("a", "x", 1), ("a", "y", 1), ("b", "y", 1)]


def test_a_joint_histogram_of_noise_equals_np_unique():
    draw = np.random.default_rng(0)
    truth, prediction = draw.integers(0, 1 << 24, (2, 30, 40), dtype=np.uint32)
    truth[:, :20] %= 3
    keys, counts = np.unique(truth.astype(np.int64) * (1 << 24) + prediction, return_counts=True)
    pairs = joint_histogram(truth, prediction)
    assert [g * (1 << 24) + p for g, p in pairs] == keys.tolist()
    assert list(pairs.values()) == counts.tolist()


# VPQ, rule by rule.


def test_an_iou_of_one_half_is_no_match():
    """Cat a: 2 shared of 4: missed, and its prediction is wrong; b: 2 shared of 4, likewise."""
    assert matches(["aaaabb"], ["aabbbb"], {"a": CAT, "b": DOG}) == {CAT: (0, 0, 1, 1), DOG: (0, 0, 1, 1)}


def test_more_than_one_half_is_a_match():
    """Cat a: 2 of 3."""
    assert matches(["aaabbb"], ["aabbbb"], {"a": CAT, "b": DOG}) == {
        CAT: (2 / 3, 1, 0, 0),
        DOG: (3 / 4, 1, 0, 0),
    }


def test_ids_need_not_agree_and_categories_must():
    assert matches(["aabb"], ["ccdd"], {"a": CAT, "b": CAT}, {"c": CAT, "d": DOG}) == {
        CAT: (1, 1, 0, 1),
        DOG: (0, 0, 1, 0),
    }


def test_predicted_pixels_on_void_do_not_count_in_the_union():
    assert matches(["aaa..."], ["aaaaaa"], {"a": CAT}) == {CAT: (1, 1, 0, 0)}


def test_an_unmatched_prediction_is_a_false_positive_unless_more_than_half_is_on_void():
    assert matches(["b."], ["cc"], {"b": SKY}, {"c": CAT}) == {SKY: (0, 0, 0, 1), CAT: (0, 0, 1, 0)}
    assert matches(["b.."], ["ccc"], {"b": SKY}, {"c": CAT}) == {SKY: (0, 0, 0, 1)}


def test_a_crowd_is_no_false_negative_and_excuses_predictions_of_its_category_only():
    kinds = {"a": CAT, "b": SKY}
    assert matches(["aaab"], ["cccc"], kinds, {"c": CAT}, crowd="a") == {SKY: (0, 0, 0, 1)}
    assert matches(["aaab"], ["cccc"], kinds, {"c": DOG}, crowd="a") == {SKY: (0, 0, 0, 1), DOG: (0, 0, 1, 0)}


def test_pixels_on_void_and_on_a_crowd_are_added():
    assert matches(["a.bb"], ["cccc"], {"a": CAT, "b": SKY}, {"c": CAT}, crowd="a")[CAT] == (0, 0, 1, 0)
    assert CAT not in matches(["a..bb"], ["ccccc"], {"a": CAT, "b": SKY}, {"c": CAT}, crowd="a")


def test_of_several_crowds_of_a_category_the_last_listed_one_excuses():
    """Prediction c lies on a, which is listed first."""
    assert matches(["aab"], ["ccd"], {"a": CAT, "b": CAT}, {"c": CAT, "d": SKY}, crowd="ab")[CAT] == (
        0,
        0,
        1,
        0,
    )
    assert CAT not in matches(["aab"], ["ccd"], {"b": CAT, "a": CAT}, {"c": CAT, "d": SKY}, crowd="ab")


def test_a_window_takes_category_and_crowd_from_the_first_frame_that_lists_an_id():
    kinds = ({"a": CAT}, {"a": DOG})
    assert matches(["a", "a"], ["c", "c"], kinds, {"c": CAT}, length=2) == {CAT: (1, 1, 0, 0)}
    assert matches(["a", "a"], ["c", "c"], kinds, {"c": CAT})[DOG] == (0, 0, 0, 1)
    assert matches(["a", "a"], ["c", "c"], {"a": CAT}, {"c": DOG}, length=2, crowd=("a", "")) == {
        DOG: (0, 0, 1, 0)
    }
    assert matches(["a", "a"], ["c", "c"], {"a": CAT}, {"c": DOG}, length=2, crowd=("", "a"))[CAT] == (
        0,
        0,
        0,
        1,
    )


def test_a_change_of_id_breaks_the_tube_but_not_the_frames():
    """Two frames of two pixels: each frame is right by itself; as one tube each half has IoU 2 / 4."""
    kinds = {"x": CAT, "y": CAT}
    assert matches(["aa", "aa"], ["xx", "yy"], {"a": CAT}, kinds) == {CAT: (2, 2, 0, 0)}
    assert matches(["aa", "aa"], ["xx", "yy"], {"a": CAT}, kinds, length=2) == {CAT: (0, 0, 2, 1)}


def test_windows_start_at_every_frame():
    assert matches(["a"] * 4, ["a"] * 4, {"a": CAT}, length=2) == {CAT: (3, 3, 0, 0)}
    assert matches(["a"] * 4, ["a"] * 4, {"a": CAT}, length=4) == {CAT: (1, 1, 0, 0)}
    assert matches(["a"] * 3, ["a"] * 3, {"a": CAT}, length=4) == {}


def test_true_areas_are_the_listed_ones():
    """Painted 2, listed 6: IoU 2 / (2 + 6 - 2)."""
    assert matches(["aa"], ["aa"], {"a": CAT}, areas={"a": 6}) == {CAT: (0, 0, 1, 1)}
    assert matches(["aa"], ["aa"], {"a": CAT}, areas={"a": 3}) == {CAT: (2 / 3, 1, 0, 0)}


def test_a_true_id_that_is_painted_but_not_listed_is_neither_void_nor_a_segment():
    assert matches(["aaab"], ["cccb"], {"a": CAT, "b": SKY}, {"c": CAT, "b": SKY}, unlisted="a") == {
        CAT: (0, 0, 1, 0),
        SKY: (1, 1, 0, 0),
    }


def test_a_true_id_listed_on_one_frame_of_a_window_counts_on_all_of_them():
    """Listed on the second frame with its area of 1 there; painted on both: 2 shared of 2 + 1 - 2 would be above 1."""
    how = {"unlisted": ("a", ""), "areas": {"a": 3}}
    assert matches(["a", "a"], ["c", "c"], {"a": CAT}, {"c": CAT}, length=2, **how) == {CAT: (2 / 3, 1, 0, 0)}


def test_a_true_id_that_is_listed_but_not_painted_is_a_false_negative():
    assert matches(["a"], ["a"], {"a": SKY, "b": CAT}, {"a": SKY}, extra="b") == {
        SKY: (1, 1, 0, 0),
        CAT: (0, 0, 0, 1),
    }


def test_stored_areas_too_small_for_what_is_painted_are_an_error():
    with pytest.raises(
        UserError, match="video v, 1 frames from frame 0: the stored areas of truth id 97 are smaller"
    ):
        matches(["aaaa"], ["aaaa"], {"a": CAT}, areas={"a": 2})


# STQ, rule by rule.


def stq(truth, prediction, kinds, predicted_kinds=None, **how):
    counts = count_tubes(overlaps(truth, prediction, kinds, predicted_kinds, **how), THINGS)
    empty = {length: np.zeros((4, 4)) for length in (1, 2, 4, 6, 8)}
    video = type("Counts", (), {"windows": empty, "tubes": counts})
    return summarize([video], CATEGORIES)["stq"]


def test_sq_is_a_mean_over_classes_that_occur():
    """Sky 2 of 3, grass 1 of 2."""
    scores = stq(["ssgg"], ["sssg"], {"s": SKY, "g": GRASS})
    assert scores["SQ"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert (scores["AQ"], scores["STQ"], scores["num_gt_tubes_per_seq"]) == (0, 0, [0])


def test_unlabelled_predictions_on_labelled_truth_are_a_class_of_iou_zero():
    """Sky 3 of 4, and unlabelled 0 of 1."""
    assert stq(["ssss"], ["sss."], {"s": SKY})["SQ"] == pytest.approx((3 / 4 + 0) / 2)


def test_unlabelled_truth_is_dropped():
    assert stq(["ss."], ["sss"], {"s": SKY})["SQ"] == 1
    assert stq(["ssa"], ["sss"], {"s": SKY, "a": CAT}, unlisted="a")["SQ"] == 1
    assert stq(["..."], ["sss"], {"s": SKY})["SQ"] is None


def test_aq_weighs_each_piece_of_a_tube_by_its_iou():
    """Stuff comes first; cat a has 4 pixels, found as x (2 of 4) and y (2 of 4): (2 * 2/4 + 2 * 2/4) / 4."""
    kinds = {"s": SKY, "x": CAT, "y": CAT}
    scores = stq(["saa", "saa"], ["sxx", "syy"], {"s": SKY, "a": CAT}, kinds)
    assert scores["AQ"] == pytest.approx(0.5)
    assert scores["STQ"] == pytest.approx(math.sqrt(0.5 * scores["SQ"]))
    assert (scores["num_gt_tubes_per_seq"], scores["length_per_seq"]) == ([1], [2])


def test_categories_of_tubes_need_not_agree():
    assert stq(["sa"], ["sx"], {"s": SKY, "a": CAT}, {"s": SKY, "x": DOG})["AQ"] == 1


def test_predicted_tubes_keep_pixels_on_stuff_and_on_unlabelled_truth():
    """Predicted x has 4 pixels, one of them on the cat: 1 * 1/4 / 1."""
    assert stq(["ss.a"], ["xxxx"], {"s": SKY, "a": CAT}, {"x": CAT})["AQ"] == pytest.approx(1 / 4)


def test_the_first_listed_segment_counts_as_a_crowd_if_it_is_a_thing():
    """Its pixels are left out on both sides: of x, the pixel on b remains."""
    scores = stq(["aab"], ["xxx"], {"a": CAT, "b": CAT}, {"x": CAT})
    assert (scores["AQ"], scores["num_gt_tubes_per_seq"]) == (1, [1])


def test_an_id_whose_category_changes_is_two_tubes():
    kinds = ({"s": SKY, "a": CAT}, {"s": SKY, "a": DOG})
    assert stq(["sa", "sa"], ["sx", "sx"], kinds, {"s": SKY, "x": CAT})["num_gt_tubes_per_seq"] == [2]


# Averages.


def test_a_group_without_a_class_is_none_and_the_official_program_fails():
    scores = summarize([count_video("v", overlaps(["s"], ["s"], {"s": SKY}), THINGS)], CATEGORIES)
    one = scores["vpq_windows"]["1"]
    assert one["stuff"] == {"pq": 1, "sq": 1, "rq": 1, "n": 1}
    assert (one["thing"], one["script_error"]) == (None, "ZeroDivisionError")
    assert one["per_class"] == {"0": {"pq": 1, "sq": 1, "rq": 1, "iou": 1, "tp": 1, "fp": 0, "fn": 0}}
    assert scores["VPQ"] == {"all": None, "thing": None, "stuff": None}  # no window of two frames


def test_both_averages_are_means_over_windows_in_percent():
    """Eight frames; every second one swaps the ids of two cats, so only windows of one frame match."""
    frames = ["sab", "sba"] * 4
    kinds = {"s": SKY, "a": CAT, "b": CAT}
    scores = summarize([count_video("v", overlaps(["sab"] * 8, frames, kinds), THINGS)], CATEGORIES)
    assert scores["VPQ"] == {"all": 62.5, "thing": 25, "stuff": 100}
    assert scores["VPQ_script_final_5_windows"] == {"all": 60, "thing": 20, "stuff": 100}


# The stored official numbers, and files.


def same(ours, theirs, where=""):
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs), where
        for key in theirs:
            same(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), where
        for k, pair in enumerate(zip(ours, theirs, strict=True)):
            same(*pair, f"{where}/{k}")
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, abs=1e-9, rel=0), where
    else:
        assert ours == theirs, where


@pytest.mark.parametrize("case", CASES)
def test_every_number_of_a_case_equals_the_official_one(shared, case):
    folder = shared / "eval_cases" / case
    scores, oddities = score_files(
        folder / "gt.json", folder / "pred.json", folder / "maps.npz", folder / "maps.npz", strict=True
    )
    expected = json.loads((folder / "scores.json").read_text())
    same(scores, {key: value for key, value in expected.items() if key not in ("case", "seed")})
    assert oddities == []


def make_files(folder, truth=("sa", "sa"), prediction=("sa", "sa"), kinds=None):
    """A case of one video, "v", on disk: both JSONs, both folders of PNGs, and an .npz."""
    kinds = kinds or {"s": SKY, "a": CAT}

    def entries(pictures):
        frames = []
        for t, picture in enumerate(pictures):
            segments = [
                {"id": s.id, "category_id": s.category, "area": s.area, "iscrowd": 0}
                for s in listing(picture, kinds)
            ]
            frames.append({"file_name": f"{t:08d}.jpg", "segments_info": segments})
        return [{"video_id": "v", "annotations": frames}]

    images = [{"id": f"{t:08d}", "file_name": f"{t:08d}.jpg"} for t in range(len(truth))]
    content = {"videos": [{"video_id": "v", "images": images}], "categories": CATEGORIES}
    (folder / "gt.json").write_text(json.dumps({**content, "annotations": entries(truth)}))
    (folder / "pred.json").write_text(json.dumps({"annotations": entries(prediction)}))
    for side, pictures in (("gt", truth), ("pred", prediction)):
        (folder / side / "v").mkdir(parents=True)
        for t, picture in enumerate(pictures):
            write_ids(paint(picture), folder / side / "v" / f"{t:08d}.png")
    maps = {
        f"{side}/v": np.stack([paint(p) for p in ps]) for side, ps in (("gt", truth), ("pred", prediction))
    }
    np.savez(folder / "maps.npz", **maps)
    return folder


def score(folder, **how):
    return score_files(folder / "gt.json", folder / "pred.json", folder / "gt", folder / "pred", **how)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_pngs_and_npz_give_the_same(tmp_path):
    folder = make_files(tmp_path, prediction=("sa", "aa"))
    maps = folder / "maps.npz"
    assert score(folder) == score_files(folder / "gt.json", folder / "pred.json", maps, maps)
    assert score(folder)[0]["vpq_windows"]["1"]["all"]["pq"] == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_a_map_is_read_back_as_it_was_written(tmp_path):
    ids = np.array([[0, 255, 256], [65536, 0xABCDEF, (1 << 24) - 1]], np.uint32)
    write_ids(ids, tmp_path / "map.png")
    assert np.array_equal(read_ids(tmp_path / "map.png"), ids)
    assert [path.name for path in tmp_path.iterdir()] == ["map.png"]


def test_frames_and_videos_are_found_by_name(tmp_path):
    folder = make_files(tmp_path, truth=("sa", "as"), prediction=("sa", "as"))
    edit(folder / "pred.json", lambda content: content["annotations"][0]["annotations"].reverse())
    assert score(folder)[0]["stq"]["STQ"] == pytest.approx(1)


def drop_map(folder):
    (folder / "pred" / "v" / "00000001.png").unlink()


def cut_map(folder):
    path = folder / "gt" / "v" / "00000000.png"
    path.write_bytes(path.read_bytes()[:40])


def widen_map(folder):
    write_ids(paint("saa"), folder / "pred" / "v" / "00000000.png")


def repaint(folder):
    write_ids(paint("sb"), folder / "pred" / "v" / "00000000.png")


def in_predictions(change):
    return lambda folder: edit(folder / "pred.json", change)


def in_truth(change):
    return lambda folder: edit(folder / "gt.json", change)


def first(content):
    return content["annotations"][0]["annotations"][0]


ERRORS = {
    r"00000001\.png: no such panoptic PNG": drop_map,
    r"00000000\.png: not a readable image": cut_map,
    r"video v, frame 00000000: truth and prediction are 1x2 and 1x3 pixels": widen_map,
    r"frame 00000000: predicted id 98 is painted but not listed": repaint,
    r"frame 00000000: predicted id 7 is listed in segments_info but has no pixel": in_predictions(
        lambda c: first(c)["segments_info"].append({"id": 7, "category_id": 0})
    ),
    r"predictions: no annotations of video v": in_predictions(lambda c: c["annotations"].clear()),
    r"predictions: video w is not in the truth": in_predictions(
        lambda c: c["annotations"].append({"video_id": "w", "annotations": []})
    ),
    r"predictions: video v is there twice": in_predictions(
        lambda c: c["annotations"].append(c["annotations"][0])
    ),
    r"predictions: video v: frame 00000001 has no annotations": in_predictions(
        lambda c: c["annotations"][0]["annotations"].pop()
    ),
    r"predictions: video v: frame 5 is not among": in_predictions(
        lambda c: c["annotations"][0]["annotations"].append({"file_name": "5.png", "segments_info": []})
    ),
    r"predictions: video v: a frame needs a file_name": in_predictions(lambda c: first(c).pop("file_name")),
    r"id 115 has category 99, which the truth does not list": in_predictions(
        lambda c: first(c)["segments_info"][0].update(category_id=99)
    ),
    r"predictions: video v, frame 00000000: an entry of segments_info needs id and category_id": in_predictions(
        lambda c: first(c)["segments_info"][0].pop("id")
    ),
    r"truth: video v, frame 00000000: an entry of segments_info needs id, category_id and area": in_truth(
        lambda c: first(c)["segments_info"][0].pop("area")
    ),
    r"truth: video v, frame 00000000: .* needs id, category_id and area, numbers: .*nan": in_truth(
        lambda c: first(c)["segments_info"][0].update(area=float("nan"))
    ),
    r"truth: video v, frame 00000000: .* needs id, category_id and area, numbers: .*'area': 1000": in_truth(
        lambda c: first(c)["segments_info"][0].update(area=10**400)
    ),
    r"two categories have the id \d+": in_truth(lambda c: c["categories"].append(c["categories"][0])),
    r"a category needs `id` and `isthing`, numbers .*'yes'": in_truth(
        lambda c: c["categories"][0].update(isthing="yes")
    ),
    r"expected a list `segments_info`": in_predictions(lambda c: first(c).pop("segments_info")),
    r"truth: expected an object with a list `categories`": in_truth(lambda c: c.pop("categories")),
    r"a category needs `id` and `isthing`": in_truth(lambda c: c["categories"][0].pop("isthing")),
    r"a category needs `id` and `isthing`, numbers .*: 3": in_truth(lambda c: c["categories"].append(3)),
    r"a category needs `id` and `isthing`, numbers .*'x'": in_truth(
        lambda c: c["categories"][0].update(id="x")
    ),
    r"truth: video v: expected a list `images`": in_truth(lambda c: c["videos"][0].update(images=None)),
    r"predictions: video v: expected a list `annotations`": in_predictions(
        lambda c: c["annotations"][0].update(annotations=None)
    ),
    r"truth: annotations of video w, which": in_truth(
        lambda c: c["annotations"].append({"video_id": "w", "annotations": []})
    ),
    r"truth: video v is there twice": in_truth(lambda c: c["videos"].append(c["videos"][0])),
    r"gt\.json: not JSON": lambda folder: (folder / "gt.json").write_text("{"),
    r"pred\.json: no such file": lambda folder: (folder / "pred.json").unlink(),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_name_their_place(tmp_path, message):
    folder = make_files(tmp_path)
    ERRORS[message](folder)
    with pytest.raises(UserError, match=message) as caught:
        score(folder)
    assert "\n" not in str(caught.value)


def test_a_damaged_archive_is_named(tmp_path):
    """Its directory is intact, its arrays are not."""
    path = tmp_path / "maps.npz"
    np.savez_compressed(path, **{"gt/v": np.random.default_rng(0).integers(0, 9, (2, 30, 30))})
    data = bytearray(path.read_bytes())
    data[200] ^= 255
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"maps\.npz: `gt/v` is damaged"):
        list(open_maps(path, "gt")("v", ["0", "1"]))


def test_an_archive_without_a_video_or_with_another_length_is_refused(tmp_path):
    folder = make_files(tmp_path)
    files = folder / "gt.json", folder / "pred.json"
    np.savez(folder / "other.npz", **{"gt/v": np.zeros((1, 1, 2), np.uint32)})
    with pytest.raises(UserError, match="no maps `pred/v`"):
        score_files(*files, folder / "maps.npz", folder / "other.npz")
    with pytest.raises(UserError, match="`gt/v` is 1x1x2 of uint32; expected whole numbers, 2 frames"):
        score_files(*files, folder / "other.npz", folder / "maps.npz")
    with pytest.raises(UserError, match=r"gt\.json: not an \.npz"):
        score_files(*files, folder / "gt.json", folder / "maps.npz")
    with pytest.raises(UserError, match="nowhere: no such folder"):
        score_files(*files, folder / "nowhere", folder / "maps.npz")


@pytest.mark.parametrize("wrong", [1 << 24, (1 << 32) - 1])
def test_an_id_beyond_a_png_is_refused(wrong):
    with pytest.raises(UserError, match="the prediction map holds an id outside 0 to 16777215"):
        overlap_frame("video v", paint("a"), np.array([[wrong]], np.uint32), [], [])


ODDITIES = {
    "an area that is not the painted one": lambda one, two: one[1].update(area=2),
    "an id listed without a pixel": lambda one, two: one.append({"id": 9, "category_id": 2, "area": 1}),
    "an id painted but not listed": lambda one, two: (one.pop(), two.pop()),
    "id 0, which is void, is listed": lambda one, two: one.append({"id": 0, "category_id": 2, "area": 1}),
    "an id listed twice on a frame": lambda one, two: one.append({**one[1], "category_id": 0}),
}


@pytest.mark.parametrize("kind", ODDITIES)
def test_an_unusual_truth_is_scored_with_a_warning_or_refused_when_strict(tmp_path, kind):
    folder = make_files(tmp_path)

    def spoil(content):
        ODDITIES[kind](*(frame["segments_info"] for frame in content["annotations"][0]["annotations"]))

    edit(folder / "gt.json", spoil)
    _, lines = score(folder)
    assert any(re.match(f"truth, video v, frame 00000000.*: {kind}", line) for line in lines)
    with pytest.raises(UserError, match=r"video v, frame 00000000.*without --strict"):
        score(folder, strict=True)


def test_oddities_are_counted_by_kind():
    oddities = Oddities()
    for place in ("here", "there"):
        oddities.note("strange", place)
    assert oddities.lines() == ["here: strange (2 such places)"]


# A plain scorer, written as the published programs work.


def random_video(draw, length):
    """Blocks of ids on both sides: void, crowds, unlisted truth, areas that are not painted, changing categories."""
    true_ids, predicted_ids = np.array([0, *range(11, 18)]), np.array([0, *range(13, 22)])
    kind = dict(zip(range(11, 22), draw.integers(0, 4, 11).tolist(), strict=True))
    video = {"truth": [], "prediction": [], "truth_lists": [], "prediction_lists": []}
    for side, ids in (("truth", true_ids), ("prediction", predicted_ids)):
        blocks = draw.choice(ids, (4, 5))
        for _ in range(length):
            change = draw.random((4, 5)) < 0.15
            blocks = np.where(change, draw.choice(ids, (4, 5)), blocks)
            image = np.kron(blocks, np.ones((2, 3), np.int64)).astype(np.uint32)
            found, areas = np.unique(image, return_counts=True)
            entries = [
                {
                    "id": i,
                    "category_id": int(draw.integers(0, 4)) if draw.random() < 0.1 else kind[i],
                    "area": area + 6 * int(side == "truth" and draw.random() < 0.1),
                    "iscrowd": int(side == "truth" and i < 13),
                }
                for i, area in zip(found.tolist(), areas.tolist(), strict=True)
                if i and (side == "prediction" or draw.random() > 0.1)
            ]
            draw.shuffle(entries)
            video[side].append(image)
            video[f"{side}_lists"].append(entries)
    return video


@pytest.mark.parametrize("seed", range(12))
def test_a_second_scorer_agrees_on_random_videos(seed):
    """Where listed areas give an IoU above 1, the official program raises, and so does ours."""
    draw = np.random.default_rng(seed)
    videos = {f"v{k}": random_video(draw, int(draw.integers(1, 11))) for k in range(4)}
    files = plain_scorers.contents(videos, CATEGORIES)
    truth = parse_truth(files[0])
    maps = (lambda video, _, side=side: iter(videos[video][side]) for side in ("truth", "prediction"))
    try:
        counts = count_videos(truth, parse_predictions(files[1], truth), *maps)
    except UserError as error:
        assert "an IoU above 1" in str(error)  # noqa: PT017 - either outcome is right
        return
    scores = summarize(counts, truth.categories)
    windows, tubes = plain_scorers.plain_vpq(videos, CATEGORIES), plain_scorers.plain_stq(videos, CATEGORIES)
    for length, groups in windows.items():
        ours = scores["vpq_windows"][length]
        same({name: ours[name] and ours[name]["pq"] for name in groups}, groups, length)
    same({name: scores["stq"][name] for name in tubes}, tubes)
