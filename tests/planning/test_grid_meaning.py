from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from grid_files import tiny, write_grid

from robbench.core.registry import Registry
from robbench.planning.grid import Request, built_in_grids, parse_grid, read_grid
from robbench.planning.planner import make_plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("grids")


@pytest.mark.parametrize("name", sorted(built_in_grids()))
def test_built_in_grids_read_and_plan(name: str, folder: Path) -> None:
    found = read_grid(name)
    assert found.name == name
    assert found.content == parse_grid(built_in_grids()[name], name)
    assert found.content.title
    plan = make_plan(Request(grid=name, out=folder / "runs", dataset="digits"))
    keys = [cell.key for _, cell in plan.cells]
    assert len(set(keys)) == len(keys) > 0


def test_the_imbalance_grid_sweeps_every_balancer_over_ten_seeds() -> None:
    found = parse_grid(built_in_grids()["imbalance"], "imbalance")
    (model,) = found.models
    assert set(model.balancer) == set(Registry(installed=False).entries("balancer"))
    assert (found.rank_by, len(set(found.seeds))) == ("clean", 10)


def rows(folder: Path, **changes: Any) -> list[tuple[str, str, int, list[str]]]:
    grid = write_grid(folder / "grid.toml", tiny(**changes))
    jobs = make_plan(Request(grid=str(grid), out=folder / "runs")).jobs
    return [
        (job.data.choice.label, job.spec.label, job.seed, [cell.condition.label for cell in job.cells]) for job in jobs
    ]


def test_lists_are_swept_and_models_kept_to_their_data_sets(folder: Path) -> None:
    found = rows(
        folder,
        datasets=["digits", "{dataset}-imbalanced"],
        seeds=[5, 7],
        conditions=["clean", "fgsm@each"],
        models=[
            {"objective": ["cross-entropy", "angular"], "defense": ["none", "perturbation+fgm"]},
            {"balancer": "smote", "datasets": ["{dataset}-imbalanced"]},
        ],
    )
    conditions = ["clean", "fgsm@0.05", "fgsm@0.1", "fgsm@0.2"]
    trained = [f"{a} · {b}" for a in ("cross-entropy", "angular") for b in ("no defense", "perturbation+fgm")]
    balanced = [*trained, "cross-entropy · no defense · smote"]
    assert found == [
        (name, label, seed, conditions)
        for name, labels in (("digits", trained), ("digits-imbalanced", balanced))
        for seed in (5, 7)
        for label in labels
    ]


def test_a_model_starts_from_another_wherever_that_stands(folder: Path) -> None:
    models = [{"name": "second", "start": "first"}, {"name": "first", "defense": "fgm"}]
    assert [row[1] for row in rows(folder, models=models)] == ["first", "second"]
    jobs = make_plan(Request(grid=str(folder / "grid.toml"), out=folder / "runs")).trained
    assert jobs[1].start == jobs[0].key


def test_recipes_are_laid_over_each_other(folder: Path) -> None:
    write_grid(
        folder / "grid.toml",
        tiny(recipe={"epochs": 3, "lr": 0.5}, models=[{}, {"name": "mine", "recipe": {"lr": 0.25}}]),
    )
    first, second = (job.recipe for job in make_plan(Request(str(folder / "grid.toml"), folder / "runs")).trained)
    assert (first.epochs, first.lr, second.epochs, second.lr) == (3, 0.5, 3, 0.25)
    assert first.batch_size == 64  # what the data set suggests


def test_options_in_place_of_the_grids(folder: Path) -> None:
    grid = write_grid(folder / "grid.toml", tiny(datasets=["{dataset}"], conditions=[{"chain": "clean", "sample": 9}]))
    request = Request(str(grid), folder / "runs", dataset="digits-imbalanced", limit=20, seeds=(3, 4))
    jobs = make_plan(request).jobs
    assert [(job.data.choice.label, job.seed) for job in jobs] == [("digits-imbalanced", 3), ("digits-imbalanced", 4)]
    assert jobs[0].cells[0].condition.sample == 9
    assert make_plan(Request(str(grid), folder / "runs", limit=5)).jobs[0].cells[0].condition.sample == 5


NET = """
import torch

def make():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
"""


def test_a_model_of_others_is_a_peer_at_every_seed(folder: Path) -> None:
    (folder / "net.py").write_text(NET, encoding="utf-8")
    grid = write_grid(
        folder / "grid.toml",
        tiny(
            datasets=["digits"],
            seeds=[3, 4, 5],
            conditions=["clean", "transfer[steps=1]@0.1"],
            models=[{"name": "first"}, {"name": "theirs", "external": "net.py:make"}],
        ),
    )
    jobs = make_plan(Request(grid=str(grid), out=folder / "runs")).jobs
    assert [(job.spec.label, job.seed) for job in jobs] == [("first", 3), ("theirs", 3), ("first", 4), ("first", 5)]
    keys = [job.key for job in jobs]
    transfers = [job.cells[1] for job in jobs]
    assert not any(cell.refusal for cell in transfers)
    assert [cell.peers for cell in transfers] == [(keys[1],), (keys[0],), (keys[1],), (keys[1],)]
