"""One description of a table, three renderings."""

from __future__ import annotations

import csv
import html
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from board_cells import CLEAN, PGD, PGD_2, TOYS, Cell, cell, dataset, model, outcome, part
from markdown_it import MarkdownIt
from stores import under_pgd

from robbench.core.registry import Registry
from robbench.evaluation.scoring import scored
from robbench.evaluation.statistics import Difference
from robbench.leaderboards import board_data, tables, write_board
from robbench.leaderboards.aggregates import Estimate
from robbench.leaderboards.files import csv_text
from robbench.leaderboards.readme import markdown_table, readme
from robbench.leaderboards.sheet import Detail, Evidence, Heading, Sheet, SheetLine, TableCell, texts, word
from robbench.results.schema import ExternalSpec, Measure, Reference, Training

BARE, HARDENED = under_pgd(model("bare", "none"), 8), under_pgd(model("hardened", "fgm"), 30)
NAME = 'a|b <b>"&'
FIGURE = Estimate(1 / 3, 0.25, 0.5, 12, (0.3, 1 / 3))
SHEET = Sheet(
    "Of toys",
    (
        word("Model"),
        Heading("Share", below="n = 12"),
        Heading("Passes", detail=Detail.PAGE),
        Heading("p", detail=Detail.DATA),
    ),
    (
        SheetLine(
            (
                TableCell(NAME, below="not audited"),
                TableCell.share(FIGURE, Evidence.of("evidence", [(NAME, "clean")]), ends=True),
                TableCell.count(1234.0),
                TableCell("< 0.001", 1e-5),
            ),
            NAME,
        ),
        SheetLine((*texts("b"), TableCell.share(None), TableCell.quantity(None), TableCell("0.5", 0.5)), "b"),
    ),
)


def test_markdown_has_remarks_in_brackets_and_what_fits() -> None:
    text = markdown_table(SHEET.upto(Detail.README))
    assert text.splitlines() == [
        "| Model | Share (n = 12) |",
        "| :-- | --: |",
        '| a\\|b \\<b>"\\& (not audited) | 33.3 (25.0–50.0) |',
        "| b | – |",
    ]
    page = MarkdownIt("commonmark").enable("table").render(text)
    assert f'<td style="text-align:left">{html.escape(NAME)} (not audited)</td>' in page


def test_csv_is_unrounded_and_has_everything() -> None:
    lines = list(csv.reader(io.StringIO(csv_text(SHEET))))
    share = ["Share", "Share: low", "Share: high", "Share: n", "Share: by seed"]
    assert lines == [
        ["Model", *share, "Passes", "p"],
        [NAME, repr(1 / 3), "0.25", "0.5", "12", f"0.3 {1 / 3!r}", "1234.0", "1e-05"],
        ["b", "", "", "", "", "", "", "0.5"],
    ]
    both = list(csv.reader(io.StringIO(csv_text(SHEET, replace(SHEET, caption="Others")))))
    assert [line[0] for line in both] == ["table", "Of toys", "Of toys", "Others", "Others"]


def test_html_links_to_the_evidence_and_sorts_by_the_number() -> None:
    sheet = SHEET.upto(Detail.PAGE)
    text = render_table(sheet)
    (evidence,) = sheet.sources()
    assert f'<a href="#{evidence.anchor}"' in text
    assert f'data-s="{1 / 3:.6g}"' in text
    assert "<small>25.0–50.0</small>" in text
    assert "<b>" not in text
    shown = [html.unescape(re.sub(r"<[^>]+>", "", found)) for found in re.findall(r"<t[dh][ >].*?</t[dh]>", text, re.S)]
    assert [name.strip() for name in shown[:3]] == ["Model", "Sharen = 12", "Passes"]
    assert "p" not in shown


def render_table(sheet: Sheet) -> str:
    from robbench.leaderboards.templates import environment

    made = environment(autoescape=True)
    made.filters |= {"breaks": lambda text: text}
    template = made.from_string('{% import "table.html.jinja" as part %}{{ part.table(sheet, places) }}')
    return template.render(sheet=sheet, places={NAME: 0, "b": 1})


def test_a_long_table_says_where_the_rest_is() -> None:
    text = markdown_table(SHEET, 1, "x.csv")
    assert text.endswith("\n\n*1 more in [x.csv](x.csv) and in [index.html](index.html).*")
    assert "| b |" not in text


# ------------------------------------------------------------------------------------------------------------ on boards


def large(rows: int) -> list[Cell]:
    """Many rows and seeds, every one of them with another defense or balancer."""
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3
    data = dataset(["x", "y", "z"], train=(30, 20, 10), test=(15, 10, 5))
    found = []
    for at in range(rows):
        spec = model(f"row {at}", f"defense {at % 40}" if at % 40 else "none")
        spec = spec.model_copy(update={"balancer": part(f"balancer {at // 40}" if at // 40 else "none")})
        for condition in (CLEAN, PGD, PGD_2):
            final = np.where(rng.random(30) < 0.5, labels, (labels + 1) % 3)
            result = outcome(condition.kind, labels, labels, labels if condition is CLEAN else final, k=3)
            made = cell(spec, condition, result, data=data)
            noted = made[0].model_copy(update={"notes": (f"a note on {at}",)})
            found.append((noted, made[1]))
    return found


def test_a_readme_of_many_rows_has_at_most_400_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    # Comparing hundreds of pairs takes long, and what they show is not asked here.
    same = Difference(Measure(0.0, -0.1, 0.1, 30), 0.5, (0.0,))
    monkeypatch.setattr("robbench.leaderboards.ablations.compare", lambda first, second: same)
    cells = large(160)
    references = [Reference(row=f"row {at}", condition="clean", value=0.5) for at in range(60)]
    note = TOYS.model_copy(update={"references": tuple(references), "about": "One.\n\nTwo."})
    board = board_data("", "", cells)
    text = readme(board, note)
    assert len(board.pairs) > 100
    assert len(text.splitlines()) <= 400
    assert "*60 more in [leaderboard.csv](leaderboard.csv)" in text
    for table in re.findall(r"(?m)^\|.*$", text):
        assert len(re.findall(r"(?<!\\)\|", table)) <= 9, "eight columns fit a code host"


def test_the_readme_begins_with_the_answer() -> None:
    cells = [*BARE, *HARDENED]
    lines = readme(board_data("Toys", "small", cells)).splitlines()
    assert lines[0] == "# Toys (toys)"
    assert lines[2].startswith("Best: **hardened**")
    assert lines[4] == "## Ranking"
    assert lines[6].startswith("| Rank | Model | Worst case Linf 0.1")


@pytest.mark.parametrize("foreign", [False, True])
def test_one_model_has_no_rank_and_nothing_to_compare_its_training_with(tmp_path: Path, foreign: bool) -> None:
    spec = ExternalSpec(identity={}) if foreign else None
    training = None if foreign else Training.model_validate(dict.fromkeys(Training.model_fields, 1))
    cells = []
    for record, found in under_pgd(model("alone", "none"), 8):
        row = record.spec.model.model_copy(update={"external": spec})
        made = record.spec.model_copy(update={"model": row})
        cells.append((record.model_copy(update={"spec": made, "training": training}), found))
    write_board(tmp_path, TOYS, cells)
    text, page = ((tmp_path / name).read_text(encoding="utf-8") for name in ("README.md", "index.html"))
    assert "| Model | Worst case Linf 0.1" in text
    for gone in ("Rank |", "Training cost", "*=*", ">Rank<", "<h3>Training</h3>", "<h3>Size</h3>"):
        assert gone not in text + page
    csv_head, csv_line = (tmp_path / "leaderboard.csv").read_text(encoding="utf-8").splitlines()
    assert csv_head.startswith("rank,model,")
    assert csv_line.startswith("1,alone,")
    assert (tmp_path / "training.csv").exists() is not foreign
    assert ("training.csv" in text and "training.csv" in page) is not foreign


def test_every_table_of_the_page_is_made_from_the_same_description() -> None:
    board = board_data("Toys", "small", [*BARE, *HARDENED])
    short, full = (tables.contents.sheets(board, detail=detail) for detail in (Detail.README, Detail.DATA))
    for name, sheets in short.items():
        for small, large in zip(sheets, full[name], strict=True):
            kept = [at for at, heading in enumerate(large.headings) if heading in small.headings]
            assert [line.cells for line in small.lines] == [
                tuple(line.cells[at] for at in kept) for line in large.lines
            ]


def test_a_file_that_a_board_no_longer_has_is_removed(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    write_board(tmp_path, TOYS, [*BARE, *HARDENED])
    assert (tmp_path / "changes.csv").is_file()
    write_board(tmp_path, TOYS, BARE)
    assert not (tmp_path / "changes.csv").exists()
    assert (tmp_path / "mine.txt").is_file()


PLUGIN = '''
from dataclasses import dataclass

from robbench import Metric, register_metric
from robbench.results.schema import Measure


@register_metric("certainty")
@dataclass(frozen=True)
class Certainty(Metric):
    """Share of images that keep their prediction."""

    def measure(self, outcome):
        kept = outcome.clean == outcome.final
        return {} if kept.all() else {"certainty": Measure(float(kept.mean()), 0.125, 0.875, len(kept))}
'''


def test_a_registered_metric_is_shown_without_further_edits(tmp_path: Path) -> None:
    (tmp_path / "certainty.py").write_text(PLUGIN, encoding="utf-8")
    registry = Registry((tmp_path / "certainty.py",), installed=False)
    cells = [
        (scored(record, result, registry), result)
        for record, result in under_pgd(model("a", "none"), 30)
        if result is not None
    ]
    write_board(tmp_path / "board", TOYS, cells)
    text, page = ((tmp_path / "board" / name).read_text(encoding="utf-8") for name in ("README.md", "index.html"))
    assert "| Model | Condition | certainty |" in text
    assert "| a | pgd@0.1 | 0.75 (0.125–0.875) |" in text
    assert "certainty" in page
    assert '"certainty":[0.75,' in (tmp_path / "board" / "leaderboard.json").read_text(encoding="utf-8")
