"""J and F of DAVIS on hand-made masks."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from local2global.app import cli
from local2global.evaluation.vos import boundary, contour_accuracy, region_similarity, score

SIZE = (40, 50)  # its diagonal is 64 pixels, so that boundaries match within one pixel


def square(x, y=5, side=10):
    mask = np.zeros(SIZE, dtype=bool)
    mask[y : y + side, x : x + side] = True
    return mask


def rle(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(SIZE), "counts": encoded["counts"].decode()}


def test_region_similarity_is_intersection_over_union():
    assert region_similarity(square(5), square(10)) == 50 / 150
    assert region_similarity(square(5), square(5, side=0)) == 0
    assert region_similarity(square(5, side=0), square(5, side=0)) == 1


def test_a_boundary_pixel_differs_from_the_pixel_to_its_right_below_or_below_right():
    mask = np.zeros((4, 5), dtype=bool)
    mask[1:3, 1:3] = True
    drawn = ["".join(".#"[int(p)] for p in row) for row in boundary(mask)]
    assert drawn == ["###..", "#.#..", "###..", "....."]


def test_a_mask_that_touches_the_border_has_no_boundary_there():
    mask = np.ones((3, 4), dtype=bool)
    assert not boundary(mask).any()


@pytest.mark.parametrize(("shift", "expected"), [(0, 1.0), (1, 1.0), (30, 0.0)])
def test_boundaries_match_within_the_tolerance(shift, expected):
    assert contour_accuracy(square(5 + shift), square(5)) == expected


def test_contour_accuracy_is_the_harmonic_mean_of_precision_and_recall():
    """The prediction misses the second of two equal squares: precision 1, recall .5."""
    assert contour_accuracy(square(5), square(5) | square(30)) == pytest.approx(2 / 3)
    assert contour_accuracy(square(5, side=0), square(5)) == 0
    assert contour_accuracy(square(5, side=0), square(5, side=0)) == 1


def files():
    """Two objects of five frames; one track follows the first, the other one is on the second for three frames."""
    first, second = [rle(square(5 + t)) for t in range(5)], [rle(square(30, 20))] * 5
    truth = {
        "videos": [{"id": 1, "height": SIZE[0], "width": SIZE[1], "length": 5}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [
            {"id": i, "video_id": 1, "category_id": i, "iscrowd": 0, "segmentations": s, "areas": [100] * 5}
            for i, s in enumerate((first, second), 1)
        ],
    }
    tracks = [[None, *second[1:3], None, None], first]
    results = [{"video_id": 1, "category_id": 1, "score": 0.9, "segmentations": masks} for masks in tracks]
    return truth, results


def test_objects_have_the_best_fitting_track_of_any_class():
    """Frames 1 to 3 count: the first object has J = 1 on each, the second one on two of three."""
    scores = score(*files())
    assert scores["J"] == pytest.approx((1 + 2 / 3) / 2)
    assert scores["F"] == scores["J"] == scores["J&F"] == scores["J recall"]


def test_a_video_whose_size_the_truth_does_not_state_has_that_of_its_masks():
    truth, results = files()
    expected = score(truth, results)
    del truth["videos"][0]["height"], truth["videos"][0]["width"]
    assert score(truth, results) == expected


def test_the_command_prints_and_writes_the_scores(tmp_path, monkeypatch, capsys):
    for name, content in zip(("truth", "results"), files(), strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    paths = ("--truth", "truth", "--results", "results", "--json", "out")
    options = [str(tmp_path / f"{p}.json") if not p.startswith("-") else p for p in paths]
    monkeypatch.setattr(sys, "argv", ["l2g", "score", "vos", *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert "83.33" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text())["J"] == pytest.approx(5 / 6)
