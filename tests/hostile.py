"""Plugins that misbehave, and runs of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from robbench.execution import local
from robbench.execution.jobs import Progress
from robbench.execution.runner import remaining
from robbench.planning.plan import Plan
from robbench.results.schema import Record
from robbench.results.store import Store

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
