"""Plain scorers of tracks and of panoptic maps: second opinions of the tests, and the peer of the benchmark.

They were written from the rules and work as the official programs do.  For tracks, the masks of every pair are merged
twice on every frame.  For panoptic maps, every frame is decoded again for each window.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

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
