"""Parallel prediction: results equal sequential ones, failures are isolated, interrupts leave valid files."""

from __future__ import annotations

import json
import sys
import threading
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import torch

from fake_stream import Fake
from local2global.app import cli, predict_command
from local2global.app.batch import predict_batch
from local2global.app.predict import L2G
from local2global.app.result_folder import Prediction
from local2global.app.video import VideoWriter, open_source
from local2global.errors import UserError


@pytest.fixture
def clips(tmp_path) -> list[Path]:
    """Four videos that differ in length and grey level."""
    paths = [tmp_path / "in" / f"{name}.mp4" for name in "abcd"]
    for i, path in enumerate(paths):
        with VideoWriter(path, 12, (64, 96)) as writer:
            for t in range(3 + 2 * i):
                writer.write(torch.full((3, 64, 96), 40 * i + t, dtype=torch.uint8))
    return paths


def predicting(model: L2G, output: Path):
    return partial(model.predict, output_dir=output)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_valid(output: Path) -> None:
    """The first video is complete; the others do not exist or hold the frames done before they stopped."""
    lengths = {"a": 3, "b": 5, "c": 7, "d": 9}
    assert (output / "a").is_dir()
    for folder in output.iterdir():
        frames = json.loads((folder / "annotations.json").read_text())["videos"][0]["length"]
        assert open_source(folder / "video.mp4").length == frames
        assert frames == 3 if folder.name == "a" else frames < lengths[folder.name]


def test_results_equal_sequential_prediction(monkeypatch, clips, tmp_path):
    """Compares the annotations and the frames passed to the encoder; the output of x264 is not deterministic."""
    written: dict[Path, list[bytes]] = {}
    write = VideoWriter.write

    def record(self, frame, time):
        written.setdefault(self.path.relative_to(tmp_path), []).append(frame.numpy().tobytes())
        write(self, frame, time)

    monkeypatch.setattr(VideoWriter, "write", record)
    model, sources = L2G(Fake(), "cpu"), [open_source(path) for path in clips]
    for source in sources:
        model.predict(source, tmp_path / "alone")
    results = dict(predict_batch(predicting(model, tmp_path / "together"), sources))
    lengths = {"a": 3, "b": 5, "c": 7, "d": 9}
    assert {source.name: result.frames for source, result in results.items()} == lengths
    for name, length in lengths.items():
        alone, together = (Path(kind, name, "video.mp4") for kind in ("alone", "together"))
        assert len(written[alone]) == length
        assert written[together] == written[alone]
        tracks = [
            (tmp_path / kind / name / "annotations.json").read_bytes() for kind in ("alone", "together")
        ]
        assert tracks[0] == tracks[1]
    assert files(tmp_path / "together").keys() == files(tmp_path / "alone").keys()


def test_videos_run_concurrently_and_the_model_processes_one_frame_at_a_time(clips, tmp_path):
    """A barrier after the first frame needs two running videos; the model never sees two frames at once."""
    active, counts, barrier = [], [], threading.Barrier(2, timeout=60)

    class Watched(Fake):
        def stream(self, frames, past=None):
            results = super().stream(frames, past)
            while True:
                active.append(threading.get_ident())
                counts.append(len(active))
                predictions = next(results, None)
                active.pop()
                if predictions is None:
                    return
                yield predictions

    model, started = L2G(Watched(), "cpu"), set()

    def wait_for_the_other(source, *_):
        if source.name not in started:
            started.add(source.name)
            barrier.wait()

    sources = [open_source(path) for path in clips[:2]]
    results = predict_batch(predicting(model, tmp_path), sources, concurrency=2, progress=wait_for_the_other)
    assert all(isinstance(result, Prediction) for _, result in results)
    assert set(counts) == {1}


def test_a_failed_video_does_not_affect_the_others(clips, tmp_path):
    model, sources = L2G(Fake(), "cpu"), [open_source(path) for path in clips]
    clips[1].write_bytes(clips[1].read_bytes()[:600])
    results = {
        source.name: result for source, result in predict_batch(predicting(model, tmp_path / "out"), sources)
    }
    assert isinstance(results.pop("b"), UserError)
    assert {name: result.frames for name, result in results.items()} == {"a": 3, "c": 7, "d": 9}
    assert {Path(name).parts[0] for name in files(tmp_path / "out")} == {"a", "c", "d"}


def test_closing_the_generator_stops_running_videos_and_leaves_valid_files(clips, tmp_path):
    """As after an interrupt: the first video is complete, running videos stop, the rest never start."""
    model, sources = L2G(Fake(), "cpu"), [open_source(path) for path in clips]
    resume = threading.Event()

    def hold(source, *_):
        if source.name != "a":
            resume.wait(60)

    results = predict_batch(predicting(model, tmp_path / "out"), sources, concurrency=2, progress=hold)
    with closing(results):
        source, _ = next(results)
        assert source.name == "a"
        threading.Timer(0.3, resume.set).start()
    assert_valid(tmp_path / "out")
    assert not (tmp_path / "out" / "d").exists(), "never started"
    assert not any(t.name.startswith(("l2g-video", "l2g-decode")) for t in threading.enumerate())


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(L2G, "from_pretrained", classmethod(lambda cls, *_: L2G(Fake(), "cpu")))
    monkeypatch.setattr(sys, "argv", ["l2g", "predict", *arguments, "--batch", "--weights", "any"])
    try:
        cli.main()
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def test_the_command_reports_each_video_and_the_total(monkeypatch, capsys, clips, tmp_path):
    assert run(monkeypatch, *map(str, clips), "--output", str(tmp_path / "out")) == 0
    output = capsys.readouterr().out
    assert output.count("\n  tracks ") == 4
    assert "4 videos, 24 frames in" in output


def test_the_command_fails_after_all_other_videos(monkeypatch, capsys, clips, tmp_path):
    clips[2].write_bytes(b"")
    inputs = [*map(str, clips), str(tmp_path / "nowhere.mp4")]
    assert run(monkeypatch, *inputs, "--output", str(tmp_path / "out")) == 1
    printed = capsys.readouterr()
    assert "3 videos, 17 frames in" in printed.out
    lines = printed.err.strip().splitlines()
    assert [line.split(": ")[-1] for line in lines] == [
        "this file is empty",
        "no such file or folder",
        "2 of 5 inputs failed",
    ]


def test_a_batch_without_readable_inputs_is_refused(monkeypatch, capsys, tmp_path):
    assert run(monkeypatch, str(tmp_path / "nowhere.mp4")) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line.split(": ")[-1] for line in lines] == [
        "no such file or folder",
        "none of 1 inputs can be opened",
    ]


def test_running_videos_stop_when_reporting_fails(monkeypatch, clips, tmp_path):
    """As after a broken pipe: running videos stop even while the exception is referenced."""
    resume = threading.Event()

    write = VideoWriter.write

    def wait(self, frame, time):
        """Holds the other videos outside of the model's lock: the first video has three frames."""
        if self.count == 3:
            resume.wait(60)
        write(self, frame, time)

    def broken(*_):
        threading.Timer(0.3, resume.set).start()
        raise BrokenPipeError

    monkeypatch.setattr(VideoWriter, "write", wait)
    monkeypatch.setattr(predict_command, "_report", broken)
    monkeypatch.setattr(L2G, "from_pretrained", classmethod(lambda cls, *_: L2G(Fake(), "cpu")))
    arguments = [
        "predict",
        *map(str, clips),
        "--output",
        str(tmp_path / "out"),
        "--batch",
        "--weights",
        "any",
    ]
    monkeypatch.setattr(sys, "argv", ["l2g", *arguments, "--debug"])
    with pytest.raises((BrokenPipeError, SystemExit)) as caught:
        cli.main()
    assert caught.tb is not None  # the traceback keeps the generator referenced
    assert_valid(tmp_path / "out")
