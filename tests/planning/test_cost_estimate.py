from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import trainings

from robbench.planning.cost_estimate import Throughput, cost
from robbench.results.store import Store


@pytest.mark.parametrize(
    ("defense", "forwards", "backwards"),
    [
        ("none", 1, 1),
        ("fgsm-rs", 2, 2),
        ("pgd-training[steps=3]", 4, 4),
        ("pgd-training[steps=3,alpha=0.5]", 5, 5),
        ("trades[steps=2]", 5, 4),
        ("awp[steps=2]", 4, 4),
        ("perturbation+fgm", 3, 3),
        ("free[replays=4]", 4, 4),
        ("fgsm-rs+averaging", 2, 2),
        ("ibp-training[clean=0]", 4, 3),
        ("crown-ibp-training[clean=0]", 7, 6),
    ],
)
def test_training_costs_what_was_forecast(tmp_path: Path, defense: str, forwards: int, backwards: int) -> None:
    job = tiny.job(tmp_path, f'defense = "{defense}"', recipe="epochs = 1")
    store, images = Store(tmp_path / "runs"), len(job.data.splits.train)
    forecast = cost(job, (), store, Throughput(0.001, None))
    assert (forecast.forwards, forecast.backwards) == (forwards * images, backwards * images)
    assert forecast.seconds == pytest.approx(0.001 * (forwards + 2 * backwards) * images)
    trainings.trained(job, store)
    counted = store.model_info(job.key)["costs"]
    # In the first steps nothing grew yet, neither eps nor the share of linear bounds.
    assert counted["forwards"] <= forecast.forwards
    assert counted["backwards"] <= forecast.backwards
    if "ibp" not in defense:
        assert (counted["forwards"], counted["backwards"]) == (forecast.forwards, forecast.backwards)
