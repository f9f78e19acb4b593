"""The files of a board, rendered from ``board_data`` and written whole or not at all."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from robbench.core.atomic_io import write_atomically
from robbench.leaderboards import tables
from robbench.leaderboards.aggregates import Figure, Rates
from robbench.leaderboards.board import Board, board_data
from robbench.leaderboards.figure_manifest import Picture
from robbench.leaderboards.findings import findings
from robbench.leaderboards.html.page import page
from robbench.leaderboards.markdown import escape, escape_html, paragraphs, value_list
from robbench.leaderboards.reference_comparison import beside_table
from robbench.leaderboards.table import AUDIT_STEPS, Cell
from robbench.leaderboards.templates import environment
from robbench.results.schema import BoardNote, dumps

KEY_DIGITS = 8


def write_board(
    directory: Path, note: BoardNote, cells: Sequence[Cell], pictures: Sequence[Picture] = ()
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
    return write_files(directory, board_data(note.title, note.grid, cells), note, cells, pictures)


def write_files(
    directory: Path, board: Board, note: BoardNote, cells: Sequence[Cell], pictures: Sequence[Picture] = ()
) -> list[Path]:
    """Write a board as ``README.md``, ``index.html``, ``leaderboard.csv``, ``per_class.csv`` and ``leaderboard.json``.

    With ``corruptions.csv`` where the suite of common corruptions was run, ``timings.csv``, and the note as
    ``board.json``. The same cells give the same bytes; timings stand in ``timings.csv`` alone.

    Args:
        directory: Where to; made if need be. Other files in it stay.
        board: What the cells say.
        note: What the board says that does not follow from them.
        cells: Records of one data set with their outcomes, None unless done.
        pictures: Figures that lie in the directory.

    Returns:
        The files.

    Raises:
        StoreError: If a figure cannot be read or a file cannot be written.
    """
    contents = {
        "README.md": readme(board, note, pictures),
        "index.html": page(board, note, cells, directory, pictures),
        "leaderboard.csv": leaderboard_csv(board),
        "per_class.csv": per_class_csv(board),
        "leaderboard.json": dumps(plain_data(board)),
        **({"corruptions.csv": corruptions_csv(board)} if board.corrupted else {}),
        "timings.csv": timings_csv(cells),
        "board.json": note.to_json(),
    }
    for name, text in contents.items():
        write_atomically(directory / name, text)
    return [directory / name for name in contents]


def readme(board: Board, note: BoardNote | None = None, pictures: Sequence[Picture] = ()) -> str:
    """The board in markdown.

    Args:
        board: The board.
        note: What it says that does not follow from its cells; nothing where there is none.
        pictures: Figures that lie in the board's directory.
    """
    note = note or BoardNote(grid=board.grid, title=board.title)
    made = environment(autoescape=False)
    made.filters |= {"md": escape, "html": escape_html, "paragraphs": paragraphs, "values": value_list}
    return made.get_template("README.md.jinja").render(
        board=board,
        note=note,
        tables=tables,
        findings=findings(board),
        beside=beside_table(board, note.references),
        pictures=pictures,
        digits=KEY_DIGITS,
        audit_steps=AUDIT_STEPS,
    )


def plain_data(board: Board) -> dict[str, Any]:
    """The board as JSON values, without the fields of figures that are not defined."""
    plain: dict[str, Any] = asdict(board)
    plain["dataset"] = board.dataset.model_dump(mode="json")
    for name in ("conditions", "checks"):
        plain[name] = [condition.model_dump(mode="json") for condition in getattr(board, name)]
    for row, entry in zip(board.rows, plain["rows"], strict=True):
        entry["model"] = row.model.model_dump(mode="json")
        entry["cells"] = _defined(entry["cells"])
        entry["worst"] = _defined(entry["worst"])
        entry["checks"] = _defined(entry["checks"])
        entry["training"] = {seed: found.model_dump(mode="json") for seed, found in row.training.items()}
    for label, figures in board.corrupted.items():
        places = {f"{kind} {severity}": asdict(rates) for (kind, severity), rates in figures.rates.items()}
        plain["corrupted"][label]["rates"] = places
    return plain


def _defined(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _defined(item) for key, item in value.items() if item is not None}
    return value


def _csv(lines: Sequence[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()


def leaderboard_csv(board: Board) -> str:
    """One line per row; every figure with the ends of its interval, its number of samples and its seeds."""
    columns = [name for condition in board.conditions for name in _columns(condition.label, condition.kind == "chain")]
    columns += [f"worst case {threat}, balanced" for threat in board.threats]
    header: list[object] = ["rank", "model", "seeds", "audited", "flags", "not ranked because"]
    for name in columns:
        header += [name, f"{name}: low", f"{name}: high", f"{name}: n", f"{name}: by seed"]
    lines: list[list[object]] = [header]
    for row in board.rows:
        line: list[object] = [row.rank, row.label, _words(row.seeds), row.audited, "; ".join(row.flags), row.unranked]
        for condition in board.conditions:
            entry = row.cells[condition.label]
            line += [*_values(_of(entry.rates, "share")), *_values(_of(entry.rates, "balanced"))]
            if condition.kind == "chain":
                line += _values(_of(entry.accuracy, "share"))
        for threat in board.threats:
            line += _values(_of(row.worst[threat], "balanced"))
        lines.append(line)
    return _csv(lines)


def _columns(label: str, chain: bool) -> list[str]:
    return [label, f"{label}, balanced"] + [f"{label}, plain"] * chain


def _of(rates: Rates | None, name: str) -> Figure | None:
    return getattr(rates, name) if rates else None


def _words(values: Sequence[object]) -> str:
    return " ".join(str(value) for value in values)


def _values(figure: Figure | None) -> list[object]:
    if figure is None:
        return [""] * 5
    return [figure.value, figure.low, figure.high, figure.n, _words(figure.seeds)]


def per_class_csv(board: Board) -> str:
    """One line per row, condition or worst case, and class."""
    header: list[object] = ["model", "condition", "class", "train images", "value", "low", "high", "n", "by seed"]
    train = board.dataset.counts.get("train", ())
    lines: list[list[object]] = [header]
    for row in board.rows:
        found = {label: entry.rates for label, entry in row.cells.items()}
        found |= {f"worst case {threat}": rates for threat, rates in row.worst.items()}
        for label, rates in found.items():
            for place, figure in enumerate(rates.per_class if rates else ()):
                images = train[place] if place < len(train) else ""
                if figure is not None:
                    lines.append([row.label, label, board.dataset.class_names[place], images, *_values(figure)])
    return _csv(lines)


def corruptions_csv(board: Board) -> str:
    """One line per row, kind of corruption and severity."""
    lines: list[list[object]] = [["model", "kind", "severity", "value", "low", "high", "n", "by seed"]]
    for label, figures in board.corrupted.items():
        for (kind, severity), rates in figures.rates.items():
            lines.append([label, kind, severity, *_values(rates.share)])
    return _csv(lines)


def timings_csv(cells: Sequence[Cell]) -> str:
    """One line per timing of a cell: the only figures that differ when the same thing is done again."""
    lines: list[list[object]] = [["model", "condition", "seed", "timing", "value"]]
    for record, _ in cells:
        spec = record.spec
        for name, value in _flat(record.timings):
            lines.append([spec.model.label, spec.condition.label, spec.seed, name, value])
    return _csv(lines)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name in sorted(values):
        value = values[name]
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
