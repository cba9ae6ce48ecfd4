"""Scores of files: stored official arrays, ways to write a mask, a second scorer, unusual and unusable input."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import bench_scorer
import numpy as np
import pytest
import torch
from bench_common import Bench
from omegaconf import OmegaConf
from pycocotools import mask as coco_mask

import plain_scorers
from local2global.app import cli
from local2global.app.score import bundle_results
from local2global.errors import UserError
from local2global.evaluation.identity_scores import by_length, identity_scores
from local2global.evaluation.masks import parse_track
from local2global.evaluation.oddities import Oddities
from local2global.evaluation.precision import AREAS, OCCLUSIONS
from local2global.evaluation.submission import write_bundle
from local2global.evaluation.tracks import parse_results
from local2global.evaluation.ytvis import report, score, score_files
from local2global.results.rle import decode_counts

CASES = ("basic", "crowd_boundaries", "frames_and_sizes", "many_detections", "no_predictions", "ovis_like")


def rle(box, size=(20, 20), form="string"):
    """The mask of the rectangle (x, y, w, h): a compressed string or a list of runs."""
    x, y, w, h = box
    mask = np.zeros(size, np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    if form == "list":
        flat = mask.ravel(order="F")
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flat])))
        return {"size": list(size), "counts": np.diff([0, *edges, flat.size]).tolist()}
    return {"size": list(size), "counts": coco_mask.encode(mask)["counts"].decode()}


GOOD = rle((0, 0, 5, 5))


def truth_of(*tracks, frames=2, videos=(1,), categories=(1,)):
    """YouTube-VIS annotations; keys that are not given are those of a 5 x 5 square in video 1."""
    plain = {"video_id": 1, "category_id": 1, "iscrowd": 0}
    plain |= {"segmentations": [GOOD] * frames, "areas": [25] * frames}
    return {
        "videos": [{"id": v, "height": 20, "width": 20, "length": frames} for v in videos],
        "categories": [{"id": c, "name": f"c{c}"} for c in categories],
        "annotations": [{**plain, "id": n, **track} for n, track in enumerate(tracks, 1)],
    }


def results_of(*tracks, frames=2):
    plain = {"video_id": 1, "category_id": 1, "score": 0.5, "segmentations": [GOOD] * frames}
    return [{**plain, **track} for track in tracks]


@pytest.fixture
def files(tmp_path):
    """Writes truth and results, objects or text, and returns their paths."""

    def write(truth, results):
        paths = tmp_path / "gt.json", tmp_path / "results.json"
        for path, content in zip(paths, (truth, results), strict=True):
            text = content if isinstance(content, (str, bytes)) else json.dumps(content)
            path.write_bytes(text.encode() if isinstance(text, str) else text)
        return paths

    return write


def equal(actual, expected, path=""):
    """Every number of `expected` is in `actual`, to 1e-9; arrays have the same shape."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            equal(actual[key], value, f"{path}.{key}")
    elif isinstance(expected, list) and expected and isinstance(expected[0], dict):
        assert len(actual) == len(expected), path
        for n, pair in enumerate(zip(actual, expected, strict=True)):
            equal(*pair, f"{path}[{n}]")
    elif expected is None or isinstance(expected, str):
        assert actual == expected, path
    else:
        assert np.shape(actual) == np.shape(expected), path
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-9, err_msg=path)


@pytest.mark.parametrize("name", CASES)
def test_every_array_equals_the_official_one(shared, name):
    folder = shared / "eval_cases" / f"vis_{name}"
    expected = json.loads((folder / "scores.json").read_text())
    for scorer in ("ytvis", "ovis"):
        expected.get(scorer, {}).pop("scorer", None)
    actual = report(
        score_files(folder / "gt.json", folder / "results.json", ovis="ovis" in expected, oddities=Oddities())
    )
    assert set(actual) == set(expected) - {"case", "seed"}
    equal(actual, {key: expected[key] for key in actual})


def random_case(draw):
    """Truth and results with unusual sizes, lengths, crowds, ties, id 0, unlisted categories, in random order."""
    categories = [7, -3, 2]
    videos = [
        {"id": int(v), "height": 24, "width": 30, "length": int(draw.integers(1, 5))}
        for v in draw.permutation(9)[:4]
    ]

    def masks(box, length, form):
        track = []
        for _ in range(max(0, length + int(draw.choice([0, 0, 0, 1, -1])))):
            x, y, w, h = (int(v) for v in np.maximum(box + draw.integers(-1, 2, 4), [0, 0, 1, 1]))
            size = (24, 30) if draw.random() < 0.93 else (30, 24)
            kind = draw.random()
            empty = {
                "size": list(size),
                "counts": coco_mask.encode(np.zeros(size, np.uint8, order="F"))["counts"].decode(),
            }
            track.append(None if kind < 0.1 else empty if kind < 0.15 else rle((x, y, w, h), size, form))
        return track

    annotations, results = [], []
    for number in draw.permutation(14):
        video = videos[int(draw.integers(4))]
        box = np.array([*draw.integers(0, 12, 2), *draw.integers(3, 12, 2)])
        category = int(draw.choice([*categories, 99], p=[0.5, 0.25, 0.2, 0.05]))
        drawn = masks(box, video["length"], str(draw.choice(["list", "string"])))
        areas = [None if m is None else float(draw.choice([20, 128**2, 128**2 + 1, 256**2])) for m in drawn]
        annotations.append(
            {"id": int(number), "video_id": video["id"], "category_id": category, "segmentations": drawn,
             "areas": areas, "iscrowd": int(draw.random() < 0.15), "ignore": 1,
             "occlusion": ["no_occlusion", *draw.choice(["slight_occlusion", "severe_occlusion"], 3).tolist()]}
        )  # fmt: skip
        for _ in range(int(draw.integers(0, 4))):
            results.append(
                {"score": round(float(draw.random()), 1), "extra": {"segmentations": [1, None]},
                 "segmentations": masks(box, video["length"], "string"), "category_id": category,
                 "video_id": video["id"]}
            )  # fmt: skip
    draw.shuffle(results)
    listed = [{"id": c, "name": str(c)} for c in categories]
    return {"videos": videos, "categories": listed, "annotations": annotations}, results


@pytest.mark.parametrize("seed", range(12))
def test_a_second_scorer_agrees_on_random_unusual_files(files, seed):
    paths = files(*random_case(np.random.default_rng(seed)))
    ours = score_files(*paths, ovis=True)
    plain = plain_scorers.plain_tracks(*paths, ovis=True)
    np.testing.assert_allclose(ours.precision, plain["precision"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.recall, plain["recall"], rtol=0, atol=1e-12)
    assert (ours.precision > 0).any()
    for entry in report(ours)["ytvis"]["track_iou"]:
        theirs = plain["iou"][entry["video_id"], entry["category_id"]]
        np.testing.assert_allclose(entry["iou"], theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["ytvis", "ovis", "vps"])
def test_both_arms_of_the_benchmark_agree(kind, tmp_path, monkeypatch):
    """At a size that takes no time."""
    monkeypatch.setattr(bench_scorer, "SIZE", (72, 128))
    monkeypatch.setattr(bench_scorer, "peak", lambda *_: 0.0)
    write = bench_scorer.write_panoptic_load if kind == "vps" else bench_scorer.write_track_load
    write(tmp_path / "load", True, *([] if kind == "vps" else [kind]))
    row = bench_scorer.compare(Bench(True, torch.device("cpu")), kind, tmp_path / "load")
    assert row["agree"]
    assert row["ratio"] > 0


def test_objects_and_files_have_the_same_scores(files):
    truth, results = random_case(np.random.default_rng(99))
    memory = score(truth, results)
    ours = score_files(*files(truth, results), ovis=True)
    np.testing.assert_array_equal(memory.precision, ours.precision)
    np.testing.assert_array_equal(memory.recall, ours.recall)


def escaped(text):
    """JSON escapes of libraries that protect against HTML injection."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("0", "\\u0030", 1)


def counts_first(value):
    return re.sub(r'("size": \[\d+, \d+\]), ("counts": "[^"]*")', r"\2, \1", json.dumps(value))


def look_alikes(value):
    """Masks, valid and malformed, under keys that are not read, and a text that mentions the key."""
    more = {"segmentations": [GOOD, {"counts": "~", "size": [1, 1]}]}
    return json.dumps([{"note": 'say "segmentations": [1, 2]', **entry, "more": more} for entry in value])


WAYS = {
    "plain": json.dumps,
    "indented": lambda value: json.dumps(value, indent=3),
    "dense": lambda value: json.dumps(value, separators=(",", ":")),
    "with a byte order mark": lambda value: "\ufeff" + json.dumps(value),
    "escaped": lambda value: re.sub(
        r'("counts": ")([^"]*)', lambda m: m[1] + escaped(m[2]), json.dumps(value)
    ),
    "counts first": counts_first,
    "height as a float": lambda value: re.sub(r'("size": \[\d+), (\d+\])', r"\1.0, \2", json.dumps(value)),
    "look-alikes": look_alikes,
    "a number under the same key": lambda value: json.dumps(
        [{"also": {"segmentations": 3}, **entry} for entry in value]
    ),
}


@pytest.mark.parametrize("write", WAYS.values(), ids=WAYS)
def test_scores_do_not_depend_on_how_the_json_is_written(files, write):
    """The square overlaps the truth by 20 of 30 pixels on each of two frames."""
    wide = rle((1, 0, 5, 5))
    results = results_of({"segmentations": [wide, wide]})
    paths = files(truth_of({}), results)
    expected = report(score_files(*paths))
    paths[1].write_text(write(results), encoding="utf-8")
    actual = report(score_files(*paths))
    assert actual == expected
    assert actual["ytvis"]["track_iou"][0]["iou"] == [[40 / 60]]


def test_a_backslash_in_the_counts_is_read(files):
    """A backslash is escaped in JSON."""
    draw = np.random.default_rng(5)
    masks = [
        coco_mask.encode(np.asfortranarray(draw.random((200, 200)) < 0.02).astype(np.uint8)) for _ in "ab"
    ]
    masks = [{"size": m["size"], "counts": m["counts"].decode()} for m in masks]
    assert all("\\" in m["counts"] for m in masks)
    truth = truth_of({"segmentations": masks})
    (entry,) = report(score_files(*files(truth, results_of({"segmentations": masks}))))["ytvis"]["track_iou"]
    assert entry["iou"] == [[1.0]]


def test_truth_may_be_polygons_and_runs(files):
    """The polygon, the list of runs and the string are the same square."""
    square = [[0, 0, 5, 0, 5, 5, 0, 5]]
    truth = truth_of({"segmentations": [square, rle((0, 0, 5, 5), form="list")]})
    (entry,) = report(score_files(*files(truth, results_of({}))))["ytvis"]["track_iou"]
    assert entry["iou"] == [[1.0]]


def test_a_zip_scores_like_the_results_in_it(files, tmp_path):
    truth, results = files(truth_of({}), results_of({}))
    with zipfile.ZipFile(tmp_path / "sent.zip", "w") as bundle:
        bundle.write(results, "results.json")
    assert score_files(truth, tmp_path / "sent.zip").stats == score_files(truth, results).stats


def test_a_zip_with_a_name_that_is_no_text_is_refused(files, tmp_path):
    """Zip marks a name outside ASCII as UTF-8, and such a byte is not checked before it is decoded."""
    truth, results = files(truth_of({}), results_of({}))
    with zipfile.ZipFile(tmp_path / "sent.zip", "w") as bundle:
        bundle.write(results, "results.json")
        bundle.writestr("\u00e9", "")
    data = (tmp_path / "sent.zip").read_bytes()
    (tmp_path / "sent.zip").write_bytes(data.replace("\u00e9".encode(), b"\xee\xee"))
    with pytest.raises(UserError, match=r"a zip without a sound results\.json"):
        score_files(truth, tmp_path / "sent.zip")


def without(key):
    """Annotations of one track that lacks a key."""
    truth = truth_of({})
    del truth["annotations"][0][key]
    return truth


ODD = {
    "id 0": (truth_of({"id": 0}), results_of({}), "annotation 0: a track with id 0"),
    "the same id twice": (
        truth_of({"id": 4}, {"id": 4}),
        results_of({}),
        "annotation 4: an id that was given before",
    ),
    "unlisted video of a track": (
        truth_of({}, {"video_id": 8}),
        results_of({}),
        "annotation 2: a video that is not",
    ),
    "unlisted category of a track": (
        truth_of({}, {"category_id": 8}),
        results_of({}),
        "annotation 2: a category",
    ),
    "no areas": (without("areas"), results_of({}), "annotation 1: no key `areas`"),
    "no iscrowd": (without("iscrowd"), results_of({}), "annotation 1: no key `iscrowd`"),
    "a short truth": (
        truth_of({"segmentations": [GOOD]}),
        results_of({}),
        "annotation 1, 1 masks for 2 frames",
    ),
    "a long prediction": (
        truth_of({}),
        results_of({}, {"segmentations": [GOOD] * 3}),
        "results entry 1 .video 1., 3 masks for 2 frames",
    ),
    "another size": (
        truth_of({}),
        results_of({}, {"segmentations": [GOOD, rle((0, 0, 9, 9), (10, 10))]}),
        "results entry 1 .video 1.: masks of another size",
    ),
    "unlisted category": (
        truth_of({}),
        results_of({}, {"category_id": 8}),
        "results entry 1 .video 1.: a category",
    ),
    "runs as a list": (
        truth_of({}),
        results_of({"segmentations": [GOOD, rle((0, 0, 5, 5), form="list")]}),
        "results entry 0 .video 1.: counts as a list",
    ),
    "nothing": (truth_of({}), [], "no predictions at all"),
}


@pytest.mark.parametrize("kind", ODD)
def test_unusual_entries_are_noted_once_per_kind_and_refused_when_strict(files, kind):
    truth, results, words = ODD[kind]
    paths, oddities = files(truth, results), Oddities()
    score_files(*paths, oddities=oddities)
    (line,) = oddities.lines()
    assert re.search(words, line)
    with pytest.raises(UserError, match=words):
        score_files(*paths, oddities=Oddities(strict=True))


def test_many_oddities_of_a_kind_are_one_line(files):
    oddities = Oddities()
    score_files(*files(truth_of({}), results_of(*[{"category_id": 8}] * 7)), oddities=oddities)
    assert oddities.lines() == [
        "results entry 0 (video 1): a category that the truth does not list; left out (7 such places)"
    ]


def test_of_two_tracks_with_one_id_the_last_is_scored_twice(files):
    """As in the official index: the first square is dropped, the second counts as two tracks."""
    other = rle((10, 10, 5, 5))
    truth = truth_of({"id": 4}, {"id": 4, "segmentations": [other] * 2})
    results = results_of(
        {}, {"segmentations": [other] * 2, "score": 0.4}, {"segmentations": [other] * 2, "score": 0.3}
    )
    assert score_files(*files(truth, results)).stats["AR100"] == 1
    assert score_files(*files(truth, results[:2])).stats["AR100"] == 0.5


FATAL = {
    "unknown video": (results_of({}, {"video_id": 99}), "entry 1: video 99"),
    "NaN": (results_of({}, {"score": float("nan")}), "entry 1: score nan"),
    "no number of a float": (results_of({"score": 10**400}), "entry 0: score 1000"),
    "infinity": (results_of({"score": float("inf")}), "entry 0: score inf"),
    "polygons": (results_of({"segmentations": [[[1, 1, 5, 1, 5, 5]], None]}), "frame 0: .*size and counts"),
    "nested too deeply": ("[" * 100_000, "nested too deeply"),
    "bytes": (b"\x1f\x8b\x08", "byte 1 is not UTF-8 text"),
    "score as text": (results_of({"score": "0.5"}), "entry 0: score '0.5'"),
    "malformed mask": (
        results_of({"segmentations": [GOOD, {**GOOD, "counts": "5~"}]}),
        "entry 0 .video 1., frame 1: malformed",
    ),
    "mask that stops short": (
        results_of({"segmentations": [GOOD, {**GOOD, "size": [21, 20]}]}),
        "frame 1: .* cover 400 pixels",
    ),
    "no counts": (results_of({"segmentations": [None, {"size": [20, 20]}]}), "frame 1: .*no 'counts'"),
    "negative run": (
        results_of({"segmentations": [{"size": [20, 20], "counts": [500, -100]}]}),
        "frame 0: .*negative",
    ),
    "fraction of a run": (
        results_of({"segmentations": [{"size": [20, 20], "counts": [399.5, 0.5]}]}),
        "frame 0: .*whole number",
    ),
    "no list": (results_of({"segmentations": 0}), "entry 0 .video 1.: expected a list"),
    "no score": ('[{"video_id": 1, "category_id": 1, "segmentations": []}]', "entry 0: no key `score`"),
    "an object": ("{}", "expected a list of predicted tracks"),
    "broken JSON": (json.dumps(results_of({}))[:-2], r"results\.json: not JSON"),
    "an empty file": ("", r"results\.json: the file is empty"),
}


@pytest.mark.parametrize("kind", FATAL)
def test_unusable_results_are_named(files, kind):
    text, words = FATAL[kind]
    with pytest.raises(UserError, match=words):
        score_files(*files(truth_of({}), text))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update(categories=None), "expected a list `categories`"),
        (lambda t: t["categories"][0].pop("id"), "categories entry 0: no key `id`"),
        (lambda t: t["videos"].append(None), "videos entry 1: expected an object"),
        (lambda t: t["videos"][0].update(height="x"), "video 1: height, width and length must be numbers"),
        (
            lambda t: t["videos"][0].update(width=float("inf")),
            "video 1: height, width and length must be numbers",
        ),
        (lambda t: t.update(annotations={}), "expected a list `annotations`"),
        (lambda t: t["annotations"].append(None), "annotations entry 1: expected an object"),
        (lambda t: t["annotations"][0].update(id=[1]), "annotations entry 0: `id` must be a number"),
        (lambda t: t["annotations"][0].update(areas="x"), "annotation 1: `areas` must be a list"),
        (lambda t: t["annotations"][0].update(areas=["a", "b"]), "annotation 1: `areas` must be a list"),
        (lambda t: t["annotations"][0].update(areas=None), "annotation 1: `areas` must be a list"),
        (
            lambda t: t["annotations"][0].update(areas=[float("nan")] * 2),
            "`areas` must be a list with a number",
        ),
        (lambda t: t["annotations"][0].update(areas=[10**400] * 2), "`areas` must be a list with a number"),
        (lambda t: t["annotations"][0].update(iscrowd="0"), "annotation 1: `iscrowd` is '0'; make it 0 or 1"),
        (lambda t: t["annotations"][0].update(occlusion=3), "annotation 1: `occlusion` must be a list"),
    ],
)
def test_an_unusable_truth_is_named(files, change, words):
    truth = truth_of({"occlusion": ["no_occlusion"] * 2})
    change(truth)
    with pytest.raises(UserError, match=words):
        score_files(*files(truth, results_of({})), ovis=True)


def test_occlusion_that_is_no_list_is_named_also_where_it_is_not_scored(files):
    with pytest.raises(UserError, match="annotation 1: `occlusion` must be a list"):
        score_files(*files(truth_of({"occlusion": 3}), results_of({})))


@pytest.mark.parametrize("key", ["video_id", "category_id"])
def test_an_id_that_is_a_list_is_named(files, key):
    with pytest.raises(UserError, match=r"results entry 0: .*\[1\]"):
        score_files(*files(truth_of({}), results_of({key: [1]})))


def test_missing_files_are_named(tmp_path, files):
    truth, results = files({"videos": [], "categories": []}, [])
    with pytest.raises(UserError, match=r"nowhere\.json: no such file"):
        score_files(tmp_path / "nowhere.json", results)
    with pytest.raises(UserError, match="no key `annotations`"):
        score_files(truth, results)
    with pytest.raises(UserError, match="a folder"):
        score_files(tmp_path, results)


def test_occlusion_scores_need_occlusion_levels(files):
    with pytest.raises(UserError, match="leave out --ovis"):
        score_files(*files(truth_of({}), results_of({})), ovis=True)
    truth = truth_of({"occlusion": ["severe_occlusion"] * 2}, {})
    oddities = Oddities()
    actual = score_files(*files(truth, results_of({})), ovis=True, oddities=oddities)
    assert actual.ranges == AREAS + OCCLUSIONS
    assert oddities.lines() == ["annotation 2: no occlusion levels; taken as not occluded"]


@pytest.mark.parametrize("form", ["string", "list"])
def test_runs_longer_than_16_bits_are_read(files, form):
    """Bars on frames of 2,000 x 4,000 pixels; runs of up to 7,000,000 pixels."""
    size = (2000, 4000)
    one = [rle((x, 0, w, 2000), size, form) for x, w in ((3900, 50), (100, 3600))]
    two = [rle((x, 0, w, 2000), size) for x, w in ((3925, 75), (1900, 2000))]
    truth = truth_of({"segmentations": one}, frames=2)
    truth["videos"][0] |= {"height": 2000, "width": 4000}
    paths = files(truth, results_of({"segmentations": two}))
    assert score_files(*paths).predictions[1, 1][0].masks.areas.tolist() == [75 * 2000, 2000 * 2000]
    (entry,) = report(score_files(*paths))["ytvis"]["track_iou"]
    assert entry["iou"] == [[(25 + 1800) / (100 + 3800)]]


def test_runs_and_sizes_beyond_all_frames_are_malformed(files):
    """Pycocotools computes with 32 bits and would overflow."""
    for counts in ([1 << 39, 5], [400 - (1 << 33), 1 << 33], [5, (1 << 11) * 400]):
        wrong = {"size": [20, 20], "counts": counts}
        with pytest.raises(UserError, match="frame 0: malformed run-length mask"):
            score_files(*files(truth_of({}), results_of({"segmentations": [wrong, GOOD]})))
    for size in ([1 << 16, 1 << 15], [1 << 40, 1], [10**30, 1], [-20, -20]):
        wrong = {"size": size, "counts": [abs(size[0] * size[1])]}
        with pytest.raises(UserError, match="frame 1: malformed run-length mask"):
            score_files(*files(truth_of({}), results_of({"segmentations": [GOOD, wrong]})))


@pytest.mark.parametrize("seed", range(4))
def test_runs_of_any_length_are_decoded(seed):
    """Runs of one to five digits, many or few of a kind in turn, as strings and as lists."""
    draw = np.random.default_rng(seed)
    lengths = np.repeat(draw.choice([3, 14, 200, 9000, 60000], 40), draw.integers(1, 30, 40))
    runs = np.maximum(1, lengths + draw.integers(-2, 3, len(lengths)))
    counts = [int(run) for run in runs[: len(runs) - seed % 2]]
    size = [1, sum(counts)]
    string = coco_mask.frPyObjects({"size": size, "counts": counts}, *size)["counts"].decode("ascii")
    assert [mask.tolist() for mask in decode_counts([string, "0" + "1", string])] == [counts, [0, 1], counts]
    track = parse_track([{"size": size, "counts": form} for form in (string, counts)], str)
    assert track.areas.tolist() == [sum(counts[1::2])] * 2


def test_equal_lists_of_masks_are_parsed_once(files):
    """Predictions of one slot under several classes; lists of runs are not shared."""
    listed = {"segmentations": [rle((0, 0, 5, 5), form="list")] * 2}
    truth = truth_of({}, categories=(1, 2))
    _, results = files(truth, results_of({}, {"category_id": 2}, listed, listed))
    tracks = parse_results(json.loads(results.read_text()), truth)
    assert tracks[1, 1][0].masks is tracks[1, 2][0].masks
    assert tracks[1, 1][1].masks is not tracks[1, 1][2].masks


def test_scoring_needs_no_torch():
    """Importing torch takes longer than scoring a small data set."""
    modules = "local2global.evaluation.ytvis, local2global.evaluation.panoptic_files"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["l2g", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_command_prints_a_table_and_warnings_and_writes_json(files, tmp_path, monkeypatch, capsys):
    truth, results = files(truth_of({}), results_of({}, {"category_id": 8}))
    out = tmp_path / "new" / "scores.json"
    assert run(monkeypatch, "score", "vis", "--truth", truth, "--results", results, "--json", out) == 0
    said = capsys.readouterr()
    assert re.search(r"AP50\D+100\.00", said.out)
    assert said.err.startswith("l2g: warning: results entry 1 (video 1): a category")
    assert json.loads(out.read_text())["ytvis"]["stats"]["AP"] == pytest.approx(1)
    out.unlink()
    assert (
        run(monkeypatch, "score", "vis", "--truth", truth, "--results", results, "--strict", "--json", out)
        == 1
    )
    assert capsys.readouterr().err.count("\n") == 1
    assert not out.exists()


def test_a_bundle_holds_the_checked_results_at_its_top(files, tmp_path):
    truth, results = files(truth_of(videos=(1, 2)), results_of({}))
    counts = write_bundle(json.loads(truth.read_text()), results, tmp_path / "sent" / "out.zip")
    assert counts == (1, 1, 1)
    with zipfile.ZipFile(tmp_path / "sent" / "out.zip") as sent:
        assert sent.namelist() == ["results.json"]
        assert json.loads(sent.read("results.json")) == results_of({})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"video_id": 9}, "video 9 is not in the truth"),
        ({"category_id": 9}, "a category that the truth does not list"),
        ({"segmentations": [GOOD]}, "1 masks for 2 frames"),
        ({"segmentations": [None, rle((0, 0, 5, 5), (10, 10))]}, "masks of another size"),
    ],
)
def test_a_bundle_that_the_server_would_refuse_is_not_written(files, tmp_path, change, words):
    truth, results = files(truth_of(), results_of({}, change))
    with pytest.raises(UserError, match=words):
        write_bundle(json.loads(truth.read_text()), results, tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


@pytest.mark.parametrize("blind", [True, False])
def test_eval_writes_the_zip_unasked_only_without_truth(files, tmp_path, capsys, blind):
    """Without truth `l2g eval` writes the zip and prints why; with truth only if a path is given."""
    annotations = truth_of({})
    if blind:
        annotations["annotations"] = None
    truth, _ = files(annotations, results_of({}))
    evaluator = {"_target_": "local2global.evaluation.ytvis.YTVISEvaluator", "truth": str(truth)}
    evaluator |= {"classes": [{"id": 1, "name": "c1"}], "output_dir": str(tmp_path)}
    cfg = OmegaConf.create({"dataloader": {"evaluator": evaluator}})
    bundle_results(cfg, None)
    assert (tmp_path / "results.zip").exists() == blind
    assert ("No local truth" in capsys.readouterr().out) == blind
    bundle_results(cfg, tmp_path / "asked.zip")
    assert zipfile.is_zipfile(tmp_path / "asked.zip")
    assert "1 tracks of 1 videos" in capsys.readouterr().out


def test_eval_writes_no_zip_for_a_panoptic_evaluator(monkeypatch, tmp_path):
    """Its truth has no list of tracks, which is an error only if a zip was requested."""
    evaluator = SimpleNamespace(truth=object(), reset=print, process=print, evaluate=print)
    monkeypatch.setattr("local2global.engine.settings.instantiate", lambda _: evaluator)
    cfg = OmegaConf.create({"dataloader": {"evaluator": {"_target_": "panoptic"}}})
    bundle_results(cfg, None)
    with pytest.raises(UserError, match=r"--submit: .* scores no tracks"):
        bundle_results(cfg, tmp_path / "out.zip")


def test_ap_by_length_splits_the_videos_in_thirds(files):
    """Three videos of one, two and three frames; only the middle one is found."""
    truth = truth_of(
        *({"video_id": v, "segmentations": [GOOD] * v, "areas": [25] * v} for v in (1, 2, 3)),
        videos=(1, 2, 3),
    )
    for video in truth["videos"]:
        video["length"] = video["id"]
    actual = score_files(*files(truth, results_of({"video_id": 2})))
    assert list(by_length(actual, truth).values()) == pytest.approx([0, 1, 0])


def test_identity_scores_count_a_switch(files):
    """One object and two predictions that follow it for two frames each: one switch, IDF1 of one half."""
    pytest.importorskip("trackeval")
    truth = truth_of({}, frames=4)
    halves = results_of(
        {"segmentations": [GOOD, GOOD, None, None]}, {"segmentations": [None, None, GOOD, GOOD]}
    )
    split = identity_scores(score_files(*files(truth, halves)))
    assert (split["switches"], split["IDF1"], split["DetA"]) == (1, 0.5, pytest.approx(1))
    whole = identity_scores(score_files(*files(truth, results_of({}, frames=4))))
    assert (whole["switches"], whole["IDF1"], whole["HOTA"]) == (0, 1, pytest.approx(1))


def test_without_trackeval_the_error_names_the_package(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackeval.metrics", None)
    actual = score_files(*files(truth_of({}), results_of({})))
    with pytest.raises(UserError, match=r"local2global\[metrics\]"):
        identity_scores(actual)
