"""Several videos at a time, in several processes: the results are those of one video after the other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import torch

import fake_workers
from fake_stream import Fake
from local2global.app import cli
from local2global.app.batch import predict_batch, processes_for
from local2global.app.predict import L2G
from local2global.app.video import open_source
from local2global.errors import UserError

LENGTHS = {"a": 3, "b": 40, "c": 5, "d": 41}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    return fake_workers.write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, Path]:
    """Four videos that differ in length and content."""
    folder = tmp_path_factory.mktemp("in")
    return {
        name: fake_workers.write_clip(folder / f"{name}.mp4", length, seed)
        for seed, (name, length) in enumerate(LENGTHS.items())
    }


def load_fake() -> L2G:
    return L2G(Fake(), "cpu")


def load_slow(seconds: float = 0.1) -> L2G:
    """A frame takes some time, so that a video still runs when another has ended."""
    model = load_fake()
    stream = model.module.stream

    def slow(*args, **kwargs):
        time.sleep(seconds)
        return stream(*args, **kwargs)

    model.module.stream = slow
    return model


def load_and_die() -> L2G:
    os._exit(9)


def openers(clips: dict[str, Path]) -> dict[str, partial]:
    return {name: partial(open_source, path) for name, path in clips.items()}


def frames_in(folder: Path) -> int:
    """Frames of a complete or interrupted output folder, whose files agree."""
    frames = json.loads((folder / "annotations.json").read_text())["videos"][0]["length"]
    assert open_source(folder / "video.mp4").length == frames
    assert len((folder / "frames.jsonl").read_text().splitlines()) == frames
    return frames


def test_the_results_are_those_of_one_video_after_the_other_and_a_failure_is_isolated(
    monkeypatch, capsys, run_folder, clips, tmp_path
):
    """The whole command; one input does not exist, and the folder of another cannot be made."""
    (tmp_path / "together").mkdir()
    (tmp_path / "together" / "e").write_text("in the way")
    (tmp_path / "e.mp4").write_bytes(clips["a"].read_bytes())
    inputs = [*map(str, clips.values()), str(tmp_path / "e.mp4"), str(tmp_path / "nowhere.mp4")]
    command = ["l2g", "predict", *inputs, "--weights", str(run_folder), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*command, "--output", str(tmp_path / "together"), "--batch"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert printed.out.count("\n  tracks ") == 4
    assert f"4 videos, {sum(LENGTHS.values())} frames in" in printed.out
    lines = [line for line in printed.err.splitlines() if line.startswith("l2g")]
    assert lines[-1] == "l2g: 2 of 6 inputs failed"
    assert any("nowhere.mp4: no such file" in line for line in lines)
    assert any(line.startswith("l2g: e: ") for line in lines)
    model = L2G.from_pretrained(run_folder, "cpu")
    for name, path in clips.items():
        alone = model.predict(path, tmp_path / "alone").folder
        fake_workers.assert_same(tmp_path / "together" / name, alone)


def test_closing_the_generator_stops_running_videos_and_leaves_valid_files(clips, tmp_path):
    """As after an interrupt: one video is complete, the running one stops, the rest never start."""
    seen = []
    videos = openers({name: clips[name] for name in "bacd"})  # b is started before a
    results = predict_batch(
        load_slow(0.5), load_slow, videos, {"output_dir": tmp_path}, 2, lambda *report: seen.append(report)
    )
    with closing(results):
        name, prediction = next(results)
        assert (name, prediction.frames) == ("a", 3)
    assert frames_in(tmp_path / "a") == 3
    assert 0 < frames_in(tmp_path / "b") < LENGTHS["b"]
    assert not (tmp_path / "d").exists(), "never started"
    assert {"a", "b"} <= {name for name, _, _ in seen} <= {"a", "b", "c"}


def test_a_process_that_ends_fails_its_video_with_one_line_and_the_rest_are_done_here(clips, tmp_path):
    options = {"output_dir": tmp_path}
    results = dict(predict_batch(load_fake(), load_and_die, openers(clips), options, 2, print))
    assert results.keys() == clips.keys()
    failed = results.pop("b")  # the second video is the first of the other process
    assert isinstance(failed, UserError)
    assert "--resume" in str(failed)
    assert {name: prediction.frames for name, prediction in results.items()} == {"a": 3, "c": 5, "d": 41}


def test_one_process_is_this_one_and_its_threads_are_given_back(clips, tmp_path):
    threads = torch.get_num_threads()
    results = dict(
        predict_batch(load_fake(), load_and_die, openers(clips), {"output_dir": tmp_path}, 1, print)
    )
    assert {name: prediction.frames for name, prediction in results.items()} == LENGTHS
    assert torch.get_num_threads() == threads


INTERRUPTED = """
import sys
sys.path.insert(0, {tests!r})
from test_batch import load_slow, openers
from local2global.app.batch import predict_batch
from pathlib import Path
if __name__ == "__main__":
    clips = {{name: Path(path) for name, path in {clips!r}.items()}}
    for _ in predict_batch(load_slow(), load_slow, openers(clips), {{"output_dir": {output!r}}}, 2, print):
        pass
"""


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_after_an_interrupt_or_a_kill(clips, tmp_path, kill):
    """After an interrupt the files are valid; after a kill of the command, its processes end too."""
    script = tmp_path / "script.py"
    paths = {name: str(clips[name]) for name in "bd"}
    tests = str(Path(__file__).parent)
    script.write_text(INTERRUPTED.format(tests=tests, clips=paths, output=str(tmp_path / "out")))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, str(Path(tests).parent)])}
    process = subprocess.Popen(
        [sys.executable, "-u", str(script)],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    assert process.stdout is not None
    process.stdout.readline()  # the first progress: a video runs
    if kill == signal.SIGINT:
        os.killpg(process.pid, kill)  # as a terminal does
    else:
        process.kill()
    _, said = process.communicate(timeout=60)  # to its end: no process holds standard output any longer
    assert process.returncode != 0
    assert said.count(b"Traceback") <= (kill == signal.SIGINT), (
        "of the script itself; its processes are silent"
    )
    if kill == signal.SIGINT:
        for folder in (tmp_path / "out").iterdir():
            assert frames_in(folder) < LENGTHS[folder.name]


def test_a_pipe_cannot_be_opened_again_in_another_process(monkeypatch, capsys, run_folder, clips, tmp_path):
    pipe = tmp_path / "camera"
    os.mkfifo(pipe)
    writer = subprocess.Popen(["cp", str(clips["a"]), str(pipe)], stderr=subprocess.DEVNULL)
    arguments = [str(clips["a"]), str(pipe), "--weights", str(run_folder), "--batch"]
    monkeypatch.setattr(sys, "argv", ["l2g", "predict", *arguments, "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        cli.main()
    writer.kill()
    writer.wait()
    assert "camera: a camera, a pipe or an address is read once" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_batch_without_readable_inputs_is_refused(monkeypatch, capsys, tmp_path):
    inputs = [str(tmp_path / "nowhere.mp4")]
    monkeypatch.setattr(sys, "argv", ["l2g", "predict", *inputs, "--batch", "--weights", "any"])
    with pytest.raises(SystemExit):
        cli.main()
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line.split(": ")[-1] for line in lines] == [
        "no such file or folder",
        "none of 1 inputs can be opened",
    ]


def test_an_unknown_class_is_one_line_for_all_videos(monkeypatch, capsys, run_folder, clips, tmp_path):
    inputs = [str(clips["a"]), str(clips["c"]), "--classes", "zebra", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["l2g", "predict", *inputs, "--batch", "--weights", str(run_folder)])
    with pytest.raises(SystemExit):
        cli.main()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("l2g: no class")]
    assert len(lines) == 1
    assert not (tmp_path / "out").exists()


def test_there_are_no_more_processes_than_videos_or_cores():
    assert processes_for(torch.device("cpu"), 1) == 1
    assert 1 <= processes_for(torch.device("cpu"), 100) <= 4
    assert processes_for(torch.device("cuda"), 100) == 3
