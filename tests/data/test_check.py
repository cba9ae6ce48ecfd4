"""An undamaged dataset has no findings; every damage is reported with file, entry and kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from local2global.data.check import Finding, Options, Report, check_dataset
from local2global.data.generated.shapes import load_shapes
from local2global.data.writers import write_vipseg, write_youtube_vis
from local2global.errors import UserError
from local2global.results.segment_ids import read_ids, write_ids

HEIGHT, WIDTH, LENGTH = 32, 48, 3
FRAME = "shapes-00002/*00001"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Two generated videos in both layouts, and their first frames as COCO images."""
    root = tmp_path_factory.mktemp("whole")
    shapes = load_shapes("demo", 2, seed=3, length=LENGTH, size=(HEIGHT, WIDTH))
    write_youtube_vis(shapes.videos, shapes.classes, root / "ytvis")
    write_vipseg(shapes.videos, shapes.classes, root / "vipseg")
    write_coco(root / "ytvis", root / "coco")
    return root


def write_coco(source: Path, out: Path) -> None:
    """The first frame of each video as a COCO image with one rectangle."""
    content = json.loads((source / "instances.json").read_text())
    (out / "train2017").mkdir(parents=True)
    images, annotations = [], []
    for number, video in enumerate(content["videos"], 1):
        shutil.copy(source / "JPEGImages" / video["file_names"][0], out / "train2017" / f"{number}.jpg")
        images.append({"id": number, "file_name": f"{number}.jpg", "height": HEIGHT, "width": WIDTH})
        annotations.append(
            {
                "id": 10 + number,
                "image_id": number,
                "category_id": 1,
                "iscrowd": 0,
                "area": 60,
                "bbox": [4, 5, 10, 6],
                "segmentation": [[4, 5, 14, 5, 14, 11, 4, 11]],
            }
        )
    categories = [{"id": 1, "name": "disc"}]
    text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    (out / "instances_train2017.json").write_text(text)


@dataclass
class Copy:
    """A dataset to damage."""

    root: Path

    def edit(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Changes the content of the annotation file."""
        file = next(self.root.glob("*.json"))
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))


@pytest.fixture
def copies(whole: Path, tmp_path: Path) -> Callable[[str], Copy]:
    def make(layout: str) -> Copy:
        shutil.copytree(whole / layout, tmp_path / layout)
        return Copy(tmp_path / layout)

    return make


def check(root: Path, **options: Any) -> Report:
    return check_dataset(root, options=Options(workers=1, **options))


@pytest.mark.parametrize("layout", ["ytvis", "vipseg", "coco"])
def test_an_undamaged_dataset_has_no_findings(whole, layout):
    report = check(whole / layout, samples=2)
    assert report.findings == []
    assert len(report.samples) == 2


@pytest.mark.data
@pytest.mark.parametrize(("folder", "warnings"), [("clips", 0), ("composites", 0), ("coco_mini", 1)])
def test_the_shared_datasets_have_no_error(shared, folder, warnings):
    """The one warning is a polygon too thin to contain a pixel."""
    if not (shared / "data" / folder).is_dir():
        pytest.skip(f"no {folder} in {shared}/data")
    report = check_dataset(shared / "data" / folder, options=Options(decode=False))
    assert report.errors == []
    assert len(report.warnings) == warnings


# --- YouTube-VIS ---


def annotation(key: str, value: Any) -> Callable[[Copy], None]:
    """Sets a value of the second annotation; a function maps the present value, `...` removes it."""

    def change(content: dict[str, Any]) -> None:
        entry = content["annotations"][1]
        if value is ...:
            del entry[key]
        else:
            entry[key] = value(entry[key]) if callable(value) else value

    return lambda copy: copy.edit(change)


def video(key: str, value: Any) -> Callable[[Copy], None]:
    def change(content: dict[str, Any]) -> None:
        entry = content["videos"][1]
        entry[key] = value(entry[key]) if callable(value) else value

    return lambda copy: copy.edit(change)


def category(key: str, value: Any) -> Callable[[Copy], None]:
    return lambda copy: copy.edit(lambda content: content["categories"][1].update({key: value}))


def first_mask(change: Callable[[dict[str, Any]], Any]) -> Callable[[Copy], None]:
    """Changes the first mask of the second annotation."""

    def edit(masks: list[Any]) -> list[Any]:
        t = next(t for t, mask in enumerate(masks) if mask)
        return [*masks[:t], change(masks[t]), *masks[t + 1 :]]

    return annotation("segmentations", edit)


def image(change: Callable[[Path], Any]) -> Callable[[Copy], None]:
    """Changes the file of one frame."""
    return lambda copy: change(next(copy.root.rglob(f"{FRAME}.jpg")))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def shrink(path: Path) -> None:
    Image.open(path).resize((WIDTH // 2, HEIGHT)).save(path)


def other_size(mask: dict[str, Any]) -> dict[str, Any]:
    encoded = rle.encode(np.ones((WIDTH, HEIGHT), dtype=np.uint8, order="F"))
    return {"size": [WIDTH, HEIGHT], "counts": encoded["counts"].decode()}


def duplicate(content: dict[str, Any], key: str) -> None:
    content[key][1]["id"] = content[key][0]["id"]


def twice(content: dict[str, Any]) -> None:
    """The same track under another id."""
    content["annotations"].append({**content["annotations"][1], "id": 77})


YTVIS = {
    "a missing frame": (image(Path.unlink), "missing-frame", "00001.jpg"),
    "an empty image": (image(lambda p: p.write_bytes(b"")), "corrupt-image", "00001.jpg"),
    "a truncated image": (image(cut), "corrupt-image", "00001.jpg"),
    "text for an image": (image(lambda p: p.write_text("hello")), "corrupt-image", "00001.jpg"),
    "a frame of another size": (image(shrink), "frame-size", "00001.jpg"),
    "a wrong length": (video("length", 7), "video-length", "video 2: length 7, but 3 file names"),
    "no file names": (video("file_names", []), "no-frames", "video 2"),
    "a frame named twice": (video("file_names", lambda f: [f[0], f[0], f[2]]), "repeated-frame", "video 2"),
    "no height": (video("height", None), "no-size", "video 2"),
    "a list too short": (annotation("segmentations", lambda s: s[:-1]), "list-length", "annotation 2"),
    "a list of areas too long": (annotation("areas", lambda a: [*a, 5]), "list-length", "annotation 2"),
    "a mask of another size": (first_mask(other_size), "mask-size", "annotation 2"),
    "runs that stop short": (
        first_mask(lambda m: {**m, "counts": m["counts"][:-2]}),
        "malformed-mask",
        "annotation 2",
    ),
    "runs that are no text": (first_mask(lambda m: {**m, "counts": 5}), "malformed-mask", "annotation 2"),
    "a mask that is a word": (first_mask(lambda m: "mask"), "malformed-mask", "annotation 2"),
    "a polygon of nothing": (
        first_mask(lambda m: [[1, 1, float("nan"), 2, 3, 3]]),
        "malformed-mask",
        "annotation 2",
    ),
    "an unknown category": (
        annotation("category_id", 99),
        "unknown-category",
        "annotation 2: category_id 99",
    ),
    "an unknown video": (annotation("video_id", 99), "unknown-video", "annotation 2: video_id 99"),
    "an empty annotation id": (
        annotation("id", None),
        "empty-id",
        "annotation at position 1: its id is null",
    ),
    "an annotation id of 0": (annotation("id", 0), "id-zero", "annotation 0"),
    "an empty video id": (video("id", ""), "empty-id", "video at position 1"),
    "an empty category id": (category("id", None), "empty-id", "category at position 1"),
    "an annotation id used twice": (
        lambda c: c.edit(lambda x: duplicate(x, "annotations")),
        "duplicate-id",
        "annotation 1",
    ),
    "a video id used twice": (lambda c: c.edit(lambda x: duplicate(x, "videos")), "duplicate-id", "video 1"),
    "a category id used twice": (
        lambda c: c.edit(lambda x: duplicate(x, "categories")),
        "duplicate-id",
        "category 1",
    ),
    "no iscrowd": (annotation("iscrowd", ...), "no-iscrowd", "annotation 2"),
    "an odd iscrowd": (annotation("iscrowd", "no"), "iscrowd", "annotation 2"),
    "no masks": (annotation("segmentations", ...), "no-masks", "annotation 2"),
    "an empty track": (annotation("segmentations", [None] * LENGTH), "empty-track", "annotation 2"),
    "an area far off": (annotation("areas", lambda a: [9 * (x or 40) for x in a]), "area", "annotation 2"),
    "a box elsewhere": (
        annotation("bboxes", lambda b: [x and [0, 0, 2, 2] for x in b]),
        "bbox",
        "annotation 2",
    ),
    "a box that is no box": (
        annotation("bboxes", lambda b: [x and [1, 2] for x in b]),
        "bbox",
        "annotation 2",
    ),
    "another height than its video's": (annotation("height", 31), "annotation-size", "annotation 2"),
    "the same track twice": (lambda c: c.edit(twice), "same-masks", "annotation 77"),
    "a category without a name": (category("name", ""), "category-name", "category 3"),
    "no categories": (lambda c: c.edit(lambda x: x.pop("categories")), "no-list", "instances.json"),
    "no image folder": (lambda c: shutil.rmtree(c.root / "JPEGImages"), "no-images", "instances.json"),
    "half a JSON": (
        lambda c: (c.root / "instances.json").write_text('{"videos": ['),
        "not-json",
        "instances.json",
    ),
}
WARNINGS = {"repeated-frame", "same-masks"}


def find(report: Report, kind: str, text: str) -> Finding:
    """The finding of a kind whose message contains a text."""
    of_kind = [f for f in report.findings if f.kind == kind]
    assert of_kind, f"no {kind} among {[str(f) for f in report.findings]}"
    named = [f for f in of_kind if text in str(f)]
    assert named, f"{text!r} is not in {[str(f) for f in of_kind]}"
    return named[0]


def assert_named(report: Report, kind: str, text: str) -> None:
    finding = find(report, kind, text)
    assert finding.severity == ("warning" if kind in WARNINGS else "error")
    assert finding.fix


@pytest.mark.parametrize("damage", YTVIS)
def test_damage_to_a_youtube_vis_dataset_is_reported(copies, damage):
    act, kind, text = YTVIS[damage]
    copy = copies("ytvis")
    act(copy)
    assert_named(check(copy.root), kind, text)


def test_all_damages_are_reported_in_one_run(copies):
    """The check does not stop at the first problem."""
    copy, damages = (
        copies("ytvis"),
        ["a missing frame", "an unknown category", "no iscrowd", "a wrong length"],
    )
    for damage in damages:
        YTVIS[damage][0](copy)
    report = check(copy.root)
    for damage in damages:
        assert_named(report, *YTVIS[damage][1:])


def test_headers_reveal_size_and_absence_but_not_truncation(copies):
    copy = copies("ytvis")
    image(cut)(copy)
    assert check(copy.root, decode=False).findings == []
    image(lambda p: Image.new("RGB", (WIDTH // 2, HEIGHT)).save(p))(copy)
    find(check(copy.root, decode=False), "frame-size", "shapes-00002/00001.jpg")


def test_an_empty_mask_is_a_warning_and_does_not_count_as_visible(copies):
    empty = {
        "size": [HEIGHT, WIDTH],
        "counts": rle.encode(np.zeros((HEIGHT, WIDTH), np.uint8, order="F"))["counts"],
    }
    empty["counts"] = empty["counts"].decode()
    copy = copies("ytvis")
    before = check(copy.root).summaries[0].tracks
    first_mask(lambda m: empty)(copy)
    report = check(copy.root)
    assert report.errors == []
    find(report, "empty-mask", "annotation 2")
    assert sum(report.summaries[0].tracks) == sum(before) - 1


def test_a_test_set_without_annotations_is_clean(copies):
    copy = copies("ytvis")
    copy.edit(lambda content: content.update(annotations=None))
    report = check(copy.root)
    assert report.findings == []
    assert not report.summaries[0].annotated


def test_the_summary_counts_frames_classes_and_absences(copies):
    copy = copies("ytvis")
    annotation("segmentations", lambda s: [s[0], None, s[2]])(copy)
    annotation("areas", lambda a: [a[0], None, a[2]])(copy)
    annotation("bboxes", lambda b: [b[0], None, b[2]])(copy)
    report = check(copy.root)
    (summary,) = report.summaries
    content = json.loads((copy.root / "instances.json").read_text())
    assert (summary.videos, summary.frames) == (2, 2 * LENGTH)
    assert summary.sizes == {(HEIGHT, WIDTH): 2}
    assert sum(summary.instances.values()) == len(content["annotations"])
    assert summary.absences == [1]


# --- VIPSeg ---


def segments(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Copy], None]:
    """Changes the segments of the second video's second frame."""
    return lambda copy: copy.edit(
        lambda content: change(content["annotations"][1]["annotations"][1]["segments_info"])
    )


def panoptic_map(change: Callable[[Path], Any]) -> Callable[[Copy], None]:
    return lambda copy: change(next(copy.root.rglob(f"{FRAME}.png")))


def paint(path: Path) -> None:
    ids = read_ids(path)
    ids[:4, :4] = 1234
    write_ids(ids, path)


def blank(path: Path) -> None:
    write_ids(np.zeros_like(read_ids(path)), path)


def change_class(content: dict[str, Any]) -> None:
    """Changes the class of the last segment (a thing or the background) in one frame."""
    info = content["annotations"][1]["annotations"][1]["segments_info"][-1]
    others = [c["id"] for c in content["categories"] if c["id"] != info["category_id"]]
    info["category_id"] = others[0]


VIPSEG = {
    "a missing frame": (image(Path.unlink), "missing-frame", "00001.jpg"),
    "a truncated image": (image(cut), "corrupt-image", "00001.jpg"),
    "a missing map": (panoptic_map(Path.unlink), "missing-map", "00001.png"),
    "a truncated map": (panoptic_map(cut), "corrupt-map", "00001.png"),
    "a grey map": (panoptic_map(lambda p: Image.open(p).convert("L").save(p)), "corrupt-map", "00001.png"),
    "a map of another size": (panoptic_map(shrink), "mask-size", "00001.png"),
    "painted but not listed": (panoptic_map(paint), "painted-not-listed", "id 1234"),
    "listed but not painted": (
        panoptic_map(blank),
        "listed-not-painted",
        "video shapes-00002, image 00000001",
    ),
    "two segments with one id": (
        segments(lambda s: s.append(dict(s[0]))),
        "overlapping-ids",
        "video shapes-00002, image 00000001",
    ),
    "an id of two classes": (lambda c: c.edit(change_class), "overlapping-ids", "image 00000001"),
    "an unknown category": (
        segments(lambda s: s[0].update(category_id=99)),
        "unknown-category",
        "image 00000001",
    ),
    "a segment of id 0": (segments(lambda s: s[0].update(id=0)), "id-zero", "image 00000001"),
    "no iscrowd": (segments(lambda s: s[0].pop("iscrowd")), "no-iscrowd", "image 00000001"),
    "a wrong area": (segments(lambda s: s[0].update(area=1)), "area", "area 1"),
    "no annotation of a frame": (
        lambda c: c.edit(lambda x: x["annotations"][1]["annotations"].pop()),
        "no-annotation",
        "video shapes-00002, image 00000002",
    ),
    "no annotation of a video": (
        lambda c: c.edit(lambda x: x["annotations"].pop()),
        "no-annotation",
        "video shapes-00002",
    ),
    "a video named twice": (
        lambda c: c.edit(lambda x: x["videos"].append(dict(x["videos"][1]))),
        "duplicate-id",
        "shapes-00002",
    ),
    "neither thing nor stuff": (
        lambda c: c.edit(lambda x: x["categories"][0].pop("isthing")),
        "isthing",
        "category 1",
    ),
}


@pytest.mark.parametrize("damage", VIPSEG)
def test_damage_to_a_vipseg_dataset_is_reported(copies, damage):
    act, kind, text = VIPSEG[damage]
    copy = copies("vipseg")
    act(copy)
    assert_named(check(copy.root), kind, text)


# --- COCO ---

COCO = {
    "a missing image": (lambda c: (c.root / "train2017" / "2.jpg").unlink(), "missing-frame", "2.jpg"),
    "an unknown image": (annotation("image_id", 9), "unknown-image", "annotation 12: image_id 9"),
    "an unknown category": (annotation("category_id", 9), "unknown-category", "annotation 12"),
    "no polygon": (annotation("segmentation", []), "no-masks", "annotation 12 (image 2)"),
    "a polygon of two points": (
        annotation("segmentation", [[1, 1, 2, 2]]),
        "malformed-mask",
        "annotation 12",
    ),
    "a box far off": (annotation("bbox", [20, 20, 9, 9]), "bbox", "annotation 12"),
    "an id used twice": (
        lambda c: c.edit(lambda x: duplicate(x, "annotations")),
        "duplicate-id",
        "annotation 11",
    ),
    "no iscrowd": (annotation("iscrowd", ...), "no-iscrowd", "annotation 12"),
}


@pytest.mark.parametrize("damage", COCO)
def test_damage_to_a_coco_dataset_is_reported(copies, damage):
    act, kind, text = COCO[damage]
    copy = copies("coco")
    act(copy)
    assert_named(check(copy.root), kind, text)


# --- what is no dataset ---


def test_a_folder_without_annotations_is_refused(tmp_path):
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(UserError, match=r"no annotation file .*results\.json is not one"):
        check_dataset(tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        check_dataset(tmp_path / "nothing")


def test_a_json_file_of_another_form_is_reported(tmp_path):
    path = tmp_path / "results.json"
    path.write_text('{"scores": []}')
    find(check_dataset(path), "not-a-dataset", "results.json")
