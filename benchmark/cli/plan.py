"""``robbench plan``: the cells of a grid, which are done, and what the rest will cost."""

from __future__ import annotations

import argparse
import itertools
from typing import TYPE_CHECKING

from robbench.cli import _command

if TYPE_CHECKING:
    from robbench.planning.cost_estimate import Cost
    from robbench.planning.plan import Cell, Plan
    from robbench.results.store import Store


def _options(parser: argparse.ArgumentParser) -> None:
    _command.add_request(parser)
    _command.add_conditions(parser)
    parser.add_argument("--cells", action="store_true", help="list every cell with its state and key")


def _action(options: argparse.Namespace) -> int:
    from robbench.planning.inputs import read_request
    from robbench.results.store import Store

    store = Store(options.out)
    store.check()
    inputs = read_request(_command.request(options))
    from robbench.planning.planner import make_plan

    _show(make_plan(inputs), store, every_cell=options.cells)
    return 0


COMMAND = _command.Command(
    place=20,
    summary="show the cells of a grid, which are done, what is left",
    about="Shows what a run would do, model by model: cells done, passes and time left. Nothing is computed. Use it "
    "before a long run, or to see how far one has come.",
    examples=(
        ("robbench plan --grid full", "models of the full grid and what they cost"),
        ("robbench plan --grid quick --cells", "every cell with its state and key"),
    ),
    options=_options,
    action=_action,
)


def _show(plan: Plan, store: Store, every_cell: bool) -> None:
    from robbench.cli._display import Terminal, table
    from robbench.execution.runner import remaining
    from robbench.planning.cost_estimate import NOTHING, Throughput, cost

    console = Terminal()
    rates = Throughput.of(store, plan.jobs)
    left: dict[str, list[Cell]] = {}
    for job, cells in remaining(plan, store):
        left.setdefault(job.key, []).extend(cells)
    total, done, count = NOTHING, 0, 0
    timed = rates.training is not None or rates.attacking is not None
    console.print(f"{plan.name}: {plan.grid.title}" if plan.grid.title else plan.name)
    for remark in plan.remarks:
        console.say(f"note: {remark}")
    for name, jobs in itertools.groupby(plan.jobs, key=lambda job: job.data.choice.label):
        made = table("model", numbers=("seed", "done", "passes left", *(("time left",) if timed else ())))
        for job in jobs:
            cells = left.get(job.key, [])
            expected = cost(job, cells, store, rates) if job.key in left else NOTHING
            finished = len(job.cells) - len(cells)
            total, done, count = total + expected, done + finished, count + len(job.cells)
            made.add_row(
                job.spec.label, str(job.seed), f"{finished}/{len(job.cells)}", *_forecast(expected)[: 1 + timed]
            )
            for cell in job.cells if every_cell else ():
                made.add_row(f"  {cell.condition.label}", "", _state(store, cell.key), cell.key[:8])
        console.print(f"\n{name}\n")
        console.print(made)
    passes, seconds = _forecast(total)
    time_left = f", {seconds} on one worker" if total.seconds is not None else ""
    left_over = f"at most {passes} passes left{time_left}" if done < count else "nothing left"
    console.print(f"\n{count} cells, {done} done; {left_over}")


def _state(store: Store, key: str) -> str:
    from robbench.core.errors import Damaged

    try:
        record = store.record(key)
    except Damaged:
        return "damaged"
    return "to do" if record is None else record.status


def _forecast(expected: Cost) -> tuple[str, str]:
    from robbench.cli._display import duration

    passes = expected.forwards + expected.backwards
    return f"{passes:,.0f}", "?" if expected.seconds is None else duration(expected.seconds)
