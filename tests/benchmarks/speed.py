"""Times attacks and training beside other libraries and beside the bare passes, and writes a table of the ratios.

``python tests/benchmarks/speed.py`` writes ``leaderboards/published/speed.md``; ``--help`` lists options.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import itertools
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from speed_networks import LARGE, ROBUST, SUBJECTS, Network, Subject
from speed_overhead import OVERHEADS, SMALL, Recorder, determinism, evaluated, overheads, spread
from speed_peers import (
    APGD_STEPS,
    CW_FIRST,
    CW_RATE,
    CW_ROUNDS,
    CW_STEPS,
    ONLY,
    PGD_STEPS,
    QUERIES,
    Peer,
    peers,
)
from speed_training import training_rounds
from torch import Tensor

from robbench.attacks.apgd import APGD
from robbench.attacks.autoattack import AutoAttack
from robbench.attacks.carlini_wagner import CarliniWagner
from robbench.attacks.fgm import FGM
from robbench.attacks.pgd import PGD
from robbench.attacks.square import Square
from robbench.attacks.strong import Strong
from robbench.attacks.thorough import Thorough
from robbench.core.attack import Attack
from robbench.core.threat_model import Norm, Threat
from robbench.evaluation.referee import change_norms

NORMS: tuple[Norm, ...] = ("linf", "l2")
TABLE = Path(__file__).resolve().parents[2] / "leaderboards" / "published" / "speed.md"
LONG = 8.0
"""Seconds from which on the first calls of a case are measured, too; otherwise they only prepare."""


@dataclass(frozen=True)
class Task:
    """An attack as every library has it.

    Attributes:
        name: What the libraries are asked for.
        ours: Ours by name; the first one is what others have.
        images: How many, on the large network and on the others.
        minimal: Whether it looks for the smallest change.
    """

    name: str
    ours: Mapping[str, Attack]
    images: tuple[int, int]
    minimal: bool = False


TASKS = (
    Task("FGSM", {"fgsm": FGM()}, (64, 512)),
    Task(f"PGD-{PGD_STEPS}", {f"pgd[steps={PGD_STEPS}]": PGD(PGD_STEPS)}, (16, 256)),
    Task("APGD", {"apgd": APGD(steps=APGD_STEPS)}, (4, 64)),
    Task("Square", {f"square[queries={QUERIES}]": Square(QUERIES)}, (2, 16)),
    Task("C&W", {"carlini-wagner": CarliniWagner(CW_ROUNDS, CW_STEPS, CW_RATE, c=CW_FIRST)}, (2, 8), minimal=True),
    Task("autoattack", {"autoattack": AutoAttack(), "strong": Strong(), "thorough": Thorough()}, (4, 16)),
)


@dataclass
class Runs:
    """What an attack of one library did.

    Attributes:
        seconds: Of every call.
        ratios: To the seconds of ours in the call before.
        calls: Sizes of the batches that were passed through the network, and whether they came back, in order.
        robust: Share of the images, in percent, that are right or were changed by more than eps.
        failure: Why there is nothing.
    """

    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    calls: list[tuple[int, bool]] = field(default_factory=list)
    robust: float = float("nan")
    failure: str = ""


@dataclass
class Case:
    """A task on a network in a norm, with what every library made of it so far."""

    task: Task
    subject: Subject
    norm: Norm
    images: Tensor
    labels: Tensor
    others: Mapping[str, Peer]
    runs: dict[str, Runs] = field(default_factory=dict)
    cost: float = 0.0

    def order(self) -> Iterator[str]:
        """Ours and the others in turn; ours first in every round."""
        own, left = itertools.cycle(self.task.ours), dict.fromkeys(self.task.ours)
        for other in self.others:
            name = next(own)
            left.pop(name, None)
            yield from (name, other)
        yield from left

    def call(self, name: str, model: Network) -> Tensor:
        """Images as an attack changes them."""
        eps = self.subject.eps[self.norm]
        if name in self.task.ours:
            threat = Threat(self.norm, None if self.task.minimal else eps)
            return evaluated(self.task.ours[name], model, self.images, self.labels, threat, self.task.name)
        return self.others[name](model, self.images.clone(), self.labels, self.norm, eps).detach()

    def robust(self, changed: Tensor) -> float:
        """The share of images, in percent, that are right or were changed by more than eps."""
        with torch.no_grad():
            right = self.subject.model.predict(changed) == self.labels
        sizes = change_norms(self.images, changed)[self.norm]
        return 100 * float((right | (sizes > 1.001 * self.subject.eps[self.norm])).float().mean())


def cases(
    found: Mapping[str, Mapping[str, Peer]], share: float, only: str = "", cache: Path | None = None
) -> Iterator[Case]:
    """Those whose network, norm and attack hold a text, with a share of the images."""
    for place, make in SUBJECTS.items():
        asked = [
            (norm, task) for norm, task in itertools.product(NORMS, TASKS) if only in f"{place} {norm} {task.name}"
        ]
        subject = make(cache) if asked else None
        for norm, task in asked:
            if subject is not None and norm in subject.eps and not (task.minimal and norm != "l2"):
                size = min(max(2, round(share * task.images[subject.name != LARGE])), len(subject.images))
                fit = {
                    name: peer
                    for name, peer in found.get(task.name, {}).items()
                    if ONLY.get((name, task.name), norm) == norm
                }
                yield Case(task, subject, norm, subject.images[:size], subject.labels[:size], fit)


def prepare(case: Case) -> None:
    """A call of every attack: passes are written down, and libraries do what they do once; timed where it is long."""
    for name in dict.fromkeys(case.order()):
        runs = case.runs[name] = Runs()
        recorder = Recorder(case.subject.model)
        try:
            runs.robust = case.robust(_timed(case, name, recorder))
        except Exception as error:  # whatever a library that does not suit this network raises
            runs.failure = f"{type(error).__name__}: {error}".splitlines()[0][:80].replace("|", "/")
        runs.calls = recorder.calls
    case.cost = sum(sum(runs.seconds) for runs in case.runs.values())
    if case.cost < LONG:
        for runs in case.runs.values():
            runs.seconds, runs.ratios = [], []
        measure(case)


def measure(case: Case) -> None:
    """A round."""
    for name in case.order():
        if not case.runs[name].failure:
            _timed(case, name, case.subject.model)


def _timed(case: Case, name: str, model: Network) -> Tensor:
    """Images as an attack changes them, with its seconds and how they compare to those of ours before."""
    runs, first = case.runs[name], next(iter(case.task.ours))
    gc.collect()
    begun = time.perf_counter()
    changed = case.call(name, model)
    runs.seconds.append(time.perf_counter() - begun)
    if name != first:
        runs.ratios.append(runs.seconds[-1] / case.runs[first].seconds[-1])
    return changed


def rows(case: Case) -> Iterator[tuple[str, ...]]:
    """A row of the table for every attack."""
    for name, runs in case.runs.items():
        sums = [sum(count for count, back in runs.calls if back or kind == 0) / len(case.images) for kind in (0, 1)]
        yield (
            case.subject.name,
            f"{case.norm.capitalize()} {case.subject.eps[case.norm]:.3g}",
            f"{case.task.name}, {len(case.images)} images",
            f"**{name}**" if name in case.task.ours else name,
            runs.failure or (spread(runs.ratios) if runs.ratios else "1"),
            f"{statistics.median(runs.seconds):.3f}" if runs.seconds else "–",
            "–" if runs.failure else f"{runs.robust:.1f}",
            "–" if runs.failure else f"{sums[0]:.1f} / {sums[1]:.1f}",
        )


def table(head: Sequence[str], content: Sequence[Sequence[str]]) -> str:
    """In markdown."""
    lines = [head, ["---"] * len(head), *content]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> str:
    """Processor, cores, threads and versions."""
    name, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.is_file():
        found = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = found[0] if found else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    return f"{name}, {cores} cores, {threads} threads, torch {torch.__version__}, Python {platform.python_version()}"


ATTACKS = ("network", "norm, ε", "attack", "by", "time / ours", "seconds", "robust (%)", "passes per image")
OVERHEAD = ("network", "images", "attack", "passes per image", "overhead (%)")
DETERMINISM = ("device", "work", "new memory filled", "time / without")
TRAINING = ("by", "seconds", "time / ours")


def report(options: argparse.Namespace) -> str:
    """The page, from measurements as they are asked for."""
    end = time.monotonic() + 60 * options.minutes
    found, missing = peers()
    done = list(cases(found, options.images, options.only, options.cache))
    for case in done:
        prepare(case)
    subjects = {case.subject.name: case.subject for case in done}
    few = min(options.rounds, 3)
    over = list(overheads([one for one in subjects.values() if one.name in OVERHEADS], few, options.images))
    settings = list(determinism(subjects.get(ROBUST) or done[0].subject, options.rounds))
    epochs = training_rounds(options.rounds, options.training)
    # In rounds over all of them, so that a slow minute of the machine meets no case alone.
    for case in (case for _ in range(1, options.rounds) for case in done):
        if time.monotonic() + case.cost < end:
            measure(case)
    return "\n\n".join(
        [
            "# Speed",
            f"Measured on {datetime.date.today()}: {machine()}.",
            "Same network, images (those that it gets right), ε, steps and device; ours and the others in turn, "
            f"up to {options.rounds} rounds. Ratios are to ours right before: median (least–largest). Ours is timed "
            "with its passes counted and under the referee. Robust: share of these images that are still right or "
            "were changed by more than ε. Attacks with the same steps may stop at different ones: fooled samples leave "
            "ours.",
            "\n".join(f"- {subject.name}: {subject.about}." for subject in subjects.values()),
            *(f"Not installed: {name} ({reason})." for name, reason in missing.items()),
            "## Attacks",
            table(ATTACKS, [row for case in done for row in rows(case)]),
            "## Overhead",
            "CPU time on one thread beyond exactly the passes that the attack made, in batches of those sizes. Linf, "
            f"on {LARGE} at {SMALL:.2g} of ε, where few samples leave.",
            table(OVERHEAD, over),
            "## Deterministic algorithms",
            "`torch.use_deterministic_algorithms`, with and without its filling of new memory.",
            table(DETERMINISM, settings),
            "## Training",
            "An epoch of FGSM adversarial training of the compact CNN on digits, batches of 64.",
            table(TRAINING, [(name, spread(own, 3), _over(own, epochs["robbench"])) for name, own in epochs.items()]),
        ]
    )


def _over(seconds: Sequence[float], ours: Sequence[float]) -> str:
    return spread([one / own for one, own in zip(seconds, ours, strict=True)])


def main(words: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds at most (default 5)")
    parser.add_argument("--images", type=float, default=1.0, help="a multiple of the numbers of images (default 1)")
    parser.add_argument("--minutes", type=float, default=9.0, help="no further round ends later (default 9)")
    parser.add_argument("--cache", type=Path, help="where weights of trained networks are kept for the next run")
    parser.add_argument("--only", default="", help="cases whose network, norm and attack hold this text")
    parser.add_argument("--training", default="digits", help="what the trained network sees (default digits)")
    parser.add_argument("--out", type=Path, default=TABLE, help=f"default {TABLE}")
    options = parser.parse_args(words)
    with warnings.catch_warnings(action="ignore"):
        page = report(options)
    options.out.write_text(page + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
