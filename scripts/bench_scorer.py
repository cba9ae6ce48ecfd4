"""How fast `l2g score vis` is beside a scorer that does as the official one: every pair merged, frame by frame.

    python scripts/bench_scorer.py [--quick] [--json rows.json]

`make_load` draws a seeded truth and results of the size of a validation set, `reference_score` is the other arm: plain
loops over pycocotools, written from the rules.  Both arms start from the files and use one thread; their scores are
compared in every round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

Array = NDArray[Any]
Rle = dict[str, Any]
LEVELS = ("no_occlusion", "slight_occlusion", "severe_occlusion")


@dataclass(frozen=True)
class Load:
    """The size of a validation set.

    Attributes:
        videos: the number of videos.
        frames: the least and the largest number of frames of a video.
        truths: the least and the largest number of true tracks of a video.
        predictions: predicted tracks per video.
        categories: the number of categories.
        per_video: the most categories that one video shows.
        occlusion: whether tracks have occlusion levels, and the truth compressed masks.
        size: (height, width) of every frame.
    """

    videos: int
    frames: tuple[int, int]
    truths: tuple[int, int]
    predictions: int
    categories: int
    per_video: int
    occlusion: bool = False
    size: tuple[int, int] = (720, 1280)


LOADS = {
    "ytvis21": Load(421, (18, 36), (1, 4), 10, 40, 2),
    "ovis": Load(140, (24, 72), (3, 9), 15, 25, 2, occlusion=True),
}


def _outline(draw: np.random.Generator, size: tuple[int, int]) -> dict[str, float]:
    """A drifting blob: where it starts, its half axes, how it drifts and how rough its outline is."""
    height, width = size
    return {
        "x": draw.uniform(0.1, 0.9) * width,
        "y": draw.uniform(0.2, 0.8) * height,
        "a": draw.uniform(0.04, 0.18) * width,
        "b": draw.uniform(0.08, 0.35) * height,
        "dx": draw.normal(0, 0.004) * width,
        "dy": draw.normal(0, 0.003) * height,
        "gap": draw.uniform(-0.6, 0.6),
        "rough": draw.uniform(1, 6),
    }


def _waves(draw: np.random.Generator, columns: Array, shape: Mapping[str, float]) -> Array:
    """(2, columns) how far the upper and the lower outline lie off the ellipse, another way on every frame."""
    length = draw.uniform(8, 60, (2, 3, 1))
    waves: Array = np.sin(2 * np.pi * columns / length + draw.uniform(0, 7, (2, 3, 1))).sum(1)
    return shape["rough"] / 3 * waves + draw.normal(0, 0.2, (2, len(columns)))


def _blob(draw: np.random.Generator, shape: Mapping[str, float], t: int, size: tuple[int, int]) -> Rle | None:
    """The blob on frame `t` as uncompressed runs; None where nothing of it lies in the frame."""
    height, width = size
    x, y = shape["x"] + t * shape["dx"], shape["y"] + t * shape["dy"]
    columns = np.arange(max(0, int(x - shape["a"]) + 1), min(width, int(x + shape["a"])))
    if len(columns) < 2:
        return None
    half = shape["b"] * np.sqrt(np.clip(1 - ((columns - x) / shape["a"]) ** 2, 0, 1))
    wave = _waves(draw, columns - x, shape)
    top = np.clip(np.rint(y - half + wave[0]), 0, height).astype(np.int64)
    bottom = np.clip(np.rint(y + half + wave[1]), 0, height).astype(np.int64)
    # An eighth of the columns is parted, as by a limb or a leaf.
    parted = (np.abs(columns - x - shape["a"] * shape["gap"]) < shape["a"] / 8) & (bottom - top > 12)
    middle = (top + bottom) // 2
    starts = np.concatenate([columns * height + top, (columns * height + middle + 3)[parted]])
    stops = np.concatenate(
        [columns * height + np.where(parted, middle - 3, bottom), (columns * height + bottom)[parted]]
    )
    order = np.argsort(starts, kind="stable")
    starts, stops = starts[order], stops[order]
    filled = stops > starts
    edges = np.stack([starts[filled], stops[filled]], 1).ravel()
    if not len(edges):
        return None
    # Where one column ends at the bottom and the next begins at the top a run of no pixels would stand.
    touching = np.flatnonzero(np.diff(edges) == 0)
    edges = np.delete(edges, np.concatenate([touching, touching + 1]))
    counts = np.diff(np.concatenate([[0], edges, [height * width]])).tolist()
    return {"size": [height, width], "counts": counts if counts[-1] else counts[:-1]}


def _compressed(rle: Rle | None) -> Rle | None:
    if rle is None:
        return None
    found = coco_mask.frPyObjects(rle, *rle["size"])
    return {"size": rle["size"], "counts": found["counts"].decode("ascii")}


def _track(
    draw: np.random.Generator, shape: Mapping[str, float], frames: int, load: Load
) -> list[Rle | None]:
    """One blob over a video, away for a while in one of five."""
    away = range(0)
    if draw.random() < 0.2:
        begin = int(draw.integers(frames))
        away = range(begin, begin + max(1, frames // 5))
    return [None if t in away else _blob(draw, shape, t, load.size) for t in range(frames)]


def _truth_entry(
    draw: np.random.Generator, number: int, video: int, category: int, masks: list[Rle | None], load: Load
) -> dict[str, Any]:
    height, width = load.size
    entry = {
        "id": number,
        "video_id": video,
        "category_id": category,
        "iscrowd": int(draw.random() < 0.02),
        "height": height,
        "width": width,
        "length": len(masks),
        "segmentations": [_compressed(m) for m in masks] if load.occlusion else masks,
        "areas": [sum(m["counts"][1::2]) if m else None for m in masks],
        "bboxes": [None] * len(masks),
    }
    if load.occlusion:
        entry["occlusion"] = [LEVELS[int(draw.integers(3))] if m else None for m in masks]
        entry["occlusion"][0] = entry["occlusion"][0] or LEVELS[0]
    return entry


def _predictions(
    draw: np.random.Generator,
    video: int,
    frames: int,
    seen: Sequence[tuple[int, Mapping[str, float]]],
    load: Load,
) -> list[dict[str, Any]]:
    """Tracks near the true ones under their own or another category; best first, as models write them."""
    found: list[dict[str, Any]] = []
    height, width = load.size
    while len(found) < load.predictions:
        category, shape = seen[int(draw.integers(len(seen)))]
        near = {
            **shape,
            "x": shape["x"] + draw.normal(0, 0.012) * width,
            "y": shape["y"] + draw.normal(0, 0.012) * height,
            "a": shape["a"] * draw.uniform(0.85, 1.1),
        }
        shape = near if draw.random() < 0.75 else _outline(draw, load.size)
        masks = [_compressed(m) for m in _track(draw, shape, frames, load)]
        # One slot is often listed under several categories with the same masks.
        for _ in range(min(int(draw.integers(1, 3)), load.predictions - len(found))):
            found.append(
                {
                    "video_id": video,
                    "category_id": category,
                    "score": float(draw.random()),
                    "segmentations": masks,
                }
            )
            category = int(draw.integers(1, load.categories + 1))
    return sorted(found, key=lambda entry: -entry["score"])


def make_load(folder: Path, kind: str, videos: int | None = None, seed: int = 0) -> tuple[Path, Path]:
    """Writes `<kind>_gt.json` and `<kind>_results.json`; files of the same video count and seed are kept.

    Args:
        folder: where to.
        kind: a key of `LOADS`.
        videos: how many of the set's videos; all by default.
        seed: of every draw.

    Returns:
        the paths of truth and results.
    """
    load = LOADS[kind]
    count = load.videos if videos is None else min(videos, load.videos)
    stem = f"{kind}_{count}_{seed}"
    paths = folder / f"{stem}_gt.json", folder / f"{stem}_results.json"
    if all(path.is_file() for path in paths):
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng([seed, len(kind)])
    height, width = load.size
    truth: dict[str, Any] = {
        "videos": [],
        "categories": [{"id": c, "name": f"class{c}"} for c in range(1, load.categories + 1)],
        "annotations": [],
    }
    partial = paths[1].with_suffix(".tmp")
    with partial.open("w", encoding="utf-8") as file:
        for video in range(1, count + 1):
            frames = int(draw.integers(load.frames[0], load.frames[1] + 1))
            names = [f"{video:04}/{t:05}.jpg" for t in range(frames)]
            truth["videos"].append(
                {"id": video, "height": height, "width": width, "length": frames, "file_names": names}
            )
            shown = draw.integers(1, load.categories + 1, load.per_video).tolist()
            seen = []
            for _ in range(int(draw.integers(load.truths[0], load.truths[1] + 1))):
                category, shape = shown[int(draw.integers(len(shown)))], _outline(draw, load.size)
                masks = _track(draw, shape, frames, load)
                number = len(truth["annotations"]) + 1
                truth["annotations"].append(_truth_entry(draw, number, video, category, masks, load))
                seen.append((category, shape))
            entries = _predictions(draw, video, frames, seen, load)
            file.write(
                "".join(
                    ("[" if video == 1 and not i else ", ") + json.dumps(e) for i, e in enumerate(entries)
                )
            )
        file.write("]")
    paths[0].write_text(json.dumps(truth), encoding="utf-8")
    partial.replace(paths[1])
    return paths


THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = ((0, 1e10), (0, 128**2), (128**2, 256**2), (256**2, 1e10))
LIMITS = (1, 10, 100)


def _pair_iou(first: Sequence[Rle | None], second: Sequence[Rle | None]) -> float:
    """IoU of two tracks: both masks of a frame are merged twice, for what they share and for what they cover."""
    shared = covered = 0.0
    for a, b in zip(first, second, strict=False):
        if a and b:
            shared += float(coco_mask.area(coco_mask.merge([a, b], intersect=True)))
            covered += float(coco_mask.area(coco_mask.merge([a, b], intersect=False)))
        elif a or b:
            covered += float(coco_mask.area(a or b))
    return shared / covered if covered else 0.0


def _mean_area(areas: Sequence[float | None]) -> float:
    found = [area for area in areas if area]
    return float(np.mean(found)) if found else 0.0


def _occlusion(entry: Mapping[str, Any]) -> float:
    worth = dict(zip(LEVELS, (0.0, 0.25, 0.75), strict=True))
    values = sorted(worth[level] for level in entry["occlusion"] if level is not None)
    half = values[len(values) // 2 :]
    return sum(half) / len(half)


def _match_video(
    truths: Sequence[Mapping[str, Any]],
    found: Sequence[Mapping[str, Any]],
    iou: Array,
    ignored: Sequence[bool],
    area: tuple[float, float],
) -> tuple[Array, Array]:
    """(T, P) whether each prediction found something, and whether it is left out of the counts."""
    matched = np.zeros((len(THRESHOLDS), len(found)), dtype=bool)
    left_out = np.zeros_like(matched)
    for t, threshold in enumerate(THRESHOLDS):
        taken = [False] * len(truths)
        for p, prediction in enumerate(found):
            choice = -1
            for group in (False, True):  # tracks that count come before those that do not
                best = threshold
                for g, truth in enumerate(truths):
                    free = not taken[g] or truth["iscrowd"]
                    if ignored[g] == group and free and iou[p, g] >= best:
                        best, choice = iou[p, g], g
                if choice >= 0:
                    break
            if choice >= 0:
                taken[choice] = True
                matched[t, p], left_out[t, p] = truths[choice]["id"] != 0, ignored[choice]
            if not matched[t, p] and not area[0] <= prediction["size"] <= area[1]:
                left_out[t, p] = True
    return matched, left_out


def _curve(matched: Array, left_out: Array, counting: int) -> tuple[Array, float]:
    """(101,) precision at the recall points and the recall reached."""
    precision, recall, right, wrong = [], [], 0, 0
    for hit, out in zip(matched.tolist(), left_out.tolist(), strict=True):
        right, wrong = right + (hit and not out), wrong + (not hit and not out)
        recall.append(right / counting)
        precision.append(right / (wrong + right + np.spacing(1)))
    for i in range(len(precision) - 1, 0, -1):
        precision[i - 1] = max(precision[i - 1], precision[i])
    places = np.searchsorted(recall, RECALLS, side="left")
    return np.array([precision[i] if i < len(precision) else 0.0 for i in places]), (recall or [0.0])[-1]


def _read(truth_path: Path, results_path: Path) -> tuple[dict[str, Any], dict[Any, Any], dict[Any, Any]]:
    """The truth, and its tracks and the best 100 predictions by (video, category), sizes filled in."""
    truth, results = json.loads(truth_path.read_text()), json.loads(results_path.read_text())
    truths, found = defaultdict(list), defaultdict(list)
    for entry in truth["annotations"]:
        masks = [
            coco_mask.frPyObjects(m, *m["size"]) if m and isinstance(m["counts"], list) else m
            for m in entry["segmentations"]
        ]
        size = _mean_area(entry["areas"])
        track = {**entry, "segmentations": masks, "size": size}
        truths[entry["video_id"], entry["category_id"]].append(track)
    for index, entry in enumerate(results):
        areas = [float(coco_mask.area(m)) if m else None for m in entry["segmentations"]]
        track = {**entry, "index": index, "size": _mean_area(areas)}
        found[entry["video_id"], entry["category_id"]].append(track)
    for key, group in found.items():
        found[key] = sorted(group, key=lambda entry: -entry["score"])[: LIMITS[-1]]
    return truth, truths, found


def reference_score(truth_path: Path, results_path: Path, ovis: bool = False) -> dict[str, Any]:
    """Scores by the plainest means, as the official scorers go about it.

    Args:
        truth_path: annotations in YouTube-VIS form.
        results_path: predicted tracks with compressed masks.
        ovis: also by occlusion level.

    Returns:
        `precision` (T, 101, K, A, limits), `recall` (T, K, A, limits), and `iou`: by (video, category) the
        matrix of its predictions, best first, and its tracks in file order.
    """
    truth, truths, found = _read(truth_path, results_path)
    levels = ((0, 1), (0, 0.25), (0.25, 0.5), (0.5, 1))
    ranges = [(area, levels[0]) for area in AREAS] + [(AREAS[0], o) for o in levels[1:] if ovis]
    categories = sorted({c["id"] for c in truth["categories"]})
    videos = sorted({v["id"] for v in truth["videos"]})
    keys = [(v, c) for v in videos for c in categories if truths.get((v, c)) or found.get((v, c))]
    iou = {}
    for key in keys:
        pairs = [
            [_pair_iou(p["segmentations"], g["segmentations"]) for g in truths.get(key, ())]
            for p in found.get(key, ())
        ]
        iou[key] = np.array(pairs).reshape(len(found.get(key, ())), len(truths.get(key, ())))
    precision = np.full((len(THRESHOLDS), len(RECALLS), len(categories), len(ranges), len(LIMITS)), -1.0)
    recall = np.full((len(THRESHOLDS), len(categories), len(ranges), len(LIMITS)), -1.0)
    for (k, category), (a, (area, level)) in (
        (x, y) for x in enumerate(categories) for y in enumerate(ranges)
    ):
        pooled, counting = [], 0
        for key in (key for key in keys if key[1] == category):
            true, predicted = truths.get(key, []), found.get(key, [])
            ignored = [
                bool(g["iscrowd"])
                or not area[0] <= g["size"] <= area[1]
                or (ovis and not level[0] <= _occlusion(g) <= level[1])
                for g in true
            ]
            counting += ignored.count(False)
            matched, left_out = _match_video(true, predicted, iou[key], ignored, area)
            pooled.append(([p["score"] for p in predicted], matched, left_out))
        for m, limit in enumerate(LIMITS) if counting else ():
            scores = np.concatenate([scores[:limit] for scores, _, _ in pooled])
            order = np.argsort(-scores, kind="stable")
            hits = np.concatenate([h[:, :limit] for _, h, _ in pooled], axis=1)[:, order]
            outs = np.concatenate([o[:, :limit] for _, _, o in pooled], axis=1)[:, order]
            for t in range(len(THRESHOLDS)):
                curve = _curve(hits[t], outs[t], counting)
                precision[t, :, k, a, m], recall[t, k, a, m] = curve
    return {"precision": precision, "recall": recall, "iou": iou}


def score(truth_path: Path, results_path: Path, ovis: bool = False) -> dict[str, Any]:
    """Our scores of two files: `precision` and `recall` as `reference_score` gives them."""
    from local2global.evaluation.precision import LIMITS as OURS
    from local2global.evaluation.ytvis import score_files

    assert OURS == LIMITS
    found = score_files(truth_path, results_path, ovis=ovis)
    return {"precision": found.precision, "recall": found.recall}


ARMS = {"ours": score, "peer": reference_score}


def _timed(arm: str, paths: tuple[Path, Path], ovis: bool) -> tuple[float, dict[str, Any]]:
    begin = time.process_time()
    found = ARMS[arm](*paths, ovis=ovis)
    return time.process_time() - begin, found


def peak_resident() -> int:
    """Bytes that this process has had in memory at most; getrusage would count what its parent had when it forked."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _peak(arm: str, kind: str, paths: tuple[Path, Path]) -> float:
    """The peak resident memory in MB of a process of its own that scores the files once."""
    command = [sys.executable, __file__, "--arm", arm, kind, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def compare(kind: str, paths: tuple[Path, Path], rounds: int) -> dict[str, Any]:
    """One row: both arms in turn, ours first in every second round, CPU seconds of this process at one thread."""
    ovis = LOADS[kind].occlusion
    score(*paths, ovis=ovis)  # the first call compiles
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    agree = True
    for turn in range(rounds):
        # ABBA: a machine that slows down or speeds up favours neither.
        found = {}
        for arm in ("ours", "peer") if turn % 2 == 0 else ("peer", "ours"):
            took, found[arm] = _timed(arm, paths, ovis)
            seconds[arm].append(took)
        agree &= all(
            np.allclose(found["ours"][key], found["peer"][key], rtol=0, atol=1e-12)
            for key in ("precision", "recall")
        )
    ratios = [peer / ours for ours, peer in zip(seconds["ours"], seconds["peer"], strict=True)]
    low, high = np.percentile(ratios, [25, 75])
    return {
        "section": "scorer",
        "name": kind,
        "ours_s": statistics.median(seconds["ours"]),
        "peer_s": statistics.median(seconds["peer"]),
        "ratio": statistics.median(ratios),
        "iqr": float(high - low),
        "agree": agree,
        "ours_mb": _peak("ours", kind, paths),
        "peer_mb": _peak("peer", kind, paths),
    }


def run(quick: bool = False, folder: Path | None = None) -> list[dict[str, Any]]:
    """Measures every load.

    Args:
        quick: a twentieth of the videos and two rounds, to see that it works.
        folder: where the loads are kept between runs; by default they are drawn anew.

    Returns:
        rows {section, name, ours_s, peer_s, ratio, iqr, agree, ours_mb, peer_mb}: medians of CPU seconds and
        of the rounds' ratios, the interquartile range of these, whether all scores were equal to 1e-12, and
        the peak resident memory of each arm in a process of its own.
    """
    with tempfile.TemporaryDirectory() as scratch:
        rows = []
        for kind, load in LOADS.items():
            videos = max(4, load.videos // 20) if quick else None
            paths = make_load(folder or Path(scratch), kind, videos)
            rows.append(compare(kind, paths, rounds=2 if quick else 4))
        return rows


def main() -> None:
    """Prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a twentieth of the videos, two rounds")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--folder", type=Path, help="keep the loads here between runs")
    parser.add_argument("--arm", nargs=4, metavar=("ARM", "KIND", "TRUTH", "RESULTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        arm, kind, truth, results = options.arm
        ARMS[arm](Path(truth), Path(results), ovis=LOADS[kind].occlusion)
        sys.stdout.write(str(peak_resident() / 1e6))
        return
    rows = run(options.quick, options.folder)
    for row in rows:
        words = (
            f"{key} {value:.3g}" if isinstance(value, float) else str(value) for key, value in row.items()
        )
        sys.stdout.write("  ".join(words) + "\n")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    if not all(row["agree"] for row in rows):
        sys.exit("the two arms disagree")


if __name__ == "__main__":
    main()
