"""Proved bounds over all boards of a grid on one page: each attack of each network beside what is proved of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from robbench.leaderboards.aggregates import Estimate
from robbench.leaderboards.archive import read_archive, read_note
from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.board_making import board_data
from robbench.leaderboards.html import ProvedTable, folder_link
from robbench.leaderboards.markdown import NONE, counted, escape, listed, paragraphs
from robbench.leaderboards.readme import markdown_table
from robbench.leaderboards.sheet import Sheet, SheetLine, TableCell, numbers, texts, words
from robbench.leaderboards.tables.bounds import attacked, beyond, certified, interval, percent, size
from robbench.results.schema import BoardNote, Bound

_LEGEND = (
    "Robust accuracy in percent of all images, not averaged over classes. *Proved*: the share that is proved robust. "
    "*▲*: weak, so many points above what is possible. *✗*: wrong, so many below what is proved robust. *=*: exact. "
    "Unmarked: inside the bounds."
)
_CERTIFIED = " *Certified*: the share that the method proves robust; *✗* there is more than is possible."


@dataclass(frozen=True)
class BoundedBoard:
    """A published board that tells what is proved of its rows.

    Attributes:
        folder: Its directory's name.
        board: What its cells say.
        note: What it says besides, the bounds among it.
    """

    folder: str
    board: Board
    note: BoardNote

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """The board in a directory, from its records; None where it has no bounds.

        Raises:
            StoreError: If it cannot be read.
        """
        note = read_note(directory)
        if not note.bounds:
            return None
        return cls(directory.name, board_data(note.title, note.grid, read_archive(directory), note.rank_by), note)

    @property
    def proofs(self) -> list[_Proof]:
        """What is proved of its rows, as far as attacks of the same size were run on the same images."""
        found = []
        for bound in self.note.bounds:
            left = {label.partition("@")[0]: share for label, share in attacked(self.board, bound).items()}
            if left:
                own = {case.condition: case.method for case in self.board.certified.cases}
                proved = {own[label]: share for label, share in certified(self.board, bound).items()}
                found.append(_Proof(self, bound, left, proved))
        return found


@dataclass(frozen=True)
class _Proof:
    """A bound, what each attack, named without its size, leaves of its images, and what each certificate proves."""

    place: BoundedBoard
    bound: Bound
    left: Mapping[str, Estimate]
    certified: Mapping[str, Estimate]

    @property
    def row(self) -> Row:
        return next(row for row in self.place.board.rows if row.label == self.bound.row)

    @property
    def nearest(self) -> list[str]:
        """The attacks that leave least."""
        least = min(found.value for found in self.left.values())
        return [name for name, found in self.left.items() if found.value == least]

    @property
    def above(self) -> float:
        """How far the least that is left lies above all that is possible; above the lower bound where that is all."""
        least = self.left[self.nearest[0]]
        return max(0.0, least.value - self.bound.low if self.bound.high == 1 else beyond(least, self.bound))


def overview(boards: Sequence[BoundedBoard]) -> str:
    """The page in markdown, the answer first.

    Args:
        boards: Those of one grid.
    """
    shown, networks = proved_table(boards), _networks(boards)
    titles = dict.fromkeys(board.note.title or board.note.grid for board in boards)
    abouts = dict.fromkeys(text for board in boards for text in paragraphs(board.note.about))
    places = [
        f"[{escape(one.board.dataset.label, brackets=True)}]({folder_link(one.folder, 'README.md')})" for one in boards
    ]
    parts = [
        f"# {escape(listed(list(titles)))}",
        *shown.answer,
        markdown_table(shown.table, len(shown.table.lines)),
        shown.legend,
        *map(escape, abouts),
        "## Networks",
        markdown_table(networks, len(networks.lines)),
        f"Boards, with what became of every image: {', '.join(places)}.",
    ]
    return "\n\n".join(parts) + "\n"


def proved_table(boards: Sequence[BoundedBoard]) -> ProvedTable:
    """What is proved and what each attack leaves, a line for each network and its images.

    Args:
        boards: Those of one grid.
    """
    proofs = _proofs(boards)
    legend = _LEGEND + (_CERTIFIED if any(proof.certified for proof in proofs) else "")
    return ProvedTable(tuple(_answer(proofs)), _figures(proofs), legend)


def _answer(proofs: Sequence[_Proof]) -> list[str]:
    """Whether any figure contradicts a proof, and how near attacks come to what is proved; in markdown."""
    found = [beyond(share, proof.bound) for proof in proofs for share in proof.left.values()]
    wrong, weak = sum(value < 0 for value in found), sum(value > 0 for value in found)
    least = Counter(attack for proof in proofs for attack in proof.nearest)
    run = Counter(attack for proof in proofs for attack in proof.left)
    ahead = [f"{escape(attack)} on {least[attack]} of {run[attack]}" for attack in run if least[attack]]
    return [
        f"{f'**{wrong}**' if wrong else 'None'} of {counted(len(found), 'figure')} "
        f"{'lie' if wrong > 1 else 'lies'} below what is proved robust, {weak} above what is proved possible.",
        *_certified(proofs),
        *_distances("Above what is proved possible", [proof for proof in proofs if proof.bound.high < 1]),
        *_distances("Above a lower bound alone", [proof for proof in proofs if proof.bound.high == 1]),
        f"Least is left by {listed(ahead)} networks that it was run on, ties counted for each.",
    ]


def _certified(proofs: Sequence[_Proof]) -> list[str]:
    """Whether what certificates claim is possible."""
    found = [beyond(share, proof.bound) > 0 for proof in proofs for share in proof.certified.values()]
    if not found:
        return []
    wrong = f"**{sum(found)}**" if any(found) else "None"
    return [f"{wrong} of {counted(len(found), 'certified share')} lies above what is proved possible."]


def _distances(text: str, proofs: Sequence[_Proof]) -> list[str]:
    """How far the strongest attack of each network lies above an end of its bound."""
    if not proofs:
        return []
    parts = [
        f"{escape(proof.bound.row)} {percent(proof.above)} ({escape(listed(proof.nearest))})"
        for proof in sorted(proofs, key=lambda proof: proof.above)
    ]
    return [f"{text}, in points, the strongest attack: {', '.join(parts)}."]


def _figures(proofs: Sequence[_Proof]) -> Sheet:
    names = list(dict.fromkeys(name for proof in proofs for name in proof.left))
    methods = list(dict.fromkeys(name for proof in proofs for name in proof.certified))
    lines = []
    for proof in proofs:
        clean = proof.row.cells[label].rates if (label := proof.place.board.clean_label) else None
        cells = (
            *texts(proof.bound.row, size(proof.bound)),
            TableCell.count(proof.bound.images),
            TableCell(percent(clean.share.value), clean.share.value) if clean else TableCell(NONE),
            TableCell(interval(proof.bound)),
            *(
                _claimed(proof.certified[name], proof.bound) if name in proof.certified else TableCell(NONE)
                for name in methods
            ),
            *(_marked(proof.left[name], proof.bound) if name in proof.left else TableCell(NONE) for name in names),
        )
        lines.append(SheetLine(cells))
    headings = (*words("Network", "Size"), *numbers("Images", "Clean", "Proved"))
    headings += numbers(*(f"Certified, {name}" for name in methods), *names)
    return Sheet("Attacks beside proved bounds", headings, tuple(lines))


def _marked(found: Estimate, bound: Bound) -> TableCell:
    outside = beyond(found, bound)
    mark = "✗" if outside < 0 else "▲" if outside > 0 else ""
    exact = " =" if bound.low == bound.high else ""
    return TableCell(
        f"{percent(found.value)}{f' {mark}' if mark else exact}",
        found.value,
        below=f"{100 * outside:+.2f}" if mark else "",
    )


def _claimed(found: Estimate, bound: Bound) -> TableCell:
    above = beyond(found, bound)
    wrong = above > 0
    return TableCell(
        f"{percent(found.value)}{' ✗' if wrong else ''}", found.value, below=f"{100 * above:+.2f}" if wrong else ""
    )


def _networks(boards: Sequence[BoundedBoard]) -> Sheet:
    lines = []
    for proof in _proofs(boards):
        external = proof.row.model.external
        facts, identity = (external.facts, external.identity) if external else ({}, {})
        count = facts.get("parameters")
        cells = (
            TableCell(proof.bound.row),
            TableCell.count(count) if isinstance(count, int) else TableCell(NONE),
            TableCell(proof.bound.source),
            *texts(*(str(facts.get(key) or NONE) for key in ("license", "source"))),
            TableCell(str(identity.get("weights_sha256") or NONE)[:16]),
            TableCell(proof.place.board.dataset.fingerprint[:16]),
        )
        lines.append(SheetLine(cells))
    headings = (
        *words("Network"),
        *numbers("Parameters"),
        *words("Proved", "License", "Source", "Weights, sha256", "Images, fingerprint"),
    )
    return Sheet("Networks", headings, tuple(lines)).without_empty()


def _proofs(boards: Sequence[BoundedBoard]) -> list[_Proof]:
    return [proof for board in boards for proof in board.proofs]
