"""Damage to every kind of file that a finished store holds."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from maps import map_by_axes
from stores import files, flip

from robbench.cli.main import main
from robbench.planning.grid import Request
from robbench.planning.inputs import finished, read_request
from robbench.results.store import Store

MODELS = ("objective = 'angular'", "defense = 'fgm'")
CONDITIONS = ("clean", "fgsm@ref")
EMBEDDED = "{ chain = 'rotation', embed = 20 }"

KINDS = {
    "weights": "models/*/weights.safetensors",
    "history": "models/*/history.csv",
    "model": "models/*/model.json",
    "training embeddings": "models/*/embeddings.npz",
    "record": "cells/*/record.json",
    "outcome": "cells/*/outcome.npz",
    "examples": "cells/*/examples.npz",
    "embeddings": "cells/*/embeddings.npz",
    "images": "data/*/images.npy",
    "labels": "data/*/labels.npy",
    "test marks": "data/*/is_test.npy",
    "meta": "data/*/meta.json",
    "exhibit": "exhibits/*.npz",
    "note of a board": "boards/*.json",
    "note of the request": "requests/*.json",
    "hashes of boards": "leaderboards.json",
    "README": "leaderboards/*/README.md",
    "page": "leaderboards/*/index.html",
    "table": "leaderboards/*/leaderboard.json",
    "figure": "leaderboards/*/figures/*.png",
    "list of boards": "leaderboards/index.html",
}
RENEWED = {
    "note of a board",
    "note of the request",
    "hashes of boards",
    "README",
    "page",
    "table",
    "figure",
    "list of boards",
}
"""What every run writes that is not over at once, damaged or not."""


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("somebody's")


def another(path: Path) -> None:
    """A file of the same kind from elsewhere; where there is none, a whole file of another kind."""
    others = [other for other in path.parent.parent.glob(f"*/{path.name}") if other != path]
    data = others[0].read_bytes() if others else b'{"cells": [], "models": [], "grid": "x", "boards": {}}\n'
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped byte": flip,
    "cut off": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "directory": directory,
    "of another key": another,
    # Not zeros, which some files end in.
    "other bytes at the end": lambda path: path.write_bytes(
        path.read_bytes()[:-40] + bytes(byte ^ 0xFF for byte in path.read_bytes()[-40:])
    ),
}


def words(folder: Path) -> list[str]:
    out = str(folder / "runs")
    return ["run", "--grid", str(folder / "tiny.toml"), "--out", out, "--limit", "20", "--workers", "1", "--device=cpu"]


def run(folder: Path) -> int:
    try:
        return main(words(folder))
    finally:
        torch.set_num_threads(1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    text = tiny.grid_text(MODELS, CONDITIONS, recipe="epochs = 1")
    text = text.replace(str(list(CONDITIONS)), f"['clean', 'fgsm@ref', {EMBEDDED}]")
    (folder / "tiny.toml").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("robbench.execution.local.cores", lambda: 1)
        map_by_axes(patch)
        assert run(folder) == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, one_core: None, no_umap: None) -> Path:
    for name in ("tiny.toml", "runs"):
        copy = shutil.copytree if (made / name).is_dir() else shutil.copy
        copy(made / name, tmp_path / name)
    (tmp_path / "tiny.toml").write_text((made / "tiny.toml").read_text())
    return tmp_path


def is_over(folder: Path) -> bool:
    request = Request(grid=str(folder / "tiny.toml"), out=folder / "runs", limit=20, device="cpu")
    return finished(read_request(request), Store(folder / "runs")) is not None


def lasting(folder: Path) -> dict[str, bytes]:
    """The files that must not depend on what was damaged: all but those with timings, hashes and times of files."""
    found = files(folder / "runs")
    del found["index.json"]
    varying = ("record.json", "model.json", "timings.csv", "leaderboards.json")
    return {name: data for name, data in found.items() if not name.endswith(varying) and "/." not in f"/{name}"}


def one_of(folder: Path, kind: str, last: bool = False) -> Path:
    found = sorted((folder / "runs").glob(KINDS[kind]))
    assert found, f"the store has no {kind}"
    return found[-1 if last else len(found) // 2]


@pytest.mark.parametrize("damage", DAMAGE)
def test_no_damage_counts_as_done(folder: Path, damage: str) -> None:
    assert is_over(folder)
    for kind in KINDS:
        path = one_of(folder, kind)
        keep = path.read_bytes()
        DAMAGE[damage](path)
        if not path.is_file() or path.read_bytes() != keep:
            assert not is_over(folder), f"{damage}: {path}"
        if path.is_dir():
            shutil.rmtree(path)
        path.write_bytes(keep)
    assert is_over(folder)


def heal(folder: Path, made: Path, damage: str, kinds: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Damage a file of each kind, and let a run make them again."""
    # The last, so that it is not that of another kind's cell.
    paths = {kind: one_of(folder, kind, last=kind == "examples") for kind in kinds}
    for path in paths.values():
        DAMAGE[damage](path)
    capsys.readouterr()
    assert run(folder) == 0
    shown = capsys.readouterr()
    for kind, path in paths.items():
        place = path.parent if "data" in path.parts else path
        if kind not in RENEWED:
            assert f"{place}" in shown.err, f"{kind} is not named"
    assert lasting(folder) == lasting(made)
    assert is_over(folder)
    assert run(folder) == 0
    assert "Nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "kinds"),
    [
        ("flipped byte", ["weights", "record", "examples", "images", "exhibit", "note of a board", "page"]),
        pytest.param(
            "directory",
            ["training embeddings", "outcome", "labels", "note of the request", "hashes of boards", "table"],
            marks=pytest.mark.end_to_end,
        ),
        pytest.param(
            "of another key",
            ["history", "embeddings", "meta", "README", "figure", "list of boards"],
            marks=pytest.mark.end_to_end,
        ),
    ],
)
def test_much_damage_at_once_is_named_and_made_again(
    folder: Path, made: Path, damage: str, kinds: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    # Of a damaged entry, the first file that shows it is named.
    heal(folder, made, damage, kinds, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_every_damage_is_named_and_made_again(
    folder: Path, made: Path, damage: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    heal(folder, made, damage, [kind], capsys)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
@pytest.mark.parametrize("kind", ["weights", "record", "outcome", "images"])
def test_a_file_that_must_not_be_read_is_made_again(
    folder: Path, made: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    one_of(folder, kind).chmod(0)
    assert not is_over(folder)
    assert run(folder) == 0
    assert "Permission denied" in capsys.readouterr().err
    assert lasting(folder) == lasting(made)


@pytest.mark.parametrize("kind", ["record", "outcome", "examples", "exhibit", "history", "note of a board"])
def test_reports_name_the_damaged_file_and_the_remedy(
    folder: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = one_of(folder, kind)
    if kind == "examples":  # figures show attacked images of the best row
        places = sorted((folder / "runs").glob(KINDS[kind]))
        records = [(place.parent / "record.json").read_text(encoding="utf-8") for place in places]
        path = next(place for place, text in zip(places, records, strict=True) if "fgsm" in text and "angular" in text)
    flip(path)
    assert main(["report", "--out", str(folder / "runs")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    (board,) = Store(folder / "runs").board_names()
    assert line.startswith(f"robbench: {board}: {path} is damaged: ")
    assert line.endswith("robbench run with its grid makes it again")


def test_a_plan_counts_what_is_damaged_as_left(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(one_of(folder, "outcome"))
    before = files(folder / "runs")
    assert main(["plan", "--cells", *words(folder)[1:5], "--limit", "20"]) == 0
    shown = capsys.readouterr()
    assert "6 cells, 5 done" in shown.out
    assert "its cell is to be done again" in shown.err
    assert files(folder / "runs") == before


def test_weights_that_are_gone_with_their_description_are_not_missed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(folder / "runs" / "models")
    shutil.rmtree(folder / "runs" / "data")
    assert run(folder) == 0
    assert "Nothing to do" in capsys.readouterr().out


def flips(folder: Path, made: Path, count: int, seed: int, capsys: pytest.CaptureFixture[str]) -> int:
    """Flip random bytes of random files, one at a time, each followed by a run; returns how many were made again."""
    draw, again = random.Random(seed), 0
    for _ in range(count):
        # The index is made again without a word, as what nothing rests on.
        names = [path for path in sorted((folder / "runs").rglob("*")) if path.name != "index.json"]
        path = draw.choice([path for path in names if path.is_file() and path.stat().st_size])
        data = bytearray(path.read_bytes())
        data[draw.randrange(len(data))] ^= draw.randrange(1, 256)
        path.write_bytes(data)
        capsys.readouterr()
        assert run(folder) == 0
        over = "Nothing to do" in capsys.readouterr().out
        assert over == (path.read_bytes() == data), f"{path}: either it is harmless, or it is made again"
        again += not over
        assert lasting(folder) == lasting(made), path
    return again


@pytest.mark.slow
def test_random_flips_are_found_or_harmless(folder: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert flips(folder, made, 3, 0, capsys) >= 2


@pytest.mark.slow
def test_twenty_random_flips_are_found_or_harmless(
    folder: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flips(folder, made, 20, 1, capsys) >= 15
