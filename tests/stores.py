"""Stores that hold made-up boards, as runs would leave them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from board_cells import A_MODEL, CLEAN, FGSM, PGD, Cell, cell, model, outcome

from robbench.cli.main import main
from robbench.core.registry import Registry
from robbench.evaluation.scoring import scored
from robbench.leaderboards import write_board
from robbench.leaderboards.figure_manifest import Picture, read_manifest, write_manifest
from robbench.results.board_cells import board_cells
from robbench.results.schema import BoardNote, Costs, ModelSpec, Outcome, Reference
from robbench.results.store import Store

BOARD = "toys"
B_MODEL = model("b", "fgm")
LABELS = np.array([0, 1] * 20)
BUILT_IN = Registry(installed=False)
PICTURE = Picture("curves", "training", "Training", "How training went.", "Two curves.", main=True)


def attacked(left: int, kind: str = "attack") -> Outcome:
    """An attack that leaves the first so many of forty samples."""
    final = np.where(np.arange(len(LABELS)) < left, LABELS, 1 - LABELS)
    return outcome(kind, LABELS, LABELS, final)  # type: ignore[arg-type]


def row(spec: ModelSpec, left: Sequence[int] = (30, 20), seed: int = 0) -> list[Cell]:
    """A row under three conditions, the last two of which leave so many samples."""
    results = (outcome("clean", LABELS), attacked(left[0]), attacked(left[1]))
    return [
        cell(spec, condition, result, seed=seed) for condition, result in zip((CLEAN, FGSM, PGD), results, strict=True)
    ]


def under_pgd(spec: ModelSpec, left: int) -> list[Cell]:
    """A row on clean images and under one attack, which leaves so many samples."""
    return [cell(spec, CLEAN, outcome("clean", LABELS)), cell(spec, PGD, attacked(left))]


def whole() -> list[Cell]:
    """Two rows of one seed."""
    return [*row(A_MODEL), *row(B_MODEL, (35, 25))]


def finished(made: Cell) -> Cell:
    """The cell as a run leaves it: with figures, passes and the hash of its outcome."""
    record, result = made
    if result is None:
        return made
    costs = Costs(forwards=float(result.forwards.sum()), backwards=float(result.backwards.sum()))
    fresh = record.model_copy(update={"costs": costs, "outcome_sha256": result.sha256()})
    return scored(fresh, result, BUILT_IN), result


def fill(
    folder: Path, cells: Sequence[Cell], references: Sequence[Reference] = (), missing: Sequence[str] = ()
) -> Store:
    """A store with one board of these cells, and of the missing ones, written as after a run."""
    store = Store(folder)
    for made in cells:
        store.write_cell(*finished(made))
    note = BoardNote(grid="small", title="Toys", about="Of *nothing*.", references=tuple(references))
    keys = [record.key for record, _ in cells]
    store.note_board(BOARD, note, [*keys, *missing], sorted({record.spec.model_key for record, _ in cells}))
    write(store)
    return store


def write(store: Store) -> None:
    """Write the store's boards with the figures that lie there, and draw none."""
    for board, noted in store.boards().items():
        note = BoardNote.model_validate({name: noted[name] for name in BoardNote.model_fields})
        folder = store.root / "leaderboards" / board
        write_board(folder, note, board_cells(store, board, noted), read_manifest(folder))


def files(folder: Path) -> dict[str, bytes]:
    """The content of every file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def flip(path: Path) -> None:
    """Damage a file: one bit in its middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def publish(store: Store, target: Path, *words: str) -> int:
    return main(["publish", "--out", str(store.root), "--to", str(target), *words])


def complaint(status: int, capsys: pytest.CaptureFixture[str], expected: int = 1) -> str:
    assert status == expected
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1
    assert shown.startswith("robbench: ")
    return shown


def draw(store: Store, name: str = PICTURE.name) -> None:
    """Give the board a figure."""
    folder = store.root / "leaderboards" / BOARD
    for suffix, content in (("png", b"\x89PNG"), ("svg", b"<svg xmlns='http://www.w3.org/2000/svg'></svg>")):
        (folder / "figures").mkdir(exist_ok=True)
        (folder / "figures" / f"{name}.{suffix}").write_bytes(content)
    write_manifest(folder, [replace(PICTURE, name=name)])
    write(store)
