"""What a grid of thousands of cells costs before anything is trained: planned, looked up, and found to be done.

    python tests/benchmarks/large_grids.py [MODELS [SEEDS [CONDITIONS]]]

Cells are made up and written as a run would leave them; seconds are of CPU, in one process each.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from robbench.core.sealed import hash_of, sealed_json
from robbench.evaluation.evaluator import Result
from robbench.evaluation.model_size import ModelSize
from robbench.evaluation.scoring import done
from robbench.execution.boards import note_boards
from robbench.execution.ready import provenance_of
from robbench.execution.runner import remaining
from robbench.planning.grid import Request
from robbench.planning.inputs import Inputs, finished, read_request
from robbench.planning.planner import make_plan
from robbench.results import store_index
from robbench.results.outcome import Outcome
from robbench.results.store import OUTCOME, RECORD, Store


def grid(models: int, seeds: int, conditions: int) -> str:
    attacks = [f"pgd[steps={steps}]@{eps}" for steps in range(1, conditions) for eps in (0.02, 0.1)]
    lines = ["datasets = ['digits[classes=8|3|9,train_fraction=0.3]']", f"seeds = {list(range(seeds))}"]
    lines += [f"conditions = {['clean', *attacks][:conditions]}"]
    lines += [f'[[models]]\nname = "model {number}"\nrecipe = {{ epochs = {number + 1} }}' for number in range(models)]
    return "\n".join(lines)


def fill(inputs: Inputs) -> None:
    """Write every cell of a request as if a run had finished it; all hold one outcome of their kind."""
    plan = make_plan(inputs)
    store, facts, made = Store(plan.request.out), provenance_of("cpu", [], plan.jobs[0]), {}
    for job, cell in plan.cells:
        kind, splits = cell.condition.kind, job.data.splits
        if kind not in made:
            arrays: dict[str, Any] = {name: splits.labels[splits.test] for name in ("labels", "clean")}
            outcome = Outcome.of(job.data.num_classes, kind, ids=splits.test, targets=0 * splits.test, **arrays)
            outcome = replace(outcome, attempted=np.full(len(outcome), kind != "clean"))
            record = done(cell, Result(outcome, {}, (), ()), None, ModelSize(1, 1), (), facts, 0.1, plan.registry)
            data = outcome.to_bytes()
            made[kind] = record.model_copy(update={"outcome_sha256": hash_of(data)}), data
        record, data = made[kind]
        folder = store.cell_dir(cell.key)
        folder.mkdir(parents=True)
        record = record.model_copy(update={"key": cell.key, "spec": cell.spec})
        (folder / OUTCOME).write_bytes(data)
        place = f"cells/{cell.key}/{RECORD}"
        (folder / RECORD).write_text(sealed_json(record.model_dump(mode="json"), place), encoding="utf-8")
    boards = note_boards(plan, store)
    for board in boards:
        (store.root / "leaderboards" / board).mkdir(parents=True)
        (store.root / "leaderboards" / board / "README.md").write_text("made up", encoding="utf-8")
    (store.root / "leaderboards" / "index.html").write_text("made up", encoding="utf-8")
    store.note_files(list(boards))
    store.note_request(inputs.key, plan.name, boards)


def plan(inputs: Inputs) -> str:
    return f"{sum(1 for _ in make_plan(inputs).cells)} cells"


def left(inputs: Inputs) -> str:
    made = make_plan(inputs)
    return f"{len(remaining(made, Store(inputs.request.out)))} models left"


def cached(inputs: Inputs) -> str:
    found = finished(inputs, Store(inputs.request.out))
    assert found is not None
    return f"{found.cells} cells done"


def measured(name: str, step: Callable[[Inputs], str | None], request: Request) -> None:
    before = time.process_time()
    told = step(read_request(request)) or ""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:28} {time.process_time() - before:7.2f} s {peak:7.0f} MB  {told}", flush=True)


def main() -> None:
    models, seeds, conditions = (int(word) for word in [*sys.argv[1:], *["100", "5", "20"][len(sys.argv) - 1 :]])
    store_index.SETTLED = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.toml"
        path.write_text(grid(models, seeds, conditions), encoding="utf-8")
        request = Request(grid=str(path), out=Path(folder) / "runs", device="cpu")
        steps = {"plan": plan, "make up": fill, "done? all files are read": cached, "done? by the index": cached}
        for name, step in (steps | {"plan, what is left": left}).items():
            process = multiprocessing.get_context("fork").Process(target=measured, args=(name, step, request))
            process.start()
            process.join()


if __name__ == "__main__":
    main()
