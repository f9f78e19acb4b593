from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from browsing import RANKING, column, overflow
from page_boards import ROWS, SCRIPT, hostile_board

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytest_plugins = ("browsing",)


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
    page.locator("select[name=defense]").select_option(SCRIPT)

    def view(page: Page) -> list[Any]:
        shown = page.locator("#conditions .view").evaluate_all("views => views.map((view) => view.hidden)")
        headings = page.locator(RANKING).get_by_role("columnheader").all_inner_texts()
        return [column(page, "Model"), headings, shown, page.locator("select[name=defense]").input_value()]

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


def test_an_address_that_means_nothing_changes_nothing(opened: Any, address: str) -> None:
    usual = column(opened(address), "Model")
    unknown = ("sort=ranking.99.ascending", "sort=x.y&hide=ranking.a.1e9&show=classes.7", "defense=none+of+these")
    for query in (*unknown, "%&=&&"):
        wrong = opened(f"{address}#ranking?{query}")
        assert column(wrong, "Model") == usual, query
        assert wrong.locator("#conditions .view:visible").count() == 1, query


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
    assert pair.robust.p is None, "two seeds"
    assert texts[2][2] == "these checkpoints"
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
