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

from speed_networks import SUBJECTS, Network, Subject
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
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Norm, Threat
from robbench.evaluation.query_counter import Oracle
from robbench.evaluation.referee import change_norms, fair_play

NORMS: tuple[Norm, ...] = ("linf", "l2")
TABLE = Path(__file__).resolve().parents[2] / "leaderboards" / "published" / "speed.md"
LARGE = "natural ResNet-20"
"""A pass through it takes some fifty times as long as one through the others."""


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
    Task(f"PGD-{PGD_STEPS}", {f"pgd[steps={PGD_STEPS}]": PGD(PGD_STEPS)}, (32, 256)),
    Task("APGD", {"apgd": APGD(steps=APGD_STEPS)}, (4, 128)),
    Task("Square", {f"square[queries={QUERIES}]": Square(QUERIES)}, (4, 64)),
    Task("C&W", {"carlini-wagner": CarliniWagner(CW_ROUNDS, CW_STEPS, CW_RATE, c=CW_FIRST)}, (4, 32), minimal=True),
    Task("autoattack", {"autoattack": AutoAttack(), "strong": Strong(), "thorough": Thorough()}, (8, 16)),
)


@dataclass
class Runs:
    """What an attack of one library did.

    Attributes:
        seconds: Of every call.
        ratios: To the seconds of ours in the call before.
        over: Seconds of every call beyond those of its bare passes, as a share of these; of ours alone.
        calls: Sizes of the batches that were passed through the network, and whether they came back, in order.
        robust: Share of the images, in percent, that are right or were changed by more than eps.
        failure: Why there is nothing.
    """

    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    over: list[float] = field(default_factory=list)
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
        if name in self.task.ours:
            return self._ours(self.task.ours[name], model)
        changed = self.others[name](model, self.images.clone(), self.labels, self.norm, self.subject.eps[self.norm])
        return changed.detach()

    def _ours(self, attack: Attack, model: Network) -> Tensor:
        """As an evaluation runs it: passes counted, under the eyes of the referee."""
        images, labels = self.images.clone(), self.labels.clone()
        threat = Threat(self.norm, None if self.task.minimal else self.subject.eps[self.norm])
        streams = Streams.of(torch.arange(len(images)), 0, self.task.name)
        oracle = Oracle(model, len(images))
        with fair_play(model, images, labels), oracle.watching(images):
            return attack.perturb(oracle, images, labels, threat, streams)

    def robust(self, changed: Tensor) -> float:
        """The share of images, in percent, that are right or were changed by more than eps."""
        with torch.no_grad():
            right = self.subject.model.predict(changed) == self.labels
        sizes = change_norms(self.images, changed)[self.norm]
        return 100 * float((right | (sizes > 1.001 * self.subject.eps[self.norm])).float().mean())


class Recorder(Network):
    """A network that writes down the sizes of its passes."""

    def __init__(self, network: Network) -> None:
        super().__init__(network.body, network.head, network.num_classes)
        self.calls: list[tuple[int, bool]] = []
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        scores = super().forward(images)
        place, count = len(self.calls), len(images)
        self.calls.append((count, False))
        if scores.requires_grad:
            scores.register_hook(lambda gradient: self.calls.__setitem__(place, (count, True)))
        return scores


def bare(model: Network, calls: Sequence[tuple[int, bool]], images: Tensor) -> None:
    """Exactly these passes and nothing else."""
    images = images.repeat(-(-max(count for count, _ in calls) // len(images)), 1, 1, 1)
    for count, back in calls:
        with torch.set_grad_enabled(back):
            batch = images[:count].detach().requires_grad_(back)
            scores = model(batch)
            if back:
                torch.autograd.grad(scores.sum(), batch)


def cases(found: Mapping[str, Mapping[str, Peer]], share: float, only: str = "") -> Iterator[Case]:
    """Those whose network, norm and attack hold a text, with a share of the images."""
    for place, make in SUBJECTS.items():
        asked = [
            (norm, task) for norm, task in itertools.product(NORMS, TASKS) if only in f"{place} {norm} {task.name}"
        ]
        subject = make() if asked else None
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
    """A call of every attack that is not timed: passes are written down, and libraries do what they do once."""
    for name in dict.fromkeys(case.order()):
        runs = case.runs[name] = Runs()
        recorder = Recorder(case.subject.model)
        try:
            runs.robust = case.robust(case.call(name, recorder))
        except Exception as error:  # whatever a library that does not suit this network raises
            runs.failure = f"{type(error).__name__}: {error}".splitlines()[0][:80].replace("|", "/")
        runs.calls = recorder.calls


def measure(case: Case) -> None:
    """A round."""
    first, model = next(iter(case.task.ours)), case.subject.model
    for name in case.order():
        runs = case.runs[name]
        if runs.failure:
            continue
        gc.collect()
        begun = time.perf_counter()
        case.call(name, model)
        runs.seconds.append(time.perf_counter() - begun)
        if name != first:
            runs.ratios.append(runs.seconds[-1] / case.runs[first].seconds[-1])
        if name in case.task.ours:
            begun = time.perf_counter()
            bare(model, runs.calls, case.images)
            runs.over.append(runs.seconds[-1] / (time.perf_counter() - begun) - 1)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, and between what the values lie."""
    if not values:
        return "–"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


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
            spread([100 * share for share in runs.over], 1),
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


def report(done: Sequence[Case], training: Mapping[str, list[float]], missing: Mapping[str, str], rounds: int) -> str:
    """The page."""
    head = (
        "network",
        "norm, ε",
        "attack",
        "by",
        "time / ours",
        "seconds",
        "robust (%)",
        "passes per image",
        "overhead (%)",
    )
    ours = training["robbench"]
    epochs = [
        (
            name,
            spread(seconds, 3),
            spread([one / own for one, own in zip(seconds, ours, strict=True)]),
        )
        for name, seconds in training.items()
    ]
    networks = {case.subject.name: case.subject.about for case in done}
    return "\n\n".join(
        [
            "# Speed",
            f"Measured on {datetime.date.today()}: {machine()}.",
            f"Same network, images (those that it gets right), ε, steps and device; ours and the others in turn, "
            f"up to {rounds} rounds. Ratios are to ours right before: median (least–largest). Ours is timed "
            "with its passes counted and under the referee. Robust: share of these images that are still right or "
            "were changed by more than ε. Overhead: time beyond exactly the passes that the attack made, on batches of "
            "those sizes. Attacks with the same steps may stop at different ones: fooled samples leave ours.",
            "\n".join(f"- {name}: {about}." for name, about in networks.items()),
            *(f"Not installed: {name} ({reason})." for name, reason in missing.items()),
            "## Attacks",
            table(head, [row for case in done for row in rows(case)]),
            "## Training",
            "An epoch of FGSM adversarial training of the compact CNN on digits, batches of 64.",
            table(("by", "seconds", "time / ours"), epochs),
        ]
    )


def measured(options: argparse.Namespace) -> str:
    """The page, from measurements as they are asked for."""
    end = time.monotonic() + 60 * options.minutes
    found, missing = peers()
    chosen = list(cases(found, options.images, options.only))
    for case in chosen:
        prepare(case)
        measure(case)
    # In rounds over all of them, so that a slow minute of the machine meets no case alone.
    for case in (case for _ in range(1, options.rounds) for case in chosen):
        if time.monotonic() < end:
            measure(case)
    return report(chosen, training_rounds(options.rounds, options.training), missing, options.rounds)


def main(words: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds at most (default 5)")
    parser.add_argument("--images", type=float, default=1.0, help="a multiple of the numbers of images (default 1)")
    parser.add_argument("--minutes", type=float, default=11.0, help="no round of a case begins later (default 11)")
    parser.add_argument("--only", default="", help="cases whose network, norm and attack hold this text")
    parser.add_argument("--training", default="digits", help="what the trained network sees (default digits)")
    parser.add_argument("--out", type=Path, default=TABLE, help=f"default {TABLE}")
    options = parser.parse_args(words)
    with warnings.catch_warnings(action="ignore"):
        page = measured(options)
    options.out.write_text(page + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
