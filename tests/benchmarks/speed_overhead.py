"""What attacks cost beyond the bare passes that are counted, and what deterministic algorithms cost."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from speed_networks import LARGE, Network, Subject, fgsm_step
from torch import Tensor
from torch.nn import functional

from robbench.attacks.apgd import APGD
from robbench.attacks.pgd import PGD
from robbench.attacks.square import Square
from robbench.attacks.strong import Strong
from robbench.core.attack import Attack
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat
from robbench.evaluation.attack_run import attack_batch
from robbench.evaluation.query_counter import Oracle
from robbench.evaluation.referee import fair_play

ATTACKS: Mapping[str, Attack] = {
    "pgd[steps=20]": PGD(20),
    "apgd[steps=25]": APGD(steps=25),
    "square[queries=100]": Square(100),
    "strong": Strong(),
}
SHORT: Mapping[str, Attack] = {
    "pgd[steps=10]": PGD(10),
    "apgd[steps=10]": APGD(steps=10),
    "square[queries=20]": Square(20),
    "strong[steps=10,queries=20]": Strong(steps=10, queries=20),
}
"""Those on the large network."""
OVERHEADS = (LARGE, "wk17a_mnist")
"""Networks whose overhead is shown: one with long passes and one with short ones."""
FEW = 32
"""Images of the other batch than that of an evaluation; on the large network the only one."""
SMALL = 1 / 20
"""Share of the radius at which few samples of the natural network are fooled and leave."""


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


def evaluated(attack: Attack, model: Network, images: Tensor, labels: Tensor, threat: Threat, name: str) -> Tensor:
    """Images as an attack changes them in an evaluation: passes counted, under the eyes of the referee."""
    images, labels = images.clone(), labels.clone()
    streams = Streams.of(torch.arange(len(images)), 0, name)
    oracle = Oracle(model, len(images))
    with fair_play(model, images, labels), oracle.watching(images):
        return attack.perturb(oracle, images, labels, threat, streams)


def overheads(subjects: Sequence[Subject], rounds: int, share: float = 1.0) -> Iterator[tuple[str, ...]]:
    """A row for every attack and size of batch: CPU time on one thread beyond that of the bare passes.

    Args:
        subjects: Networks with their images; the large one gets a smaller radius and shorter attacks.
        rounds: An attack and its bare passes in turn so often.
        share: A multiple of the numbers of images.
    """
    with _threads(1):
        for subject in subjects:
            large = subject.name == LARGE
            full = FEW if large else attack_batch(subject.images.shape[1:])
            sizes = {min(max(2, round(share * size)), len(subject.images)) for size in (FEW, full)}
            threat = Threat("linf", subject.eps["linf"] * (SMALL if large else 1))
            for size in sorted(sizes):
                for name, attack in (SHORT if large else ATTACKS).items():
                    yield _overhead(subject, name, attack, size, threat, rounds)


def _overhead(subject: Subject, name: str, attack: Attack, size: int, threat: Threat, rounds: int) -> tuple[str, ...]:
    images, labels = subject.images[:size], subject.labels[:size]
    recorder, over = Recorder(subject.model), []
    evaluated(attack, recorder, images, labels, threat, name)
    for _ in range(rounds):
        own = _cpu_seconds(lambda: evaluated(attack, subject.model, images, labels, threat, name))
        over.append(100 * (own / _cpu_seconds(lambda: bare(subject.model, recorder.calls, images)) - 1))
    forwards = sum(count for count, _ in recorder.calls) / size
    backwards = sum(count for count, back in recorder.calls if back) / size
    return subject.name, str(size), name, f"{forwards:.1f} / {backwards:.1f}", spread(over, 1)


def determinism(subject: Subject, rounds: int, size: int = 64) -> Iterator[tuple[str, ...]]:
    """A row for an attack and for a training step: time with deterministic algorithms over that without."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Network(subject.model.body, subject.model.head, subject.model.num_classes).to(device).eval()
    images, labels = subject.images[:size].to(device), subject.labels[:size].to(device)
    threat = Threat("linf", subject.eps["linf"])

    def attack() -> None:
        PGD(20, early_stop=False).perturb(model, images, labels, threat, Streams.of(labels, 0))

    def step() -> None:
        model.requires_grad_(True)
        changed = fgsm_step(model, images, labels, threat.radius)
        torch.autograd.grad(functional.cross_entropy(model(changed), labels), list(model.parameters()))
        model.requires_grad_(False)

    for name, work in {"pgd[steps=20]": attack, "training step on FGSM examples": step}.items():
        for fills in (True, False):
            work()
            yield device, name, "yes" if fills else "no", spread([_ratio(work, device, fills) for _ in range(rounds)])
    model.to("cpu")


def _ratio(work: Callable[[], object], device: str, fills: bool) -> float:
    filling: Any = torch.utils.deterministic
    before, filled = torch.are_deterministic_algorithms_enabled(), filling.fill_uninitialized_memory
    seconds = []
    try:
        for chosen in (False, True):
            torch.use_deterministic_algorithms(chosen)
            filling.fill_uninitialized_memory = fills
            begun = time.perf_counter()
            for _ in range(3):
                work()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begun)
    finally:
        torch.use_deterministic_algorithms(before)
        filling.fill_uninitialized_memory = filled
    return seconds[1] / seconds[0]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, and between what the values lie."""
    if not values:
        return "–"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def _cpu_seconds(work: Callable[[], object]) -> float:
    gc.collect()
    begun = time.process_time()
    work()
    return time.process_time() - begun


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
