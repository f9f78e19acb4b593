"""The files of a board, rendered from ``board_data`` and written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from robbench.core.atomic_io import write_atomically
from robbench.core.errors import StoreError
from robbench.core.safe_text import csv_value, visible_json
from robbench.leaderboards.aggregates import Estimate
from robbench.leaderboards.board import Board
from robbench.leaderboards.board_making import board_data
from robbench.leaderboards.figure_manifest import Picture
from robbench.leaderboards.html.page import page
from robbench.leaderboards.markdown import NONE
from robbench.leaderboards.readme import readme
from robbench.leaderboards.sheet import Detail, Sheet, TableCell
from robbench.leaderboards.tables.classes import class_figures
from robbench.leaderboards.tables.contents import sheets
from robbench.leaderboards.tables.ranks import leaderboard
from robbench.leaderboards.tables.robustness import corruption_figures
from robbench.leaderboards.visible_cells import visible_cells, visible_note
from robbench.results.schema import BoardNote, CellResult, ConditionSpec

OPTIONAL = (
    *("corruptions.csv", "changes.csv", "training.csv", "checks.csv"),
    *("bounds.csv", "certified.csv", "minimal_norms.csv"),
)
"""Files that only some boards have."""
_FIGURE = {field.name for field in fields(Estimate)}


def write_board(
    directory: Path, note: BoardNote, cells: Sequence[CellResult], pictures: Sequence[Picture] = ()
) -> list[Path]:
    """Make a board of cells and write its files; see ``write_files``.

    Args:
        directory: Where to; made if need be. Other files in it stay.
        note: What the board says that does not follow from its cells.
        cells: Records of one data set with their outcomes, None unless done.
        pictures: Figures that lie in the directory.

    Returns:
        The files.

    Raises:
        ValueError: If the cells do not make one table.
        StoreError: If a file cannot be written.
    """
    return write_files(directory, board_data(note.title, note.grid, cells, note.rank_by), note, cells, pictures)


def write_files(
    directory: Path,
    board: Board,
    note: BoardNote,
    cells: Sequence[CellResult],
    pictures: Sequence[Picture] = (),
    reload: float | None = None,
) -> list[Path]:
    """Write a board as ``README.md``, ``index.html``, ``leaderboard.json`` and CSV files, with its note ``board.json``.

    CSV: ``leaderboard``, ``per_class``; where there is something to tell ``corruptions``, ``changes``, ``training``,
    ``checks``, ``bounds``, ``certified`` and ``minimal_norms``; and ``timings``, the only one that differs when the
    same cells are run again. Numbers are unrounded; a text that a spreadsheet would take for a formula has an
    apostrophe in front, which ``robbench.core.safe_text.csv_text`` takes back.

    Texts of whoever wrote them are safe in every file: see ``robbench.core.safe_text`` on how characters are shown that
    nobody would see or that a terminal would obey, and ``robbench.leaderboards.markdown.escape``.

    Args:
        directory: Where to; made if need be. What an earlier board left and this one has not is removed; other files
            stay.
        board: What the cells say.
        note: What the board says that does not follow from them.
        cells: Records of one data set with their outcomes, None unless done.
        pictures: Figures that lie in the directory.
        reload: Seconds after which the page loads itself again, while a run goes on.

    Returns:
        The files.

    Raises:
        StoreError: If a figure cannot be read or a file cannot be written.
    """
    shown, cells = visible_note(note), visible_cells(cells)
    contents = {
        "README.md": readme(board, shown, pictures),
        "index.html": page(board, shown, cells, directory, pictures, reload),
        "leaderboard.json": _json(plain_data(board)),
        **csv_files(board, shown),
        "timings.csv": timings_csv(cells),
        "board.json": visible_json(note.to_json()),
    }
    for name, text in contents.items():
        write_atomically(directory / name, text)
    for name in set(OPTIONAL) - contents.keys():
        try:
            (directory / name).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"cannot remove {directory / name}: {error.strerror}") from error
    return [directory / name for name in contents]


def csv_files(board: Board, note: BoardNote) -> dict[str, str]:
    """The CSV files of a board by name, but for its timings."""
    details = sheets(board, note, Detail.DATA)
    found = {
        "leaderboard.csv": [leaderboard(board)],
        "per_class.csv": [class_figures(board)],
        "corruptions.csv": [corruption_figures(board)] if board.corrupted else [],
        "changes.csv": details["changes"],
        "training.csv": details["training"],
        "checks.csv": details["checks"],
        "bounds.csv": details["bounds"],
        "certified.csv": details["certified"],
        "minimal_norms.csv": details["reaches"],
    }
    return {name: csv_text(*made) for name, made in found.items() if made}


def plain_data(board: Board) -> dict[str, Any]:
    """The board as JSON values, without fields that are not defined.

    A figure is a list: value, ends of the interval or null, samples and, of several seeds, the list of their values.
    """
    plain: dict[str, Any] = asdict(board)
    if not board.minimal_norms:
        del plain["minimal_norms"]  # most boards have none, and stay as they were before there were any
    if not board.certified.cases:
        del plain["certified"]
    plain["dataset"] = board.dataset.model_dump(mode="json")
    for name in ("conditions", "checks"):
        plain[name] = [_condition(condition) for condition in getattr(board, name)]
    for row, entry in zip(board.rows, plain["rows"], strict=True):
        entry["model"] = row.model.model_dump(mode="json")
        entry |= {name: _defined(entry[name]) for name in ("cells", "worst", "checks")}
        # Boards of older records stay as they were before they told it.
        for name in ("parameters", "multiply_adds"):
            if not entry[name]:
                del entry[name]
        entry["training"] = {seed: found.model_dump(mode="json") for seed, found in row.training.items()}
    for label, figures in board.corrupted.items():
        places = {f"{kind} {severity}": asdict(rates) for (kind, severity), rates in figures.rates.items()}
        plain["corrupted"][label] |= {"rates": places}
        del plain["corrupted"][label]["conditions"]
    return {name: _listed(value) for name, value in plain.items()}


def _condition(condition: ConditionSpec) -> dict[str, Any]:
    # Boards without unions and certificates stay as they were before there were any.
    absent = {name for name in ("union", "certificate") if not getattr(condition, name)}
    return condition.model_dump(mode="json", exclude=absent)


def _listed(value: Any) -> Any:
    if isinstance(value, Mapping):
        if value.keys() == _FIGURE:
            seeds = [list(value["seeds"])] if len(value["seeds"]) > 1 else []
            return [value["value"], value["low"], value["high"], value["n"], *seeds]
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


def _json(plain: Mapping[str, Any]) -> str:
    """JSON with a line for each row, in which figures are lists; see ``plain_data``."""
    lines = []
    for name, value in sorted(plain.items()):
        rows = value if isinstance(value, list) and value and isinstance(value[0], dict) else None
        text = ",\n".join(map(_line, rows)) if rows else _line(value)
        lines.append(f'"{name}":[\n{text}\n]' if rows else f'"{name}":{text}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _line(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _defined(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() != _FIGURE:
        return {key: _defined(item) for key, item in value.items() if item is not None}
    return value


def csv_text(*sheets: Sheet) -> str:
    """Tables in CSV, unrounded: of each figure its value, the ends of its interval, its samples and its seeds.

    Several tables stand one below the other, behind a column with their captions, as those of one heading.
    """
    lines: list[list[object]] = []
    for sheet in sheets:
        first: list[object] = ["table"] if len(sheets) > 1 else []
        spread = [_is_spread(sheet, at) for at in range(len(sheet.headings))]
        head: list[object] = [*first]
        for heading, ends in zip(sheet.headings, spread, strict=True):
            prefix = "" if heading.text == "value" else f"{heading.text}: "
            head += [heading.text, *(f"{prefix}{name}" for name in ("low", "high", "n", "by seed") if ends)]
        if not lines or lines[0] != head:
            lines.append(head)
        for line in sheet.lines:
            values: list[object] = [sheet.caption] if first else []
            for heading, cell, ends in zip(sheet.headings, line.cells, spread, strict=True):
                values += _values(cell, heading.number, ends)
            lines.append(values)
    return _written(lines)


def _is_spread(sheet: Sheet, column: int) -> bool:
    cells = [line.cells[column] for line in sheet.lines]
    return sheet.headings[column].number and all(cell.figure or cell.sort is None for cell in cells)


def _values(cell: TableCell, number: bool, spread: bool) -> list[object]:
    if spread:
        figure = cell.figure
        seeds = " ".join(map(str, figure.seeds)) if figure else ""
        return [figure.value, figure.low, figure.high, figure.n, seeds] if figure else [""] * 5
    if number:
        return ["" if cell.sort is None else cell.sort]
    return ["" if cell.text == NONE else cell.text]


def _written(lines: Sequence[Sequence[object]]) -> str:
    """CSV in which texts that begin like a formula have an apostrophe in front; see ``csv_value``."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(map(csv_value, line) for line in lines)
    return buffer.getvalue()


def timings_csv(cells: Sequence[CellResult]) -> str:
    """One line per timing of a cell: the only figures that differ when the same thing is done again."""
    lines: list[list[object]] = [["model", "condition", "seed", "timing", "value"]]
    for record, _ in cells:
        spec = record.spec
        for name, value in _flat(record.timings):
            lines.append([spec.model.label, spec.condition.label, spec.seed, name, value])
    return _written(lines)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name in sorted(values):
        value = values[name]
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
