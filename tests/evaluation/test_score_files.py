"""Scores from files: every stored array, every way to write a mask, a plain second scorer, what is odd."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf
from pycocotools import mask as coco_mask

from local2global.app import cli
from local2global.app.score import bundle_results
from local2global.errors import UserError
from local2global.evaluation import kernels, masks
from local2global.evaluation.identity_scores import by_length, identity_scores
from local2global.evaluation.masks import read_document
from local2global.evaluation.oddities import Oddities
from local2global.evaluation.precision import AREAS, OCCLUSIONS
from local2global.evaluation.submission import write_bundle
from local2global.evaluation.ytvis import report, score, score_files

CASES = ("basic", "crowd_boundaries", "frames_and_sizes", "many_detections", "no_predictions", "ovis_like")


@pytest.fixture(scope="module")
def bench(request):
    """scripts/bench_scorer.py, whose other arm is written from the rules alone."""
    path = request.config.rootpath / "scripts" / "bench_scorer.py"
    spec = importlib.util.spec_from_file_location("bench_scorer", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_scorer"] = module
    spec.loader.exec_module(module)
    return module


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
    """A truth of annotations; what is not given is that of a 5 x 5 square in video 1."""
    plain = {"video_id": 1, "category_id": 1, "iscrowd": 0}
    plain |= {"segmentations": [GOOD] * frames, "areas": [25] * frames}
    return {
        "videos": [{"id": v, "height": 20, "width": 20, "length": frames} for v in videos],
        "categories": [{"id": c, "name": f"c{c}"} for c in categories],
        "annotations": [{**plain, "id": n, **track} for n, track in enumerate(tracks, 1)],
    }


def found_of(*tracks, frames=2):
    plain = {"video_id": 1, "category_id": 1, "score": 0.5, "segmentations": [GOOD] * frames}
    return [{**plain, **track} for track in tracks]


@pytest.fixture
def files(tmp_path):
    """Writes truth and results, as they are or as text; gives their paths."""

    def write(truth, results):
        paths = tmp_path / "gt.json", tmp_path / "results.json"
        for path, content in zip(paths, (truth, results), strict=True):
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return paths

    return write


def equal(found, expected, path=""):
    """Every number of `expected` is in `found`, to 1e-9; arrays have the same shape."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            equal(found[key], value, f"{path}.{key}")
    elif isinstance(expected, list) and expected and isinstance(expected[0], dict):
        assert len(found) == len(expected), path
        for n, pair in enumerate(zip(found, expected, strict=True)):
            equal(*pair, f"{path}[{n}]")
    elif expected is None or isinstance(expected, str):
        assert found == expected, path
    else:
        assert np.shape(found) == np.shape(expected), path
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9, err_msg=path)


@pytest.mark.parametrize("name", CASES)
def test_every_array_is_the_official_one(shared, name):
    folder = shared / "eval_cases" / f"vis_{name}"
    expected = json.loads((folder / "scores.json").read_text())
    for scorer in ("ytvis", "ovis"):
        expected.get(scorer, {}).pop("scorer", None)
    found = report(
        score_files(folder / "gt.json", folder / "results.json", ovis="ovis" in expected, oddities=Oddities())
    )
    assert set(found) == set(expected) - {"case", "seed"}
    equal(found, {key: expected[key] for key in found})


def random_case(draw):
    """A truth and results full of oddities: sizes, lengths, crowds, ties, id 0, unlisted things, any order."""
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
def test_a_scorer_written_from_the_rules_agrees_on_odd_files(bench, files, seed):
    paths = files(*random_case(np.random.default_rng(seed)))
    ours = score_files(*paths, ovis=True)
    plain = bench.reference_score(*paths, ovis=True)
    np.testing.assert_allclose(ours.precision, plain["precision"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.recall, plain["recall"], rtol=0, atol=1e-12)
    assert (ours.precision > 0).any()
    for entry in report(ours)["ytvis"]["track_iou"]:
        theirs = plain["iou"][entry["video_id"], entry["category_id"]]
        np.testing.assert_allclose(entry["iou"], theirs, rtol=0, atol=1e-12)


def test_the_benchmark_runs_and_its_arms_agree(bench, tmp_path, monkeypatch):
    small = {kind: bench.Load(2, (2, 3), (1, 2), 3, 3, 1, kind == "ovis", (90, 160)) for kind in bench.LOADS}
    monkeypatch.setattr(bench, "LOADS", small)
    monkeypatch.setattr(bench, "_peak", lambda *_: 0.0)
    rows = bench.run(quick=True, folder=tmp_path)
    assert [(row["section"], row["name"], row["agree"]) for row in rows] == [
        ("scorer", "ytvis21", True),
        ("scorer", "ovis", True),
    ]


def test_in_memory_and_from_a_file_it_is_one_number(files):
    truth, results = random_case(np.random.default_rng(99))
    memory = score(truth, results)
    ours = score_files(*files(truth, results), ovis=True)
    np.testing.assert_array_equal(memory["precision"], ours.precision)
    np.testing.assert_array_equal(memory["recall"], ours.recall)


def escaped(text):
    """As libraries write that guard against HTML."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("0", "\\u0030", 1)


def counts_first(value):
    return re.sub(r'("size": \[\d+, \d+\]), ("counts": "[^"]*")', r"\2, \1", json.dumps(value))


def look_alikes(value):
    """Masks, good and bad, where nobody asks for them, and a text that speaks of them."""
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
def test_however_a_file_is_written_it_means_the_same(files, write):
    """The square overlaps the truth by 20 of 30 pixels on each of two frames."""
    wide = rle((1, 0, 5, 5))
    results = found_of({"segmentations": [wide, wide]})
    paths = files(truth_of({}), results)
    expected = report(score_files(*paths))
    paths[1].write_text(write(results), encoding="utf-8")
    found = report(score_files(*paths))
    assert found == expected
    assert found["ytvis"]["track_iou"][0]["iou"] == [[40 / 60]]


def test_a_backslash_in_the_counts_is_one_digit(files):
    """A backslash stands twice in JSON and once in the counts."""
    draw = np.random.default_rng(5)
    masks = [
        coco_mask.encode(np.asfortranarray(draw.random((200, 200)) < 0.02).astype(np.uint8)) for _ in "ab"
    ]
    masks = [{"size": m["size"], "counts": m["counts"].decode()} for m in masks]
    assert all("\\" in m["counts"] for m in masks)
    truth = truth_of({"segmentations": masks})
    (entry,) = report(score_files(*files(truth, found_of({"segmentations": masks}))))["ytvis"]["track_iou"]
    assert entry["iou"] == [[1.0]]


def test_lists_that_are_let_go_are_not_taken_for_one_another():
    """A list of masks that is made when it is asked for may have the id of the one before."""
    reader = masks.MaskReader(masks.Document(None))
    spans = [reader.add([{"size": [2, 2], "counts": [4 - n, n]}], str) for n in range(4)]
    found = reader.finish(spans, lambda *_: "")
    assert [found.facts[first, 0] for first, _ in spans] == [0, 1, 2, 3]


def test_truth_may_be_polygons_and_runs(files):
    """The polygon, the list of runs and the string are the same square."""
    square = [[0, 0, 5, 0, 5, 5, 0, 5]]
    truth = truth_of({"segmentations": [square, rle((0, 0, 5, 5), form="list")]})
    (entry,) = report(score_files(*files(truth, found_of({}))))["ytvis"]["track_iou"]
    assert entry["iou"] == [[1.0]]


def test_a_submission_zip_is_read_as_the_server_does(files, tmp_path):
    truth, results = files(truth_of({}), found_of({}))
    with zipfile.ZipFile(tmp_path / "sent.zip", "w") as bundle:
        bundle.write(results, "results.json")
    assert score_files(truth, tmp_path / "sent.zip").stats == score_files(truth, results).stats


def without(key):
    """A truth whose one track lacks a key."""
    truth = truth_of({})
    del truth["annotations"][0][key]
    return truth


ODD = {
    "id 0": (truth_of({"id": 0}), found_of({}), "annotation 0: a track with id 0"),
    "the same id twice": (
        truth_of({"id": 4}, {"id": 4}),
        found_of({}),
        "annotation 4: an id that was given before",
    ),
    "unlisted video of a track": (
        truth_of({}, {"video_id": 8}),
        found_of({}),
        "annotation 2: a video that is not",
    ),
    "unlisted category of a track": (
        truth_of({}, {"category_id": 8}),
        found_of({}),
        "annotation 2: a category",
    ),
    "no areas": (without("areas"), found_of({}), "annotation 1: no key `areas`"),
    "no iscrowd": (without("iscrowd"), found_of({}), "annotation 1: no key `iscrowd`"),
    "a short truth": (
        truth_of({"segmentations": [GOOD]}),
        found_of({}),
        "annotation 1, 1 masks for 2 frames",
    ),
    "a long prediction": (
        truth_of({}),
        found_of({}, {"segmentations": [GOOD] * 3}),
        "results entry 1 .video 1., 3 masks for 2 frames",
    ),
    "another size": (
        truth_of({}),
        found_of({}, {"segmentations": [GOOD, rle((0, 0, 9, 9), (10, 10))]}),
        "results entry 1 .video 1.: masks of another size",
    ),
    "unlisted category": (
        truth_of({}),
        found_of({}, {"category_id": 8}),
        "results entry 1 .video 1.: a category",
    ),
    "runs as a list": (
        truth_of({}),
        found_of({"segmentations": [GOOD, rle((0, 0, 5, 5), form="list")]}),
        "results entry 0 .video 1.: counts as a list",
    ),
    "nothing": (truth_of({}), [], "no predictions at all"),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_odd_is_told_once_a_kind_and_refused_when_strict(files, kind):
    truth, results, words = ODD[kind]
    paths, oddities = files(truth, results), Oddities()
    score_files(*paths, oddities=oddities)
    (line,) = oddities.lines()
    assert re.search(words, line)
    with pytest.raises(UserError, match=words):
        score_files(*paths, oddities=Oddities(strict=True))


def test_many_oddities_of_a_kind_are_one_line(files):
    oddities = Oddities()
    score_files(*files(truth_of({}), found_of(*[{"category_id": 8}] * 7)), oddities=oddities)
    assert oddities.lines() == [
        "results entry 0 (video 1): a category that the truth does not list; left out (7 such places)"
    ]


def test_an_id_given_twice_means_the_last_track_twice(files):
    """As in the official index: the first square is forgotten, the second counts as two tracks."""
    other = rle((10, 10, 5, 5))
    truth = truth_of({"id": 4}, {"id": 4, "segmentations": [other] * 2})
    results = found_of(
        {}, {"segmentations": [other] * 2, "score": 0.4}, {"segmentations": [other] * 2, "score": 0.3}
    )
    assert score_files(*files(truth, results)).stats["AR100"] == 1
    assert score_files(*files(truth, results[:2])).stats["AR100"] == 0.5


FATAL = {
    "unknown video": (found_of({}, {"video_id": 99}), "entry 1: video 99"),
    "NaN": (found_of({}, {"score": float("nan")}), "entry 1: score nan"),
    "score as text": (found_of({"score": "0.5"}), "entry 0: score '0.5'"),
    "malformed mask": (
        found_of({"segmentations": [GOOD, {**GOOD, "counts": "5~"}]}),
        "entry 0 .video 1., frame 1: malformed",
    ),
    "mask that stops short": (
        found_of({"segmentations": [GOOD, {**GOOD, "size": [21, 20]}]}),
        "frame 1: .* cover 400 pixels",
    ),
    "no counts": (found_of({"segmentations": [None, {"size": [20, 20]}]}), "frame 1: .*no 'counts'"),
    "negative run": (
        found_of({"segmentations": [{"size": [20, 20], "counts": [500, -100]}]}),
        "frame 0: .*negative",
    ),
    "fraction of a run": (
        found_of({"segmentations": [{"size": [20, 20], "counts": [399.5, 0.5]}]}),
        "frame 0: .*whole number",
    ),
    "no list": (found_of({"segmentations": 0}), "entry 0 .video 1.: expected a list"),
    "no score": ('[{"video_id": 1, "category_id": 1, "segmentations": []}]', "entry 0: no key `score`"),
    "an object": ("{}", "expected a list of predicted tracks"),
    "broken JSON": (json.dumps(found_of({}))[:-2], r"results\.json: not JSON"),
    "an empty file": ("", r"results\.json: the file is empty"),
}


@pytest.mark.parametrize("kind", FATAL)
def test_what_makes_no_sense_is_fatal_and_named(files, kind):
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
        (lambda t: t.update(annotations={}), "expected a list `annotations`"),
        (lambda t: t["annotations"].append(None), "annotations entry 1: expected an object"),
        (lambda t: t["annotations"][0].update(id=[1]), "annotations entry 0: `id` must be a number"),
        (lambda t: t["annotations"][0].update(areas="x"), "annotation 1: `areas` must be a list"),
        (lambda t: t["annotations"][0].update(areas=["a", "b"]), "annotation 1: `areas` must be a list"),
        (lambda t: t["annotations"][0].update(areas=None), "annotation 1: `areas` must be a list"),
        (lambda t: t["annotations"][0].update(occlusion=3), "annotation 1: `occlusion` must be a list"),
    ],
)
def test_a_truth_that_makes_no_sense_is_named(files, change, words):
    truth = truth_of({"occlusion": ["no_occlusion"] * 2})
    change(truth)
    with pytest.raises(UserError, match=words):
        score_files(*files(truth, found_of({})), ovis=True)


@pytest.mark.parametrize("key", ["video_id", "category_id"])
def test_an_id_that_is_a_list_is_named(files, key):
    with pytest.raises(UserError, match=r"results entry 0: .*\[1\]"):
        score_files(*files(truth_of({}), found_of({key: [1]})))


def test_files_that_are_not_there_are_named(tmp_path, files):
    truth, results = files({"videos": [], "categories": []}, [])
    with pytest.raises(UserError, match=r"nowhere\.json: no such file"):
        score_files(tmp_path / "nowhere.json", results)
    with pytest.raises(UserError, match="no key `annotations`"):
        score_files(truth, results)
    with pytest.raises(UserError, match="a folder"):
        score_files(tmp_path, results)


def test_occlusion_scores_want_occlusion_levels(files):
    with pytest.raises(UserError, match="leave out --ovis"):
        score_files(*files(truth_of({}), found_of({})), ovis=True)
    truth = truth_of({"occlusion": ["severe_occlusion"] * 2}, {})
    oddities = Oddities()
    found = score_files(*files(truth, found_of({})), ovis=True, oddities=oddities)
    assert found.ranges == AREAS + OCCLUSIONS
    assert oddities.lines() == ["annotation 2: no occlusion levels; taken as not occluded"]


def test_lists_that_are_alike_are_kept_once_and_score_as_two(files, monkeypatch):
    monkeypatch.setattr(masks, "_HEAD", 40)  # the lists of data are longer
    other = [rle((0, 0, 5, 4)), GOOD]
    tracks = ({}, {"score": 0.4}, {"score": 0.3, "segmentations": other}, {"score": 0.2})
    truth, found = files(truth_of({}), found_of(*tracks))
    document = read_document(found)
    assert document.spans == [(0, 2), (0, 2), (2, 4), (0, 2)]
    scores = score_files(truth, found)
    assert [track.id for track in scores.predictions[1, 1]] == [0, 1, 2, 3]
    assert [list(track.pixels) for track in scores.predictions[1, 1]] == [
        [25, 25],
        [25, 25],
        [20, 25],
        [25, 25],
    ]


def test_tables_grow_with_the_masks_that_come(files, monkeypatch):
    monkeypatch.setattr(masks, "_ROOM", 1)
    tracks = [{"segmentations": [rle((x, 0, 2, 2)), None, rle((x, 3, x + 1, 1))]} for x in range(7)]
    _, found = files(truth_of({}), found_of(*tracks))
    document = read_document(found)
    assert document.spans == [(3 * n, 3 * n + 3) for n in range(7)]
    assert document.masks.facts[:, 0].tolist() == [area for x in range(7) for area in (4, 0, x + 1)]


@pytest.mark.parametrize("length", [1, 60, 61, 62, 1000])
def test_a_file_means_the_same_in_whatever_pieces_it_is_read(files, monkeypatch, length):
    """Pieces end anywhere: in a list, in a key, between look-alikes."""
    truth, results = random_case(np.random.default_rng(3))
    paths = files(look_alikes_of_truth(truth), look_alikes(results))
    expected = report(score_files(*paths))
    monkeypatch.setattr(masks, "_PIECE", length)
    assert report(score_files(*paths)) == expected


def look_alikes_of_truth(truth):
    """A truth whose tracks speak of masks in other places."""
    tracks = json.loads(look_alikes(truth["annotations"]))
    return json.dumps({"info": {"segmentations": []}, **truth, "annotations": tracks})


@pytest.mark.parametrize("form", ["string", "list"])
def test_runs_longer_than_16_bits_are_whole(files, form):
    """Bars on frames of 2,000 x 4,000 pixels with gaps and masks of up to 7,000,000 pixels."""
    size = (2000, 4000)
    one = [rle((x, 0, w, 2000), size, form) for x, w in ((3900, 50), (100, 3600))]
    two = [rle((x, 0, w, 2000), size) for x, w in ((3925, 75), (1900, 2000))]
    truth = truth_of({"segmentations": one}, frames=2)
    truth["videos"][0] |= {"height": 2000, "width": 4000}
    paths = files(truth, found_of({"segmentations": two}))
    assert score_files(*paths).predictions[1, 1][0].pixels.tolist() == [75 * 2000, 2000 * 2000]
    (entry,) = report(score_files(*paths))["ytvis"]["track_iou"]
    assert entry["iou"] == [[(25 + 1800) / (100 + 3800)]]


@pytest.mark.parametrize("seed", range(8))
def test_numbers_of_every_length_are_read_in_any_order(seed):
    """Runs of one to five digits, many or few of a kind in turn, as strings and as lists."""
    draw = np.random.default_rng(seed)
    lengths = np.repeat(draw.choice([3, 14, 200, 9000, 60000], 40), draw.integers(1, 30, 40))
    runs = np.maximum(1, lengths + draw.integers(-2, 3, len(lengths)))
    counts = [int(run) for run in runs[: len(runs) - seed % 2]]
    size = [1, sum(counts)]
    string = coco_mask.frPyObjects({"size": size, "counts": counts}, *size)["counts"].decode("ascii")
    listed = [{"size": size, "counts": form} for form in (string, counts)]
    reader = masks.MaskReader(masks.Document([]))
    found = reader.finish([reader.add(listed, lambda t: f"frame {t}")], lambda n, t: f"frame {t}")
    assert masks.rle_runs(string).tolist() == counts
    edges = np.cumsum(counts)
    last = edges[1::2][-1]
    assert found.facts[:, :4].tolist() == [[sum(counts[1::2]), counts[0], last, size[1]]] * 2
    first, second = (found.runs[row[0] : row[1]].tolist() for row in found.rows)
    assert first == second


def test_a_run_beyond_all_frames_is_malformed(files):
    """A number of 40 bits takes eight bytes: it must neither fit nor run over the table."""
    for counts in ([1 << 39, 5], [400 - (1 << 33), 1 << 33], [5, (1 << 11) * 400]):
        wrong = {"size": [20, 20], "counts": counts}
        with pytest.raises(UserError, match="frame 0: malformed run-length mask"):
            score_files(*files(truth_of({}), found_of({"segmentations": [wrong, GOOD]})))
    for size in ([1 << 16, 1 << 15], [1 << 40, 1], [10**30, 1], [-20, -20]):
        wrong = {"size": size, "counts": [abs(size[0] * size[1])]}
        with pytest.raises(UserError, match="frame 1: malformed run-length mask"):
            score_files(*files(truth_of({}), found_of({"segmentations": [GOOD, wrong]})))


def test_where_nothing_can_be_kept_the_loops_are_compiled_all_the_same(monkeypatch):
    def njit(function=None, cache=False):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return function

    monkeypatch.setattr(kernels, "njit", njit)
    assert kernels.compiled(len)("abc") == 3


def test_scoring_needs_no_torch():
    """Loading it takes longer than scoring a validation set."""
    code = "import sys, local2global.evaluation.ytvis; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["l2g", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_command_prints_a_table_warns_and_writes_json(files, tmp_path, monkeypatch, capsys):
    truth, results = files(truth_of({}), found_of({}, {"category_id": 8}))
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


def test_a_bundle_is_checked_and_holds_results_at_its_top(files, tmp_path):
    truth, results = files(truth_of(videos=(1, 2)), found_of({}))
    bundle = write_bundle(json.loads(truth.read_text()), results, tmp_path / "sent" / "out.zip")
    assert (bundle.tracks, bundle.videos, bundle.empty) == (1, 1, 1)
    with zipfile.ZipFile(tmp_path / "sent" / "out.zip") as sent:
        assert sent.namelist() == ["results.json"]
        assert json.loads(sent.read("results.json")) == found_of({})


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
    truth, results = files(truth_of(), found_of({}, change))
    with pytest.raises(UserError, match=words):
        write_bundle(json.loads(truth.read_text()), results, tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


@pytest.mark.parametrize("blind", [True, False])
def test_eval_bundles_for_the_server_what_it_cannot_score(files, tmp_path, capsys, blind):
    """Without truth `l2g eval` writes the zip unasked and says so; with truth only where it is told to."""
    annotations = truth_of({})
    if blind:
        annotations["annotations"] = None
    truth, _ = files(annotations, found_of({}))
    evaluator = {"_target_": "local2global.evaluation.ytvis.YTVISEvaluator", "truth": str(truth)}
    evaluator |= {"classes": [{"id": 1, "name": "c1"}], "output_dir": str(tmp_path)}
    cfg = OmegaConf.create({"dataloader": {"evaluator": evaluator}})
    bundle_results(cfg, None)
    assert (tmp_path / "results.zip").exists() == blind
    assert ("No truth" in capsys.readouterr().out) == blind
    bundle_results(cfg, tmp_path / "asked.zip")
    assert zipfile.is_zipfile(tmp_path / "asked.zip")
    assert "1 tracks of 1 videos" in capsys.readouterr().out


def test_eval_bundles_nothing_of_a_panoptic_evaluator(monkeypatch, tmp_path):
    """Its truth has no list of tracks: that is no mistake unless a zip is asked for."""
    monkeypatch.setattr("local2global.lazy.instantiate", lambda _: SimpleNamespace(truth=object()))
    cfg = OmegaConf.create({"dataloader": {"evaluator": None}})
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
    found = score_files(*files(truth, found_of({"video_id": 2})))
    assert list(by_length(found, truth).values()) == pytest.approx([0, 1, 0])


def test_identity_scores_see_a_switch(files):
    """One object, two predictions that each follow it for two of four frames: one switch, half of it kept."""
    pytest.importorskip("trackeval")
    truth = truth_of({}, frames=4)
    halves = found_of(
        {"segmentations": [GOOD, GOOD, None, None]}, {"segmentations": [None, None, GOOD, GOOD]}
    )
    split = identity_scores(score_files(*files(truth, halves)))
    assert (split["switches"], split["IDF1"], split["DetA"]) == (1, 0.5, pytest.approx(1))
    whole = identity_scores(score_files(*files(truth, found_of({}, frames=4))))
    assert (whole["switches"], whole["IDF1"], whole["HOTA"]) == (0, 1, pytest.approx(1))


def test_identity_scores_without_trackeval_say_what_to_install(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackeval.metrics", None)
    found = score_files(*files(truth_of({}), found_of({})))
    with pytest.raises(UserError, match=r"local2global\[metrics\]"):
        identity_scores(found)


def test_a_document_keeps_what_it_cannot_read_as_usual(tmp_path):
    """A list with anything but masks stays a list, and a list of masks is a number."""
    path = tmp_path / "x.json"
    path.write_text(
        json.dumps([{"segmentations": [GOOD, None]}, {"segmentations": [[1, 2]]}, {"segmentations": []}])
    )
    document = read_document(path)
    assert [entry["segmentations"] for entry in document.content] == [0, [[1, 2]], []]
    assert document.spans == [(0, 2)]
