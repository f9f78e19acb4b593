"""Plugins that misbehave: their own cells fail, everything else is as if they had not been there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import tiny
from plugin_files import GRAY, write

from robbench.core.registry import Registry
from robbench.execution import jobs, local, processes
from robbench.execution.jobs import Progress, carry_out
from robbench.execution.runner import remaining
from robbench.execution.worker import work
from robbench.planning.plan import Plan
from robbench.results.schema import Record
from robbench.results.store import Store

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="signals, and processes in /proc"),
    pytest.mark.usefixtures("one_core"),
]

HEAD = """
import concurrent.futures, ctypes, os, random, signal, subprocess, sys, threading, time, warnings
from dataclasses import dataclass
import numpy as np
import torch
import robbench.evaluation.referee
from robbench import Attack, Classifier, Defense, Measure, Metric, register_attack, register_defense, register_metric

def settle():
    return 7

def fgsm(model, images, labels, eps):
    x = images.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(x), labels, reduction="sum"), x)
    return (images + eps * g.sign()).clamp(0, 1)
"""
ATTACK = '''
@register_attack("{name}", norms=("linf",))
@dataclass(frozen=True)
class {cls}(Attack):
    """Misbehaves."""

    def perturb(self, model, images, labels, threat, rng):
{body}
'''
FAILING = {
    "exits": ("sys.exit(0)", "SystemExit: 0"),
    "leaves": ("raise GeneratorExit", "GeneratorExit"),
    "interrupts": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "stops": ("raise StopIteration", "RuntimeError: generator raised StopIteration"),
    "mute": ("raise type('E', (Exception,), {'__str__': lambda self: 1 / 0})()", "crash: "),
    "garbled": ("raise ValueError('\\ud800\\x1b[2J\\u202e' + 'a' * 10**6)", "ValueError: "),
    "crashes": ("ctypes.string_at(0)", "crash: the process ended with SIGSEGV"),
    "aborts": ("os.abort()", "crash: the process ended with SIGABRT"),
    "quits": ("os._exit(0)", "crash: the process ended with status 0"),
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", "crash: the process was killed (SIGKILL)"),
    "cuts": ("os.closerange(0, 256)", "crash: the process "),
    "orphans": ("os.fork() and os._exit(7); time.sleep(1000)", "crash: the process ended with status 7"),
    "leaves-a-session": (
        "subprocess.Popen(['sleep', '98765'], start_new_session=True); ctypes.string_at(0)",
        "crash: the process ended with SIGSEGV",
    ),
    "leaves-a-daemon": (
        "os.fork() or (os.setsid(), os.fork() and os._exit(0), os.execlp('sleep', 'sleep', '98765')); os.abort()",
        "crash: the process ended with SIGABRT",
    ),
}
SLEEPS = (
    "subprocess.Popen(['sleep', '98764'], start_new_session=True); "
    "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64)); ctypes.PyDLL(None).sleep(1000)"
)
BEHAVING = {
    "moves": "os.chdir('/')",
    "patches": "torch.Tensor.argmax = lambda s, *a, **k: torch.zeros(len(s), dtype=torch.int64)",
    "referees": "robbench.evaluation.referee.check_images = lambda images, changed, threat: images + 1",
    "switches": "torch.set_num_threads(7); torch.use_deterministic_algorithms(True); torch.backends.mkldnn.enabled = "
    "False; torch.set_float32_matmul_precision('medium'); warnings.simplefilter('error'); os.environ['A_B'] = '1'",
    "closes": "sys.stdout.close(); sys.stderr.close(); os.close(1); os.close(2)",
    "leaves-behind": "threading.Thread(target=lambda: [time.sleep(0.01), sys.exit(3)], daemon=True).start(); "
    "subprocess.Popen(['sleep', '98765']); subprocess.Popen(['sleep', '98765'], start_new_session=True)",
    "forks": "os.fork()",
    "pools": "concurrent.futures.ProcessPoolExecutor(1).submit(settle).result()",
    "catches": "signal.signal(signal.SIGTERM, signal.SIG_IGN); __import__('atexit').register(lambda: os._exit(0))",
}


def attacks() -> str:
    bodies = {"sleeps": SLEEPS, **{name: body for name, (body, _) in FAILING.items()}}
    bodies |= {name: f"{body}; return fgsm(model, images, labels, threat.eps)" for name, body in BEHAVING.items()}
    texts = [
        ATTACK.format(name=name, cls=name.title().replace("-", ""), body=f"        {body}")
        for name, body in bodies.items()
    ]
    return HEAD + "".join(texts)


def run(plan: Plan, workers: int = 1, timeout: float = 3600.0) -> list[Record]:
    """Carry out what is left; the records that were finished, in that order."""
    told: list[Progress] = []
    store = Store(plan.request.out)
    local.run_locally(plan, remaining(plan, store), workers, told.append, timeout)
    return [event.finished for event in told if event.finished is not None]


def by_condition(records: list[Record]) -> dict[str, Record]:
    return {record.spec.condition.label: record for record in records}


def outcomes(plan: Plan) -> dict[str, bytes]:
    store = Store(plan.request.out)
    return {
        f"{job.label} {cell.condition.label}": (store.cell_dir(cell.key) / "outcome.npz").read_bytes()
        for job, cell in plan.cells
        if (store.cell_dir(cell.key) / "outcome.npz").is_file()
    }


def running(words: str) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if words in path.read_bytes().replace(b"\0", b" ").decode():
                yield int(path.parent.name)
        except OSError:
            continue


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
    """Draws of a random defense, chains, targets and repeated draws included."""
    plugin = write(tmp_path / "gray.py", GRAY + SHAKE)
    conditions = ["gray@ref", "perturbation+gray@ref", "gray@ref+shake", "shake", "gray@ref->next"]
    models = ["defense = { name = 'smoothing', draws = 2, votes = 5 }", "objective = 'angular'"]
    conditions = conditions[:-1]
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


def test_memory_runs_out_where_it_is_taken() -> None:
    code = """
import numpy as np
from robbench.execution import processes
processes.free_memory = lambda: 200 * 2**20
processes._limit_memory()
kept = []
try:
    for _ in range(100):
        kept.append(np.ones(2**20))
except MemoryError:
    print(len(kept))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 15 <= int(done.stdout) <= 30


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_its_run_even_where_a_plugin_holds_the_interpreter(tmp_path: Path, number: int) -> None:
    plugin = write(tmp_path / "hostile.py", attacks())
    grid = write(tmp_path / "grid.toml", tiny.grid_text(conditions=["sleeps@ref"], recipe="epochs = 1"))
    words = ["run", "--grid", str(grid), "--out", str(tmp_path / "runs"), "--limit", "9", "--plugin", str(plugin)]
    process = subprocess.Popen([sys.executable, "-m", "robbench", *words, "--workers", "1"], stderr=subprocess.PIPE)
    with process:
        until = time.monotonic() + 60
        while not (mine := [pid for pid in _below(process.pid) if _blocks_signals(pid)]):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        everybody = [*_below(process.pid)]
        assert {*processes("sleep 98764")} <= {*everybody}
        process.send_signal(number)
        _, complaints = process.communicate(timeout=30)
    assert process.returncode == (130 if number == signal.SIGINT else -number), complaints
    assert b"Traceback" not in complaints
    while any(_alive(pid) for pid in (*everybody, *mine)):
        assert time.monotonic() < until + 30, "a process goes on after its run has ended"
        time.sleep(0.05)


def _below(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            yield child
            yield from _below(child)


def _blocks_signals(pid: int) -> bool:
    try:
        line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigBlk"))
    except (OSError, StopIteration):
        return False
    return int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1 == 1


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


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


def test_processes_start_though_the_one_that_they_are_forked_from_was_killed() -> None:
    processes.prepare()
    for _ in range(3):
        os.kill(_forked_from(), signal.SIGKILL)
        child = processes.Child.start(work, 1, device="cpu", apart=False)
        assert child.process.is_alive()
        child.end()


def _forked_from() -> int:
    found: int = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return found


def test_a_worker_that_dies_costs_one_cell(tmp_path: Path) -> None:
    """As where the system ends it for want of memory."""
    plan = tiny.make(tmp_path, conditions=["clean", "pgd[steps=2000]@ref", "fgsm@ref"], limit=20)
    store = Store(plan.request.out)
    told: list[Progress] = []

    def tell(progress: Progress) -> None:
        told.append(progress)
        if progress.activity.startswith("pgd") and progress.finished is None and progress.of == 0:
            for pid in _below(os.getpid()):
                for child in _below(pid):
                    os.kill(child, signal.SIGKILL)

    local.run_locally(plan, remaining(plan, store), 1, tell)
    found = by_condition([event.finished for event in told if event.finished is not None])
    assert {label: record.status for label, record in found.items()} == {
        "clean": "done",
        "pgd[steps=2000]@0.1": "failed",
        "fgsm@0.1": "done",
    }
    assert "SIGKILL" in (found["pgd[steps=2000]@0.1"].reason or "")
