"""Rows that are votes of other rows: what identifies them, in which order they are run, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny

from robbench.core.errors import RequestError
from robbench.execution.jobs import carry_out
from robbench.execution.local import run_locally
from robbench.execution.runner import remaining
from robbench.planning.grid import Request
from robbench.planning.plan import Plan, TrainedJob
from robbench.planning.planner import make_plan
from robbench.results.store import WEIGHTS, Store

PLAIN, FGM = "name = 'plain'", "name = 'fgm'\ndefense = 'fgm'"
VOTE = "vote = ['plain', 'fgm', 'third']"
THIRD = "name = 'third'\ndefense = 'perturbation'"


def planned(folder: Path, *models: str, **options: object) -> Plan:
    return tiny.make(folder, models, recipe="epochs = 1", **options)  # type: ignore[arg-type]


def test_a_vote_is_identified_by_its_members_wherever_it_stands(tmp_path: Path) -> None:
    def keys(name: str, *models: str) -> dict[str, str]:
        return {job.spec.label: job.key for job in planned(tmp_path / name, *models).jobs}

    first = keys("first", PLAIN, FGM, THIRD, VOTE)
    other = keys("other", VOTE.replace("'plain', 'fgm'", "'fgm', 'plain'") + "\nname = 'mine'", THIRD, FGM, PLAIN)
    assert first["vote of plain, fgm, third"] == other["mine"]
    trained = {label: first[label] for label in ("plain", "fgm", "third")}
    assert trained == {label: other[label] for label in trained}
    assert keys("without", PLAIN, FGM, THIRD) == trained
    fewer = keys("fewer", PLAIN, FGM, THIRD, "vote = ['plain', 'fgm']", VOTE)
    assert len(set(fewer.values())) == 5
    front = keys("front", PLAIN, FGM, THIRD, VOTE + "\ndefense = 'jpeg'")
    assert front["vote of plain, fgm, third · jpeg"] not in first.values()


def test_a_vote_of_votes_and_of_every_seed(tmp_path: Path) -> None:
    plan = planned(
        tmp_path, PLAIN, FGM, "name = 'two'\nvote = ['plain', 'fgm']", "vote = ['two', 'plain']", seeds=(0, 1)
    )
    assert [job.seed for job in plan.jobs] == [0] * 4 + [1] * 4
    for job in plan.jobs[3], plan.jobs[7]:
        assert [member.spec.label for member in job.members] == ["two", "plain"]
        assert {member.seed for member in job.members} == {job.seed}
    assert len({job.key for job in plan.jobs}) == 8
    assert [isinstance(job, TrainedJob) for job in plan.jobs[:4]] == [True, True, False, False]


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ("vote = ['plain', 'nobody']", 'models.2.vote" = "nobody"'),
        ("vote = ['plain']", "models.2.vote"),
        ("vote = ['plain', 'plain']", "each of its members once"),
        ("vote = ['plain', 'fgm']\nobjective = 'angular'", "leave out objective"),
        ("vote = ['plain', 'fgm']\nexternal = 'a.py:b'", "leave out external"),
        ("vote = ['plain', 'fgm']\ndefense = 'fgm'", '"fgm" acts in training'),
        ("vote = ['plain', 'fgm']\ndefense = ['jpeg', 'none']", "takes one defense"),
        ("name = 'mine'\nvote = ['plain', 'mine']", 'models.2.vote" = "mine"'),
    ],
)
def test_what_cannot_vote_is_refused(tmp_path: Path, body: str, part: str) -> None:
    with pytest.raises(RequestError, match=r"models\.2") as refused:
        planned(tmp_path, PLAIN, FGM, body)
    assert part in str(refused.value)
    assert not (tmp_path / "runs" / "models").exists()


def test_a_vote_waits_for_its_members_and_is_not_run_twice(tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        *(PLAIN, FGM, "vote = ['plain', 'fgm']\ndefense = 'bit-depth'"),
        conditions=("clean", "pgd[steps=2]@ref", "transfer[steps=1]@ref"),
        limit=20,
    )
    store = Store(plan.request.out)
    work = remaining(plan, store)
    assert [job.spec.label for job, _ in work][-1] == "vote of plain, fgm · bit-depth"
    run_locally(plan, work, 2, lambda progress: None)
    records = {
        (job.spec.label, cell.condition.kind, cell.condition.label): store.record(cell.key) for job, cell in plan.cells
    }
    assert {name: record and record.reason for name, record in records.items() if not record or record.reason} == {}
    assert remaining(plan, store) == []
    clean = {label: store.outcome(record) for (label, kind, _), record in records.items() if kind == "clean" and record}
    assert len(clean) == 3
    vote = clean["vote of plain, fgm · bit-depth"]
    assert vote is not None
    same = np.all([clean[name].clean == vote.labels for name in ("plain", "fgm") if clean[name]], axis=0)  # type: ignore[union-attr]
    assert (vote.clean == vote.labels)[same].mean() > 0.9


def test_members_are_trained_again_for_a_vote_that_was_added_later(tmp_path: Path) -> None:
    first = planned(tmp_path, PLAIN, FGM, limit=20)
    for job in first.jobs:
        carry_out(first, job, job.cells, lambda progress: None)
    store = Store(first.request.out)
    (store.model_dir(first.jobs[0].key) / WEIGHTS).unlink()
    text = tiny.grid_text([PLAIN, FGM, "vote = ['plain', 'fgm']"], recipe="epochs = 1")
    (tmp_path / "more.toml").write_text(text, encoding="utf-8")
    plan = make_plan(Request(grid=str(tmp_path / "more.toml"), out=tmp_path / "runs", limit=20, device="cpu"))
    work = remaining(plan, store)
    assert [(job.spec.label, len(cells)) for job, cells in work] == [("plain", 0), ("vote of plain, fgm", 1)]
    run_locally(plan, work, 1, lambda progress: None)
    record = store.record(plan.jobs[2].cells[0].key)
    assert record is not None
    assert record.status == "done", record.reason
