from __future__ import annotations

from pathlib import Path

import pytest

from robbench.cli.main import main
from robbench.core.errors import RequestError
from robbench.planning.grid import Request
from robbench.planning.planner import make_plan
from robbench.training.hyperparameter_search import prepare, ranked, search

GRID = """
datasets = ["digits[classes=8|3|9,train_fraction=0.3]", "digits-imbalanced"]
conditions = ["clean"]
recipe = { epochs = 1 }
[[models]]
objective = ["cross-entropy", "angular"]
[[models]]
name = "sampled"
balancer = "sampler"
"""


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "grid.toml"
    path.write_text(GRID)
    return path


def test_rows_are_found_by_their_labels(grid: Path) -> None:
    plan = make_plan(Request(str(grid), grid.parent / "runs", seeds=(0, 3)))
    first = prepare(plan)
    assert first.label == "digits[classes=8|3|9,train_fraction=0.3] · cross-entropy · no defense"
    assert [job.seed for job in first.jobs] == [0, 3]
    assert prepare(plan, "sampled").label == "digits[classes=8|3|9,train_fraction=0.3] · sampled"
    assert prepare(plan, "digits-imbalanced · sampled").label == "digits-imbalanced · sampled"
    searches = [first, prepare(plan, "sampled"), prepare(plan, "digits-imbalanced · sampled"), prepare(plan, None, [8])]
    assert len({wanted.key for wanted in searches}) == len(searches)
    with pytest.raises(RequestError, match='--row: there is no row "sample"; did you mean "sampled"'):
        prepare(plan, "sample")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--row", "angular no defense"], 'there is no row "angular no defense"; did you mean "angular · no defense"?'),
        (["--trials", "0"], "'0' is not a positive whole number"),
        (["--batch-sizes", "1"], "batch_size = 1"),
        (["--batch-sizes", "16,x"], "'x' is not a positive whole number"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(
    grid: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "--grid", str(grid), "--out", str(grid.parent / "runs"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (grid.parent / "runs" / "searches").exists()


def test_the_command_shows_the_best_and_what_to_paste(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["search", "--grid", str(grid), "--out", str(grid.parent / "runs"), "--trials", "3", "--device", "cpu"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert [line[:5] for line in shown.splitlines() if line.startswith("[")] == ["[1/3]", "[2/3]", "[3/3]"]
    assert "No test image was used." in " ".join(shown.split())
    wanted = prepare(make_plan(Request(str(grid), grid.parent / "runs", device="cpu")))
    best = ranked(search(wanted, 3))[0]
    assert best.recipe.toml() in shown.splitlines()
    assert str(wanted.folder / "trials.csv") in shown
    table = shown[shown.index("trial  optimizer") : shown.index("Best: ")]
    assert max(map(len, table.splitlines())) <= 80
    assert "…" not in table
    assert main(words) == 0
    again = capsys.readouterr().out
    assert not [line for line in again.splitlines() if line.startswith("[")], "nothing is left to do"
    assert shown.endswith(again)
