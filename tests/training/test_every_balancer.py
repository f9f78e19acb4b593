"""Every balancer goes with every defense that acts in training, or says why not."""

from __future__ import annotations

import pytest
import tiny
import torch
from trainings import weights

from robbench.core.errors import RequestError
from robbench.core.registry import Registry
from robbench.planning.plan import TrainedJob
from robbench.results.store import Store
from robbench.training.trainer import train

FEW = "digits[classes=8|3|9,train_counts=12|6|4]"
DEFENSES = (
    "fgsm-rs",
    "n-fgsm",
    "pgd-training[steps=1]",
    "trades[steps=1]",
    "mart[steps=1]",
    "awp[steps=1]",
    "free",
    "averaging",
    "cutmix",
    "mixup",
)
BALANCERS = tuple(Registry(installed=False).entries("balancer"))
FAST = ("class-weights", "smote")
"""One that weighs classes and one that makes images; the others differ from these in the images alone."""


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[TrainedJob, Store]]:
    """A job of one step for each pair."""
    model = f"architecture = 'small-cnn'\ndefense = {list(DEFENSES)}\nbalancer = {list(BALANCERS)}"
    plan = tiny.make(tmp_path_factory.mktemp("pairs"), [model], recipe="epochs = 1, batch_size = 64", dataset=FEW)
    pairs = [(defense, balancer) for defense in DEFENSES for balancer in BALANCERS]
    found = {(job.spec.defenses[0].label, job.spec.balancer.label): job for job in plan.trained}
    assert len(found) == len(pairs)
    store = Store(plan.request.out)
    return {pair: (found[pair], store) for pair in pairs}


@pytest.mark.parametrize(
    "balancer", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in BALANCERS]
)
@pytest.mark.parametrize("defense", DEFENSES)
def test_each_pair_takes_a_step_or_says_why_not(
    defense: str, balancer: str, jobs: dict[tuple[str, str], tuple[TrainedJob, Store]]
) -> None:
    job, store = jobs[defense, balancer]
    refused = ""
    try:
        train(job, store, "cpu", "float32")
    except RequestError as error:
        refused = str(error)
    assert refused or all(bool(torch.isfinite(value).all()) for value in weights(job, store).values())
