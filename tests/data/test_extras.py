"""Packages that come with an extra: what needs them says so, and nothing else does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from grid_files import tiny, write_grid

from robbench.cli.main import main
from robbench.core.errors import RequestError
from robbench.core.extras import require

LABELS = "finding suspected label errors needs cleanlab; pip install 'robbench[labels]'"


@pytest.mark.usefixtures("one_core", "no_figures")
def test_grids_are_planned_and_run_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("cleanlab", "optuna")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("cleanlab", "optuna"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises from here on
    out = ["--out", str(tmp_path / "runs")]
    for grid in ("full", "quick", "smoke", "generalization-study"):
        assert main(["plan", "--grid", grid, "--dataset", "digits", *out]) == 0, grid
    assert main(["list"]) == 0
    grid = str(write_grid(tmp_path / "grid.toml", tiny(conditions=["clean"])))
    assert main(["run", "--grid", grid, *out, "--limit", "20", "--workers", "1"]) == 0


@pytest.mark.parametrize(
    "words", [["plan", "--grid", "imbalance-study", "--dataset", "digits"], ["labels", "--dataset", "digits"]]
)
def test_what_needs_cleanlab_names_its_extra(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cleanlab"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    assert main([*words, "--out", str(tmp_path / "runs")]) == 2
    assert capsys.readouterr().err == f"robbench: {LABELS}\n"


def test_a_package_that_lacks_one_of_its_own_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_there.py").write_text("import nothing_of_that_name")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="nothing_of_that_name"):
        require("half_there", "half", "this")
    with pytest.raises(RequestError, match=r"^this needs nowhere; pip install 'robbench\[half\]'$"):
        require("nowhere.to_be_found", "half", "this")
