"""The record of a stream and the YouTube-VIS files made from it."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
import torch
from pycocotools import mask as coco_mask

from local2global.errors import UserError
from local2global.results.exports.youtube_vis import write_annotations, write_results
from local2global.results.record import RecordedTracks, Recording, RecordWriter, read_record
from local2global.structures import FrameResult

CLASSES = [{"id": 5, "name": "person"}, {"id": 9, "name": "dog"}]
VIDEO = {"name": "clip", "width": 6, "height": 4, "fps": 10.0, "file_names": None}


def result(
    ids: list[int], labels: list[int], scores: list[float], size: tuple[int, int] = (4, 6)
) -> FrameResult:
    """Objects whose mask is the left column; frame index and boxes are not recorded."""
    masks = torch.zeros((len(ids), *size), dtype=torch.bool)
    masks[:, :, 0] = True
    boxes = torch.zeros(len(ids), 4)
    return FrameResult(0, torch.tensor(ids), torch.tensor(labels), torch.tensor(scores), masks, boxes)


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """Four frames: slot 7 on frames 0 and 2, slot 2 on frame 2 only; the class of slot 7 changes."""
    path = tmp_path / "frames.jsonl"
    with RecordWriter(path, CLASSES) as writer:
        for t, objects in enumerate(
            [([7], [0], [0.5]), ([], [], []), ([7, 2], [1, 1], [0.75, 0.25]), ([], [], [])]
        ):
            writer.append(result(*objects), t / 10)
    return path


def test_a_line_holds_the_objects_of_a_frame(record):
    frames = list(read_record(record))
    assert [(f["index"], f["time"], len(f["objects"])) for f in frames] == [
        (0, 0.0, 1), (1, 0.1, 0), (2, 0.2, 2), (3, 0.3, 0)
    ]  # fmt: skip
    rle = frames[0]["objects"][0].pop("segmentation")
    assert frames[0]["objects"] == [{"id": 7, "category_id": 5, "score": 0.5, "bbox": [0.0, 0.0, 1.0, 4.0]}]
    mask = coco_mask.decode(rle)
    assert mask.shape == (4, 6)
    assert mask[:, 0].all()
    assert mask.sum() == 4


def test_every_line_is_on_disk_before_the_next_frame(tmp_path):
    with RecordWriter(tmp_path / "frames.jsonl", CLASSES) as writer:
        for count in (1, 2):
            writer.append(result([1], [0], [0.5]), 0.0)
            assert len(list(read_record(tmp_path / "frames.jsonl"))) == count


def test_an_incomplete_last_line_is_dropped_and_a_corrupt_line_is_refused(record):
    with record.open("a") as file:
        file.write('{"index": 4, "obj')
    assert len(list(read_record(record))) == 4
    with record.open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match=r"frames\.jsonl:5: invalid frame record"):
        list(read_record(record))


def test_a_record_without_frames_is_deleted(tmp_path):
    with RecordWriter(tmp_path / "frames.jsonl", CLASSES):
        pass
    assert list(tmp_path.iterdir()) == []


def test_tracks_have_their_last_class_and_no_mask_where_not_reported(record):
    with RecordedTracks(record) as recorded:
        assert (recorded.length, list(recorded.tracks)) == (4, [7, 2])
        track = recorded.tracks[7]
        assert (track.category_id, list(track.frames), list(track.scores)) == (9, [0, 2], [0.5, 0.75])
        assert [entry and entry["score"] for entry in recorded.objects(track)] == [0.5, None, 0.75, None]


@pytest.mark.parametrize(("length", "score"), [(4, 0.75), (8, 0.625), (12, 1.25 / 3)])
def test_the_video_score_is_the_mean_of_the_best_quarter(record, length, score):
    """Scores .5 and .75; a quarter of 12 frames are 3, of which one has no report and counts as 0."""
    with RecordedTracks(record) as recorded:
        assert recorded.tracks[7].score(length) == pytest.approx(score)


def test_results_have_the_form_that_servers_accept(record, tmp_path):
    with RecordedTracks(record) as recorded:
        write_results(tmp_path / "results.json", Recording(recorded, VIDEO, CLASSES))
    first, second = json.loads((tmp_path / "results.json").read_text())
    assert list(first) == ["video_id", "category_id", "score", "segmentations"]
    assert [mask is None for mask in second["segmentations"]] == [True, True, False, True]


def test_annotations_have_the_form_of_truth(record, tmp_path):
    with RecordedTracks(record) as recorded:
        write_annotations(tmp_path / "annotations.json", Recording(recorded, VIDEO, CLASSES))
    content = json.loads((tmp_path / "annotations.json").read_text())
    assert content["videos"][0]["file_names"][:2] == ["clip/00000.jpg", "clip/00001.jpg"]
    first, second = content["annotations"]
    assert (first["id"], first["category_id"], first["iscrowd"], first["length"]) == (8, 9, 0, 4)
    assert first["areas"] == [4, None, 4, None]
    assert second["bboxes"] == [None, None, [0.0, 0.0, 1.0, 4.0], None]
    assert second["scores"] == [None, None, 0.25, None]


def test_files_without_objects_are_valid(tmp_path):
    with RecordWriter(tmp_path / "frames.jsonl", CLASSES) as writer:
        writer.append(result([], [], []), 0.0)
    with RecordedTracks(tmp_path / "frames.jsonl") as recorded:
        write_results(tmp_path / "results.json", Recording(recorded, VIDEO, CLASSES))
        write_annotations(tmp_path / "annotations.json", Recording(recorded, VIDEO, CLASSES))
    assert json.loads((tmp_path / "results.json").read_text()) == []
    assert json.loads((tmp_path / "annotations.json").read_text())["annotations"] == []


def test_a_failed_write_keeps_the_existing_file(record, tmp_path):
    (tmp_path / "annotations.json").write_text("old")
    with RecordedTracks(record) as recorded, pytest.raises(KeyError):
        write_annotations(tmp_path / "annotations.json", Recording(recorded, {"name": "no size"}, CLASSES))
    assert (tmp_path / "annotations.json").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotations.json", "frames.jsonl"]


def test_memory_does_not_grow_with_masks(tmp_path):
    """300 frames with 20 noisy masks: their RLEs are several MiB, exporting them holds less than 1 MiB."""
    path = tmp_path / "frames.jsonl"
    generator = torch.Generator().manual_seed(0)
    with RecordWriter(path, CLASSES) as writer:
        for t in range(300):
            objects = result(list(range(20)), [0] * 20, [0.5] * 20, (40, 60))
            noise = torch.rand((20, 40, 60), generator=generator) > 0.5
            writer.append(
                FrameResult(t, objects.ids, objects.labels, objects.scores, noise, objects.boxes), t / 10
            )
    assert path.stat().st_size > 5 * 2**20
    tracemalloc.start()
    with RecordedTracks(path) as recorded:
        write_results(tmp_path / "results.json", Recording(recorded, VIDEO, CLASSES))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
