"""Boards that an earlier version published, written as this one does, from what lies in their directories alone."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

from robbench.core.atomic_io import write_atomically
from robbench.leaderboards.archive import OUTCOMES, RECORDS, read_archive, read_note, read_pictures, write_archive
from robbench.leaderboards.artifact_reader import NOTHING
from robbench.leaderboards.board import board_data
from robbench.leaderboards.figure_manifest import Picture
from robbench.leaderboards.plots import draw, in_order
from robbench.leaderboards.plots._style import with_palette
from robbench.results.schema import dumps


def repacked(folder: Path) -> dict[str, bytes]:
    """The records, outcomes and figures of a published board as this version writes them.

    Figures that follow from records and outcomes are drawn anew. The others, which need images or histories that are
    not published, stay as they are but for their colors.

    Args:
        folder: The board's directory; nothing in it is changed.

    Returns:
        Contents by name, with a slash for files of a directory: all that ``figures`` is to hold, and the archive.

    Raises:
        StoreError: If the board cannot be read.
    """
    cells, note, earlier = read_archive(folder), read_note(folder), read_pictures(folder)
    with tempfile.TemporaryDirectory() as name:
        made = Path(name)
        write_archive(made, cells)
        drawn = draw(made, board_data(note.title, note.grid, cells), cells, NOTHING)
        files = {item: (made / item).read_bytes() for item in (RECORDS, OUTCOMES)}
        files |= {path: (made / path).read_bytes() for path in (_file(picture) for picture in drawn)}
    kept = [picture for picture in earlier if _file(picture) not in files]
    for picture in kept:
        files[_file(picture)] = with_palette((folder / _file(picture)).read_bytes(), picture.photograph)
    manifest = dumps([asdict(picture) for picture in in_order([*drawn, *kept])])
    return {**files, "figures/figures.json": manifest.encode()}


def repack(folder: Path) -> None:
    """Write what ``repacked`` gives into the board's directory, and remove figures that are no longer there.

    The board's other files are made again from it by ``write_board``.

    Raises:
        StoreError: If the board cannot be read or written.
    """
    files = repacked(folder)
    for name, content in files.items():
        write_atomically(folder / name, content)
    for path in (folder / "figures").iterdir():
        if path.suffix in (".png", ".svg") and f"figures/{path.name}" not in files:
            path.unlink()


def _file(picture: Picture) -> str:
    return f"figures/{picture.name}.png"
