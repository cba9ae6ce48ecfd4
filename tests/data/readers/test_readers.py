"""Readers of every public layout, on miniatures: hand-made records, and errors of invalid files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from local2global.data.augment import ClipAugmentation, Identity, Turn
from local2global.data.check import check_dataset
from local2global.data.clips import make_clip
from local2global.data.datasets import Lean
from local2global.data.holdout import holdout
from local2global.data.readers import layouts
from local2global.data.readers.coco import load_coco
from local2global.data.readers.entries import read_json
from local2global.data.readers.layouts import classes_of, load_annotated, load_split, load_vipseg
from local2global.data.readers.rle import encode_mask
from local2global.errors import UserError
from miniatures import SIZE, write_images, write_json, write_panoptic, write_videos

CLASSES = [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}]
PANOPTIC = [
    {"id": 5, "name": "cat", "isthing": 1},
    {"id": 9, "name": "dog", "isthing": 1},
    {"id": 2, "name": "sky", "isthing": 0},
]


def rectangle(top: int, left: int, high: int, wide: int) -> torch.Tensor:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[top : top + high, left : left + wide] = True
    return mask


def error_of(call: Any) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -------------------------------------------------------------------------------- YouTube-VIS and OVIS layouts


@pytest.mark.parametrize(
    ("images", "file"),
    [
        ("train/JPEGImages", "train.json"),
        ("train/JPEGImages", "annotations/instances_train_sub.json"),
        ("train/JPEGImages", "train/instances.json"),
        ("train", "annotations/train.json"),
        ("train", "annotations_train.json"),
        ("train", "annotations/annotations_train.json"),
    ],
)
def test_a_split_is_found_in_every_supported_layout(tmp_path, images, file):
    write_videos(tmp_path / images, tmp_path / file, CLASSES)
    dataset = load_split(tmp_path, "train", CLASSES)
    assert [video.name for video in dataset.videos] == ["video1", "video2", "video3"]
    assert dataset.videos[0].frame(0).shape == (3, *SIZE)
    assert torch.equal(dataset.videos[1].masks(2)[0], rectangle(4, 8, 12, 10))


def test_seqformers_validation_split_is_called_val(tmp_path):
    write_videos(tmp_path / "valid", tmp_path / "annotations/instances_val_sub.json", CLASSES)
    assert len(load_split(tmp_path, "valid")) == 3


@pytest.mark.parametrize("place", ["", "valid", "annotations"])
def test_public_truth_of_validation_videos_is_found(tmp_path, place):
    """YouTube-VIS 2022: `valid.json` lists the videos, gt*.json hold the truth of all, short and long ones."""
    write_videos(tmp_path / "valid/JPEGImages", tmp_path / "valid.json", CLASSES, annotated=False)
    assert "annotations" not in load_split(tmp_path, "valid").truth()
    for name, videos in (("gt", 3), ("gt_short", 2), ("gt_long", 1)):
        write_videos(tmp_path / "again", tmp_path / place / f"{name}.json", CLASSES, videos=videos)
    dataset = load_split(tmp_path, "valid", CLASSES)
    assert [a["video_id"] for a in dataset.truth()["annotations"]] == [1, 2, 3]
    parts = dataset.truth_of_parts()
    assert {name: [v["id"] for v in part["videos"]] for name, part in parts.items()} == {
        "short": [1, 2],
        "long": [1],
    }
    (tmp_path / "valid.json").unlink()
    assert len(load_split(tmp_path, "valid", CLASSES)) == 3
    assert (
        load_split(tmp_path, "valid", CLASSES, videos=["video2"]).truth_of_parts()["long"]["annotations"]
        == []
    )


@pytest.mark.parametrize("compressed", [False, True])
def test_videos_of_many_frames_are_read_and_checked(tmp_path, compressed):
    """300 frames: pycocotools fails on lists of more than 255 masks."""
    write_videos(tmp_path / "train", tmp_path / "train.json", CLASSES, videos=1)
    content = json.loads((tmp_path / "train.json").read_text())
    (video,), (annotation,) = content["videos"], content["annotations"]
    video |= {"file_names": video["file_names"] * 100, "length": 300}
    masks = annotation["segmentations"]
    if compressed:
        masks = [encode_mask(rectangle(2 + t, 4, 12, 10)) for t in range(3)]
    annotation |= {"segmentations": masks * 100, "length": 300, "areas": [120] * 300}
    write_json(tmp_path / "train.json", content)
    dataset = load_split(tmp_path, "train")
    assert torch.equal(dataset.videos[0].masks(299)[0], rectangle(4, 4, 12, 10))
    assert len(dataset.truth()["annotations"][0]["segmentations"]) == 300
    assert [str(finding) for finding in check_dataset(tmp_path).errors] == []


def test_public_truth_of_other_videos_is_refused(tmp_path):
    write_videos(tmp_path / "valid", tmp_path / "valid.json", CLASSES, annotated=False)
    write_videos(tmp_path / "valid", tmp_path / "validGT.json", CLASSES)
    content = json.loads((tmp_path / "validGT.json").read_text())
    content["videos"][0] |= {"file_names": ["video1/00000.jpg"], "length": 1}
    content["annotations"] = content["annotations"][1:]
    write_json(tmp_path / "validGT.json", content)
    message = error_of(lambda: load_split(tmp_path, "valid").truth())
    assert 'validGT.json: video 1, "video1": 1 frames, but 3 in valid.json' in message


def test_a_missing_split_is_reported_with_every_path_tried(tmp_path):
    message = error_of(lambda: load_split(tmp_path, "valid"))
    for place in ("valid.json", "annotations/valid.json", "annotations_valid.json", "instances_val_sub.json"):
        assert place in message
    assert "DETECTRON2_DATASETS" in message


# ------------------------------------------------------------------------------------------------------- COCO


@pytest.fixture
def coco(tmp_path: Path) -> tuple[Path, Path]:
    write_images(tmp_path / "train2017", tmp_path / "instances.json", CLASSES, [1, 7])
    return tmp_path / "train2017", tmp_path / "instances.json"


def test_an_image_is_a_video_of_one_frame(coco):
    dataset = load_coco(*coco)
    assert [(v.id, v.name, v.length, v.size) for v in dataset.videos] == [
        (i, f"{i:012d}", 1, SIZE) for i in (1, 2, 3)
    ]
    first = dataset.videos[0]
    assert (first.ids.tolist(), first.labels.tolist()) == ([101], [1])
    assert torch.equal(first.masks(0)[0], rectangle(2, 4, 16, 16))
    assert isinstance(first, Lean)
    rows, columns = np.array([1, 2, 17, 18]), np.array([19, 20])
    sampled = first.sampled(0, rows, columns, np.array([True]))
    assert sampled[0].tolist() == [[False, False], [True, False], [True, False], [False, False]]
    with pytest.raises(IndexError):
        first.frame(1)


def test_an_image_with_only_a_crowd_is_in_the_ground_truth_only(coco):
    everything = load_coco(*coco, keep_empty=True)
    assert len(everything) == 4
    crowds = [a for a in everything.truth()["annotations"] if a["iscrowd"]]
    assert [(a["id"], a["video_id"], a["areas"]) for a in crowds] == [(104, 4, [25])]
    assert {a["video_id"] for a in load_coco(*coco).truth()["annotations"]} == {1, 2, 3}


def test_name_checks_can_be_disabled_for_files_with_mapped_ids(coco):
    """The peers' coco2ytvis files have the video dataset's category ids and COCO's names."""
    other = [{"id": 1, "name": "airplane"}, {"id": 7, "name": "deer"}]
    assert "says" in error_of(lambda: load_coco(*coco, classes=other))
    assert load_coco(*coco, classes=other, check_names=False).classes == other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"category_id": 3},
            "instances.json: annotation 101 (image 1): category_id 3 is not among the categories (1, 7). ",
        ),
        ({"image_id": 77}, "instances.json: annotation 101: image_id 77, but the file has no such image. "),
        (
            {"segmentation": [[1, 2, 3, 4]]},
            "annotation 101 (image 1): a polygon of 4 coordinates: three points",
        ),
        ({"segmentation": [["a"] * 6]}, "annotation 101 (image 1): a polygon must be a list of numbers"),
        (
            {"segmentation": [[0, 0, 1, 1, float("nan"), 2]]},
            "annotation 101 (image 1): a polygon with a",
        ),
        ({"segmentation": []}, "annotation 101 (image 1): no segmentation"),
        (
            {"segmentation": {"size": [2, 2], "counts": [4]}},
            "annotation 101 (image 1): a mask of size [2, 2]",
        ),
    ],
)
def test_an_invalid_annotation_of_an_image_is_refused(coco, change, message):
    content = json.loads(coco[1].read_text())
    content["annotations"][0].update(change)
    write_json(coco[1], content)
    assert message in error_of(lambda: load_coco(*coco))


def test_a_pseudo_clip_rotates_an_image_about_one_point(coco):
    """The mask rotates over four copies of the image and keeps its area."""
    augment = ClipAugmentation(edges=(48,), max_size=99, crop=None, turn=Turn())
    image = load_coco(*coco).videos[0]
    clip = make_clip(image, (0, 0, 0, 0), augment, (0, 0, 1))
    assert clip.frames.shape == (4, 3, 48, 64)
    areas = clip.targets.masks[0].flatten(1).sum(1)
    assert (areas - 4 * 256).abs().max() < 60
    assert len(torch.unique(clip.targets.masks[0].flatten(1), dim=0)) == 4


def test_image_records_can_be_pickled(coco):
    dataset = load_coco(*coco)
    sent = pickle.loads(pickle.dumps(dataset)).videos[1]
    assert torch.equal(sent.masks(0), dataset.videos[1].masks(0))


# ----------------------------------------------------------------------------------------------------- VIPSeg


@pytest.fixture
def vipseg(tmp_path: Path) -> Path:
    write_panoptic(tmp_path, "train", PANOPTIC)
    return tmp_path


def test_things_and_stuff_are_instances_of_a_panoptic_video(vipseg):
    """Rows are ordered by first appearance: the sky, then the cat of the first frame."""
    dataset = load_vipseg(vipseg, "train")
    assert dataset.classes == PANOPTIC, "things first"
    assert [(v.id, v.name, v.length, v.size) for v in dataset.videos] == [
        (1, "1_train", 2, SIZE),
        (2, "2_train", 2, SIZE),
    ]
    first, second = dataset.videos
    assert (first.ids.tolist(), second.ids.tolist()) == ([1, 2], [3, 4])
    assert first.labels.tolist() == [2, 0]
    assert first.present(0).tolist() == [True, True]
    assert first.present(1).tolist() == [True, False]
    cat = rectangle(6, 8, 10, 12)
    assert torch.equal(first.masks(0), torch.stack([rectangle(4, 0, 20, 32) & ~cat, cat]))
    assert torch.equal(first.masks(1), torch.stack([rectangle(4, 0, 20, 32), torch.zeros_like(cat)]))


def test_a_panoptic_map_is_sampled(vipseg):
    video = load_vipseg(vipseg, "train").videos[0]
    rows, columns, selected = np.array([3, 4, 6, 15]), np.array([31, 8, 7]), np.array([False, True])
    read = video.sampled(0, rows, columns, selected)
    assert torch.equal(read, video.masks(0)[1:][:, rows][:, :, columns])
    clip = make_clip(video, (0, 1), Identity(), (0, 0, 0))
    assert torch.equal(clip.targets.masks, torch.stack([video.masks(t) for t in (0, 1)], 1))
    assert clip.targets.visible.tolist() == [[True, True], [True, False]]


def test_stuff_of_one_class_is_one_instance_for_all_segment_ids(vipseg):
    file = vipseg / "panoptic_gt_VIPSeg_train.json"
    content = json.loads(file.read_text())
    segments = content["annotations"][0]["annotations"][1]["segments_info"]
    segments[0]["id"] = 70001
    write_json(file, content)
    video = load_vipseg(vipseg, "train").videos[0]
    assert [row for t in range(video.length) for _, row in video.segments(t)] == [0, 1, 0]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda c: c["annotations"][0]["annotations"].pop(),
            "video 1_train, image 00000001: no annotation for this frame",
        ),
        (
            lambda c: c["annotations"][0]["annotations"][0]["segments_info"][0].update(category_id=77),
            "video 1_train, image 00000000, segment 70000: category_id 77 is not among the categories (2, 5, 9)",
        ),
        (
            lambda c: c["videos"][1].update(video_id="1_train"),
            'video at position 1, "1_train": this video_id',
        ),
        (lambda c: c["videos"][0].pop("images"), "video 1_train: no images"),
        (
            lambda c: c["videos"][0]["images"][0].pop("width"),
            "video 1_train, image 00000000: height 24 and width null",
        ),
        (lambda c: c.pop("videos"), 'no list "videos"'),
    ],
)
def test_an_invalid_panoptic_file_is_refused(vipseg, break_it, message):
    file = vipseg / "panoptic_gt_VIPSeg_train.json"
    content = json.loads(file.read_text())
    break_it(content)
    write_json(file, content)
    assert message in error_of(lambda: load_vipseg(vipseg, "train"))


def test_a_panoptic_file_without_annotations_has_no_instances(vipseg):
    file = vipseg / "panoptic_gt_VIPSeg_train.json"
    content = json.loads(file.read_text())
    del content["annotations"]
    write_json(vipseg / "panoptic_gt_VIPSeg_test.json", content)
    dataset = load_vipseg(vipseg, "test")
    assert [len(video.labels) for video in dataset.videos] == [0, 0]
    assert dataset.videos[0].present(1).shape == (0,)


# ------------------------------------------------------------------------------------- format detection, and hold-outs


def test_the_format_of_an_annotation_file_is_detected(coco, tmp_path):
    write_videos(tmp_path / "mine", tmp_path / "mine.json", CLASSES)
    assert [v.length for v in load_annotated(tmp_path / "mine", tmp_path / "mine.json").videos] == [3, 3, 3]
    assert [v.length for v in load_annotated(*coco).videos] == [1, 1, 1]
    assert classes_of(tmp_path / "mine.json") == classes_of(coco[1]) == CLASSES


def test_the_classes_of_a_file_are_read_again_when_it_has_changed(coco, monkeypatch):
    path, reads = coco[1], []
    monkeypatch.setattr(layouts, "read_json", lambda path: reads.append(path) or read_json(path))
    classes_of(path)[0]["name"] = "changed by the caller"
    assert classes_of(path) == classes_of(str(path)) == CLASSES
    assert len(reads) == 1
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "another name"
    path.write_text(json.dumps(content))
    assert classes_of(path)[0]["name"] == "another name"


def test_held_out_and_remaining_videos_partition_the_dataset(tmp_path):
    write_videos(tmp_path / "train", tmp_path / "train.json", CLASSES, videos=12)
    whole = load_split(tmp_path, "train")
    held_out, rest = (holdout(whole, 0.25, seed=3, held=held) for held in (True, False))
    assert (len(held_out), len(rest)) == (3, 9)
    assert sorted(v.id for v in (*held_out.videos, *rest.videos)) == list(range(1, 13))
    other = {v.id for v in holdout(whole, 0.25, seed=4).videos}
    assert other != {v.id for v in held_out.videos}
    truth = held_out.truth()
    assert {v["id"] for v in truth["videos"]} == {a["video_id"] for a in truth["annotations"]}
    assert len(truth["annotations"]) == 3


@pytest.mark.parametrize(("fraction", "videos"), [(0.0, 3), (1.0, 3), (0.5, 1)])
def test_an_invalid_holdout_fraction_is_refused(tmp_path, fraction, videos):
    write_videos(tmp_path / "train", tmp_path / "train.json", CLASSES, videos=videos)
    assert "holdout" in error_of(lambda: holdout(load_split(tmp_path, "train"), fraction))


def test_a_holdout_has_at_least_one_video(tmp_path):
    write_videos(tmp_path / "train", tmp_path / "train.json", CLASSES)
    assert len(holdout(load_split(tmp_path, "train"), 0.01)) == 1
