"""Masks sampled at a grid and images decoded at reduced size agree with whole frames."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from local2global.data.augment import ClipAugmentation, DriftingCrop, RandomShortestEdge, ZoomCrop
from local2global.data.clips import make_clip
from local2global.data.datasets import Lean, Renumbered, sampled_masks, shrunk_frame
from local2global.data.readers.images import read_image
from local2global.data.readers.records import AnnotatedVideo, Packed, Track, VideoRow, annotated_videos
from local2global.data.readers.rle import (
    Grid,
    count_pixels,
    encode_mask,
    pack_outline,
    parse_outline,
    sound_areas,
    unpack_outline,
)
from local2global.errors import UserError
from local2global.results.rle import decode_counts

AUGMENT = ClipAugmentation((16, 24), 60, ZoomCrop(0.5, RandomShortestEdge((30,), 90), DriftingCrop(14, 26)))


def random_mask(height: int, width: int, seed: int) -> torch.Tensor:
    """Blobs, single pixels and full columns: short, long and column-crossing runs."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand((height, width), generator=generator) < 0.05 * (seed % 5)
    mask[height // 4 : height // 2, width // 4 : width // 2] = True
    mask[:, seed % width] = seed % 2 == 0
    return mask


def test_a_grid_of_a_small_mask():
    """Rows 0 and 2, columns 3 and 1 of a 3x4 mask with three pixels."""
    mask = torch.tensor([[0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]], dtype=torch.bool)
    read = Grid((3, 4), np.array([0, 2]), np.array([3, 1])).read(
        decode_counts([encode_mask(mask)["counts"]])[0]
    )
    assert read.tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize("seed", range(30))
def test_a_grid_equals_indexing_the_decoded_mask(seed):
    """Fewer, as many, repeated and mirrored rows and columns."""
    generator = np.random.default_rng(seed)
    height, width = generator.integers(1, 40, 2).tolist()
    mask = random_mask(height, width, seed)
    rows = np.sort(generator.integers(0, height, generator.integers(1, 60)))
    columns = np.sort(generator.integers(0, width, generator.integers(1, 60)))[:: generator.choice([1, -1])]
    read = Grid((height, width), rows, columns).read(decode_counts([encode_mask(mask)["counts"]])[0])
    assert torch.equal(read, mask[torch.from_numpy(rows)][:, torch.from_numpy(columns.copy())])


@pytest.mark.parametrize("value", [False, True])
def test_a_grid_of_an_empty_and_of_a_full_mask(value):
    counts = encode_mask(torch.full((5, 7), value))["counts"]
    assert (
        Grid((5, 7), np.array([0, 4]), np.array([6, 0, 3])).read(decode_counts([counts])[0]) == value
    ).all()


@dataclass(frozen=True)
class Whole:
    """The same video without the methods of `Lean`."""

    record: AnnotatedVideo

    def __getattr__(self, name: str):
        if name in ("shrunk", "sampled"):
            raise AttributeError(name)
        return getattr(self.record, name)


@pytest.fixture
def video(tmp_path: Path) -> AnnotatedVideo:
    """Six JPEG frames of 48x64 with three instances."""
    files = []
    for t in range(6):
        blurred = np.random.default_rng(t).integers(0, 255, (6, 8, 3), dtype=np.uint8)
        files.append(f"{t}.jpg")
        Image.fromarray(blurred).resize((64, 48), Image.Resampling.BICUBIC).save(
            tmp_path / files[-1], quality=95, subsampling=0
        )
    tracks = [
        Track(i + 1, 0, tuple(encode_mask(random_mask(48, 64, 7 * i + t))["counts"] for t in range(6)))
        for i in range(3)
    ]
    return annotated_videos(tmp_path, [VideoRow(4, "blur", (48, 64), files)], [tracks])[0]


def test_packed_strings_are_read_back():
    packed = Packed([b"ab", b"", b"cde"])
    assert [packed[i] for i in range(len(packed))] == [b"ab", b"", b"cde"]
    assert packed.filled(np.array([2, 1, 0])).tolist() == [True, False, True]


@pytest.mark.parametrize("outline", [None, "PPYo0", (b"8 bytes!", b"", b"another polygon "), ()])
def test_packed_outlines_are_read_back(outline):
    assert unpack_outline(pack_outline(outline)) == outline


def test_masks_are_checked_together_as_one_by_one():
    """Counts with one change, between two sound ones: accepted together if and only if accepted alone."""
    draw, size = random.Random(0), (9, 16)
    sound = [encode_mask(random_mask(*size, seed))["counts"] for seed in range(20)]
    areas = [int(random_mask(*size, seed).sum()) for seed in range(20)]
    assert sound_areas(sound, 144) == areas
    assert sound_areas(sound, 143) is None
    outcomes = Counter()
    for _ in range(600):
        text = draw.choice(sound)
        place = draw.randrange(len(text))
        insert = draw.choice(["", chr(draw.randint(46, 113)), "é", "0"])
        changed = text[:place] + insert + text[place + draw.randint(0, 1) :]
        try:
            parse_outline({"size": [*size], "counts": changed}, size)
            expected = True
        except ValueError:
            expected = False
        outcomes[expected] += 1
        found = sound_areas([sound[0], changed, sound[1]], 144)
        assert (found is not None) == expected
        if found:
            assert found[1] == count_pixels([changed], size)[0]
    assert min(outcomes.values()) > 20


def test_runs_of_the_largest_frame_are_sound():
    """32768x32768 pixels in one run: seven characters, which are checked one by one."""
    size, counts = (1 << 15, 1 << 15), [1 << 30]
    assert parse_outline({"size": [*size], "counts": counts}, size) == parse_outline(
        {"size": [*size], "counts": coco_mask.frPyObjects({"size": size, "counts": counts}, *size)["counts"]},
        size,
    )


def test_annotated_and_renumbered_videos_are_lean(video):
    assert isinstance(video, Lean)
    assert isinstance(Renumbered(video, 1, 1, (0,)), Lean)
    assert not isinstance(Whole(video), Lean)


def test_lean_records_give_the_same_clips(video):
    """Masks are equal; frames differ by the error of decoding a JPEG at half size."""
    for index in range(12):
        key = (0, 0, index)
        lean, whole = (make_clip(v, (0, 2, 3, 5), AUGMENT, key) for v in (video, Whole(video)))
        renumbered = make_clip(Renumbered(video, 1, 7, (0,)), (0, 2, 3, 5), AUGMENT, key)
        assert torch.equal(lean.targets.masks, whole.targets.masks)
        assert torch.equal(lean.targets.boxes, whole.targets.boxes)
        assert torch.equal(renumbered.targets.masks, lean.targets.masks)
        assert (lean.frames.int() - whole.frames.int()).abs().float().mean() < 5


def test_masks_are_sampled_for_selected_instances_only(video):
    selected = np.array([True, False, True])
    rows, columns = np.array([3, 9]), np.array([5, 1, 7])
    read = sampled_masks(video, 2, rows, columns, selected)
    assert torch.equal(read, sampled_masks(Whole(video), 2, rows, columns, selected))
    assert read.shape == (2, 2, 3)


def test_a_jpeg_is_decoded_at_reduced_size_and_a_png_at_full_size(video, tmp_path):
    assert shrunk_frame(video, 0, 2).shape == (3, 24, 32)
    assert shrunk_frame(video, 0, 4).shape == (3, 12, 16)
    Image.new("RGB", (64, 48), (9, 8, 7)).save(tmp_path / "frame.png")
    assert read_image(tmp_path / "frame.png", 2).shape == (3, 48, 64)


def test_a_rotated_photo_is_decoded_at_full_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(tmp_path / "side.jpg", exif=exif)
    assert read_image(tmp_path / "side.jpg", 2).shape == (3, 64, 48)


def test_a_size_mismatch_is_detected_at_reduced_size(video, tmp_path):
    Image.new("RGB", (60, 48)).save(tmp_path / "0.jpg")
    with pytest.raises(UserError, match="but its annotations say 48x64"):
        video.shrunk(0, 2)
