"""Annotated videos: sound and time stamps of the source; still images."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from fake_stream import Fake
from local2global.app.predict import L2G
from local2global.app.result_folder import finish
from local2global.app.video import open_source

RATE = 48000
#: Time stamps of the frames in milliseconds: the rate varies.  The first frame comes 200 ms after the sound begins.
TIMES = [200, 300, 400, 900, 1400, 1500, 1600, 1700]
#: Seconds after the beginning of the file at which a tone starts; before it there is silence.
ONSET = 0.9


@pytest.fixture
def model() -> L2G:
    return L2G(Fake(), "cpu")


def write_video(path: Path, audio: str, video: str = "libx264", seconds: float = 2.5) -> Path:
    """A video whose frames are grey until the tone starts, then white."""
    with av.open(str(path), "w") as container:
        pictures: Any = container.add_stream(
            video, rate=10, options={"bf": "0"} if video == "libx264" else {}
        )
        pictures.width, pictures.height, pictures.pix_fmt = 96, 64, "yuv420p"
        pictures.time_base = pictures.codec_context.time_base = Fraction(1, 1000)
        tone: Any = container.add_stream(audio, rate=RATE, layout="mono")
        packets = []
        for time in TIMES:
            level = 255 if time >= 1000 * ONSET else 90
            picture: Any = av.VideoFrame.from_ndarray(np.full((64, 96, 3), level, np.uint8), format="rgb24")
            picture.pts, picture.time_base = time, Fraction(1, 1000)
            packets += pictures.encode(picture.reformat(format="yuv420p"))
        packets += pictures.encode(None)
        samples = np.arange(round(seconds * RATE))
        wave = np.where(samples >= ONSET * RATE, np.sin(samples * 440 * 2 * np.pi / RATE) * 20000, 0)
        for start in range(0, len(wave) - 1023, 1024):
            block = av.AudioFrame.from_ndarray(
                wave[None, start : start + 1024].astype(np.int16), "s16", "mono"
            )
            block.sample_rate, block.pts, block.time_base = RATE, start, Fraction(1, RATE)
            packets += tone.encode(block)
        packets += tone.encode(None)
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            container.mux(packet)
    return path


def sound_of(path: Path) -> tuple[str, np.ndarray, float]:
    """Codec, samples in [-1, 1] and the time of the first sample."""
    blocks, first = [], None
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler("flt", "mono", RATE)
        for frame in container.decode(stream):
            first = frame.time if first is None else first
            blocks += [block.to_ndarray()[0] for block in resampler.resample(frame)]
        return stream.codec_context.name, np.concatenate(blocks), float(first or 0)


def onset(samples: np.ndarray, first: float) -> float:
    return first + float(np.flatnonzero(np.abs(samples) > 0.1)[0]) / RATE


@pytest.mark.parametrize(
    ("name", "audio", "written"),
    [
        ("clip.mp4", "aac", "aac"),
        ("clip.ts", "aac", "aac"),
        ("clip.mkv", "libopus", "opus"),
        ("clip.mkv", "pcm_s16le", "aac"),
        ("clip.mkv", "flac", "aac"),
    ],
)
def test_the_sound_starts_with_the_same_frame_as_in_the_source(model, tmp_path, name, audio, written):
    """The tone starts with the fourth frame: 0.7 s after the first frame, which lies 0.2 s after the file's start."""
    source = open_source(write_video(tmp_path / name, audio))
    prediction = model.predict(source, tmp_path / "out")
    codec, samples, first = sound_of(prediction.video)
    assert codec == written
    assert onset(samples, first) == pytest.approx(ONSET - 0.2, abs=0.025)
    end = 1.5 + float(1 / source.fps)
    assert first + len(samples) / RATE == pytest.approx(end, abs=0.05), "the sound ends with the last frame"
    frames = list(open_source(prediction.video).read())
    assert [time for _, time in frames] == pytest.approx([(time - 200) / 1000 for time in TIMES], abs=2e-3)
    assert [bool(frame[:, 60, 90].float().mean() > 200) for frame, _ in frames] == [t >= 900 for t in TIMES]


def test_copied_sound_is_not_encoded_again(model, tmp_path):
    source = write_video(tmp_path / "clip.mp4", "aac")
    prediction = model.predict(source, tmp_path / "out")

    def packets(path: Path) -> bytes:
        with av.open(str(path)) as container:
            return b"".join(map(bytes, container.demux(container.streams.audio[0])))

    mine = packets(prediction.video)
    assert len(mine) > 1000
    assert mine in packets(source)


def test_the_video_is_playable_by_browsers(model, tmp_path):
    prediction = model.predict(write_video(tmp_path / "clip.mkv", "pcm_s16le"), tmp_path / "out")
    with av.open(str(prediction.video)) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert sound.codec_context.name == "aac"
    data = prediction.video.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "the index is at the front"


def test_damaged_sound_leaves_a_video_without_sound(model, tmp_path, caplog, monkeypatch):
    from local2global.app import sound

    def broken(*_: object) -> Any:
        raise ValueError("broken")
        yield

    source = write_video(tmp_path / "clip.mp4", "aac")
    monkeypatch.setattr(sound, "_cut", broken)
    prediction = model.predict(source, tmp_path / "out")
    assert caplog.messages == [f"l2g: {source}: its sound cannot be copied (broken); the video has none"]
    with av.open(str(prediction.video)) as container:
        assert not container.streams.audio
    assert sum(1 for _ in open_source(prediction.video)) == len(TIMES)


def test_finish_adds_the_sound_if_the_source_is_named(model, tmp_path, monkeypatch):
    """As after a kill: the first --finish names no input."""
    from local2global.app import result_folder

    source = write_video(tmp_path / "clip.mp4", "aac")
    with monkeypatch.context() as patch:
        patch.setattr(result_folder, "finish_video", lambda *_: False)
        folder = model.predict(source, tmp_path / "out").folder
    assert (folder / "video.partial.mp4").is_file()
    finish(folder)
    with av.open(str(folder / "video.mp4")) as container:
        assert not container.streams.audio
    finish(folder, source=open_source(source))
    _, samples, first = sound_of(folder / "video.mp4")
    assert onset(samples, first) == pytest.approx(ONSET - 0.2, abs=0.025)
    before = (folder / "video.mp4").stat().st_mtime_ns
    finish(folder, source=open_source(source))
    assert (folder / "video.mp4").stat().st_mtime_ns == before, "sound is added once"


def test_another_frame_rate_has_no_sound(tmp_path):
    source = write_video(tmp_path / "clip.mp4", "aac")
    assert open_source(source).sound is not None
    assert open_source(source, fps=25).sound is None


def test_a_still_image_gives_a_png(model, tmp_path):
    Image.new("RGB", (97, 63), (90, 90, 90)).save(tmp_path / "photo.jpg")
    prediction = model.predict(tmp_path / "photo.jpg", tmp_path / "out")
    names = ["annotations.json", "frames.jsonl", "image.png", "results.json", "stream.json"]
    assert sorted(path.name for path in prediction.folder.iterdir()) == names
    assert prediction.video.name == "image.png"
    pixels = torch.from_numpy(np.array(Image.open(prediction.video)))
    assert pixels.shape == (63, 97, 3), "odd sizes are kept"
    assert (pixels[:, :40] != 90).any()
    assert finish(prediction.folder).video == prediction.video
