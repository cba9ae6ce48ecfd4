"""The commands `l2g data ...`, end to end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from local2global.app import cli
from local2global.app.sheets import Drawn, draw_clip, draw_truth, write_clips
from local2global.app.video import open_source
from local2global.data.augment import ClipAugmentation, DriftingCrop, RandomShortestEdge, ZoomCrop
from local2global.data.clips import make_clip
from local2global.data.generated.shapes import load_shapes
from local2global.errors import UserError


def run(monkeypatch, *arguments: object) -> int:
    """Runs `l2g data ...` in this process and returns the exit status."""
    monkeypatch.setattr(sys, "argv", ["l2g", "data", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def make(monkeypatch, out: Path, *arguments: object) -> None:
    status = run(monkeypatch, "make", out, "--videos", 2, "--length", 3, "--size", 32, 48, *arguments)
    assert status == 0


@pytest.mark.parametrize("layout", ["ytvis", "vipseg"])
def test_a_dataset_written_by_make_passes_check(monkeypatch, capsys, tmp_path, layout):
    make(monkeypatch, tmp_path / "out", "--format", layout, "--seed", 4)
    pictures = tmp_path / "pictures"
    assert run(monkeypatch, "check", tmp_path / "out", "--pictures", pictures, "--clips", 1) == 0
    text = capsys.readouterr().out
    assert "0 errors, 0 warnings" in text
    assert "32x48 (2)" in text
    assert [p.name for p in pictures.iterdir()] == ["shapes-00001.png"]
    assert Image.open(pictures / "shapes-00001.png").size == (3 * 48 + 2 * 2, 32)


def test_errors_are_listed_and_the_status_is_1(monkeypatch, capsys, tmp_path):
    make(monkeypatch, tmp_path / "out")
    (tmp_path / "out" / "JPEGImages" / "shapes-00001" / "00002.jpg").unlink()
    assert run(monkeypatch, "check", tmp_path / "out", "--json", tmp_path / "findings.json") == 1
    text = capsys.readouterr().out
    assert "shapes-00001/00002.jpg: instances.json: video 1" in text
    assert "1 error, 0 warnings" in text
    (finding,) = json.loads((tmp_path / "findings.json").read_text())
    assert finding["kind"] == "missing-frame"


def test_findings_of_one_kind_are_limited_but_all_are_counted(monkeypatch, capsys, tmp_path):
    make(monkeypatch, tmp_path / "out")
    for file in (tmp_path / "out" / "JPEGImages").rglob("0000[12].jpg"):
        file.unlink()
    assert run(monkeypatch, "check", tmp_path / "out", "--limit", 1) == 1
    text = capsys.readouterr().out
    assert text.count("no such image file") == 1
    assert "... and 3 more of this kind (missing-frame)" in text
    assert "4 errors" in text


def test_videos_without_annotations_are_fully_decoded(monkeypatch, capsys, tmp_path):
    frames = [torch.full((3, 32, 48), 50 * t, dtype=torch.uint8) for t in range(3)]
    write_clips([Drawn("a", tuple(frames))], tmp_path / "videos" / "a.mp4")
    assert run(monkeypatch, "check", tmp_path / "videos") == 0
    assert "1 video(s) without annotations: 0 errors" in capsys.readouterr().out
    (tmp_path / "videos" / "b.mp4").write_text("no video")
    assert run(monkeypatch, "check", tmp_path / "videos") == 1
    assert "b.mp4: this video cannot be read" in capsys.readouterr().out


def test_convert_prints_a_summary(monkeypatch, capsys, tmp_path):
    annotation = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "iscrowd": 0,
        "segmentation": [[0, 0, 2, 0, 2, 2]],
    }
    content = {"images": [{"id": 1}], "annotations": [annotation, {**annotation, "category_id": 52}]}
    (tmp_path / "coco.json").write_text(json.dumps({**content, "categories": []}))
    out = tmp_path / "out.json"
    assert run(monkeypatch, "convert", "coco", tmp_path / "coco.json", out, "--classes", "ovis") == 0
    text = capsys.readouterr().out
    assert "1 images, 1 instances" in text
    assert "left out     1 annotations of other classes" in text
    assert out.is_file()


def test_an_unknown_preset_is_one_line(monkeypatch, capsys, tmp_path):
    assert run(monkeypatch, "make", tmp_path / "out", "--preset", "harder") == 1
    assert 'no preset "harder"' in capsys.readouterr().err


# --- View ---


def test_view_draws_clips_of_a_dataset(monkeypatch, capsys, tmp_path):
    make(monkeypatch, tmp_path / "out")
    sheet = tmp_path / "view.png"
    arguments = ("--clips", 2, "--length", 2, "--output", sheet, "--plain", "--cell", 0)
    assert run(monkeypatch, "view", tmp_path / "out", *arguments) == 0
    assert Image.open(sheet).size == (2 * 48 + 2, 2 * 32 + 2)
    assert capsys.readouterr().out.count("row ") == 2


def test_view_draws_training_clips_of_a_config(monkeypatch, capsys, tmp_path):
    movie = tmp_path / "view.mp4"
    key = "train.seed=5"
    arguments = ("demo/l2g_tiny.py", key, "--clips", 2, "--iteration", 1200, "--output", movie)
    assert run(monkeypatch, "view", *arguments) == 0
    assert len(list(open_source(movie))) == 6
    assert "96x160" in capsys.readouterr().out


def test_view_refuses_overrides_of_a_dataset(monkeypatch, capsys, tmp_path):
    assert run(monkeypatch, "view", tmp_path, "train.seed=5") == 1
    assert "has no config keys" in capsys.readouterr().err


# --- Drawings of truth ---

CLASSES = [{"id": 1, "name": "cat"}]


def test_a_box_is_drawn_just_outside_its_mask():
    """The box encloses a mask of rows 40 to 49 and columns 20 to 39 in an 80x120 frame; its label lies above."""
    frame = torch.zeros((3, 80, 120), dtype=torch.uint8)
    mask = torch.zeros((1, 80, 120), dtype=torch.bool)
    mask[0, 40:50, 20:40] = True
    box = torch.tensor([[30 / 120, 45 / 80, 20 / 120, 10 / 80]])
    label, identity = torch.tensor([0]), torch.tensor([7])
    without = draw_truth(frame, label, identity, mask, None, CLASSES)
    drawn = draw_truth(frame, label, identity, mask, box, CLASSES)
    ring = torch.zeros((80, 120), dtype=torch.bool)
    ring[39:51, 19:41] = True
    ring[:50, 20:40] = False
    ring[39] = False
    changed = (drawn != without).any(0)
    assert (changed & ~ring)[40:].sum() == 0
    assert (drawn[:, ring] == drawn[:, 50, 30][:, None]).all()


def test_labels_of_truth_have_no_score():
    frame, mask = torch.zeros((3, 60, 120), dtype=torch.uint8), torch.zeros((1, 60, 120), dtype=torch.bool)
    mask[0, 40:50, 5:20] = True
    zero = torch.tensor([0])
    drawn = draw_truth(frame, zero, zero, mask, None, CLASSES)
    columns = (drawn.any(0) & ~mask[0])[:40].any(0).nonzero().flatten()
    assert 0 < len(columns) < 60


CROP = ZoomCrop(1.0, RandomShortestEdge((40, 60), 100), DriftingCrop(24, 36))


@pytest.mark.parametrize(
    "augment",
    [
        ClipAugmentation((24, 40), 100, crop=None, flip=0.0),
        ClipAugmentation((48,), 100, crop=None, flip=1.0),
        ClipAugmentation((32,), 100, crop=CROP, flip=0.0),
    ],
)
def test_masks_and_pixels_are_augmented_alike(augment):
    """Objects painted red still coincide with their masks after augmentation."""
    record = load_shapes("demo", 1, seed=3, length=3, size=(48, 64)).videos[0]

    class Painted:
        def __getattr__(self, name):
            return getattr(record, name)

        def frame(self, t):
            frame = torch.zeros((3, 48, 64), dtype=torch.uint8)
            frame[0, record.masks(t).any(0)] = 255
            return frame

    clip = make_clip(Painted(), (0, 1, 2), augment, (0, 0, 0))
    assert clip.targets is not None
    red, masks = clip.frames[:, 0] > 127, clip.targets.masks.any(0)
    assert (red ^ masks).float().mean() < 0.04
    assert masks.any()
    assert len(draw_clip(clip, [{"id": k, "name": str(k)} for k in range(3)]).frames) == 3


def test_an_overlay_with_another_suffix_is_refused(tmp_path):
    clip = Drawn("a", (torch.zeros((3, 8, 8), dtype=torch.uint8),))
    with pytest.raises(UserError, match=r"a contact sheet a \.png"):
        write_clips([clip], tmp_path / "view.gif")


def test_smaller_frames_are_padded_with_grey(tmp_path):
    small, large = (torch.zeros((3, n, 2 * n), dtype=torch.uint8) for n in (8, 16))
    write_clips([Drawn("a", (small, large)), Drawn("b", (large,))], tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 16 + 2, 2 * 32 + 2, 3)
    assert (sheet[:8, :16] == 0).all()
    assert (sheet[8:16, :32] == 245).all()
    assert (sheet[18:, 34:] == 245).all()


def test_a_contact_sheet_has_one_row_per_clip_and_white_gaps(tmp_path):
    frames = [torch.full((3, 10, 20), level, dtype=torch.uint8) for level in (10, 20, 30)]
    write_clips([Drawn("a", tuple(frames[:2])), Drawn("b", tuple(frames[2:]))], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (42, 22)
        corners = [(0, 0), (22, 0), (0, 12), (22, 12), (20, 0)]
        assert [sheet.getpixel(at)[0] for at in corners] == [10, 20, 30, 245, 255]
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.png"]


def test_large_frames_of_a_sheet_are_downscaled(tmp_path):
    frame = torch.zeros((3, 40, 80), dtype=torch.uint8)
    write_clips([Drawn("a", (frame,))], tmp_path / "sheet.png", cell=20)
    assert Image.open(tmp_path / "sheet.png").size == (20, 10)
