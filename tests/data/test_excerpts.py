"""Excerpts of generated videos: frames, visible instances and unique ids."""

from __future__ import annotations

import pytest
import torch

from local2global.data.excerpts import excerpts
from local2global.data.generated.shapes import load_shapes
from local2global.errors import UserError


@pytest.fixture(scope="module")
def whole():
    """Two videos of at least 64 frames with occlusions."""
    return load_shapes("hard_unnamed", 2, seed=0)


def test_an_excerpt_has_the_frames_from_its_start(whole):
    pieces = excerpts(whole, 16)
    first, second = pieces.videos[0], pieces.videos[1]
    assert (first.start, second.start, second.length) == (0, 16, 16)
    torch.testing.assert_close(second.frame(3), whole.videos[0].frame(19))
    torch.testing.assert_close(second.masks(3), whole.videos[0].masks(19)[torch.from_numpy(second.rows)])
    assert len(pieces) == sum(video.length // 16 for video in whole.videos)


def test_an_excerpt_has_only_visible_instances(whole):
    pieces = excerpts(whole, 2)
    for piece in pieces.videos[:40]:
        seen = torch.stack([piece.masks(t) for t in range(2)]).flatten(2).any(-1).any(0)
        assert seen.all()
        assert len(piece.labels) == len(piece.ids) == len(piece.masks(0)) == len(piece.present(0))
    counts = [len(piece.ids) for piece in pieces.videos[: whole.videos[0].length // 2]]
    assert min(counts) < len(whole.videos[0].ids)  # some excerpt has an occluded object


def test_ids_are_unique_over_all_excerpts(whole):
    truth = excerpts(whole, 32).truth()
    for part in ("videos", "annotations"):
        ids = [entry["id"] for entry in truth[part]]
        assert len(set(ids)) == len(ids)
    assert all(any(a["segmentations"]) for a in truth["annotations"])


@pytest.mark.parametrize("length", [0, 1000])
def test_a_length_beyond_all_videos_is_refused(whole, length):
    with pytest.raises(UserError, match="excerpts: no video has"):
        excerpts(whole, length)


def test_a_frame_beyond_the_excerpt_is_refused(whole):
    with pytest.raises(IndexError, match="shapes-00001-16 has frames 0 to 15"):
        excerpts(whole, 16).videos[1].frame(16)
