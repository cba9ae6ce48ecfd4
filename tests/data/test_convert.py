"""Hand-made datasets of other formats, converted, loaded and checked."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from local2global.config.class_lists import COCO_TO_VIDEO, VIDEO_CLASSES, VIPSEG_CLASSES
from local2global.data.check import Options, check_dataset
from local2global.data.convert.coco import convert_coco
from local2global.data.convert.cocovid import convert_cocovid
from local2global.data.convert.davis import convert_davis
from local2global.data.convert.labelme import convert_labelme
from local2global.data.convert.mots import convert_mots
from local2global.data.convert.vipseg import convert_vipseg
from local2global.data.datasets import VideoDataset
from local2global.data.readers.youtube_vis import load_youtube_vis
from local2global.errors import UserError
from local2global.results.segment_ids import read_ids

HEIGHT, WIDTH = 12, 16


def frames(folder: Path, names: list[str], size: tuple[int, int] = (HEIGHT, WIDTH)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(names):
        Image.new("RGB", (size[1], size[0]), (40 * k, 90, 90)).save(folder / name)


def square(top: int, left: int, value: int = 1, base: np.ndarray | None = None) -> np.ndarray:
    """A map with a square of 4x4 pixels."""
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint16) if base is None else base.copy()
    labels[top : top + 4, left : left + 4] = value
    return labels


def save(labels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(path)


def read(folder: Path) -> tuple[VideoDataset, dict[str, Any]]:
    """The videos and the JSON content of a converted folder, which must have no errors."""
    report = check_dataset(folder, options=Options(workers=1))
    assert [str(f) for f in report.errors] == []
    file = folder / "instances.json"
    return load_youtube_vis(folder / "JPEGImages", file), json.loads(file.read_text())


# --- DAVIS ---


def davis(root: Path) -> None:
    """Object 1 in both frames, object 2 in the second, and a void pixel."""
    frames(root / "JPEGImages" / "480p" / "goat", ["00000.jpg", "00001.jpg"])
    first, second = square(0, 0), square(6, 8, 2, square(2, 2))
    second[11, 15] = 255
    for t, labels in enumerate((first, second)):
        image = Image.fromarray(labels.astype(np.uint8), "P")
        image.putpalette([x for k in range(256) for x in (k, 255 - k, k)])
        path = root / "Annotations" / "480p" / "goat" / f"{t:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def test_davis_a_palette_index_is_an_object(tmp_path):
    davis(tmp_path / "DAVIS")
    done = convert_davis(tmp_path / "DAVIS", tmp_path / "out")
    assert (done.videos, done.frames, done.instances) == (1, 2, 2)
    assert done.skipped == {"frames with void pixels": 1}
    dataset, content = read(tmp_path / "out")
    assert content["categories"] == [{"id": 1, "name": "object"}]
    (goat,) = dataset.videos
    assert [m.any().item() for m in goat.masks(0)] == [True, False]
    assert (goat.masks(1)[0].numpy() == (square(2, 2) > 0)).all()
    assert (goat.masks(1)[1].numpy() == (square(6, 8) > 0)).all()
    source = tmp_path / "DAVIS" / "JPEGImages" / "480p" / "goat" / "00001.jpg"
    assert goat.files[1].read_bytes() == source.read_bytes()


def test_davis_grey_masks_are_one_object_and_frames_can_be_linked(tmp_path):
    frames(tmp_path / "D" / "JPEGImages" / "bear", ["0.jpg", "1.jpg", "2.jpg"])
    for t in (0, 2):
        save(square(t, 3, 255).astype(np.uint8), tmp_path / "D" / "Annotations" / "bear" / f"{t}.png")
    done = convert_davis(tmp_path / "D", tmp_path / "out", link=True)
    assert done.skipped == {"frames without a mask file": 1}
    dataset, content = read(tmp_path / "out")
    assert content["videos"][0]["file_names"] == ["bear/0.jpg", "bear/2.jpg"]
    assert dataset.videos[0].files[0].is_symlink()
    assert int(dataset.videos[0].masks(1).sum()) == 16


def test_davis_classes_are_those_of_youtube_vos(tmp_path):
    davis(tmp_path / "D")
    objects = {"1": {"category": "goat"}, "2": {"category": "ape"}}
    (tmp_path / "D" / "meta.json").write_text(json.dumps({"videos": {"goat": {"objects": objects}}}))
    convert_davis(tmp_path / "D", tmp_path / "out")
    dataset, content = read(tmp_path / "out")
    assert [c["name"] for c in content["categories"]] == ["ape", "goat"]
    assert dataset.videos[0].labels.tolist() == [1, 0]


def test_a_deeply_nested_davis_meta_file_is_refused(tmp_path):
    davis(tmp_path / "D")
    (tmp_path / "D" / "meta.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"meta\.json"):
        convert_davis(tmp_path / "D", tmp_path / "out")


# --- MOTS ---


def mots_maps() -> list[np.ndarray]:
    """A pedestrian that moves, a car in the second frame, an ignore region in the first."""
    return [square(8, 12, 10_000, square(0, 0, 2001)), square(6, 6, 1003, square(1, 1, 2001))]


def check_mots(out: Path) -> None:
    dataset, content = read(out)
    assert [c["name"] for c in content["categories"]] == ["car", "pedestrian"]
    (video,) = dataset.videos
    assert video.labels.tolist() == [1, 0]
    assert [[m.any().item() for m in video.masks(t)] for t in (0, 1)] == [[True, False], [True, True]]
    assert (video.masks(1)[0].numpy() == (square(1, 1) > 0)).all()
    crowds = [a for a in content["annotations"] if a["iscrowd"]]
    assert sorted(a["category_id"] for a in crowds) == [1, 2]
    assert [s is not None for s in crowds[0]["segmentations"]] == [True, False]


def test_mots_pngs(tmp_path):
    frames(tmp_path / "image_02" / "0003", ["000000.png", "000001.png"])
    for t, labels in enumerate(mots_maps()):
        save(labels, tmp_path / "instances" / "0003" / f"{t:06d}.png")
    done = convert_mots(tmp_path / "instances", tmp_path / "image_02", tmp_path / "out")
    assert (done.videos, done.frames, done.instances) == (1, 2, 4)
    check_mots(tmp_path / "out")


def lines(first: int) -> str:
    """The same maps as txt lines, frames numbered from `first`."""
    rows = []
    for t, labels in enumerate(mots_maps()):
        for identity in np.unique(labels)[1:]:
            mask = rle.encode(np.asfortranarray(labels == identity, dtype=np.uint8))
            counts = mask["counts"].decode()
            rows.append(f"{first + t} {identity} {identity // 1000} {HEIGHT} {WIDTH} {counts}")
    return "\n".join(rows)


def test_mots_txt_in_the_layout_of_kitti(tmp_path):
    frames(tmp_path / "image_02" / "0003", ["000000.png", "000001.png"])
    (tmp_path / "instances_txt").mkdir()
    (tmp_path / "instances_txt" / "0003.txt").write_text(lines(0))
    convert_mots(tmp_path / "instances_txt", tmp_path / "image_02", tmp_path / "out")
    check_mots(tmp_path / "out")


def test_mots_txt_in_the_layout_of_motchallenge(tmp_path):
    """Frames from 1 in img1, truth in gt/gt.txt of the same folder."""
    video = tmp_path / "train" / "MOTS20-02"
    frames(video / "img1", ["000001.jpg", "000002.jpg"])
    (video / "gt").mkdir()
    (video / "gt" / "gt.txt").write_text(lines(1))
    convert_mots(tmp_path / "train", tmp_path / "train", tmp_path / "out")
    check_mots(tmp_path / "out")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("0 2001 2 12 16", "line 1: expected `frame id class height width rle`"),
        ("0 2001 1 12 16 PP6", "line 1: object 2001 is of class 2, not 1"),
        ("7 2001 2 12 16 PP6", "line 1: frame 7 has no image"),
        ("0 3001 3 12 16 P6", "line 1: object 3001 is of class 3"),
        ("0 2001 2 5 5 Zo0", "a mask of size"),
    ],
)
def test_an_invalid_mots_line_is_refused(line, problem, tmp_path):
    frames(tmp_path / "images" / "v", ["000000.png"])
    (tmp_path / "txt").mkdir()
    full = rle.encode(np.ones((HEIGHT, WIDTH), np.uint8, order="F"))["counts"].decode()
    (tmp_path / "txt" / "v.txt").write_text(line.replace("PP6", full).replace("P6", full))
    with pytest.raises(UserError, match=problem.replace("(", r"\(")):
        convert_mots(tmp_path / "txt", tmp_path / "images", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- labelme ---


def shape(label: str, points: list[list[float]], group: int | None = None, **rest: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": group, "shape_type": "polygon", **rest}


def labelme(folder: Path, name: str, shapes: list[dict[str, Any]]) -> None:
    content = {"shapes": shapes, "imagePath": f"{name}.jpg", "imageHeight": HEIGHT, "imageWidth": WIDTH}
    (folder / f"{name}.json").write_text(json.dumps(content))


BOX = [[2, 2], [6, 2], [6, 6], [2, 6]]


def test_labelme_group_id_is_the_object_and_its_shapes_are_parts(tmp_path):
    video = tmp_path / "yard"
    frames(video, ["f2.jpg", "f10.jpg", "f11.jpg"])
    far = shape("dog", [[10, 2], [12, 4]], 1, shape_type="rectangle")
    labelme(video, "f2", [shape("dog", BOX, 1), far, shape("cat", [[8, 6], [8, 8]], shape_type="circle")])
    labelme(video, "f10", [shape("dog", BOX, 2), shape("cat", [[1, 1]], shape_type="point")])
    done = convert_labelme(tmp_path, tmp_path / "out")
    assert (done.videos, done.frames, done.instances) == (1, 3, 3)
    assert done.skipped == {"shapes of type point": 1}
    dataset, content = read(tmp_path / "out")
    assert content["videos"][0]["file_names"] == ["yard/f2.jpg", "yard/f10.jpg", "yard/f11.jpg"]
    names = [content["categories"][k]["name"] for k in dataset.videos[0].labels.tolist()]
    assert names == ["dog", "cat", "dog"]
    areas = [[int(m.sum()) for m in dataset.videos[0].masks(t)] for t in range(3)]
    assert areas[0][0] == 16 + 4
    assert 9 <= areas[0][1] <= 14
    assert areas[0][2] == 0
    assert areas[1:] == [[0, 0, 16], [0, 0, 0]]


def test_labelme_masks_are_read(tmp_path):
    video = tmp_path / "yard"
    frames(video, ["0.jpg"])
    buffer = io.BytesIO()
    Image.fromarray(np.array([[255, 0], [255, 255]], np.uint8)).save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    labelme(video, "0", [shape("dog", [[3, 5], [4, 6]], 1, shape_type="mask", mask=text)])
    convert_labelme(video, tmp_path / "out")
    mask = read(tmp_path / "out")[0].videos[0].masks(0)[0]
    assert mask.nonzero().tolist() == [[5, 3], [6, 3], [6, 4]]


@pytest.mark.parametrize("kind", ["bomb", "eps", "text"])
def test_a_labelme_mask_that_is_no_png_of_a_frame_is_refused(kind, tmp_path, monkeypatch):
    """Pillow starts Ghostscript for an EPS."""
    video, buffer = tmp_path / "yard", io.BytesIO(b"text")
    frames(video, ["0.jpg"])
    if kind == "eps":
        Image.new("RGB", (4, 4)).save(buffer, "EPS")
        monkeypatch.setattr(
            "PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("an EPS was opened")
        )
    elif kind == "bomb":
        Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    labelme(video, "0", [shape("dog", [[3, 5]], 1, shape_type="mask", mask=text)])
    with pytest.raises(UserError, match="its mask is not a PNG image"):
        convert_labelme(video, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_shapes_of_one_label_without_group_id_are_refused(tmp_path):
    frames(tmp_path / "yard", ["0.jpg"])
    labelme(tmp_path / "yard", "0", [shape("dog", BOX), shape("dog", BOX)])
    with pytest.raises(UserError, match=r'0\.json: two shapes "dog" without group_id'):
        convert_labelme(tmp_path / "yard", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- VIPSeg ---


def vipseg(root: Path) -> None:
    """Two videos at 12x16: sky (stuff 28), two people (thing 60), void; and a frame of the test set."""
    for name in ("0_a", "1_b"):
        frames(root / "imgs" / name, ["00000001.jpg", "00000002.jpg"])
        labels = np.full((HEIGHT, WIDTH), 29, np.uint16)
        labels[:2] = 0
        for t in (1, 2):
            drawn = square(4, t, 6100, square(6, 10, 6101, labels))
            save(drawn, root / "panomasks" / name / f"0000000{t}.png")
    (root / "train.txt").write_text("0_a\n")
    (root / "val.txt").write_text("1_b\n")


def test_vipseg_masks_contain_id_plus_1(tmp_path):
    vipseg(tmp_path / "VIPSeg")
    done = convert_vipseg(tmp_path / "VIPSeg", tmp_path / "out", height=24, workers=2)
    assert sorted(f.name for f in done.files) == [
        "panoptic_gt_VIPSeg_train.json",
        "panoptic_gt_VIPSeg_val.json",
    ]
    assert (done.videos, done.frames) == (2, 4)
    assert check_dataset(tmp_path / "out", options=Options(workers=1)).findings == []
    content = json.loads((tmp_path / "out" / "panoptic_gt_VIPSeg_train.json").read_text())
    assert content["categories"] == VIPSEG_CLASSES
    assert [v["video_id"] for v in content["videos"]] == ["0_a"]
    assert content["videos"][0]["images"][0] == {
        "id": "00000001",
        "width": 32,
        "height": 24,
        "file_name": "00000001.png",
    }
    first, second = content["annotations"][0]["annotations"]
    by_class = {s["category_id"]: s for s in first["segments_info"]}
    assert set(by_class) == {28, 60}
    assert sorted(s["area"] for s in first["segments_info"] if s["category_id"] == 60) == [64, 64]
    assert [s["id"] for s in first["segments_info"]] == [s["id"] for s in second["segments_info"]]
    ids = read_ids(tmp_path / "out" / "panomasksRGB" / "0_a" / "00000001.png")
    assert (ids[:4] == 0).all()
    assert (ids[20, 1:3] == by_class[28]["id"]).all()
    assert Image.open(tmp_path / "out" / "images" / "0_a" / "00000001.jpg").size == (32, 24)


def test_a_list_of_vipseg_that_is_not_utf8_is_refused(tmp_path):
    vipseg(tmp_path / "VIPSeg")
    (tmp_path / "VIPSeg" / "train.txt").write_bytes(b"0_a\n\xff")
    with pytest.raises(UserError, match=r"train.txt: byte 4 is not UTF-8 text"):
        convert_vipseg(tmp_path / "VIPSeg", tmp_path / "out", height=24, workers=1)


def test_vipseg_without_splits_is_one_file_and_frames_of_the_target_height_are_copied(tmp_path):
    root = tmp_path / "VIPSeg"
    vipseg(root)
    for split in ("train", "val"):
        (root / f"{split}.txt").unlink()
    frames(root / "imgs" / "0_a", ["00000003.jpg"])
    done = convert_vipseg(root, tmp_path / "out", height=HEIGHT, workers=1)
    assert [f.name for f in done.files] == ["panoptic_gt_VIPSeg.json"]
    assert done.skipped == {"frames without a mask file": 1}
    copied = tmp_path / "out" / "images" / "0_a" / "00000001.jpg"
    assert copied.read_bytes() == (root / "imgs" / "0_a" / "00000001.jpg").read_bytes()


def test_a_vipseg_value_of_an_unknown_class_is_refused(tmp_path):
    vipseg(tmp_path / "V")
    save(square(0, 0, 30_000), tmp_path / "V" / "panomasks" / "0_a" / "00000002.png")
    with pytest.raises(UserError, match=r"00000002\.png: value 30000 is of class 299"):
        convert_vipseg(tmp_path / "V", tmp_path / "out", height=HEIGHT, workers=1)
    assert not (tmp_path / "out").exists()


# --- COCO ---


def coco(path: Path) -> None:
    """A person, a car and a banana on image 1; bananas on image 2."""
    annotations = [
        {
            "id": k,
            "image_id": image,
            "category_id": category,
            "iscrowd": 0,
            "segmentation": [[1, 1, 5, 1, 5, 5]],
        }
        for k, (image, category) in enumerate([(1, 1), (1, 3), (1, 52), (2, 52)], 1)
    ]
    images = [{"id": k, "file_name": f"{k}.jpg", "height": HEIGHT, "width": WIDTH} for k in (1, 2)]
    content = {"info": {"year": 2017}, "licenses": [{"id": 1}], "images": images, "annotations": annotations}
    path.write_text(json.dumps({**content, "categories": [{"id": 1, "name": "person"}]}))


def test_coco_keeps_mapped_annotations_and_images_that_have_any(tmp_path):
    coco(tmp_path / "coco.json")
    done = convert_coco(tmp_path / "coco.json", tmp_path / "out" / "coco2ytvis2021.json", "ytvis2021")
    assert done.skipped == {"annotations of other classes": 2, "images left empty": 1}
    content = json.loads(done.files[0].read_text())
    assert [(a["id"], a["category_id"]) for a in content["annotations"]] == [(1, 26), (2, 5)]
    assert [i["id"] for i in content["images"]] == [1]
    assert content["categories"] == VIDEO_CLASSES["ytvis2021"]
    assert content["info"] == {"year": 2017}


def test_an_image_without_an_integer_id_is_no_image_of_coco(tmp_path):
    coco(tmp_path / "coco.json")
    content = json.loads((tmp_path / "coco.json").read_text())
    content["images"].append({"id": [], "file_name": "x.jpg"})
    (tmp_path / "coco.json").write_text(json.dumps(content))
    done = convert_coco(tmp_path / "coco.json", tmp_path / "out.json", "ytvis2021")
    assert [i["id"] for i in json.loads(done.files[0].read_text())["images"]] == [1]


def test_an_unknown_target_of_coco_is_refused(tmp_path):
    coco(tmp_path / "coco.json")
    with pytest.raises(UserError, match='no class list "ytvis2020"'):
        convert_coco(tmp_path / "coco.json", tmp_path / "out.json", "ytvis2020")
    assert [p.name for p in tmp_path.iterdir()] == ["coco.json"]


@pytest.mark.parametrize(
    ("target", "coco_id", "name"),
    [
        ("ytvis2019", 2, "motorbike"),
        ("ytvis2019", 5, "airplane"),
        ("ytvis2021", 16, "bird"),
        ("ytvis2021", 34, "flying_disc"),
        ("ovis", 3, "Vehical"),
        ("ovis", 23, "Bear"),
    ],
)
def test_coco_classes_map_to_the_names_used_by_the_peers(target, coco_id, name):
    names = {c["id"]: c["name"] for c in VIDEO_CLASSES[target]}
    assert names[COCO_TO_VIDEO[target][coco_id]] == name


def test_the_class_lists_have_the_published_lengths():
    assert [len(VIDEO_CLASSES[k]) for k in ("ytvis2019", "ytvis2021", "ovis")] == [40, 40, 25]
    assert sum(c["isthing"] for c in VIPSEG_CLASSES) == 58
    assert len(VIPSEG_CLASSES) == 124


@pytest.mark.data
def test_real_coco_images_pass_the_check_under_video_classes(shared, tmp_path):
    source = shared / "data" / "coco_mini" / "instances_train.json"
    if not source.is_file():
        pytest.skip(f"no {source}")
    done = convert_coco(source, tmp_path / "ovis.json", "ovis")
    report = check_dataset(done.files[0], source.parent / "train2017", options=Options(decode=False))
    assert report.errors == []
    assert report.summaries[0].videos == done.videos > 50


# --- CocoVID ---


def cocovid(root: Path) -> dict[str, Any]:
    """Two videos, the frames of "goat" out of order; a goat in both frames, an ape in one, a box without a mask."""
    frames(root / "JPEGImages" / "goat", ["0.jpg", "1.jpg"])
    frames(root / "JPEGImages" / "empty", ["0.jpg"])
    names = [("goat/1.jpg", 1, 1), ("goat/0.jpg", 1, 0), ("empty/0.jpg", 2, 0)]
    size = {"height": HEIGHT, "width": WIDTH}
    images = [
        {"id": k, "file_name": name, "video_id": video, "frame_id": t, **size}
        for k, (name, video, t) in enumerate(names, 1)
    ]
    left, right = [[2, 2, 6, 2, 6, 6, 2, 6]], [[8, 2, 12, 2, 12, 6, 8, 6]]
    rows = [(1, 7, 1, right), (2, 7, 1, left), (2, 8, 2, right), (2, 9, 1, [])]
    annotations = [
        {
            "id": k,
            "image_id": image,
            "instance_id": i,
            "category_id": c,
            "iscrowd": 0,
            "segmentation": polygon,
        }
        for k, (image, i, c, polygon) in enumerate(rows, 1)
    ]
    videos = [{"id": 1, "name": "goat", **size}, {"id": 2, "name": "empty", **size}]
    categories = [{"id": 1, "name": "goat"}, {"id": 2, "name": "ape"}]
    content = {"videos": videos, "images": images, "annotations": annotations, "categories": categories}
    (root / "cocovid.json").write_text(json.dumps(content))
    return content


@pytest.mark.parametrize("source", ["", "cocovid.json"])
def test_cocovid_annotations_become_tracks_in_the_order_of_frame_id(tmp_path, source):
    cocovid(tmp_path / "C")
    done = convert_cocovid(tmp_path / "C" / source, tmp_path / "out")
    assert (done.videos, done.frames, done.instances) == (2, 3, 2)
    assert done.skipped == {"annotations without a mask": 1}
    dataset, content = read(tmp_path / "out")
    assert content["videos"][0]["file_names"] == ["goat/0.jpg", "goat/1.jpg"]
    goat = dataset.videos[0]
    assert goat.labels.tolist() == [0, 1]
    assert [goat.present(t).tolist() for t in (0, 1)] == [[True, True], [True, False]]
    assert goat.masks(0)[0].nonzero()[0].tolist() == [2, 2]
    assert goat.masks(1)[0].nonzero()[0].tolist() == [2, 8]


@pytest.mark.parametrize(
    ("entry", "change", "problem"),
    [
        (1, {"instance_id": None}, "annotation 2: its instance_id is null"),
        (2, {"instance_id": 7}, "annotation 3: object 7 is of category 1 and of 2"),
        (2, {"category_id": 9}, "annotation 3: category_id 9 is not among"),
        (0, {"segmentation": [[1, 1]]}, "annotation 1 (image 1): a polygon of 2 coordinates"),
    ],
)
def test_an_invalid_cocovid_annotation_is_refused(tmp_path, entry, change, problem):
    content = cocovid(tmp_path / "C")
    content["annotations"][entry].update(change)
    (tmp_path / "C" / "cocovid.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        convert_cocovid(tmp_path / "C", tmp_path / "out")
    assert problem in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["..", "a\0b", "x" * 300])
def test_cocovid_video_names_cannot_leave_the_output_folder(tmp_path, name):
    content = cocovid(tmp_path / "C")
    content["videos"][0]["name"], content["videos"][1]["name"] = "../../goat", name
    (tmp_path / "C" / "cocovid.json").write_text(json.dumps(content))
    convert_cocovid(tmp_path / "C", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out" / "JPEGImages").iterdir()) == ["..-..-goat", "video2"]


def test_a_folder_without_a_cocovid_file_is_refused(tmp_path):
    coco(tmp_path / "coco.json")
    with pytest.raises(UserError, match="no CocoVID file"):
        convert_cocovid(tmp_path, tmp_path / "out")
