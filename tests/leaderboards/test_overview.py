"""Proved bounds over all boards of a grid on one page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from archives import PUBLISHED
from board_cells import A_MODEL, CLEAN, FGSM, PGD, Cell, cell, outcome

from robbench.leaderboards.archive import read_archive, write_archive
from robbench.leaderboards.files import write_board
from robbench.leaderboards.overview import BoundedBoard, overview, proved_table
from robbench.results.board_directory import LISTING, write_index
from robbench.results.schema import BoardNote, Bound, CertificateSpec, ConditionSpec

LABELS = np.array([0, 1] * 20)
CERTIFY = ConditionSpec(
    label="certify[method=crown]@0.1",
    kind="certificate",
    certificate=CertificateSpec(name="crown", label="crown", version=1, parameters={}, norm="linf", eps=0.1),
)
THREAT = f"{FGSM.stages[0].norm}@{FGSM.stages[0].eps:g}"


def left(count: int) -> list[Cell]:
    """FGSM leaves all of forty images, PGD as many as are asked for."""
    cells = [cell(A_MODEL, CLEAN, outcome("clean", LABELS))]
    for condition, kept in ((FGSM, 40), (PGD, count)):
        final = np.where(np.arange(len(LABELS)) < kept, LABELS, 1 - LABELS)
        cells.append(cell(A_MODEL, condition, outcome("attack", LABELS, LABELS, final)))
    return cells


def publish(
    folder: Path, count: int, low: float, high: float, grid: str = "toys", proved: int | None = None
) -> BoundedBoard:
    bound = Bound(row=A_MODEL.label, threat=THREAT, low=low, high=high, images=40, source="a solver")
    folder.mkdir(parents=True)
    cells = left(count)
    if proved is not None:
        radius = np.where(np.arange(len(LABELS)) < proved, 0.1, 0.0)
        made = outcome("certificate", LABELS, certified=radius > 0, radius=radius, chance=np.zeros(len(LABELS)))
        cells.append(cell(A_MODEL, CERTIFY, made))
    write_board(folder, BoardNote(grid=grid, title="Toys", bounds=(bound,)), cells)
    write_archive(folder, cells)
    found = BoundedBoard.read(folder)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("count", "low", "high", "shown"),
    [
        (20, 0.5, 0.5, "50.00 ="),
        (21, 0.5, 0.5, "52.50 ▲ (+2.50)"),
        (19, 0.5, 0.5, "47.50 ✗ (-2.50)"),
        (24, 0.4, 0.6, "60.00"),
        (15, 0.4, 1.0, "37.50 ✗ (-2.50)"),
        (39, 0.4, 1.0, "97.50"),
    ],
)
def test_a_figure_outside_of_what_is_proved_is_marked(
    tmp_path: Path, count: int, low: float, high: float, shown: str
) -> None:
    text = overview([publish(tmp_path / "a", count, low, high)])
    line = next(line for line in text.splitlines() if line.startswith(f"| {A_MODEL.label} |"))
    assert line.endswith(f"| {shown} |")
    wrong = "**1** of 2 figures lies below" if "✗" in shown else "None of 2 figures lies below"
    assert text.splitlines()[2].startswith(wrong)


def test_the_answer_tells_how_near_the_strongest_attack_comes(tmp_path: Path) -> None:
    boards = [publish(tmp_path / name, *proof) for name, proof in {"a": (21, 0.4, 0.5), "b": (22, 0.5, 1.0)}.items()]
    _, above, beside, least = proved_table(boards).answer
    pgd, fgsm = (spec.label.partition("@")[0] for spec in (PGD, FGSM))
    assert above == f"Above what is proved possible, in points, the strongest attack: {A_MODEL.label} 2.50 ({pgd})."
    assert beside.endswith(f"{A_MODEL.label} 5.00 ({pgd}).")
    assert f"{pgd} on 2 of 2" in least
    assert fgsm not in least


@pytest.mark.parametrize(("proved", "shown"), [(18, "45.00"), (20, "50.00"), (21, "52.50 ✗ (+2.50)")])
def test_more_than_is_possible_is_not_certified(tmp_path: Path, proved: int, shown: str) -> None:
    text = overview([publish(tmp_path / "a", 20, 0.4, 0.5, proved=proved)])
    line = next(line for line in text.splitlines() if line.startswith(f"| {A_MODEL.label} |"))
    assert f"| 40.00–50.00 | {shown} |" in line
    wrong = "**1**" if "✗" in shown else "None"
    assert f"{wrong} of 1 certified share lies above what is proved possible." in text
    board = (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    assert ("wrong: 2.50 points above what is possible" in board) == ("✗" in shown)


def test_the_index_of_a_directory_holds_it(tmp_path: Path) -> None:
    publish(tmp_path / "a", 20, 0.5, 0.5)
    assert write_index(tmp_path) == {}
    assert "(toys.md)" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "Attacks beside proved bounds" in (tmp_path / "index.html").read_text(encoding="utf-8")
    page = tmp_path / "toys.md"
    assert page.read_text(encoding="utf-8").startswith(f"{LISTING}\n# Toys\n")
    page.write_text("my own words", encoding="utf-8")
    write_index(tmp_path)
    assert page.read_text(encoding="utf-8") == "my own words"


@pytest.mark.parametrize("grid", ["../out", "a/b", "", ".hidden", "<script>"])
def test_no_name_of_a_grid_leads_elsewhere(tmp_path: Path, grid: str) -> None:
    publish(tmp_path / "site" / "a", 20, 0.5, 0.5, grid)
    assert write_index(tmp_path / "site") == {}
    assert {path.name for path in tmp_path.rglob("*.md")} == {"README.md"}
    assert "](toys.md)" not in (tmp_path / "site" / "README.md").read_text(encoding="utf-8")


def test_boards_without_bounds_have_none(tmp_path: Path) -> None:
    write_board(tmp_path / "a", BoardNote(grid="toys", title="Toys"), left(20))
    write_archive(tmp_path / "a", left(20))
    assert BoundedBoard.read(tmp_path / "a") is None
    write_index(tmp_path)
    assert not (tmp_path / "toys.md").exists()
    assert "proved bounds" not in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_the_published_page_follows_from_the_records() -> None:
    folders = sorted(folder for folder in PUBLISHED.iterdir() if folder.name.startswith("third-party-"))
    boards = [board for folder in folders if (board := BoundedBoard.read(folder))]
    assert boards
    text = (PUBLISHED / "third-party.md").read_text(encoding="utf-8")
    assert text == f"{LISTING}\n{overview(boards)}"
    # Counted here from the outcomes themselves.
    lines = [line.split(" | ") for line in text.splitlines() if re.match(r"\| \w+ \| Linf ", line)]
    heads = next(line for line in text.splitlines() if line.startswith("| Network | Size |")).strip("| ").split(" | ")
    shown = {cells[0].strip("| "): dict(zip(heads, cells, strict=True)) for cells in lines}
    for folder in folders:
        for record, found in read_archive(folder):
            name = record.spec.condition.label.partition("@")[0]
            if found is not None and name in heads:
                share = f"{100 * found.robust.mean():.2f}"
                assert re.match(rf"{share}\b", shown[record.spec.model.label][name]), (folder.name, name)
