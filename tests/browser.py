"""Debian's Chromium for tests of pages.  `apt-get install -y chromium` installs it; without it, the tests skip."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
OPTIONS = [
    "no-sandbox",
    "disable-gpu",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "use-fake-device-for-media-stream",
    "use-fake-ui-for-media-stream",
]
#: Milliseconds until a condition counts as not reached.  It is long because the machine may be busy.
PATIENCE = 120_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser without a window and with a simulated camera."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is missing: pip install playwright"
    )
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install -y chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=[f"--{option}" for option in OPTIONS], timeout=PATIENCE
        )
        yield browser
        browser.close()


def until(page: Any, condition: str) -> None:
    """Waits for a condition; `wait_for_function` is refused by the policy of the pages."""
    for _ in range(PATIENCE // 50):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"not reached: {condition}")


def assert_accessible(page: Any) -> None:
    """No finding of axe-core, and no scrolling sideways; the context of the page must bypass its policy."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python"
    )
    findings = axe.Axe().run(page).response["violations"]
    assert [(f["id"], [node["html"] for node in f["nodes"]][:3]) for f in findings] == []
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") == 0
