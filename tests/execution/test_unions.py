"""Worst cases over several threat models: from the text in a grid to the column of a board."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from board_cells import A_MODEL, CLEAN, PGD, PGD_2, cell, outcome
from hypothesis import given
from hypothesis import strategies as st

from robbench.core.errors import RequestError, StoreError
from robbench.core.registry import Registry
from robbench.evaluation.scoring import measure
from robbench.evaluation.verdicts import judged, union
from robbench.execution.jobs import carry_out
from robbench.execution.runner import remaining
from robbench.leaderboards.board_making import board_data
from robbench.leaderboards.sheet import Detail
from robbench.leaderboards.tables.contents import sheets
from robbench.planning.plan import Plan
from robbench.results.record_keys import check_keys
from robbench.results.schema import CellResult, ConditionSpec, Outcome
from robbench.results.store import Store
from robbench.results.verification import verify

UNION = ConditionSpec(label="union@linf:0.1|linf:0.2", kind="union", union=(("linf", 0.1), ("linf", 0.2)))
ATTACKS = ("fgsm@linf:ref", "pgd[steps=3]@linf:ref", "fgsm@l2:ref", "fgm@l1:ref")


@st.composite
def attacked(draw: st.DrawFn) -> list[Outcome]:
    """Attacks on one model, each on images of its own choice."""
    count, classes = draw(st.integers(1, 12)), draw(st.integers(2, 4))
    some = st.lists(st.integers(0, classes - 1), min_size=count, max_size=count)
    labels, clean = np.array(draw(some)), np.array(draw(some))
    parts = []
    for _ in range(draw(st.integers(1, 4))):
        kept = np.array([0, *draw(st.lists(st.integers(1, count - 1), unique=True) if count > 1 else st.just([]))])
        final = np.where(clean == labels, np.array(draw(some)), clean)[kept]
        rounded = np.where(clean == labels, np.array(draw(some)), clean)[kept]
        sizes = {norm: np.array(draw(some), dtype=np.float64)[kept] for norm in ("linf", "l2", "l1", "l0")}
        arrays: dict[str, Any] = {"rounded": rounded, **sizes}
        parts.append(outcome("attack", labels[kept], clean[kept], final, k=classes, ids=kept * 3, **arrays))
    return parts


@given(attacked())
def test_a_union_is_robust_where_every_part_is_and_nowhere_else(parts: list[Outcome]) -> None:
    found = union(parts)
    shared = set.intersection(*(set(part.ids.tolist()) for part in parts))
    assert found.ids.tolist() == sorted(shared)
    by_id = [dict(zip(part.ids.tolist(), range(len(part)), strict=True)) for part in parts]
    for at, number in enumerate(found.ids.tolist()):
        rows = [(part, known[number]) for part, known in zip(parts, by_id, strict=True)]
        assert found.robust[at] == all(part.robust[row] for part, row in rows)
        # The change is that of an attack of the same prediction, and the image is robust after rounding likewise.
        assert any(
            (part.final[row], part.linf[row], part.l1[row]) == (found.final[at], found.linf[at], found.l1[at])
            for part, row in rows
        )
        right = [part.rounded[row] == part.labels[row] == part.clean[row] for part, row in rows]
        assert (found.rounded[at] == found.labels[at] == found.clean[at]) == all(right)
    assert judged(found).all()
    assert not found.forwards.any()
    assert not found.backwards.any()
    for part in parts:
        own = np.isin(part.ids, found.ids)
        assert found.robust.mean() <= part.robust[own].mean()
    assert all(
        spec.fault(getattr(found, name), len(found), found.num_classes) is None
        for name, spec in Outcome.arrays().items()
    )


def test_attacks_of_different_images_have_no_union() -> None:
    parts = [outcome("attack", [0, 1], ids=ids) for ids in ([0, 1], [2, 3])]
    with pytest.raises(ValueError, match="different images"):
        union(parts)


def test_a_union_has_rates_and_no_sizes() -> None:
    part = outcome("attack", [0, 0, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1])
    other = outcome("attack", [0, 0, 1, 1], [0, 0, 1, 1], [1, 0, 1, 1])
    found = measure(union([part, other]), Registry(installed=False))
    assert found["robust_accuracy"].value == 0.5
    assert found["robust_accuracy/0"].value == 0.0
    assert found["forwards"].value == 0.0
    assert not [name for name in found if name.startswith(("linf", "l2", "l1", "l0", "surrogate"))]


# --- in a grid


def planned(folder: Path, *conditions: str) -> Plan:
    return tiny.make(folder, ["", "defense = 'fgm'"], conditions, "epochs = 1", limit=30)


def test_it_rests_on_every_ranking_attack_of_its_threat_models(tmp_path: Path) -> None:
    plan = planned(tmp_path, "union@l2:ref|linf:ref", "clean", *ATTACKS, "fgsm@linf:0.01", "deepfool", "fgsm@ref->next")
    for job in plan.jobs:
        cells = {cell.condition.label: cell for cell in job.cells}
        found = cells["union@linf:0.1|l2:1"]
        assert {*found.needs} == {cells[label].key for label in ("fgsm@0.1", "pgd[steps=3]@0.1", "fgsm@l2:1")}
        assert found.spec.needs == found.needs
        assert job.cells[-1] is found
        assert found.refusal is None


def test_its_key_follows_from_what_it_rests_on_alone(tmp_path: Path) -> None:
    def keys(*conditions: str) -> list[str]:
        plan = planned(tmp_path / str(len(list(tmp_path.iterdir()))), *conditions)
        return [cell.key for _, cell in plan.cells if cell.condition.union]

    usual = keys(*ATTACKS, "union@linf:ref|l2:ref")
    assert keys("clean", *reversed(ATTACKS), "union@l2:1|linf:0.1") == usual
    assert keys(*ATTACKS, "fgsm@l1:ref", "union@linf:ref|l2:ref") == usual
    assert keys(*ATTACKS[1:], "union@linf:ref|l2:ref") != usual
    assert keys(*ATTACKS, "union@linf:ref|l1:ref") != usual


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        ("union@linf:ref|l2:ref", "no attack ranks in l2:1 on"),
        ("union@linf:ref|linf:0.1", "each once"),
        ("union@linf:ref", "two threat models or more"),
        ("union", '"" is no norm with one size'),
        ("union@linf:ref|l3:ref", '"l3:ref" is no norm with one size'),
        ("union@linf:each|l1:ref", '"linf:each" is no norm with one size'),
        ("union@linf:ref|none:1", '"none:1" is no norm'),
        ("union@8/255|l1:ref", '"8/255" is no norm'),
        ("union@linf:ref|l1:ref->next", 'eps "ref->next" is no size'),
        ("union@linf:ref|", '"" is no norm'),
        ("union@linf:ref|l1:-1", "must be finite and not negative"),
        ("rotation+union@linf:ref|l1:ref", '"union"'),
    ],
)
def test_what_has_no_union_is_refused_in_one_line(wanted: str, part: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        planned(tmp_path, "clean", "fgsm@ref", "fgsm@l1:ref", "pgd@l2:0.1", wanted)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["union@l2:1e-3|linf:1/3", "union@ l0:5 |l1:2|l2:1e3", "union@linf:0.1|linf:0.2"])
def test_its_label_asks_for_it_again(text: str) -> None:
    from robbench.planning.conditions import ConditionRequest

    def read(wanted: str) -> Any:
        (found,) = ConditionRequest.read(wanted, "here").resolve(Registry(installed=False), {}, ("a", "b"), "here")
        return found

    assert read(read(text).label) == read(text)
    assert read(text).kind == "union"
    assert read(text).limited(3, 10) == read(text)


def test_a_union_is_not_a_check_and_has_no_sample_of_its_own(tmp_path: Path) -> None:
    from robbench.planning.conditions import ConditionRequest

    for option in ({"sample": 3}, {"check": True}, {"draws": 2}, {"embed": 5}):
        request = ConditionRequest.read({"chain": "union@linf:0.1|l2:1", **option}, "here")
        with pytest.raises(RequestError, match="leave out"):
            request.resolve(Registry(installed=False), {}, ("a", "b"), "here")


@pytest.fixture(scope="module")
def carried_out(tmp_path_factory: pytest.TempPathFactory) -> Sequence[CellResult]:
    """The cells of two models under attacks of three norms and their union."""
    folder = tmp_path_factory.mktemp("union")
    return tiny.carried_out(planned(folder, "clean", *ATTACKS, "union@linf:ref|l2:ref|l1:ref"))


def test_it_costs_nothing_and_is_the_worst_of_its_row(carried_out: Sequence[CellResult]) -> None:
    for record, found in carried_out:
        if found is None or not record.spec.condition.union:
            continue
        row = [part for other, part in carried_out if other.spec.model_key == record.spec.model_key]
        parts = [part for part in row if part is not None and part.kind == "attack"]
        assert len(parts) == 4
        np.testing.assert_array_equal(found.robust, np.logical_and.reduce([part.robust for part in parts]))
        assert (record.costs.forwards, record.costs.backwards) == (0.0, 0.0)
        assert record.training is not None


def test_a_board_has_a_column_of_it_that_does_not_rank(carried_out: Sequence[CellResult]) -> None:
    board = board_data("", "grid", carried_out)
    label = "union@linf:0.1|l2:1|l1:10"
    assert board.ranked_by == "Linf 0.1"
    assert all(label not in labels for labels in board.threats.values())
    assert not any(label in curve.conditions for curve in (*board.strength, *board.sizes))
    found = sheets(board, detail=Detail.README)
    (ranking,) = found["ranking"]
    assert "Worst case Linf 0.1, L2 1 and L1 10" in [heading.text for heading in ranking.headings]
    assert label in [sheet.caption for sheet in found["classes"]]
    for row in board.rows:
        rates = row.cells[label].rates
        assert rates is not None
        assert all(rates.share.value <= worst.share.value for worst in row.worst.values() if worst)
    without = board_data("", "grid", [(one, part) for one, part in carried_out if not one.spec.condition.union])
    assert [(row.label, row.rank, row.worst, row.flags) for row in board.rows] == [
        (row.label, row.rank, row.worst, row.flags) for row in without.rows
    ]


def test_keys_and_outcomes_are_verified(carried_out: Sequence[CellResult]) -> None:
    def file(key: str) -> str:
        return "records.jsonl"

    verify(carried_out, Registry(installed=False), file)
    assert check_keys(carried_out, file) == frozenset()
    at, (record, found) = next((at, made) for at, made in enumerate(carried_out) if made[0].spec.condition.union)
    assert found is not None
    better = replace(found, final=found.labels, rounded=found.labels)
    spec = record.spec.model_copy(update={"needs": record.spec.needs[1:]})
    for other, says in (
        ((record, better), "does not follow from the attacks"),
        ((record.model_copy(update={"spec": spec}), found), "does not rest on the attacks that rank"),
    ):
        cells = [*carried_out[:at], other, *carried_out[at + 1 :]]
        with pytest.raises(StoreError, match=says):
            verify(cells, Registry(installed=False), file)
    with pytest.raises(StoreError, match="its key is"):
        check_keys([*carried_out[:at], (record.model_copy(update={"spec": spec}), found)], file)


def test_a_union_whose_attack_failed_fails(tmp_path: Path) -> None:
    plan = planned(tmp_path, *ATTACKS, "union@linf:ref|l2:ref")
    job, store = plan.jobs[0], Store(plan.request.out)
    carry_out(plan, job, job.cells[1:], lambda progress: None)
    record = store.record(job.cells[-1].key)
    assert record is not None
    assert record.status == "failed"
    assert "which it rests on, has no result" in (record.reason or "")


def test_made_up_unions_over_sizes_of_one_norm_stand_beside_worst_cases() -> None:
    left = outcome("attack", [0, 0, 1, 1], final=[0, 1, 1, 1])
    less = outcome("attack", [0, 0, 1, 1], final=[1, 0, 1, 1])
    cells = [
        cell(A_MODEL, CLEAN, outcome("clean", [0, 0, 1, 1])),
        cell(A_MODEL, PGD, left),
        cell(A_MODEL, PGD_2, less),
        cell(A_MODEL, UNION, union([left, less])),
    ]
    (row,) = board_data("", "grid", cells).rows
    rates = row.cells[UNION.label].rates
    assert rates is not None
    assert rates.share.value == 0.5


def test_what_rests_on_attacks_through_other_models_waits_for_them(tmp_path: Path) -> None:
    plan = planned(
        tmp_path, "union@linf:ref|l2:ref", "transfer@linf:ref", "fgsm@l2:ref", "union@l2:ref|l1:ref", "fgsm@l1:ref"
    )
    work = remaining(plan, Store(plan.request.out))
    done: dict[str, list[str]] = {job.label: [] for job in plan.jobs}
    for job, cells in work:
        for one in cells:
            assert all(key in done[job.label] for key in one.needs), one.condition.label
            done[job.label].append(one.key)
    assert all(len(done[job.label]) == len(job.cells) for job in plan.jobs)
    early = [one.condition.label for _, cells in work[:2] for one in cells]
    assert "union@l2:1|l1:10" in early
    assert "union@linf:0.1|l2:1" not in early
