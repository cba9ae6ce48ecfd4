"""The server of the page: a video from upload to report, live settings, limits, and who may ask."""

from __future__ import annotations

import io
import json
import socket
import tempfile
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from starlette.websockets import WebSocketDisconnect

from fake_stream import Fake
from local2global.app.predict import L2G
from local2global.app.serve.command import serve
from local2global.app.serve.limits import Limits
from local2global.app.serve.server import create_app
from local2global.errors import UserError

HOST = {"Host": "localhost"}


def client(root: Path, limits: Limits | None = None, **options) -> TestClient:
    root.mkdir(exist_ok=True)
    app = create_app(L2G(Fake(), "cpu"), root, limits, **options)
    return TestClient(app, base_url="http://localhost", headers=HOST)


def clip(frames: int = 6, fps: int = 5) -> bytes:
    """An mp4 of 64 x 48 pixels."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for t in range(frames):
            image = np.full((48, 64, 3), 20 * t % 255, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def ended(page: TestClient, identity: str) -> dict:
    deadline = time.monotonic() + 60
    while (about := page.get(f"/jobs/{identity}").json())["state"] not in ("done", "failed"):
        assert time.monotonic() < deadline, about
        time.sleep(0.05)
    return about


def watch(socket) -> tuple[dict, bytes]:
    head, _, image = socket.receive_bytes().partition(b"\n")
    return json.loads(head), image


def test_a_video_is_uploaded_watched_and_downloaded(tmp_path):
    with client(tmp_path / "jobs") as page:
        answer = page.post("/jobs", content=clip(), headers={"X-Filename": "my%20clip.mp4"})
        identity = answer.json()["id"]
        with page.websocket_connect(f"/jobs/{identity}/frames") as socket:
            about, images = {"state": ""}, []
            while about["state"] != "done":
                about, image = watch(socket)
                images.append(image)
        assert about["title"] == "my clip.mp4"
        assert about["frame"] == about["frames"] == 6
        assert {item["name"] for item in about["known"]} == {"dog", "person"}
        shown = [Image.open(io.BytesIO(image)) for image in images if image]
        assert shown[-1].size == (64, 48)
        assert page.get(f"/jobs/{identity}/objects/0.jpg").headers["content-type"] == "image/jpeg"
        lines = page.get(f"/jobs/{identity}/files/frames.jsonl").text.splitlines()
        assert [json.loads(line)["index"] for line in lines] == list(range(6))
        assert "Local2Global" in page.get(f"/jobs/{identity}/files/report.html").text
        assert "l2g_frame_seconds_count 6.0" in page.get("/metrics").text
    assert list((tmp_path / "jobs").iterdir()) == []


def test_threshold_and_classes_change_while_a_video_runs(tmp_path):
    """The job pauses before its first frame, so that the change comes in time."""
    with client(tmp_path / "jobs") as page:
        first = page.post("/jobs", content=clip(400)).json()["id"]
        identity = page.post("/jobs", content=clip()).json()["id"]
        answer = page.post(f"/jobs/{identity}", json={"threshold": 0.5, "classes": ["dog"], "paused": True})
        assert answer.json()["position"] == 1
        page.post(f"/jobs/{first}/stop")
        ended(page, first)
        page.post(f"/jobs/{identity}", json={"threshold": 0.5, "classes": ["dog"], "paused": False})
        assert {item["name"] for item in ended(page, identity)["known"]} == {"dog"}
        for settings in ({"threshold": 2}, {"classes": ["cat"]}, {"classes": [[]]}, {"paused": 1}, []):
            assert page.post(f"/jobs/{identity}", json=settings).status_code == 400
        headers = {"X-Settings": '{"classes": [{}]}'}
        assert page.post("/jobs", content=clip(), headers=headers).status_code == 400


def test_a_stopped_video_keeps_the_frames_done(tmp_path):
    with client(tmp_path / "jobs") as page:
        identity = page.post("/jobs", content=clip(400)).json()["id"]
        with page.websocket_connect(f"/jobs/{identity}/frames") as socket:
            while watch(socket)[0]["frame"] < 2:
                pass
            page.post(f"/jobs/{identity}/stop")
        about = ended(page, identity)
        assert about["state"] == "done"
        assert 2 <= about["frame"] < 400
        assert "video.mp4" in about["files"]


def test_a_video_stopped_before_its_first_frame_has_failed(tmp_path, caplog):
    """It used to print a traceback."""
    with client(tmp_path / "jobs") as page:
        running = page.post("/jobs", content=clip(400)).json()["id"]
        waiting = page.post("/jobs", content=clip()).json()["id"]
        page.post(f"/jobs/{waiting}", json={"paused": True})
        page.post(f"/jobs/{running}/stop")
        ended(page, running)
        page.post(f"/jobs/{waiting}/stop")
        about = ended(page, waiting)
        assert (about["state"], about["message"]) == ("failed", "stopped before its first frame")
    assert caplog.text == ""


def test_frames_of_a_camera_are_segmented_as_they_come(tmp_path):
    def frame(value: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (64, 48), (value, 0, 0)).save(file, "JPEG")
        return file.getvalue()

    with client(tmp_path / "jobs") as page:
        identity = page.post("/camera").json()["id"]
        with page.websocket_connect(f"/jobs/{identity}/frames") as socket:
            with page.websocket_connect(f"/jobs/{identity}/camera") as camera:
                for number in range(3):
                    camera.send_bytes(frame(80 * number))
                    while watch(socket)[0]["frame"] <= number:
                        pass
            about = {"state": ""}
            while about["state"] != "done":
                about, _ = watch(socket)
        assert about["frame"] == 3


@pytest.mark.parametrize(
    ("body", "words"),
    [(b"\0" * 5000, "cannot be read"), (b"<html>" * 99, "cannot be read"), (clip()[:300], "cannot be read")],
)
def test_a_file_that_is_no_video_fails_in_one_line(tmp_path, body, words):
    with client(tmp_path / "jobs") as page:
        about = ended(page, page.post("/jobs", content=body).json()["id"])
        assert about["state"] == "failed"
        assert "\n" not in about["message"]
        assert str(tmp_path) not in about["message"]


def test_limits(tmp_path):
    limits = Limits(upload=1000, jobs=1, seconds=0.5)
    with client(tmp_path / "jobs", limits) as page:
        assert page.post("/jobs", content=b"x" * 1001).status_code == 413
        assert (
            page.post("/jobs", content=(b"x" * 600 for _ in range(2))).status_code == 413
        )  # chunked: no length
        assert page.post("/jobs", content=b"").status_code == 400
        assert list((tmp_path / "jobs").iterdir()) == []
        page.post("/camera")
        answer = page.post("/jobs", content=b"x")
        assert answer.status_code == 503
        assert "try again later" in answer.json()["error"]


def test_the_rest_of_a_long_video_is_not_read(tmp_path):
    with client(tmp_path / "jobs", Limits(seconds=0.6)) as page:
        about = ended(page, page.post("/jobs", content=clip(20, fps=5)).json()["id"])
        assert about["frame"] == about["frames"] == 3


def test_results_are_deleted_after_their_time(tmp_path):
    with client(tmp_path / "jobs", Limits(keep=0.4)) as page:
        identity = page.post("/jobs", content=clip()).json()["id"]
        deadline = time.monotonic() + 60
        while page.get(f"/jobs/{identity}").status_code != 404 or any((tmp_path / "jobs").iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.parametrize(
    "name", ["../upload.mp4", "..%2Fupload.mp4", "%2e%2e/upload", "upload", "/etc/passwd"]
)
def test_only_results_can_be_downloaded(tmp_path, name):
    with client(tmp_path / "jobs") as page:
        identity = page.post("/jobs", content=clip(), headers={"X-Filename": "../../x.mp4"}).json()["id"]
        ended(page, identity)
        assert page.get(f"/jobs/{identity}/files/{name}").status_code == 404


def test_other_sites_are_refused(tmp_path):
    with client(tmp_path / "jobs") as page:
        assert page.get("/", headers={"Host": "evil.example"}).status_code == 421
        for headers in (
            {"Origin": "http://evil.example"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Origin": "null"},
        ):
            assert page.post("/camera", headers=headers).status_code == 403
        for place in ("http://[::1", "http://[x]"):
            assert page.post("/camera", headers={"Origin": place}).status_code == 400
        assert page.post("/camera", headers={"Origin": "http://localhost"}).status_code == 201
        with pytest.raises(WebSocketDisconnect):
            page.websocket_connect("/jobs/x/frames", headers={"Origin": "http://evil.example"}).__enter__()


def test_a_token_is_asked_of_everyone(tmp_path):
    with client(tmp_path / "jobs", hosts=None, token="secret") as page:
        assert page.get("/healthz").status_code == 200
        assert page.get("/").status_code == 401
        assert page.get("/?token=wrong").status_code == 401
        assert page.get("/metrics", headers={"Authorization": "Bearer secret"}).status_code == 200
        assert page.get("/?token=secret").status_code == 200  # followed to "/", with the cookie
        assert page.post("/camera").status_code == 201


def test_a_port_in_use_is_one_line_and_leaves_no_folder_and_no_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(L2G, "from_pretrained", classmethod(lambda cls, *_: L2G(Fake(), "cpu")))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port}: cannot listen"):
            serve(weights="run", host="127.0.0.1", port=port)
    assert list(tmp_path.iterdir()) == []
    assert not any(thread.name == "l2g-serve" for thread in threading.enumerate())


def test_a_deleted_video_leaves_nothing_even_while_it_runs(tmp_path):
    with client(tmp_path / "jobs") as page:
        identity = page.post("/jobs", content=clip(400)).json()["id"]
        with page.websocket_connect(f"/jobs/{identity}/frames") as socket:
            while watch(socket)[0]["frame"] < 1:
                pass
        page.delete(f"/jobs/{identity}")
        deadline = time.monotonic() + 60
        while page.get(f"/jobs/{identity}").status_code != 404 or any((tmp_path / "jobs").iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_the_page_and_the_results_answer_to_head(tmp_path):
    """Load balancers and download tools ask so."""
    with client(tmp_path / "jobs") as page:
        assert page.head("/healthz").status_code == 200
        identity = page.post("/jobs", content=clip()).json()["id"]
        ended(page, identity)
        answer = page.head(f"/jobs/{identity}/files/video.mp4")
        assert (answer.status_code, answer.content) == (200, b"")
        assert int(answer.headers["content-length"]) > 0


def test_a_text_file_is_no_video(tmp_path):
    """FFmpeg can draw the characters of a text file."""
    with client(tmp_path / "jobs") as page:
        headers = {"X-Filename": "notes.txt"}
        about = ended(page, page.post("/jobs", content=b"hello " * 99, headers=headers).json()["id"])
    assert about["state"] == "failed"
    assert about["message"].startswith("notes.txt: ")
