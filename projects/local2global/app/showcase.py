"""The demo's moving picture: generated videos with crossing objects, segmented by a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ..data.generated.shapes import load_shapes
from .draw import Look, draw
from .predict import L2G
from .video import VideoWriter, write_webp

#: Seeds of the videos shown, an even number: two videos form a row.  Training never draws them.
SEEDS = (106, 170, 199, 152)
LENGTH = 48
#: (height, width) of each video in pixels: twice the size that the demo's model sees.
SIZE = (192, 320)
#: Milliseconds per frame.
DURATION = 100


def write_showcase(model: L2G, path: Path) -> Path:
    """Segments the video of every seed in `SEEDS` and writes them side by side as an animated WebP.

    Args:
        model: the demo's model.
        path: the .webp file; it appears only when it is whole.

    Returns:
        The path.
    """
    drawn = [_segmented(model, seed) for seed in SEEDS]
    images = [_grid([video[t] for video in drawn]) for t in range(LENGTH)]
    write_webp(path, images, DURATION)
    return path


def write_crossing(path: Path) -> Path:
    """Writes the first of the videos, without masks, as an mp4; returns the path."""
    video = load_shapes("crossing", 1, SEEDS[0], LENGTH, SIZE).videos[0]
    with VideoWriter(path, Fraction(1000, DURATION), SIZE) as writer:
        for t in range(LENGTH):
            writer.write(video.frame(t))
    return path


def _segmented(model: L2G, seed: int) -> list[Tensor]:
    """The frames of one video with the model's masks, (3, H, W) uint8 each."""
    video = load_shapes("crossing", 1, seed, LENGTH, SIZE).videos[0]
    frames = [video.frame(t) for t in range(LENGTH)]
    results = model.stream(frames)
    look = Look(hidden=frozenset({"boxes"}))
    return [draw(frame, result, model.classes, look) for frame, result in zip(frames, results, strict=True)]


def _grid(frames: Sequence[Tensor]) -> Image.Image:
    """Two frames per row, with a white gap between them."""
    gap, (height, width) = 4, SIZE
    rows = -(-len(frames) // 2)
    sheet = np.full((rows * (height + gap) - gap, 2 * (width + gap) - gap, 3), 255, np.uint8)
    for i, frame in enumerate(frames):
        top, left = (i // 2) * (height + gap), (i % 2) * (width + gap)
        sheet[top : top + height, left : left + width] = frame.permute(1, 2, 0).numpy()
    return Image.fromarray(sheet)
