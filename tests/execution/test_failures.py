"""What fails takes nothing with it that was done, and no failure is lost."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
from stores import flip

from robbench.cli.main import main
from robbench.execution import local
from robbench.execution.jobs import Progress, carry_out
from robbench.execution.runner import remaining
from robbench.planning.plan import Plan
from robbench.results.schema import Record
from robbench.results.store import EMBEDDINGS, EXAMPLES, IMAGES, OUTCOME, Store
from robbench.training import trainer

pytestmark = pytest.mark.usefixtures("one_core")

DIVERGES = "defense = 'fgm'\nrecipe = { lr = 1e30, optimizer = 'sgd' }"


def do(plan: Plan) -> dict[tuple[str, str], Record]:
    """Carry out what is left, in this process; the records that were finished, by row and column."""
    told: list[Progress] = []
    for job, cells in remaining(plan, Store(plan.request.out)):
        carry_out(plan, job, cells, told.append)
    records = [event.finished for event in told if event.finished is not None]
    return {(record.spec.model.label, record.spec.condition.label): record for record in records}


def broken(*_: Any) -> Any:
    raise ValueError("nothing works today")


def test_a_finished_cell_is_not_lost_to_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was tried again since what figures are drawn from was damaged, or embeddings are asked for as well."""
    plan = tiny.make(tmp_path, conditions=["clean", "fgsm@ref"], recipe="epochs = 1", limit=20)
    before = do(plan)
    store = Store(plan.request.out)
    cells = {cell.condition.label: store.cell_dir(cell.key) for _, cell in plan.cells}
    flip(cells["fgsm@0.1"] / EXAMPLES)
    flip(cells["clean"] / OUTCOME)
    monkeypatch.setattr("robbench.evaluation.evaluator.evaluate", broken)
    again = do(plan)
    row = "cross-entropy · no defense"
    assert again[row, "fgsm@0.1"] == before[row, "fgsm@0.1"] == store.record(cells["fgsm@0.1"].name)
    assert again[row, "clean"].status == "failed", "its outcome is damaged, so that it is not done"
    warned = capsys.readouterr().err
    assert f"{row} · fgsm@0.1 was not done again: ValueError: nothing works today" in warned
    assert "clean was not done again" not in warned


def test_damaged_archives_that_nobody_writes_again_go(tmp_path: Path) -> None:
    """As where folders of the store were exchanged: they would be found damaged by every run from now on."""
    plan = tiny.make(tmp_path, conditions=["clean"], recipe="epochs = 1", limit=20)
    do(plan)
    store, (job,) = Store(plan.request.out), plan.jobs
    (cell,) = job.cells
    stray = [store.model_dir(job.key) / EMBEDDINGS, *(store.cell_dir(cell.key) / name for name in (EXAMPLES, IMAGES))]
    for name in (EXAMPLES, EMBEDDINGS):
        store.write_archive(store.cell_dir("another") / name, store.cell_dir(cell.key).joinpath(OUTCOME).read_bytes())
        shutil.copy(store.cell_dir("another") / name, store.cell_dir(cell.key) / name)
    for path in stray[::2]:
        path.write_bytes(b"of somebody")
    assert do(plan)
    assert remaining(plan, store) == []
    assert not any(path.exists() for path in stray)
    assert not (store.cell_dir(cell.key) / EMBEDDINGS).exists()


@pytest.mark.end_to_end
def test_what_was_not_done_again_is_tried_by_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = tmp_path / "tiny.toml"
    grid.write_text(tiny.grid_text(conditions=["fgsm@ref"], recipe="epochs = 1"), encoding="utf-8")
    words = ["run", "--grid", str(grid), "--out", str(tmp_path / "runs"), "--limit", "9", "--device", "cpu"]

    def here(plan: Plan, work: Any, workers: int | None, tell: Any, timeout: float) -> None:
        for job, cells in work:
            carry_out(plan, job, cells, tell)

    monkeypatch.setattr(local, "run_locally", here)
    assert main(words) == 0
    (path,) = (tmp_path / "runs" / "cells").glob(f"*/{EXAMPLES}")
    flip(path)
    with monkeypatch.context() as patch:
        patch.setattr("robbench.evaluation.evaluator.evaluate", broken)
        assert main(words) == main(words) == 1
    assert main(words) == 0
    (weights,) = (tmp_path / "runs" / "models").glob("*/weights.safetensors")
    flip(weights)
    with monkeypatch.context() as patch:
        patch.setattr("robbench.training.trainer.train", broken)
        assert main(words) == main(words) == 1, "a model that cannot be trained again is no success"
    assert main(words) == 0


def test_a_model_that_diverges_costs_only_the_cells_that_rest_on_it(tmp_path: Path) -> None:
    models = ["", f"name = 'bad'\n{DIVERGES}", "name = 'on top'\nstart = 'bad'", "defense = 'fgm'"]
    plan = tiny.make(tmp_path, models, ["clean", "transfer@ref"], recipe="epochs = 1", limit=20)
    found = do(plan)
    assert len(found) == 8
    status = {key: record.status for key, record in found.items()}
    rows = ("cross-entropy · no defense", "cross-entropy · fgm")
    assert all(status[row, "clean"] == "done" for row in rows)
    assert all(status[key] == "unsupported" for key in status if key[0] in ("bad", "on top"))
    assert found["on top", "clean"].reason == "it starts from a model whose training diverged"
    assert {found[row, "transfer@0.1"].reason for row in rows} == {"it works through a model whose training diverged"}
    assert not remaining(plan, Store(plan.request.out)), "trying again would come to the same"


def test_a_model_that_fails_costs_only_the_cells_that_rest_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tiny.make(tmp_path, ["", "defense = 'fgm'"], ["clean", "transfer@ref"], recipe="epochs = 1", limit=20)
    bad = plan.jobs[1].key
    train = trainer.train
    monkeypatch.setattr(trainer, "train", lambda job, *rest: broken() if job.key == bad else train(job, *rest))
    found = do(plan)
    row = "cross-entropy · no defense"
    assert found[row, "clean"].status == "done"
    assert found[row, "transfer@0.1"].status == "failed"
    assert "it works through a model that could not be trained" in (found[row, "transfer@0.1"].reason or "")
    monkeypatch.undo()
    assert {record.status for record in do(plan).values()} == {"done"}
