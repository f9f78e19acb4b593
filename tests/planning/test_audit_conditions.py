"""The audit's own conditions, checks on some rows, and attacks through other models, from grid to board."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from board_cells import CLEAN, PGD, cell, model, outcome
from sheets import lines
from subjects import REGISTRY

from robbench.cli.main import main
from robbench.core.errors import RequestError
from robbench.core.threat_model import Norm, Threat
from robbench.data.dataset import EpsList
from robbench.leaderboards import tables
from robbench.leaderboards.board_making import board_data
from robbench.planning.audit_conditions import SAMPLE, SURVIVORS, audit_conditions, ranking_threat
from robbench.planning.conditions import Condition, ConditionRequest
from robbench.planning.grid import Request
from robbench.planning.plan import Plan
from robbench.planning.planner import make_plan
from robbench.results.schema import ConditionSpec
from robbench.results.store import Store

EPS: dict[Norm, EpsList] = {"linf": EpsList((0.05, 0.1), 0.1), "l2": EpsList((1.0,), 1.0)}
REFERENCE: dict[Norm, float] = {"linf": 0.1, "l2": 1.0}


def resolved(*chains: str | dict[str, object]) -> list[Condition]:
    found: list[Condition] = []
    for chain in chains:
        found += ConditionRequest.read(chain, "test").resolve(REGISTRY, EPS, ("ant", "bee"), "test")
    return found


def labels(*chains: str, classes: int = 4) -> list[str]:
    return [condition.label for condition in audit_conditions(resolved(*chains), REFERENCE, REGISTRY, classes)]


class TestAuditConditions:
    def test_all_of_the_audit(self) -> None:
        found = audit_conditions(resolved("clean", "pgd[steps=20]@each"), REFERENCE, REGISTRY, 4)
        assert [condition.label for condition in found] == [
            "fgsm@0.1",
            "apgd-margin[steps=20]@0.1",
            "pgd[steps=40]@0.1",
            "pgd[steps=20]@0.1, undefended",
            "square[queries=1000]@0.1",
            "transfer@0.1",
            "noise-search@0.1",
            "pgd[steps=20]@0.5",
            "pgd[steps=20]@1",
        ]
        assert all(condition.check and not condition.ranks for condition in found)
        assert [condition.sample for condition in found].count(SAMPLE) == 7
        (noise,) = (condition for condition in found if condition.survivors)
        assert (noise.label, noise.sample) == ("noise-search@0.1", SURVIVORS)

    def test_what_the_grid_has_is_not_added(self) -> None:
        assert "fgsm@0.1" not in labels("fgsm@each", "pgd@ref")

    def test_the_strongest_attack_is_doubled(self) -> None:
        assert "pgd[steps=80]@0.1" in labels("pgd[steps=40]@ref", "pgd[steps=10]@ref", "fgsm@ref")

    def test_an_attack_without_steps_is_not_doubled(self) -> None:
        assert labels("clean", "fgsm@ref") == [
            "apgd-margin[steps=20]@0.1",
            "fgsm@0.1, undefended",
            "square[queries=1000]@0.1",
            "transfer@0.1",
            "noise-search@0.1",
        ]

    @pytest.mark.parametrize("chain", ["apgd-margin[steps=20]@ref", "strong@ref", "apgd-dlr@ref->all", "fab@ref"])
    def test_an_attack_on_margins_is_not_added_where_one_ranks(self, chain: str) -> None:
        assert "apgd-margin[steps=20]@0.1" not in labels("clean", chain)
        assert "apgd-margin[steps=20]@0.1" in labels("clean", "apgd-margin[steps=19]@ref")

    def test_the_unchanged_images_are_looked_at_too(self) -> None:
        assert labels("pgd@ref")[0] == "clean"

    def test_attacks_towards_all_targets_are_audited_without_targets(self) -> None:
        assert "pgd[steps=20]@0.1" in labels("clean", "pgd[steps=10]@ref->all")

    def test_what_cannot_be_run_is_not_the_strongest(self) -> None:
        found = labels("clean", "autoattack@ref", "strong[steps=15]@ref", classes=3)
        assert "strong[steps=30]@0.1" in found
        assert "strong[steps=15]@0.5" in found
        assert "strong[steps=30]@0.1" in labels("clean", "autoattack@ref", "strong[steps=15]@ref")

    def test_the_threat_model_that_ranks_is_audited(self) -> None:
        found = labels("pgd[steps=20]@l2:ref")
        assert "fgm@l2:1" in found
        assert "pgd[steps=40]@l2:1" in found
        assert "pgd[steps=20]@0.5" in found  # what nothing withstands is asked in Linf all the same
        assert "fgsm@0.1" in labels("pgd[steps=20]@l2:ref", "pgd[steps=20]@ref")

    def test_nothing_is_added_where_nothing_ranks(self) -> None:
        assert labels("clean", "rotation", "pgd@ref->next") == []

    def test_a_check_does_not_rank(self) -> None:
        check = resolved({"chain": "pgd@ref", "check": True})
        assert ranking_threat(check, REFERENCE) is None
        assert ranking_threat([*check, *resolved("pgd@0.05")], REFERENCE) == Threat("linf", 0.05)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"chain": "pgd@ref", "models": ["a"]}, "check = true"),
        ({"chain": "rotation", "check": True}, "single attack"),
        ({"chain": "rotation+pgd@ref", "check": True}, "single attack"),
    ],
)
def test_checks_that_mean_nothing_are_refused(wanted: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        resolved(wanted)


# ------------------------------------------------------------------------------------------------------------- in plans


ALWAYS = "'clean', 'pgd[steps=2]@ref'"
NAMED = "{ chain = 'fgsm@ref', check = true, models = ['cross-entropy · fgm'], sample = 8 }"
TRANSFER = "{ chain = 'transfer[steps=2]@ref', check = true, sample = 8 }"


def planned(folder: Path, conditions: str, *defenses: str) -> Plan:
    models = "\n".join(f"[[models]]\ndefense = '{defense}'" for defense in defenses)
    path = folder / "grid.toml"
    path.write_text(f"datasets = ['{tiny.THREE_DIGITS}']\nconditions = [{conditions}]\n{models}\n", encoding="utf-8")
    return make_plan(Request(grid=str(path), out=folder / "runs", device="cpu"))


def test_a_check_is_for_the_rows_that_it_names(tmp_path: Path) -> None:
    plan = planned(tmp_path, f"{ALWAYS}, {NAMED}", "none", "fgm")
    first, second = ([cell.condition.label for cell in job.cells] for job in plan.jobs)
    assert "fgsm@0.1" not in first
    assert "fgsm@0.1" in second


def test_what_is_run_without_the_defense_is_for_rows_that_have_one(tmp_path: Path) -> None:
    plan = planned(tmp_path, ALWAYS, "none", "jpeg")
    assert [len(job.cells) for job in plan.jobs] == [2, 2]
    path = tmp_path / "grid.toml"
    path.write_text("audit = true\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    first, second = ({cell.condition.label for cell in job.cells} for job in make_plan(plan.request).jobs)
    assert second - first == {"pgd[steps=2]@0.1, undefended"}


def test_a_check_on_a_row_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r'"cross-entropy · fgn", which is no row .*"cross-entropy · fgm"'):
        planned(tmp_path, f"{ALWAYS}, {NAMED.replace('fgm', 'fgn')}", "none", "fgm")


def test_the_key_of_a_transfer_depends_on_the_other_models(tmp_path: Path) -> None:
    wanted = f"{ALWAYS}, {TRANSFER}"
    one = planned(tmp_path, wanted, "none", "fgm")
    plans = [one, planned(tmp_path, wanted, "none", "perturbation"), planned(tmp_path, wanted, "none")]
    cells = [plan.jobs[0].cells for plan in plans]
    assert cells[0][2].peers == (one.jobs[1].key,)
    assert cells[0][2].refusal is None
    assert len({row[2].key for row in cells}) == 3
    assert len({row[1].key for row in cells}) == 1
    assert "no other model" in str(cells[2][2].refusal)


# ------------------------------------------------------------------------------------------------------------ on boards

LABELS = np.arange(40) % 2
A, B = model("a"), model("b")
CHECK = ConditionSpec(**(PGD.model_dump() | {"label": "check@0.1", "check": True}))
ELSEWHERE = CHECK.model_copy(
    update={"label": "check@0.5", "stages": (CHECK.stages[0].model_copy(update={"eps": 0.5}),)}
)


def left(right: np.ndarray, ids: np.ndarray | None = None) -> object:
    chosen = np.arange(40) if ids is None else ids
    final = np.where(right, LABELS[chosen], 1 - LABELS[chosen])
    return outcome("attack", LABELS[chosen], LABELS[chosen], final, ids=list(chosen))


def test_a_check_has_no_part_in_the_ranking_and_is_compared_on_its_own_samples() -> None:
    some = np.arange(10, 20)
    cells = [
        cell(A, CLEAN, outcome("clean", LABELS)),
        cell(A, PGD, left(np.arange(40) >= 12)),  # type: ignore[arg-type]
        cell(A, CHECK, left(np.arange(10) >= 5, some)),  # type: ignore[arg-type]
        cell(A, ELSEWHERE, left(np.arange(10) < 0, some)),  # type: ignore[arg-type]
        cell(B, CLEAN, outcome("clean", LABELS)),
        cell(B, PGD, left(np.arange(40) >= 20)),  # type: ignore[arg-type]
    ]
    board = board_data("", "", cells)
    assert [condition.label for condition in board.conditions] == ["clean", "pgd@0.1"]
    assert list(board.threats) == ["Linf 0.1"]
    first, second = board.rows
    worst = first.worst["Linf 0.1"]
    assert worst is not None
    assert (worst.share.n, worst.share.value) == (40, 28 / 40)
    found = first.checks["check@0.1"]
    assert found is not None
    assert found.left is not None
    assert found.others is not None
    assert found.both is not None
    # Of samples 10 to 19 pgd fools 10 and 11, the check 10 to 14.
    assert (found.left.value, found.others.value, found.both.value, found.found) == (0.5, 0.8, 0.5, 3)
    assert found.passes == (3.0, 2.0)
    assert found.other_passes == (3.0, 2.0)
    assert second.checks["check@0.1"] is None
    elsewhere = first.checks["check@0.5"]
    assert elsewhere is not None
    assert (elsewhere.others, elsewhere.found) == (None, None)
    assert [line[:2] for line in lines(tables.method.checks(board))] == [["check@0.1", "a"], ["check@0.5", "a"]]


def test_a_check_that_failed_is_listed_and_costs_no_rank() -> None:
    cells = [
        cell(A, CLEAN, outcome("clean", LABELS)),
        cell(A, PGD, left(np.arange(40) >= 12)),  # type: ignore[arg-type]
        cell(A, CHECK, "it broke"),
    ]
    board = board_data("", "", cells)
    assert board.rows[0].rank == "1"
    assert tables.method.checks(board).lines == ()
    assert [line[1:3] for line in lines(tables.method.troubles(board))] == [["check@0.1", "failed"]]


# -------------------------------------------------------------------------------------------------------------- in runs


@pytest.mark.end_to_end
def test_a_run_with_checks_and_the_audit_from_start_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned(tmp_path, f"{ALWAYS}, {NAMED}, {TRANSFER}", "none", "fgm")
    words = ["--grid", str(tmp_path / "grid.toml"), "--out", str(tmp_path / "runs"), "--limit", "24", "--audit"]
    assert main(["plan", *words]) == 0
    counted = 2 * 11 - 1
    assert f"{counted} cells, 0 done" in capsys.readouterr().out
    assert main(["run", *words, "--workers", "2"]) == 0
    store = Store(tmp_path / "runs")
    (note,) = store.boards().values()
    records = [store.record(key) for key in note["cells"]]
    assert {record.status for record in records if record} == {"done"}
    assert len(records) == counted
    by_label = {record.spec.condition.label: record for record in records if record}
    survivors, left = (store.outcome(by_label[name]) for name in ("noise-search@0.1", "pgd[steps=2]@0.1"))
    assert survivors is not None
    assert left is not None
    assert len(survivors) == min(16, int(left.robust.sum()))
    assert set(survivors.ids) <= set(left.ids[left.robust])
    assert by_label["noise-search@0.1"].costs.forwards > 0
    assert main(["plan", *words]) == 0
    assert f"{counted} cells, {counted} done" in capsys.readouterr().out
    board = (tmp_path / "runs" / "leaderboards" / "grid-digits_classes_8_3_9_train_fraction_0.3_").parent
    (readme,) = board.glob("*/README.md")
    assert "## Checks" in readme.read_text(encoding="utf-8")
