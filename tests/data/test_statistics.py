"""Statistics of datasets on hand-drawn masks, and the presets that follow published data sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from local2global.app.data import data_app
from local2global.data.generated.shapes import load_shapes
from local2global.data.statistics import PUBLISHED, gap_lengths, occlusion_rate, statistics


def box(left, top, right, bottom):
    mask = torch.zeros((6, 10), dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize(
    ("masks", "rate"),
    [
        ([box(0, 0, 4, 4)], 0),
        ([box(0, 0, 4, 4), box(6, 0, 10, 4)], 0),
        ([box(0, 0, 4, 4), box(2, 0, 6, 4)], 8 / 24),
        ([box(0, 0, 4, 4), box(2, 0, 6, 4), box(2, 0, 6, 4)], 16 / 24),  # covered twice or more, counted once
        ([box(0, 0, 4, 4), torch.zeros((6, 10), dtype=torch.bool)], 0),  # a hidden object has no box
    ],
)
def test_the_occlusion_rate_is_the_area_of_two_boxes_over_the_area_of_any(masks, rate):
    assert occlusion_rate(torch.stack(masks)) == pytest.approx(rate)


def test_gaps_lie_between_visible_frames():
    assert gap_lengths(np.array([0, 1, 0, 0, 1, 1, 0, 1, 0], bool)) == [2, 1]


class Video:
    """Two objects: one is visible on frames 0 to 7, the other on frames 0, 4 and 5 of eight."""

    length = 8

    def masks(self, t):
        second = box(2, 0, 6, 4) if t in (0, 4, 5) else torch.zeros((6, 10), dtype=torch.bool)
        return torch.stack([box(0, 0, 4, 4), second])


def test_statistics_of_a_hand_made_video():
    assert statistics([Video()]) == pytest.approx(
        {
            "frames per video": 8,
            "instances per video": 2,
            "objects per frame": 11 / 8,
            "visible share of a video": (8 / 8 + 6 / 8) / 2,
            "mBOR": 3 / 8 * 8 / 24,
            "gaps per video": 1,
            "median gap": 3,
            "longest gap": 3,
        }
    )


@pytest.mark.parametrize(
    ("preset", "dataset", "videos"), [("ovis_like", "OVIS", 16), ("ytvis_like", "YouTube-VIS 2021", 40)]
)
def test_presets_have_the_published_statistics(preset, dataset, videos):
    """Within a quarter; mBOR within .05."""
    found, published = statistics(load_shapes(preset, videos).videos), PUBLISHED[dataset]
    assert found["mBOR"] == pytest.approx(published["mBOR"], abs=0.05)
    for name, value in published.items():
        if name != "mBOR":
            assert found[name] == pytest.approx(value, rel=0.25), name


def test_the_command_prints_a_preset_beside_published_datasets():
    result = CliRunner().invoke(data_app, ["statistics", "ytvis_like", "--videos", "1"])
    assert result.exit_code == 0
    head, _, *rows = result.output.splitlines()
    assert head == "|  | ytvis_like | OVIS | YouTube-VIS 2021 |"
    assert rows[1].endswith("| 5.80 | 2.10 |")
