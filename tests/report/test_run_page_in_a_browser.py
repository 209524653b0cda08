"""The page of a run in a real browser: it stands alone, reads well in any width and scheme, and needs no mouse.

It needs Chromium (Debian: apt-get install chromium); elsewhere it is skipped.
"""

import shutil

import pytest
from made_run import made_run

from mmcon.report.run_page import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    return write_report(made_run(tmp_path_factory.mktemp("runs") / "made"), running=True).as_uri()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser, address, *, width=1280, scheme="light"):
    """The page after its charts are drawn, its messages, and the addresses of its requests."""
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    messages, requests = [], []
    page.on("console", lambda message: messages.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    page.evaluate("window.drawn")
    return page, messages, requests


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_it_is_whole_quiet_and_accessible(browser, address, width, scheme):
    page, messages, requests = opened(browser, address, width=width, scheme=scheme)
    assert messages == []
    assert [url for url in requests if not url.startswith(("data:", "blob:"))] == [address]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    charts = page.locator("[data-chart]")
    assert charts.count() == page.locator("[data-chart] svg, [data-chart] canvas").count() >= 8
    found = axe.Axe().run(page).response["violations"]
    assert [(violation["id"], node["html"]) for violation in found for node in violation["nodes"]] == []
    page.context.close()


def test_the_map_needs_no_mouse(browser, address):
    """Arrow keys go through the samples, and radio buttons change the encoder; each sample brings its neighbors."""
    page, messages, _ = opened(browser, address)
    slider, inspected = page.locator("#sample"), page.locator("#inspected .shown .name")
    slider.focus()
    page.keyboard.press("Home")
    first = inspected.text_content()
    page.keyboard.press("ArrowRight")
    assert inspected.text_content() != first
    assert page.locator("#inspected .near").count() == 2  # after and before training
    page.get_by_label("before training").check()
    page.evaluate("window.drawn")
    assert "random encoder" in page.locator("#map-about").text_content()
    page.locator("#examples .near button").first.focus()
    page.keyboard.press("Enter")
    assert messages == []
    page.context.close()


def test_pointing_at_the_map_shows_the_sample(browser, address):
    page, messages, _ = opened(browser, address)
    box = page.locator('[data-chart="map"] canvas').bounding_box()
    page.evaluate("y => scrollTo(0, y)", box["y"] - 100)
    box = page.locator('[data-chart="map"] canvas').bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(box["x"] + box["width"] / 2 + 5, box["y"] + box["height"] / 2)
    page.locator(".hovered img").wait_for(timeout=5000)
    assert messages == []
    page.context.close()
