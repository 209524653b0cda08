"""The page of a search in a real browser: it stands alone, fits any width and scheme, and is accessible."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from inference_cases import image_text_model, save_pictures

import mmcon
from mmcon.inference import EmbeddingTable, LoadedModel, embed_source, open_data, search_table
from mmcon.inference.preprocessing import Preprocessing
from mmcon.inference.search import Hit
from mmcon.inference.search_sheet import write_search_sheet

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of a text among pictures, and that of a sound among sounds."""
    folder = tmp_path_factory.mktemp("pages")
    model = mmcon.load(image_text_model(folder / "both"))
    save_pictures(folder / "pictures")
    embed_source(model, open_data(model, folder / "pictures"), folder / "e.parquet", space="shared", log=lambda _: None)
    table = EmbeddingTable.read(folder / "e.parquet")
    hits = [*search_table(table, model, "a cat", k=4), Hit(5, 0.1, str(folder / "gone.png"), "a", 9, 0)]
    first = write_search_sheet(folder / "text.html", table, model, "a cat", hits, modality="text")
    sound = folder / "tone.wav"
    soundfile.write(sound, np.sin(np.arange(8000) / 5) / 2, 16_000)
    audio = LoadedModel(model.model, {"audio": Preprocessing((), {"rate_hz": 16_000, "channels": 1})})
    sounds = EmbeddingTable(
        np.eye(1, 8, dtype=np.float32), ids=[1], paths=[str(sound)], origin=replace(table.origin, modality="audio")
    )
    hits = [Hit(1, 1.0, str(sound), "tone", 1, 0)]
    return first, write_search_sheet(folder / "sound.html", sounds, audio, sound, hits, modality="audio")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_it_is_whole_quiet_and_accessible(pages, width, scheme):
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for path in pages:
            page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
            messages, requests = [], []
            page.on("console", lambda message, kept=messages: kept.append(message.text))
            page.on("request", lambda request, kept=requests: kept.append(request.url))
            page.goto(path.as_uri())
            assert messages == []
            assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            found = axe.Axe().run(page).response["violations"]
            assert [(violation["id"], node["html"]) for violation in found for node in violation["nodes"]] == []
        browser.close()
