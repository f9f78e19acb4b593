"""Plugin files, and runs of grids that use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from grid_files import tiny

from robbench.cli.main import main
from robbench.planning.grid import Request
from robbench.planning.planner import make_plan
from robbench.results.schema import Record
from robbench.results.store import Store

GRAY = '''
from dataclasses import dataclass
from robbench import Attack, register_attack

@register_attack("gray", norms=("linf",))
@dataclass(frozen=True)
class Gray(Attack):
    """Moves every pixel toward gray."""

    share: float = 1.0

    def perturb(self, model, images, labels, threat, rng):
        return images + (0.5 - images).clamp(-threat.eps, threat.eps) * self.share
'''
SHRINK = '''
from dataclasses import dataclass
from robbench import Defense, register_defense

@register_defense("shrink")
@dataclass(frozen=True)
class Shrink(Defense):
    """Trains on images of less contrast."""

    def training_loss(self, batch):
        return batch.loss(batch.images * 0.9)
'''
GRID = tiny(conditions=["clean", "fgsm@ref", "gray@ref"], models=[{}, {"defense": "shrink"}])


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def words(folder: Path, plugins: Sequence[Path]) -> list[str]:
    named = [word for plugin in plugins for word in ("--plugin", str(plugin))]
    return ["--grid", str(folder / "grid.toml"), "--out", str(folder / "runs"), "--limit", "20", *named]


def run(folder: Path, *plugins: Path) -> int:
    return main(["run", "--workers", "1", *words(folder, plugins)])


def cells(folder: Path, *plugins: Path) -> dict[tuple[str, str], Record]:
    """The records of the folder's grid, by model and condition."""
    plan = make_plan(Request(str(folder / "grid.toml"), folder / "runs", limit=20, plugins=plugins))
    records = (Store(folder / "runs").record(cell.key) for _, cell in plan.cells)
    return {(r.spec.model.label, r.spec.condition.label): r for r in records if r is not None}


def changed_files(folder: Path) -> Mapping[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in (folder / "runs" / "cells").glob("*/record.json")}


PLAIN, SHRUNK = "cross-entropy · no defense", "cross-entropy · shrink"
EVERYTHING = {(model, condition) for model in (PLAIN, SHRUNK) for condition in ("clean", "fgsm@0.1", "gray@0.1")}
