"""Benchmark section `scorer`: `l2g score` beside a plain scorer that works as the official programs do.

    python scripts/benchmark.py scorer [--quick]

The plain scorer was written from the rules and is also the second opinion of the tests.  For tracks it merges the masks
of every pair twice on every frame.  For panoptic maps it decodes every frame again for each window.  Both arms start
from the same files and run in alternating order on one thread; all scores are compared.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

SIZE = (720, 1280)
LEVELS = {"no_occlusion": 0.0, "slight_occlusion": 0.25, "severe_occlusion": 0.75}
AREAS = ((0, 1e10), (0, 128**2), (128**2, 256**2), (256**2, 1e10))
LIMITS = (1, 10, 100)
WINDOWS = (1, 2, 4, 6, 8)


# --- Plain scorer of tracks ---


def pair_iou(first: list[Any], second: list[Any]) -> float:
    """IoU of two tracks; both masks of a frame are merged for their intersection and for their union."""
    shared = covered = 0.0
    for a, b in zip(first, second, strict=False):
        if a and b and a["size"] == b["size"]:
            shared += float(coco_mask.area(coco_mask.merge([a, b], intersect=True)))
            covered += float(coco_mask.area(coco_mask.merge([a, b])))
        elif not (a and b) and (a or b):
            covered += float(coco_mask.area(a or b))
    return shared / covered if covered else 0.0


def _mean(values: Any) -> float:
    nonzero = [value for value in values if value]
    return float(np.mean(nonzero)) if nonzero else 0.0


def _occlusion(track: dict[str, Any]) -> float:
    levels = sorted(LEVELS[level] for level in track["occlusion"] if level)
    half = levels[len(levels) // 2 :]
    return sum(half) / len(half)


def _match(truths: Any, found: Any, iou: Any, ignored: Any, area: Any, threshold: float) -> list[Any]:
    """(score, matched, left out) of each prediction of one video and category."""
    taken: set[int] = set()
    rows = []
    for p, prediction in enumerate(found):
        choice = -1
        for group in (False, True):  # tracks that count come before ignored ones
            best = threshold
            for g, truth in enumerate(truths):
                if ignored[g] == group and (g not in taken or truth["iscrowd"]) and iou[p][g] >= best:
                    best, choice = iou[p][g], g
            if choice >= 0:
                break
        taken.add(choice)
        matched = choice >= 0 and truths[choice]["id"] != 0
        out = (choice >= 0 and ignored[choice]) or (
            not matched and not area[0] <= prediction["area"] <= area[1]
        )
        rows.append((prediction["score"], matched, out))
    return rows


def _curve(rows: list[Any], counting: int) -> tuple[Any, float]:
    """Precision at 101 recall points, and the recall reached."""
    right = wrong = 0
    precision, recall = [], []
    for _, matched, out in sorted(rows, key=lambda row: -row[0]):
        right, wrong = right + (matched and not out), wrong + (not matched and not out)
        recall.append(right / counting)
        precision.append(right / (right + wrong + np.spacing(1)))
    best = [*np.maximum.accumulate(precision[::-1])[::-1], 0.0]
    return [best[i] for i in np.searchsorted(recall, np.linspace(0, 1, 101))], (recall or [0.0])[-1]


def _read(truth_path: Path, results_path: Path) -> tuple[Any, Any, Any]:
    """The truth, and its tracks and the 100 best predictions by (video, category)."""
    truth, results = json.loads(truth_path.read_text()), json.loads(results_path.read_text())
    truths, found = defaultdict(list), defaultdict(list)
    for track in truth["annotations"]:
        masks = [
            coco_mask.frPyObjects(m, *m["size"]) if m and isinstance(m["counts"], list) else m
            for m in track["segmentations"]
        ]
        track = {**track, "segmentations": masks, "area": _mean(track["areas"])}
        truths[track["video_id"], track["category_id"]].append(track)
    for track in sorted(results, key=lambda track: -track["score"]):
        area = _mean([coco_mask.area(m) for m in track["segmentations"] if m])
        found[track["video_id"], track["category_id"]].append({**track, "area": area})
    return truth, truths, {key: group[: LIMITS[-1]] for key, group in found.items()}


def plain_tracks(truth_path: Path, results_path: Path, ovis: bool = False) -> dict[str, Any]:
    """`precision` (T, 101, K, A, limits), `recall` (T, K, A, limits) and `iou` by (video, category)."""
    truth, truths, found = _read(truth_path, results_path)
    levels = ((0, 1), (0, 0.25), (0.25, 0.5), (0.5, 1))
    ranges = [(area, levels[0]) for area in AREAS] + [(AREAS[0], level) for level in levels[1:] if ovis]
    categories = sorted({c["id"] for c in truth["categories"]})
    keys = [(v, c) for v in sorted(v["id"] for v in truth["videos"]) for c in categories]
    iou = {
        key: [
            [pair_iou(p["segmentations"], g["segmentations"]) for g in truths[key]]
            for p in found.get(key, ())
        ]
        for key in keys
    }
    shape = (10, len(categories), len(ranges), len(LIMITS))
    precision, recall = np.full((10, 101, *shape[1:]), -1.0), np.full(shape, -1.0)
    for a, (area, level) in enumerate(ranges):
        ignored = {
            key: [
                bool(g["iscrowd"])
                or not area[0] <= g["area"] <= area[1]
                or (ovis and not level[0] <= _occlusion(g) <= level[1])
                for g in truths[key]
            ]
            for key in keys
        }
        for k, category in enumerate(categories):
            own = [key for key in keys if key[1] == category]
            counting = sum(ignored[key].count(False) for key in own)
            for t, threshold in enumerate(np.linspace(0.5, 0.95, 10)) if counting else ():
                rows = [
                    _match(truths[key], found.get(key, ()), iou[key], ignored[key], area, threshold)
                    for key in own
                ]
                for m, limit in enumerate(LIMITS):
                    pooled = [row for video in rows for row in video[:limit]]
                    precision[t, :, k, a, m], recall[t, k, a, m] = _curve(pooled, counting)
    return {"precision": precision, "recall": recall, "iou": iou}


# --- Plain scorer of panoptic maps ---


def _window(truth: Any, prediction: Any, lists: Any, counts: Any) -> None:
    """Adds one window's [IoU, tp, fp, fn] to `counts`, by category."""
    sides: list[dict[int, Any]] = [{}, {}]
    for side, frames in zip(sides, lists, strict=True):
        for entry in (entry for frame in frames for entry in frame):
            first = side.setdefault(entry["id"], {**entry, "area": 0})
            first["area"] += entry["area"]
    pairs = np.stack(truth).astype(np.uint64) << np.uint64(24) | np.stack(prediction).astype(np.uint64)
    keys, pixels = np.unique(pairs, return_counts=True)
    shared = {(int(k) >> 24, int(k) & 0xFFFFFF): int(n) for k, n in zip(keys, pixels, strict=True)}
    areas = dict(zip(*(x.tolist() for x in np.unique(np.stack(prediction), return_counts=True)), strict=True))
    found, used = set(), set()
    for (g, p), common in shared.items():
        true, predicted = sides[0].get(g, {"iscrowd": 1}), sides[1].get(p)
        if predicted is None or true["iscrowd"] == 1 or true["category_id"] != predicted["category_id"]:
            continue
        iou = common / (areas[p] + true["area"] - common - shared.get((0, p), 0))
        if iou > 0.5:
            counts[true["category_id"]] += [iou, 1, 0, 0]
            found.add(g)
            used.add(p)
    crowds = {}
    for g, true in sides[0].items():
        counts[true["category_id"]] += [0, 0, 0, int(g not in found and true["iscrowd"] != 1)]
        if true["iscrowd"] == 1:
            crowds[true["category_id"]] = g
    for p, predicted in sides[1].items():
        excused = shared.get((0, p), 0) + shared.get((crowds.get(predicted["category_id"], -1), p), 0)
        counts[predicted["category_id"]] += [0, 0, int(p not in used and excused / areas[p] <= 0.5), 0]


def plain_vpq(videos: Any, classes: Any) -> dict[str, Any]:
    """{window: {all, thing, stuff: PQ or None}}."""
    scores: dict[str, Any] = {}
    for length in WINDOWS:
        counts: Any = defaultdict(lambda: np.zeros(4))
        for video in videos.values():
            for start in range(len(video["truth_lists"]) - length + 1):
                cut = slice(start, start + length)
                lists = video["truth_lists"][cut], video["prediction_lists"][cut]
                _window(video["truth"][cut], video["prediction"][cut], lists, counts)
        pq = {c: n[0] / (n[1] + n[2] / 2 + n[3] / 2) for c, n in counts.items() if n[1:].any()}
        for name, kinds in (("all", (0, 1)), ("thing", (1,)), ("stuff", (0,))):
            members = [pq[c["id"]] for c in classes if c["id"] in pq and c["isthing"] in kinds]
            scores.setdefault(str(length), {})[name] = sum(members) / len(members) if members else None
    return scores


def plain_stq(videos: Any, classes: Any) -> dict[str, float | None]:
    """STQ, AQ and SQ."""
    position = {c["id"]: k for k, c in enumerate(classes)}
    things = np.array([bool(c["isthing"]) for c in classes] + [False])
    size, offset = len(classes) + 1, 1 << 12
    confusion, association, tubes = np.zeros((size, size), np.int64), 0.0, 0
    for video in videos.values():
        numbers: list[dict[int, int]] = [{}, {}]
        true_size, predicted_size, shared = Counter(), Counter(), Counter()
        for t in range(len(video["truth_lists"])):
            labels, tracks = [], []
            for side, number in zip(("truth", "prediction"), numbers, strict=True):
                ids = video[side][t]
                label, track = np.full(ids.shape, size - 1), np.zeros(ids.shape, np.int64)
                for entry in video[f"{side}_lists"][t]:
                    mask = ids == entry["id"]
                    label[mask] = position[entry["category_id"]]
                    track[mask] = number.setdefault(entry["id"], len(number))
                labels.append(label)
                tracks.append(label * offset + track)
            joint = np.bincount((labels[0] * size + labels[1]).ravel(), minlength=size**2)
            confusion += joint.reshape(size, size)
            crowd = things[labels[0]] & (tracks[0] % offset == 0)
            true, predicted = things[labels[0]] & ~crowd, things[labels[1]] & ~crowd
            pairs = tracks[0] * (size * offset) + tracks[1]
            for sizes, keys in (
                (true_size, tracks[0][true]),
                (predicted_size, tracks[1][predicted]),
                (shared, pairs[true & predicted]),
            ):
                values, pixels = np.unique(keys, return_counts=True)
                sizes.update(dict(zip(values.tolist(), pixels.tolist(), strict=True)))
        tubes += len(true_size)
        for key, n in shared.items():
            g, p = divmod(key, size * offset)
            association += n * n / (true_size[g] + predicted_size[p] - n) / true_size[g]
    confusion[-1] = 0
    hit = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - hit
    sq = float((hit[union > 0] / union[union > 0]).mean()) if union.any() else None
    aq = association / max(tubes, 1)
    return {"STQ": None if sq is None else math.sqrt(aq * sq), "AQ": aq, "SQ": sq}


class Pngs:
    """A folder of maps that decodes a frame whenever it is indexed, as the official programs do."""

    def __init__(self, folder: Path, length: int) -> None:
        self.folder, self.frames = folder, range(length)

    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, slice):
            return [self[t] for t in self.frames[which]]
        pixels = np.array(Image.open(self.folder / f"{self.frames[which]:08d}.png")).astype(np.uint32)
        return pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]


def contents(videos: Any, classes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON contents of truth and prediction; `videos` as for `plain_vpq`."""
    sides: dict[str, list[Any]] = {"truth": [], "prediction": []}
    for side, entries in sides.items():
        for name, video in videos.items():
            frames = [
                {"file_name": f"{t:08d}.png", "segments_info": segments}
                for t, segments in enumerate(video[f"{side}_lists"])
            ]
            entries.append({"video_id": name, "annotations": frames})
    images = [{"video_id": v["video_id"], "images": v["annotations"]} for v in sides["truth"]]
    truth = {"videos": images, "categories": classes, "annotations": sides["truth"]}
    return truth, {"annotations": sides["prediction"]}


# --- Loads ---


def _blob(draw: np.random.Generator, centre: Any, radii: Any, drift: Any, frames: int) -> list[Any]:
    """Masks of a drifting blob with a rough outline; absent for some frames in one of five tracks."""
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    away = int(draw.integers(frames)) if draw.random() < 0.2 else frames
    masks: list[Any] = []
    for t in range(frames):
        rough = 1 + 0.03 * np.sin(5 * angle + draw.uniform(0, 7)) + draw.normal(0, 0.01, len(angle))
        outline = np.stack([np.cos(angle), np.sin(angle)], 1) * rough[:, None] * radii + centre + t * drift
        outline = outline.clip(0, (SIZE[1], SIZE[0]))
        (rle,) = coco_mask.frPyObjects([outline.ravel().tolist()], *SIZE)
        present = coco_mask.area(rle) and not away <= t < away + frames // 5
        masks.append({"size": list(SIZE), "counts": rle["counts"].decode()} if present else None)
    return masks


def write_track_load(folder: Path, quick: bool, kind: str = "ytvis") -> None:
    """Writes truth, results and `command.json`, the arguments of `l2g score`.

    `ytvis` has the mean lengths and track numbers of YouTube-VIS 2021's validation set, `ovis` those of OVIS.
    """
    folder.mkdir(parents=True)
    ovis, draw = kind == "ovis", np.random.default_rng(len(kind))
    classes, annotations, results = range(1, 41), [], []
    lengths = [int(n) for n in draw.integers(*((24, 73) if ovis else (18, 37)), 8 if quick else 60)]
    for video, frames in enumerate(lengths, 1):
        seen = []
        for _ in range(draw.integers(3, 10) if ovis else draw.integers(1, 5)):
            category, radii = int(draw.integers(1, 3)), draw.uniform(0.05, 0.2, 2) * SIZE[1]
            shape = draw.uniform(0.2, 0.8, 2) * (SIZE[1], SIZE[0]), radii, draw.normal(0, 4, 2)
            masks = _blob(draw, *shape, frames)
            seen.append((category, shape))
            areas = [float(coco_mask.area(m)) if m else None for m in masks]
            entry = {"id": len(annotations) + 1, "video_id": video, "category_id": category, "iscrowd": 0}
            levels = [str(draw.choice(list(LEVELS))) for _ in masks]
            more = {"occlusion": levels} if ovis else {}
            annotations.append({**entry, "segmentations": masks, "areas": areas, **more})
        for _ in range(8 if ovis else 5):
            category, (centre, radii, drift) = seen[draw.integers(len(seen))]
            masks = _blob(draw, centre + draw.normal(0, 12, 2), radii * draw.uniform(0.8, 1.1), drift, frames)
            for label in (category, int(draw.integers(1, 41))):  # a slot is often listed under two classes
                entry = {"video_id": video, "category_id": label, "score": float(draw.random())}
                results.append({**entry, "segmentations": masks})
    videos = [{"id": v, "height": SIZE[0], "width": SIZE[1], "length": n} for v, n in enumerate(lengths, 1)]
    categories = [{"id": c, "name": f"class{c}"} for c in classes]
    truth = {"videos": videos, "categories": categories, "annotations": annotations}
    paths = [str(folder / "truth.json"), str(folder / "results.json")]
    command = ["vis", "--truth", paths[0], "--results", paths[1], *(["--ovis"] if ovis else [])]
    for path, content in zip((*paths, folder / "command.json"), (truth, results, command), strict=True):
        Path(path).write_text(json.dumps(content), encoding="utf-8")


def panoptic_video(seed: int, length: int) -> dict[str, Any]:
    """One video: 18 drifting regions on both sides; the prediction is shifted, and one id changes half way."""
    draw = np.random.default_rng(seed)
    ids = draw.choice(np.arange(1, 1 << 24), 19, replace=False).astype(np.uint32)
    category = dict(zip(ids.tolist(), draw.choice(124, 19, replace=False).tolist(), strict=True))
    category[int(ids[18])] = category[int(ids[0])]
    y, x = np.mgrid[0 : SIZE[0] : 4, 0 : SIZE[1] : 4]
    centres, drift = draw.uniform(0, 1, (18, 2)) * SIZE, draw.normal(0, 6, (18, 2))
    video: dict[str, Any] = {"truth": [], "prediction": [], "truth_lists": [], "prediction_lists": []}
    for t in range(length):
        ragged = 12 * np.sin(0.06 * x + t) * np.cos(0.05 * y)
        distance = [
            np.hypot(y - cy, x - cx) + k % 3 * ragged for k, (cy, cx) in enumerate(centres + t * drift)
        ]
        true = ids[np.argmin(distance, axis=0)].repeat(4, 0).repeat(4, 1)
        predicted = np.roll(true, (3, 5), (0, 1))
        if t >= length // 2:
            predicted[predicted == ids[0]] = ids[18]
        predicted[: SIZE[0] // 30] = true[:, : SIZE[1] // 40] = 0
        for side, image in (("truth", true), ("prediction", predicted)):
            values, areas = (part.tolist() for part in np.unique(image, return_counts=True))
            video[side].append(image)
            segments = [
                {"id": i, "category_id": category[i], "area": area, "iscrowd": 0}
                for i, area in zip(values, areas, strict=True)
                if i
            ]
            video[f"{side}_lists"].append(segments)
    return video


def write_panoptic_load(folder: Path, quick: bool) -> None:
    """Writes truth, predictions, PNGs and `command.json`, the arguments of `l2g score`."""
    from local2global.results.segment_ids import write_ids

    videos = {f"v{seed}": panoptic_video(seed, 8 if quick else 24) for seed in range(1 if quick else 2)}
    for name, video in videos.items():
        for side in ("truth", "prediction"):
            (folder / side / name).mkdir(parents=True)
            for t, ids in enumerate(video.pop(side)):
                write_ids(ids, folder / side / name / f"{t:08d}.png")
    classes = [{"id": k, "name": f"c{k}", "isthing": int(k < 58)} for k in range(124)]
    paths = folder / "truth.json", folder / "predictions.json", folder / "truth", folder / "prediction"
    options = ("--truth", "--predictions", "--truth-maps", "--prediction-maps")
    command = ["vps", *(str(part) for pair in zip(options, paths, strict=True) for part in pair)]
    for path, content in zip(paths, contents(videos, classes), strict=False):
        path.write_text(json.dumps(content), encoding="utf-8")
    (folder / "command.json").write_text(json.dumps(command), encoding="utf-8")


# --- Measurement ---


def score(arm: str, folder: Path) -> list[float]:
    """All scores of a load by one arm, "ours" or "peer"; undefined scores are -1."""
    kind, *options = json.loads((folder / "command.json").read_text(encoding="utf-8"))
    paths, ovis = [Path(part) for part in options if not part.startswith("--")], "--ovis" in options
    if kind == "vis" and arm == "peer":
        scores = plain_tracks(paths[0], paths[1], ovis)
        return [*scores["precision"].ravel().tolist(), *scores["recall"].ravel().tolist()]
    if kind == "vis":
        from local2global.evaluation.ytvis import score_files as score_tracks

        tracks = score_tracks(paths[0], paths[1], ovis=ovis)
        return [*tracks.precision.ravel().tolist(), *tracks.recall.ravel().tolist()]
    if arm == "peer":
        truth, prediction = (json.loads(path.read_text(encoding="utf-8")) for path in paths[:2])
        videos: dict[str, dict[str, Any]] = defaultdict(dict)
        for side, content, root in (("truth", truth, paths[2]), ("prediction", prediction, paths[3])):
            for video in content["annotations"]:
                lists = [frame["segments_info"] for frame in video["annotations"]]
                pngs = Pngs(root / video["video_id"], len(lists))
                videos[video["video_id"]] |= {side: pngs, f"{side}_lists": lists}
        windows, stq = plain_vpq(videos, truth["categories"]), plain_stq(videos, truth["categories"])
    else:
        from local2global.evaluation.panoptic_files import score_files as score_maps

        scores, _ = score_maps(*paths)
        stq = {name: scores["stq"][name] for name in ("STQ", "AQ", "SQ")}
        windows = {
            length: {name: window[name] and window[name]["pq"] for name in ("all", "thing", "stuff")}
            for length, window in scores["vpq_windows"].items()
        }
    values = [*(value for window in windows.values() for value in window.values()), *stq.values()]
    return [-1.0 if value is None else value for value in values]


def peak(arm: str, folder: Path) -> float:
    """Peak resident memory in MB of a process that scores a load once."""
    command = [sys.executable, __file__, arm, str(folder)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def compare(name: str, folder: Path, rounds: int) -> dict[str, Any]:
    """One row of the benchmark: medians over rounds of CPU seconds at one thread, in the order A B B A."""
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    agree = True
    for turn in range(rounds):
        scores = {}
        for arm in ("ours", "peer") if turn % 2 == 0 else ("peer", "ours"):
            start = time.process_time()
            scores[arm] = score(arm, folder)
            seconds[arm].append(time.process_time() - start)
        agree &= bool(np.allclose(scores["ours"], scores["peer"], rtol=0, atol=1e-9))
    ratios = [peer / ours for ours, peer in zip(seconds["ours"], seconds["peer"], strict=True)]
    low, high = np.percentile(ratios, [25, 75])
    return {
        "section": "scorer",
        "name": name,
        "ours_s": statistics.median(seconds["ours"]),
        "peer_s": statistics.median(seconds["peer"]),
        "ratio": statistics.median(ratios),
        "iqr": float(high - low),
        "agree": agree,
        "ours_mb": peak("ours", folder),
        "peer_mb": peak("peer", folder),
    }


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Rows {section, name, ours_s, peer_s, ratio, iqr, agree, ours_mb, peer_mb} of all loads."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for kind in ("ytvis", "ovis"):
            write_track_load(root / kind, quick, kind)
        write_panoptic_load(root / "vps", quick)
        names = {"ytvis": "AP, YouTube-VIS", "ovis": "AP, OVIS", "vps": "VPQ + STQ from PNGs"}
        return [compare(name, root / kind, 2 if quick else 4) for kind, name in names.items()]


run = rows  # the name in benchmark.py


if __name__ == "__main__":
    score(sys.argv[1], Path(sys.argv[2]))
    status = Path("/proc/self/status").read_text().splitlines()
    sys.stdout.write(next(str(int(line.split()[1]) / 1000) for line in status if line.startswith("VmHWM:")))
