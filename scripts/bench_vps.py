"""How fast VPQ and STQ are: `local2global.evaluation` beside a plain scorer, on the same load, with equal results.

    python scripts/bench_vps.py [--quick] [--json FILE]

The plain scorer works as the published programs do: every window of every length reads its frames' PNGs, counts the
pixels of each predicted id, stacks the frames, finds the pairs of ids that share pixels, and matches them; STQ goes
through the frames once more.  Where it starts from ids in memory it is spared all decoding, which published programs
are not: so ours from memory is compared with both.  Processor seconds of this process, one thread.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bench_scorer import peak_resident
from PIL import Image

from local2global.evaluation.panoptic_files import (
    FolderMaps,
    Maps,
    count_videos,
    parse_predictions,
    parse_truth,
)
from local2global.evaluation.vps import WINDOWS, summarize
from local2global.results.segment_ids import write_ids

SIZE, LENGTH, CLASSES, THINGS = (720, 1280), 24, 124, 58


# The load: videos in the manner of VIPSeg's, by seed.


def blobs(generator: np.random.Generator, size: tuple[int, int], count: int, length: int) -> list[np.ndarray]:
    """(H, W) maps of `length` frames: each of `count` regions is what lies nearest to a moving, ragged centre."""
    height, width = size
    y, x = np.mgrid[0:height:4, 0:width:4].astype(np.float32)
    centres = generator.uniform(0, 1, (count, 2)) * (height, width)
    speeds, sizes = generator.normal(0, 6, (count, 2)), generator.uniform(0.5, 2.0, count)
    waves = generator.uniform(0.02, 0.12, (count, 2))
    maps = []
    for t in range(length):
        owner, nearest = np.zeros(y.shape, np.int64), np.full(y.shape, np.inf, np.float32)
        for row, (cy, cx) in enumerate(centres + t * speeds):
            ragged = 12 * np.sin(waves[row, 0] * x) * np.cos(waves[row, 1] * y)
            distance = (np.hypot(y - cy, x - cx) + ragged) / sizes[row]
            closer = distance < nearest
            owner[closer], nearest[closer] = row, distance[closer]
        maps.append(owner.repeat(4, 0).repeat(4, 1)[:height, :width])
    return maps


def make_video(seed: int, size: tuple[int, int], length: int) -> dict[str, Any]:
    """One video: maps of both sides and their lists."""
    generator = np.random.default_rng(seed)
    count = int(generator.integers(14, 22))
    categories = generator.integers(0, CLASSES, count)
    stuff = categories >= THINGS
    _, same = np.unique(np.where(stuff, categories, CLASSES + np.arange(count)), return_inverse=True)
    ids = generator.choice(np.arange(1, 1 << 24), count, replace=False).astype(np.uint32)[same]
    category_of = dict(zip(ids.tolist(), categories.tolist(), strict=True))
    video: dict[str, Any] = {"truth": [], "prediction": [], "truth_lists": [], "prediction_lists": []}
    lost = generator.choice(ids)
    for owner in blobs(generator, size, count, length):
        true = ids[owner]
        # A prediction lies a little off, misses some pixels, and one object changes its id half way.
        predicted = np.roll(true, (3, 5), (0, 1))
        if len(video["truth"]) >= length // 2:
            predicted[predicted == lost] = (int(lost) + 1) % (1 << 24)
        predicted[: size[0] // 30] = 0
        true[:, : size[1] // 40] = 0
        category_of.setdefault((int(lost) + 1) % (1 << 24), category_of[int(lost)])
        for side, ids_there in (("truth", true), ("prediction", predicted)):
            found, areas = np.unique(ids_there, return_counts=True)
            video[side].append(ids_there)
            video[f"{side}_lists"].append(
                [
                    {"id": i, "category_id": category_of[i], "area": a, "iscrowd": 0}
                    for i, a in zip(found.tolist(), areas.tolist(), strict=True)
                    if i
                ]
            )
    return video


def categories() -> list[dict[str, Any]]:
    """124 classes, the first 58 things."""
    return [{"id": k, "name": f"c{k}", "isthing": int(k < THINGS)} for k in range(CLASSES)]


def contents(videos: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The truth's and the prediction's file."""
    frames = {name: [f"{t:08d}" for t in range(len(video["truth"]))] for name, video in videos.items()}

    def side(which: str) -> list[dict[str, Any]]:
        return [
            {
                "video_id": name,
                "annotations": [
                    {"file_name": f"{frame}.png", "segments_info": listed}
                    for frame, listed in zip(frames[name], video[f"{which}_lists"], strict=True)
                ],
            }
            for name, video in videos.items()
        ]

    listed = [
        {"video_id": name, "images": [{"file_name": f"{frame}.jpg"} for frame in frames[name]]}
        for name in videos
    ]
    truth = {"videos": listed, "categories": categories(), "annotations": side("truth")}
    return truth, {"annotations": side("prediction")}


# The plain scorer.


def plain_segments(frames: list[list[dict[str, Any]]]) -> dict[int, dict[str, Any]]:
    """A window's lists as one: the first entry of every id, with all entries' areas."""
    segments: dict[int, dict[str, Any]] = {}
    for entry in (entry for frame in frames for entry in frame):
        if entry["id"] in segments:
            segments[entry["id"]]["area"] += entry["area"]
        else:
            segments[entry["id"]] = dict(entry)
    return segments


def plain_pairs(truth: list[Any], prediction: list[Any]) -> dict[tuple[int, int], int]:
    """Pixels of each pair of ids in a window."""
    stacked = np.stack(truth).astype(np.uint64) << np.uint64(24) | np.stack(prediction).astype(np.uint64)
    keys, pixels = np.unique(stacked, return_counts=True)
    return {(int(k) >> 24, int(k) & 0xFFFFFF): int(n) for k, n in zip(keys, pixels, strict=True)}


def _add(sizes: Any, keys: Any) -> None:
    for key, pixels in zip(*np.unique(keys, return_counts=True), strict=True):
        sizes[int(key)] += int(pixels)


def plain_window(truth: list[Any], prediction: list[Any], lists: tuple[Any, Any], counts: Any) -> None:
    """Adds one window's matches to `counts`, {category: [iou, tp, fp, fn]}."""
    shared = plain_pairs(truth, prediction)
    true, predicted = (plain_segments(frames) for frames in lists)
    areas: dict[int, int] = defaultdict(int)
    for frame in prediction:
        _add(areas, frame)
    found, used = set(), set()
    for (g, p), common in shared.items():
        known = g in true and p in predicted and true[g]["iscrowd"] != 1
        if not known or true[g]["category_id"] != predicted[p]["category_id"]:
            continue
        iou = common / (areas[p] + true[g]["area"] - common - shared.get((0, p), 0))
        if iou > 0.5:
            counts[true[g]["category_id"]] += [iou, 1, 0, 0]
            found.add(g)
            used.add(p)
    missed = {g: segment for g, segment in true.items() if g not in found}
    crowds = {segment["category_id"]: g for g, segment in missed.items() if segment["iscrowd"] == 1}
    for segment in missed.values():
        counts[segment["category_id"]] += [0, 0, 0, int(segment["iscrowd"] != 1)]
    for p, segment in predicted.items():
        category = segment["category_id"]
        excused = shared.get((0, p), 0) + shared.get((crowds.get(category, -1), p), 0)
        counts[category] += [0, 0, int(p not in used and not excused / areas[p] > 0.5), 0]


def plain_vpq(videos: dict[str, dict[str, Any]], classes: list[dict[str, Any]]) -> dict[str, Any]:
    """{window: {all, thing, stuff: PQ or None}}."""
    scores: dict[str, Any] = {}
    for length in WINDOWS:
        counts: Any = defaultdict(lambda: np.zeros(4))
        for video in videos.values():
            for start in range(len(video["truth"]) - length + 1):
                cut = slice(start, start + length)
                lists = video["truth_lists"][cut], video["prediction_lists"][cut]
                plain_window(video["truth"][cut], video["prediction"][cut], lists, counts)
        pq = {c: n[0] / (n[1] + n[2] / 2 + n[3] / 2) for c, n in counts.items() if n[1:].any()}
        groups = {"all": (0, 1), "thing": (1,), "stuff": (0,)}
        for name, kinds in groups.items():
            members = [pq[c["id"]] for c in classes if c["id"] in pq and c["isthing"] in kinds]
            scores.setdefault(str(length), {})[name] = sum(members) / len(members) if members else None
    return scores


def plain_stq(videos: dict[str, dict[str, Any]], classes: list[dict[str, Any]]) -> dict[str, float | None]:
    """STQ, AQ and SQ."""
    position = {c["id"]: k for k, c in enumerate(classes)}
    things = np.array([bool(c["isthing"]) for c in classes] + [False])
    size, offset = len(classes) + 1, 1 << 12
    confusion = np.zeros((size, size), np.int64)
    association, tubes = 0.0, 0
    for video in videos.values():
        numbers: tuple[dict[int, int], dict[int, int]] = ({}, {})
        true_sizes, predicted_sizes, shared = (defaultdict(int) for _ in range(3))
        for t in range(len(video["truth"])):
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
            confusion += np.bincount(labels[0].ravel() * size + labels[1].ravel(), minlength=size**2).reshape(
                size, size
            )
            true, predicted = things[labels[0]], things[labels[1]]
            crowd = true & (tracks[0] % offset == 0)
            true, predicted = true & ~crowd, predicted & ~crowd
            _add(true_sizes, tracks[0][true])
            _add(predicted_sizes, tracks[1][predicted])
            both = true & predicted
            _add(shared, tracks[0][both] * (size * offset) + tracks[1][both])
        tubes += len(true_sizes)
        for key, n in shared.items():
            g, p = divmod(key, size * offset)
            association += n * n / (true_sizes[g] + predicted_sizes[p] - n) / true_sizes[g]
    confusion[-1] = 0
    hit = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - hit
    sq = float((hit[union > 0] / union[union > 0]).mean()) if union.any() else None
    aq = association / max(tubes, 1)
    return {"STQ": None if sq is None else math.sqrt(aq * sq), "AQ": aq, "SQ": sq}


def plain_score(videos: dict[str, dict[str, Any]], classes: list[dict[str, Any]]) -> list[float | None]:
    """Every number that is compared: PQ of all windows and groups, then STQ, AQ, SQ."""
    vpq = plain_vpq(videos, classes)
    return [
        *(vpq[str(k)][g] for k in WINDOWS for g in ("all", "thing", "stuff")),
        *plain_stq(videos, classes).values(),
    ]


# The race.


class MemoryMaps:
    """Maps that are there already."""

    def __init__(self, videos: dict[str, dict[str, Any]], side: str) -> None:
        self.videos, self.side = videos, side

    def read(self, video: str, frames: Any) -> Any:
        """One after the other."""
        return iter(self.videos[video][self.side])


def our_score(files: tuple[Any, Any], maps: tuple[Maps, Maps]) -> list[float | None]:
    """The same numbers by `local2global.evaluation`, from the content of the files on."""
    truth = parse_truth(files[0])
    counts = count_videos(truth, parse_predictions(files[1], truth), *maps)
    scores = summarize(counts, truth.categories)
    windows = scores["vpq_windows"]
    vpq = [(windows[str(k)][g] or {"pq": None})["pq"] for k in WINDOWS for g in ("all", "thing", "stuff")]
    return [*vpq, *(scores["stq"][name] for name in ("STQ", "AQ", "SQ"))]


def agree(one: list[float | None], other: list[float | None]) -> bool:
    """Equal to 1e-9, undefined where the other is."""
    pairs = list(zip(one, other, strict=True))
    return all(
        (a is None and b is None) or (a is not None and b is not None and abs(a - b) < 1e-9) for a, b in pairs
    )


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds and the result."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def race(name: str, rounds: list[tuple[Callable[[], Any], Callable[[], Any]]]) -> dict[str, Any]:
    """Ours and the peer's in turn, the order reversed from round to round; a row of medians.

    Raises:
        SystemExit: the two differ.
    """
    ours, peers = [], []
    for number, pair in enumerate(rounds):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        results: dict[int, Any] = {}
        for side in order:
            seconds, results[side] = timed(pair[side])
            (ours, peers)[side].append(seconds)
        if not agree(results[0], results[1]):
            raise SystemExit(f"{name}: the scores differ: {results[0]} and {results[1]}")
    ratios = [peer / our for our, peer in zip(ours, peers, strict=True)]
    spread = np.percentile(ratios, [25, 75]).tolist()
    medians = statistics.median(ours), statistics.median(peers)
    return {
        "section": "scorer",
        "name": name,
        "ours_s": medians[0],
        "peer_s": medians[1],
        "ratio": statistics.median(ratios),
        "iqr": spread,
        "agree": True,
    }


class Pngs(Sequence):
    """A folder of maps, read as the published programs read them: again whenever they are wanted."""

    def __init__(self, folder: Path, length: int) -> None:
        self.folder, self.frames = folder, range(length)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, slice):
            return [self[t] for t in self.frames[which]]
        pixels = np.array(Image.open(self.folder / f"{self.frames[which]:08d}.png")).astype(np.uint32)
        return pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]


def on_disk(root: Path, video: dict[str, Any]) -> dict[str, Any]:
    """The video with the maps that `write_load` wrote."""
    length = len(video["truth_lists"])
    return {**video, **{side: Pngs(root / side / "v", length) for side in ("truth", "prediction")}}


def write_load(root: Path, load: dict[str, Any]) -> None:
    """The maps of the load's one video and, as `lists.json`, its lists and files."""
    for side in ("truth", "prediction"):
        (root / side / "v").mkdir(parents=True)
        for t, ids in enumerate(load["v"][side]):
            write_ids(ids, root / side / "v" / f"{t:08d}.png")
    lists = {key: value for key, value in load["v"].items() if key.endswith("_lists")}
    (root / "lists.json").write_text(json.dumps({"lists": lists, "files": contents(load)}), encoding="utf-8")


def score_once(arm: str, root: Path) -> None:
    """What a process does whose memory is read: one video from its PNGs, by one of the arms."""
    load = json.loads((root / "lists.json").read_text(encoding="utf-8"))
    if arm == "ours":
        our_score(load["files"], (FolderMaps(root / "truth"), FolderMaps(root / "prediction")))
    else:
        plain_score({"v": on_disk(root, load["lists"])}, categories())


def peak(arm: str, root: Path) -> float:
    """The peak resident memory in MB of a process of its own that scores a video once."""
    command = [sys.executable, __file__, "--arm", arm, str(root)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows {section, name, ours_s, peer_s, ratio, iqr, agree}; from PNGs with ours_mb and peer_mb too.

    Each round is another video of 24 frames (8 if quick) of 720x1280 pixels, each at least ABBA.  Memory is the peak of
    a process of its own for each arm.
    """
    length, count = (8, 2) if quick else (LENGTH, 4)
    classes = categories()
    names = ("from PNGs", "ours from memory, plain from PNGs", "both from memory")
    rounds: list[list[Any]] = [[] for _ in names]
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(count):
            load = {"v": make_video(seed, SIZE, length)}
            root = Path(folder, str(seed))
            write_load(root, load)
            files = contents(load)
            memory = MemoryMaps(load, "truth"), MemoryMaps(load, "prediction")
            folders = FolderMaps(root / "truth"), FolderMaps(root / "prediction")
            disk = {"v": on_disk(root, load["v"])}
            ours = [partial(our_score, files, maps) for maps in (folders, memory, memory)]
            plain = [partial(plain_score, videos, classes) for videos in (disk, disk, load)]
            for pairs, pair in zip(rounds, zip(ours, plain, strict=True), strict=True):
                pairs.append(pair)
        for arm in ours:
            arm()  # the first calls compile
        rows = [
            race(f"VPQ + STQ {name}, {length} frames of 720p", pairs)
            for name, pairs in zip(names, rounds, strict=True)
        ]
        rows[0] |= {f"{arm}_mb": peak(arm, root) for arm in ("ours", "peer")}
        return rows


def main() -> None:
    """Prints the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="8 frames a video instead of 24")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--arm", nargs=2, metavar=("ARM", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        score_once(options.arm[0], Path(options.arm[1]))
        sys.stdout.write(str(peak_resident() / 1e6))
        return
    rows = run(options.quick)
    for row in rows:
        low, high = row["iqr"]
        print(  # noqa: T201
            f"{row['name']}: ours {row['ours_s']:.3f} s, plain {row['peer_s']:.2f} s, "
            f"{row['ratio']:.0f}x ({low:.0f} to {high:.0f}), equal"
            + (f", peak {row['ours_mb']:.0f} and {row['peer_mb']:.0f} MB" if "ours_mb" in row else "")
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
