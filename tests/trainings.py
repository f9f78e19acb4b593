"""Training models in tests, and what it leaves behind."""

from __future__ import annotations

import csv
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from robbench.planning.plan import Job, TrainedJob
from robbench.results.store import Store
from robbench.training.trainer import train


class Stop(Exception):
    pass


def trained(job: TrainedJob, store: Store) -> dict[str, Tensor]:
    train(job, store, "cpu", "float32")
    return weights(job, store)


def weights(job: Job, store: Store) -> dict[str, Tensor]:
    return load_file(store.model_dir(job.key) / "weights.safetensors")


def history(job: Job, store: Store) -> list[dict[str, float]]:
    with (store.model_dir(job.key) / "history.csv").open() as file:
        return [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(file)]


def left_behind(job: Job, store: Store) -> dict[str, bytes]:
    """The files of a model that must not depend on how often its training was interrupted."""
    folder = store.model_dir(job.key)
    return {name: (folder / name).read_bytes() for name in ("weights.safetensors", "history.csv")}


def stopping_at(epoch: int) -> Any:
    def report(done: int, of: int) -> None:
        if done == epoch:
            raise Stop

    return report


def differs(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]
