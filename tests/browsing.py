"""Pages of boards in a real browser: fixtures, and what is read off a page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from archives import PUBLISHED
from page_boards import IMAGE, hostile_board, hostile_page

from robbench.leaderboards.archive import read_archive, read_note, read_pictures
from robbench.leaderboards.board_making import board_data
from robbench.leaderboards.files import plain_data
from robbench.leaderboards.html import IndexEntry, index_page
from robbench.leaderboards.html import page as page_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Dialog, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SWITCHES = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
RANKING = "#ranking table >> nth=0"
BOARD = PUBLISHED / "ensembles-digits"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser is installed: {', '.join(NAMES)}")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=SWITCHES)
        yield started
        started.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("boards")
    folder = root / "a <b> #1%"
    folder.mkdir()
    (folder / "index.html").write_text(hostile_page(folder), encoding="utf-8")
    entries = [
        IndexEntry.of(folder.name, plain_data(hostile_board())),
        IndexEntry.of(IMAGE, plain_data(hostile_board())),
    ]
    (root / "index.html").write_text(index_page(entries), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def address(site: Path) -> str:
    return (site / "a <b> #1%" / "index.html").as_uri()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a published board's page, made anew."""
    note, cells = read_note(BOARD), read_archive(BOARD)
    made = page_of(board_data(note.title, note.grid, cells), note, cells, BOARD, read_pictures(BOARD))
    path = tmp_path_factory.mktemp("published") / "index.html"
    path.write_text(made, encoding="utf-8")
    return path.as_uri()


def remote(url: str) -> list[str]:
    """The address, if it is not of a file or written out in the page."""
    return [] if url.startswith(("file:", "data:")) else [url]


@pytest.fixture
def opened(browser: Browser) -> Iterator[Any]:
    """Opens pages, and fails on whatever a page complains of or asks for."""
    contexts: list[BrowserContext] = []
    troubles: list[str] = []

    def dismissed(dialog: Dialog) -> None:
        troubles.append(f"dialog {dialog.message}")
        dialog.dismiss()

    def start(url: str, width: int = 1280, height: int = 800, **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce", **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", dismissed)
        page.on("request", lambda sent: troubles.extend(remote(sent.url)))
        page.goto(url)
        if options.get("java_script_enabled", True) and page.locator("#data").count():
            page.locator("html.ready").wait_for(state="attached")
        return page

    yield start
    for context in contexts:
        context.close()
    assert troubles == []


def column(page: Page, heading: str, table: str = RANKING) -> list[str]:
    """The texts of a column, as far as its lines are shown, without what stands small below them."""
    return page.locator(table).evaluate(  # type: ignore[no-any-return]
        """(table, heading) => {
            const at = [...table.tHead.rows[0].cells].findIndex((cell) => cell.innerText.trim().startsWith(heading));
            const shown = [...table.tBodies[0].rows].filter((row) => !row.hidden);
            return shown.map((row) => row.cells[at].innerText.split('\\n')[0].trim());
        }""",
        heading,
    )


def overflow(page: Page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")  # type: ignore[no-any-return]
