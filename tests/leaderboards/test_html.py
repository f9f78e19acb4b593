from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from board_cells import CLEAN, FGSM, PGD, Cell, cell, model, outcome, stage
from hypothesis import given
from hypothesis import strategies as st
from page_boards import (
    CLASSES,
    HOSTILE,
    IMAGE,
    QUOTES,
    SCRIPT,
    hostile_board,
    hostile_cells,
    hostile_page,
    picture,
)

from robbench.core.corruption_kinds import EXTRA, MAIN, SEVERITIES
from robbench.core.errors import StoreError
from robbench.core.safe_text import visible
from robbench.leaderboards import board_data, write_board
from robbench.leaderboards.archive import write_archive
from robbench.leaderboards.figure_manifest import Section
from robbench.leaderboards.files import plain_data
from robbench.leaderboards.html import IndexEntry, index_page, page
from robbench.leaderboards.html.figures import placed
from robbench.leaderboards.html.model_cards import model_cards
from robbench.leaderboards.html.records import unpacked
from robbench.leaderboards.html.rendering import breaks, inline
from robbench.leaderboards.markdown import escape
from robbench.results.schema import BoardNote, ConditionSpec, Training

VOID = {"meta", "link", "img", "input", "br", "wbr"}


class Reader(HTMLParser):
    """Elements with their attributes and all of their text; raises where they are not nested well."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str], list[str]]] = []
        self.open: list[tuple[str, dict[str, str], list[str]]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element: tuple[str, dict[str, str], list[str]] = (tag, {name: value or "" for name, value in attrs}, [])
        self.found.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element[2].append(data)

    def all(self, tag: str) -> list[tuple[dict[str, str], str]]:
        return [(attributes, "".join(text)) for name, attributes, text in self.found if name == tag]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    return hostile_page(tmp_path_factory.mktemp("board"))


@pytest.fixture(scope="module")
def reader(made: str) -> Reader:
    return Reader(made)


def plain(page: str) -> str:
    """The JSON that a page's script reads."""
    return str(re.findall(r'id="data">(.*)</script>\n<script>', unpacked(page), re.DOTALL)[0])


def embedded(text: str) -> dict[str, Any]:
    """What the page's script reads, with everything in its place that is told once and referred to by number."""
    data = json.loads(plain(text))

    def named(found: list[int]) -> list[list[Any]]:
        names = data["shared"][found[0]] if found else []
        return [[name, *data["measures"][at]] for name, at in zip(names, found[1:], strict=True)]

    data["places"] = [
        {"row": data["rows"][row]["label"], "condition": data["conditions"][condition], "keys": keys}
        | {"figures": named(figures), "classes": named(classes)}
        for row, condition, keys, figures, classes in data["places"]
    ]
    data["figures"] = {
        anchor: {"title": title, "figures": named(figures), "places": places}
        for anchor, (title, figures, places) in data["figures"].items()
    }
    for record in data["records"].values():
        made = data["shared"][record.pop("made")]
        record |= made | {name: data["shared"][made[name]] for name in ("model", "dataset", "run")}
        record["condition"] = data["shared"][record["condition"]]
        record["metrics"] = {name: measure for name, *measure in named(record.get("metrics", []))}
        record.setdefault("status", "done")
    return data  # type: ignore[no-any-return]


def simple(cells: Sequence[Cell], folder: Path) -> str:
    return page(board_data("Toys", "small", cells), BoardNote(grid="small", title="Toys"), cells, folder, ())


def test_the_page_is_well_formed_and_asks_for_nothing(made: str, reader: Reader) -> None:
    assert made.startswith("<!doctype html>\n<html lang=")
    policy = next(tag for tag, _ in reader.all("meta") if "Content-Security-Policy" in tag.get("http-equiv", ""))
    assert policy["content"].startswith("default-src 'none'; img-src data:;")
    addresses = [tag[name] for _, tag, _ in reader.found for name in ("src", "href") if name in tag]
    assert addresses
    beside = {address for address in addresses if not address.startswith(("#", "data:image/"))}
    files = {"leaderboard.csv", "per_class.csv", "leaderboard.json", "README.md"}
    files |= {"changes.csv", "training.csv", "checks.csv"} & beside
    assert beside == {"../index.html", "figures/drawn.png", "figures/photo.png", *files}
    ids = [tag["id"] for _, tag, _ in reader.found if "id" in tag]
    assert len(ids) == len(set(ids))
    anchors = {address[1:] for address in addresses if re.match(r"#(?!record-|figure-|compare-)", address)}
    assert anchors <= set(ids)


def test_every_file_of_a_board_can_be_downloaded(tmp_path: Path) -> None:
    cells = [cell(model("a"), CLEAN, outcome("clean", [0, 1]))]
    files = {path.name for path in write_board(tmp_path, BoardNote(grid="small", title=""), cells)}
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    links = {tag["href"] for tag, _ in Reader(text).all("a") if "download" in tag}
    assert links == files - {"index.html", "board.json", "timings.csv"}
    assert all(f"<code>{path.name}</code>" in text for path in write_archive(tmp_path / "published", cells))


def test_a_figure_stands_under_what_it_illustrates(tmp_path: Path) -> None:
    pictures = [replace(picture(tmp_path, f"of-{section}", "", 1), section=section) for section in get_args(Section)]
    found = placed(tmp_path / "figures", pictures, ("strength",))
    assert [figure.picture.name for figure in found.pop("conditions")] == ["of-rounding"]
    assert found.pop("rounding") == []
    assert {part: [figure.picture.name for figure in figures] for part, figures in found.items()} == {
        section: [f"of-{section}"] for section in get_args(Section) if section != "rounding"
    }
    without = placed(tmp_path / "figures", pictures, ())
    assert [figure.picture.name for figure in without["conditions"]] == ["of-strength", "of-rounding"]


def test_a_card_tells_what_a_model_is_and_what_it_cost() -> None:
    spent = Training(
        images=50,
        epochs=3,
        steps=12,
        forwards=1500,
        backwards=900,
        validation_images=9,
        validation_accuracy=0.5,
        validation_balanced_accuracy=0.5,
    )
    cells = []
    for seed in (1, 0):
        record, result = cell(model("a"), CLEAN, outcome("clean", [0, 1]), seed=seed)
        known = {"training": spent, "provenance": {"weights_sha256": "ab" * 32} if seed else {}}
        cells.append((record.model_copy(update=known), result))
    (card,) = model_cards(board_data("", "", cells), [record for record, _ in cells])
    assert card.row == "a"
    assert card.facts["Training passes"].startswith("1,500 forward, 900 backward")
    assert card.facts["Epochs and steps"] == "3 epochs, 12 optimizer steps"
    assert "Started from" not in card.facts
    assert [(seed, weights) for seed, _, weights in card.seeds] == [(0, ""), (1, "ab" * 32)]


def test_a_page_tells_once_what_many_records_share(made: str) -> None:
    text = plain(made)
    data = json.loads(text)
    assert len({json.dumps(measure) for measure in data["measures"]}) == len(data["measures"])
    assert text.count(f'"fingerprint":"{"f" * 64}"') == 1
    assert len(text) < 1000 * len(data["records"])


def test_hostile_names_stay_text(made: str, reader: Reader) -> None:
    assert len(reader.all("script")) == 3
    assert not reader.all("svg")
    assert not [name for _, tag, _ in reader.found for name in tag if name.startswith("on")]
    assert all(tag["src"].startswith("data:") for tag, _ in reader.all("img"))
    assert reader.all("h1")[0][1] == f"{SCRIPT} ({QUOTES})"
    assert "49 **bold**" not in made
    rows = {text for tag, text in reader.all("th") if tag.get("scope") == "row"}
    assert {html.unescape(name) for name in HOSTILE} <= {html.unescape(text) for text in rows}
    headings = [text for tag, text in reader.all("th") if tag.get("scope") == "col"]
    assert any(text.startswith(QUOTES) for text in headings)


def test_every_number_leads_to_records_that_are_there(made: str, reader: Reader) -> None:
    data = embedded(made)
    known = {f"#record-{key}" for place in data["places"] for key in place["keys"]} | {
        f"#{name}" for name in data["figures"]
    }
    links = [tag["href"] for tag, _ in reader.all("a") if re.match(r"#(record|figure)-", tag["href"])]
    assert len(links) > 500
    assert set(links) <= known
    assert all(key in data["records"] for place in data["places"] for key in place["keys"])
    body = made[made.index('<section id="ranking">') : made.index('<section id="method">')]
    bare = re.findall(r'<td class="n[^>]*>(?!<a |–|<)([^<]*)', body)
    ranks = {row.rank for row in hostile_board().rows if row.rank}
    assert set(bare) == ranks


def test_the_worst_case_leads_to_the_conditions_that_it_is_taken_over(made: str) -> None:
    board, data = hostile_board(), embedded(made)
    row = board.rows[0]
    found = next(f for f in data["figures"].values() if f["title"] == f"{row.label}: worst case Linf 0.1")
    places = [data["places"][at] for at in found["places"]]
    assert [place["condition"] for place in places] == list(board.threats["Linf 0.1"])
    assert {place["row"] for place in places} == {row.label}
    worst = row.worst["Linf 0.1"]
    assert worst is not None
    assert [figure[0] for figure in found["figures"]] == [
        "all",
        "balanced",
        "worst class",
        *(f"class {c}" for c in CLASSES),
    ]
    assert found["figures"][1][1:] == pytest.approx(
        [worst.balanced.value, worst.balanced.low, worst.balanced.high, worst.balanced.n], abs=1e-6
    )


def test_records_are_whole(made: str) -> None:
    data = embedded(made)
    for record, _ in hostile_cells():
        found = data["records"][record.key]
        assert (found["seed"], found["status"], found.get("reason")) == (record.spec.seed, record.status, record.reason)
        assert found["model"] == record.spec.model.model_dump(mode="json", exclude_defaults=True)
        assert found["model_key"] == record.spec.model_key
        assert found["dataset"]["fingerprint"] == "f" * 64
        assert found["condition"]["label"] == record.spec.condition.label
        assert found["run"]["versions"] == {"torch": "2.4.0"}
        assert found.get("flags", {}) == record.flags
        assert found.get("cautions", {}) == record.cautions
        assert tuple(found.get("notes", ())) == record.notes


def test_metrics_stand_with_their_intervals(tmp_path: Path) -> None:
    from robbench.evaluation.metrics.decisions import Decisions

    labels = [0, 0, 0, 1]
    record, result = cell(model("a"), CLEAN, outcome("clean", labels, [0, 0, 1, 1]))
    assert result is not None
    record = record.model_copy(update={"metrics": Decisions().measure(result), "confusion": ((2, 1), (0, 1))})
    data = embedded(simple([(record, result)], tmp_path))
    found = data["records"][record.key]
    metrics = found["metrics"]
    assert metrics["accuracy"] == pytest.approx([0.75, 0.300642, 0.954413, 4], abs=1e-5)
    assert metrics["macro_f1"] == pytest.approx([(4 / 5 + 2 / 3) / 2, 4], abs=1e-5)
    assert found["confusion"] == [[2, 1], [0, 1]]


def test_nothing_of_it_depends_on_when_and_where(tmp_path: Path) -> None:
    labels = [0, 1] * 20
    once, again = (
        simple([cell(model("a"), PGD, outcome("attack", labels), seconds=seconds)], tmp_path)
        for seconds in (1.5, 77.25)
    )
    assert once == again
    assert "thishost" not in once
    assert "2024-05-06" not in once


def test_a_corruption_leads_to_its_severities(tmp_path: Path) -> None:
    labels = np.arange(20) % 2
    cells = [cell(model("a"), CLEAN, outcome("clean", labels))]
    for kind in (*MAIN, *EXTRA):
        for severity in SEVERITIES:
            part = stage("corruption", "none", None, kind=kind, severity=severity)
            spec = ConditionSpec(label=f"{kind}@{severity}", kind="natural", stages=(part,))
            wrong = np.arange(20) < severity
            cells.append(
                cell(model("a"), spec, outcome("natural", labels, labels, np.where(wrong, 1 - labels, labels)))
            )
    text = simple(cells, tmp_path)
    data = embedded(text)
    fog = next(figure for figure in data["figures"].values() if figure["title"] == "a: fog")
    assert [data["places"][at]["condition"] for at in fog["places"]] == [f"fog@{severity}" for severity in SEVERITIES]
    assert [figure[:2] for figure in fog["figures"]] == [[f"severity {s}", 1 - s / 20] for s in SEVERITIES]
    mean = next(figure for figure in data["figures"].values() if figure["title"] == "a: Mean of 15")
    assert len(mean["places"]) == len(MAIN) * len(SEVERITIES)
    assert 'id="corruptions"' in text
    assert text.count(">85.0</a>") >= len(MAIN) + len(EXTRA)


def test_figures_are_embedded(tmp_path: Path) -> None:
    text = hostile_page(tmp_path)
    images = Reader(text).all("img")
    assert [tag["alt"] for tag, _ in images] == [QUOTES] * 2
    for (tag, _), name in zip(images, ("drawn", "photo"), strict=True):
        data = base64.b64decode(tag["src"].removeprefix("data:image/png;base64,"))
        assert data == (tmp_path / "figures" / f"{name}.png").read_bytes()
    missing = picture(tmp_path, "gone", "", 1)
    (tmp_path / "figures/gone.png").unlink()
    with pytest.raises(StoreError, match="figure gone"):
        page(hostile_board(), BoardNote(grid="", title=""), hostile_cells(), tmp_path, [missing])


@pytest.mark.parametrize(
    "cells", [[cell(model("a"), FGSM, "broke")], [cell(model("a"), CLEAN, outcome("clean", [0, 1]))]]
)
def test_small_boards_have_pages_too(cells: list[Cell], tmp_path: Path) -> None:
    text = simple(cells, tmp_path)
    assert ("broke" in text) is ("No row could be ranked" in text)
    assert Reader(text).all("table")


def test_long_names_may_be_broken_between_their_parts() -> None:
    assert str(inline("**a_long_name**, _so_")) == "<strong>a_<wbr>long_<wbr>name</strong>, <em>so</em>"
    assert str(breaks("a_b")) == "a_<wbr>b"


@given(st.text(st.characters(exclude_categories=("Cs", "Cc"))))
def test_our_markdown_shows_names_as_they_are(name: str) -> None:
    assert html.unescape(str(inline(escape(name))).replace("<wbr>", "")) == visible(" ".join(name.split()))
    assert html.unescape(str(breaks(name)).replace("<wbr>", "")) == name


def test_our_markdown_has_bold_and_breaks_and_no_links() -> None:
    assert inline("**a** `b` *c*<br>d") == "<strong>a</strong> <code>b</code> <em>c</em><br>d"
    assert "<a" not in inline("[x](https://a.b) <https://a.b> ![y](z)")
    assert "<img" not in inline("![y](z) <img src=x>")


def test_the_index_leads_to_the_boards() -> None:
    board = hostile_board()
    entries = [IndexEntry.of(name, plain_data(board)) for name in ("full-digits", "javascript:a#b?<c>/../d")]
    assert (entries[0].rows, entries[0].dataset, entries[0].title) == (12, QUOTES, f"{SCRIPT} ({QUOTES})")
    leader = board.rows[0]
    assert entries[0].leader == leader.label
    assert entries[0].tied == sum(row.rank == leader.rank for row in board.rows) - 1
    assert entries[0].figure == board.ranking(leader).balanced  # type: ignore[union-attr]
    reader = Reader(index_page(entries))
    links = [tag["href"] for tag, _ in reader.all("a")]
    assert links[0] == "full-digits/index.html"
    assert not set(":#?<") & set(links[1])
    assert not reader.all("img")
    assert IMAGE not in index_page(entries)
    assert "no board here yet" in index_page([])
    failed = IndexEntry.of("x", plain_data(board_data("", "", [cell(model("a"), PGD, "broke")])))
    assert (failed.leader, failed.figure) == ("", None)
    assert "none is ranked" in index_page([failed])


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"rows": [{"rank": "1"}], "ranked_by": "Linf 0.1"}', "null"])
def test_a_board_that_cannot_be_listed_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "leaderboard.json").write_text(content, encoding="utf-8")
    with pytest.raises(StoreError, match=r"cannot read .*leaderboard.json"):
        IndexEntry.read(tmp_path)


def test_an_index_lists_boards_of_an_earlier_version_too() -> None:
    cells = [
        cell(model("a"), CLEAN, outcome("clean", [0, 1])),
        cell(model("a"), PGD, outcome("attack", [0, 1], [0, 1])),
    ]
    data = plain_data(board_data("Toys", "small", cells))
    value, low, high, n = data["rows"][0]["worst"]["Linf 0.1"]["balanced"]
    earlier = json.loads(json.dumps(data))
    known = {"value": value, "low": low, "high": high, "n": n, "seeds": [value]}
    earlier["rows"][0]["worst"]["Linf 0.1"]["balanced"] = known
    assert IndexEntry.of("toys", earlier) == IndexEntry.of("toys", data)
    assert f"{100 * value:.1f}" in index_page([IndexEntry.of("toys", earlier)])
