"""Grids small enough to be trained in a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robbench.evaluation.audit import marked
from robbench.execution.jobs import carry_out
from robbench.planning.grid import Request
from robbench.planning.plan import Plan, TrainedJob
from robbench.planning.planner import make_plan
from robbench.results.schema import CellResult
from robbench.results.store import Store

THREE_DIGITS = "digits[classes=8|3|9,train_fraction=0.3]"
"""Some 90 images to train on and 160 to test on."""


def grid_text(
    models: Sequence[str] = ("",),
    conditions: Sequence[str] = ("clean",),
    recipe: str = "epochs = 2",
    dataset: str = THREE_DIGITS,
    seeds: Sequence[int] = (0,),
) -> str:
    """A grid as TOML; every model is the body of its table."""
    return "\n".join(
        [
            f"datasets = ['{dataset}']",
            f"conditions = {list(conditions)}",
            f"seeds = {list(seeds)}",
            f"recipe = {{ {recipe} }}",
            *(f"[[models]]\n{body}" for body in models),
        ]
    )


def make(
    folder: Path,
    models: Sequence[str] = ("",),
    conditions: Sequence[str] = ("clean",),
    recipe: str = "epochs = 2",
    dataset: str = THREE_DIGITS,
    seeds: Sequence[int] = (0,),
    limit: int | None = None,
    plugins: Sequence[Path] = (),
) -> Plan:
    """The plan of such a grid, with its store in ``folder / "runs"``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.toml"
    path.write_text(grid_text(models, conditions, recipe, dataset, seeds), encoding="utf-8")
    return make_plan(Request(grid=str(path), out=folder / "runs", limit=limit, device="cpu", plugins=tuple(plugins)))


def job(
    folder: Path, model: str = "", recipe: str = "epochs = 2", seed: int = 0, plugins: Sequence[Path] = ()
) -> TrainedJob:
    """The only job of a grid with one model."""
    (only,) = make(folder, [model], recipe=recipe, seeds=[seed], plugins=plugins).trained
    return only


def carried_out(plan: Plan) -> Sequence[CellResult]:
    """The cells of a plan, each done, as boards take them."""
    store = Store(plan.request.out)
    found: list[CellResult] = []
    for job in plan.jobs:
        carry_out(plan, job, job.cells, lambda progress: None)
        for cell in job.cells:
            record = store.record(cell.key)
            assert record is not None
            assert record.status == "done", record.reason
            found.append((record, store.outcome(record)))
    return marked(found)
