"""The page at `/` in a headless browser, where Chromium and Playwright are installed: `make test-serve`."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

from serving import Server, served

from flashelmo import ElmoEmbedder
from flashelmo.engine.model.named.locate import bundled

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SENTENCES = ["the cat sat", "a cat <b>sleeps</b>", "sat the cat"]
SCREENSHOT = os.environ.get("FLASHELMO_SCREENSHOT")  # where one is wanted, such as docs/images/serve-page.png


def test_the_page_needs_nothing_else(root: Path) -> None:
    text = (root / "src" / "flashelmo" / "serve" / "page.html").read_text(encoding="utf-8")
    assert "http://" not in text and "https://" not in text, "it works offline"
    assert "innerHTML" not in text, "what is typed is text"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1100, "height": 780})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert not errors


def embed(page: Any, server: Server, sentences: list[str]) -> None:
    page.goto(server.url)
    page.fill("#text", "\n".join(sentences))
    page.click("#embed")
    page.wait_for_selector(".word")


def test_a_words_neighbours_are_shown_by_layer(page: Any, model: Path) -> None:
    tokens = [sentence.split() for sentence in SENTENCES]
    words = [token for sentence in tokens for token in sentence]
    vectors = np.concatenate(ElmoEmbedder.load(model, device="cpu").embed_batch(tokens), axis=1)
    vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    cosines = np.einsum("lwp,lp->wl", vectors, vectors[:, 1])  # with the first "cat"
    with served(model) as server:
        embed(page, server, SENTENCES)
        assert page.locator("#about").text_content() == "tiny, 3 layers of 8, fp32"
        assert page.locator(".word").all_text_contents() == words
        page.locator(".word").nth(1).click()
        for layer, name in ((2, "LSTM 2"), (0, "characters")):
            page.get_by_role("button", name=name).click()
            order = sorted((w for w in range(len(words)) if w != 1), key=lambda w: -cosines[w, layer])
            assert page.locator("#list b").all_text_contents() == [words[w] for w in order]
            rows = [row.split() for row in page.locator("#heat tr").all_inner_texts()[1:]]
            found = np.array([[float(cell) for cell in row[-3:]] for row in rows])
            np.testing.assert_allclose(found, cosines[order], atol=6e-4)
            assert page.locator("#list-title").text_content() == f"Nearest in context, {name}"
        assert page.locator("#list li b").count() == len(words) - 1 and page.locator("#list li b b").count() == 0


def test_an_error_is_shown_and_a_key_can_be_given(page: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret", encoding="utf-8")
    with served(model, "--max-sentences", 2, "--api-key-file", tmp_path / "key") as server:
        page.goto(server.url)
        page.click("#embed")
        page.locator("#error", has_text="Authorization: expected").wait_for()
        page.fill("#key", "secret")
        page.click("#embed")
        page.locator("#error", has_text="inputs: expected 2 sentences at most, found 6").wait_for()
        page.fill("#text", "the cat")
        page.click("#embed")
        page.wait_for_selector(".word")
        assert page.locator("#error").text_content() == ""
        assert page.locator("#about").text_content() == "tiny, 3 layers of 8, fp32"


@pytest.mark.skipif(not SCREENSHOT, reason="no FLASHELMO_SCREENSHOT")
def test_screenshot(page: Any) -> None:
    """docs/images/serve-page.png, of the model that comes with the package."""
    with served(bundled()) as server:
        page.goto(server.url)
        page.click("#embed")
        page.wait_for_selector(".word")
        page.locator(".word", has_text="bank").first.click()
        page.screenshot(path=SCREENSHOT)
