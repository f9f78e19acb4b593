"""Boards with what they rest on, put where they are read: checked first, and merged with those of others if wished."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robbench.core.atomic_io import write_atomically
from robbench.core.errors import StoreError
from robbench.core.registry import Registry
from robbench.core.safe_text import one_line
from robbench.core.untrusted_files import check_folder
from robbench.evaluation.metrics._built_in import built_in_figures
from robbench.leaderboards import board_data, write_board
from robbench.leaderboards.archive import (
    RECORDS,
    other_metrics,
    read_archive,
    read_note,
    read_pictures,
    write_archive,
)
from robbench.leaderboards.figure_manifest import Picture, write_manifest
from robbench.leaderboards.table import Table
from robbench.results.board_cells import board_cells
from robbench.results.board_directory import (
    Files,
    boards_in,
    check_replaceable,
    check_target,
    held,
    readable,
    replace,
    write_index,
)
from robbench.results.merging import BoardSource, merge
from robbench.results.record_keys import check_keys
from robbench.results.schema import BoardNote, CellResult
from robbench.results.store import Store
from robbench.results.verification import files_follow, refuse, verify

_PLACED = re.compile(r"image-folder(?:-imbalanced)?_(?:.*_)?path_")
"""What an earlier version called boards of images that a path led to."""


@dataclass
class Published:
    """What came of publishing.

    Attributes:
        cells: How many cells each published board has.
        remarks: What is to be said of a board, in plain sentences.
        refused: Why a board was not published, or could not be listed.
        unused: Boards of others that have no counterpart in the store.
    """

    cells: dict[str, int] = field(default_factory=dict)
    remarks: dict[str, list[str]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Checked:
    """A board whose figures follow from its outcomes.

    Attributes:
        source: The board.
        unchecked: Figures that could not be checked.
        remarks: What else is to be said, in plain sentences.
        planned: Keys of the cells that it was to have.
    """

    source: BoardSource
    unchecked: frozenset[str]
    remarks: tuple[str, ...] = ()
    planned: tuple[str, ...] = ()


def publish(
    store: Store,
    boards: Sequence[str],
    target: Path,
    others: Sequence[Path] = (),
    registry: Registry | None = None,
    incomplete: bool = False,
) -> Published:
    """Check boards, merge them with those of others, and write them with what they rest on.

    Each board's directory is replaced as a whole or not at all; other things in the target stay.

    Args:
        store: Where the boards come from.
        boards: Their names.
        target: The directory to write them into, made if need be.
        others: Published boards of others, or directories that hold some.
        registry: The known metrics; the built-in ones where it is None.
        incomplete: Whether to publish boards with cells that failed or were not run.

    Raises:
        RequestError: If the target or one of the others is no directory to use; nothing is written then.
        StoreError: If a board of others is not what it should be, or the target cannot be written to.
    """
    registry = registry or Registry(installed=False)
    folders = [folder for path in others for folder in boards_in(path)]
    check_target(store, target, [*others, *folders])
    found = [_others(folder, registry) for folder in folders]
    result = Published()
    made: dict[str, tuple[BoardSource, Files]] = {}
    used: set[str] = set()
    for board in boards:
        result.remarks[board] = []
        try:
            with readable(board):
                own = _own(store, board, store.board(board), registry)
                same = [other for other in found if _topic(other.source) == _topic(own.source)]
                used |= {other.source.where for other in same}
                source, files = _made(store.root / "leaderboards" / board, own, same, incomplete, result.remarks[board])
                check_replaceable(target / board, files)
                made[board] = source, files
        except StoreError as error:
            result.refused[board] = str(error)
    result.unused = [other.source.where for other in found if other.source.where not in used]
    if made:
        with held(target):
            for board, (source, files) in made.items():
                replace(target / board, files)
                result.cells[board] = len(source.cells)
            result.refused |= write_index(target)
    return result


def rewrite(target: Path, registry: Registry | None = None) -> Published:
    """Write published boards anew from their own records, as after a change of what boards say.

    Records are checked against their outcomes and keep what they say. Figures are drawn again where records and
    outcomes are all that they need; those of images, embeddings and training histories stay. Each board's directory is
    replaced as a whole or not at all.

    Args:
        target: A published board, or the directory of some.
        registry: The known metrics; the built-in ones where it is None.

    Raises:
        RequestError: If there is no published board; nothing is written then.
        StoreError: If the boards cannot be written.
    """
    registry = registry or Registry(installed=False)
    folders = boards_in(target, "--published")
    result = Published()
    with held(folders[0].parent, "--published"):
        for folder in folders:
            try:
                checked = _others(folder, registry)
                figures = _redrawn(folder, checked.source, registry)
                files = {**_board_files(checked.source, figures), **figures, **_archive(checked.source)}
                check_replaceable(folder, files)
                replace(folder, files)
            except StoreError as error:
                result.refused[folder.name] = str(error)
                continue
            result.cells[folder.name] = len(checked.source.cells)
            result.remarks[folder.name] = [*checked.remarks, *_unchecked([checked])]
        result.refused |= write_index(folders[0].parent)
    return result


def _redrawn(folder: Path, source: BoardSource, registry: Registry) -> dict[str, bytes]:
    """A board's figures: drawn again from its cells, and behind them those that need more than cells."""
    from robbench.leaderboards.artifact_reader import NOTHING
    from robbench.leaderboards.plots import draw, in_order

    kept = read_pictures(folder)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        board = board_data(source.note.title, source.note.grid, source.cells, source.note.rank_by)
        drawn = draw(place, board, source.cells, NOTHING, registry)
        stay = [picture for picture in kept if picture.name not in {one.name for one in drawn}]
        for path, content in _figures(folder, stay).items():
            write_atomically(place / path, content)
        write_manifest(place, in_order([*drawn, *stay]))
        return _figures(place)


# -------------------------------------------------------------------------------------------------------------- reading


def _own(store: Store, board: str, note: Mapping[str, Any], registry: Registry) -> _Checked:
    with readable(f"{store.root / 'boards' / board}.json"):
        shown = BoardNote.model_validate({name: note[name] for name in BoardNote.model_fields if name in note})
        keys = tuple(str(key) for key in note["cells"])
        twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
        if twice:
            raise ValueError(f"cell {twice} is listed twice")
    cells = board_cells(store, board, note)
    if _PLACED.search(board):
        refuse(
            "its name says where images lie; run its grid again for a board without, and robbench gc --board this one"
        )
    if not cells:
        refuse("none of its cells was run yet; robbench run goes on with it")

    def file(key: str) -> str:
        return str(store.cell_dir(key) / "record.json")

    unchecked = verify(cells, registry, file, shown.rank_by)
    source = BoardSource(str(store.root), shown, _current(cells))
    return _Checked(source, unchecked, _unkeyed(source, file), keys)


def _others(folder: Path, registry: Registry) -> _Checked:
    with readable(folder):
        check_folder(folder)
        note = read_note(folder)
        cells = read_archive(folder, note.rank_by)
        if not cells:
            raise ValueError("it has no cells")
        read_pictures(folder)

        def file(key: str) -> str:
            return str(folder / RECORDS)

        unchecked = verify(cells, registry, file, note.rank_by)
        source = BoardSource(str(folder), note, _current(cells))
        remarks = _unkeyed(source, file)
        others = other_metrics(folder)
        if others:
            remarks += (f"{folder}: metrics had other versions there, and are shown as they are here: {_some(others)}",)
        return _Checked(source, unchecked, remarks)


def _current(cells: Sequence[CellResult]) -> tuple[CellResult, ...]:
    """Verified cells with built-in figures as this version computes them: an earlier one had other intervals."""
    found = []
    for record, outcome in cells:
        known = built_in_figures(outcome) if outcome is not None else {}
        metrics = {name: known.get(name, figure) for name, figure in record.metrics.items()}
        found.append((record.model_copy(update={"metrics": metrics}), outcome))
    return tuple(found)


def _unkeyed(source: BoardSource, file: Callable[[str], str]) -> tuple[str, ...]:
    """Check the keys of a board; what is to be said of those that could not be computed anew."""
    names = sorted(check_keys(source.cells, file))
    return (f"{source.where}: some keys could not be checked, those {_some(names)}",) if names else ()


def _topic(source: BoardSource) -> tuple[str, str]:
    return source.note.grid, source.cells[0][0].spec.dataset.label


# --------------------------------------------------------------------------------------------------------------- making


def _made(
    folder: Path, own: _Checked, others: Sequence[_Checked], incomplete: bool, remarks: list[str]
) -> tuple[BoardSource, Files]:
    """A board and its files, those in the folder checked; what is to be said of it is appended to the remarks."""
    figures = _figures(folder)
    files = _board_files(own.source, figures)
    files_follow({name: _read(folder / name) for name in files}, files, str(folder))
    source = own.source
    if others:
        merged = merge(own.source, [other.source for other in others])
        source = merged.source
        remarks += [f"{where}: {count} cells were added" for where, count in sorted(merged.added.items())]
        remarks += [
            f"{where}: trainings were excluded whose models predict differently, as on another machine, or start from "
            f"one that does: {_some(names)}"
            for where, names in sorted(merged.excluded.items())
        ]
        if merged.set_aside:
            remarks.append(
                f"{merged.set_aside} cells of others were left out: other runs of the same stand in their place"
            )
        if (source.note, source.records) != (own.source.note, own.source.records):
            if figures:
                remarks.append("its figures were left out: they were drawn from the cells of this store alone")
            figures = {}
            files = _board_files(source, figures)
    lacking = _lacking(source, own.planned)
    if lacking:
        some = _some(lacking)
        if not incomplete:
            refuse(
                f"{len(lacking)} of its cells failed or were not run ({some}); --incomplete publishes it all the same"
            )
        remarks.append(f"{len(lacking)} of its cells failed or were not run ({some})")
    remarks += [remark for board in (own, *others) for remark in board.remarks]
    remarks += _unchecked([own, *others])
    return source, {**files, **figures, **_archive(source)}


def _archive(source: BoardSource) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        return {path.name: path.read_bytes() for path in write_archive(Path(name), source.cells)}


def _unchecked(boards: Sequence[_Checked]) -> list[str]:
    names = sorted(set().union(*(board.unchecked for board in boards)))
    return [f"figures of metrics that are not known here were not checked: {', '.join(names)}"] if names else []


def _some(names: Sequence[str]) -> str:
    return one_line("; ".join(names[:5]) + ("; …" if len(names) > 5 else ""), 500)


def _board_files(source: BoardSource, figures: Files) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, content in figures.items():
            write_atomically(folder / path, content)
        try:
            made = write_board(folder, source.note, source.cells, read_pictures(folder))
        except ValueError as error:
            refuse(f"its cells make no board: {error}")
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in made}


def _figures(folder: Path, pictures: Sequence[Picture] | None = None) -> dict[str, bytes]:
    """The files of a board's figures, or of some of them, and their list."""
    chosen = read_pictures(folder) if pictures is None else pictures
    names = [f"{picture.name}.png" for picture in chosen]
    listed = [f"figures/{name}" for name in ("figures.json", *names)] if names else []
    return {name: content for name in listed if (content := _read(folder / name)) is not None}


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        refuse(f"cannot read {path}: {error.strerror or error}")


def _lacking(source: BoardSource, keys: Iterable[str]) -> list[str]:
    """Cells that failed, that the board was to have, or that a row lacks though others or its other seeds have them."""
    table = Table.of(source.cells)
    needed = {spec.label for spec in next(iter(table.threats(source.note.rank_by).values()), ())}
    gaps = []
    for model in table.models:
        for condition in (*table.conditions, *table.corruptions, *table.checks):
            place = table.places.get((model.label, condition.label), {})
            if place or condition.label in needed:
                missing = [seed for seed in table.seeds[model.label] if seed not in place]
                gaps += [f"{model.label} · {condition.label} · seed {seed}" for seed in missing]
    specs = [record.spec for record in source.records if record.status == "failed"]
    failed = [f"{spec.model.label} · {spec.condition.label} · seed {spec.seed}" for spec in specs]
    absent = sorted(set(keys) - {record.key for record in source.records})
    # A gap in a row is most likely one of those, and says more than its key.
    return [*failed, *gaps, *absent[len(gaps) :]]
