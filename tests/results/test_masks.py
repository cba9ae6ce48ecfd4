"""Mask decoding: bilinear interpolation of the unpadded frame, independent of padding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch.nn import functional

from local2global.results.masks import decode_columns, decode_masks, encode_columns, resize_logits


def smooth_logits(count, height, width, seed=0):
    coarse = torch.randn((1, count, 3, 4), generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(coarse, (height, width), mode="bicubic")[0] - 0.5


@pytest.mark.parametrize("size", [(96, 160), (90, 171), (24, 40), (480, 640)])
def test_decoding_equals_torch_interpolation_on_a_frame_without_padding(size):
    """At (480, 640) each mask is cropped to its occupied box; the smaller sizes are decoded in one call."""
    logits = smooth_logits(5, 24, 40)
    plain = functional.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    decoded = decode_masks(logits, (40.0, 24.0), size)
    assert decoded.shape == (5, *size)
    clear = plain.abs() > 1e-5
    assert torch.equal(decoded[clear], plain[clear] > 0)
    assert 0.05 < decoded.float().mean() < 0.95
    torch.testing.assert_close(resize_logits(logits, (40.0, 24.0), size), plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("padding", [-math.inf, 50.0, math.nan])
def test_padding_does_not_change_the_masks(padding):
    logits = smooth_logits(4, 24, 40)
    padded = torch.full((4, 32, 48), padding)
    padded[:, :24, :40] = logits
    assert torch.equal(
        decode_masks(padded, (40.0, 24.0), (96, 160)), decode_masks(logits, (40.0, 24.0), (96, 160))
    )


def test_a_fractional_extent_maps_the_frame_and_not_the_grid():
    """A frame of 10 x 6 input pixels is 2.5 x 1.5 mask pixels; the edge x = 1 is at 4 of 10 output pixels."""
    logits = torch.full((1, 2, 4), -math.inf)
    logits[0, :, :3] = torch.tensor([1.0, -1.0, -1.0])
    decoded = decode_masks(logits, (2.5, 1.5), (6, 10))
    assert decoded[0].tolist() == [[True] * 4 + [False] * 6] * 6


def test_empty_masks_and_no_masks_decode_to_nothing():
    assert not decode_masks(torch.full((2, 8, 8), -1.0), (8.0, 8.0), (32, 32)).any()
    assert decode_masks(torch.zeros((0, 8, 8)), (8.0, 8.0), (32, 32)).shape == (0, 32, 32)


def test_pycocotools_decodes_the_encoded_masks():
    logits = smooth_logits(3, 24, 40)
    masks = decode_masks(logits, (40.0, 24.0), (96, 160)).numpy()
    counts = encode_columns(decode_columns(logits, (40.0, 24.0), (96, 160)))
    decoded = coco_mask.decode([{"size": [96, 160], "counts": text} for text in counts])
    assert np.array_equal(decoded.transpose(2, 0, 1).astype(bool), masks)


@pytest.mark.parametrize(
    "kind", ["empty", "full", "corners", "first column", "last column", "random", "blocks"]
)
def test_counts_equal_those_of_pycocotools(kind):
    """(W, H) masks are encoded from their first to their last filled column."""
    mask = torch.zeros(7, 5, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    if kind == "full":
        mask[:] = True
    elif kind == "corners":
        mask[0, 0] = mask[-1, -1] = True
    elif kind.endswith("column"):
        mask[0 if kind.startswith("first") else -1] = True
    elif kind == "random":
        mask = torch.rand(7, 5, generator=generator) > 0.5
    elif kind == "blocks":
        mask[2:4, 1:3] = mask[4:6, 3:] = True
    expected = coco_mask.encode(np.asfortranarray(mask.T.numpy().astype(np.uint8)))["counts"].decode()
    assert encode_columns(mask[None]) == [expected]
