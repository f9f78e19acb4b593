"""The page ``false-robustness``: ``python tests/benchmarks/false_robustness.py BOARDS > false-robustness.md``.

Reads the boards of ``false-robustness.toml`` in a directory; rows are planted failures or honest models by name.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import robbench
from robbench.leaderboards.aggregates import Estimate
from robbench.leaderboards.board import Row
from robbench.leaderboards.markdown import NONE, escape

GRID = "false-robustness"
USUAL = "honest: standard training"
PLAIN, STRONG = "pgd[steps=20]", "strong"


@dataclass(frozen=True)
class Case:
    """A row of one of the boards.

    Attributes:
        dataset: The data set's label.
        name: The row's, without what it is.
        planted: Whether it only looks robust.
        plain: Robust accuracy that PGD leaves, in percent; None where it is not scored.
        strong: What ``strong`` leaves.
        objections: What robbench says against it.
        seen_through: Whether ``strong`` leaves no more than of standard training, within its interval.
    """

    dataset: str
    name: str
    planted: bool
    plain: float | None
    strong: float | None
    objections: tuple[str, ...]
    seen_through: bool


def cases(report: robbench.Report) -> Iterator[Case]:
    """The rows of a board, planted failures first."""
    usual = _left(report.row(USUAL), STRONG)
    for row in sorted(report.board.rows, key=lambda row: (row.label.startswith("honest"), row.label)):
        kind, _, name = row.label.partition(": ")
        plain, strong = _left(row, PLAIN), _left(row, STRONG)
        yield Case(
            report.board.dataset.label,
            name,
            kind == "planted",
            100 * plain.value if plain else None,
            100 * strong.value if strong else None,
            tuple(_objections(report, row)),
            bool(strong and usual and usual.high is not None and strong.value <= usual.high),
        )


def _left(row: Row, attack: str) -> Estimate | None:
    found = [entry.rates for label, entry in row.cells.items() if label.startswith(f"{attack}@")]
    return found[0].balanced if found and found[0] else None


def _objections(report: robbench.Report, row: Row) -> Iterator[str]:
    yield from row.flags
    for record, _ in report.cells:
        reason = record.reason or ""
        if record.spec.model.label == row.label and record.status == "failed":
            yield f"{record.spec.condition.label} fails: {reason.removeprefix('Breach: ')}"
        elif record.spec.model.label == row.label and record.spec.condition.kind == "clean" and record.status != "done":
            yield f"not scored: {reason}"


def page(found: Sequence[Case]) -> str:
    """The page in markdown, the answer first."""
    planted, honest = ([case for case in found if case.planted is kind] for kind in (True, False))
    told, blamed = (sum(bool(case.objections) for case in part) for part in (planted, honest))
    through = sum(case.seen_through for case in planted if not case.objections)
    gaps = {case: over for case in planted if (over := _over(case)) is not None}
    answer = (
        f"Of {len(planted)} planted failures robbench objects to {told}; of {through} more `strong` leaves no more "
        f"than of standard training, so that nothing false is shown; {len(planted) - told - through} are missed. It "
        f"objects to {blamed} of {len(honest)} honest models."
    )
    lines = ["# False robustness: planted failures beside honest models", answer]
    if gaps:
        worst = max(gaps, key=lambda case: gaps[case])
        where = f"{escape(worst.name)}, {escape(worst.dataset)}"
        lines.append(
            f"PGD with 20 steps overestimates the planted ones by up to {gaps[worst]:.1f} points ({where}), the honest "
            f"ones by up to {max((_over(case) or 0.0 for case in honest), default=0.0):.1f}."
        )
    for title, part in (("Planted", planted), ("Honest", honest)):
        table = [
            f"## {title}",
            "",
            "| Data set | Model | PGD-20 | strong | Overestimate | Objections |",
            "| :-- | :-- | --: | --: | --: | :-- |",
        ]
        for case in part:
            shown = (case.plain, case.strong, _over(case))
            numbers = " | ".join(NONE if value is None else f"{value:.1f}" for value in shown)
            objections = "; ".join(map(escape, case.objections)) or "none"
            if case.planted and not case.objections:
                objections = "none needed: `strong` sees through it" if case.seen_through else "**none**"
            table.append(f"| {escape(case.dataset)} | {escape(case.name)} | {numbers} | {objections} |")
        lines.append("\n".join(table))
    lines.append(
        "Robust accuracy in percent, averaged over classes, on 200 test images at the data set's reference eps."
    )
    return "\n\n".join(lines)


def _over(case: Case) -> float | None:
    return None if case.plain is None or case.strong is None else case.plain - case.strong


def main(words: Sequence[str]) -> None:
    """Print the page of the boards in a directory."""
    (place,) = words
    boards = [folder for folder in sorted(Path(place).iterdir()) if folder.name.startswith(GRID) and folder.is_dir()]
    if not boards:
        raise SystemExit(f"{place} holds no board of {GRID}")
    print(page([case for folder in boards for case in cases(robbench.load(folder))]))


if __name__ == "__main__":
    main(sys.argv[1:])
