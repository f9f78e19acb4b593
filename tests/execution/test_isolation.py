"""Plugins that misbehave: their own cells fail, everything else is as if they had not been there."""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import tiny
from hostile import ATTACK, BEHAVING, FAILING, HEAD, attacks, by_condition, outcomes, run, running
from plugin_files import GRAY, write

from robbench.core.registry import Registry
from robbench.execution import jobs, processes
from robbench.execution.jobs import carry_out
from robbench.execution.runner import remaining
from robbench.execution.worker import work
from robbench.results.schema import Record
from robbench.results.store import Store

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="signals, and processes in /proc"),
    pytest.mark.usefixtures("one_core"),
]


@pytest.mark.end_to_end
def test_attacks_that_misbehave_fail_alone(tmp_path: Path) -> None:
    plugin = write(tmp_path / "hostile.py", attacks())
    innocent = ["fgsm@ref", "pgd[steps=3]@ref"]
    conditions = ["clean", *(f"{name}@ref" for name in (*FAILING, *BEHAVING)), *innocent]
    plan = tiny.make(tmp_path / "hostile", conditions=conditions, plugins=[plugin], limit=20)
    found = by_condition(run(plan))
    assert len(found) == len(conditions)
    for name, (_, reason) in FAILING.items():
        record = found[f"{name}@0.1"]
        assert record.status == "failed", name
        assert record.reason is not None
        assert record.reason.startswith(reason), (name, record.reason)
        assert record.reason.isprintable()
        assert len(record.reason) < 1500
        assert jobs.lethal(record) == reason.startswith(("crash", "time limit")), name
    store = Store(plan.request.out)
    expected = store.outcome(found["fgsm@0.1"])
    assert expected is not None
    for name in BEHAVING:
        if found[f"{name}@0.1"].status == "failed":
            assert (found[f"{name}@0.1"].reason or "").startswith("Breach: "), "what the referee sees is a breach"
            continue
        outcome = store.outcome(found[f"{name}@0.1"])
        assert outcome is not None
        np.testing.assert_array_equal(outcome.final, expected.final, err_msg=name)
        np.testing.assert_array_equal(outcome.clean, expected.clean, err_msg=name)
    alone = tiny.make(tmp_path / "alone", conditions=["clean", *innocent], limit=20)
    run(alone)
    together = outcomes(plan)
    assert outcomes(alone).items() <= together.items()
    assert not list(running("sleep 98765")), "what a plugin started goes on"


def test_an_attack_that_never_returns_is_ended(tmp_path: Path) -> None:
    """Though it blocks signals, and lets no other thread of its process run."""
    plugin = write(tmp_path / "hostile.py", attacks())
    run(tiny.make(tmp_path, conditions=["fgsm@ref"], limit=20, plugins=[plugin]))
    (record,) = run(tiny.make(tmp_path, conditions=["fgsm@ref", "sleeps@ref"], limit=20, plugins=[plugin]), timeout=2)
    assert record.reason is not None
    assert record.reason.startswith("time limit: not done after 2 seconds (--cell-timeout)")
    assert jobs.lethal(record)


SERVER = """
def parent(pid):
    return int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
"""


@pytest.mark.end_to_end
def test_who_kills_what_starts_processes_fails_alone(tmp_path: Path) -> None:
    """Cells that others are at meanwhile are tried again."""
    body = "        os.kill(parent(parent(os.getpid())), signal.SIGKILL); time.sleep(1000)"
    plugin = write(tmp_path / "kills.py", HEAD + SERVER + ATTACK.format(name="kills", cls="Kills", body=body))
    plan = tiny.make(tmp_path, ["", "defense = 'fgm'"], ["kills@ref", "pgd[steps=300]@ref"], limit=20, plugins=[plugin])
    found = run(plan, workers=2)
    assert len(found) == 4
    for record in found:
        if record.spec.condition.label == "kills@0.1":
            assert record.status == "failed"
            assert record.reason == "crash: the process ended with status 255, or ended the one that starts the others"
            assert jobs.lethal(record)
        else:
            assert record.status == "done"


def test_what_cost_its_process_is_tried_last(tmp_path: Path) -> None:
    plugin = write(tmp_path / "hostile.py", attacks())
    plan = tiny.make(tmp_path, ["", "defense = 'fgm'"], ["quits@ref", "exits@ref", "clean"], limit=20, plugins=[plugin])
    assert len(run(plan)) == 6
    store = Store(plan.request.out)
    work = remaining(plan, store)
    assert [[cell.condition.label for cell in cells] for _, cells in work] == [["exits@0.1"]] * 2 + [["quits@0.1"]] * 2
    # With one worker, since of two that begin in this order either may end first.
    again = run(plan)
    assert [record.spec.condition.label for record in again] == ["exits@0.1"] * 2 + ["quits@0.1"] * 2


def test_a_plugin_attack_is_judged_as_if_it_ran_in_place(tmp_path: Path) -> None:
    """Draws of a random defense, chains and repeated draws included."""
    plugin = write(tmp_path / "gray.py", GRAY + SHAKE)
    conditions = ["gray@ref", "perturbation+gray@ref", "gray@ref+shake", "shake"]
    models = ["defense = { name = 'smoothing', draws = 2, votes = 5 }", "objective = 'angular'"]
    apart, here = (
        tiny.make(tmp_path / name, models, conditions, limit=20, plugins=[plugin]) for name in ("apart", "here")
    )
    records = run(apart)
    for job in here.jobs:
        carry_out(here, job, job.cells, lambda progress: None)
    assert {record.status for record in records} == {"done"}
    assert outcomes(apart) == outcomes(here)
    assert len(outcomes(here)) == len(conditions) * 2


SHAKE = '''
@register_attack("shake", norms=("none",))
@dataclass(frozen=True)
class Shake(Attack):
    """Noise, other noise in every draw."""

    def perturb(self, model, images, labels, threat, rng):
        return (images + 0.1 * rng.normal("shake", tuple(images.shape[1:]))).clamp(0, 1)
'''
DEFENSES = (
    HEAD
    + '''
class Around(Classifier):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.num_classes = inner, inner.num_classes

    def embed(self, images):
        return self.inner.embed(images)

    def forward(self, images):
        return self.inner(images)

class Spoils(Around):
    def forward(self, images):
        os.chdir("/")
        torch.Tensor.sign = lambda values: 0 * values
        return self.inner(images)

@register_defense("spoils")
@dataclass(frozen=True)
class Spoiling(Defense):
    """Spoils the process that it is used in."""

    def wrap(self, model):
        assert os.getcwd() != "/", "this process was spoilt before"
        return Spoils(model)

@register_defense("falls")
@dataclass(frozen=True)
class Falls(Defense):
    """Crashes in training."""

    def training_loss(self, batch):
        os.kill(os.getpid(), signal.SIGSEGV)

@register_defense("hangs")
@dataclass(frozen=True)
class Hangs(Defense):
    """Never ends training."""

    def training_loss(self, batch):
        time.sleep(1000)

@register_defense("forks-too")
@dataclass(frozen=True)
class ForksToo(Defense):
    """Comes back twice."""

    def wrap(self, model):
        os.fork()
        return Around(model)
'''
)


def test_defenses_that_misbehave_fail_alone(tmp_path: Path) -> None:
    plugin = write(tmp_path / "defenses.py", DEFENSES)
    plans = [
        tiny.make(tmp_path, models, ["clean", "fgsm@ref"], limit=20, plugins=[plugin])
        for models in (["", "defense = ['falls', 'forks-too', 'spoils']"], ["defense = 'hangs'"])
    ]
    found = run(plans[0], workers=2)
    assert len(found) == 8
    found += run(plans[1], timeout=2)
    assert len(found) == 10
    rows: dict[str, list[Record]] = {}
    for record in found:
        rows.setdefault(record.spec.model.label.split(" · ")[-1], []).append(record)
    assert {record.status for record in (*rows["no defense"], *rows["forks-too"])} == {"done"}
    assert len(rows["forks-too"]) == 2
    assert {record.status for record in rows["spoils"]} == {"failed"}
    assert all("stays" in (record.reason or "") for record in rows["spoils"]), "each cell has a process of its own"
    for name, reason in (("falls", "crash: the process ended with SIGSEGV in training"), ("hangs", "time limit: ")):
        assert [record.status for record in rows[name]] == ["failed", "failed"]
        assert all((record.reason or "").startswith(reason) for record in rows[name])


METRICS = (
    HEAD
    + '''
@register_metric("writes")
@dataclass(frozen=True)
class Writes(Metric):
    """Changes what it is to measure."""

    def measure(self, outcome):
        for name in ("final", "clean"):
            values = getattr(outcome, name)
            try:
                values.flags.writeable = True
                values[:] = outcome.labels
            except ValueError:
                pass
        return {"seen": Measure(float(len(outcome.labels)), None, None, 1)}
'''
)


def test_metrics_of_plugins_change_no_other_figure(tmp_path: Path) -> None:
    plugin = write(tmp_path / "metrics.py", METRICS)
    plans = [
        tiny.make(tmp_path / name, conditions=["clean", "fgsm@ref"], limit=20, plugins=plugins)
        for name, plugins in (("with", [plugin]), ("without", []))
    ]
    records, plain = (by_condition(run(plan)) for plan in plans)
    assert outcomes(plans[0]) == outcomes(plans[1])
    for label, record in records.items():
        assert record.metrics["seen"].value == 20
        assert {name: found for name, found in record.metrics.items() if name != "seen"} == plain[label].metrics


def test_a_metric_that_crashes_fails_the_cells_that_it_measures(tmp_path: Path) -> None:
    text = METRICS.replace("for name in", "if outcome.kind == 'clean': os.abort()\n        for name in")
    plan = tiny.make(tmp_path, conditions=["clean", "fgsm@ref"], limit=20, plugins=[write(tmp_path / "m.py", text)])
    found = by_condition(run(plan))
    assert found["clean"].reason == "crash: the process ended with SIGABRT"


def test_a_judge_registers_no_plugin_that_it_does_not_need(tmp_path: Path) -> None:
    from robbench.execution.portion import judge_sources, portion_to_attack, portion_to_judge

    plugins = [write(tmp_path / "gray.py", GRAY), write(tmp_path / "defenses.py", DEFENSES)]
    plan = tiny.make(tmp_path, ["", "defense = 'spoils'"], ["clean", "gray@ref", "fgsm@ref"], plugins=plugins)
    plain, defended = plan.jobs
    sources = {plugin.file: plugin.source for plugin in plan.registry.plugins() if plugin.file is not None}
    gray = plain.cells[1]
    assert portion_to_judge(plan, plain, plain.cells).files == ()
    assert judge_sources(plan, plain, plain.cells) == set()
    assert portion_to_judge(plan, defended, defended.cells).files == ((plugins[1], sources[plugins[1]]),)
    assert portion_to_attack(plan, plain, gray).files == ((plugins[0], sources[plugins[0]]),)
    assert dict(portion_to_attack(plan, defended, defended.cells[1]).files) == sources
    opened = portion_to_judge(plan, plain, plain.cells).open()
    assert opened.registry == Registry(installed=False)
    assert b"Gray" not in portion_to_judge(plan, plain, plain.cells).packed


def test_a_record_says_that_attack_and_model_are_of_one_plugin(tmp_path: Path) -> None:
    plugin = write(tmp_path / "both.py", GRAY + DEFENSES)
    plan = tiny.make(tmp_path, ["", "defense = 'forks-too'"], ["gray@ref", "fgsm@ref"], limit=20, plugins=[plugin])
    notes = {
        (record.spec.model.label.split(" · ")[-1], record.spec.condition.label): record.notes for record in run(plan)
    }
    assert any("had loaded the attack's plugin" in note for note in notes["forks-too", "gray@0.1"])
    assert not any(
        "judged where" in note for key, found in notes.items() if key != ("forks-too", "gray@0.1") for note in found
    )


@pytest.mark.end_to_end
def test_processes_start_though_the_one_that_they_are_forked_from_was_killed() -> None:
    processes.prepare()
    for _ in range(3):
        os.kill(_forked_from(), signal.SIGKILL)
        child = processes.Child.start(work, device="cpu", apart=False)
        assert child.process.is_alive()
        child.end()


def _forked_from() -> int:
    found: int = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return found
