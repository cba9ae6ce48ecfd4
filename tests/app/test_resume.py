"""`--resume`: after a kill or an interrupt, the results are those of an uninterrupted run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fake_run_folder
import fake_workers
from local2global.app.predict import L2G
from local2global.app.result_folder import finish
from local2global.app.video import VideoWriter
from local2global.errors import UserError
from local2global.lazy import instantiate, load_config, save_resolved
from local2global.weights.checkpoint import save_checkpoint

TINY = Path(__file__).parents[2] / "configs" / "common" / "models" / "l2g_tiny.py"
FILES = ["annotations.json", "frames.jsonl", "results.json", "stream.json"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a run with random weights; every slot is reported, so that every difference shows."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    config = load_config(TINY, ["model.test_size=[64,96]", "model.threshold=0.0"])
    save_resolved(config, folder / "config.yaml")
    save_checkpoint(folder / "model_final.pth", {"model": instantiate(config.model).state_dict()})
    return folder


@pytest.fixture(scope="module")
def model(run) -> L2G:
    return L2G.from_pretrained(run, "cpu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("in") / "clip.mp4"
    generator = torch.Generator().manual_seed(0)
    with VideoWriter(path, 12, (64, 96)) as writer:
        for _ in range(30):
            blocks = torch.randint(0, 256, (3, 8, 12), dtype=torch.uint8, generator=generator)
            writer.write(blocks.repeat_interleave(8, 1).repeat_interleave(8, 2))
    return path


@pytest.fixture(scope="module")
def whole(model, clip, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run."""
    return model.predict(clip, tmp_path_factory.mktemp("whole")).folder


def assert_same(folder: Path, whole: Path) -> None:
    assert (folder / "stream.json").read_bytes() == (whole / "stream.json").read_bytes()
    fake_workers.assert_same(folder, whole)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "video.mp4"])


def interrupt_at(frame: int):
    def progress(done: int, *_) -> None:
        if done == frame:
            raise KeyboardInterrupt

    return progress


def interrupted(model: L2G, clip: Path, output: Path, frame: int = 7) -> Path:
    with pytest.raises(KeyboardInterrupt):
        model.predict(clip, output, progress=interrupt_at(frame))
    return output / clip.stem


KILLED = """
import os, signal, torch
from local2global.app import checkpoint
from local2global.app.predict import L2G
torch.set_num_threads({threads})
checkpoint.EVERY = 5
def kill(done, *_):
    if done == 18:
        os.kill(os.getpid(), signal.SIGKILL)
L2G.from_pretrained({run!r}, "cpu").predict({clip!r}, {out!r}, progress=kill)
"""


def test_a_killed_run_continues_from_its_last_checkpoint(model, run, clip, whole, tmp_path, monkeypatch):
    code = KILLED.format(threads=torch.get_num_threads(), run=str(run), clip=str(clip), out=str(tmp_path))
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    folder = tmp_path / "clip"
    assert len((folder / "frames.jsonl").read_text().splitlines()) == 18
    with (folder / "frames.jsonl").open("a") as file:
        file.write('{"index": 18, "ti')
    segmented = []
    step = type(model.start((64, 96))).step
    monkeypatch.setattr(
        "local2global.app.stream.Stream.step", lambda self, frame: segmented.append(1) or step(self, frame)
    )
    model.predict(clip, tmp_path, resume=True)
    assert len(segmented) == 30 - 15, "the frames before the checkpoint are not segmented again"
    assert_same(folder, whole)


def test_an_interrupted_run_continues_from_its_last_frame_and_may_be_interrupted_again(
    model, clip, whole, tmp_path
):
    folder = interrupted(model, clip, tmp_path, 7)
    assert len((folder / "frames.jsonl").read_text().splitlines()) == 7
    with pytest.raises(KeyboardInterrupt):
        model.predict(clip, tmp_path, progress=interrupt_at(3), resume=True)
    assert len((folder / "frames.jsonl").read_text().splitlines()) == 7, "frames 3 to 6 are still known"
    with pytest.raises(KeyboardInterrupt):
        model.predict(clip, tmp_path, progress=interrupt_at(19), resume=True)
    model.predict(clip, tmp_path, resume=True)
    assert_same(folder, whole)


def test_a_complete_folder_stays_as_it_is_and_an_empty_one_is_filled(model, clip, whole, tmp_path):
    first = model.predict(clip, tmp_path, resume=True)
    assert_same(first.folder, whole)
    before = (first.folder / "video.mp4").stat().st_mtime_ns
    again = model.predict(clip, tmp_path, resume=True)
    assert (again.frames, again.objects) == (first.frames, first.objects)
    assert (first.folder / "video.mp4").stat().st_mtime_ns == before


def test_without_resume_the_video_starts_again(model, clip, whole, tmp_path):
    folder = interrupted(model, clip, tmp_path)
    model.predict(clip, tmp_path)
    assert_same(folder, whole)


def test_another_source_other_weights_and_other_options_are_refused(model, run, clip, tmp_path):
    folder = interrupted(model, clip, tmp_path / "out")
    before = (folder / "frames.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"--resume: .*clip was made with other options"):
        model.predict(clip, tmp_path / "out", resume=True, max_objects=1)
    other = L2G.from_pretrained(run, "cpu")
    with torch.no_grad():
        next(other._module.parameters()).add_(1)
    with pytest.raises(UserError, match=r"--resume: .*clip was made with other weights"):
        other.predict(clip, tmp_path / "out", resume=True)
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"--resume: .*clip was made with another source"):
        model.predict(tmp_path / "clip.mp4", tmp_path / "out", resume=True)
    assert (folder / "frames.jsonl").read_bytes() == before


@pytest.mark.parametrize("damage", ["state", "record", "run"])
def test_a_damaged_folder_is_refused_in_one_line(model, clip, tmp_path, damage):
    folder = interrupted(model, clip, tmp_path)
    if damage == "state":
        path = folder / "state.safetensors"
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "record":
        path = folder / "frames.jsonl"
        path.write_text("".join(path.read_text().splitlines(True)[:4]))
    else:
        path = folder / "stream.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "run"}))
    with pytest.raises(
        UserError, match=rf"{path if damage != 'run' else folder}.* run without --resume"
    ) as error:
        model.predict(clip, tmp_path, resume=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "message"), [(["a.jpg"], "names 1 frames, but frames.jsonl has 20"), (["."], "damaged")]
)
def test_finish_refuses_names_that_do_not_fit_the_record(tmp_path, names, message):
    folder = fake_run_folder.write_folder(
        tmp_path / "run", fake_run_folder.moving(), fake_run_folder.write_source(tmp_path / "clip.mp4", 20)
    )
    content = json.loads((folder / "stream.json").read_text())
    content["video"]["file_names"] = names
    (folder / "stream.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        finish(folder, ["png"])
