"""Section `scorer`: `l2g score` against the plain scorers of the tests, which work as the official programs do."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_common import Bench, Row
from pycocotools import mask as coco_mask

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from plain_scorers import LEVELS, Pngs, contents, plain_stq, plain_tracks, plain_vpq

NAMES = {"ytvis": "AP, YouTube-VIS", "ovis": "AP, OVIS", "vps": "VPQ + STQ from PNGs"}
SIZE = (720, 1280)


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


def scorer(bench: Bench) -> Iterator[Row]:
    """`l2g score` against the plain scorers; every arm starts from the same files."""
    with tempfile.TemporaryDirectory() as scratch:
        for kind, name in NAMES.items():
            folder = Path(scratch) / kind
            write_panoptic_load(folder, bench.quick) if kind == "vps" else write_track_load(
                folder, bench.quick, kind
            )
            yield compare(bench, name, folder)


def compare(bench: Bench, name: str, folder: Path) -> Row:
    """One row: CPU seconds at one thread, the largest difference of the scores, and the peak memory of each arm."""
    ours, peer = (torch.tensor(score(arm, folder), dtype=torch.float64) for arm in ("ours", "peer"))
    row = bench.compare(
        "scorer",
        name,
        lambda: score("ours", folder),
        lambda: score("peer", folder),
        float((ours - peer).abs().max()),
        1e-9,
        warm=False,
    )
    return {**row, "ours_mb": peak("ours", folder), "peer_mb": peak("peer", folder)}


if __name__ == "__main__":
    score(sys.argv[1], Path(sys.argv[2]))
    status = Path("/proc/self/status").read_text().splitlines()
    sys.stdout.write(next(str(int(line.split()[1]) / 1000) for line in status if line.startswith("VmHWM:")))
