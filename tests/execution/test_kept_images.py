from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from board_cells import A_MODEL
from stores import fill, row

import robbench
from robbench.cli.main import main
from robbench.core.errors import StoreError
from robbench.execution.boards import note_boards
from robbench.execution.jobs import carry_out
from robbench.execution.runner import remaining
from robbench.planning.grid import Request
from robbench.planning.planner import make_plan
from robbench.results.store import EXAMPLES, IMAGES, Store
from robbench.training.model_loading import load_model

CONDITIONS = ("clean", "perturbation", "pgd[steps=2]@ref", "fgsm@ref->all", "perturbation+fgsm@ref")
LIMIT = 30

FICKLE = '''
from dataclasses import dataclass
from pathlib import Path

from robbench import Attack, register_attack


@register_attack("fickle", norms=("linf",))
@dataclass(frozen=True)
class Fickle(Attack):
    """Works until somebody puts a file beside it."""

    def perturb(self, model, images, labels, threat, rng):
        if Path(__file__).with_name("stop").exists():
            raise RuntimeError("stopped")
        return (images + threat.eps).clamp(0, 1)
'''


def grid(folder: Path, *conditions: str) -> Path:
    path = folder / "tiny.toml"
    path.write_text(tiny.grid_text(conditions=conditions or CONDITIONS, recipe="epochs = 1"), encoding="utf-8")
    return path


def words(path: Path, *more: str) -> list[str]:
    out = str(path.parent / "runs")
    return ["run", "--grid", str(path), "--out", out, "--limit", str(LIMIT), "--workers", "1", "--device", "cpu", *more]


def keys(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "cells").iterdir() if path.is_dir())


def fulfil(request: Request) -> None:
    """Do in this process what is left to do."""
    plan, store = make_plan(request), Store(request.out)
    note_boards(plan, store)
    for job, cells in remaining(plan, store):
        carry_out(plan, job, cells, lambda progress: None)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that was filled without images, and then asked to keep them."""
    folder = tmp_path_factory.mktemp("kept")
    request = Request(grid=str(grid(folder)), out=folder / "runs", limit=LIMIT, device="cpu")
    fulfil(request)
    before = keys(folder / "runs"), outcomes(folder / "runs")
    assert not list((folder / "runs").rglob(IMAGES))
    fulfil(replace(request, keep_images=True))
    assert (keys(folder / "runs"), outcomes(folder / "runs")) == before
    return folder


def outcomes(out: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in out.glob("cells/*/outcome.npz")}


def test_all_attacked_images_are_kept_as_they_were_judged(kept: Path) -> None:
    report = robbench.load(kept / "runs")
    plan = make_plan(Request(grid=str(kept / "tiny.toml"), out=kept / "runs", limit=LIMIT, device="cpu"))
    (job,) = plan.jobs
    model = load_model(job, Store(kept / "runs"), "cpu")
    for condition in CONDITIONS[1:]:
        label = next(
            cell.condition.label for cell in job.cells if cell.condition.label.startswith(condition.split("@")[0])
        )
        images, labels, ids = report.adversarial_examples(label, complete=True)
        outcome = report.outcome(label)
        tried = np.isin(outcome.ids, ids)
        assert images.dtype == np.float32
        assert np.array_equal(ids, outcome.ids[tried])
        assert np.array_equal(labels, outcome.labels[tried])
        with torch.no_grad():
            assert np.array_equal(model.predict(torch.from_numpy(images)).numpy(), outcome.final[tried])
        assert len(ids) == (outcome.attempted | outcome.robust).sum()


def test_clean_images_are_not_kept(kept: Path) -> None:
    assert len(list((kept / "runs").rglob(IMAGES))) == len(CONDITIONS) - 1
    with pytest.raises(robbench.RequestError, match="clean images are those of the data set"):
        robbench.load(kept / "runs").adversarial_examples("clean")


def damage(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9] + b"123456789")


@pytest.mark.slow
def test_there_is_nothing_to_do_unless_images_are_gone_or_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, path = tmp_path, grid(tmp_path)
    assert main(words(path, "--keep-images")) == 0
    capsys.readouterr()
    ways: tuple[Callable[[Path], object], ...] = (Path.unlink, damage)
    for spoil in ways:
        assert main(words(path, "--keep-images")) == 0
        assert "Nothing to do" in capsys.readouterr().out
        spoiled = next((kept / "runs").rglob(IMAGES))
        content = spoiled.read_bytes()
        spoil(spoiled)
        assert main(words(path)) == 0
        assert re.search("Nothing to do|, 0 to do", capsys.readouterr().out)
        assert main(words(path, "--keep-images")) == 0
        assert "1 to do" in capsys.readouterr().out
        assert spoiled.read_bytes() == content


def test_a_grid_asks_for_the_images_of_single_conditions(tmp_path: Path) -> None:
    path = grid(tmp_path, "clean", "fgsm@ref")
    request = Request(grid=str(path), out=tmp_path / "runs", device="cpu")
    (plain,) = make_plan(request).jobs
    path.write_text(path.read_text().replace("'fgsm@ref'", "{ chain = 'fgsm@ref', keep_images = true }"))
    (asked,) = make_plan(request).jobs
    (every,) = make_plan(replace(request, keep_images=True)).jobs
    for job, keeps in ((plain, ()), (asked, (IMAGES,)), (every, (IMAGES,))):
        assert [cell.key for cell in job.cells] == [cell.key for cell in plain.cells]
        assert [cell.condition.keeps for cell in job.cells] == [(), keeps]


def test_without_a_request_the_first_sixteen_are_there(tmp_path: Path) -> None:
    store = fill(tmp_path / "runs", row(A_MODEL))
    report = robbench.load(store.root)
    record, outcome = report.cells[-1]
    label = record.spec.condition.label
    with pytest.raises(robbench.RequestError, match="not kept; run again with keep_images"):
        report.adversarial_examples(label)
    content, few = io.BytesIO(), np.arange(16)
    images = np.zeros((16, 1, 2, 2), np.float32)
    np.savez(content, ids=few, labels=few % 2, images=images, attacked=images, clean=few % 2, final=few % 2)
    store.write_cell(record, outcome, {EXAMPLES: content.getvalue()})
    assert len(report.adversarial_examples(label).ids) == 16
    with pytest.raises(robbench.RequestError, match="not all kept; run again with keep_images"):
        report.adversarial_examples(label, complete=True)
    assert store.finished(record.key)
    assert not store.finished(record.key, (IMAGES,))
    with pytest.raises(robbench.RequestError, match="a published board holds no images"):
        replace(report, store=None).adversarial_examples(label)


@pytest.mark.slow
def test_a_finished_record_outlives_images_that_cannot_be_had(
    tmp_path: Path,
) -> None:
    (tmp_path / "fickle.py").write_text(FICKLE)
    path = grid(tmp_path, "clean", "fickle@ref")
    plugin = ("--plugin", str(tmp_path / "fickle.py"))
    assert main(words(path, *plugin)) == 0
    records = {file: file.read_bytes() for file in (tmp_path / "runs").rglob("record.json")}
    (tmp_path / "stop").touch()
    main(words(path, *plugin, "--keep-images"))
    assert {file: file.read_bytes() for file in (tmp_path / "runs").rglob("record.json")} == records
    (tmp_path / "stop").unlink()
    assert main(words(path, *plugin, "--keep-images")) == 0
    assert len(list((tmp_path / "runs").rglob(IMAGES))) == 1
    statuses = {json.loads(file.read_text())["status"] for file in (tmp_path / "runs").rglob("record.json")}
    assert statuses == {"done"}


def test_images_of_an_earlier_outcome_do_not_stay(kept: Path) -> None:
    report = robbench.load(kept / "runs")
    store = report.store
    assert store is not None
    record, outcome = next(cell for cell in report.cells if cell[0].spec.condition.kind == "attack")
    images = store.cell_dir(record.key) / IMAGES
    content = store.read_archive(images)
    assert content is not None
    store.write_cell(record, outcome)
    assert not images.exists()
    store.write_cell(record, outcome, {IMAGES: content})
    store.write_cell(record, None)
    assert images.exists()


def test_damaged_images_are_never_handed_out(kept: Path) -> None:
    report = robbench.load(kept / "runs")
    label = next(label for label in report.conditions if label.startswith("pgd"))
    images = report.adversarial_examples(label).images
    record = next(record for record, _ in report.cells if record.spec.condition.label == label)
    file = kept / "runs" / "cells" / record.key / IMAGES
    content = file.read_bytes()
    place = content.index(images[3].tobytes()[:64])
    file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(StoreError, match="is damaged"):
        report.adversarial_examples(label)
    file.write_bytes(content)
