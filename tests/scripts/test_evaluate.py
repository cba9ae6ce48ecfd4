"""scripts/evaluate.py: a run is scored on the benchmarks on disk, beside the paper."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from local2global.config.class_lists import VIDEO_CLASSES
from local2global.lazy import instantiate, save_resolved
from local2global.weights.checkpoint import save_checkpoint
from miniatures import write_videos

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import real_run  # noqa: E402


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("evaluate_script", ROOT / "scripts/evaluate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tmp_path):
    """A small model of YouTube-VIS 2021's classes, not trained."""
    folder = tmp_path / "run"
    folder.mkdir()
    cfg = real_run.config(folder)
    del cfg.dataloader
    cfg.model.classes = VIDEO_CLASSES["ytvis2021"]
    torch.manual_seed(0)
    save_resolved(cfg, folder / "config.yaml")
    save_checkpoint(folder / "model_final.pth", {"model": instantiate(cfg.model).state_dict()})
    return folder


def test_a_run_is_scored_on_every_benchmark_of_its_classes(script, run, tmp_path, monkeypatch, capsys):
    """YouTube-VIS 2021 has no public truth, so a zip is written; 2022 is scored by parts."""
    data = tmp_path / "datasets"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data))
    classes = VIDEO_CLASSES["ytvis2021"]
    for year in ("2021", "2022"):
        place = data / f"ytvis_{year}"
        write_videos(place / "valid/JPEGImages", place / "valid.json", classes, annotated=False, videos=2)
    for name, videos in (("gt", 2), ("gt_short", 2), ("gt_long", 1)):
        write_videos(tmp_path / "again", data / "ytvis_2022" / f"{name}.json", classes, videos=videos)
    write_videos(data / "ovis/valid", data / "ovis/annotations_valid.json", VIDEO_CLASSES["ovis"])
    lines = script.evaluate_runs([run], "cpu")
    text = capsys.readouterr().out
    assert "VIPSeg: not on disk" in text
    assert "OVIS: " in text
    assert "has other classes" in text
    assert "segm_mean: the mean of short and long" in text
    assert (run / "inference/ytvis_21/results.zip").is_file()
    assert "No local truth to score against" in text
    ours = [line for line in lines if line["source"] != "paper"]
    assert [(line["dataset"], Path(line["source"]).name) for line in ours] == [
        ("YTVIS-22", name) for name in ("run", "run (short)", "run (long)", "run (mean)")
    ]
    assert all(0 <= line["AP"] <= 100 for line in ours)
    assert {line["table"] for line in lines} == {1, 2, 4}
