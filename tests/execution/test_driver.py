"""The driver: what it hands out when, that it alone writes, and what it does where others are at work or are lost."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
import tiny
from stores import flip

from robbench.core.errors import StoreError
from robbench.execution import driver, worker
from robbench.execution.driver import drive
from robbench.execution.graph import graph
from robbench.execution.helpers import Helpers
from robbench.execution.jobs import Progress, carry_out
from robbench.execution.runner import remaining
from robbench.execution.tasks import Died, Hear, Needs, Over, Step, Task, Vanished, Written
from robbench.planning.plan import Plan
from robbench.results.store import EXAMPLES, RECORD, Store

CONDITIONS = ["clean", "fgsm@ref", "pgd[steps=3]@ref"]


class Inline:
    """Carries out tasks in this process, as a worker does; loses some of them first."""

    def __init__(self, lost: dict[Step, list[object]] | None = None) -> None:
        self.waiting: list[Task] = []
        self.done: list[tuple[Step, str]] = []
        self.lost = lost or {}
        self.closed = False

    def width(self) -> tuple[int, int]:
        return 1, 1

    def takes(self, needs: Needs) -> bool:
        return not self.waiting

    def submit(self, task: Task) -> None:
        self.waiting.append(task)

    def listen(self, hear: Hear) -> None:
        if not self.waiting:
            time.sleep(0.01)
            return
        task = self.waiting.pop()
        said: list[object] = []

        def send(message: object) -> None:
            said.append(message)
            hear(task, message)

        end = self.lost[task.step].pop(0) if self.lost.get(task.step) else Over()
        if not isinstance(end, Vanished | Died):
            assert task.portion is not None
            worker._carry_out(task, worker._Open(task.digest, task.portion.open()), send, Helpers(None, task))  # type: ignore[arg-type]
            self.done.append((task.step, task.key))
        hear(task, end)

    def close(self) -> None:
        self.closed = True


def driven(plan: Plan, executor: Inline) -> list[Progress]:
    told: list[Progress] = []
    drive(plan, remaining(plan, Store(plan.request.out)), executor, told.append)
    assert executor.closed
    return told


def files(plan: Plan) -> dict[str, bytes]:
    out = plan.request.out
    paths = [*out.glob("cells/*/*.npz"), *out.glob("models/*/*.safetensors"), *out.glob("models/*/*.npz")]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def test_tasks_come_to_what_a_job_in_one_process_comes_to(tmp_path: Path) -> None:
    apart, here = (tiny.make(tmp_path / name, ["", "defense = 'fgm'"], CONDITIONS, limit=20) for name in ("a", "b"))
    executor = Inline()
    told = driven(apart, executor)
    for job in here.jobs:
        carry_out(here, job, job.cells, lambda progress: None)
    assert files(apart) == files(here)
    finished = [event.finished for event in told if event.finished is not None]
    assert [record.status for record in finished] == ["done"] * 6
    steps = [step for step, _ in executor.done]
    assert (steps.count("train"), steps.count("predict"), steps.count("judge")) == (2, 2, 6)
    assert not list(apart.request.out.rglob(".*.lock")), "leases are given back"


def test_rows_and_their_cells_are_begun_with_the_costliest(tmp_path: Path) -> None:
    models = ["recipe = { epochs = 1 }", "defense = 'fgm'\nrecipe = { epochs = 9 }"]
    plan = tiny.make(tmp_path, models, CONDITIONS, limit=20)
    cheap, costly = plan.jobs
    nodes = graph(plan, [(job, job.cells) for job in plan.jobs], Store(plan.request.out))
    order = [node for node in sorted(nodes.values(), key=lambda node: node.rank)]
    assert [node.row.job.key for node in order] == [costly.key] * 5 + [cheap.key] * 5
    labels = [node.cell.condition.label if node.cell else node.name[0] for node in order[:5]]
    assert labels == ["train", "predict", "pgd[steps=3]@0.1", "fgsm@0.1", "clean"]
    assert all(nodes["judge", cell.key].waits >= {("predict", costly.key)} for cell in costly.cells)


def test_what_a_lost_machine_was_at_is_done_again_and_nothing_else(tmp_path: Path) -> None:
    plan = tiny.make(tmp_path, conditions=CONDITIONS, limit=20)
    gone = Vanished("gone")
    executor = Inline({"train": [gone], "predict": [gone, gone], "judge": [Over(), gone]})
    told = driven(plan, executor)
    assert {event.finished.status for event in told if event.finished} == {"done"}
    assert len(executor.done) == len(set(executor.done)) == 5


def test_a_task_that_no_machine_survives_fails_alone(tmp_path: Path) -> None:
    plan = tiny.make(tmp_path, conditions=CONDITIONS, limit=20)
    told = driven(plan, Inline({"judge": [Vanished("gone")] * driver.TRIES}))
    found = [event.finished for event in told if event.finished]
    assert sorted(record.status for record in found) == ["done", "done", "failed"]
    assert [record.reason for record in found if record.reason] == [f"crash: gone, {driver.TRIES} times"]


def test_a_model_that_costs_its_process_costs_its_own_cells(tmp_path: Path) -> None:
    plan = tiny.make(tmp_path, ["", "defense = 'fgm'"], ["clean"], limit=20)
    told = driven(plan, Inline({"train": [Died("crash: gone", True)]}))
    found = [event.finished for event in told if event.finished]
    assert sorted(record.status for record in found) == ["done", "failed"]
    assert "crash: gone in training, or while the model was loaded" in [record.reason for record in found]


def test_a_process_that_dies_takes_nothing_with_it_that_was_done(tmp_path: Path) -> None:
    """Neither a damaged record nor one of an earlier run, whose images are to be made again."""
    plan = tiny.make(tmp_path, conditions=["clean", "fgsm@ref"], recipe="epochs = 1", limit=20)
    driven(plan, Inline())
    store, (job,) = Store(plan.request.out), plan.jobs
    clean, fgsm = job.cells
    kept = store.record(fgsm.key)
    flip(store.cell_dir(clean.key) / RECORD)
    flip(store.cell_dir(fgsm.key) / EXAMPLES)
    told = driven(plan, Inline({"judge": [Died("crash: gone", False)] * 2}))
    found = {event.cell: event.finished for event in told if event.finished}
    assert (found[clean.key].status, found[clean.key].reason) == ("failed", "crash: gone")
    assert found[fgsm.key] == kept == store.record(fgsm.key)


def test_an_error_of_the_store_ends_the_run(tmp_path: Path) -> None:
    plan = tiny.make(tmp_path, conditions=["clean"], limit=20)
    executor = Inline({"judge": [Over("no room")]})
    with pytest.raises(StoreError, match="no room"):
        driven(plan, executor)
    assert executor.closed
    assert not list(plan.request.out.rglob(".*.lock"))


def test_what_another_run_is_at_is_waited_for_while_others_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(driver, "POLL", 0.01)
    monkeypatch.setattr(driver, "PATIENCE", 0.05)
    plan = tiny.make(tmp_path, conditions=CONDITIONS, limit=20)
    store, (job,) = Store(plan.request.out), plan.jobs
    held = job.cells[2]
    stack = contextlib.ExitStack()
    stack.enter_context(store.lease("cells", held.key))
    told: list[Progress] = []

    def tell(event: Progress) -> None:
        told.append(event)

    class Slow(Inline):
        """The other run gives up when there is nothing else to do."""

        def listen(self, hear: Hear) -> None:
            if not self.waiting and len([event for event in told if event.finished]) == 2:
                time.sleep(0.1)
                if "waiting for another robbench" in capsys.readouterr().err:
                    stack.close()
            super().listen(hear)

    drive(plan, [(job, job.cells)], Slow(), tell)
    cells = [event.cell for event in told if event.finished]
    assert sorted(cells) == sorted(cell.key for cell in job.cells)
    assert cells[-1] == held.key


def test_what_another_run_finished_meanwhile_is_not_done_again(tmp_path: Path) -> None:
    plan = tiny.make(tmp_path, conditions=CONDITIONS, limit=20)
    (job,) = plan.jobs
    work = remaining(plan, Store(plan.request.out))
    carry_out(plan, job, job.cells, lambda progress: None)
    executor = Inline()
    told: list[Progress] = []
    drive(plan, work, executor, told.append)
    assert {step for step, _ in executor.done} == {"predict"}
    assert [event.finished.status for event in told if event.finished] == ["done"] * 3


def test_a_training_that_moves_to_another_machine_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    plan = tiny.make(tmp_path, conditions=["clean"], recipe="epochs = 4", limit=20)
    epochs: list[int] = []

    class Dies(Inline):
        """The machine is gone after the second checkpoint."""

        def listen(self, hear: Hear) -> None:
            before, dead = len(epochs), False

            def heard(task: Task, message: object) -> None:
                nonlocal dead
                if dead and isinstance(message, Over):
                    hear(task, Vanished("gone"))
                elif not dead:
                    if isinstance(message, Progress) and message.activity == "training" and message.done < message.of:
                        epochs.append(message.done)
                    hear(task, message)
                    dead = before == 0 and len(epochs) == 2 and isinstance(message, Written)

            super().listen(heard)

    driven(plan, Dies())
    assert epochs == [0, 1, 2, 3]
    whole = tiny.make(tmp_path / "whole", conditions=["clean"], recipe="epochs = 4", limit=20)
    driven(whole, Inline())
    assert files(plan) == files(whole)
