"""Images are read in place from the zip files of public datasets."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from zipfile import ZIP_BZIP2, ZIP_DEFLATED, ZIP_STORED, ZipFile

import pytest
import torch

from local2global.data.check import check_dataset
from local2global.data.readers.archives import image_root
from local2global.data.readers.layouts import load_split, load_vipseg
from local2global.data.readers.youtube_vis import load_youtube_vis
from local2global.errors import UserError
from miniatures import write_panoptic, write_videos

CLASSES = [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}]


def zip_folder(folder: Path, target: Path, prefix: str, method: int = ZIP_STORED) -> None:
    """Move a folder into a zip file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with ZipFile(target, "w", method) as bundle:
        for path in sorted(folder.rglob("*.*")):
            bundle.write(path, prefix + str(path.relative_to(folder)))
    shutil.rmtree(folder)


@pytest.mark.parametrize("method", [ZIP_STORED, ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("images", "target", "prefix"),
    [
        ("train/JPEGImages", "train.zip", "train/JPEGImages/"),
        ("train/JPEGImages", "train.zip", "JPEGImages/"),
        ("train/JPEGImages", "train/JPEGImages.zip", ""),
        ("train/JPEGImages", "train/JPEGImages.zip", "JPEGImages/"),
        ("train", "train.zip", "train/"),
        ("train", "train.zip", "./"),
    ],
)
def test_a_split_is_read_from_its_zip_file(tmp_path, images, target, prefix, method):
    write_videos(tmp_path / images, tmp_path / "annotations/train.json", CLASSES)
    expected = load_split(tmp_path, "train").videos[1].frame(2)
    folders = [record.frame(0).shape for record in load_split(tmp_path, "train").videos]
    zip_folder(tmp_path / images, tmp_path / target, prefix, method)
    dataset = load_split(tmp_path, "train")
    assert [record.frame(0).shape for record in dataset.videos] == folders
    assert torch.equal(dataset.videos[1].frame(2), expected)
    assert torch.equal(pickle.loads(pickle.dumps(dataset)).videos[1].frame(2), expected)
    assert [str(finding) for finding in check_dataset(tmp_path).errors] == []


def test_a_folder_has_priority(tmp_path):
    write_videos(tmp_path / "train", tmp_path / "train.json", CLASSES)
    (tmp_path / "train.zip").write_bytes(b"not read")
    assert image_root(tmp_path / "train") == tmp_path / "train"


def test_vipseg_is_read_from_zip_files(tmp_path):
    classes = [{"id": 5, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}]
    write_panoptic(tmp_path, "train", classes)
    before = load_vipseg(tmp_path, "train").videos[1]
    expected = before.frame(0), before.masks(0)
    for name in ("images", "panomasksRGB"):
        zip_folder(tmp_path / name, tmp_path / f"{name}.zip", f"{name}/")
    video = load_vipseg(tmp_path, "train").videos[1]
    assert torch.equal(video.frame(0), expected[0])
    assert torch.equal(video.masks(0), expected[1])
    assert [str(finding) for finding in check_dataset(tmp_path).errors] == []


def test_processes_read_the_same_file_after_a_fork(tmp_path):
    write_videos(tmp_path / "train", tmp_path / "train.json", CLASSES)
    expected = load_split(tmp_path, "train").videos[0].frame(0)
    zip_folder(tmp_path / "train", tmp_path / "train.zip", "train/")
    videos = load_split(tmp_path, "train").videos
    videos[2].frame(0)
    process = os.fork()
    if process == 0:
        for _ in range(50):
            videos[1].frame(1)
        os._exit(0)
    assert all(torch.equal(videos[0].frame(0), expected) for _ in range(50))
    assert os.waitpid(process, 0)[1] == 0


def change_directory(path: Path, offset: int, data: bytes) -> None:
    """Change the first entry of the central directory."""
    content = bytearray(path.read_bytes())
    place = content.find(b"PK\1\2") + offset
    content[place : place + len(data)] = data
    path.write_bytes(content)


def damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100:110] = b"0123456789"
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damaged, r"train\.zip/train/video1/00000\.jpg: not a readable image \(a damaged zip entry"),
        (lambda path: path.write_bytes(b"PK"), r"train\.zip: not a readable zip file"),
        # A name in UTF-8 that is not: flag bit 11 and a byte of the name.
        (
            lambda path: (change_directory(path, 8, b"\0\x08"), change_directory(path, 46, b"\xff")),
            r"train\.zip: not a readable zip file",
        ),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), r"train\.zip: not a readable zip file"),
    ],
)
def test_a_damaged_zip_file_is_one_line(tmp_path, change, message):
    write_videos(tmp_path / "train", tmp_path / "train.json", CLASSES)
    zip_folder(tmp_path / "train", tmp_path / "train.zip", "train/")
    change(tmp_path / "train.zip")
    with pytest.raises(UserError, match=message):
        load_youtube_vis(tmp_path / "train", tmp_path / "train.json").videos[0].frame(0)


def test_missing_and_unusual_entries_are_one_line(tmp_path):
    folder = tmp_path / "data"  # the folders beside it are searched for frames too
    folder.mkdir()
    write_videos(folder / "train", folder / "train.json", CLASSES)
    (folder / "train/video1/00000.jpg").unlink()
    zip_folder(folder / "train", folder / "train.zip", "train/", ZIP_BZIP2)
    video = load_split(folder, "train").videos[0]
    with pytest.raises(UserError, match=r"video1/00000\.jpg: no such image file"):
        video.frame(0)
    with pytest.raises(UserError, match=r"video1/00001\.jpg: not a readable image \(an entry that is"):
        video.frame(1)
    assert {finding.kind for finding in check_dataset(folder).errors} == {"missing-frame", "corrupt-image"}
