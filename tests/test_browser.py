from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from page_boards import HOSTILE, IMAGE, ROWS, SCRIPT, hostile_board, hostile_page

from robbench.leaderboards.archive import read_archive, read_note, read_pictures
from robbench.leaderboards.board import board_data
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
PUBLISHED = Path(__file__).resolve().parents[1] / "leaderboards" / "published" / "ensembles-digits"


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
    note, cells = read_note(PUBLISHED), read_archive(PUBLISHED)
    made = page_of(board_data(note.title, note.grid, cells), note, cells, PUBLISHED, read_pictures(PUBLISHED))
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


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_pages_fit_and_can_be_read(opened: Any, site: Path, address: str, width: int, scheme: str) -> None:
    index = opened((site / "index.html").as_uri(), width, color_scheme=scheme)
    assert overflow(index) <= 0
    index.get_by_role("link").first.click()
    assert index.url == address
    assert index.get_by_role("heading", level=1).inner_text() == SCRIPT
    page = opened(address, width, color_scheme=scheme)
    page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    assert overflow(page) <= 0
    assert page.locator("img").evaluate_all(
        "images => images.every((image) => image.complete && image.naturalWidth > 0)"
    )
    for shown in (index, page):
        assert shown.evaluate(CONTRAST) == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 3 * 60) is (scheme == "dark")


CONTRAST = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const rgb = (color) => {
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        return canvas.getImageData(0, 0, 1, 1).data;
    };
    const light = (color) => [...rgb(color)].slice(0, 3)
        .map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
    const behind = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const color = getComputedStyle(at).backgroundColor;
            if (!color.startsWith("rgba(0, 0, 0, 0")) return color;
        }
    };
    const low = new Set();
    for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!own || !element.checkVisibility()) continue;
        const [a, b] = [light(getComputedStyle(element).color), light(behind(element))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) low.add(`${element.tagName}.${element.className}`);
    }
    return [...low];
}"""


def test_tables_sort_by_any_column(opened: Any, address: str) -> None:
    page = opened(address)
    heading = page.locator(RANKING).get_by_role("columnheader", name="Clean", exact=True)
    button = heading.get_by_role("button")
    first = column(page, "Model")
    button.click()
    assert heading.get_attribute("aria-sort") == "descending"
    found = [float(re.match(r"\d+\.\d", text)[0]) for text in column(page, "Clean")]  # type: ignore[index]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) > 2
    button.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    again = [float(re.match(r"\d+\.\d", text)[0]) for text in column(page, "Clean")]  # type: ignore[index]
    assert again == sorted(found)
    page.locator(RANKING).get_by_role("button", name="Model").click()
    assert column(page, "Model") == sorted(column(page, "Model"), key=page_order(page))
    assert heading.get_attribute("aria-sort") == "none"
    page.locator(RANKING).get_by_role("button", name="Rank").click()
    assert [int(rank.rstrip("=")) for rank in column(page, "Rank")] == sorted(
        int(r.rank.rstrip("=")) for r in hostile_board().rows if r.rank
    )
    assert sorted(column(page, "Model")) == sorted(first)


def page_order(page: Page) -> Any:
    order = page.evaluate("names => names.sort(new Intl.Collator('en', {numeric: true}).compare)", list(ROWS))
    return [" ".join(name.split()) for name in order].index


def test_what_is_missing_sorts_last_either_way(opened: Any, address: str) -> None:
    page = opened(address)
    table = "#conditions table >> nth=0"
    button = page.locator(table).locator("thead button").filter(has_text=re.compile(r"^pgd@0\.1$"))
    for _ in range(2):
        button.click()
        assert column(page, "pgd@0.1", table)[-1] == "failed"


def test_rows_can_be_filtered(opened: Any, address: str) -> None:
    page = opened(address)
    ranked = len(column(page, "Model"))
    page.get_by_label("Rows", exact=True).fill("PLAIN 3")
    assert column(page, "Model") == ["plain 3"]
    assert column(page, "Model", "#strength table >> nth=0") == ["plain 3"]
    assert page.locator("#filter output").inner_text() == f"1 of {len(ROWS)} rows"
    page.get_by_label("Rows", exact=True).fill("nothing")
    assert column(page, "Model") == []
    page.get_by_role("button", name="Show all").click()
    page.locator("#filter output").filter(has_text=re.compile(r"^12 rows$")).wait_for()
    assert len(column(page, "Model")) == ranked
    page.get_by_label("defense").select_option(SCRIPT)
    assert sorted(column(page, "Model", "#strength table >> nth=0")) == sorted(ROWS[1:-1:2])
    assert page.locator("#filter select").count() == 1, "objective, balancer and architecture are the same for all"


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_the_answer_is_on_the_first_screen(opened: Any, published: str, width: int, height: int) -> None:
    page = opened(published, width, height)
    for answer in (page.locator(".lead"), page.locator(RANKING).locator("tbody tr").first):
        box = answer.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["y"] + box["height"] <= height


# Tables that go on to the right and do not fade there; where names are of usual lengths, some are to fit at all widths.
CLIPPED = """(boxes, usual) => boxes
    .filter((box) => box.checkVisibility() && box.clientWidth < box.scrollWidth - 2)
    .filter((box) => (usual && box.closest(".fit")) || !box.classList.contains("more"))
    .map((box) => box.ariaLabel)"""


@pytest.mark.parametrize("width", [1280, 390])
def test_tables_fit_or_say_that_they_go_on(opened: Any, address: str, published: str, width: int) -> None:
    for url in (address, published):
        page = opened(url, width)
        page.evaluate("for (const part of document.querySelectorAll('main details:not(.columns)')) part.open = true")
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert page.locator("main .box").evaluate_all(CLIPPED, url == published) == []
        assert overflow(page) <= 0


def test_the_caption_tells_how_a_table_is_sorted(opened: Any, address: str) -> None:
    page = opened(address)
    caption = page.locator(RANKING).locator("caption")
    assert caption.inner_text() == "Rows from best to worst"
    page.locator(RANKING).get_by_role("button", name="Clean", exact=True).click()
    assert caption.inner_text() == "Rows, sorted by Clean, highest first"
    page.locator(RANKING).get_by_role("button", name="Model").click()
    assert caption.inner_text() == "Rows, sorted by Model, A to Z"


def test_columns_can_be_hidden_by_keyboard(opened: Any, address: str) -> None:
    page = opened(address)
    control = page.locator("#ranking .columns").first
    summary = control.locator("summary")
    before = page.locator(RANKING).get_by_role("columnheader").count()
    summary.focus()
    page.keyboard.press("Enter")
    clean = control.get_by_role("checkbox", name="Clean", exact=True)
    clean.focus()
    page.keyboard.press("Space")
    assert not clean.is_checked()
    assert page.locator(RANKING).get_by_role("columnheader", name="Clean", exact=True).count() == 0
    assert page.locator(RANKING).get_by_role("columnheader").count() == before - 1
    assert {row.locator("td:visible, th:visible").count() for row in page.locator(RANKING).locator("tr").all()} == {
        before - 1
    }
    assert control.get_by_role("checkbox", name="Model").count() == 0, "a row without its name says nothing"
    page.keyboard.press("Escape")
    assert not clean.is_visible()
    assert summary.evaluate("summary => summary === document.activeElement")
    summary.click()
    control.get_by_role("button", name="All columns").click()
    assert page.locator(RANKING).get_by_role("columnheader", name="Clean", exact=True).count() == 1


def test_an_address_shows_the_same_view(opened: Any, address: str) -> None:
    page = opened(address)
    page.get_by_label("Rows", exact=True).fill("plain")
    page.locator(RANKING).get_by_role("button", name="Clean", exact=True).click()
    page.locator("#ranking .columns summary").first.click()
    page.locator("#ranking .columns").first.get_by_role("checkbox", name="fgsm@0.1").uncheck()
    page.get_by_role("button", name="Averaged over classes").click()
    page.locator("#filter summary").evaluate("summary => summary.parentElement.open = true")
    page.get_by_label("defense").select_option(SCRIPT)

    def view(page: Page) -> list[Any]:
        shown = page.locator("#conditions .view").evaluate_all("views => views.map((view) => view.hidden)")
        headings = page.locator(RANKING).get_by_role("columnheader").all_inner_texts()
        return [column(page, "Model"), headings, shown, page.get_by_label("defense").input_value()]

    kept = view(page)
    assert kept[0]
    assert set(kept[0]) < {name for name in ROWS if name.startswith("plain")}
    assert kept[2] == [True, False]
    again = opened(page.url)
    assert view(again) == kept
    again.locator("nav").get_by_role("link", name="Classes").click()
    again.wait_for_url("**#classes?*")
    again.locator("#conditions .view:not([hidden]) tr:visible td a").first.click()
    again.wait_for_url("**#record-*?*")
    assert view(opened(again.url)) == kept
    again.get_by_role("button", name="Close").click()
    again.get_by_role("button", name="Show all").click()
    again.locator("#filter output").filter(has_text=re.compile(r"^12 rows$")).wait_for()
    assert "text=" not in again.url
    assert "sort=" in again.url


@pytest.mark.parametrize(
    "query",
    ["sort=ranking.99.ascending", "sort=x.y&hide=ranking.a.1e9&show=classes.7", "defense=none+of+these", "%&=&&"],
)
def test_an_address_that_means_nothing_changes_nothing(opened: Any, address: str, query: str) -> None:
    page, wrong = opened(address), opened(f"{address}#ranking?{query}")
    assert column(wrong, "Model") == column(page, "Model")
    assert wrong.locator("#conditions .view:visible").count() == 1


def test_the_heat_map_shows_rows_by_classes(opened: Any, address: str) -> None:
    page = opened(address)
    board = hostile_board()
    view = page.locator("#classes .heat .view:not([hidden])").first
    worst = [row.worst["Linf 0.1"] for row in board.rows if row.worst["Linf 0.1"]]
    shades = view.locator("td.shade")
    expected = [f"{100 * figure.value:.1f}" for rates in worst if rates for figure in rates.per_class if figure]
    assert shades.all_inner_texts() == expected
    colors = shades.evaluate_all(
        "cells => cells.map((cell) => [+cell.dataset.s, getComputedStyle(cell).backgroundColor])"
    )
    assert len({color for _, color in colors}) == len({value for value, _ in colors}) > 5
    page.locator("#classes").get_by_role("button", name="Clean").click()
    clean = [rates for row in board.rows if (rates := board.clean(row))]
    now = page.locator("#classes .heat .view:not([hidden]) td.shade").all_inner_texts()
    assert now == [f"{100 * figure.value:.1f}" for rates in clean for figure in rates.per_class if figure]
    assert page.locator("#classes").get_by_role("button", name="Clean").get_attribute("aria-pressed") == "true"


def test_two_rows_stand_side_by_side(opened: Any, address: str) -> None:
    board = hostile_board()
    pair = next(pair for pair in board.pairs if pair.robust)
    labels = [row.label for row in board.rows]
    first, second = (board.rows[labels.index(label)] for label in (pair.first, pair.second))
    page = opened(address)
    page.get_by_role("link", name="Compare two rows").click()
    panel = page.locator("#panel")
    for at, row in enumerate((first, second)):
        panel.get_by_role("combobox").nth(at).select_option(str(labels.index(row.label)))
    assert page.url.endswith(f"#compare-{labels.index(first.label)}-{labels.index(second.label)}")
    cells = panel.locator("tbody tr", has=page.get_by_role("rowheader", name="Worst case Linf 0.1")).locator("td")
    one, two = (row.worst["Linf 0.1"] for row in (first, second))
    assert one is not None
    assert two is not None
    assert pair.robust is not None
    texts = [text.split("\n") for text in cells.all_inner_texts()]
    assert [text[0] for text in texts[:2]] == [f"{100 * rates.balanced.value:.1f}" for rates in (one, two)]
    added = pair.robust.added
    assert texts[2][0] == f"{100 * added.value:+.1f}".replace("-", "−")
    assert texts[2][1] == f"{100 * (added.low or 0):+.1f} to {100 * (added.high or 0):+.1f}".replace("-", "−")
    assert texts[2][2].startswith("p ")
    turned = opened(
        page.url.replace(
            page.url.rpartition("#")[2], f"compare-{labels.index(second.label)}-{labels.index(first.label)}"
        )
    )
    other = turned.locator("#panel tbody tr", has=turned.get_by_role("rowheader", name="Worst case Linf 0.1"))
    assert other.locator("td").last.inner_text().split("\n")[0] == f"{-100 * added.value:+.1f}".replace("-", "−")
    panel.get_by_role("link").first.click()
    page.wait_for_url("**#figure-*")
    panel.get_by_role("button", name="Close").click()
    page.wait_for_url(address)


def test_rows_of_no_pair_show_differences_without_intervals(opened: Any, address: str) -> None:
    board = hostile_board()
    paired = {frozenset((pair.first, pair.second)) for pair in board.pairs}
    places = range(len(board.rows))
    one, two = next(
        (a, b)
        for a in places
        for b in places[a + 1 :]
        if frozenset((board.rows[a].label, board.rows[b].label)) not in paired
    )
    page = opened(f"{address}#compare-{one}-{two}")
    assert "were not tested" in page.locator("#panel").inner_text()
    assert not re.search(r"\bp [\d<]", page.locator("#panel table").first.inner_text())


def test_a_name_leads_to_the_card_of_its_model(opened: Any, address: str) -> None:
    page = opened(address)
    page.locator(RANKING).get_by_role("link", name="plain 3").click()
    text = page.locator("#panel").inner_text()
    for needed in ("plain 3", "Architecture", "cnn", "lr = 0.1", "Seed 0", "Seed 1", "Recipe"):
        assert needed in text, needed
    page.keyboard.press("Escape")
    page.wait_for_url(address)
    card = page.locator(".card", has=page.get_by_role("heading", name="plain 3"))
    card.locator("summary").click()
    assert card.get_by_text("lr = 0.1").is_visible()


def test_charts_are_dark_in_the_dark_and_photographs_stay(opened: Any, published: str) -> None:
    page = opened(published, color_scheme="dark")
    filters = page.locator("figure").evaluate_all(
        "all => all.map((one) => [one.className, getComputedStyle(one.querySelector('img')).filter])"
    )
    assert {name for name, _ in filters} == {"", "photographs"}
    assert all((found == "none") is (name == "photographs") for name, found in filters)
    page.get_by_role("button", name="Use light colors").click()
    page.emulate_media(media="print", color_scheme="dark")
    kept = page.locator("figure img").evaluate_all("all => all.map((one) => getComputedStyle(one).filter)")
    assert set(kept) == {"none"}


def test_conditions_are_shown_one_way_at_a_time(opened: Any, address: str) -> None:
    page = opened(address)
    views = page.locator("#conditions .view")
    assert [views.nth(at).is_visible() for at in range(2)] == [True, False]
    page.get_by_role("button", name="Averaged over classes").click()
    assert [views.nth(at).is_visible() for at in range(2)] == [False, True]


def test_a_number_leads_to_its_record_and_back(opened: Any, address: str) -> None:
    page = opened(address)
    panel = page.locator("#panel")
    cell = (
        page.locator("#conditions .view:not([hidden]) tr", has=page.get_by_role("rowheader", name=IMAGE))
        .locator("td a")
        .nth(2)
    )
    shown = cell.inner_text()
    cell.click()
    assert re.fullmatch(r".*#record-[0-9a-f]{20}", page.url)
    text = panel.inner_text()
    key = page.url.rpartition("-")[2]
    for needed in (
        key,
        IMAGE,
        "fgsm@0.1",
        shown,
        "Seed 0",
        "Seed 1",
        "noise-wins",
        "f" * 64,
        "torch",
        "linf",
        "cpu",
        SCRIPT,
    ):
        assert needed in text, needed
    page.go_back()
    assert not panel.is_visible()
    page.go_forward()
    assert panel.is_visible()
    page.keyboard.press("Escape")
    page.wait_for_url(address)
    assert not panel.is_visible()


def test_a_worst_case_leads_to_its_conditions_and_on_to_their_records(opened: Any, address: str) -> None:
    page = opened(address)
    panel = page.locator("#panel")
    page.locator("#ranking td.bar a").first.click()
    inner = panel.get_by_role("link")
    assert [text.strip() for text in inner.all_inner_texts()] == list(hostile_board().threats["Linf 0.1"])
    inner.nth(1).click()
    assert "#record-" in page.url
    panel.get_by_role("button", name="Back").click()
    page.wait_for_url("**#figure-*")
    panel.get_by_role("link").nth(0).click()
    panel.get_by_role("button", name="Close").click()
    page.wait_for_url(address)
    assert not panel.is_visible()


def test_records_open_from_an_address(opened: Any, address: str) -> None:
    page = opened(address)
    anchors = page.locator("main a[href^='#record-'], main a[href^='#figure-']").evaluate_all(
        "links => [...new Set(links.map((link) => link.getAttribute('href')))]"
    )
    assert len(anchors) > 100
    silent = page.evaluate(
        """async (anchors) => {
            const silent = [];
            for (const anchor of anchors) {
                location.hash = anchor;
                await new Promise((done) => addEventListener("hashchange", done, { once: true }));
                const panel = document.getElementById("panel");
                if (!panel.open || /undefined|NaN/.test(panel.textContent)) silent.push(anchor);
            }
            return silent;
        }""",
        anchors[::13],
    )
    assert silent == []
    other = opened(address + anchors[0])
    assert other.locator("#panel").is_visible()
    other.get_by_role("button", name="Close").click()
    assert other.url == address
    assert not opened(address + "#record-0").locator("#panel").is_visible()


def test_hostile_names_are_shown_and_do_nothing(opened: Any, address: str) -> None:
    page = opened(address)
    headers = page.locator(RANKING).locator("tbody th").all_inner_texts()
    assert {" ".join(name.split()) for name in HOSTILE} <= {" ".join(text.split("\n")[0].split()) for text in headers}
    page.locator("#conditions .view:not([hidden]) td a").last.click()
    assert page.locator("#panel").is_visible()
    assert [text.split("\n")[-1] for text in headers].count("noise-wins") == 1
    assert page.locator("script").count() == 3
    assert page.locator("svg, img[src='x'], [onerror], [onload]").count() == 0


def test_colors_can_be_changed(opened: Any, address: str) -> None:
    page = opened(address, color_scheme="light")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Use dark colors").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    assert page.evaluate(CONTRAST) == []
    page.get_by_role("button", name="Use light colors").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == before


def test_paper_has_everything_and_no_controls(opened: Any, address: str) -> None:
    page = opened(address, color_scheme="dark")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("main details:not([open], .columns)").count() == 0
    assert all(page.locator("#conditions .view").nth(at).is_visible() for at in range(2))
    assert page.locator(".control:visible, nav:visible, #panel:visible").count() == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("main details:not([open], .columns)").count() > 0
    assert page.locator("#conditions .view[hidden]").count() == 1


def test_paper_has_the_columns_that_a_phone_has_no_room_for(opened: Any, address: str) -> None:
    page = opened(address, 390)
    headings = page.locator(RANKING).get_by_role("columnheader")
    shown = headings.count()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert headings.count() > shown
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert headings.count() == shown


def test_without_scripts_it_can_still_be_read(opened: Any, address: str) -> None:
    page = opened(address, java_script_enabled=False)
    assert page.locator(RANKING).is_visible()
    assert all(page.locator("#conditions .view").nth(at).is_visible() for at in range(2))
    assert not page.locator("#filter").is_visible()
    assert not page.locator("#theme").is_visible()
