"""Generated videos written in both layouts are read back unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from local2global.data.generated.shapes import load_shapes
from local2global.data.readers.youtube_vis import load_youtube_vis
from local2global.data.writers import new_folder, write_json, write_vipseg, write_youtube_vis
from local2global.errors import UserError
from local2global.results.segment_ids import ids_to_colours, read_ids, segment_id, write_ids


@pytest.fixture(scope="module")
def shapes():
    return load_shapes("demo", 3, seed=5, length=4, size=(32, 48))


def test_a_dataset_written_as_png_is_read_back_exactly(shapes, tmp_path):
    file = write_youtube_vis(shapes.videos, shapes.classes, tmp_path / "out", "png")
    read = load_youtube_vis(tmp_path / "out" / "JPEGImages", file)
    assert read.classes == shapes.classes
    assert [v.name for v in read.videos] == [v.name for v in shapes.videos]
    for mine, theirs in zip(read.videos, shapes.videos, strict=True):
        seen = np.array([theirs.present(t) for t in range(theirs.length)]).any(0)
        assert mine.labels.tolist() == theirs.labels[torch.from_numpy(seen)].tolist()
        for t in range(theirs.length):
            assert torch.equal(mine.frame(t), theirs.frame(t))
            assert torch.equal(mine.masks(t), theirs.masks(t)[torch.from_numpy(seen)])


def test_areas_and_boxes_agree_with_the_masks(shapes, tmp_path):
    file = write_youtube_vis(shapes.videos, shapes.classes, tmp_path / "out")
    content = json.loads(file.read_text())
    own = load_youtube_vis(tmp_path / "out" / "JPEGImages", file).videos[0].masks(0)
    first = next(a for a in content["annotations"] if a["segmentations"][0])
    mask = own[[a["id"] for a in content["annotations"]].index(first["id"])]
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    left, top = int(columns[0]), int(rows[0])
    assert first["areas"][0] == int(mask.sum())
    assert first["bboxes"][0] == [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]
    assert [a["id"] for a in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))


def test_jpeg_frames_are_close(shapes, tmp_path):
    file = write_youtube_vis(shapes.videos, shapes.classes, tmp_path / "out")
    read = load_youtube_vis(tmp_path / "out" / "JPEGImages", file)
    apart = read.videos[0].frame(0).float() - shapes.videos[0].frame(0).float()
    assert 0 < float(apart.abs().mean()) < 4


def test_every_pixel_of_a_vipseg_map_is_a_thing_or_background(shapes, tmp_path):
    file = write_vipseg(shapes.videos, shapes.classes, tmp_path / "out", split="train")
    assert file.name == "panoptic_gt_VIPSeg_train.json"
    content = json.loads(file.read_text())
    stuff = content["categories"][-1]
    assert stuff == {"id": 6, "name": "background", "isthing": 0}
    names = {c["id"]: c["name"] for c in content["categories"]}
    for record, entry in zip(shapes.videos, content["annotations"], strict=True):
        owner: dict[int, int] = {}
        for t, frame in enumerate(entry["annotations"]):
            ids = read_ids(tmp_path / "out" / "panomasksRGB" / record.name / frame["file_name"])
            segments = {s["id"]: s for s in frame["segments_info"]}
            assert set(np.unique(ids).tolist()) == set(segments)
            masks = record.masks(t).numpy()
            for row, mask in enumerate(masks):
                if mask.any():
                    (identity,) = np.unique(ids[mask]).tolist()
                    assert owner.setdefault(identity, row) == row
                    name = shapes.classes[int(record.labels[row])]["name"]
                    assert names[segments[identity]["category_id"]] == name
                    assert segments[identity]["area"] == mask.sum()
            (background,) = np.unique(ids[~masks.any(0)]).tolist()
            assert segments[background]["category_id"] == stuff["id"]


def test_with_a_stuff_class_unlabelled_pixels_are_void(shapes, tmp_path):
    """With a stuff class in the list no class is added, and its instances share one segment."""
    classes = [{**c, "isthing": int(k > 0)} for k, c in enumerate(shapes.classes)]
    file = write_vipseg(shapes.videos, classes, tmp_path / "out")
    content = json.loads(file.read_text())
    assert content["categories"] == classes
    record, entry = shapes.videos[0], content["annotations"][0]["annotations"][0]
    ids = read_ids(tmp_path / "out" / "panomasksRGB" / record.name / entry["file_name"])
    assert (ids[~record.masks(0).numpy().any(0)] == 0).all()
    stuff = [s["id"] for s in entry["segments_info"] if s["category_id"] == classes[0]["id"]]
    assert len(stuff) == len(set(stuff)) <= 1


def test_an_existing_folder_is_not_overwritten(shapes, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="already exists"):
        write_youtube_vis(shapes.videos, shapes.classes, tmp_path / "out")
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "thesis.txt"]


def test_two_processes_do_not_write_one_folder(tmp_path):
    """They used to delete each other's temporary files."""
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("first")
        with pytest.raises(UserError, match="out: another process writes this folder"):
            new_folder(tmp_path / "out").__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "first"


def test_a_failed_dataset_leaves_no_files(shapes, tmp_path):
    class Broken:
        def __getattr__(self, name):
            raise UserError("no more")

    for write in (write_youtube_vis, write_vipseg):
        with pytest.raises(UserError, match="no more"):
            write([shapes.videos[0], Broken()], shapes.classes, tmp_path / "out")
        assert not list(tmp_path.iterdir())


def test_ids_and_colours_are_inverse(tmp_path):
    ids = np.array([[0, 1, 255, 256], [65535, 65536, 70000, (1 << 24) - 1]], dtype=np.int32)
    assert ids_to_colours(ids)[0, 3].tolist() == [0, 1, 0]
    write_ids(ids, tmp_path / "map.png")
    assert (read_ids(tmp_path / "map.png") == ids).all()


def test_small_numbers_have_unique_ids():
    ids = {segment_id(n) for n in range(1, 5000)}
    assert len(ids) == 4999
    assert min(ids) > 0
    assert max(ids) < 1 << 24


def test_a_failed_json_file_leaves_nothing(tmp_path: Path):
    with pytest.raises(TypeError):
        write_json({"videos": [object()]}, tmp_path / "instances.json")
    assert not list(tmp_path.iterdir())
