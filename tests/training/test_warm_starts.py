from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from trainings import trained

from robbench.execution import local
from robbench.execution.jobs import Progress, carry_out
from robbench.execution.runner import remaining
from robbench.results.store import Store

CHAIN = [
    "name = 'third'\nstart = 'second'\nrecipe = { epochs = 1 }",
    "name = 'second'\nobjective = 'angular'\nstart = 'first'\nrecipe = { lr = 1e-30 }",
    "name = 'first'",
]


def test_a_warm_start_copies_the_backbone_and_nothing_else(tmp_path: Path) -> None:
    plan = tiny.make(tmp_path, CHAIN)
    store = Store(plan.request.out)
    jobs = {job.spec.label: job for job in plan.trained}
    first = trained(jobs["first"], store)
    # A learning rate that is next to nothing shows what training started from.
    second = trained(jobs["second"], store)
    shared = {name for name in second if name.startswith("backbone.")}
    assert shared == {name for name in first if name.startswith("backbone.")}
    assert all(torch.equal(first[name], second[name]) for name in shared)
    cold = tiny.job(tmp_path / "cold", "objective = 'angular'", "epochs = 2, lr = 1e-30")
    started = trained(cold, store)
    assert torch.equal(second["projection.weight"], started["projection.weight"])
    assert any(not torch.equal(started[name], second[name]) for name in shared)


def test_a_warm_start_from_another_architecture_fails_with_both_names(tmp_path: Path) -> None:
    models = ["name = 'small'\narchitecture = 'small-cnn'", "name = 'other'\nstart = 'small'"]
    plan = tiny.make(tmp_path, models)
    store = Store(plan.request.out)
    for job in plan.jobs:
        carry_out(plan, job, job.cells, lambda progress: None)
    records = [store.record(job.cells[0].key) for job in plan.jobs]
    assert [record and record.status for record in records] == ["done", "failed"]
    assert "cannot start from weights of another architecture" in str(records[1] and records[1].reason)


@pytest.mark.usefixtures("one_core")
def test_a_model_waits_for_the_one_it_starts_from(tmp_path: Path) -> None:
    plan = tiny.make(tmp_path, [*CHAIN, "name = 'alone'\nrecipe = { epochs = 1 }"], limit=9)
    labels = {job.label: job.spec.label for job in plan.jobs}
    events: list[str] = []

    def tell(progress: Progress) -> None:
        trained = progress.activity == "training" and progress.done == progress.of
        event = f"{labels[progress.job]} {'is trained' if trained else 'begins'}"
        if event not in events:
            events.append(event)

    local.run_locally(plan, [(job, job.cells) for job in reversed(plan.jobs)], 2, tell)
    assert len(events) == 8
    assert events.index("first is trained") < events.index("second begins")
    assert events.index("second is trained") < events.index("third begins")
    assert events.index("alone begins") < events.index("first is trained"), "the others need not wait"


@pytest.mark.usefixtures("one_core")
def test_a_start_whose_weights_are_gone_is_trained_again_before_those_that_need_it(tmp_path: Path) -> None:
    plan = tiny.make(tmp_path, CHAIN)
    store = Store(plan.request.out)
    first = next(job for job in plan.jobs if job.spec.label == "first")
    carry_out(plan, first, first.cells, lambda progress: None)
    store.remove("models", first.key)
    local.run_locally(plan, remaining(plan, store), 1, lambda progress: None)
    torch.set_num_threads(1)
    assert {job.spec.label: store.finished(job.cells[0].key) for job in plan.jobs} == {
        "first": True,
        "second": True,
        "third": True,
    }
