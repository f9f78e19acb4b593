"""The graph of what is to be done: every model trained and asked once, every cell by itself, the costliest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from robbench.execution.jobs import cost_its_process, to_predict, to_train, ways
from robbench.execution.portion import Portion
from robbench.execution.tasks import Failure, Predicted, Step, Way
from robbench.planning.cost_estimate import weights
from robbench.planning.plan import Cell, Job, Plan
from robbench.results.store import Store

ToDo: TypeAlias = Sequence[tuple[Job, Sequence[Cell]]]
Name: TypeAlias = tuple[Step, str]
"""A step, and the key of its model or cell."""


@dataclass
class RowState:
    """A model, and what of it is known so far.

    Attributes:
        job: Its job.
        cells: Those of its cells that are to be done.
        asked: The ways in which its cells ask it.
        predicted: What its cells share, once it is known.
        failure: Why it cannot be had, once that is known.
        portions: What was packed of it, with the plugins that are loaded where it is opened.
    """

    job: Job
    cells: list[Cell] = field(default_factory=list)
    asked: tuple[Way, ...] = ()
    predicted: Predicted | None = None
    failure: Failure | None = None
    portions: dict[object, tuple[Portion, frozenset[str]]] = field(default_factory=dict)


@dataclass
class Pending:
    """A step of a row.

    Attributes:
        name: Its name.
        row: The row.
        cell: The cell that is judged, or None.
        rank: Of what can be begun, the smallest is.
        waits: What has to be over before.
        blocks: What waits for it.
        kept: Whether what came of it was written.
        tries: How often a machine was lost that was at it.
    """

    name: Name
    row: RowState
    cell: Cell | None
    rank: tuple[float, ...]
    waits: set[Name]
    blocks: list[Name] = field(default_factory=list)
    kept: bool = False
    tries: int = 0


def graph(plan: Plan, work: ToDo, store: Store) -> dict[Name, Pending]:
    """The steps of what is to be done, by name.

    Rows are begun in the order of their cost, which includes that of the rows that start from them, and so are the
    cells of a row: what takes longest does not come last.

    Args:
        plan: The plan.
        work: Jobs with those of their cells that are to be done; without cells, for others that need the model.
        store: What it holds is not counted as work. Cells that cost their process when they were last tried come last.
    """
    rows: dict[str, RowState] = {}
    trained: set[str] = set()
    asked: set[str] = set()
    for job, cells in work:
        rows.setdefault(job.key, RowState(job)).cells.extend(cells)
        trained |= {job.key} if to_train(job, cells) else set()
        asked |= {job.key} if to_predict(job, cells) else set()
    costs, each = _costs(plan, rows, store)
    feared = {cell.key for row in rows.values() for cell in row.cells if cost_its_process(store, cell)}
    nodes: dict[Name, Pending] = {}
    for place, (key, row) in enumerate(sorted(rows.items(), key=lambda item: -costs[item[0]])):
        row.asked = ways(row.job, row.cells)
        needed = {job.key for job in (row.job, *row.job.members)} | {start.key for start in plan.starts(row.job)[-1:]}
        weights_of: set[Name] = {("train", other) for other in needed & trained}
        own: Name = ("train", key)
        if key in trained:
            nodes[own] = Pending(own, row, None, (0, place, 0), weights_of - {own})
        if key in asked:
            nodes["predict", key] = Pending(("predict", key), row, None, (0, place, 1), weights_of)
        before: set[Name] = {("predict", key)} if key in asked else weights_of
        for cell in row.cells:
            cells_before: set[Name] = {("judge", other) for other in cell.needs}
            models_before: set[Name] = {("train", other) for other in cell.peers if other in trained}
            rank = (cell.key in feared, place, 2, -each[cell.key])
            own = ("judge", cell.key)
            nodes[own] = Pending(own, row, cell, rank, before | cells_before | models_before)
    for node in nodes.values():
        node.waits &= nodes.keys()
        for name in node.waits:
            nodes[name].blocks.append(node.name)
    return nodes


def _costs(plan: Plan, rows: Mapping[str, RowState], store: Store) -> tuple[dict[str, float], dict[str, float]]:
    """What rows cost, with those that start from them, and each cell; in weighted passes."""
    costs, each = dict.fromkeys(rows, 0.0), dict[str, float]()
    for row in rows.values():
        training, own = weights(row.job, row.cells, store)
        each |= own
        for model in (row.job, *plan.starts(row.job)):
            if model.key in costs:
                costs[model.key] += training + sum(own.values())
    return costs, each
