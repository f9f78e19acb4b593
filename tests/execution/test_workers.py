"""What worker processes are handed: the plan, whose images they map again and whose plugins they load."""

from __future__ import annotations

import pickle
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from plugin_files import GRAY, write
from resident import pixels
from stores import complaint

import robbench.planning.grid
from robbench.cli.main import main
from robbench.core.errors import StoreError
from robbench.data.dataset import DecodedImages
from robbench.execution.portion import portion_to_attack, portion_to_judge
from robbench.planning.plan import Plan


def gray(folder: Path) -> tuple[Plan, Path]:
    plugin = write(folder / "gray.py", GRAY)
    return tiny.make(folder, conditions=["clean", "gray@ref", "art:DeepFool"], plugins=[plugin]), plugin


def test_a_plan_survives_the_way_to_a_worker(tmp_path: Path) -> None:
    plan, _ = gray(tmp_path)
    packed = pickle.dumps(plan)
    found: Plan = pickle.loads(packed)
    assert [job.key for job in found.jobs] == [job.key for job in plan.jobs]
    assert [cell for _, cell in found.cells] == [cell for _, cell in plan.cells]
    assert found.registry == plan.registry
    (job,), (same,) = plan.trained, found.trained
    assert (same.data.spec, same.recipe, same.architecture) == (job.data.spec, job.recipe, job.architecture)
    np.testing.assert_array_equal(same.data.decoded.images, job.data.decoded.images)
    assert isinstance(same.data.decoded.images, np.memmap)
    assert len(packed) < pixels(job.data.decoded.images).nbytes / 10, "images are not copied"


def test_images_in_memory_are_pickled_whole(tmp_path: Path) -> None:
    mapped = tiny.job(tmp_path).data.decoded
    part = pixels(mapped.images)[5:9]
    decoded = DecodedImages(part, mapped.labels[5:9], mapped.class_names, mapped.is_test[5:9], "", 0)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(decoded)).images, part)


@pytest.mark.usefixtures("one_core", "no_figures")
def test_a_grid_is_read_once_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    parse = robbench.planning.grid.parse_grid

    def counting(text: str, where: str) -> Any:
        read.append(where)
        return parse(text, where)

    monkeypatch.setattr("robbench.planning.grid.parse_grid", counting)
    grid = write(tmp_path / "grid.toml", tiny.grid_text(recipe="epochs = 1"))
    assert main(["run", "--grid", str(grid), "--out", str(tmp_path / "runs"), "--limit", "9", "--workers", "1"]) == 0
    assert read == [str(grid)]


def test_components_that_no_worker_could_find_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = GRAY.replace("@register_attack", "def make():\n    @register_attack").replace("@dataclass", "    @dataclass")
    head, _, body = text.partition("class Gray")
    indented = "\n".join(f"    {line}" if line else line for line in f"class Gray{body}".splitlines())
    plugin = write(tmp_path / "gray.py", f"{head}{indented}\n    return Gray\n\nGray = make()\n")
    grid = write(tmp_path / "grid.toml", tiny.grid_text(conditions=["gray@ref"]))
    words = ["--grid", str(grid), "--out", str(tmp_path / "runs"), "--plugin", str(plugin)]
    error = complaint(main(["run", "--workers", "1", *words]), capsys, 2)
    assert re.search(r"cannot be handed the plan: .*Gray.*top level", error)
    assert not (tmp_path / "runs" / "boards").exists(), "no board is noted for a request that is refused"


def test_a_plugin_that_changes_during_a_run_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, plugin = gray(tmp_path)
    (job,) = plan.jobs
    portion = portion_to_attack(plan, job, job.cells[1])
    for attack in [stage.attack for _, cell in plan.cells for stage in cell.condition.stages if stage.attack.source]:
        monkeypatch.delitem(sys.modules, type(attack.component).__module__)
    write(plugin, GRAY.replace("1.0", "0.5"))
    with pytest.raises(StoreError, match="a plugin or data set was changed while the run was going on; run again"):
        portion.open()


def test_a_store_that_is_moved_during_a_run_ends_it(tmp_path: Path) -> None:
    plan = tiny.make(tmp_path)
    (job,) = plan.jobs
    portion = portion_to_judge(plan, job, job.cells)
    assert portion.open().jobs[0].key == job.key
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"runs/data/.*npy was moved or removed while the run was going on; run again"):
        portion.open()


@pytest.mark.parametrize("edit", ["edited", "removed"])
def test_an_installed_plugin_that_changes_during_a_run_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: str
) -> None:
    """Its modules keep their names, so that unpickling alone would take the new code for the old."""
    write(tmp_path / "site" / "gray_plugin.py", GRAY)
    points = tmp_path / "site" / "gray_plugin-1.5.dist-info" / "entry_points.txt"
    write(points.with_name("METADATA"), "Metadata-Version: 2.1\nName: gray-plugin\nVersion: 1.5\n")
    write(points, "[robbench.plugins]\ngray = gray_plugin\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(__import__("sys").modules, "gray_plugin", raising=False)
    plan = tiny.make(tmp_path, conditions=["gray@ref"])
    (job,) = plan.jobs
    portion = portion_to_attack(plan, job, job.cells[0])
    assert portion.open().jobs[0].key == plan.jobs[0].key

    if edit == "edited":
        write(tmp_path / "site" / "gray_plugin.py", GRAY.replace("1.0", "0.5"))
    else:
        (tmp_path / "site" / "gray_plugin.py").unlink()
        monkeypatch.delitem(sys.modules, "gray_plugin")
    with pytest.raises(StoreError, match="a plugin or data set was changed while the run was going on; run again"):
        portion.open()


@pytest.mark.usefixtures("one_core", "no_figures")
def test_workers_load_the_plugins_of_a_run(tmp_path: Path) -> None:
    plugin = write(tmp_path / "gray.py", GRAY)
    text = tiny.grid_text(["", "objective = 'angular'"], ["gray@ref"], recipe="epochs = 1")
    grid = write(tmp_path / "grid.toml", text)
    words = ["--grid", str(grid), "--out", str(tmp_path / "runs"), "--limit", "9", "--plugin", str(plugin)]
    assert main(["run", "--workers", "2", "--device", "cpu", *words]) == 0
    assert len(list((tmp_path / "runs" / "cells").glob("*/outcome.npz"))) == 2
