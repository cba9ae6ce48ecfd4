"""What loading costs on one core: decode, resize, masks and whole clips, ours beside whole frames and whole masks.

    python scripts/bench_data.py [--quick]

prints CPU seconds for each part and frames per second of a core.  The other arm is what peers' loaders do: PIL decodes
the whole JPEG and resizes it, masks are decoded whole, cut and resized.  Frames are generated, 720 x 1280, six objects.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as rle

from local2global.data.augment import ClipAugmentation
from local2global.data.clips import make_clip
from local2global.data.readers.images import read_image
from local2global.data.readers.records import AnnotatedVideo, Track
from local2global.data.readers.rle import encode_mask, sample_outlines
from local2global.data.views import View
from local2global.randomness import keyed_generator

SIZE = (720, 1280)
OBJECTS = 6


def make_video(folder: Path, length: int) -> AnnotatedVideo:
    """A video on disk: smooth noise at a camera's JPEG quality, ragged ellipses that move."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    counts: list[list[str]] = [[] for _ in range(OBJECTS)]
    files = []
    for t in range(length):
        coarse = generator.integers(0, 255, (45, 80, 3), dtype=np.uint8)
        picture = np.array(
            Image.fromarray(coarse).resize(SIZE[::-1], Image.Resampling.BICUBIC), dtype=np.int16
        )
        picture += generator.integers(-8, 9, picture.shape, dtype=np.int16)
        files.append(folder / f"{t:05d}.jpg")
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(files[-1], quality=90)
        for i, track in enumerate(counts):
            ragged = 0.08 * np.sin(x / 9 + i) * np.cos(y / 7)
            away = ((x - 180 - 170 * i - 4 * t) / 110) ** 2 + ((y - 200 - 60 * i) / 150) ** 2
            track.append(str(encode_mask(torch.from_numpy(away + ragged < 1))["counts"]))
    tracks = tuple(Track(i + 1, 0, tuple(track)) for i, track in enumerate(counts))
    return AnnotatedVideo(1, "generated", SIZE, tuple(files), tracks)


def peer_frame(view: View, image: Image.Image, i: int) -> torch.Tensor:
    """(3, h, w) of a frame, by PIL."""
    (top, left), (high, wide) = view.corners[i], view.window
    cut = image.convert("RGB").crop((left, top, left + wide, top + high))
    drawn = np.array(cut.resize(view.size[::-1], Image.Resampling.BILINEAR))
    return torch.from_numpy(drawn[:, ::-1].copy() if view.flipped else drawn).permute(2, 0, 1)


def peer_masks(view: View, counts: list[str], i: int) -> torch.Tensor:
    """(M, h, w) of a frame's masks, decoded whole."""
    (top, left), (high, wide) = view.corners[i], view.window
    drawn = []
    for text in counts:
        whole = rle.decode({"size": list(SIZE), "counts": text})[top : top + high, left : left + wide]
        drawn.append(np.array(Image.fromarray(whole).resize(view.size[::-1], Image.Resampling.NEAREST)))
    masks = np.stack(drawn).astype(bool)
    return torch.from_numpy(masks[:, :, ::-1].copy() if view.flipped else masks)


def compare(
    name: str,
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    agree: Callable[[Any, Any], bool],
    rounds: int,
) -> dict[str, Any]:
    """One row: medians of CPU seconds, ours - peer - peer - ours in every round, after one of each unmeasured."""
    agreed = agree(ours(), peer())
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(rounds):
        for arm in ("ours", "peer", "peer", "ours"):
            begin = time.process_time()
            (ours if arm == "ours" else peer)()
            times[arm].append(time.process_time() - begin)
    ratios = np.array(times["peer"]) / np.array(times["ours"])
    ours_s, peer_s = float(np.median(times["ours"])), float(np.median(times["peer"]))
    low, high = np.quantile(ratios, [0.25, 0.75])
    row = {"section": "data", "name": name, "ours_s": ours_s, "peer_s": peer_s}
    return {**row, "ratio": peer_s / ours_s, "iqr": [float(low), float(high)], "agree": agreed}


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Frames within three grey values on average."""
    return one.shape == other.shape and bool((one.int() - other.int()).abs().float().mean() < 3)


def overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Masks whose pixels are the same but for one in a hundred of the objects'."""
    return one.shape == other.shape and bool((one ^ other).sum() <= 0.01 * (one | other).sum())


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows {section, name, ours_s, peer_s, ratio, iqr, agree}; on one thread.

    Args:
        quick: fewer rounds.
    """
    torch.set_num_threads(1)
    rounds = 3 if quick else 9
    with tempfile.TemporaryDirectory() as folder:
        return _rows(make_video(Path(folder), 4), rounds)


def _rows(video: AnnotatedVideo, rounds: int) -> list[dict[str, Any]]:
    half, large = (View.whole(SIZE, 1).resized(size) for size in [(360, 640), (480, 853)])
    file, counts = video.files[0], [str(track.outlines[0]) for track in video.tracks]
    whole, image = read_image(file), Image.open(file).convert("RGB")
    rows = [
        compare(
            "decode and resize to 360x640",
            lambda: half.draw(read_image(file, half.shrink), 0),
            lambda: peer_frame(half, Image.open(file), 0),
            close,
            rounds,
        ),
        compare(
            "decode and resize to 480x853",
            lambda: large.draw(read_image(file, large.shrink), 0),
            lambda: peer_frame(large, Image.open(file), 0),
            close,
            rounds,
        ),
        compare(
            "resize to 480x853",
            lambda: large.draw(whole, 0),
            lambda: peer_frame(large, image, 0),
            close,
            rounds,
        ),
    ]
    for name, view in (("360x640", half), ("180x320", View.whole(SIZE, 1).resized((180, 320)))):
        rows.append(
            compare(
                f"six masks at {name}",
                lambda view=view: sample_outlines(counts, SIZE, view.rows(0), view.columns(0)),
                lambda view=view: peer_masks(view, counts, 0),
                overlap,
                rounds,
            )
        )
    return [*rows, _clips(video, rounds)]


def _clips(video: AnnotatedVideo, rounds: int) -> dict[str, Any]:
    """Eight training clips of four frames by the paper's recipe, a batch: the same views in both arms."""
    augment, keys = ClipAugmentation(), [(0, 0, i) for i in range(8)]

    def ours() -> list[tuple[torch.Tensor, torch.Tensor]]:
        clips = [make_clip(video, (0, 1, 2, 3), augment, key) for key in keys]
        return [(clip.frames, clip.targets.masks.any(0)) for clip in clips if clip.targets is not None]

    def peer() -> list[tuple[torch.Tensor, torch.Tensor]]:
        made = []
        for key in keys:
            view = augment.view(View.whole(SIZE, 4), keyed_generator(*key, "augment"))
            frames = torch.stack([peer_frame(view, Image.open(video.files[i]), i) for i in range(4)])
            counts = [[str(track.outlines[i]) for track in video.tracks] for i in range(4)]
            made.append((frames, torch.stack([peer_masks(view, counts[i], i).any(0) for i in range(4)])))
        return made

    def agree(one: Any, other: Any) -> bool:
        return all(close(a, c) and overlap(b, d) for (a, b), (c, d) in zip(one, other, strict=True))

    row = compare("eight clips of four frames", ours, peer, agree, max(1, rounds // 3))
    return {**row, "frames_per_second": 32 / row["ours_s"], "peer_frames_per_second": 32 / row["peer_s"]}


def main() -> None:
    """Prints a row a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    options = parser.parse_args()
    rows = run(options.quick)
    for row in rows:
        low, high = row["iqr"]
        line = f"{row['name']:32} {1e3 * row['ours_s']:8.2f} ms {1e3 * row['peer_s']:8.2f} ms {row['ratio']:6.2f}x"
        print(f"{line} ({low:.2f} to {high:.2f})  {'same' if row['agree'] else 'DIFFERENT'}")  # noqa: T201
    last = rows[-1]
    rates = f"{last['frames_per_second']:.0f} beside {last['peer_frames_per_second']:.0f}"
    print(f"frames per second of a core: {rates}")  # noqa: T201
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
