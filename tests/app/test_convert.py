"""`l2g convert`, and image-only checkpoints in `l2g predict`."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from local2global.app.cli import app
from local2global.app.predict import L2G
from local2global.errors import UserError
from local2global.lazy import instantiate, load_config, save_resolved
from local2global.weights.checkpoint import load_checkpoint, to_detrex

ROOT = Path(__file__).parents[2]
TINY = "demo/l2g_tiny.py"


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A small MaskDINO checkpoint with detrex's parameter names."""
    torch.manual_seed(3)
    model = instantiate(load_config(ROOT / "configs" / TINY).model)
    path = tmp_path_factory.mktemp("released") / "maskdino.pth"
    torch.save({"model": to_detrex(model.state_dict()).state}, path)
    return model, path


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=True)


def test_a_converted_folder_is_ready_for_predict(released, tmp_path):
    model, path = released
    done = run("convert", path, "--output", tmp_path / "out", "--config", TINY, "model.tracker=bypass")
    assert done.exit_code == 0, done.output
    assert "names of MaskDINO" in done.output
    assert (tmp_path / "out" / "load_report.txt").read_text().startswith("weights of ")
    loaded = L2G.from_pretrained(tmp_path / "out", "cpu")
    assert "matched from frame to frame, not learned" in loaded.caveat
    ours = loaded._module.segmenter.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in model.segmenter.state_dict().items())


def test_the_report_lists_the_tracker_as_missing(released, tmp_path):
    _, path = released
    done = run("convert", path, "--output", tmp_path / "out", "--config", TINY)
    assert done.exit_code == 0, done.output
    assert "tracker.aligner:" in done.output
    assert "missing" in done.output
    assert L2G.from_pretrained(tmp_path / "out", "cpu").caveat is None


def test_converting_to_detrex_restores_the_original_tensors(released, tmp_path):
    _, path = released
    run("convert", path, "--output", tmp_path / "out", "--config", TINY)
    done = run(
        "convert", tmp_path / "out" / "model_final.pth", "--output", tmp_path / "d.pth", "--to", "detrex"
    )
    assert "unknown to detrex's MaskDINO: tracker." in done.output
    before, after = load_checkpoint(path)["model"], load_checkpoint(tmp_path / "d.pth")["model"]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("to", ["ours", "detrex"])
def test_averaged_weights_are_converted_if_the_config_evaluates_only_those(released, tmp_path, to):
    """As `l2g eval` and `l2g predict` choose."""
    model, _ = released
    cfg = load_config(ROOT / "configs" / TINY)
    cfg.train.model_ema.update(enabled=True, use_ema_weights_for_eval_only=True)
    save_resolved(cfg, tmp_path / "config.yaml")
    averaged = {name: value + 1 for name, value in model.state_dict().items()}
    torch.save({"model": model.state_dict(), "ema_state": averaged}, tmp_path / "model_final.pth")
    out = tmp_path / ("out" if to == "ours" else "out.pth")
    done = run("convert", tmp_path / "model_final.pth", "--output", out, "--to", to)
    assert done.exit_code == 0, done.output
    written = load_checkpoint(out / "model_final.pth" if to == "ours" else out)["model"]
    expected = averaged if to == "ours" else to_detrex(averaged).state
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], value) for name, value in expected.items())


def test_a_part_of_another_size_is_refused(released, tmp_path):
    _, path = released
    wider = "model.segmenter.encoder.dim_feedforward=96"
    done = run("convert", path, "--output", tmp_path / "out", "--config", TINY, wider)
    assert isinstance(done.exception, UserError)
    assert "only some of segmenter.encoder fits" in str(done.exception)
    assert not (tmp_path / "out").exists()
    assert (
        run("convert", path, "--output", tmp_path / "out", "--config", TINY, wider, "--partial").exit_code
        == 0
    )


def test_image_only_weights_beside_a_video_config_need_the_bypass_tracker(released, tmp_path):
    _, path = released
    run("convert", path, "--output", tmp_path / "out", "--config", TINY)
    (tmp_path / "out" / "model_final.pth").write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"no tracker in these weights\. Add model\.tracker=bypass"):
        L2G.from_pretrained(tmp_path / "out", "cpu")
    assert L2G.from_pretrained(tmp_path / "out", "cpu", ["model.tracker=bypass"]).caveat


def test_backbone_weights_are_refused(tmp_path):
    path = tmp_path / "resnet.pth"
    torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="torchvision ResNet weights are not a whole model"):
        L2G.from_pretrained(path, "cpu")
