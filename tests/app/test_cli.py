"""The command `l2g`."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from local2global.app import cli, predict_command
from local2global.app.source import Source
from local2global.errors import UserError


def run(monkeypatch, *arguments: str) -> int:
    """Runs the command in this process and returns the exit status."""
    monkeypatch.setattr(sys, "argv", ["l2g", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_command_line_is_parsed_without_heavy_imports():
    """torch, numpy, PyAV and rich are imported when a command runs."""
    heavy = {"torch", "numpy", "av", "rich"}
    code = f"import sys, local2global.app.cli; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_help_lists_all_commands(monkeypatch, capsys):
    assert run(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    commands = [
        "demo",
        "train",
        "eval",
        "ablate",
        "predict",
        "benchmark",
        "tables",
        "doctor",
        "convert",
        "weights",
        "push",
        "export",
    ]
    assert [name for name in [*commands, "data", "score", "--debug", "--version"] if name not in text] == []


def test_arguments_of_benchmark_are_passed_through(monkeypatch):
    seen = []
    monkeypatch.setattr("subprocess.call", lambda command: seen.append(command) or 3)
    assert run(monkeypatch, "benchmark", "frame", "--quick", "--json", "x.json") == 3
    assert seen[0][1].endswith("scripts/benchmark.py")
    assert seen[0][2:] == ["frame", "--quick", "--json", "x.json"]


def test_version(monkeypatch, capsys):
    import local2global

    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"l2g {local2global.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("predict", "x.mp4", "--threshold", "7"),
            "l2g: Invalid value for '--threshold': Input should be less than or equal to 1 (see l2g predict -h)\n",
        ),
        (("train",), "l2g: Missing argument 'config'. (see l2g train -h)\n"),
        (("tarin",), "l2g: No such command 'tarin'. Did you mean 'train'? (see l2g -h)\n"),
    ],
)
def test_a_usage_error_is_one_line_and_status_2(monkeypatch, capsys, arguments, line):
    assert run(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err == line


def test_no_arguments_print_the_help(monkeypatch, capsys):
    assert run(monkeypatch) == 2
    assert "train" in capsys.readouterr().err


def test_an_interrupt_prints_no_traceback(monkeypatch, capsys):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("local2global.app.video.open_source", interrupted)
    assert run(monkeypatch, "predict", "x.mp4", "--weights", "x.pth") == 130
    assert capsys.readouterr().err == ""


def test_a_user_error_is_one_line_and_status_1(monkeypatch, capsys):
    assert run(monkeypatch, "predict", "nowhere.mp4", "--weights", "x.pth") == 1
    assert capsys.readouterr().err == "l2g: nowhere.mp4: no such file or folder\n"


def test_a_bug_is_one_line_and_status_2(monkeypatch, capsys):
    def broken(name: str) -> Path:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(cli, "find_config_file", broken)
    assert run(monkeypatch, "train", "x") == 2
    expected = "l2g: unexpected RuntimeError: first line (run again with --debug for the traceback)\n"
    assert capsys.readouterr().err == expected


def test_an_os_error_is_one_line_and_status_1(monkeypatch, capsys):
    def full(name: str) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/video.mp4.tmp")

    monkeypatch.setattr(cli, "find_config_file", full)
    assert run(monkeypatch, "train", "x") == 1
    assert capsys.readouterr().err == "l2g: out/video.mp4.tmp: No space left on device\n"


@pytest.mark.parametrize(
    "arguments", [["--debug", "train", "nothing-like-it"], ["train", "nothing-like-it", "--debug"]]
)
def test_debug_raises_before_and_after_the_command(monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["l2g", *arguments])
    with pytest.raises(UserError):
        cli.main()


def test_a_misspelt_option_is_refused(monkeypatch, capsys):
    assert run(monkeypatch, "train", "x", "--resum") == 2
    assert "--resum" in capsys.readouterr().err


def test_parts_of_the_drawing_are_hidden_by_name(monkeypatch, capsys):
    look = predict_command._look("class", "labels, boxes")
    assert (look.color_by, look.hidden) == ("class", {"labels", "boxes"})
    assert predict_command._look("id", None).hidden == set()
    assert run(monkeypatch, "predict", "x.mp4", "--weights", "x.pth", "--hide", "labels,mask") == 1
    line = "--hide labels,mask: no part 'mask'; the parts are masks, boxes, labels\n"
    assert capsys.readouterr().err.endswith(line)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with configs/demo/tiny.py, in which the command runs."""
    (tmp_path / "configs" / "demo").mkdir(parents=True)
    (tmp_path / "configs" / "demo" / "tiny.py").write_text(
        "model = dict(size=3)\ntrain = dict(seed=1, init_checkpoint='')\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["configs/demo/tiny.py", "demo/tiny.py", "demo/tiny", "configs/demo/tiny"])
def test_a_config_is_found_by_its_path_or_below_configs(project, name):
    assert cli.find_config_file(name).resolve() == project / "configs" / "demo" / "tiny.py"


def test_a_misspelt_config_names_the_nearest(project):
    with pytest.raises(UserError, match=r"demo/tyni: no such config. Did you mean demo/tiny\.py"):
        cli.find_config_file("demo/tyni")


def test_dry_run_prints_the_resolved_config(project, monkeypatch, capsys):
    assert run(monkeypatch, "train", "demo/tiny", "model.size=7", "--dry-run") == 0
    text = capsys.readouterr().out
    assert "model.size = 7" in text
    assert "train.seed = 1" in text


def test_a_misspelt_key_is_refused_with_the_nearest(project, monkeypatch, capsys):
    assert run(monkeypatch, "train", "demo/tiny", "model.sise=7", "--dry-run") == 1
    assert "model.size" in capsys.readouterr().err


def test_eval_without_weights_is_refused(project, monkeypatch, capsys):
    assert run(monkeypatch, "eval", "demo/tiny") == 1
    assert "--weights" in capsys.readouterr().err


def test_several_gpus_start_torchrun(project, monkeypatch):
    class ReplacedError(Exception):
        pass

    def execv(program: str, command: list[str]) -> None:
        raise ReplacedError(program, command)

    monkeypatch.setattr(cli.os, "execv", execv)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(
        sys, "argv", ["l2g", "train", "demo/tiny", "model.size=7", "--gpus", "2", "--resume", "--debug"]
    )
    with pytest.raises(ReplacedError) as replaced:
        cli.main()
    program, command = replaced.value.args
    assert program == sys.executable
    assert "--nproc-per-node=2" in command
    assert command[-6:] == [
        "-m",
        "local2global",
        "train",
        str(Path("configs/demo/tiny.py")),
        "model.size=7",
        "--resume",
    ]


def test_predict_passes_options_and_prints_the_paths(tmp_path, monkeypatch, capsys):
    """End to end with a model that only reports progress."""
    from PIL import Image

    from local2global.app.predict import L2G
    from local2global.app.result_folder import Prediction

    calls = []

    class Model:
        caveat = "identities are matched"

        def predict(
            self, source, output_dir, threshold, classes, max_objects, progress, objects, only_objects, **_
        ) -> Prediction:
            assert objects is None
            assert not only_objects
            calls.append((source.name, threshold, classes, max_objects))
            for done in (1, 2, 3):
                progress(done, None, 2)
            folder = output_dir / source.name
            return Prediction(folder, 3, {"dog": 2}, 1.0)

    def load(weights, device, overrides):
        assert overrides == ["model.tracker=bypass"]
        return Model()

    monkeypatch.setattr(L2G, "from_pretrained", load)
    images = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        images.append(str(tmp_path / folder / "x.png"))
        Image.new("RGB", (8, 6)).save(images[-1])
    options = ["--weights", "w", "--threshold", "0.5", "--classes", "dog, cat", "--max-objects", "4"]
    options += ["model.tracker=bypass", "--output", str(tmp_path / "out")]
    assert run(monkeypatch, "predict", *images, *options) == 0
    assert calls == [(name, 0.5, ["dog", "cat"], 4) for name in ("x", "x-2")]
    text = capsys.readouterr().out
    assert text.startswith("identities are matched")
    assert str(tmp_path / "out" / "x" / "video.mp4") in text
    assert str(tmp_path / "out" / "x-2" / "annotations.json") in text
    assert "objects 2 dog" in text


def opened(inputs: list[str]) -> list[Source]:
    """The sources of the command's inputs."""
    found = predict_command._open(inputs, None, lambda source: source, skip_errors=False)[0]
    return [source for source, _ in found.values()]


def test_sources_of_one_name_get_different_folders(monkeypatch):
    from fractions import Fraction

    def source(name: str, fps: float | None) -> Source:
        return Source(name, Fraction(10), (4, 4), 1, lambda: iter(()))

    monkeypatch.setattr("local2global.app.video.open_source", source)
    names = [s.name for s in opened(["a", "a", "a-2", "a"])]
    assert names[:2] == ["a", "a-2"]
    assert len(set(names)) == 4


def test_numbered_images_of_a_folder_are_one_video(tmp_path, monkeypatch, capsys):
    """The shell expands `shots/*.png` to its files.  Names that differ in more than a number stay separate."""
    from PIL import Image

    def save(names: list[str], size: tuple[int, int] = (8, 6)) -> list[str]:
        for name in names:
            Image.new("RGB", size).save(tmp_path / name)
        return [str(tmp_path / name) for name in names]

    frames = save(["f10.png", "f2.png", "f1.png"])
    [source] = opened(frames)
    assert source.files == tuple(f"{tmp_path.name}/{name}" for name in ("f1.png", "f2.png", "f10.png"))
    assert "3 numbered images are read as one video" in capsys.readouterr().err
    others = save(["dog.png", "cat.png"])
    assert [s.length for s in opened([*frames, *others])] == [3, 1, 1]
    sizes = save(["p1.png"], (8, 6)) + save(["p2.png"], (8, 7))
    assert [s.length for s in opened(sizes)] == [1, 1]


def test_a_user_error_inside_an_interpolation_is_printed_alone(project, monkeypatch, capsys):
    (project / "configs" / "demo" / "lost.py").write_text(
        "from omegaconf import OmegaConf\n"
        "from local2global.errors import UserError\n"
        "def read(path):\n"
        "    raise UserError(f'{path}: no such annotation file')\n"
        "OmegaConf.register_new_resolver('read_for_test', read, replace=True)\n"
        "model = dict(classes='${read_for_test:x.json}')\n"
    )
    assert run(monkeypatch, "train", "demo/lost", "--dry-run") == 1
    assert capsys.readouterr().err == "l2g: x.json: no such annotation file\n"


def test_an_interpolation_without_a_value_is_one_line(project, monkeypatch, capsys):
    (project / "configs" / "demo" / "hole.py").write_text("model = dict(size='${nothing.here}')\n")
    assert run(monkeypatch, "train", "demo/hole", "--dry-run") == 1
    assert capsys.readouterr().err.startswith("l2g: model.size: Interpolation key 'nothing.here' not found")


def test_messages_hold_no_addresses(monkeypatch, capsys):
    def refuse(name: str) -> Path:
        raise UserError(f"{object()} is no config")

    monkeypatch.setattr(cli, "find_config_file", refuse)
    assert run(monkeypatch, "train", "x") == 1
    assert capsys.readouterr().err == "l2g: <object object> is no config\n"


@pytest.mark.parametrize(
    "override", ["train.device=cpu", "+train.x=1", "~dataloader.train", "dataloader.a=1"]
)
def test_predict_refuses_overrides_of_other_parts(monkeypatch, capsys, override):
    assert run(monkeypatch, "predict", "x.mp4", override, "--weights", "w.pth") == 1
    assert f"l2g: {override}: predict takes overrides of the model only" in capsys.readouterr().err


def test_score_vps_writes_json_and_prints_the_columns(monkeypatch, capsys, shared, tmp_path):
    case = shared / "eval_cases" / "vps_short_videos"
    files = ["--truth", case / "gt.json", "--predictions", case / "pred.json"]
    files += ["--truth-maps", case / "maps.npz", "--prediction-maps", case / "maps.npz"]
    written = tmp_path / "new" / "scores.json"
    assert run(monkeypatch, "score", "vps", *map(str, files), "--strict", "--json", str(written)) == 0
    assert json.loads(written.read_text())["VPQ"]["all"] == pytest.approx(41.196565775554134)
    shown = capsys.readouterr().out
    assert "41.20" in shown
    assert "37.95" in shown
    assert run(monkeypatch, "score", "vps", *map(str, files[:-1]), str(tmp_path / "none")) == 1
    assert capsys.readouterr().err.endswith("none: no such folder or .npz of panoptic maps\n")


def test_objects_of_a_file_start_the_only_video(tmp_path, monkeypatch, capsys):
    """The masks reach `predict`; the option without a file, or with two videos, is one line."""
    from PIL import Image

    from local2global.app.predict import L2G
    from local2global.app.result_folder import Prediction

    calls = []

    class Model:
        caveat = None

        def predict(self, source, output_dir, objects, only_objects, **_) -> Prediction:
            calls.append((objects.nonzero().tolist(), only_objects))
            return Prediction(output_dir / source.name, 1, {}, 1.0)

    monkeypatch.setattr(L2G, "from_pretrained", lambda *_: Model())
    video, first = tmp_path / "a.png", tmp_path / "first.png"
    Image.new("RGB", (8, 6)).save(video)
    ids = Image.new("L", (8, 6))
    ids.putpixel((3, 2), 5)
    ids.save(first)
    options = ["--weights", "w", "--only-objects"]
    assert run(monkeypatch, "predict", str(video), *options, "--objects", str(first)) == 0
    assert calls == [([[0, 2, 3]], True)]
    assert run(monkeypatch, "predict", str(video), *options) == 1
    assert "name the objects with --objects" in capsys.readouterr().err
    assert run(monkeypatch, "predict", str(video), str(first), *options, "--objects", str(first)) == 1
    assert "describes one video, 2 are given" in capsys.readouterr().err
