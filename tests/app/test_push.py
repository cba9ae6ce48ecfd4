"""`l2g push` and `hf://`, with a Hub on this machine."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from local2global.app import cli
from local2global.app.predict import L2G
from local2global.errors import UserError
from local2global.lazy import instantiate, load_config, save_resolved
from local2global.weights.checkpoint import save_checkpoint, to_detrex
from local2global.weights.find import find_weights
from loopback_hub import HubServer

constants = pytest.importorskip("huggingface_hub.constants", reason="needs local2global[hub]")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with HubServer() as hub:
        monkeypatch.setenv("L2G_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_token_of_a_test")
        yield hub


@pytest.fixture(scope="module")
def trained(tmp_path_factory, root):
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("run")
    cfg = load_config(root / "configs/demo/l2g_tiny.py")
    cfg.train.output_dir = "/home/someone/secret/run"
    torch.manual_seed(1)
    save_checkpoint(folder / "model_final.pth", {"model": instantiate(cfg.model).state_dict()})
    save_resolved(cfg, folder / "config.yaml")
    entries = [{"iteration": 9, "loss": 1.0}, {"iteration": 9, "segm/AP": 61.93, "segm/AP50": 81.9}]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    versions = {"local2global": "0.2.0", "command": "l2g train /home/someone/secret/x.py train.seed=1"}
    (folder / "versions.json").write_text(json.dumps(versions))
    return folder


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["l2g", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_what_push_uploads_is_what_hf_loads(hub, trained, monkeypatch, capsys):
    assert run(monkeypatch, "push", "someone/tiny", "--weights", trained, "--private") == 0
    assert f"uploaded to {hub.endpoint}/someone/tiny" in capsys.readouterr().out
    assert sorted(hub.repositories["someone/tiny"]) == ["README.md", "config.yaml", "model.safetensors"]
    assert hub.private["someone/tiny"]
    expected = L2G.from_pretrained(trained, "cpu")._module.state_dict()
    for name in (
        "hf://someone/tiny",
        "someone/tiny",
        "hf://someone/tiny/model.safetensors",
        "hf://someone/tiny@main",
    ):
        loaded = L2G.from_pretrained(name, "cpu")
        state = loaded._module.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], value) for key, value in expected.items())
        assert [entry["name"] for entry in loaded.classes] == ["disc", "triangle", "cross"]
    downloads = [request for request in hub.requests if request.startswith("GET") and "/resolve/" in request]
    assert len(downloads) == 2
    said = capsys.readouterr().err
    assert "hf://someone/tiny: model.safetensors (" in said
    assert "apache-2.0" in said


def test_without_a_network_the_copy_of_an_earlier_download_is_used(
    hub, trained, monkeypatch, capsys, tmp_path
):
    run(monkeypatch, "push", "someone/tiny", "--weights", trained)
    path = find_weights("hf://someone/tiny")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert find_weights("hf://someone/tiny") == path
    assert "the Hub cannot be reached" in capsys.readouterr().err
    monkeypatch.setenv("L2G_CACHE", str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"the Hub cannot be reached .* has no copy") as error:
        find_weights("hf://someone/tiny")
    assert "\n" not in str(error.value)


def test_the_card_has_data_scores_command_versions_and_licence_but_no_private_paths(
    trained, tmp_path, monkeypatch
):
    options = ["--weights", trained, "--output", tmp_path / "files", "--license", "cc-by-nc-4.0"]
    assert run(monkeypatch, "push", "someone/tiny", *options) == 0
    card = (tmp_path / "files/README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "cc-by-nc-4.0"
    for text in (
        "| segm/AP | 61.93 |",
        "load_shapes(preset=demo, num_videos=100000, seed=1)",
        "l2g train x.py train.seed=1",
        "| Local2global | 0.2.0 |",
        "3: disc, triangle, cross",
        "--weights hf://someone/tiny",
    ):
        assert text in card, text
    everything = "".join(file.read_text(errors="ignore") for file in (tmp_path / "files").iterdir())
    assert "secret" not in everything
    assert list(yaml.safe_load((tmp_path / "files/config.yaml").read_text())) == ["model"]
    assert L2G.from_pretrained(tmp_path / "files", "cpu")


def test_a_dry_run_prints_the_card_and_does_nothing(hub, trained, tmp_path, monkeypatch, capsys):
    options = ["--weights", trained, "--dry-run", "--output", tmp_path / "files"]
    assert run(monkeypatch, "push", "someone/tiny", *options) == 0
    assert "segm/AP" in capsys.readouterr().out
    assert not (tmp_path / "files").exists()
    assert hub.requests == []


def test_errors_of_the_hub_are_one_line(hub, trained, monkeypatch, capsys):
    with pytest.raises(
        UserError, match="no such file or folder here, and no such repository on the Hugging Face Hub"
    ):
        find_weights("someone/nothing")
    hub.repositories["someone/empty"] = {"README.md": b"x"}
    with pytest.raises(UserError, match="no weights file"):
        find_weights("hf://someone/empty")
    hub.repositories["someone/two"] = {"a.pth": b"x", "b.pth": b"x"}
    with pytest.raises(UserError, match=r"several weights files; name one: hf://someone/two/a\.pth"):
        find_weights("hf://someone/two")
    with pytest.raises(UserError, match=r"no file c\.pth\. Its weights: a\.pth, b\.pth"):
        find_weights("hf://someone/two/c.pth")
    with pytest.raises(UserError, match="expected hf://OWNER/REPO"):
        find_weights("hf://someone/two/../x.pth")
    hub.refuse = 403
    assert run(monkeypatch, "push", "someone/tiny", "--weights", trained) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("l2g: hf://someone/tiny: the Hub refuses (HTTP 403")
    assert lines[-1].endswith("Log in: hf auth login")


def test_a_file_over_the_limit_is_refused_before_the_download(hub, monkeypatch):
    monkeypatch.setattr("local2global.weights.hub.MAX_DOWNLOAD", 10)
    hub.repositories["someone/large"] = {"model.safetensors": b"x" * 11}
    with pytest.raises(UserError, match="the limit is"):
        find_weights("hf://someone/large")
    assert not [request for request in hub.requests if "/resolve/" in request]


def test_weights_without_a_config_are_not_pushed(trained, tmp_path, monkeypatch, capsys, root):
    model = instantiate(load_config(root / "configs/demo/l2g_tiny.py").model)
    save_checkpoint(tmp_path / "maskdino.pth", {"model": to_detrex(model.state_dict()).state})
    assert run(monkeypatch, "push", "a/b", "--weights", tmp_path / "maskdino.pth", "--dry-run") == 1
    assert "MaskDINO weights have no config. Convert them first" in capsys.readouterr().err
