"""The page of `l2g serve` in a browser: from a dropped video to its report."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import pytest

from browser import PATIENCE, assert_accessible, until
from serving import Server, serving

#: The model of the server finds a dog on the left half, and a person on the upper half of even frames.
DOG, PERSON = 0, 1


@pytest.fixture(scope="module")
def server(browser, tmp_path_factory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("serve")) as server:
        yield server


@pytest.fixture
def page(browser, server, request) -> Iterator[Any]:
    """The page without a video; fails if it logs an error or asks another server."""
    problems: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 844})
    context.set_default_timeout(PATIENCE)
    context.on("weberror", lambda error: problems.append(str(error.error)))
    context.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    context.on("request", lambda r: None if ours(r.url, server) else problems.append(r.url))
    page = context.new_page()
    page.goto(server.address)
    yield page
    context.close()
    assert not problems


def ours(url: str, server: Server) -> bool:
    return url.startswith((server.address, "data:", "blob:"))


def clip(frames: int, fps: int = 30) -> bytes:
    """A grey video of 96 x 64 pixels."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 120, np.uint8), format="rgb24")
        for t in range(frames):
            frame.pts = t
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def drop(page: Any, content: bytes, name: str) -> None:
    """Drops a file on the page."""
    transfer = page.evaluate_handle(
        """([text, name]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([Uint8Array.from(atob(text), c => c.charCodeAt(0))], name));
            return transfer;
        }""",
        [base64.b64encode(content).decode("ascii"), name],
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


def frames_done(page: Any) -> int:
    return int(page.locator("#status").text_content().split(" of ")[0].split()[-1])


def tint(page: Any, x: float, y: float) -> int:
    """How far a place of the newest frame is from grey; x and y are fractions of the frame."""
    colour = page.evaluate(
        """([x, y]) => {
            const view = document.getElementById("view");
            return [...view.getContext("2d").getImageData(x * view.width, y * view.height, 1, 1).data].slice(0, 3);
        }""",
        [x, y],
    )
    return max(colour) - min(colour)


def test_a_dropped_video_is_watched_paused_stopped_downloaded_and_reported(page):
    drop(page, clip(3000), "my clip.mp4")
    until(page, "document.getElementById('status').textContent.endsWith('of 3000 frames')")
    page.locator("#found li").nth(1).wait_for()
    assert [text.split() for text in page.locator("#found b").all_text_contents()] == [
        ["0", "dog"],
        ["1", "person"],
    ]
    assert tint(page, 0.25, 0.8) > 30, "the mask of the dog is drawn while the video runs"
    assert tint(page, 0.75, 0.8) < 12, "there is no mask on the lower right"

    page.get_by_role("button", name="Pause").click()
    until(page, "document.getElementById('status').textContent.startsWith('paused')")
    paused = frames_done(page)
    with page.expect_response(lambda response: response.request.method == "POST"):
        page.get_by_label("Score at least").fill("90")
    page.get_by_role("button", name="Continue").click()
    until(page, f"parseInt(document.getElementById('status').textContent) > {paused + 30}")
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("link", name="Open the report").wait_for()
    assert page.get_by_role("button", name="Pause").is_disabled()

    with page.expect_download() as download:
        page.get_by_role("link", name="frames.jsonl").click()
    frames = [json.loads(line) for line in download.value.path().read_text().splitlines()]
    shown = [{item["id"] for item in frame["objects"]} for frame in frames]
    assert shown[0] == {DOG, PERSON}
    # Frames that were already decoded or segmented at the pause keep the earlier threshold.
    assert paused + 20 < len(frames) < 3000
    assert all(ids == {DOG} for ids in shown[paused + 20 :])

    with page.expect_popup() as opened:
        page.get_by_role("link", name="Open the report").click()
    report = opened.value
    until(report, "!!window.player && player.video.readyState > 1 && !player.video.seeking")
    assert report.locator("tr.object").count() == 2
    report.locator(".lane").first.click(position={"x": 1, "y": 10})
    until(report, "player.frame < player.data.frames / 10")
    lane = report.locator(".lane").first
    lane.click(position={"x": lane.bounding_box()["width"] / 2, "y": 10})
    until(report, "!player.video.seeking")
    middle = len(frames) / 2
    assert abs(report.evaluate("player.frame") - middle) < 0.05 * len(frames)
    assert abs(report.evaluate("player.video.currentTime") - middle / 30) < 0.05 * len(frames) / 30
    for row in (0, 1):
        report.locator("tr.object").nth(row).hover()
        until(report, f"player.row === {row}")
        assert report.locator("tr.object.active .id").all_text_contents() == [str(row)]

    page.get_by_role("button", name="Another video").click()
    page.get_by_text("Drop a video").wait_for()


def test_a_reload_shows_the_same_video(page):
    drop(page, clip(4), "short.mp4")
    page.get_by_role("link", name="Open the report").wait_for()
    page.reload()
    page.get_by_role("link", name="Open the report").wait_for()
    assert page.locator("#status").text_content() == "done, 4 frames"


def test_a_file_that_is_no_video_is_one_sentence(page):
    drop(page, b"no video" * 100, "<img src=x onerror=alert(1)>.mp4")
    page.get_by_role("alert").filter(has_text="cannot be read").wait_for()
    assert page.get_by_role("alert").text_content().startswith("<img src=x onerror=alert(1)>.mp4: ")
    assert page.locator("img[src=x]").count() == 0
    page.get_by_text("Drop a video").wait_for()
    drop(page, clip(2), "short.mp4")
    page.get_by_role("link", name="Open the report").wait_for()
    assert not page.get_by_role("alert").is_visible()


def test_a_camera_is_segmented_until_it_is_stopped(page):
    page.get_by_role("button", name="Use the camera").click()
    until(page, "parseInt(document.getElementById('status').textContent) > 2")
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("link", name="Open the report").wait_for()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_is_accessible_and_fits(browser, server, width, scheme):
    """At its start, while a video is paused, at its end, and after an error."""
    view = {"width": width, "height": 844}
    context = browser.new_context(viewport=view, color_scheme=scheme, bypass_csp=True)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(server.address)
    assert_accessible(page)
    drop(page, clip(3000), "clip.mp4")
    page.locator("#found li").nth(1).wait_for()
    page.get_by_role("button", name="Pause").click()
    until(page, "document.getElementById('status').textContent.startsWith('paused')")
    assert_accessible(page)
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("link", name="Open the report").wait_for()
    assert_accessible(page)
    page.get_by_role("button", name="Another video").click()
    drop(page, b"no video", "text.mp4")
    page.get_by_role("alert").filter(has_text="cannot be read").wait_for()
    assert_accessible(page)
    context.close()
