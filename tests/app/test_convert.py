"""`l2g convert`, and image-only weights in `l2g predict`."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from local2global.app.cli import app
from local2global.app.predict import L2G
from local2global.errors import UserError
from local2global.lazy import instantiate, load_config
from local2global.weights.checkpoint import load_checkpoint, to_detrex

ROOT = Path(__file__).parents[2]
TINY = "demo/l2g_tiny.py"


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A small MaskDINO by detrex's names, with image weights only."""
    torch.manual_seed(3)
    model = instantiate(load_config(ROOT / "configs" / TINY).model)
    path = tmp_path_factory.mktemp("released") / "maskdino.pth"
    torch.save({"model": to_detrex(model.state_dict()).state}, path)
    return model, path


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=True)


def test_a_converted_folder_is_ready_to_predict(released, tmp_path):
    model, path = released
    done = run("convert", path, "--output", tmp_path / "out", "--config", TINY, "model.tracker=bypass")
    assert done.exit_code == 0, done.output
    assert "names of MaskDINO" in done.output
    assert (tmp_path / "out" / "load_report.txt").read_text().startswith("weights of ")
    loaded = L2G.from_pretrained(tmp_path / "out", "cpu")
    assert "matched from frame to frame, not learned" in loaded.caveat
    ours = loaded._module.segmenter.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in model.segmenter.state_dict().items())


def test_the_video_model_keeps_its_tracker_and_its_report_says_it_is_new(released, tmp_path):
    _, path = released
    done = run("convert", path, "--output", tmp_path / "out", "--config", TINY)
    assert done.exit_code == 0, done.output
    assert "tracker.aligner:" in done.output
    assert "missing" in done.output
    assert L2G.from_pretrained(tmp_path / "out", "cpu").caveat is None


def test_ours_go_back_to_detrexs_names(released, tmp_path):
    _, path = released
    run("convert", path, "--output", tmp_path / "out", "--config", TINY)
    done = run(
        "convert", tmp_path / "out" / "model_final.pth", "--output", tmp_path / "d.pth", "--to", "detrex"
    )
    assert "which detrex's MaskDINO has no place for: tracker." in done.output
    before, after = load_checkpoint(path)["model"], load_checkpoint(tmp_path / "d.pth")["model"]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_another_size_is_no_silent_mismatch(released, tmp_path):
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


def test_image_weights_ask_for_the_bypass_in_one_line(released):
    with pytest.raises(
        UserError, match=r"know images: add model\.tracker=bypass .*matched, not learned"
    ) as error:
        L2G.from_pretrained(released[1], "cpu")
    assert "\n" not in str(error.value)


def test_a_video_config_beside_image_weights_asks_for_it_too(released, tmp_path):
    _, path = released
    run("convert", path, "--output", tmp_path / "out", "--config", TINY)
    (tmp_path / "out" / "model_final.pth").write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"no tracker in these weights\. Add model\.tracker=bypass"):
        L2G.from_pretrained(tmp_path / "out", "cpu")
    assert L2G.from_pretrained(tmp_path / "out", "cpu", ["model.tracker=bypass"]).caveat


def test_a_bare_backbone_is_not_a_model(tmp_path):
    path = tmp_path / "resnet.pth"
    torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="torchvision ResNet weights are not a whole model"):
        L2G.from_pretrained(path, "cpu")
