from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import robbench.training.trainer
from robbench.cli.main import main
from robbench.core.atomic_io import write_atomically
from robbench.core.errors import RequestError, StoreError
from robbench.core.sealed import SEAL
from robbench.data.splits import Splits
from robbench.planning.plan import Job, Plan, TrainedJob
from robbench.results.store import Store
from robbench.training.hyperparameter_search import (
    Search,
    prepare,
    ranked,
    search,
)
from robbench.training.recipe import Recipe
from robbench.training.trial_table import Trial

COUNT = 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Search, list[Trial]]:
    """A search that was carried out at once; its store is not to be written to."""
    wanted = prepare(tiny.make(tmp_path_factory.mktemp("search"), recipe="epochs = 2, keep = 'best'"))
    return wanted, search(wanted, COUNT)


def timeless(trials: Sequence[Trial]) -> list[Trial]:
    return [replace(trial, seconds=None) for trial in trials]


def lines(wanted: Search) -> list[dict[str, str]]:
    with (wanted.folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def history(store: Path, key: str) -> list[dict[str, str]]:
    with (store / "models" / key / "history.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the models whose training begins."""
    keys: list[str] = []
    train = robbench.training.trainer.train

    def counting(job: Job, *rest: object) -> None:
        keys.append(job.key)
        train(job, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("robbench.training.trainer.train", counting)
    return keys


# --- what is kept


def test_every_trial_is_in_the_file_with_what_its_history_says(finished: tuple[Search, list[Trial]]) -> None:
    wanted, trials = finished
    store = wanted.plan.request.out
    assert [int(line["trial"]) for line in lines(wanted)] == list(range(1, COUNT + 1))
    best: dict[str, float] = {}
    for line, trial in zip(lines(wanted), trials, strict=True):
        kept = max(history(store, line["models"]), key=lambda epoch: float(epoch["validation_balanced_accuracy"]))
        best[line["trial"]] = float(kept["validation_balanced_accuracy"])
        assert float(line["balanced_accuracy"]) == trial.balanced_accuracy == best[line["trial"]]
        assert float(line["validation_loss"]) == float(kept["validation_loss"])
        assert float(line["lr"]) == trial.recipe.lr
        assert line["optimizer"] == trial.recipe.optimizer
        assert float(line["seconds"]) > 0
        assert Store(store).has_model(line["models"])
    assert str(ranked(trials)[0].number) == max(best, key=lambda number: best[number])


def test_the_last_epoch_counts_where_the_recipe_keeps_it(tmp_path: Path) -> None:
    wanted = prepare(tiny.make(tmp_path, recipe="epochs = 3, lr = 0.3, optimizer = 'sgd'"))
    (trial,) = search(wanted, 1)
    end = history(tmp_path / "runs", trial.models[0])[-1]
    assert trial.balanced_accuracy == float(end["validation_balanced_accuracy"])


def test_a_search_in_parts_is_the_search_at_once(
    finished: tuple[Search, list[Trial]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[str]
) -> None:
    _, whole = finished
    wanted = prepare(tiny.make(tmp_path, recipe="epochs = 2, keep = 'best'"))
    search(wanted, 2)
    calls: list[Path] = []

    def dying(path: Path, data: bytes | str, flush: bool = True) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write_atomically(path, data, flush)

    monkeypatch.setattr("robbench.core.sealed.write_atomically", dying)
    with pytest.raises(KeyboardInterrupt):
        search(wanted, COUNT)
    monkeypatch.setattr("robbench.core.sealed.write_atomically", write_atomically)
    assert len(lines(wanted)) == 2
    again = prepare(tiny.make(tmp_path, recipe="epochs = 2, keep = 'best'"))
    assert timeless(search(again, COUNT)) == timeless(whole)
    assert trained == [whole[0].models[0], whole[1].models[0], *[whole[2].models[0]] * 2, whole[3].models[0]]
    assert timeless(search(again, 2)) == timeless(whole), "what was tried is not forgotten"


def test_a_changed_figure_of_a_trial_is_found(
    finished: tuple[Search, list[Trial]], tmp_path: Path, trained: list[str]
) -> None:
    before, whole = finished
    wanted = prepare(tiny.make(tmp_path, recipe="epochs = 2, keep = 'best'"))
    shutil.copytree(before.plan.request.out, tmp_path / "runs", dirs_exist_ok=True)
    path = wanted.folder / "optuna.db"
    assert search(wanted, COUNT) == whole
    accuracy = json.dumps(whole[0].balanced_accuracy).encode()
    data = path.read_bytes()
    assert accuracy in data
    path.write_bytes(data.replace(accuracy, accuracy[:-1] + (b"1" if accuracy[-1:] != b"1" else b"2")))
    with pytest.raises(StoreError, match=rf"^cannot read {path}: trial 1 is damaged; remove it and search again$"):
        search(wanted, COUNT)
    path.unlink()
    assert search(wanted, COUNT) == whole
    assert trained == [], "the models are there"


def test_models_that_are_in_the_store_are_not_trained_again(
    finished: tuple[Search, list[Trial]], tmp_path: Path, trained: list[str]
) -> None:
    before, whole = finished
    shutil.copytree(before.plan.request.out / "models", tmp_path / "runs" / "models")
    wanted = prepare(tiny.make(tmp_path, recipe="epochs = 2, keep = 'best'"))
    assert search(wanted, COUNT) == whole
    assert trained == []


def test_a_grid_with_the_recipe_asks_for_the_model_that_was_trained(
    finished: tuple[Search, list[Trial]], tmp_path: Path
) -> None:
    for trial in finished[1]:
        (job,) = tiny.make(tmp_path, [trial.recipe.toml()], recipe="epochs = 7, min_steps = 3").trained
        assert (job.key,) == trial.models
        assert job.recipe == trial.recipe


def test_figures_are_means_over_the_seeds(tmp_path: Path) -> None:
    wanted = prepare(tiny.make(tmp_path, seeds=[0, 1], recipe="epochs = 1"))
    (trial,) = search(wanted, 1)
    ends = [history(tmp_path / "runs", key)[-1] for key in trial.models]
    assert len({*trial.models}) == 2
    figures = {"validation_balanced_accuracy": trial.balanced_accuracy, "validation_loss": trial.validation_loss}
    for name, value in figures.items():
        assert value == pytest.approx(np.mean([float(end[name]) for end in ends]), abs=1e-12)


def test_a_row_that_starts_from_another_finds_it_trained(tmp_path: Path) -> None:
    plan = tiny.make(tmp_path, ["name = 'first'", "name = 'second'\nstart = 'first'\nrecipe = { epochs = 1 }"])
    (trial,) = search(prepare(plan, "second"), 1)
    assert trial.models == (plan.jobs[1].key,)
    assert Store(tmp_path / "runs").has_model(plan.jobs[0].key)


def test_trials_whose_training_diverges_are_kept_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = "epochs = 1, optimizer = 'sgd', lr = 1e12"
    wanted = prepare(tiny.make(tmp_path, recipe=recipe))
    trials = search(wanted, 2)
    assert trials[0].state == lines(wanted)[0]["state"] == "diverged"
    assert trials[0].recipe.lr == 1e12
    assert trials[0].balanced_accuracy is None
    assert lines(wanted)[0]["balanced_accuracy"] == ""
    assert trials[1].state == "done"
    assert ranked(trials) == trials[1:]
    assert search(wanted, 2) == trials
    words = ["search", "--grid", str(tmp_path / "tiny.toml"), "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "other"), "--trials", "1"]) == 1
    assert "all 1 trials diverged" in capsys.readouterr().out


# --- what is looked at

SIGHTED = """
from dataclasses import dataclass, replace
import numpy as np
from robbench import register_dataset
from robbench.data.datasets.digits import Digits

@register_dataset("sighted", poison=False)
@register_dataset("poisoned", poison=True)
@dataclass(frozen=True)
class Sighted(Digits):
    poison: bool = False

    def locate(self, data_dir):
        stamp, read = super().locate(data_dir)
        def changed():
            raw = read()
            is_test = np.arange(len(raw.labels)) % 3 == 0
            images = raw.images.copy()
            if self.poison:
                images[is_test] = np.random.default_rng(0).integers(0, 256, images[is_test].shape)
            return replace(raw, images=images, is_test=is_test)
        return f"{stamp} {self.poison}", changed
"""


def test_test_images_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sighted.py").write_text(SIGHTED)
    taken: list[np.ndarray] = []
    take = Splits.take

    def spied(self: Splits, source: Any, index: np.ndarray) -> Any:
        taken.append(index)
        return take(self, source, index)

    monkeypatch.setattr(Splits, "take", spied)
    found = {}
    for name in ("sighted", "poisoned"):
        dataset = f"{name}[classes=8|3|9,train_fraction=0.2]"
        plan = tiny.make(tmp_path / name, recipe="epochs = 1", dataset=dataset, plugins=[tmp_path / "sighted.py"])
        wanted = prepare(plan)
        found[name] = [replace(trial, models=()) for trial in timeless(search(wanted, 3))]
    test = wanted.jobs[0].data.splits.test
    assert len(test) > 100
    assert taken
    assert not np.isin(np.concatenate(taken), test).any()
    assert found["sighted"] == found["poisoned"]


def test_a_row_that_trains_on_test_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r'--row: "digits.*train_on = "train"'):
        prepare(tiny.make(tmp_path, recipe="epochs = 1, train_on = 'train+test'"))


def test_trials_that_an_earlier_version_kept_as_csv_are_taken_over(
    finished: tuple[Search, list[Trial]], tmp_path: Path, trained: list[str]
) -> None:
    before, whole = finished
    shutil.copytree(before.plan.request.out, tmp_path / "runs")
    wanted = prepare(tiny.make(tmp_path, recipe="epochs = 2, keep = 'best'"))
    table = (wanted.folder / "trials.csv").read_text()
    (wanted.folder / "optuna.db").unlink()
    (wanted.folder / "optuna.new").write_text("left by a search that was killed while it took them over")
    assert search(wanted, COUNT) == whole
    assert trained == []
    assert (wanted.folder / "trials.csv").read_text() == table

    # A trial whose recipe means another model by now, and those that were proposed after it, are made again.
    (wanted.folder / "optuna.db").unlink()
    (wanted.folder / "trials.csv").write_text(table.replace(whole[2].models[0], "0" * 20))
    assert timeless(search(wanted, COUNT)) == timeless(whole)
    assert (wanted.folder / "trials.csv").read_text() == table


@pytest.mark.parametrize("stale", [0, 2, COUNT - 1])
def test_trials_that_mean_other_models_by_now_are_made_again(
    finished: tuple[Search, list[Trial]],
    tmp_path: Path,
    trained: list[str],
    monkeypatch: pytest.MonkeyPatch,
    stale: int,
) -> None:
    """As after a change of what one schedule does: what was measured then says nothing of today's models."""
    before, whole = finished
    shutil.copytree(before.plan.request.out, tmp_path / "runs")
    wanted = prepare(tiny.make(tmp_path, recipe="epochs = 2, keep = 'best'"))
    kept = (wanted.folder / "optuna.db").read_bytes()
    with_recipe, changed = type(wanted.plan).with_recipe, whole[stale].recipe

    def other(self: Plan, job: TrainedJob, recipe: Recipe) -> TrainedJob:
        made = with_recipe(self, job, recipe)
        return replace(made, key=made.key[::-1]) if recipe == changed else made

    monkeypatch.setattr(type(wanted.plan), "with_recipe", other)
    again = search(wanted, COUNT)
    assert trained == [whole[stale].models[0][::-1]], "models of the same key are taken from the store"
    assert again[:stale] == whole[:stale]
    assert [trial.models[0] for trial in again] == [
        key[::-1] if at == stale else key for at, (key,) in enumerate(trial.models for trial in whole)
    ]
    assert (wanted.folder / "optuna.before.db").read_bytes() == kept
    assert search(wanted, COUNT) == again
    assert len(trained) == 1


@pytest.mark.parametrize("damage", ["recipe", "models"])
def test_a_trial_that_is_not_what_is_written_is_named(
    finished: tuple[Search, list[Trial]], tmp_path: Path, damage: str
) -> None:
    import optuna

    shutil.copytree(finished[0].plan.request.out, tmp_path / "runs")
    wanted = prepare(tiny.make(tmp_path, recipe="epochs = 2, keep = 'best'"))
    path = wanted.folder / "optuna.db"
    study = optuna.load_study(storage=f"sqlite:///{path}", study_name="recipe")
    attributes = {key: value for key, value in study.trials[0].user_attrs.items() if key not in (damage, SEAL)}
    study.add_trial(optuna.create_trial(value=0.5, user_attrs=attributes))
    with pytest.raises(StoreError, match=rf"cannot read {path}: trial {COUNT + 1} is not what robbench writes"):
        search(wanted, COUNT)


def test_trials_are_kept_as_they_are(finished: tuple[Search, list[Trial]]) -> None:
    """Optuna's own reader finds them, with what the sampler learns from."""
    import optuna

    wanted, trials = finished
    study = optuna.load_study(storage=f"sqlite:///{wanted.folder / 'optuna.db'}", study_name="recipe")
    assert [kept.value for kept in study.trials] == [trial.balanced_accuracy for trial in trials]
    for kept, trial in zip(study.trials, trials, strict=True):
        assert {name: getattr(trial.recipe, name) for name in kept.params if name != "decay"} == {
            name: value for name, value in kept.params.items() if name != "decay"
        }
        assert kept.params["decay"] == (trial.recipe.weight_decay > 0)


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    import tiny
    from robbench.training import hyperparameter_search as searching

    tried, calls = searching._tried, []

    def killing(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return tried(*arguments)

    searching._tried = killing
    searching.search(searching.prepare(tiny.make(Path(sys.argv[1]), recipe="epochs = 2, keep = 'best'")), 4)
"""


@pytest.mark.end_to_end
def test_a_killed_search_goes_on_where_it_was(finished: tuple[Search, list[Trial]], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    wanted = prepare(tiny.make(tmp_path, recipe="epochs = 2, keep = 'best'"))
    assert len(lines(wanted)) == 2
    assert timeless(search(wanted, COUNT)) == timeless(finished[1])


def test_a_search_without_optuna_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tiny.make(tmp_path)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(RequestError, match=r"^a search needs optuna; pip install 'robbench\[search\]'$"):
        prepare(plan)
    assert main(["search", "--grid", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "runs")]) == 2
    assert capsys.readouterr().err == "robbench: a search needs optuna; pip install 'robbench[search]'\n"


def test_damaged_trials_and_searches_at_once_are_refused(finished: tuple[Search, list[Trial]], tmp_path: Path) -> None:
    wanted = prepare(tiny.make(tmp_path, recipe="epochs = 2, keep = 'best'"))
    whole = (finished[0].folder / "trials.csv").read_text()
    wanted.folder.mkdir(parents=True)
    for damaged in (whole.replace("done", "won", 1), whole[:-60], whole.replace("lr", "rate"), "\x00\n"):
        (wanted.folder / "trials.csv").write_text(damaged)
        with pytest.raises(StoreError, match=r"cannot read .*trials\.csv: .*; remove it and search again"):
            search(wanted, COUNT)
    for broken in (b"no database", (finished[0].folder / "optuna.db").read_bytes()[:5000]):
        (wanted.folder / "optuna.db").write_bytes(broken)
        with pytest.raises(StoreError, match=r"cannot use .*optuna\.db: .*; remove it and search again"):
            search(wanted, COUNT)
    with Store(wanted.folder).lock(), pytest.raises(RequestError, match="in use by another robbench"):
        search(wanted, COUNT)


def test_recipes_survive_toml(tmp_path: Path) -> None:
    recipe = Recipe(optimizer="sgd", lr=1.23e-05, weight_decay=4.5e-06, schedule="one-cycle", keep="best", min_steps=9)
    (job,) = tiny.make(tmp_path, [recipe.toml()]).trained
    assert job.recipe == recipe
