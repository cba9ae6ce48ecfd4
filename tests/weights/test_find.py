"""Names of weights: paths, runs, short names, addresses; and the commands that take them."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from PIL import Image

from local2global.app import cli
from local2global.app.predict import L2G
from local2global.config.saved import is_remote, load_yaml_config
from local2global.engine.evaluation import load_model
from local2global.errors import UserError
from local2global.lazy import apply_overrides, instantiate, load_config, save_resolved
from local2global.weights import download, known
from local2global.weights.checkpoint import save_checkpoint, to_detrex
from local2global.weights.class_heads import THINGS
from local2global.weights.find import cached_release, find_weights
from loopback import FileServer

SMALL = [
    "model.segmenter.encoder.num_layers=1",
    "model.segmenter.encoder.dim_feedforward=16",
    "model.segmenter.decoder.num_layers=2",
    "model.segmenter.decoder.dim_feedforward=16",
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("L2G_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "PAUSE", 0.0)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def released(tmp_path_factory, root) -> bytes:
    """A checkpoint in the form of the released MaskDINO R50, with fewer layers."""
    torch.manual_seed(3)
    cfg = load_config(root / "configs/common/models/l2g_r50.py")
    cfg.model.classes = [{"id": i, "name": name} for i, name in THINGS.items()]
    model = instantiate(apply_overrides(cfg, SMALL).model)
    path = tmp_path_factory.mktemp("released") / "released.pth"
    save_checkpoint(path, {"model": to_detrex(model.state_dict()).state, "iteration": 368749})
    return path.read_bytes()


@pytest.fixture
def server(released, monkeypatch):
    """Serves `maskdino-r50`."""
    release = known.RELEASES[known.DEFAULT]
    with FileServer({f"/{release.file}": released}) as server:
        local = dataclasses.replace(release, url=server.url(f"/{release.file}"))
        monkeypatch.setitem(known.RELEASES, known.DEFAULT, local)
        yield server


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["l2g", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_a_video_is_segmented_without_naming_weights(server, tmp_path, monkeypatch, capsys):
    """`l2g predict clip.png` downloads MaskDINO R50 once, links its queries, and reports COCO's classes."""
    Image.effect_noise((96, 64), 90).convert("RGB").save(tmp_path / "clip.png")
    options = ["--output", tmp_path / "out", "--device", "cpu", "--threshold", "0", "--max-objects", "2"]
    assert run(monkeypatch, "predict", tmp_path / "clip.png", *options, "model.test_size=[128,192]") == 0
    shown = capsys.readouterr()
    assert "no --weights: using maskdino-r50 (MaskDINO R50, COCO instances" in shown.err
    assert "downloading maskdino-r50 (Apache-2.0)" in shown.err
    assert "identities are matched from frame to frame, not learned" in shown.out
    names = [
        c["name"] for c in json.loads((tmp_path / "out/clip/annotations.json").read_text())["categories"]
    ]
    assert names == list(THINGS.values())
    assert find_weights("maskdino-r50") == cached_release("maskdino-r50")
    assert len(server.requests) == 1


def test_a_source_that_does_not_exist_is_refused_before_the_download(server, monkeypatch, capsys):
    assert run(monkeypatch, "predict", "nowhere.mp4") == 1
    assert capsys.readouterr().err == "l2g: nowhere.mp4: no such file or folder\n"
    assert server.requests == []


def test_a_page_instead_of_weights_ends_the_command_in_one_line(server, tmp_path, monkeypatch, capsys):
    Image.new("RGB", (96, 64)).save(tmp_path / "clip.png")
    server.files = dict.fromkeys(server.files, b"<html>log in</html>")
    assert run(monkeypatch, "predict", tmp_path / "clip.png", "--output", tmp_path / "out") == 1
    assert "a web page instead of a file" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_the_list_of_weights_names_sizes_and_files(server, cache, monkeypatch, capsys):
    assert run(monkeypatch, "weights") == 0
    shown = capsys.readouterr().out
    assert all(f"{name}: MaskDINO" in shown for name in known.RELEASES)
    assert "about 209 MB, Apache-2.0" in shown
    assert str(cache) in shown
    path = find_weights("maskdino-r50")
    assert path == cached_release("maskdino-r50")
    capsys.readouterr()
    assert run(monkeypatch, "weights") == 0
    assert f"{path} (SHA-256 " in capsys.readouterr().out


def test_convert_and_eval_take_the_same_names(tmp_path, monkeypatch, root):
    cfg = load_config(root / "configs/demo/l2g_tiny.py")
    save_checkpoint(tmp_path / "w.pth", {"model": to_detrex(instantiate(cfg.model).state_dict()).state})
    with FileServer({"/w.pth": (tmp_path / "w.pth").read_bytes()}) as server:
        converted = ["--output", tmp_path / "converted", "--config", "demo/l2g_tiny.py"]
        assert run(monkeypatch, "convert", server.url("/w.pth"), *converted) == 0
        cfg.train.init_checkpoint = server.url("/w.pth")
        cfg.model = load_config(root / "configs/demo/l2g_tiny.py", ["model.tracker=bypass"]).model
        assert load_model(cfg).tracker.caveat
    assert load_config(root / "configs/coco/l2g_r50_60k.py").train.init_checkpoint == "maskdino-r50"


def test_a_checkpoint_at_an_address_comes_with_its_config(tmp_path, root):
    cfg = load_config(root / "configs/demo/l2g_tiny.py")
    torch.manual_seed(1)
    save_checkpoint(tmp_path / "run/w.pth", {"model": instantiate(cfg.model).state_dict()})
    save_resolved(cfg, tmp_path / "run/config.yaml")
    files = {f"/run/{file.name}": file.read_bytes() for file in (tmp_path / "run").iterdir()}
    with FileServer(files) as server:
        model = L2G.from_pretrained(server.url("/run/w.pth"), "cpu")
        assert [entry["name"] for entry in model.classes] == ["disc", "triangle", "cross"]
        L2G.from_pretrained(server.url("/run/w.pth"), "cpu")
        assert len(server.requests) == 2


def test_an_address_without_a_config_and_of_another_kind_is_refused():
    with FileServer({"/w.pth": b"PK\x03\x04", "/w.zip": b"PK"}) as server:
        assert find_weights(server.url("/w.pth")).read_bytes() == b"PK\x03\x04"
        with pytest.raises(UserError, match=r"expected the address of a \.pth"):
            find_weights(server.url("/w.zip"))
    with pytest.raises(UserError, match="https:// addresses only"):
        find_weights("s3://bucket/w.pth")


def test_existing_files_have_priority_over_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "maskdino-r50").write_bytes(b"x")
    assert find_weights("maskdino-r50").resolve() == tmp_path / "maskdino-r50"


def test_without_a_network_the_file_may_be_copied_by_hand(released, monkeypatch, capsys):
    release = dataclasses.replace(known.RELEASES[known.DEFAULT], url="http://127.0.0.1:9/maskdino.pth")
    monkeypatch.setitem(known.RELEASES, known.DEFAULT, release)
    target = cached_release("maskdino-r50")
    with pytest.raises(UserError, match=f"Download {release.url} by hand to {target}") as error:
        find_weights("maskdino-r50")
    assert "\n" not in str(error.value)
    target.write_bytes(released)
    assert find_weights("maskdino-r50") == target


@pytest.mark.parametrize(
    ("name", "remote"),
    [
        ("owner/repo", True),
        ("hf://owner/repo", True),
        ("https://example.org/w.pth", True),
        ("maskdino-r50", False),
        ("nowhere/w.pth", False),
        ("output/nowhere", False),
        ("/output/nowhere", False),
        ("a/b/c", False),
        ("../b", False),
    ],
)
def test_a_mistyped_path_does_not_lead_to_the_network(tmp_path, monkeypatch, name, remote):
    (tmp_path / "output").mkdir()
    monkeypatch.chdir(tmp_path)
    assert is_remote(name) == remote


def test_the_message_for_unknown_weights_lists_what_is_possible():
    with pytest.raises(
        UserError, match=r"nowhere\.pth: no such weights; give a weights file, the folder of a run"
    ):
        find_weights("nowhere.pth")
    with pytest.raises(UserError, match="no such weights"):
        find_weights("~nobody-of-this-name/run")


@pytest.mark.parametrize("start", ["https://example.org/w.pth", "owner/repo"])
def test_a_yaml_config_does_not_download_from_an_address(tmp_path, start):
    path = tmp_path / "config.yaml"
    path.write_text(f"train: {{init_checkpoint: '{start}'}}\n")
    with pytest.raises(UserError, match="a yaml config downloads nothing but the weights of `l2g weights`"):
        load_yaml_config(path)
    assert load_yaml_config(path, [f"train.init_checkpoint={start}"]).train.init_checkpoint == start
    path.write_text("train: {init_checkpoint: maskdino-r50}\n")
    assert load_yaml_config(path).train.init_checkpoint == "maskdino-r50"


def test_a_run_folder_prefers_the_last_checkpoint(tmp_path):
    """After an interrupted second run, model_final.pth is left over from the first run."""
    with pytest.raises(UserError, match="no weights in this folder"):
        find_weights(tmp_path)
    (tmp_path / "model_final.pth").touch()
    assert find_weights(tmp_path) == tmp_path / "model_final.pth"
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    with pytest.raises(UserError, match=r"names model_0000009\.pth"):
        find_weights(tmp_path)
    (tmp_path / "model_0000009.pth").touch()
    assert find_weights(tmp_path) == tmp_path / "model_0000009.pth"
    assert find_weights(tmp_path / "model_final.pth") == tmp_path / "model_final.pth"
