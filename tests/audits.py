"""Rows as the audit sees them, made by evaluating a subject under conditions."""

from __future__ import annotations

from collections.abc import Sequence

from board_cells import A_MODEL, cell
from subjects import condition

from robbench.core.contracts import Classifier
from robbench.evaluation.audit import examine
from robbench.evaluation.audit_flags import Flag
from robbench.evaluation.evaluator import evaluate
from robbench.evaluation.subject import Subject
from robbench.planning.conditions import Condition
from robbench.results.schema import Outcome, Record

Cells = list[tuple[Record, Outcome]]


def row(
    subject: Subject, *chains: str | Condition, peers: Sequence[Classifier] = (), traits: Sequence[str] = ()
) -> Cells:
    """The finished cells of a subject: unchanged images, then each condition."""
    cells: Cells = []
    for chain in ("clean", *chains):
        wanted = condition(chain) if isinstance(chain, str) else chain
        result = evaluate(subject, wanted, peers=peers)
        record, outcome = cell(A_MODEL, wanted.spec(), result.outcome)
        assert outcome is not None
        seen = (*result.traits, *traits) if wanted.kind == "clean" else ()
        cells.append((record.model_copy(update={"traits": seen}), outcome))
    return cells


def flags(cells: Cells) -> dict[str, str]:
    """The blocking flags of a row with what was found."""
    return {flag.name: flag.text for flag in examine(cells) if flag.blocks}


def cautions(cells: Cells) -> dict[str, Flag]:
    return {flag.name: flag for flag in examine(cells) if not flag.blocks}
