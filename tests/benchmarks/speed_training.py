"""An epoch of adversarial training: as robbench runs it, as a plain loop does, and the bare steps."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import tiny
import torch
from speed_networks import fgsm_step
from torch.nn import functional

from robbench.core.contracts import to_float
from robbench.results.store import Store
from robbench.training.network import build, pixel_statistics
from robbench.training.optimizer import make_optimizer
from robbench.training.trainer import _Run

EPS = 0.1


def training_rounds(rounds: int, dataset: str = "digits") -> Mapping[str, list[float]]:
    """Seconds of an epoch in every round: ours, a plain loop, and its steps without their data.

    All of them train the compact CNN on FGSM examples of digits with the same optimizer and batches of 64 images.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = f"architecture = 'compact-cnn'\ndefense = 'fgm[eps={EPS},alpha=0.0]'"
        (job,) = tiny.make(Path(folder), [model], recipe="epochs = 1000", dataset=dataset).trained
        run = _Run.start(job, Store(Path(folder)), "cpu", "float32")
        images, labels = run.train.images, run.train.labels
        network = build(job, labels[:10], *pixel_statistics(images))
        optimizer, order = make_optimizer(network, job.recipe), np.random.default_rng(0)

        def step(x: torch.Tensor, y: torch.Tensor) -> None:
            changed = fgsm_step(network, x, y, EPS)
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(network(changed), y).backward()
            optimizer.step()

        def plain() -> None:
            network.train()
            for part in np.array_split(order.permutation(len(labels)), run.steps_per_epoch):
                index = torch.from_numpy(part)
                step(to_float(images[index]), labels[index])

        x, y = to_float(images[:64]), labels[:64]

        def steps() -> None:
            for _ in range(run.steps_per_epoch):
                step(x, y)

        seconds: dict[str, list[float]] = {"robbench": [], "plain loop": [], "bare steps": []}
        for number in range(rounds + 1):
            calls: tuple[Callable[[], object], ...] = (functools.partial(run.train_epoch, number), plain, steps)
            for name, call in zip(seconds, calls, strict=True):
                begun = time.perf_counter()
                call()
                if number:  # the first one prepares
                    seconds[name].append(time.perf_counter() - begun)
    return seconds
