"""The pages in a browser: playing, seeking, highlighting, filters, keyboard, accessibility, and no network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import assert_accessible, until
from fake_run_folder import HOSTILE, NAMES, entry, large_page, moving, write_folder, write_source
from local2global.app.report.compare import compare
from local2global.app.report.report import report
from local2global.app.report.training import write_curves


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """One page of each kind; class and file names are hostile."""
    folder = tmp_path_factory.mktemp("pages")
    source = write_source(folder / "clip.mp4", 20, cut=10)
    names = {**NAMES, 9: HOSTILE}
    run = write_folder(folder / "run" / "clip", moving(), source, names, command=HOSTILE)
    other = write_folder(folder / "other" / "clip", [[entry(1, 2 * t, 4)] for t in range(20)], source, names)
    training = folder / "training"
    training.mkdir()
    (training / "metrics.jsonl").write_text(
        '{"iteration": 1, "loss_cls": 2.0}\n{"iteration": 9, "loss_cls": 1.0}\n'
    )
    return {
        "report": report(run),
        "compare": compare([run, other], None, folder / "out")[0],
        "training": write_curves([training]),
    }


@pytest.fixture
def open_page(browser, pages) -> Iterator[Callable[..., Any]]:
    """Opens a page of `pages`; fails if it sends a request or logs an error."""
    contexts, problems = [], []

    def open_(name: str, width: int = 1280, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.on(
            "request",
            lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else problems.append(r.url),
        )
        page.goto(f"file://{pages[name]}")
        if name != "training":
            until(page, "!!window.player && player.video.readyState > 1 && !player.video.seeking")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not problems


def pixel(page: Any, x: int, y: int) -> list[int]:
    """RGB of the canvas at a pixel of the video, after pending drawing."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.evaluate(
        """([x, y]) => {
            const canvas = player.canvases[0], scale = canvas.width / player.data.size[0];
            return [...canvas.getContext('2d').getImageData(x * scale, y * scale, 1, 1).data].slice(0, 3);
        }""",
        [x, y],
    )


def test_a_click_on_a_timeline_seeks(open_page):
    page = open_page("report")
    lane = page.locator(".lane").first
    box = lane.bounding_box()
    lane.click(position={"x": box["width"] * 0.62, "y": 10})
    until(page, "!player.video.seeking")
    assert page.evaluate("player.frame") == 12
    assert 1.2 <= page.evaluate("player.video.currentTime") < 1.3
    assert page.locator(".head").first.evaluate("e => e.style.left") == "60%"
    assert max(pixel(page, 90, 5)) > 180, "the second scene is light"


def test_masks_are_drawn_where_the_objects_are(open_page):
    page = open_page("report")
    page.evaluate("player.seek(6)")
    until(page, "!player.video.seeking")
    page.get_by_role("checkbox", name="Labels").uncheck()
    background = pixel(page, 90, 5)
    assert max(background) - min(background) < 12, "the background is grey"
    person = pixel(page, 2 * 6 + 8, 12)
    assert max(person) - min(person) > 30, "the person is tinted"
    page.get_by_role("checkbox", name="Masks").uncheck()
    plain = pixel(page, 2 * 6 + 8, 12)
    assert max(plain) - min(plain) < 12


def test_hovering_a_row_highlights_its_mask_only(open_page):
    page = open_page("report")
    page.get_by_role("checkbox", name="Labels").uncheck()
    before = pixel(page, 8, 12), pixel(page, 68, 48)
    page.locator("tr.object").first.hover()
    after = pixel(page, 8, 12), pixel(page, 68, 48)
    assert page.evaluate("player.row") == 0
    assert max(after[0]) - min(after[0]) > max(before[0]) - min(before[0])
    assert max(after[1]) - min(after[1]) < max(before[1]) - min(before[1])


def test_a_click_on_a_mask_selects_its_row(open_page):
    page = open_page("report")
    box = page.locator("canvas").bounding_box()
    page.locator("canvas").click(position={"x": box["width"] * 68 / 96, "y": box["height"] * 48 / 64})
    assert page.locator("tr.object").nth(1).locator(".pick").get_attribute("aria-pressed") == "true"


def test_the_filter_hides_rows_and_masks(open_page):
    page = open_page("report")
    page.get_by_label("Frames at least").fill("18")
    assert page.locator("tr.object:visible").count() == 1
    assert page.locator("#count").text_content() == "1 of 2 objects"
    assert page.evaluate("player.shapes(0).length") == 1


def test_the_table_sorts(open_page):
    page = open_page("report")
    page.get_by_role("button", name="Frames", exact=True).click()
    assert page.locator("tr.object .id").all_text_contents() == ["7", "3"]
    assert page.locator("th[aria-sort=ascending]").text_content() == "Frames"
    page.get_by_role("button", name="Frames", exact=True).click()
    assert page.locator("tr.object .id").all_text_contents() == ["3", "7"]


def test_the_video_plays_and_masks_follow(open_page):
    page = open_page("report")
    page.get_by_role("button", name="Play").click()
    until(page, "player.frame >= 5")
    page.get_by_role("button", name="Pause").click()
    until(page, "Math.abs(player.video.currentTime - player.edges[player.frame] / 1000) < 0.25")


def test_the_page_works_with_the_keyboard(open_page):
    page = open_page("report")
    page.get_by_label("Frame", exact=True).focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.evaluate("player.frame") == 3
    page.locator(".pick").nth(1).focus()
    assert page.evaluate("player.row") == 1, "focus highlights"
    page.keyboard.press("Enter")
    assert page.locator(".pick").nth(1).get_attribute("aria-pressed") == "true"


def test_hostile_names_do_not_run(open_page):
    page = open_page("report")
    assert page.evaluate("window.hacked === undefined")
    assert page.locator("img[src=x]").count() == 0
    assert HOSTILE in page.locator("main").text_content()


def test_a_comparison_jumps_to_its_first_moment(open_page):
    page = open_page("compare")
    assert page.locator("canvas").count() == 2
    button = page.locator(".moments button").first
    button.click()
    assert page.evaluate("player.frame") == int(button.get_attribute("data-frame"))


def test_a_chart_shows_the_values_under_the_pointer(open_page):
    page = open_page("training")
    page.locator(".chart > svg").first.hover()
    assert page.locator(".read").first.text_content().startswith("iteration ")


@pytest.mark.parametrize("name", ["report", "compare", "training"])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_pages_are_accessible_and_fit(browser, pages, name, width, scheme):
    view = {"width": width, "height": 844}
    context = browser.new_context(viewport=view, color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.goto(f"file://{pages[name]}")
    assert_accessible(page)
    context.close()


@pytest.mark.slow
def test_a_large_page_opens_in_two_seconds_and_scrolls(browser, tmp_path):
    """100 identities and 3,000 frames, in processor time of the page's thread; a frame of scrolling takes 16 ms."""
    path, _ = large_page(tmp_path)
    page = browser.new_page(viewport={"width": 1280, "height": 844})
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")

    def seconds() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "ThreadTime")

    page.goto(f"file://{path}")
    until(page, "!!window.player")
    opened = seconds()
    page.evaluate(
        """async () => {
            for (let i = 0; i < 60; i++) {
                window.scrollBy(0, 80);
                await new Promise(requestAnimationFrame);
            }
        }"""
    )
    scrolled = (seconds() - opened) / 60
    page.close()
    assert opened < 2
    assert scrolled < 0.016
