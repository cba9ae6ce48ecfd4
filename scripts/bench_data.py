"""Section `data`: loading on one core, against PIL on whole frames and whole decoded masks.

The video is generated: JPEG frames of 720 x 1280 pixels with six objects.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_common import OUTPUT, Bench, Row, make_frame
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from local2global.data.augment import ClipAugmentation
from local2global.data.clips import make_clip
from local2global.data.readers.images import read_image
from local2global.data.readers.records import AnnotatedVideo, Track, VideoRow, annotated_videos
from local2global.data.readers.rle import encode_mask, sample_outlines
from local2global.data.views import View
from local2global.randomness import keyed_generator

FRAMES, OBJECTS, CLIPS = 4, 6, 8


def make_video(folder: Path) -> AnnotatedVideo:
    """Write a video of moving ellipses with wavy edges."""
    y, x = np.mgrid[: OUTPUT[0], : OUTPUT[1]]
    counts: list[list[str]] = [[] for _ in range(OBJECTS)]
    files = [folder / f"{t:05d}.jpg" for t in range(FRAMES)]
    for t, file in enumerate(files):
        Image.fromarray(make_frame(OUTPUT, t).permute(1, 2, 0).numpy()).save(file, quality=90)
        for i, track in enumerate(counts):
            waves = 0.08 * np.sin(x / 9 + i) * np.cos(y / 7)
            distance = ((x - 180 - 170 * i - 4 * t) / 110) ** 2 + ((y - 200 - 60 * i) / 150) ** 2
            track.append(str(encode_mask(torch.from_numpy(distance + waves < 1))["counts"]))
    row = VideoRow(1, "generated", OUTPUT, [file.name for file in files])
    tracks = [Track(i + 1, 0, track) for i, track in enumerate(counts)]
    return annotated_videos(folder, [row], [tracks])[0]


def peer_frame(view: View, image: Image.Image, t: int) -> Tensor:
    """(3, h, w) frame of a view, cropped and resized by PIL."""
    (top, left), (height, width) = view.corners[t], view.window
    cropped = image.convert("RGB").crop((left, top, left + width, top + height))
    pixels = np.array(cropped.resize(view.size[::-1], Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels[:, ::-1].copy() if view.flipped else pixels).permute(2, 0, 1)


def peer_masks(view: View, counts: list[str], t: int) -> Tensor:
    """(M, h, w) masks of a view, decoded whole, then cropped and resized by PIL."""
    (top, left), (height, width) = view.corners[t], view.window
    resized = []
    for text in counts:
        mask = coco_mask.decode({"size": list(OUTPUT), "counts": text})
        mask = mask[top : top + height, left : left + width]
        resized.append(np.array(Image.fromarray(mask).resize(view.size[::-1], Image.Resampling.NEAREST)))
    masks = np.stack(resized).astype(bool)
    return torch.from_numpy(masks[:, :, ::-1].copy() if view.flipped else masks)


def frames_agree(ours: Tensor, theirs: Tensor) -> bool:
    """Whether frames differ by less than three grey values on average."""
    return ours.shape == theirs.shape and bool((ours.int() - theirs.int()).abs().float().mean() < 3)


def masks_agree(ours: Tensor, theirs: Tensor) -> bool:
    """Whether at most one in a hundred object pixels differs."""
    return ours.shape == theirs.shape and bool((ours ^ theirs).sum() <= 0.01 * (ours | theirs).sum())


def data(bench: Bench) -> Iterator[Row]:
    """Decoding, resizing, masks, and whole training clips."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _rows(bench, make_video(Path(folder)))


def _rows(bench: Bench, video: AnnotatedVideo) -> Iterator[Row]:
    file, counts = video.file(0), [str(outline) for outline in video.outlines(0)]
    pixels, image = read_image(file), Image.open(str(file)).convert("RGB")

    def row(name: str, ours: Callable[[], Any], peer: Callable[[], Any], agree: Any) -> Row:
        difference = 0.0 if agree(ours(), peer()) else 1.0
        return bench.compare("data", name, ours, peer, difference, 0.0)

    for size in ((360, 640), (480, 853)):
        view = View.whole(OUTPUT, 1).resized(size)
        yield row(
            f"decode and resize to {size[0]}x{size[1]}",
            lambda view=view: view.draw(read_image(file, view.shrink), 0),
            lambda view=view: peer_frame(view, Image.open(str(file)), 0),
            frames_agree,
        )
    yield row(
        "resize to 480x853", lambda: view.draw(pixels, 0), lambda: peer_frame(view, image, 0), frames_agree
    )
    for size in ((360, 640), (180, 320)):
        small = View.whole(OUTPUT, 1).resized(size)
        yield row(
            f"six masks at {size[0]}x{size[1]}",
            lambda small=small: sample_outlines(counts, OUTPUT, small.rows(0), small.columns(0)),
            lambda small=small: peer_masks(small, counts, 0),
            masks_agree,
        )
    clips = row("eight clips of four frames", *_clip_arms(video), _clips_agree)
    frames = CLIPS * FRAMES
    rates = {
        "frames_per_second": frames / clips["ours_s"],
        "peer_frames_per_second": frames / clips["peer_s"],
    }
    yield {**clips, **rates}


def _clip_arms(video: AnnotatedVideo) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Training clips by the paper's recipe; both arms use the same views."""
    augment, keys, times = ClipAugmentation(), [(0, 0, i) for i in range(CLIPS)], tuple(range(FRAMES))

    def ours() -> list[tuple[Tensor, Tensor]]:
        clips = [make_clip(video, times, augment, key) for key in keys]
        return [(clip.frames, clip.targets.masks.any(0)) for clip in clips if clip.targets is not None]

    def peer() -> list[tuple[Tensor, Tensor]]:
        clips = []
        for key in keys:
            view = augment.view(View.whole(OUTPUT, FRAMES), keyed_generator(*key, "augment"))
            frames = [peer_frame(view, Image.open(str(video.file(t))), t) for t in times]
            counts = [[str(outline) for outline in video.outlines(t)] for t in times]
            masks = [peer_masks(view, counts[t], t).any(0) for t in times]
            clips.append((torch.stack(frames), torch.stack(masks)))
        return clips

    return ours, peer


def _clips_agree(ours: Any, theirs: Any) -> bool:
    return all(
        frames_agree(frames, peer_frames) and masks_agree(masks, peer_masks)
        for (frames, masks), (peer_frames, peer_masks) in zip(ours, theirs, strict=True)
    )
