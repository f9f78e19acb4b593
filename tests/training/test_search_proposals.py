"""Recipes that a search proposes, and how it tells trials apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from robbench.training.hyperparameter_search import LR, WEIGHT_DECAY, Search, prepare, propose, standard_error
from robbench.training.trial_table import FIELDS, Trial


def told(wanted: Search, count: int, seed: int = 0) -> list[Trial]:
    """Proposals one after the other, each answered with an accuracy that Adam and a rate near 0.003 make high."""
    trials: list[Trial] = []
    for number in range(1, count + 1):
        recipe = propose(wanted, trials)
        accuracy = 0.9 - 0.2 * abs(np.log10(recipe.lr / 0.003)) - 0.2 * (recipe.optimizer != "adam")
        trials.append(Trial(number, "done", recipe, ("key",), max(0.0, float(accuracy)), 1.0, 1.0))
    return trials


def test_the_first_trial_is_the_rows_own_recipe_and_the_others_lie_in_the_space(tmp_path: Path) -> None:
    wanted = prepare(tiny.make(tmp_path, recipe="epochs = 1, momentum = 0.7, lr = 20.0"), batch_sizes=[16, 50])
    own = wanted.jobs[0].recipe
    recipes = [trial.recipe for trial in told(wanted, 16)]
    assert recipes[0] == own
    assert len(set(recipes)) == len(recipes)
    for recipe in recipes[1:]:
        assert LR[0] <= recipe.lr <= LR[1]
        assert recipe.weight_decay == 0 or WEIGHT_DECAY[0] <= recipe.weight_decay <= WEIGHT_DECAY[1]
        assert recipe == replace(own, **{name: getattr(recipe, name) for name in FIELDS})
    assert {recipe.optimizer for recipe in recipes} == {"sgd", "adam", "adamw"}
    assert {recipe.schedule for recipe in recipes} == {"constant", "cosine", "one-cycle"}
    assert {recipe.batch_size for recipe in recipes[1:]} == {16, 50}
    assert {recipe.weight_decay == 0 for recipe in recipes} == {True, False}


def test_proposals_depend_on_the_seeds_and_on_the_trials_before(tmp_path: Path) -> None:
    wanted, other = (prepare(tiny.make(tmp_path, seeds=[seed])) for seed in (0, 1))
    trials = told(wanted, 14)
    assert propose(wanted, trials) == propose(wanted, trials) != propose(wanted, trials[:-1])
    assert told(wanted, 14) == trials
    assert [trial.recipe for trial in told(other, 4)][1:] != [trial.recipe for trial in trials[:4]][1:]
    flipped = [replace(trial, balanced_accuracy=1 - (trial.balanced_accuracy or 0)) for trial in trials]
    assert propose(wanted, flipped) != propose(wanted, trials)


def test_proposals_come_to_be_better_than_random_ones(tmp_path: Path) -> None:
    trials = told(prepare(tiny.make(tmp_path)), 40)
    accuracies = [trial.balanced_accuracy or 0 for trial in trials]
    assert np.mean(accuracies[25:]) > np.mean(accuracies[1:11]) + 0.1


def test_proposals_keep_away_from_what_diverges(tmp_path: Path) -> None:
    wanted = prepare(tiny.make(tmp_path))
    trials: list[Trial] = []
    for number in range(1, 41):
        recipe = propose(wanted, trials)
        fine = recipe.lr < 0.001
        trials.append(Trial(number, "done" if fine else "diverged", recipe, ("key",), 0.8 if fine else None))
    assert sum(trial.state == "diverged" for trial in trials[1:11]) >= 3
    assert sum(trial.state == "diverged" for trial in trials[-10:]) <= 2


@pytest.mark.parametrize("counts", [(30, 30, 30), (50, 10, 5)])
def test_the_standard_error_is_that_of_classes_as_hard_as_each_other(counts: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    drawn = np.mean([rng.binomial(count, 0.8, 20_000) / count for count in counts], axis=0)
    assert standard_error(0.8, counts) == pytest.approx(drawn.std(), rel=0.05)
    assert standard_error(1.0, counts) > 0
