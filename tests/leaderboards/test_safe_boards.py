"""Names, titles, reasons and notes of others leave the structure of every rendering as it is."""

from __future__ import annotations

import csv
import functools
import io
import json
import re
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from board_cells import ALL, CHAIN, CLEAN, FGSM, PGD, ROTATION, Cell, cell, dataset, model, outcome
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console
from stores import LABELS, attacked

from robbench.cli._display import Terminal, table
from robbench.core.registry import Registry
from robbench.core.safe_text import visible
from robbench.evaluation.scoring import scored
from robbench.leaderboards import write_board
from robbench.leaderboards.board_making import board_data
from robbench.leaderboards.html import IndexEntry, index_page
from robbench.leaderboards.html.records import unpacked
from robbench.leaderboards.markdown import code, escape, undivided
from robbench.leaderboards.summary import summary_rows
from robbench.results.board_directory import _listing
from robbench.results.schema import BoardNote, Reference

PIECES = [
    *"\\`*_{}[]()#+-.!|~<>&$:/@='\"; \t\n\r\x00\x1b\x9b\x7f\u202e\u2066\u200b\u2028\u2029\ufeff\U000e0041é日1a",
    *("http://x.y", "www.x.y", "a@b.co", "&amp;", "<b>", "</script>", "<!--", "-->", "```", "---", "===", "1. ", "- "),
    *("![a](http://x.y/z.png)", "](http://x.y)", "<img src=x onerror=alert(1)>", "javascript:alert(1)", "[red]"),
    *('" onmouseover="alert(1)', "' x='", "=1+1", "@SUM(A1)", "\x1b[31m", "\x1b]8;;http://x.y\x07", "{{ x }}"),
    *("{% x %}", "$x$", "__proto__"),
]
TEXTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join) | st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12
)
UNSAFE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e0fff]")
TABLES = MarkdownIt("commonmark").enable("table")


def board(names: Sequence[str]) -> tuple[BoardNote, list[Cell]]:
    """A board with every kind of text that others can write; ``names`` are used one after the other."""
    label, other, one, title, told = names
    data = dataset([f"a{one}", f"b{other}"], test=(20, 20), label=f"data {title}")
    rows = [model(f"first {label}"), model(f"second {other}", "fgm"), model(f"third {one}", start=f"first {label}")]
    rows[1] = rows[1].model_copy(update={"recipe": {f"rate {told}": label, "epochs": 2}})
    named = [spec.model_copy(update={"label": f"{spec.label} {told}"}) for spec in (CLEAN, FGSM, PGD, ROTATION, CHAIN)]
    results = (attacked(40, "clean"), attacked(30), attacked(20), attacked(35, "natural"), attacked(10, "chain"))
    cells: list[Cell] = []
    for row, spare in zip(rows, (5, 0, 9), strict=True):
        for condition, found in zip(named, results, strict=True):
            record, result = cell(row, condition, found, data=data, flags={"noise-wins": told} if spare == 9 else None)
            assert result is not None
            cells.append((scored(record, result, Registry(installed=False)), result))
    record, _ = cell(rows[0], ALL.model_copy(update={"label": f"all {one}"}), f"broke: {told}", data=data)
    cells.append((record.model_copy(update={"notes": (told, title)}), None))
    extra = cells[0][0].model_copy(
        update={
            "notes": (told, f"note {label}"),
            "cautions": {f"caution {one}": told},
            "metrics": {**cells[0][0].metrics, f"own {label}": cells[0][0].metrics["accuracy"]},
            "provenance": {"versions": {f"torch {one}": told}, "plugins": [other]},
            "traits": (told,),
        }
    )
    cells[0] = extra, cells[0][1]
    reference = Reference(row=f"first {label}", condition=named[0].label, value=0.5, remark=told)
    note = BoardNote(
        grid=f"grid {title}", title=title, about=f"{told}\n\n{title}", references=(reference,), differences=told
    )
    return note, cells


def rendered(names: Sequence[str]) -> dict[str, str]:
    note, cells = board(names)
    with TemporaryDirectory() as folder:
        place = Path(folder)
        write_board(place, note, cells)
        found = {path.name: path.read_bytes().decode() for path in place.iterdir() if path.is_file()}
        entry = IndexEntry.read(place)
    found["index of boards"] = index_page([entry])
    found["list of boards"] = _listing([entry])
    return found


class Tags(HTMLParser):
    """Elements with the names of their attributes, without the places where a line may break."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, ...]] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("wbr",):
            self.found.append((tag, *(name for name, _ in attrs)))
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "action")]

    @classmethod
    def of(cls, text: str) -> Tags:
        made = cls()
        made.feed(text)
        return made


def blocks(text: str) -> Iterator[str]:
    """What markdown makes of a text: blocks and inline elements in order, but for plain text."""
    for token in TABLES.parse(text):
        yield token.type
        for child in token.children or ():
            if child.type not in ("text", "softbreak", "html_inline"):
                yield child.type
            elif child.type == "html_inline":
                assert child.content in ("<!-- -->", "<br>"), child.content


PLAIN = ("x", "y", "z", "t", "w")


@functools.cache
def plain() -> dict[str, str]:
    return rendered(PLAIN)


NASTY = (
    "<img src=x onerror=alert(1)>",
    "a|b](http://x.y)",
    "=1+1\u202e\x1b[31m",
    "</script>\n# x",
    "![a](b) ``` a@b.co \u2028",
)


@settings(max_examples=4, deadline=None, phases=[Phase.explicit, Phase.generate])
@example(NASTY)
@given(st.lists(TEXTS.filter(str.strip), min_size=5, max_size=5, unique_by=lambda text: "".join(text.split())))
def test_texts_of_others_leave_every_rendering_intact(names: Sequence[str]) -> None:
    made = rendered(names)
    assert made.keys() == plain().keys()
    for name, text in made.items():
        assert not UNSAFE.search(text), name
    for name in ("index.html", "index of boards"):
        tags, wanted = Tags.of(made[name]), Tags.of(plain()[name])
        assert tags.found == wanted.found
        assert all(re.match(r"#|data:image/png|figures/|\.\./index|[\w%.~-]+(/|\.)", one) for one in tags.addresses)
        assert not any(":" in one for one in tags.addresses)
    for name in ("README.md", "list of boards"):
        paragraphs = {"paragraph_open", "paragraph_close", "inline"}
        assert [one for one in blocks(made[name]) if one not in paragraphs] == [
            one for one in blocks(plain()[name]) if one not in paragraphs
        ]
    for name in (name for name in made if name.endswith(".csv")):
        lines, expected = (list(csv.reader(io.StringIO(found[name]))) for found in (made, plain()))
        assert [len(line) for line in lines] == [len(line) for line in expected]
        for line, other in zip(lines, expected, strict=True):
            for cell_, before in zip(line, other, strict=True):
                told = cell_ == before or cell_[:1] not in tuple("=+-@\t\r") or re.fullmatch(r"-\d+(\.\d+)?", cell_)
                assert told, (name, cell_)
    data = re.search(r'id="data">(.*)</script>', unpacked(made["index.html"]))
    assert data is not None


@settings(max_examples=40, deadline=None)
@given(TEXTS)
def test_one_text_is_shown_as_it_is(text: str) -> None:
    shown = " ".join(visible(" ".join(text.split())).split())
    for part, wanted in (
        (f"{escape(text)}\n", shown),
        (f"| h |\n|:--|\n| {escape(text)} |\n", shown),
        (f"- **b** {escape(text)}\n", shown),
        (f"[{escape(text, brackets=True)}](u)\n", shown),
        (f"{code(text)}\n", shown.replace("`", "'")),
    ):
        inline = [token for token in TABLES.parse(undivided(part)) if token.type == "inline"]
        said = "".join(child.content for child in (inline[-1].children or () if inline else ()))
        assert said.removeprefix("b ").strip() == wanted.strip() or wanted.strip() in said


@settings(max_examples=40, deadline=None)
@given(TEXTS)
def test_a_terminal_gets_nothing_to_obey(text: str) -> None:
    stream = io.StringIO()
    console = Terminal(file=stream, force_terminal=True, width=200, color_system=None)
    made = table("name", text, numbers=("n",))
    made.add_row(text, "[red]x[/red]", text)
    made.title = text
    console.print(text)
    console.say(f"[bold]{text}[/bold]")
    console.print(made)
    assert "[bold]" in stream.getvalue()
    assert "[red]" in stream.getvalue()
    assert not UNSAFE.search(stream.getvalue())


def test_the_top_of_a_board_in_a_terminal_is_visible() -> None:
    _, cells = board(NASTY)
    assert visible(json.dumps(summary_rows(cells))) == json.dumps(summary_rows(cells))
    assert isinstance(Terminal(), Console)


def test_two_names_that_are_shown_alike_make_no_board() -> None:
    names = [model("a\u202e"), model("a\\u202e")]
    with pytest.raises(ValueError, match="two cells for"):
        board_data("", "", [cell(one, CLEAN, outcome("clean", LABELS)) for one in names])
