"""Invalid annotation files: refused in one line with the entry's id, or skipped and counted on request."""

from __future__ import annotations

import json
import os
import re
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from local2global.data.augment import ClipAugmentation
from local2global.data.check import Options, Report, check_dataset
from local2global.data.loader import build_train_loader
from local2global.data.readers.coco import load_coco
from local2global.data.readers.layouts import load_annotated, load_split, load_vipseg
from local2global.data.readers.youtube_vis import load_youtube_vis
from local2global.errors import UserError
from local2global.evaluation.vps_evaluator import TruthFiles, VPSEvaluator
from miniatures import SIZE, write_images, write_json, write_panoptic, write_videos

CLASSES = [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}]
PANOPTIC = [{"id": 5, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}]


def edited(file: Path, change: Any) -> None:
    content = json.loads(file.read_text())
    change(content)
    write_json(file, content)


def error_of(call: Any) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check(path: Path, **folders: Path) -> Report:
    return check_dataset(path, **folders, options=Options(workers=1))


@pytest.fixture
def videos(tmp_path: Path) -> tuple[Path, Path]:
    write_videos(tmp_path / "JPEGImages", tmp_path / "instances.json", CLASSES)
    return tmp_path / "JPEGImages", tmp_path / "instances.json"


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    write_images(tmp_path / "images", tmp_path / "coco.json", CLASSES, [1, 7])
    return tmp_path / "images", tmp_path / "coco.json"


@pytest.mark.parametrize("far", [1e3, 1e8, 1e10, 1e15, -1e10, 1e300])
def test_a_polygon_far_outside_its_frame_is_refused(videos, images, far):
    polygon = [[0, 0, far, 1, 1, far]]
    edited(videos[1], lambda c: c["annotations"][0]["segmentations"].__setitem__(1, polygon))
    edited(images[1], lambda c: c["annotations"][0].update(segmentation=polygon))
    place = 'annotation 1 (video 1, "video1"): frame 1: a polygon with coordinate '
    assert place in error_of(lambda: load_youtube_vis(*videos))
    assert "annotation 101 (image 1): a polygon with coordinate " in error_of(lambda: load_coco(*images))
    for folder, file in (videos, images):
        assert "malformed-mask" in {f.kind for f in check(file, images=folder).errors}


def test_a_polygon_somewhat_outside_its_frame_is_clipped(images):
    """A frame of 24x32: the part of a rectangle from (-40, 2) to (90, 6) inside is 4 rows of 32."""
    outside = [[-40, 2, 90, 2, 90, 6, -40, 6]]
    edited(images[1], lambda c: c["annotations"][0].update(segmentation=outside))
    assert int(load_coco(*images).videos[0].masks(0).sum()) == 4 * SIZE[1]


@pytest.mark.parametrize("identity", [1 << 63, -(1 << 63) - 1, 10**30, True, 1.5])
@pytest.mark.parametrize("key", ["annotations", "videos", "categories"])
def test_an_id_that_is_not_a_64_bit_integer_is_refused(videos, key, identity):
    edited(videos[1], lambda c: c[key][0].update(id=identity))
    assert " at position 0: its id is " in error_of(lambda: load_youtube_vis(*videos))
    assert "empty-id" in {f.kind for f in check(videos[1], images=videos[0]).errors}


@pytest.mark.parametrize("size", [0, -1, 1 << 15 | 1, 10**9, 10**30, "24", True])
def test_an_impossible_frame_size_is_refused(videos, size):
    edited(videos[1], lambda c: c["videos"][0].update(height=size))
    assert "video 1: height " in error_of(lambda: load_youtube_vis(*videos))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"videos": [' + '{"a":' * 100_000, "nested too deeply"),
        ('{"videos": [' + "9" * 5000 + "]}", "limit"),
        ('{"videos": [{"id": 1, "file_names": ["\\ud800.jpg"]}]}', "surrogate"),
        ('{"videos": [{"id": 1, "file_names": ["\\uDfff.jpg"]}]}', "surrogate"),
        ("\x00", "not JSON"),
    ],
)
def test_hostile_json_is_refused(tmp_path, text, problem):
    file = tmp_path / "instances.json"
    file.write_text(text)
    assert problem in error_of(lambda: load_youtube_vis(tmp_path, file))
    assert problem in error_of(lambda: load_annotated(tmp_path, file))
    assert [f.kind for f in check(file).errors] == ["not-json"]


def test_surrogates_in_bytes_are_not_text(videos):
    """The bytes that UTF-8 would have for half of a pair; `json` accepts them."""
    file = videos[1]
    file.write_bytes(file.read_bytes().replace(b"cat", b"c\xed\xa0\x80t"))
    assert "is not UTF-8 text" in error_of(lambda: load_youtube_vis(*videos))
    assert [f.kind for f in check(file).errors] == ["not-json"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_other_encodings_of_json_are_read(videos, encoding):
    videos[1].write_text(videos[1].read_text(), encoding=encoding)
    assert len(load_youtube_vis(*videos).videos) == 3


@pytest.mark.parametrize("crowd", ["0", "false", 1.5, -1, None, [0], {}])
def test_an_iscrowd_that_is_no_flag_is_refused(videos, images, crowd):
    """Every one of these but null would be true in Python, and the object would vanish from training."""
    edited(videos[1], lambda c: c["annotations"][0].update(iscrowd=crowd))
    edited(images[1], lambda c: c["annotations"][0].update(iscrowd=crowd))
    assert 'annotation 1 (video 1, "video1"): iscrowd is ' in error_of(lambda: load_youtube_vis(*videos))
    assert "annotation 101 (image 1): iscrowd is " in error_of(lambda: load_coco(*images))
    for folder, file in (videos, images):
        assert "iscrowd" in {f.kind for f in check(file, images=folder).errors}


def test_a_pipe_in_place_of_a_frame_is_refused(videos):
    """Reading it would wait for a writer."""
    path = videos[0] / "video1" / "00000.jpg"
    path.unlink()
    os.mkfifo(path)
    video = load_youtube_vis(*videos).videos[0]
    assert "00000.jpg: not a readable image (not a file)" in error_of(lambda: video.frame(0))


@pytest.mark.parametrize("name", ["/tmp/outside", "../outside", "a/../../outside", "..", "..\\outside"])
def test_a_vipseg_video_cannot_be_named_like_a_place_outside(tmp_path, name):
    """`l2g eval` writes the maps of a video below its name."""
    write_panoptic(tmp_path, "val", PANOPTIC)
    file = tmp_path / "panoptic_gt_VIPSeg_val.json"
    truth = TruthFiles(file, tmp_path, load_vipseg(tmp_path, "val"))

    def change(content: dict[str, Any]) -> None:
        content["videos"][0]["video_id"] = content["annotations"][0]["video_id"] = name

    edited(file, change)
    assert "its video_id is " in error_of(lambda: load_vipseg(tmp_path, "val"))
    with pytest.raises(UserError, match="leads out of the output folder"):
        VPSEvaluator(truth, PANOPTIC, tmp_path / "out")


def test_escaped_surrogate_pairs_are_text(videos):
    edited(videos[1], lambda c: c["categories"][0].update(name="\U0001f600"))
    assert load_youtube_vis(*videos).classes[0]["name"] == "\U0001f600"


@pytest.mark.parametrize("nested", [True, False])
def test_backslashes_in_file_names_are_read_as_slashes(videos, nested):
    images, file = videos
    folder = images.parent if nested else images
    prefix = f"{images.name}\\" if nested else ""

    def change(content: dict[str, Any]) -> None:
        for video in content["videos"]:
            video["file_names"] = [prefix + name.replace("/", "\\") for name in video["file_names"]]

    edited(file, change)
    video = load_youtube_vis(folder, file).videos[0]
    assert video.name == "video1"
    assert video.frame(2).shape == (3, *SIZE)
    report = check(file)
    assert report.errors == []
    assert "backslash" in {f.kind for f in report.warnings}


def test_a_file_whose_name_contains_a_backslash_is_read(videos):
    (videos[0] / "video1" / "00000.jpg").rename(videos[0] / "video1\\00000.jpg")
    edited(videos[1], lambda c: c["videos"][0]["file_names"].__setitem__(0, "video1\\00000.jpg"))
    assert load_youtube_vis(*videos).videos[0].frame(0).shape == (3, *SIZE)


# ---------------------------------------------------------------------------------------- skipped on request

INVALID = [
    {"segmentation": [[1, 1, 2, 2]]},
    {"segmentation": [[1, 1, 2, 2]], "iscrowd": 1},
    {"segmentation": [[4, 2, 20, 2, 20, 18], [1, 1, 2, 2]]},
    {"segmentation": {"size": [1, 1], "counts": [1]}},
    {"segmentation": None},
    {"category_id": 99},
    {"image_id": 99},
    {"id": None},
    {"id": 102},
]


@pytest.mark.parametrize("change", INVALID)
def test_an_invalid_annotation_of_an_image_is_skipped_and_counted(images, caplog, change):
    edited(images[1], lambda c: c["annotations"][2].update(change))
    assert "skip_invalid_annotations=true" in error_of(lambda: load_coco(*images))
    dataset = load_coco(*images, skip_invalid_annotations=True)
    assert [video.id for video in dataset.videos] == [1, 2]
    assert {a["id"] for a in dataset.truth()["annotations"]} == {101, 102}
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("coco.json: skipped 1 invalid annotation. First: coco.json: annotation ")


@pytest.mark.parametrize(
    "change",
    [
        {"segmentations": [[[1, 1, 2, 2]], None, None]},
        {"segmentations": [[[1, 1, 2, 2]], None, None], "iscrowd": 1},
        {"segmentations": [None]},
        {"segmentations": None},
        {"category_id": 99},
        {"video_id": 99},
    ],
)
def test_an_invalid_annotation_of_a_video_is_skipped_in_records_and_ground_truth(videos, caplog, change):
    """A crowd's masks are read for the ground truth only."""
    edited(videos[1], lambda c: c["annotations"][1].update(change))
    assert "skip_invalid_annotations=true" in error_of(lambda: load_youtube_vis(*videos).truth())
    dataset = load_annotated(*videos, skip_invalid_annotations=True)
    assert [video.ids.tolist() for video in dataset.videos] == [[1], [], [3]]
    assert [a["id"] for a in dataset.truth()["annotations"]] == [1, 3]
    assert all("skipped 1 invalid annotation." in record.getMessage() for record in caplog.records)
    assert caplog.records


def test_valid_annotations_log_nothing(videos, images, caplog):
    load_annotated(*videos, skip_invalid_annotations=True)
    load_coco(*images, skip_invalid_annotations=True)
    assert not caplog.records


def test_other_errors_are_not_skipped(videos):
    edited(videos[1], lambda c: c["videos"][0].update(file_names=[]))
    assert "no file_names" in error_of(lambda: load_youtube_vis(*videos, skip_invalid_annotations=True))


def test_a_split_can_skip_invalid_annotations(tmp_path):
    write_videos(tmp_path / "train", tmp_path / "train.json", CLASSES)
    edited(tmp_path / "train.json", lambda c: c["annotations"][0].update(category_id=99))
    dataset = load_split(tmp_path, "train", skip_invalid_annotations=True)
    assert [len(video.ids) for video in dataset.videos] == [0, 1, 1]


# ------------------------------------------------------------------------------------- VIPSeg, other formats


def test_frames_of_vipseg_are_found_by_the_name_of_their_map(tmp_path):
    """VIPSeg as published: `file_name` of an image is that of its PNG map."""
    write_panoptic(tmp_path, "train", PANOPTIC)
    by_jpeg = load_vipseg(tmp_path, "train").videos[0].files
    for video in json.loads((tmp_path / "panoptic_gt_VIPSeg_train.json").read_text())["videos"]:
        assert all(image["file_name"].endswith(".jpg") for image in video["images"])
    edited(
        tmp_path / "panoptic_gt_VIPSeg_train.json",
        lambda c: [i.update(file_name=f"{i['id']}.png") for v in c["videos"] for i in v["images"]],
    )
    video = load_vipseg(tmp_path, "train").videos[0]
    assert video.files == by_jpeg
    assert video.frame(1).shape == (3, *SIZE)
    assert video.masks(0).any()
    assert check(tmp_path).errors == []


def test_a_missing_frame_of_vipseg_is_reported_as_a_jpeg(tmp_path):
    write_panoptic(tmp_path, "train", PANOPTIC)
    (tmp_path / "images" / "1_train" / "00000000.jpg").unlink()
    video = load_vipseg(tmp_path, "train").videos[0]
    assert "00000000.jpg: no such image file" in error_of(lambda: video.frame(0))


def vipseg_images(content: Any) -> Any:
    return content["videos"][0]["images"]


def vipseg_annotations(content: Any) -> Any:
    return content["annotations"][0]["annotations"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(
            (
                lambda c, name=name: vipseg_images(c)[0].update(file_name=name),
                "image at position 0: its file name is",
            )
            for name in (".", "/", "a\0b", "x" * 300, 7)
        ),
        (
            lambda c: vipseg_annotations(c)[0].update(file_name=["a"]),
            "annotation at position 0: its file name is",
        ),
        (lambda c: c["videos"][0].update(video_id="x" * 3000), "video at position 0: its video_id is"),
        (lambda c: c["categories"][0].update(id=[None]), "category at position 0: its id is [null]"),
        (lambda c: c["videos"].append(3), "videos at position 2: not a JSON object"),
        (lambda c: c["videos"][0]["images"].append(None), "images at position 2: not a JSON object"),
        (lambda c: c.update(annotations={"a": 1}), '"annotations" is not a list'),
        (lambda c: vipseg_annotations(c)[0].update(segments_info={}), '"segments_info" is not a list'),
        (lambda c: vipseg_annotations(c)[0].pop("segments_info"), 'no "segments_info"'),
        (lambda c: vipseg_annotations(c)[0]["segments_info"].append("x"), "segments_info at position 2"),
    ],
)
def test_an_invalid_entry_of_vipseg_is_named_by_reader_and_checker(tmp_path, change, message):
    root = tmp_path / "data"
    write_panoptic(root, "train", PANOPTIC)
    edited(root / "panoptic_gt_VIPSeg_train.json", change)
    assert message in error_of(lambda: load_vipseg(root, "train"))
    assert any(message in str(finding) for finding in check(root).errors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: image.convert("L"), "this image is of mode L"),
        (lambda image: image.convert("P"), "this image is of mode P"),
        (
            lambda image: Image.fromarray(np.full(SIZE, 300, np.uint16)),
            "this image is of (16-bit colours|mode I)",
        ),
        (lambda image: image.resize((8, 6)), "6x8 pixels|a map of 6x8"),
    ],
)
def test_a_map_that_holds_no_ids_is_refused_in_training_and_by_the_checker(tmp_path, change, message):
    """Training used to convert such maps to RGB like a frame, which changes the ids."""
    root = tmp_path / "data"
    write_panoptic(root, "train", PANOPTIC)
    file = root / "panomasksRGB" / "1_train" / "00000000.png"
    with Image.open(file) as image:
        change(image.copy()).save(file)
    video = load_vipseg(root, "train").videos[0]
    assert re.search(message, error_of(lambda: video.masks(0)))
    assert any(re.search(message, str(finding)) for finding in check(root).errors)


@pytest.mark.parametrize("options", [{"format": "JPEG"}, {"format": "PNG", "save_all": True}])
def test_a_map_that_is_no_still_png_is_refused(tmp_path, options):
    write_panoptic(tmp_path, "train", PANOPTIC)
    file = tmp_path / "panomasksRGB" / "1_train" / "00000000.png"
    with Image.open(file) as image:
        more = {"append_images": [Image.new("RGB", image.size)]} if "save_all" in options else {}
        image.copy().save(file, **options, **more)
    message = error_of(lambda: load_vipseg(tmp_path, "train").videos[0].masks(0))
    assert re.search(r"a panoptic PNG holds ids .* this image is (a JPEG|an animation)", message)


def test_frames_and_maps_of_vipseg_that_are_both_png_are_told_apart(tmp_path):
    """`l2g data make --format vipseg --images png` writes such a dataset."""
    root = tmp_path / "data"
    write_panoptic(root, "train", PANOPTIC)
    for path in sorted((root / "images").rglob("*.jpg")):
        with Image.open(path) as image:
            image.save(path.with_suffix(".png"))
        path.unlink()
    edited(
        root / "panoptic_gt_VIPSeg_train.json",
        lambda c: [i.update(file_name=f"{i['id']}.png") for v in c["videos"] for i in v["images"]],
    )
    assert check(root).errors == []
    assert load_vipseg(root, "train").videos[0].files[0].name == "00000000.png"


def test_a_vipseg_video_without_annotations_has_no_instances(tmp_path):
    write_panoptic(tmp_path, "train", PANOPTIC)
    edited(tmp_path / "panoptic_gt_VIPSeg_train.json", lambda c: c["annotations"].pop(0))
    dataset = load_vipseg(tmp_path, "train")
    assert [len(video.labels) for video in dataset.videos] == [0, 2]
    assert dataset.videos[0].masks(1).shape == (0, *SIZE)
    loader = build_train_loader(dataset, 2, ClipAugmentation(edges=(24,), max_size=90), 2, num_workers=0)
    clips = [clip for batch in islice(loader, 3) for clip in batch]
    assert {len(clip.targets) for clip in clips if clip.video_id == 1} == {0}
    assert {len(clip.targets) > 0 for clip in clips if clip.video_id == 2} == {True}


def cocovid(content: dict[str, Any]) -> None:
    """Changes a COCO file to CocoVID's form."""
    content["videos"] = [{"id": 1, "name": "v", "height": SIZE[0], "width": SIZE[1]}]
    for t, image in enumerate(content["images"]):
        image.update(video_id=1, frame_id=t)


def test_a_file_of_another_format_is_refused_with_a_remedy(videos, images, tmp_path):
    write_panoptic(tmp_path, "train", PANOPTIC)
    vipseg = tmp_path / "panoptic_gt_VIPSeg_train.json"
    assert "a VIPSeg annotation file, not YouTube-VIS" in error_of(lambda: load_annotated(tmp_path, vipseg))
    edited(images[1], cocovid)
    for load in (load_annotated, load_youtube_vis, load_coco):
        assert "l2g data convert cocovid" in error_of(lambda load=load: load(*images))
    (finding,) = check(images[1]).errors
    assert finding.kind == "cocovid"
    assert "l2g data convert cocovid" in finding.fix
