"""The optional files made from a record, read back with the tools that they are for."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor

from local2global.data.convert.mots import convert_mots
from local2global.errors import UserError
from local2global.results.colours import colour
from local2global.results.exports import ALWAYS, EXPORTS, OPTIONAL, check_exports, write_exports
from local2global.results.record import RecordedTracks, Recording, RecordWriter
from local2global.structures import FrameResult

SIZE = (40, 60)
CLASSES = [{"id": 5, "name": "person"}, {"id": 9, "name": "dog"}]
VIDEO = {"name": "clip", "width": 60, "height": 40, "fps": 10.0, "file_names": None}


def box(top: int, left: int, height: int, width: int) -> Tensor:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask


#: A dog of slot 7 moves right.  A person of slot 2 covers part of it on frame 1 and stands apart otherwise.
FRAMES = [
    {7: (1, 0.9, box(5, 5, 10, 20)), 2: (0, 0.5, box(20, 40, 8, 6))},
    {7: (1, 0.8, box(5, 10, 10, 20)), 2: (0, 0.85, box(10, 25, 8, 6))},
    {},
    {7: (1, 0.7, box(5, 20, 10, 20)), 2: (0, 0.6, box(30, 40, 8, 6))},
]


def write_record(path: Path, frames: list[dict[int, tuple[int, float, Tensor]]], classes=CLASSES) -> Path:
    with RecordWriter(path, classes) as writer:
        for t, objects in enumerate(frames):
            labels, scores, masks = zip(*objects.values(), strict=True) if objects else ((), (), ())
            shown = torch.stack(masks) if objects else torch.zeros(0, *SIZE, dtype=torch.bool)
            result = FrameResult(
                t,
                torch.tensor(list(objects), dtype=torch.int64),
                torch.tensor(labels, dtype=torch.int64),
                torch.tensor(scores),
                shown,
                torch.zeros(len(objects), 4),
            )
            writer.append(result, t / 10)
    return path


def picture(t: int) -> Tensor:
    """A frame whose red channel is the column, green the row and blue the time."""
    row, column = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    return torch.stack([column, row, torch.full(SIZE, t)]).to(torch.uint8)


def export(
    name: str,
    folder: Path,
    frames=FRAMES,
    video: dict[str, Any] = VIDEO,
    classes=CLASSES,
    read: Callable[[], Any] | None = lambda: map(picture, range(4)),
) -> Path:
    """Writes one format from a new record and returns its path."""
    record = write_record(folder / "frames.jsonl", frames, classes)
    with RecordedTracks(record) as tracks:
        [path] = write_exports(folder, Recording(tracks, video, classes, read), [name])
    return path


# --- Formats ---


def test_id_maps_show_the_object_with_the_higher_score_in_front(tmp_path):
    path = export("png", tmp_path)
    assert sorted(file.name for file in path.iterdir()) == [f"{t:05d}.png" for t in range(4)]
    image = Image.open(path / "00001.png")
    labels = np.asarray(image)
    assert image.mode == "P"
    assert (labels[12, 27], labels[6, 12], labels[0, 0]) == (3, 8, 0)
    assert (labels == 3).sum() == 48, "the person is whole"
    assert (labels == 8).sum() == 200 - 5 * 5, "the dog lacks the rows 10 to 14 and columns 25 to 29"
    assert np.asarray(image.convert("RGB"))[6, 12].tolist() == list(colour(7))
    assert not np.asarray(Image.open(path / "00002.png")).any()


def test_id_maps_of_large_ids_have_16_bits(tmp_path):
    path = export("png", tmp_path, [{300: FRAMES[0][7]}])
    labels = np.asarray(Image.open(path / "00000.png"))
    assert (labels.dtype, set(np.unique(labels))) == (np.uint16, {0, 301})


def test_masks_are_written_where_the_object_was_reported(tmp_path):
    path = export("masks", tmp_path)
    files = sorted(str(file.relative_to(path)) for file in path.rglob("*.png"))
    assert files == [f"{i}/{t:05d}.png" for i in (2, 7) for t in (0, 1, 3)]
    for t in (0, 1, 3):
        mask = np.asarray(Image.open(path / "7" / f"{t:05d}.png"))
        assert set(np.unique(mask)) == {0, 255}
        assert (mask > 0).tolist() == FRAMES[t][7][2].tolist(), "whole, although another object is in front"


def test_crops_are_the_pixels_of_the_object(tmp_path):
    path = export("crops", tmp_path)
    assert sorted(file.parent.name for file in path.rglob("00003.png")) == ["2", "7"]
    crop = np.asarray(Image.open(path / "7" / "00001.png"))
    assert crop.shape == (10, 20, 4)
    assert crop[0, 0].tolist() == [10, 5, 1, 255]
    assert crop[-1, -1].tolist() == [29, 14, 1, 255]


def test_crops_are_transparent_outside_of_the_mask(tmp_path):
    round_mask = box(5, 5, 10, 20) | box(15, 5, 4, 4)
    crop = np.asarray(Image.open(export("crops", tmp_path, [{0: (0, 0.5, round_mask)}]) / "0" / "00000.png"))
    assert crop[..., 3].tolist() == (round_mask[5:19, 5:25] * 255).tolist()


@pytest.mark.parametrize(
    ("read", "problem"),
    [
        (None, "crops need the frames of the video"),
        (lambda: map(picture, range(2)), "the video ends at frame 2: this is not the video of the record"),
        (lambda: iter([torch.zeros(3, 8, 9, dtype=torch.uint8)]), "the frames are 9x8 at frame 0"),
    ],
)
def test_crops_of_another_video_are_refused(tmp_path, read, problem):
    with pytest.raises(UserError, match=problem):
        export("crops", tmp_path, read=read)
    assert [file.name for file in tmp_path.iterdir()] == ["frames.jsonl"], "nothing half-written"


def test_pycocotools_loads_every_frame_as_an_image(tmp_path):
    path = export("coco", tmp_path)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == [
        f"clip/{t:05d}.jpg" for t in range(4)
    ]
    assert coco.loadCats(coco.getCatIds()) == CLASSES
    assert [len(coco.getAnnIds(imgIds=[t + 1])) for t in range(4)] == [2, 2, 0, 2]
    for t in (0, 1, 3):
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[t + 1])):
            label, score, mask = FRAMES[t][annotation["track_id"] - 1]
            assert coco.annToMask(annotation).tolist() == mask.int().tolist()
            assert annotation["category_id"] == CLASSES[label]["id"]
            assert annotation["score"] == pytest.approx(score)
            assert annotation["area"] == int(mask.sum())


def test_mot_lines_count_from_one(tmp_path):
    lines = export("mot", tmp_path).read_text().splitlines()
    assert len(lines) == 6
    assert lines[:2] == ["1,8,6,6,20,10,0.9,-1,-1,-1", "1,3,41,21,6,8,0.5,-1,-1,-1"]
    assert [line.split(",")[0] for line in lines] == ["1", "1", "2", "2", "4", "4"]


def test_csv_has_one_row_per_object_and_frame(tmp_path):
    rows = list(csv.DictReader(export("csv", tmp_path).open()))
    assert len(rows) == 6
    assert rows[2] == {
        "frame": "1", "time": "0.1", "id": "7", "class": "dog", "category_id": "9", "score": "0.8",
        "x": "10", "y": "5", "width": "20", "height": "10", "area": "200",
    }  # fmt: skip


def test_a_class_name_is_no_formula_in_a_spreadsheet(tmp_path):
    classes = [{"id": 5, "name": "=HYPERLINK(1)"}, {"id": 9, "name": 'a "dog", brown'}]
    rows = list(csv.DictReader(export("csv", tmp_path, classes=classes).open()))
    assert [row["class"] for row in rows[:2]] == ['a "dog", brown', "'=HYPERLINK(1)"]


# --- MOTS ---


def read_back(path: Path, tmp_path: Path) -> dict[str, Any]:
    """The annotation that `l2g data convert mots` makes of an export."""
    images = tmp_path / "images" / "clip"
    images.mkdir(parents=True)
    for t in range(4):
        Image.new("RGB", SIZE[::-1]).save(images / f"{t:05d}.jpg")
    convert_mots(path, tmp_path / "images", tmp_path / "dataset")
    return json.loads((tmp_path / "dataset" / "instances.json").read_text())


def test_mots_is_read_back_as_the_same_annotation(tmp_path):
    """Masks that do not overlap, names, and the frames without a mask."""
    frames = [FRAMES[0], {}, FRAMES[3], {7: FRAMES[1][7]}]
    content = read_back(export("mots", tmp_path, frames), tmp_path)
    (tmp_path / "other").mkdir()
    truth = json.loads(export("annotations", tmp_path / "other", frames).read_text())
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    assert names == {1: "person", 2: "dog"}

    def tracks(annotations: list[dict[str, Any]], names: dict[int, str]) -> dict[str, Any]:
        keys = ("segmentations", "bboxes", "areas")
        return {names[entry["category_id"]]: [entry[key] for key in keys] for entry in annotations}

    mine = tracks(content["annotations"], names)
    assert mine == tracks(truth["annotations"], {5: "person", 9: "dog"})
    assert [mask is None for mask in mine["dog"][0]] == [False, True, False, False]


def test_mots_leaves_class_10_to_ignored_pixels(tmp_path):
    """MOTS and CVAT take class 10 for pixels that are not scored."""
    classes = [{"id": k, "name": f"class {k}"} for k in range(100, 120)]
    frames = [{i: (i, 0.5, box(2 * i, 0, 2, 10)) for i in range(12)}]
    path = export("mots", tmp_path, frames, classes=classes)
    labels = np.asarray(Image.open(path / "clip" / "instances" / "00000.png"))
    used = np.unique(labels)[1:].tolist()
    assert used == [k * 1000 + i + 1 for i, k in enumerate([1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13])]
    names = (path / "clip" / "instances" / "labels.txt").read_text().splitlines()
    assert (names[8:11], len(names)) == (["class 108", "ignored", "class 109"], 13)


@pytest.mark.parametrize(
    "frames", [[{999: FRAMES[0][7]}], [{i: (i, 0.5, box(0, 0, 2, 2)) for i in range(64)}]]
)
def test_mots_refuses_what_16_bits_cannot_hold(tmp_path, frames):
    classes = [{"id": k, "name": f"class {k}"} for k in range(1, 81)]
    with pytest.raises(
        UserError, match="MOTS holds 63 classes and ids up to 998; select classes with --classes"
    ):
        export("mots", tmp_path, frames, classes=classes)


# --- All formats ---


@pytest.mark.parametrize("name", EXPORTS)
def test_a_video_without_objects_has_valid_files(tmp_path, name):
    path = export(name, tmp_path, [{}, {}])
    assert path.name == EXPORTS[name].file
    if path.suffix == ".json":
        json.loads(path.read_text())


@pytest.mark.parametrize("name", EXPORTS)
def test_a_second_export_replaces_the_first(tmp_path, name):
    export(name, tmp_path, FRAMES)
    export(name, tmp_path, FRAMES[:1])
    (tmp_path / "new").mkdir()
    fresh = export(name, tmp_path / "new", FRAMES[:1])

    def files(path: Path) -> dict[str, bytes]:
        found = [path, *path.rglob("*")]
        return {str(file.relative_to(path)): file.read_bytes() for file in found if file.is_file()}

    assert files(tmp_path / EXPORTS[name].file) == files(fresh)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        [EXPORTS[name].file, "frames.jsonl", "new"]
    )


@pytest.mark.parametrize("name", OPTIONAL)
def test_names_are_those_of_the_images_of_the_source(tmp_path, name):
    """Images of two folders with equal names get numbers instead."""
    names = ["shots/a.png", "shots/b.png", "shots/c.png", "shots/d.png"]
    path = export(name, tmp_path, video={**VIDEO, "file_names": names})
    stems = {file.stem for file in path.rglob("*.png")}
    if stems:
        assert stems <= set("abcd")
    equal = export(name, tmp_path, video={**VIDEO, "file_names": [f"{k}/a.png" for k in range(4)]})
    assert {file.stem for file in equal.rglob("*.png")} <= {f"{t:05d}" for t in range(4)}


@pytest.mark.parametrize("name", [name for name in OPTIONAL if name != "crops"])
def test_memory_does_not_grow_with_the_video(tmp_path, name):
    """Ten times the frames need the same memory, up to 200 bytes a frame for names and time stamps."""

    def peak(length):
        record = write_record(tmp_path / "frames.jsonl", FRAMES[:1] * length)
        with RecordedTracks(record) as tracks:
            tracemalloc.start()
            write_exports(tmp_path, Recording(tracks, VIDEO, CLASSES), [name])
            bytes_ = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return bytes_

    # The smaller of two: threads of other tests are counted too.
    peaks = [min(peak(length), peak(length)) for length in (20, 200)]
    assert peaks[1] - peaks[0] < 200 * 180


def test_formats_are_checked_and_ordered():
    assert check_exports(["csv", "png", "csv"]) == ("png", "csv")
    with pytest.raises(UserError, match=r"--save: no format 'pgn'; the formats are png, masks, coco"):
        check_exports(["pgn"])
    assert not set(ALWAYS) & set(OPTIONAL)


@pytest.mark.parametrize(
    "damage",
    [
        {"id": -1},
        {"id": 1 << 16},
        {"bbox": [0, 0, 1e400, 1]},
        {"bbox": ["=1", 0, 0, 0]},
        {"segmentation": {"size": [4, 4], "counts": "4O"}},
    ],
)
@pytest.mark.parametrize("name", ["png", "masks", "coco", "mot", "mots", "csv", "crops"])
def test_a_damaged_record_is_refused(tmp_path, name, damage):
    record = write_record(tmp_path / "frames.jsonl", FRAMES[:1])
    line = json.loads(record.read_text())
    line["objects"][0].update(damage)
    record.write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match=r"frames\.jsonl:1: ") as caught, RecordedTracks(record) as tracks:
        write_exports(tmp_path, Recording(tracks, VIDEO, CLASSES, lambda: map(picture, range(4))), [name])
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["frames.jsonl"]


@pytest.mark.parametrize("name", ["png", "masks", "mots", "crops"])
def test_run_lengths_beyond_the_frame_are_refused(tmp_path, name):
    record = write_record(tmp_path / "frames.jsonl", FRAMES[:1])
    line = json.loads(record.read_text())
    line["objects"][0]["segmentation"]["counts"] = "oooooooooooooo0"
    record.write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match=r"object 7 has an invalid mask"), RecordedTracks(record) as tracks:
        write_exports(tmp_path, Recording(tracks, VIDEO, CLASSES, lambda: map(picture, range(4))), [name])
    assert [file.name for file in tmp_path.iterdir()] == ["frames.jsonl"]
