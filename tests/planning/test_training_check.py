"""Rows that cannot be trained as they are asked for are refused before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from robbench.cli.main import main
from robbench.core.errors import RequestError
from robbench.training.recipe import Recipe

PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar
from robbench import Dataset, Defense, EpsList, register_dataset, register_defense
from robbench.data.datasets.digits import Digits

@register_defense("blends")
@dataclass(frozen=True)
class Blends(Defense):
    mixes_labels: ClassVar[bool] = True
    def training_loss(self, batch):
        return batch.loss(batch.images)

@register_defense("keeps")
@dataclass(frozen=True)
class Keeps(Defense):
    def final_weights(self, model, state):
        return model.state_dict()

@register_dataset("no-reference")
@dataclass(frozen=True)
class NoReference(Digits):
    eps: ClassVar = {"l2": EpsList((0.5,), reference=0.5)}
"""


@pytest.mark.parametrize(
    ("model", "recipe", "part"),
    [
        ("defense = 'trades+perturbation'", "epochs = 1", '"trades" sees no loss after it; put "perturbation" first'),
        ("defense = 'mart+fgm+none'", "epochs = 1", '"mart" sees no loss after it; put "fgm" first'),
        ("defense = 'awp[on=trades]+cutmix'", "epochs = 1", 'put "cutmix" first'),
        ("objective = 'angular'\ndefense = 'trades'", "epochs = 1", '"trades" is a loss on scores, which "angular"'),
        ("objective = 'angular'\ndefense = 'mixup+fgm'", "epochs = 1", '"mixup" mixes labels, which "angular"'),
        ("objective = 'angular'\ndefense = 'blends'", "epochs = 1", '"blends" mixes labels'),
        ("objective = 'angular'\ndefense = 'awp[on=trades]'", "epochs = 1", "is a loss on scores"),
        ("defense = 'averaging+keeps'", "epochs = 1", '"averaging" and "keeps" both say which weights are kept'),
        ("", "epochs = 1, nesterov = true", 'nesterov = true needs optimizer = "sgd"'),
        ("", "optimizer = 'sgd', momentum = 0.0, nesterov = true", "and a momentum"),
        ("", "schedule = 'steps'", 'schedule = "steps" and milestones need each other'),
        ("", "milestones = [2]", "need each other"),
        ("", "schedule = 'steps', milestones = [3, 2]", "milestones = [3, 2] do not rise"),
        ("", "schedule = 'one-cycle', warmup = 0.1", "has a warmup of its own"),
        ("", "patience = 2", 'patience needs keep = "best" or "robust"'),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(tmp_path: Path, model: str, recipe: str, part: str) -> None:
    (tmp_path / "own.py").write_text(PLUGIN)
    with pytest.raises(RequestError) as raised:
        tiny.make(tmp_path, [model], recipe=recipe, plugins=[tmp_path / "own.py"])
    assert part in str(raised.value)
    assert 'tiny.toml: key "models.0' in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not list((tmp_path / "runs").glob("models/*"))


def test_a_refused_chain_is_exit_status_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "g.toml"
    path.write_text(tiny.grid_text(["defense = 'trades+fgm'"]))
    assert main(["run", "--grid", str(path), "--out", str(tmp_path / "runs")]) == 2
    assert 'put "fgm" first' in capsys.readouterr().err


def test_robust_accuracy_needs_a_size(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(PLUGIN)
    with pytest.raises(RequestError, match="no reference size in linf"):
        tiny.make(tmp_path, recipe="keep = 'robust'", dataset="no-reference", plugins=[tmp_path / "own.py"])


@pytest.mark.parametrize(
    "model",
    [
        "defense = 'perturbation+trades'",
        "defense = 'randaugment+cutmix+mart+averaging'",
        "defense = 'cutmix+awp[on=trades]+none'",
        "defense = 'averaging+free'",
        *(
            f"objective = 'angular'\ndefense = '{name}'"
            for name in ("fgm", "fgsm-rs", "n-fgsm", "pgd-training", "free", "averaging", "awp", "autoaugment+fgm")
        ),
    ],
)
def test_what_goes_together_is_planned(tmp_path: Path, model: str) -> None:
    assert tiny.make(tmp_path, [model]).trained


def test_a_recipe_in_parts_is_judged_as_a_whole(tmp_path: Path) -> None:
    model = "recipe = { optimizer = 'sgd', schedule = 'steps' }"
    (job,) = tiny.make(tmp_path, [model], recipe="nesterov = true, milestones = [1, 2]").trained
    assert (job.recipe.nesterov, job.recipe.milestones, job.recipe.gamma) == (True, (1, 2), 0.1)


def test_fields_that_came_later_change_no_key_at_their_defaults(tmp_path: Path) -> None:
    plain = tiny.job(tmp_path, recipe="epochs = 2")
    later = "nesterov = false, milestones = [], gamma = 0.1, warmup = 0.0, patience = 0"
    assert tiny.job(tmp_path, recipe=f"epochs = 2, {later}").key == plain.key == "2b2528ab6052d2e50310"
    assert not {"nesterov", "milestones", "gamma", "warmup", "patience"} & plain.spec.recipe.keys()
    assert tiny.job(tmp_path, recipe="epochs = 2, warmup = 0.1").key != plain.key


def test_a_recipe_as_toml_means_itself() -> None:
    import tomllib

    recipe = Recipe(optimizer="sgd", nesterov=True, schedule="steps", milestones=(3, 5), lr=1e-5, keep="robust")
    assert Recipe.make(tomllib.loads(recipe.toml())["recipe"], "here") == recipe
