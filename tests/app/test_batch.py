"""Many videos at a time: the files of one by one, failures apart, an interrupt that leaves nothing."""

from __future__ import annotations

import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
import torch

from fake_stream import Fake
from local2global.app import cli
from local2global.app.batch import predict_batch
from local2global.app.predict import L2G, Prediction
from local2global.app.video import VideoWriter, open_source
from local2global.errors import UserError


@pytest.fixture
def clips(tmp_path) -> list[Path]:
    """Four videos of different length and grey."""
    paths = [tmp_path / "in" / f"{name}.mp4" for name in "abcd"]
    for i, path in enumerate(paths):
        with VideoWriter(path, 12, (64, 96)) as writer:
            for t in range(3 + 2 * i):
                writer.write(torch.full((3, 64, 96), 40 * i + t, dtype=torch.uint8))
    return paths


def predicting(model: L2G, output: Path):
    return lambda source, advance: model.predict(source, output, progress=advance)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_files_are_those_of_one_by_one(monkeypatch, clips, tmp_path):
    """Tracks byte for byte, and the frames given to the encoder: x264 itself is not the same twice."""
    written: dict[Path, list[bytes]] = {}
    write = VideoWriter.write

    def noted(self, frame):
        written.setdefault(self.path.relative_to(tmp_path), []).append(frame.numpy().tobytes())
        write(self, frame)

    monkeypatch.setattr(VideoWriter, "write", noted)
    model, sources = L2G(Fake(), "cpu"), [open_source(path) for path in clips]
    for source in sources:
        model.predict(source, tmp_path / "alone")
    found = dict(predict_batch(predicting(model, tmp_path / "together"), sources))
    lengths = {"a": 3, "b": 5, "c": 7, "d": 9}
    assert {source.name: result.frames for source, result in found.items()} == lengths
    for name, length in lengths.items():
        alone, together = (Path(kind, name, "video.mp4") for kind in ("alone", "together"))
        assert len(written[alone]) == length
        assert written[together] == written[alone]
        tracks = [(tmp_path / kind / name / "tracks.json").read_bytes() for kind in ("alone", "together")]
        assert tracks[0] == tracks[1]
    assert files(tmp_path / "together").keys() == files(tmp_path / "alone").keys()


def test_videos_are_under_way_together_and_the_model_takes_turns(clips, tmp_path):
    """The first frames of two videos are only done when both are there; nobody meets anybody in the model."""
    inside, met, both = [], [], threading.Barrier(2, timeout=20)

    class Watched(Fake):
        def stream(self, frames):
            results = super().stream(frames)
            while True:
                inside.append(threading.get_ident())
                met.append(len(inside))
                predictions = next(results, None)
                inside.pop()
                if predictions is None:
                    return
                yield predictions

    model, begun = L2G(Watched(), "cpu"), set()

    def wait_for_the_other(source):
        if source.name not in begun:
            begun.add(source.name)
            both.wait()

    sources = [open_source(path) for path in clips[:2]]
    results = predict_batch(predicting(model, tmp_path), sources, together=2, progress=wait_for_the_other)
    assert all(isinstance(result, Prediction) for _, result in results)
    assert set(met) == {1}


def test_a_video_that_fails_takes_no_other_with_it(clips, tmp_path):
    model, sources = L2G(Fake(), "cpu"), [open_source(path) for path in clips]
    clips[1].write_bytes(clips[1].read_bytes()[:600])
    found = {
        source.name: result for source, result in predict_batch(predicting(model, tmp_path / "out"), sources)
    }
    assert isinstance(found.pop("b"), UserError)
    assert {name: result.frames for name, result in found.items()} == {"a": 3, "c": 7, "d": 9}
    assert {Path(name).parts[0] for name in files(tmp_path / "out")} == {"a", "c", "d"}


def test_whoever_stops_reading_leaves_whole_videos_or_none(clips, tmp_path):
    """As an interrupt does: the first video ends, those under way stop, the rest never begin."""
    model, sources = L2G(Fake(), "cpu"), [open_source(path) for path in clips]
    go_on = threading.Event()

    def hold(source):
        if source.name != "a":
            go_on.wait(20)

    results = predict_batch(predicting(model, tmp_path / "out"), sources, together=2, progress=hold)
    with closing(results):
        source, _ = next(results)
        assert source.name == "a"
        threading.Timer(0.3, go_on.set).start()
    assert sorted(files(tmp_path / "out")) == ["a/tracks.json", "a/video.mp4"]
    assert not any(t.name.startswith(("l2g-video", "l2g-decode")) for t in threading.enumerate())


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(L2G, "from_pretrained", classmethod(lambda cls, *_: L2G(Fake(), "cpu")))
    monkeypatch.setattr(sys, "argv", ["l2g", "predict", *arguments, "--batch", "--weights", "any"])
    try:
        cli.main()
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def test_the_command_reports_each_video_and_the_whole(monkeypatch, capsys, clips, tmp_path):
    assert run(monkeypatch, *map(str, clips), "--output", str(tmp_path / "out")) == 0
    said = capsys.readouterr().out
    assert said.count("\n  tracks ") == 4
    assert "4 videos, 24 frames in" in said


def test_the_command_fails_after_the_others_are_done(monkeypatch, capsys, clips, tmp_path):
    clips[2].write_bytes(b"")
    given = [*map(str, clips), str(tmp_path / "nowhere.mp4")]
    assert run(monkeypatch, *given, "--output", str(tmp_path / "out")) == 1
    said = capsys.readouterr()
    assert "3 videos, 17 frames in" in said.out
    lines = said.err.strip().splitlines()
    assert [line.split(": ")[-1] for line in lines] == [
        "this file is empty",
        "no such file or folder",
        "2 of 5 inputs failed",
    ]


def test_a_batch_of_which_nothing_opens_says_so(monkeypatch, capsys, tmp_path):
    assert run(monkeypatch, str(tmp_path / "nowhere.mp4")) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line.split(": ")[-1] for line in lines] == [
        "no such file or folder",
        "none of 1 inputs can be opened",
    ]


def test_nothing_goes_on_when_the_report_cannot_be_written(monkeypatch, clips, tmp_path):
    """As when the reader of a pipe has gone: the videos under way stop although somebody holds the error."""
    go_on = threading.Event()

    class Slow(Fake):
        def stream(self, frames):
            for number, predictions in enumerate(super().stream(frames)):
                if number == 3:  # behind the end of the first video
                    go_on.wait(20)
                yield predictions

    def broken(_):
        threading.Timer(0.3, go_on.set).start()
        raise BrokenPipeError

    monkeypatch.setattr(cli, "_report", broken)
    monkeypatch.setattr(L2G, "from_pretrained", classmethod(lambda cls, *_: L2G(Slow(), "cpu")))
    given = ["predict", *map(str, clips), "--output", str(tmp_path / "out"), "--batch", "--weights", "any"]
    monkeypatch.setattr(sys, "argv", ["l2g", *given, "--debug"])
    with pytest.raises((BrokenPipeError, SystemExit)) as held:
        cli.main()
    assert held.tb is not None  # its frames, and what they hold, are alive
    assert sorted(files(tmp_path / "out")) == ["a/tracks.json", "a/video.mp4"]
