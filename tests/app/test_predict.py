"""`L2G`: streaming, the files of `predict`, prefetching and weights."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from pathlib import Path

import pytest
import torch
from pycocotools import mask as coco_mask

from fake_stream import CLASSES, Fake
from local2global.app.predict import L2G, find_weights, prefetch
from local2global.app.video import VideoWriter, open_source
from local2global.errors import UserError
from local2global.lazy import instantiate, load_config, save_resolved
from local2global.weights.checkpoint import save_checkpoint

CONFIGS = Path(__file__).parents[2] / "configs"


def decoding() -> bool:
    """Whether a decoding thread is alive."""
    return any(t.name.startswith("l2g-decode") for t in threading.enumerate())


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
    assert sorted(p.name for p in prediction.video.parent.iterdir()) == ["tracks.json", "video.mp4"]
    frame = next(iter(written)).float()
    assert (frame[:, 50, 20] - 90).abs().max() > 15, "inside the dog"
    assert (frame[:, 50, 80] - 90).abs().max() < 6, "outside everything"


def test_fewer_frames_than_declared_are_reported(model, clip, tmp_path, capsys):
    from local2global.app.cli import _report

    whole = open_source(clip)
    _report(model.predict(whole, tmp_path / "out"))
    assert capsys.readouterr().err == ""
    _report(model.predict(dataclasses.replace(whole, length=whole.length + 3), tmp_path / "out"))
    warning = f"declares {whole.length + 3} frames, {whole.length} could be read; is it complete?"
    assert warning in capsys.readouterr().err


def test_tracks_contain_the_streamed_masks(model, clip, tmp_path):
    prediction = model.predict(clip, tmp_path / "out")
    content = json.loads(prediction.tracks.read_text())
    assert content["videos"] == [
        {"id": 1, "width": 96, "height": 64, "length": 6, "name": "clip", "fps": 12.0}
    ]
    assert content["categories"] == CLASSES
    tracks = content["annotations"]
    assert [(t["id"], t["category_id"], t["video_id"]) for t in tracks] == [(0, 9, 1), (1, 5, 1)]
    assert tracks[0]["score"] > tracks[1]["score"] > 0
    assert [rle is None for rle in tracks[1]["segmentations"]] == [False, True] * 3
    for t, result in enumerate(model.stream(clip)):
        masks = dict(zip(result.ids.tolist(), result.masks, strict=True))
        for track in tracks:
            rle = track["segmentations"][t]
            if rle is not None:
                assert torch.equal(torch.from_numpy(coco_mask.decode(rle)).bool(), masks[track["id"]])


def test_tracks_follow_the_class_filter(model, clip, tmp_path):
    prediction = model.predict(clip, tmp_path / "out", classes=["person"])
    tracks = json.loads(prediction.tracks.read_text())["annotations"]
    assert [(t["id"], t["category_id"]) for t in tracks] == [(1, 5)]


def test_a_video_without_objects_is_written(model, clip, tmp_path):
    prediction = model.predict(clip, tmp_path / "out", threshold=1.0)
    assert json.loads(prediction.tracks.read_text())["annotations"] == []
    assert open_source(prediction.video).length == 6


def test_a_failure_leaves_no_files_and_no_threads(model, tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    with VideoWriter(tmp_path / "x.mp4", 10, (64, 96)) as writer:
        for _ in range(3):
            writer.write(torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8))
    from PIL import Image

    for t, frame in enumerate(open_source(tmp_path / "x.mp4")):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(frames / f"{t}.jpg")
    last = frames / "2.jpg"
    last.write_bytes(last.read_bytes()[:900])
    with pytest.raises(UserError, match=r"2\.jpg"):
        model.predict(frames, tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError):
        model.predict(frames, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == [], "an existing folder is not removed"
    assert not decoding()


# --- Prefetching ---


def test_prefetching_is_bounded_and_stops_with_the_consumer():
    read, closed = [], []

    def numbers():
        try:
            for i in range(10**9):
                read.append(i)
                yield i
        finally:
            closed.append(True)

    ahead = prefetch(numbers(), 4)
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    time.sleep(0.05)
    assert len(read) <= 3 + 4 + 1, "three consumed, four prefetched"
    ahead.close()
    assert closed == [True]
    assert not decoding()


def test_prefetching_keeps_the_order():
    assert list(prefetch(iter(range(50)), 2)) == list(range(50))


def test_an_exception_is_raised_at_the_position_of_its_item():
    def two_then_error():
        yield 1
        yield 2
        raise UserError("frame 2 is broken")

    ahead = prefetch(two_then_error(), 4)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(UserError, match="frame 2 is broken"):
        next(ahead)


def test_closing_a_stream_stops_the_decoder(model, clip):
    stream = model.stream(clip)
    next(stream)
    stream.close()
    assert not decoding()


# --- Weights ---


def test_find_weights_prefers_the_last_checkpoint(tmp_path):
    """After an interrupted second run, model_final.pth is left over from the first run."""
    (tmp_path / "model_final.pth").touch()
    assert find_weights(tmp_path) == tmp_path / "model_final.pth"
    (tmp_path / "model_0000009.pth").touch()
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    assert find_weights(tmp_path) == tmp_path / "model_0000009.pth"
    assert find_weights(tmp_path / "model_final.pth") == tmp_path / "model_final.pth"


def test_missing_weights_are_refused(tmp_path):
    with pytest.raises(UserError, match="no weights in this folder"):
        find_weights(tmp_path)
    with pytest.raises(UserError, match=r"nothing\.pth: no such weights"):
        L2G.from_pretrained(tmp_path / "nothing.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    with pytest.raises(UserError, match=r"names model_0000009\.pth"):
        find_weights(tmp_path)


def test_weights_without_config_are_refused(tmp_path):
    save_checkpoint(tmp_path / "w.pth", {"model": {"weight": torch.zeros(1)}})
    with pytest.raises(UserError, match=r"config\.yaml"):
        L2G.from_pretrained(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("device", "problem"),
    [("toaster", "no such kind of device"), ("cuda:99", r"torch sees \d+ GPUs here; use cpu")],
)
def test_an_unavailable_device_is_refused(device, problem):
    with pytest.raises(UserError, match=f"^device {device}: {problem}"):
        L2G(Fake(), device)


def test_an_output_folder_that_cannot_be_created_is_refused(model, clip, tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(UserError, match=r"cannot be made \(Not a directory\)\. Choose another with --output"):
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
