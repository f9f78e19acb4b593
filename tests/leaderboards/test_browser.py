from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browsing import RANKING, column, overflow
from page_boards import HOSTILE, IMAGE, QUOTES, ROWS, SCRIPT, hostile_board

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytest_plugins = ("browsing",)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_pages_fit_and_can_be_read(opened: Any, site: Path, address: str, width: int, scheme: str) -> None:
    index = opened((site / "index.html").as_uri(), width, color_scheme=scheme)
    assert overflow(index) <= 0
    index.get_by_role("link").first.click()
    assert index.url == address
    assert index.get_by_role("heading", level=1).inner_text() == f"{SCRIPT} ({QUOTES})"
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
    page.locator("select[name=defense]").select_option(SCRIPT)
    assert sorted(column(page, "Model", "#strength table >> nth=0")) == sorted(ROWS[1:-1:2])
    assert page.locator("#filter select").count() == 1, "objective, balancer and architecture are the same for all"


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
    key = page.url.rpartition("-")[2]
    panel.filter(has_text=key).wait_for()
    text = panel.inner_text()
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
    panel.wait_for(state="hidden")
    page.go_forward()
    panel.wait_for()
    page.keyboard.press("Escape")
    page.wait_for_url(address)
    panel.wait_for(state="hidden")


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
    panel.wait_for(state="hidden")


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
    other.locator("#panel").wait_for()
    other.get_by_role("button", name="Close").click()
    other.wait_for_url(address)
    assert not opened(address + "#record-0").locator("#panel").is_visible()


def test_hostile_names_are_shown_and_do_nothing(opened: Any, address: str) -> None:
    page = opened(address)
    headers = page.locator(RANKING).locator("tbody th").all_inner_texts()
    assert {" ".join(name.split()) for name in HOSTILE} <= {" ".join(text.split("\n")[0].split()) for text in headers}
    page.locator("#conditions .view:not([hidden]) td a").last.click()
    page.locator("#panel").wait_for()
    assert [text.split("\n")[-1] for text in headers].count("flag: noise-wins") == 1
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
    # Parts that were opened for printing tell of it in a later frame, when nothing may be hidden again.
    page.evaluate("new Promise((done) => setTimeout(() => requestAnimationFrame(() => setTimeout(done)), 100))")
    assert headings.count() > shown
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert headings.count() == shown


def test_without_scripts_it_can_still_be_read(opened: Any, address: str) -> None:
    page = opened(address, java_script_enabled=False)
    assert page.locator(RANKING).is_visible()
    assert all(page.locator("#conditions .view").nth(at).is_visible() for at in range(2))
    assert not page.locator("#filter").is_visible()
    assert not page.locator("#theme").is_visible()
