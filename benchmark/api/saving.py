"""Writing a report as a published board."""

from __future__ import annotations

import tempfile
from pathlib import Path

from robbench.api.report import Report
from robbench.leaderboards import write_files
from robbench.leaderboards.archive import write_archive
from robbench.leaderboards.plots import draw
from robbench.results.board_directory import check_replaceable, replace


def save(report: Report, directory: Path) -> Path:
    """Write a report; see ``Report.save``.

    Raises:
        StoreError: If the directory holds anything else, or cannot be written.
    """
    # Links are followed, so that the directory is replaced and not the link.
    folder = directory.expanduser().resolve()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        pictures = draw(place, report.board, report.cells, report.materials())
        write_files(place, report.board, report.note, report.cells, pictures)
        write_archive(place, report.cells)
        files = {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}
    check_replaceable(folder, files)
    replace(folder, files)
    return directory
