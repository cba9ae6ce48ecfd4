"""`L2G`: streaming, the files of `predict` and weights."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from fake_stream import CLASSES, Fake
from local2global.app.predict import L2G
from local2global.app.result_folder import finish
from local2global.app.video import VideoWriter, open_source
from local2global.errors import UserError
from local2global.lazy import instantiate, load_config, save_resolved
from local2global.weights.checkpoint import save_checkpoint

CONFIGS = Path(__file__).parents[2] / "configs"


FILES = ["annotations.json", "frames.jsonl", "results.json", "stream.json", "video.mp4"]
INTERRUPTED = sorted([*FILES, "state.safetensors"])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def threads_alive() -> bool:
    """Whether a thread of a stream is alive."""
    return any(t.name.startswith("l2g-") for t in threading.enumerate())


@pytest.fixture
def model() -> L2G:
    return L2G(Fake(), "cpu")


@pytest.fixture
def clip(tmp_path) -> Path:
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, 12, (64, 96)) as writer:
        for _ in range(6):
            writer.write(torch.full((3, 64, 96), 90, dtype=torch.uint8))
    return path


# --- Streaming ---


def test_masks_have_the_size_of_the_source_and_inputs_the_size_of_the_model(model, clip):
    results = list(model.stream(clip))
    assert [r.index for r in results] == list(range(6))
    assert all(r.masks.shape[1:] == (64, 96) for r in results)
    assert set(model._module.read) == {(3, 32, 48)}
    assert [r.ids.tolist() for r in results[:2]] == [[0, 1], [0]]
    left = results[0].masks[0]
    assert left[:, :47].all()
    assert not left[:, 49:].any()


def test_frames_of_an_iterable_are_read_on_demand(model):
    read = []

    def camera():
        for t in range(10**9):
            read.append(t)
            yield torch.zeros(3, 40, 60, dtype=torch.uint8)

    stream = model.stream(camera())
    for t in range(3):
        assert next(stream).index == t
        assert read == list(range(t + 1))
    stream.close()


def test_an_empty_source_has_no_results(model):
    assert list(model.stream([])) == []


def test_streaming_does_not_disable_autograd_in_the_caller(model, clip):
    stream = model.stream(clip)
    next(stream)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    stream.close()


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({}, [0, 1]),
        ({"threshold": 0.9}, [0]),
        ({"threshold": 0.01}, [0, 1, 2]),
        ({"classes": ["Person"]}, [1]),
        ({"classes": ["person", "dog"]}, [0, 1]),
        ({"max_objects": 1}, [0]),
    ],
)
def test_filters_select_the_reported_objects(model, clip, options, ids):
    assert next(model.stream(clip, **options)).ids.tolist() == ids


def test_a_misspelt_class_is_refused_before_streaming(model, clip):
    with pytest.raises(UserError, match=r"'persn'.*'person'"):
        model.stream(clip, classes=["persn"])


# --- Files ---


def test_the_annotated_video_has_the_rate_size_and_length_of_the_source(model, clip, tmp_path):
    seen = []
    prediction = model.predict(clip, tmp_path / "out", progress=lambda *state: seen.append(state))
    assert prediction.video == tmp_path / "out" / "clip" / "video.mp4"
    assert prediction.frames == 6
    written = open_source(prediction.video)
    assert (written.fps, written.size, written.length) == (12, (64, 96), 6)
    assert seen[0] == (1, 6, 2)
    assert seen[-1] == (6, 6, 1)
    assert names(prediction.folder) == FILES
    frame = next(iter(written)).float()
    assert (frame[:, 50, 20] - 90).abs().max() > 15, "inside the dog"
    assert (frame[:, 50, 80] - 90).abs().max() < 6, "outside everything"


def test_fewer_frames_than_declared_are_reported(model, clip, tmp_path, capsys):
    from local2global.app.predict_command import _report

    whole = open_source(clip)
    _report(model.predict(whole, tmp_path / "out"))
    assert capsys.readouterr().err == ""
    _report(model.predict(dataclasses.replace(whole, length=whole.length + 3), tmp_path / "out"))
    warning = f"declares {whole.length + 3} frames, {whole.length} could be read; is it complete?"
    assert warning in capsys.readouterr().err


def test_annotations_contain_the_streamed_masks(model, clip, tmp_path):
    """Annotation ids are slots + 1; frames on which an object was not reported have no mask."""
    prediction = model.predict(clip, tmp_path / "out")
    assert prediction.objects == {"dog": 1, "person": 1}
    content = json.loads(prediction.tracks.read_text())
    video = {"id": 1, "width": 96, "height": 64, "length": 6, "name": "clip", "fps": 12.0}
    assert content["videos"] == [{**video, "file_names": [f"clip/{t:05d}.jpg" for t in range(6)]}]
    assert content["categories"] == CLASSES
    tracks = content["annotations"]
    assert [(t["id"], t["category_id"], t["video_id"]) for t in tracks] == [(1, 9, 1), (2, 5, 1)]
    assert tracks[0]["score"] > tracks[1]["score"] > 0
    assert [rle is None for rle in tracks[1]["segmentations"]] == [False, True] * 3
    for t, result in enumerate(model.stream(clip)):
        masks = dict(zip(result.ids.tolist(), result.masks, strict=True))
        for track in tracks:
            rle = track["segmentations"][t]
            assert (rle is not None) == (track["id"] - 1 in masks)
            if rle is not None:
                mask = torch.from_numpy(coco_mask.decode(rle)).bool()
                assert torch.equal(mask, masks[track["id"] - 1])
                assert track["areas"][t] == int(mask.sum())


def test_tracks_follow_the_class_filter(model, clip, tmp_path):
    prediction = model.predict(clip, tmp_path / "out", classes=["person"])
    tracks = json.loads(prediction.tracks.read_text())["annotations"]
    assert [(t["id"], t["category_id"]) for t in tracks] == [(2, 5)]


def test_a_video_without_objects_is_written(model, clip, tmp_path):
    prediction = model.predict(clip, tmp_path / "out", threshold=1.0)
    assert json.loads(prediction.tracks.read_text())["annotations"] == []
    assert open_source(prediction.video).length == 6


def damaged_frames(folder: Path, first: int) -> Path:
    """A folder of three frames that are truncated from index `first` on."""
    folder.mkdir()
    for t in range(3):
        path = folder / f"{t}.jpg"
        Image.fromarray(torch.randint(0, 255, (64, 96, 3), dtype=torch.uint8).numpy()).save(path)
        if t >= first:
            path.write_bytes(path.read_bytes()[:900])
    return folder


def test_a_failure_on_the_first_frame_leaves_no_files_and_no_threads(model, tmp_path):
    frames = damaged_frames(tmp_path / "frames", 0)
    with pytest.raises(UserError, match=r"0\.jpg"):
        model.predict(frames, tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError):
        model.predict(frames, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == [], "an existing folder is not removed"
    assert not threads_alive()


def test_a_later_failure_leaves_valid_files_of_the_frames_done(model, tmp_path):
    frames = damaged_frames(tmp_path / "frames", 2)
    folder = tmp_path / "out" / "frames"
    with pytest.raises(UserError, match=rf"2\.jpg.*; the \d frames done are in {folder}"):
        model.predict(frames, tmp_path / "out")
    assert names(folder) == INTERRUPTED
    content = json.loads((folder / "annotations.json").read_text())
    done = content["videos"][0]["length"]
    assert 1 <= done <= 2
    assert content["videos"][0]["file_names"] == ["frames/0.jpg", "frames/1.jpg"][:done]
    assert open_source(folder / "video.mp4").length == done
    assert not threads_alive()


def test_an_interrupt_leaves_valid_files_of_the_frames_done(model, clip, tmp_path, caplog):
    def interrupt(done: int, *_) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.predict(clip, tmp_path, progress=interrupt)
    assert caplog.messages == [f"l2g: interrupted: the 4 frames done are in {tmp_path / 'clip'}"]
    assert names(tmp_path / "clip") == INTERRUPTED
    assert open_source(tmp_path / "clip" / "video.mp4").length == 4
    results = json.loads((tmp_path / "clip" / "results.json").read_text())
    assert {len(track["segmentations"]) for track in results} == {4}


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from fake_stream import Fake
from local2global.app.predict import L2G
def kill(done, *_):
    if done == 40:
        os.kill(os.getpid(), signal.SIGKILL)
L2G(Fake(), "cpu").predict({clip!r}, {out!r}, progress=kill)
"""


def test_a_killed_predict_is_finished_from_its_record(model, tmp_path):
    """After kill -9 the partial video plays, and `finish` writes the other files."""
    with VideoWriter(tmp_path / "clip.mp4", 10, (64, 96)) as writer:
        for t in range(60):
            writer.write(torch.full((3, 64, 96), 4 * t, dtype=torch.uint8))
    code = KILLED.format(
        tests=str(Path(__file__).parents[1]), clip=str(tmp_path / "clip.mp4"), out=str(tmp_path / "out")
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -signal.SIGKILL
    folder = tmp_path / "out" / "clip"
    assert names(folder) == [".lock", "frames.jsonl", "state.safetensors", "stream.json", "video.partial.mp4"]
    assert sum(1 for _ in open_source(folder / "video.partial.mp4")) > 10
    with (folder / "frames.jsonl").open("a") as file:
        file.write('{"index": 40, "ti')
    prediction = finish(folder)
    assert (prediction.frames, prediction.objects) == (40, {"dog": 1, "person": 1})
    assert names(folder) == INTERRUPTED
    assert 10 < open_source(folder / "video.mp4").length <= 40
    whole = model.predict(tmp_path / "clip.mp4", tmp_path / "whole")
    assert (folder / "frames.jsonl").read_text().splitlines()[:40] == (
        whole.folder / "frames.jsonl"
    ).read_text().splitlines()[:40]


def test_a_disk_without_room_stops_predict_with_the_frames_done(model, clip, tmp_path, monkeypatch):
    """Free space is checked before each frame, so that the files of the finished frames still fit."""
    free = iter([1 << 30] * 4 + [1 << 20] * 99)  # the first is for the state before frame 0
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=next(free)))
    with pytest.raises(UserError, match=r"frame 3 needs .* has 1\.0 MB left.*; the 3 frames done are in"):
        model.predict(clip, tmp_path)
    assert names(tmp_path / "clip") == INTERRUPTED
    assert len((tmp_path / "clip" / "frames.jsonl").read_text().splitlines()) == 3
    assert open_source(tmp_path / "clip" / "video.mp4").length == 3


@pytest.mark.parametrize(
    ("deleted", "rest"), [(False, "3 frames are done, continue with --resume"), (True, "were deleted")]
)
def test_a_full_disk_or_a_deleted_folder_is_named_also_if_no_file_can_be_finished(
    model, clip, tmp_path, monkeypatch, deleted, rest
):
    """The error of the files that are written after an error used to hide it."""
    write, count = VideoWriter.write, itertools.count()

    def fail(writer, *frame):
        if next(count) < 2:
            return write(writer, *frame)
        if deleted:
            shutil.rmtree(tmp_path / "clip")
        raise OSError(errno.ENOSPC, "No space left on device", str(writer.partial))

    def cannot(*_):
        raise UserError("video.partial.mp4: this video cannot be read")

    monkeypatch.setattr(VideoWriter, "write", fail)
    monkeypatch.setattr("local2global.app.result_folder.finish_video", cannot)
    with pytest.raises(UserError, match=rf": cannot be written \(No .*; .*{rest}$"):
        model.predict(clip, tmp_path)


def test_a_folder_is_written_by_one_run_at_a_time(model, clip, tmp_path):
    refused = []

    def predict_again(*_) -> None:
        with pytest.raises(UserError, match=r"process \d+ on .* writes to this folder") as error:
            model.predict(clip, tmp_path)
        refused.append(error)

    prediction = model.predict(clip, tmp_path, progress=predict_again)
    assert len(refused) == prediction.frames == open_source(prediction.video).length == 6


def test_formats_are_written_at_the_end_and_more_of_them_later(model, clip, tmp_path):
    prediction = model.predict(clip, tmp_path, save=["csv", "crops"])
    folder = prediction.folder
    assert [path.name for path in prediction.saved] == ["objects.csv", "crops"]
    assert names(folder) == sorted([*FILES, "objects.csv", "crops"])
    crop = Image.open(folder / "crops" / "0" / "00005.png")
    assert (crop.mode, crop.size) == ("RGBA", (48, 64))
    later = finish(folder, ["mot"], open_source(clip))
    assert [path.name for path in later.saved] == ["mot.txt", "objects.csv", "crops"]
    with pytest.raises(UserError, match="crops need the frames of the video"):
        finish(folder)
    model.predict(clip, tmp_path)
    assert names(folder) == FILES, "files of the earlier run are deleted"


def test_crops_of_a_source_that_is_read_once_are_refused(model, clip, tmp_path):
    """A camera or a pipe would have other frames the second time."""
    camera = dataclasses.replace(open_source(clip), identity=None)
    with pytest.raises(UserError, match="crops read the frames twice"):
        model.predict(camera, tmp_path / "out", save=["crops"])
    assert not (tmp_path / "out").exists()
    folder = model.predict(camera, tmp_path / "out", save=["csv"]).folder
    with pytest.raises(UserError, match="crops need the frames of the video"):
        finish(folder, ["crops"], camera)


def test_an_unknown_format_is_refused_before_the_first_frame(model, clip, tmp_path):
    with pytest.raises(UserError, match="--save: no format 'gif'"):
        model.predict(clip, tmp_path / "out", save=["gif"])
    assert not (tmp_path / "out").exists()


def test_an_interrupt_leaves_the_optional_formats_of_the_frames_done(model, clip, tmp_path):
    def interrupt(done: int, *_) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.predict(clip, tmp_path, progress=interrupt, save=["png", "crops"])
    assert len(list((tmp_path / "clip" / "png").iterdir())) == 4
    assert len(list((tmp_path / "clip" / "crops" / "0").iterdir())) == 4


def test_the_summary_lists_when_objects_were_seen(model, clip, tmp_path, capsys):
    """A dog on all six frames at 12 frames/s; a person on the frames 0, 2 and 4."""
    from local2global.app.predict_command import _report

    prediction = model.predict(clip, tmp_path, save=["mot"])
    assert [(s.id, s.name, round(s.first, 3), round(s.last, 3)) for s in prediction.seen] == [
        (0, "dog", 0.0, 0.417),
        (1, "person", 0.0, 0.333),
    ]
    _report(prediction)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:4] == [
        "objects 1 dog, 1 person",
        "dog    #0   0:00.00 - 0:00.42",
        "person #1   0:00.00 - 0:00.33",
    ]
    assert lines[-1] == f"saved   {prediction.folder / 'mot.txt'}"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"threshold": 0.99}, "nothing above threshold 0.99; the best score was 0.95"),
        ({"threshold": 0.99, "classes": ["person"]}, "nothing above threshold 0.99; the best score was 0.73"),
    ],
)
def test_the_summary_of_no_objects_names_the_best_score(model, clip, tmp_path, capsys, options, line):
    """Sigmoid of the logits 3 (dog) and 1 (person)."""
    from local2global.app.predict_command import _report

    prediction = model.predict(clip, tmp_path, **options)
    _report(prediction)
    assert f"objects {line}\n" in capsys.readouterr().out
    _report(finish(prediction.folder))
    assert "objects nothing above threshold 0.99\n" in capsys.readouterr().out


def test_finish_needs_a_record(tmp_path):
    with pytest.raises(UserError, match=r"no frames\.jsonl and stream\.json"):
        finish(tmp_path)


def test_outputs_are_accepted_by_data_check_and_score(model, clip, tmp_path):
    """Scored against itself, `annotations.json` gives AP 1 for both results."""
    from local2global.data.check import check_dataset
    from local2global.evaluation.ytvis import score_files

    frames = tmp_path / "shots"
    frames.mkdir()
    for t, frame in enumerate(open_source(clip)):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(frames / f"{t}.png")
    prediction = model.predict(frames, tmp_path / "out")
    report = check_dataset(prediction.tracks, tmp_path)
    assert [str(finding) for finding in report.errors] == []
    scores = score_files(prediction.tracks, prediction.folder / "results.json")
    assert scores.stats["AP"] == pytest.approx(1.0)


def test_closing_a_stream_stops_the_decoder(model, clip):
    stream = model.stream(clip)
    next(stream)
    stream.close()
    assert not threads_alive()


# --- Weights ---


def test_weights_without_config_are_refused(tmp_path):
    save_checkpoint(tmp_path / "w.pth", {"model": {"weight": torch.zeros(1)}})
    with pytest.raises(UserError, match=r"config\.yaml"):
        L2G.from_pretrained(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("device", "problem"),
    [
        ("toaster", "no such kind of device"),
        ("cuda:99", r"torch sees \d+ GPUs here; use cpu"),
        ("meta", "this torch cannot compute on it"),
        ("xpu", "this torch cannot compute on it"),
        ("hpu", "this torch cannot compute on it"),
    ],
)
def test_an_unavailable_device_is_refused(device, problem):
    with pytest.raises(UserError, match=f"^device {device}: {problem}"):
        L2G(Fake(), device)


def test_an_output_folder_that_cannot_be_created_is_refused(model, clip, tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(
        UserError, match=r"cannot be created \(Not a directory\)\. Choose another with --output"
    ):
        model.predict(clip, tmp_path / "taken")


def save_run(folder: Path) -> None:
    """Writes the files of a run of the tiny model, without training."""
    config = load_config(CONFIGS / "common" / "models" / "l2g_tiny.py", ["model.test_size=[64,96]"])
    config.dataloader = {"train": {"_target_": "elsewhere.not_installed_here"}}
    save_resolved(config, folder / "config.yaml")
    save_checkpoint(folder / "model_final.pth", {"model": instantiate(config.model).state_dict()})


def test_a_run_folder_is_loaded_and_predicts(tmp_path, clip):
    save_run(tmp_path)
    model = L2G.from_pretrained(tmp_path, "cpu", ["model.threshold=0.0"])
    assert [c["name"] for c in model.classes] == ["object"]
    prediction = model.predict(clip, tmp_path / "out")
    assert prediction.frames == 6
    assert json.loads(prediction.tracks.read_text())["videos"][0]["length"] == 6


def test_weights_of_another_model_are_refused(tmp_path):
    save_run(tmp_path)
    with pytest.raises(UserError, match=r"model_final\.pth: .*another shape"):
        L2G.from_pretrained(tmp_path, "cpu", ["model.tracker.aligner.dim_feedforward=64"])


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="needs a torch without MPS")
def test_mps_is_refused_where_torch_lacks_it():
    with pytest.raises(UserError, match=r"^device mps: this torch cannot compute on it; use cuda or cpu"):
        L2G(Fake(), "mps")


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("model.segmenter.num_queries=300", "300 local queries, but .* 12 position embeddings"),
        ("model.classes=3", "model.classes=3: expected a list"),
        ("model.test_size=4", "model.test_size=4: expected a list"),
        ("model.test_size=[0,0]", "model.test_size.*expected .short edge, long edge. in pixels"),
        ("model.segmenter=null", "model.segmenter=None: expected a component with a _target_"),
        ("~model.tracker", "invalid config: model: .*'tracker'"),
        ("model.segmenter.decoder.num_layers=0", "num_layers=0: expected at least 1"),
    ],
)
def test_settings_that_no_constructor_checks_are_refused(tmp_path, override, problem):
    save_run(tmp_path)
    with pytest.raises(UserError, match=problem) as caught:
        L2G.from_pretrained(tmp_path, "cpu", [override])
    assert "\n" not in str(caught.value)


def test_weights_with_another_tracker_are_not_called_weights_without_tracker(tmp_path):
    save_run(tmp_path)
    with pytest.raises(UserError, match=r"weights of another model: .* 1 are missing"):
        L2G.from_pretrained(tmp_path, "cpu", ["model.tracker.positions=static"])


def test_frames_that_the_model_cannot_process_are_refused(clip):
    class Picky(Fake):
        def stream(self, frames, past=None):
            yield from super().stream([])
            raise ValueError("frames of 4 tokens cannot give 12 local queries")

    with pytest.raises(UserError, match=r"^frames of 4 tokens"):
        list(L2G(Picky(), "cpu").stream(clip))


def test_an_unknown_user_in_a_path_is_refused():
    """`Path.expanduser` raises RuntimeError for it."""
    with pytest.raises(UserError, match="no such file or folder"):
        open_source("~nobody-of-this-name/clip.mp4")


def test_the_record_and_the_video_keep_time_stamps(model, tmp_path):
    times = [0.0, 0.1, 0.2, 1.2, 2.2, 2.3]
    with VideoWriter(tmp_path / "vfr.mp4", 10, (64, 96)) as writer:
        for stamp in times:
            writer.write(torch.full((3, 64, 96), 90, dtype=torch.uint8), stamp)
    prediction = model.predict(tmp_path / "vfr.mp4", tmp_path / "out")
    lines = [json.loads(line) for line in (prediction.folder / "frames.jsonl").read_text().splitlines()]
    assert [line["time"] for line in lines] == pytest.approx(times, abs=1e-4)
    written = [stamp for _, stamp in open_source(prediction.video).read()]
    assert written == pytest.approx(times, abs=1e-3)
