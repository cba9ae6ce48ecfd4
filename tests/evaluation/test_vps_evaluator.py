"""The panoptic evaluator: videos are scored and maps are written frame by frame."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from local2global.errors import UserError
from local2global.evaluation.panoptic_files import score_files
from local2global.evaluation.vps_evaluator import TruthFiles, VPSEvaluator, flat_scores
from local2global.results.segment_ids import read_ids, write_ids
from local2global.structures import PanopticFrame, PanopticSegment, PanopticVideo

CLASSES = [{"id": 5, "name": "dog", "isthing": 1}, {"id": 9, "name": "sky", "isthing": 0}]
SKY, DOG = 2, 7
MAPS = {name: [np.array([[SKY, SKY, DOG, DOG]], np.uint32)] * 3 for name in ("a", "b")}


class Truth:
    """Two videos of three frames: two pixels of sky, two of dog."""

    @property
    def names(self):
        return {1: "a", 2: "b"}

    def content(self):
        listed = [{"id": SKY, "category_id": 9, "area": 2}, {"id": DOG, "category_id": 5, "area": 2}]
        names = [f"{t:08d}" for t in range(3)]
        images = [{"file_name": f"{name}.jpg"} for name in names]
        frames = [{"file_name": f"{name}.png", "segments_info": listed} for name in names]
        return {
            "videos": [{"video_id": name, "images": images} for name in MAPS],
            "categories": CLASSES,
            "annotations": [{"video_id": name, "annotations": frames} for name in MAPS],
        }

    def read(self, video, frames):
        return iter(MAPS[video])


def results(*pictures):
    """Panoptic frames; S is sky, every other letter a dog, `.` void."""
    for t, picture in enumerate(pictures):
        ids = torch.tensor([[0 if p == "." else ord(p) for p in picture]], dtype=torch.int32)
        segments = [
            PanopticSegment(ord(p), int(p == "S"), picture.count(p), 0.5)
            for p in sorted(set(picture) - {"."})
        ]
        yield PanopticFrame(t, ids, tuple(segments))


def video(identity, *pictures, final=None):
    again = None if final is None else lambda: results(*final)
    return PanopticVideo(identity, (1, 4), len(pictures), results(*pictures), again)


def test_perfect_results_score_100(tmp_path):
    evaluator = VPSEvaluator(Truth(), CLASSES, tmp_path)
    evaluator.process([], [video(1, "SSdd", "SSdd", "SSdd"), video(2, "SSee", "SSee", "SSee")])
    scores = evaluator.evaluate()["panoptic"]
    assert scores["VPQ_1"] == scores["VPQ_2"] == scores["STQ"] == scores["AQ"] == scores["SQ"] == 100
    assert (scores["VPQ"], scores["VPQ_4"]) == (-1, -1)  # no window of four frames


def test_a_change_of_id_lowers_the_scores_of_longer_windows():
    """In video b the dog changes its id: every single frame matches, the window of two across the change does not."""
    evaluator = VPSEvaluator(Truth(), CLASSES)
    evaluator.process([], iter([video(1, *["SSdd"] * 3), video(2, "SSdd", "SSee", "SSee")]))
    scores = evaluator.evaluate()["panoptic"]
    assert scores["VPQ_1"] == 100
    assert scores["VPQ_2"] == pytest.approx(100 * (1 + 3 / (3 + 0.5 * 2 + 0.5)) / 2)


def test_labels_are_mapped_to_categories_by_id():
    evaluator = VPSEvaluator(Truth(), CLASSES[::-1])
    frames = (
        PanopticFrame(
            t, torch.tensor([[3, 3, 4, 4]]), (PanopticSegment(3, 0, 2, 1.0), PanopticSegment(4, 1, 2, 1.0))
        )
        for t in range(3)
    )
    evaluator.process([], [PanopticVideo(1, (1, 4), 3, frames)])
    assert evaluator.evaluate()["panoptic"]["STQ"] == 100


def test_written_files_have_the_same_scores(tmp_path):
    evaluator = VPSEvaluator(Truth(), CLASSES, tmp_path)
    evaluator.process([], [video(1, "SSdd", "Sddd", "SSd."), video(2, "SSdd", "SSee", "....")])
    scores = evaluator.evaluate()["panoptic"]
    truth = tmp_path / "truth"
    for name, maps in MAPS.items():
        (truth / name).mkdir(parents=True)
        for t, ids in enumerate(maps):
            write_ids(ids, truth / name / f"{t:08d}.png")
    (tmp_path / "gt.json").write_text(json.dumps(Truth().content()))
    from_files, _ = score_files(tmp_path / "gt.json", tmp_path / "pred.json", truth, tmp_path / "pan_pred")
    assert flat_scores(from_files) == scores
    assert read_ids(tmp_path / "pan_pred" / "a" / "00000001.png").tolist() == [[ord(p) for p in "Sddd"]]
    assert not list(tmp_path.rglob("*.tmp"))
    files = TruthFiles(tmp_path / "gt.json", truth, SimpleNamespace(videos=[SimpleNamespace(id=1, name="a")]))
    again = VPSEvaluator(files, CLASSES)
    again.process([], [video(1, *["SSdd"] * 3)])
    assert again.evaluate()["panoptic"]["STQ"] == 100


def test_maps_are_written_frame_by_frame(tmp_path):
    evaluator = VPSEvaluator(Truth(), CLASSES, tmp_path)

    def frames():
        for t, result in enumerate(results(*["SSdd"] * 3)):
            assert len(list((tmp_path / "pan_pred" / "a").glob("*.png"))) == t
            yield result

    evaluator.process([], [PanopticVideo(1, (1, 4), 3, frames())])
    assert not (tmp_path / "pred.json").exists()
    evaluator.evaluate()
    assert [v["video_id"] for v in json.loads((tmp_path / "pred.json").read_text())["annotations"]] == ["a"]


def test_second_decisions_are_scored_too_with_the_difference(tmp_path):
    evaluator = VPSEvaluator(Truth(), CLASSES, tmp_path)
    evaluator.process([], [video(1, "SSdd", "SSdd", "SSee", final=["SSee"] * 3)])
    scores = evaluator.evaluate()
    assert scores["panoptic_final"]["AQ"] == 100
    assert scores["final_minus_online"]["AQ"] == 100 - scores["panoptic"]["AQ"] > 0
    assert (tmp_path / "pred_final.json").exists()
    assert len(list((tmp_path / "pan_pred_final" / "a").iterdir())) == 3


def test_a_repeated_video_counts_once():
    evaluator = VPSEvaluator(Truth(), CLASSES)
    evaluator.process([], [video(1, *["SSdd"] * 3), video(1, *["...."] * 3)])
    assert evaluator.evaluate()["panoptic"]["STQ"] == 100
    evaluator.reset()
    assert evaluator.evaluate()["panoptic"]["STQ"] == -1


def test_a_class_without_a_category_in_the_truth_is_refused():
    with pytest.raises(UserError, match=r"class 6 \(cat\) of the model is not a category of the truth"):
        VPSEvaluator(Truth(), [*CLASSES, {"id": 6, "name": "cat"}])


def test_a_video_of_the_test_set_that_the_truth_lacks_is_refused_before_any_prediction():
    class Other(Truth):
        @property
        def names(self):
            return {1: "a", 3: "c"}

    with pytest.raises(UserError, match="video c of the test set is not in the truth"):
        VPSEvaluator(Other(), CLASSES)
