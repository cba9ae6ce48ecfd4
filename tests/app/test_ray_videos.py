"""What a worker of `l2g predict --ray` does with one video, and the manifest; no Ray cluster is started."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import torch

from fake_stream import Fake
from fake_workers import assert_same
from local2global.app import cli
from local2global.app.cluster import storage
from local2global.app.cluster.predict import Manifest, name_jobs
from local2global.app.cluster.videos import Job, Settings, VideoWorker
from local2global.app.draw import Look
from local2global.app.predict import L2G
from local2global.app.source import select
from local2global.app.video import VideoWriter, open_source
from local2global.errors import UserError

FILES = ["annotations.json", "frames.jsonl", "results.json", "stream.json", "video.mp4"]


def write_clip(path: Path, frames: int = 6, level: int = 40, step: int = 1) -> Path:
    """A grey video at 10 frames per second that grows brighter by `step`; without, it has a key frame every second."""
    with VideoWriter(path, 10, (64, 96)) as writer:
        for t in range(frames):
            writer.write(torch.full((3, 64, 96), level + step * t, dtype=torch.uint8))
    return path


@pytest.fixture
def model(monkeypatch) -> L2G:
    """The model that every worker loads."""
    model = L2G(Fake(), "cpu")
    monkeypatch.setattr(L2G, "from_pretrained", lambda *_: model)
    monkeypatch.setattr(sys, "argv", ["l2g", "predict"])
    return model


@pytest.fixture
def worker(model, tmp_path):
    """Factory of workers that write to `tmp_path/out` or another address."""

    def build(output: object = None, **settings) -> VideoWorker:
        text = str(output or tmp_path / "out")
        (tmp_path / "out").mkdir(exist_ok=True)
        worker = VideoWorker(Settings(text, "run", command=["l2g", "predict"], **settings))
        worker.load()
        return worker

    return build


@pytest.fixture
def memory():
    """The file system in memory of fsspec."""
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/", recursive=True)


def is_done(worker: VideoWorker, job: Job) -> bool:
    (inspected,) = worker.inspect([job])
    return inspected.entry is not None


def test_outputs_are_those_of_one_process(worker, model, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4")
    alone = model.predict(clip, tmp_path / "alone", save=["csv"]).folder
    entry = worker(options={"save": ("csv",)}).predict(Job(str(clip), "clip"))
    folder = tmp_path / "out" / "clip"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "done.json", "objects.csv"])
    assert_same(folder, alone)
    for file in ("stream.json", "objects.csv"):
        assert (folder / file).read_bytes() == (alone / file).read_bytes(), file
    assert entry["status"] == "done"
    assert entry["frames"] == 6
    assert entry["objects"] == {"person": 1, "dog": 1}
    assert sorted(entry["outputs"]) == sorted([*FILES, "objects.csv"])


def test_a_video_is_done_until_its_content_the_weights_or_a_setting_change(worker, model, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4")
    job = Job(str(clip), "clip")
    assert not is_done(worker(), job)
    worker().predict(job)
    assert is_done(worker(), job)
    os.utime(clip, (1, 1))
    assert is_done(worker(), job), "a new time stamp is no new content"
    assert is_done(worker(), Job(str(clip.rename(tmp_path / "moved.mp4")), "clip")), "nor is a new place"
    clip = write_clip(tmp_path / "moved.mp4", level=90)
    job = Job(str(clip), "clip")
    assert not is_done(worker(), job)
    worker().predict(job)
    assert is_done(worker(), job)
    for changed in (
        {"options": {"threshold": 0.5}},
        {"every": 2},
        {"size": 32},
        {"overrides": ["model.x=1"]},
    ):
        assert not is_done(worker(**changed), job), changed
    model.module.scale.data += 0.5
    del model.fingerprint  # cached
    assert not is_done(worker(), job)


def test_a_folder_without_one_of_its_files_is_made_again(worker, tmp_path):
    job = Job(str(write_clip(tmp_path / "clip.mp4")), "clip")
    worker().predict(job)
    whole = (tmp_path / "out" / "clip" / "results.json").read_bytes()
    (tmp_path / "out" / "clip" / "results.json").write_bytes(whole[:-3])
    assert not is_done(worker(), job)
    worker().predict(job)
    assert (tmp_path / "out" / "clip" / "results.json").read_bytes() == whole
    (tmp_path / "out" / "clip" / "done.json").write_text('{"input": "')
    assert not is_done(worker(), job)


def test_settings_have_one_hash_in_every_process(tmp_path):
    """Sets are written in another order by another process."""
    code = (
        "from local2global.app.cluster.videos import _plain; import json;"
        "from local2global.app.draw import Look;"
        "print(json.dumps(Look('id', frozenset(['masks', 'boxes', 'labels'])), default=_plain))"
    )
    texts = {
        subprocess.check_output([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    }
    assert len(texts) == 1
    assert Look("id", frozenset(["masks"])) != Look("id")


def test_a_file_that_is_no_video_leaves_nothing(worker, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 100)
    job = Job(str(broken), "broken")
    assert [(found.size, found.entry) for found in worker().inspect([job])] == [(800, None)]
    with pytest.raises(UserError, match="this video cannot be read"):
        worker().predict(job)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_error_in_the_middle_leaves_nothing_and_names_no_deleted_folder(worker, tmp_path, monkeypatch):
    write_clip(tmp_path / "clip.mp4")
    source = open_source(tmp_path / "clip.mp4")

    def read(real=source.read):
        for number, frame in enumerate(real()):
            if number == 4:
                raise UserError("clip.mp4: frame 4 is damaged")
            yield frame

    monkeypatch.setattr(
        "local2global.app.cluster.videos.open_source",
        lambda *_: type(source)(source.name, source.fps, source.size, source.length, read, identity="x"),
    )
    with pytest.raises(UserError) as error:
        worker().predict(Job(str(tmp_path / "clip.mp4"), "clip"))
    assert str(error.value) == "clip.mp4: frame 4 is damaged"
    assert list((tmp_path / "out").iterdir()) == []


def test_remote_inputs_and_outputs_go_through_fsspec(worker, model, memory, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4")
    alone = model.predict(clip, tmp_path / "alone").folder
    memory.put_file(str(clip), "/in/clip.mp4")
    (address,) = storage.expand(["memory://in/*.mp4"])
    job = Job(address, "clip")
    for output in ("memory://out", f"file://{tmp_path}/out"):
        worker(output).predict(job)
        for file in FILES:
            content = storage.read_bytes(f"{output}/clip/{file}")
            if file == "stream.json":
                made = json.loads(content)["made"]
                assert made.pop("video") == address
                expected = json.loads((alone / file).read_bytes())["made"]
                assert made == {key: value for key, value in expected.items() if key != "video"}
            elif file != "video.mp4":
                assert content == (alone / file).read_bytes(), file
        assert is_done(worker(output), job)
    memory.pipe_file("/in/clip.mp4", write_clip(tmp_path / "other.mp4", level=99).read_bytes())
    assert not is_done(worker("memory://out"), job)


def test_an_upload_that_fails_leaves_no_folder(worker, memory, tmp_path, monkeypatch):
    """The last file but one cannot be uploaded; the marker would be the last."""
    job = Job(str(write_clip(tmp_path / "clip.mp4")), "clip")
    worker("memory://out").predict(job)
    put, seen = type(memory).put_file, []

    def fail_late(self, source, target, **options):
        seen.append(target)
        if len(seen) == len(FILES):
            raise OSError("the network is down")
        put(self, source, target, **options)

    monkeypatch.setattr(type(memory), "put_file", fail_late)
    with pytest.raises(OSError, match="network"):
        worker("memory://out").predict(job)
    assert not memory.exists("/out/clip")
    assert not any("done.json" in target for target in seen)


def test_a_killed_upload_is_recognised_by_the_missing_marker(memory):
    memory.pipe({"/out/half/stream.json": b"x", "/out/half/video.mp4": b"x", "/out/theirs/video.mp4": b"x"})
    memory.pipe({"/out/whole/video.mp4": b"x", "/out/whole/done.json": b"{}"})
    for name in ("half", "whole", "theirs", "never begun"):
        storage.discard_incomplete(f"memory://out/{name}")
    assert memory.find("/out") == ["/out/theirs/video.mp4", "/out/whole/done.json", "/out/whole/video.mp4"]


@pytest.mark.parametrize("place", ["disk", "memory://out"])
def test_a_folder_of_other_files_is_not_replaced(worker, memory, tmp_path, place):
    """`--output .` beside clip.mp4 and a folder `clip` with its frames."""
    output = str(tmp_path / "out") if place == "disk" else place
    theirs = f"{output}/clip/00001.jpg"
    build = worker(output)
    fsspec.core.url_to_fs(output)[0].makedirs(f"{output}/clip", exist_ok=True)
    storage.write_bytes(theirs, b"theirs")
    with pytest.raises(UserError, match="clip: holds no output of l2g predict, and is not replaced"):
        build.predict(Job(str(write_clip(tmp_path / "clip.mp4")), "clip"))
    assert storage.read_bytes(theirs) == b"theirs"


@pytest.mark.parametrize("content", ["[]", "{}", '{"input": ', "null", "\x00"])
def test_a_damaged_entry_is_no_entry(worker, tmp_path, content):
    job = Job(str(write_clip(tmp_path / "clip.mp4")), "clip")
    worker().predict(job)
    (tmp_path / "out" / "clip" / "done.json").write_text(content)
    assert not is_done(worker(), job)


def test_an_address_may_end_with_a_slash(tmp_path):
    assert storage.absolute("memory://out/") == "memory://out"
    assert storage.absolute(f"{tmp_path}/") == str(tmp_path)


@pytest.mark.parametrize("name", ["...mp4", "clip.l2g-tmp.mp4"])
def test_a_name_that_no_output_folder_can_have_is_refused(model, tmp_path, name):
    """The folder of `...mp4` would be "..", which is that above the output folder."""
    clip = write_clip(tmp_path / "clip.mp4").rename(tmp_path / name)
    (tmp_path / "out").mkdir()
    for predict in (lambda: list(name_jobs([str(clip)])), lambda: model.predict(clip, tmp_path / "out")):
        with pytest.raises(UserError, match=r"which is no name for one\. Rename it"):
            predict()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "out"])
    assert next(iter(name_jobs(["manifest.jsonl.mp4"]))).name == "manifest.jsonl-2"


def test_a_remote_video_is_downloaded_and_hashed_once(worker, memory, tmp_path, monkeypatch):
    memory.pipe("/in/clip.mp4", write_clip(tmp_path / "clip.mp4").read_bytes())
    downloads, hashes, get = [], [], memory.get
    monkeypatch.setattr(
        type(memory), "get", lambda *args, **kwargs: downloads.append(args[1]) or get(*args[1:], **kwargs)
    )
    content_hash = storage.content_hash
    monkeypatch.setattr(storage, "content_hash", lambda path: hashes.append(path) or content_hash(path))
    (inspected,) = worker().inspect([Job("memory://in/clip.mp4", "clip")])
    assert inspected.size == memory.size("/in/clip.mp4")
    worker().predict(inspected.job)
    assert (len(downloads), len(hashes)) == (1, 1)


def test_a_video_that_is_incomplete_has_a_warning_in_its_entry(worker, tmp_path, monkeypatch):
    job = Job(str(write_clip(tmp_path / "clip.mp4")), "clip")
    predict = L2G.predict
    monkeypatch.setattr(L2G, "predict", lambda *a, **k: dataclasses.replace(predict(*a, **k), announced=9))
    assert worker().predict(job)["messages"] == [
        "l2g: clip: the file declares 9 frames, 6 could be read; is it complete?"
    ]


def test_names_are_those_of_one_process(tmp_path):
    """Equal names are numbered in the order of the inputs; a folder of frames keeps its dots."""
    (tmp_path / "v1.5").mkdir()
    inputs = ["/a/clip.mp4", "/b/clip.mp4", "memory://bucket/clip.webm", str(tmp_path / "v1.5")]
    jobs = list(name_jobs(inputs))
    assert [job.name for job in jobs] == ["clip", "clip-2", "clip-3", "v1.5"]
    assert [job.input for job in jobs] == inputs
    with pytest.raises(UserError, match="name the folder"):
        list(name_jobs(["frames/00001.jpg"]))


def test_globs_find_videos_of_all_subfolders(tmp_path, monkeypatch):
    for name in ("b/2.mp4", "a/1.mp4", "a/deep/3.mp4", "a/note.txt", "[x].mp4"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    found = [os.path.relpath(path) for path in storage.expand(["[x].mp4", "**/[0-9].mp4"])]
    assert found == ["[x].mp4", "a/1.mp4", "a/deep/3.mp4", "b/2.mp4"]
    with pytest.raises(UserError, match="no file matches"):
        list(storage.expand(["*.webm"]))
    with pytest.raises(UserError, match="s4://"):
        list(storage.expand(["s4://bucket/*.mp4"]))


def test_pieces_begin_at_key_frames_and_hold_every_frame_once(worker, model, tmp_path):
    """Key frames at 0, 1, 2 and 3 s; pieces of at most 2 s.  A piece is the same as --start and --end."""
    clip = write_clip(tmp_path / "clip.mp4", 35, step=0)
    cut = worker(pieces=2.0)
    found = cut.inspect([Job(str(clip), "clip")])
    assert [(i.job.name, i.job.span, i.size) for i in found] == [
        ("clip-0000", (0.0, 2.0), 20),
        ("clip-0001", (2.0, None), 15),
    ]
    assert [cut.predict(i.job)["frames"] for i in found] == [20, 15]
    alone = model.predict(select(open_source(clip), 2.0), tmp_path / "alone").folder
    assert (tmp_path / "out" / "clip-0001" / "frames.jsonl").read_bytes() == (
        alone / "frames.jsonl"
    ).read_bytes()
    assert all(found.entry for found in cut.inspect([Job(str(clip), "clip")]))
    finer = worker(pieces=0.1).inspect([Job(str(clip), "clip")])
    assert [i.job.span for i in finer] == [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, None)]


def test_warnings_of_a_worker_are_part_of_its_result(worker, tmp_path, monkeypatch):
    import logging

    clip = write_clip(tmp_path / "clip.mp4")

    def warn(*arguments):
        logging.getLogger("local2global.app.sound").warning("l2g: its sound cannot be copied")
        return open_source(*arguments)

    monkeypatch.setattr("local2global.app.cluster.videos.open_source", warn)
    assert worker().predict(Job(str(clip), "clip"))["messages"] == ["l2g: its sound cannot be copied"]


@pytest.mark.parametrize("output", ["memory://out", "local"])
def test_the_manifest_keeps_lines_of_earlier_runs_for_other_videos(output, memory, tmp_path):
    output = str(tmp_path) if output == "local" else output

    def run(**status: str) -> None:
        manifest = Manifest(output)
        for name, state in status.items():
            manifest.add({"input": f"/{name}.mp4", "name": name, "status": state, "outputs": {"a.json": 3}})
            manifest.publish()  # as every minute
        manifest.close()

    run(a="done", b="failed")
    run(b="done", c="failed")
    lines = [json.loads(line) for line in storage.read_bytes(f"{output}/manifest.jsonl").splitlines()]
    assert {line["name"]: line["status"] for line in lines} == {"a": "done", "b": "done", "c": "failed"}
    assert len(lines) == 3
    assert lines[0]["outputs"] == ["a/a.json"]


def test_without_ray_one_line_names_the_extra(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    clip = write_clip(tmp_path / "clip.mp4")
    monkeypatch.setattr(sys, "argv", ["l2g", "predict", str(clip), "--weights", "run", "--ray", "auto"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    assert capsys.readouterr().err == "l2g: --ray needs Ray: pip install 'local2global[cluster]'\n"
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--ray", "auto", "--jsonl", "-"], "--jsonl: not an option of --ray; see docs/cluster.md"),
        (["--ray", "auto", "--resume"], "--resume: not an option of --ray; see docs/cluster.md"),
        (["--ray", "auto", "--only-objects"], "--only-objects: not an option of --ray; see docs/cluster.md"),
        (["--ray", "nowhere"], "--ray nowhere: expected HOST:PORT, local or auto"),
        (["--workers", "2"], "--workers: not an option of one process; see docs/cluster.md"),
        (
            ["--output", "s3://b/o"],
            "--output s3://b/o: one process writes to a disk; other places need --ray",
        ),
        (
            ["--ray", "auto", "--pieces", "9", "--fps", "5"],
            "--pieces cuts at the time stamps of the video, which --fps replaces; choose one",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(monkeypatch, capsys, arguments, line):
    monkeypatch.setattr(sys, "argv", ["l2g", "predict", "clip.mp4", "--weights", "run", *arguments])
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    assert capsys.readouterr().err == f"l2g: {line}\n"
