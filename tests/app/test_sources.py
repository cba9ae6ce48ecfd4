"""Sources that are read once, the selection of frames, and live sources."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from fake_stream import Fake
from local2global.app import live_source
from local2global.app.predict import L2G
from local2global.app.source import select
from local2global.app.stream import latest
from local2global.app.video import VideoWriter, open_source
from local2global.errors import UserError

TESTS = Path(__file__).parents[1]
SIZE = (64, 96)


def levels(frames) -> list[int]:
    """The grey levels of frames, each a multiple of 20."""
    return [round(float(frame.float().mean()) / 20) * 20 for frame in frames]


def write_stream(target, container: str, codec: str = "mpeg4", count: int = 8, **options: str) -> None:
    """Writes frames of grey levels 0, 20, 40, ... at 10 per second."""
    with av.open(target, "w", format=container, options=options) as file:
        stream = file.add_stream(codec, rate=10)
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for t in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((*SIZE, 3), 20 * t % 240, np.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


@contextmanager
def in_thread(target, *arguments) -> Iterator[None]:
    """Runs a server or writer in a thread; its errors after the reader has left do not count."""

    def run() -> None:
        with suppress(OSError):
            target(*arguments)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    thread.join(10)
    assert not thread.is_alive()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# --- Pipes ---


@pytest.mark.parametrize(
    ("container", "codec"), [("matroska", "mpeg4"), ("mpegts", "mpeg4"), ("mjpeg", "mjpeg")]
)
def test_a_named_pipe_is_read_once(tmp_path, container, codec):
    content = io.BytesIO()
    write_stream(content, container, codec)
    pipe = tmp_path / "camera.pipe"
    os.mkfifo(pipe)
    with in_thread(pipe.write_bytes, content.getvalue()):
        source = open_source(pipe)
        assert (source.name, source.size, source.identity) == ("camera", SIZE, None)
        assert levels(source) == [20 * t for t in range(8)]
    with pytest.raises(UserError, match=r"camera\.pipe: can be read only once"):
        list(source)


def test_standard_input_is_a_source(tmp_path):
    """In a process of its own: `cat clip.mkv | l2g predict -`."""
    content = io.BytesIO()
    write_stream(content, "matroska")
    code = "from local2global.app.video import open_source; print(sum(1 for _ in open_source('-')))"
    done = subprocess.run(
        [sys.executable, "-c", code], input=content.getvalue(), capture_output=True, check=True
    )
    assert done.stdout == b"8\n"


@pytest.mark.parametrize(
    "content", [b"", b"no video" * 999, b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/hostname\n"]
)
def test_a_pipe_without_a_video_is_refused_in_one_line(tmp_path, content):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with in_thread(pipe.write_bytes, content), pytest.raises(UserError, match=r"pipe: ") as error:
        open_source(pipe)
    assert "\n" not in str(error.value)


def test_the_standard_input_of_a_terminal_is_refused(monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    with pytest.raises(UserError, match="-: standard input is a terminal"):
        open_source("-")


# --- Addresses ---


@contextmanager
def http_server(content: bytes, kind: str) -> Iterator[str]:
    """Answers one request, and yields the address of the server."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, listener.accept()[0] as client:
            client.settimeout(10)
            client.recv(4096)
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n"
            client.sendall(head.encode() + content)
            client.shutdown(socket.SHUT_WR)
            client.recv(1)  # the client closes first

    with in_thread(serve):
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_an_http_address_is_a_source():
    content = io.BytesIO()
    write_stream(content, "mpegts")
    with http_server(content.getvalue(), "video/mp2t") as server:
        source = open_source(f"{server}/clip.ts?token=1")
        assert (source.name, source.size, source.live) == ("clip", SIZE, False)
        assert levels(source) == [20 * t for t in range(8)]


class Rtsp:
    """An RTSP server for one client: MPEG-TS in RTP packets, over the connection of the requests."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]

    def serve(self) -> None:
        with self.listener, self.listener.accept()[0] as client:
            client.settimeout(10)
            requests = client.makefile("rb")
            while True:
                head = requests.readline().decode().split()
                fields = {}
                while (line := requests.readline().strip()) != b"":
                    name, _, value = line.decode().partition(":")
                    fields[name.lower()] = value.strip()
                if not head:
                    return
                answer, body = self.answer(head[0])
                text = f"RTSP/1.0 200 OK\r\nCSeq: {fields['cseq']}\r\n{answer}Content-Length: {len(body)}\r\n\r\n"
                client.sendall(text.encode() + body)
                if head[0] == "PLAY":
                    self.send(client)

    @staticmethod
    def answer(method: str) -> tuple[str, bytes]:
        if method == "DESCRIBE":
            sdp = b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track\r\n"
            return "Content-Type: application/sdp\r\n", sdp
        if method == "SETUP":
            return "Session: 1\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n", b""
        return "Session: 1\r\nPublic: DESCRIBE, SETUP, PLAY, TEARDOWN\r\n", b""

    @staticmethod
    def send(client: socket.socket) -> None:
        content = io.BytesIO()
        write_stream(content, "mpegts", count=30)
        packets = content.getvalue()
        for number, start in enumerate(range(0, len(packets), 7 * 188)):
            payload = packets[start : start + 7 * 188]
            head = (
                bytes([0x80, 33]) + number.to_bytes(2, "big") + (900 * number).to_bytes(4, "big") + bytes(4)
            )
            client.sendall(b"$\0" + (len(head) + len(payload)).to_bytes(2, "big") + head + payload)


def test_an_rtsp_address_is_a_live_source():
    server = Rtsp()
    with in_thread(server.serve):
        source = open_source(f"rtsp://me:secret@127.0.0.1:{server.port}/door")
        assert (source.name, source.size, source.live) == ("door", SIZE, True)
        frames = source.read()
        seen = levels(frame for _, (frame, _) in zip(range(6), frames, strict=False))
        assert seen == sorted(seen)
        assert len(set(seen)) > 3
        frames.close()


@pytest.mark.parametrize(
    "address",
    ["ftp://host/clip.mp4", "concat:a|b://x", "file:///etc/hostname", "rtsp://", "http:///clip.mp4"],
)
def test_other_protocols_are_refused(address):
    with pytest.raises(UserError, match="expected an address of rtsp://"):
        open_source(address)


def test_a_refused_connection_is_one_line_without_the_password():
    with pytest.raises(UserError, match=r"^http://127\.0\.0\.1:\d+/a: this video cannot be read") as error:
        open_source(f"http://me:secret@127.0.0.1:{free_port()}/a")
    assert "secret" not in str(error.value)


def test_a_playlist_from_a_server_opens_no_local_file(tmp_path):
    """The segment exists, and a local player would open it."""
    segment = tmp_path / "segment.ts"
    write_stream(str(segment), "mpegts")
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:{segment}\n#EXT-X-ENDLIST\n".encode()
    with (
        http_server(playlist, "application/x-mpegURL") as server,
        pytest.raises(UserError, match=r"list\.m3u8: "),
    ):
        open_source(f"{server}/list.m3u8")


def test_a_local_playlist_opens_no_other_file(tmp_path):
    write_stream(str(tmp_path / "segment.ts"), "mpegts")
    (tmp_path / "clip.m3u8").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nsegment.ts\n#EXT-X-ENDLIST\n"
    )
    (tmp_path / "clip.mp4").write_text("ffconcat version 1.0\nfile segment.ts\n")
    for name in ("clip.m3u8", "clip.mp4"):
        with pytest.raises(UserError, match=name):
            open_source(tmp_path / name)
    assert open_source(tmp_path / "segment.ts").size == SIZE


def test_a_file_named_like_an_address_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_stream(str(tmp_path / "clip.mkv"), "matroska")
    (tmp_path / "clip.mkv").rename("data:x")
    assert len(levels(open_source("data:x"))) == 8


# --- Cameras ---


@pytest.fixture
def camera(monkeypatch) -> None:
    """Camera n sends a test picture 25 times a second, in real time."""
    monkeypatch.setattr(
        live_source, "CAMERAS", {sys.platform: ("lavfi", "testsrc=size=96x64:rate=25:duration={},realtime")}
    )


def test_a_number_is_a_camera(camera):
    source = open_source("2")
    assert (source.name, source.size, source.live, source.fps) == ("camera2", SIZE, True, Fraction(25))
    frames = source.read()
    times = [stamp for _, (_, stamp) in zip(range(4), frames, strict=False)]
    assert times == pytest.approx([0, 0.04, 0.08, 0.12])


def test_a_missing_camera_is_refused():
    with pytest.raises(UserError, match=r"camera 77: this video cannot be read \(No such file"):
        open_source("77")


def test_a_live_source_drops_frames_rather_than_lag(camera, tmp_path, caplog):
    """The model needs 0.2 s for a frame, so it sees about every fifth; time stamps tell which."""

    class Slow(Fake):
        def stream(self, frames, past=None):
            time.sleep(0.2)
            return super().stream(frames, past)

    prediction = L2G(Slow(), "cpu").predict("2", tmp_path)
    lines = [json.loads(line) for line in (prediction.folder / "frames.jsonl").read_text().splitlines()]
    times = [line["time"] for line in lines]
    assert [line["index"] for line in lines] == list(range(len(lines)))
    assert 3 <= len(lines) <= 15, "50 frames in 2 seconds"
    assert times[-1] == pytest.approx(1.96, abs=0.01), "the last frame is seen"
    written = [stamp for _, stamp in open_source(prediction.video).read()]
    assert written == pytest.approx([t - times[0] for t in times], abs=2e-3)


def test_the_newest_item_is_yielded_and_the_last_is_not_lost():
    go = threading.Event()

    def numbers():
        yield 0
        go.wait(10)
        yield from range(1, 9)

    newest = latest(numbers())
    assert next(newest) == 0
    go.set()
    time.sleep(0.2)
    assert list(newest) == [8]


def test_an_error_of_a_live_source_is_raised_after_its_last_item():
    def broken():
        yield 0
        raise UserError("unplugged")

    newest = latest(broken())
    assert next(newest) == 0
    with pytest.raises(UserError, match="unplugged"):
        next(newest)


# --- Selection ---


@pytest.fixture
def clip(tmp_path) -> Path:
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, 10, SIZE) as writer:
        for t in range(10):
            writer.write(torch.full((3, *SIZE), 20 * t, dtype=torch.uint8))
    return path


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({}, range(10)),
        ({"start": 0.3}, range(3, 10)),
        ({"start": 0.25, "end": 0.7}, range(3, 7)),
        ({"every": 3}, range(0, 10, 3)),
        ({"start": 0.1, "every": 4}, range(1, 10, 4)),
    ],
)
def test_frames_are_selected_by_time_and_number(clip, tmp_path, options, chosen):
    video = select(open_source(clip), **options)
    pairs = list(video.read())
    assert levels(frame for frame, _ in pairs) == [20 * t for t in chosen]
    assert [stamp for _, stamp in pairs] == pytest.approx([t / 10 for t in chosen]), "times of the source"
    for t in range(10):
        Image.new("L", (96, 64), 20 * t).save(tmp_path / f"{t}.png")
    images = select(open_source(tmp_path), **options)
    assert levels(images) == [20 * t for t in chosen]
    assert images.files == tuple(f"{tmp_path.name}/{t}.png" for t in chosen)
    assert images.length == len(chosen)


@pytest.mark.parametrize("fps", [float("nan"), float("inf"), -1.0, 0.0, 1e9])
def test_a_rate_that_is_no_rate_is_refused(clip, fps):
    with pytest.raises(UserError, match="frames per second: expected more than 0"):
        open_source(clip, fps)


def test_an_edge_that_makes_frames_too_large_is_refused(clip):
    with pytest.raises(UserError, match=r"size 100000: frames of 16384x10923 pixels, the limit is"):
        select(open_source(clip), size=100000)


def test_the_shorter_edge_is_resized(clip):
    video = select(open_source(clip), size=32)
    assert video.size == (32, 48)
    assert {tuple(frame.shape) for frame in video} == {(3, 32, 48)}


def test_selections_have_identities_of_their_own(clip):
    source = open_source(clip)
    chosen = [select(source, start=0.1), select(source, size=32), open_source(clip, 5)]
    assert len({video.identity for video in (source, *chosen)}) == 4
    assert select(source) is source


@pytest.mark.parametrize("options", [{"start": -1.0}, {"start": 2.0, "end": 1.0}, {"every": 0}, {"size": 0}])
def test_impossible_selections_are_refused(clip, options):
    with pytest.raises(UserError, match="expected"):
        select(open_source(clip), **options)


def test_a_selection_without_a_frame_is_an_error(clip, tmp_path):
    with pytest.raises(UserError, match=r"clip: no frame between 7\.0 s and its end"):
        L2G(Fake(), "cpu").predict(select(open_source(clip), start=7.0), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- The command ---

COMMAND = """
import sys
sys.path.insert(0, {tests!r})
from fake_stream import Fake
from local2global.app import cli, live_source, predict
live_source.CAMERAS = {{sys.platform: ("lavfi", "testsrc=size=96x64:rate=25,realtime")}}
predict.L2G.from_pretrained = classmethod(lambda cls, *_: predict.L2G(Fake(), "cpu"))
sys.argv = ["l2g", "predict", "--weights", "any", *sys.argv[1:]]
cli.main()
"""


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", COMMAND.format(tests=str(TESTS)), *map(str, arguments)]


def test_lines_go_to_standard_output_and_all_other_text_to_standard_error(clip, tmp_path):
    options = [
        "--start",
        "0:00.5",
        "--every",
        "2",
        "--size",
        "32",
        "--jsonl",
        "-",
        "--output",
        tmp_path / "out",
    ]
    done = subprocess.run(command(clip, *options), capture_output=True, text=True, check=True)
    folder = tmp_path / "out" / "clip"
    assert done.stdout == (folder / "frames.jsonl").read_text()
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["time"] for line in lines] == pytest.approx([0.5, 0.7, 0.9])
    assert lines[0]["objects"][0]["segmentation"]["size"] == [32, 48]
    assert f"  video   {folder / 'video.mp4'}" in done.stderr


def test_an_interrupt_is_the_end_of_a_camera(tmp_path):
    camera = subprocess.Popen(
        command(0, "--jsonl", "-", "--output", tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert camera.stdout is not None
    first = [json.loads(camera.stdout.readline())["index"] for _ in range(5)]
    assert first == list(range(5))
    camera.send_signal(signal.SIGINT)
    rest, text = camera.communicate(timeout=60)
    assert camera.returncode == 0, text
    folder = tmp_path / "camera0"
    count = 5 + len(rest.splitlines())
    assert sorted(path.name for path in folder.iterdir()) == [
        "annotations.json",
        "frames.jsonl",
        "results.json",
        "stream.json",
        "video.mp4",
    ]
    assert open_source(folder / "video.mp4").length == count
    assert f"{count} frames in".encode() in text


def test_an_interrupt_ends_a_pipe_that_has_stalled(tmp_path):
    """The writer keeps the pipe open and sends nothing more."""
    content = io.BytesIO()
    write_stream(content, "mpegts", count=60)
    done = subprocess.Popen(
        command("-", "--output", tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert done.stdin is not None
    done.stdin.write(content.getvalue())
    done.stdin.flush()
    record = tmp_path / "stdin" / "frames.jsonl"
    for _ in range(600):
        if record.is_file() and len(record.read_text().splitlines()) > 5:
            break
        time.sleep(0.1)
    done.send_signal(signal.SIGINT)
    done.wait(60)
    assert done.returncode not in (0, -signal.SIGKILL)
    assert (tmp_path / "stdin" / "video.mp4").is_file()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--start", "a"], "--start a: expected seconds or"),
        (["--end", "1:2:3:4"], "--end 1:2:3:4: expected seconds or"),
        (["--start", "nan"], "--start nan: expected"),
        (["--fps", "0"], "expected more than 0"),
        (["--jsonl", "/nowhere/x"], "--jsonl /nowhere/x: cannot be written"),
    ],
)
def test_wrong_options_are_one_line(clip, tmp_path, monkeypatch, capsys, options, problem):
    from local2global.app import cli

    monkeypatch.setattr(L2G, "from_pretrained", classmethod(lambda cls, *_: L2G(Fake(), "cpu")))
    arguments = ["predict", str(clip), "--weights", "any", "--output", str(tmp_path / "out"), *options]
    monkeypatch.setattr(sys, "argv", ["l2g", *arguments])
    with pytest.raises(SystemExit) as error:
        cli.main()
    assert error.value.code == 1
    text = capsys.readouterr().err
    assert problem in text
    assert text.count("\n") == 1
