"""Rules for figures, which are put to a small board with everything that there can be to draw."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from robbench.conformance.components import nothing_left_behind
from robbench.conformance.rules import NotApplicable, Rule, demand
from robbench.leaderboards.artifact_reader import Embeddings, Examples, ExhibitedImages, History, Materials
from robbench.leaderboards.board_making import board_data
from robbench.leaderboards.figure_manifest import FILE_STEM
from robbench.leaderboards.plots._scene import Figure, Scene, Sketch
from robbench.leaderboards.plots._style import Fonts, png, style
from robbench.leaderboards.table import Table
from robbench.results.schema import (
    CellResult,
    CellSpec,
    ConditionSpec,
    DatasetSpec,
    ModelSpec,
    Outcome,
    PartSpec,
    Record,
    StageSpec,
    Training,
    digest,
)

NAMES = ("car", "cat", "cow")
_LABELS = np.arange(24) % len(NAMES)
_SIZES = (0.1, 0.2)


# --- a small board


def _part(name: str) -> PartSpec:
    return PartSpec(name=name, label=name, version=1, parameters={})


def _dataset() -> DatasetSpec:
    return DatasetSpec(
        **_part("toys").model_dump(),
        fingerprint="0" * 64,
        class_names=NAMES,
        counts={"train": (90, 6, 3), "test": (8, 8, 8)},
        duplicates=0,
        crossing=0,
        eps={"linf": _SIZES},
        reference={"linf": _SIZES[0]},
    )


def _model(label: str, defense: str, lr: float) -> ModelSpec:
    return ModelSpec(
        label=label,
        architecture=_part("cnn"),
        objective=_part("ce"),
        balancer=_part("none"),
        defenses=(_part(defense),),
        recipe={"epochs": 3, "lr": lr},
    )


def _attack(name: str, norm: str, eps: float | None, target: str | None = None, c: float = 1.0) -> ConditionSpec:
    stage = StageSpec(
        **_part(name).model_dump(exclude={"parameters"}),
        parameters={"c": c, "start": "zero"},
        norm=norm,
        eps=eps,
        white_box=True,
        gradient_steps=20,
        bounded=eps is not None,
        global_state=False,
    )
    label = name + (f"@{eps}" if eps else f"[c={c}]") + (f"->{target}" if target else "")
    return ConditionSpec(label=label, kind="attack", stages=(stage,), target=target)


_CONDITIONS = (
    ConditionSpec(label="clean", kind="clean"),
    *(_attack("fgsm", "linf", eps) for eps in _SIZES),
    *(_attack(name, "l2", None) for name in ("fmn", "ddn")),
    *(_attack("noise-optimization", "l1", None, "cat", c) for c in (0.01, 0.1)),
)
_MODELS = (_model("defended", "pgd", 0.1), _model("plain", "none", 0.1), _model("plain at 0.01", "none", 0.01))


def _outcome(condition: ConditionSpec, broken: int) -> Outcome:
    """The first ``broken`` samples become the next class or the target, and every other one is right again rounded."""
    count = len(_LABELS)
    target = np.full(count, NAMES.index(condition.target)) if condition.target else (_LABELS + 1) % len(NAMES)
    hit = (np.arange(count) < broken) & (target != _LABELS) & (condition.kind != "clean")
    size = 0.0 if condition.kind == "clean" else condition.stages[0].eps or 0.5
    final = np.where(hit, target, _LABELS)
    none = np.zeros((count, 0), dtype=np.int64)
    return Outcome.of(
        len(NAMES),
        condition.kind,
        ids=np.arange(count),
        labels=_LABELS,
        clean=_LABELS,
        final=final,
        rounded=np.where(np.cumsum(hit) % 2 == 0, _LABELS, final),
        attempted=np.full(count, condition.kind != "clean") & (target != _LABELS),
        targets=target if condition.target else np.full(count, -1),
        draws=none,
        every_target=none,
        **{norm: np.full(count, size) for norm in ("linf", "l2", "l1", "l0", "forwards", "backwards")},
        scored=final,
        flat=np.zeros(count, dtype=np.bool_),
    )


def small_board() -> tuple[list[CellResult], Materials]:
    """The cells of a board of three rows, and what else there is to draw from."""
    images = np.random.default_rng(0).integers(0, 256, (len(_LABELS), 3, 8, 8)).astype(np.uint8)
    cells: list[CellResult] = []
    examples = {}
    test = {}
    points = np.random.default_rng(1).normal(size=(len(_LABELS), 4)).astype(np.float32) + 9 * _LABELS[:, None]
    embedded = Embeddings(np.arange(len(_LABELS)), _LABELS, points.astype(np.float32))
    for place, model in enumerate(_MODELS):
        passes = 100.0 * (3 if place == 0 else 1)
        fields = {name: 1 for name in Training.model_fields}
        training = Training.model_validate(fields | {"forwards": passes, "backwards": passes})
        for number, condition in enumerate(_CONDITIONS):
            spec = CellSpec(
                dataset=_dataset(),
                model=model,
                model_key=digest(model.label),
                condition=condition,
                seed=0,
                precision="float32",
                device="cpu",
                protocol=1,
            )
            outcome = _outcome(condition, 6 + 6 * place + 2 * number)
            key = digest([model.label, condition.label])
            cells.append((Record(key=key, status="done", spec=spec, training=training), outcome))
            where = model.label, condition.label, 0
            test[where] = embedded
            scores = np.eye(len(NAMES), dtype=np.float32)
            attacked = (images / 255).astype(np.float32)
            examples[where] = Examples(
                outcome.ids, _LABELS, images, attacked, _LABELS, outcome.final, scores[_LABELS], scores[outcome.final]
            )
    history = History(np.arange(1, 4), np.array([2.0, 1.0, 0.5]), np.array([2.0, 1.5, 1.0]), *np.full((2, 3), 0.75))
    places = [(model.label, 0) for model in _MODELS]
    return cells, Materials(
        ExhibitedImages(images, _LABELS),
        dict.fromkeys(places, history),
        examples,
        dict.fromkeys(places, embedded),
        test,
    )


def _scene() -> Scene:
    cells, materials = small_board()
    return Scene(board_data("A small board", "small", cells), Table.of(cells), materials, Fonts.installed())


# --- rules


def _drawn(figure: Figure) -> list[Sketch]:
    scene = _scene()
    with style(scene.fonts):
        sketches = list(figure.draw(scene))
    if not sketches:
        raise NotApplicable("it has nothing to show of the small board")
    return sketches


def _says_what_it_shows(figure: Figure) -> str:
    names = []
    for sketch in _drawn(figure):
        demand(isinstance(sketch, Sketch), f"draw gives a {type(sketch).__name__}, not a Sketch")
        demand(bool(re.fullmatch(FILE_STEM, sketch.name)), f"{sketch.name!r} cannot be the name of a file")
        demand(sketch.name not in names, f"two drawings are named {sketch.name}")
        for name in ("title", "caption", "alt"):
            demand(bool(str(getattr(sketch, name)).strip()), f"{sketch.name} has no {name}")
        names.append(sketch.name)
    return ", ".join(names)


def _same_again(figure: Figure) -> str:
    found = []
    for _ in range(2):
        scene = _scene()
        with style(scene.fonts):
            found.append([png(sketch.sheet) for sketch in figure.draw(scene)])
    if not found[0]:
        raise NotApplicable("it has nothing to show of the small board")
    demand(found[0] == found[1], "the same board gives other bytes the second time")
    return f"{sum(map(len, found[0])) / 1000:.0f} kB"


def _leaves_nothing(figure: Figure) -> str:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    with _elsewhere() as folder, nothing_left_behind():
        scene = _scene()
        list(figure.draw(scene))
        files = sorted(path.name for path in folder.iterdir())
    after = dict(mpl.rcParams)
    mpl.rcParams.update(before)
    demand(not files, f"it writes {', '.join(files)}; drawings are written by the board")
    changed = sorted(name for name in before if before[name] != after[name])
    demand(not changed, f"settings of matplotlib stay changed: {', '.join(changed)}")
    pyplot = sys.modules.get("matplotlib.pyplot")
    demand(pyplot is None or not pyplot.get_fignums(), "figures stay open in pyplot; make them without it")
    return ""


@contextmanager
def _elsewhere() -> Iterator[Path]:
    """Work in an empty directory."""
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        try:
            yield Path(name)
        finally:
            os.chdir(home)


FIGURES = (
    Rule("drawings say what they show", _says_what_it_shows),
    Rule("the same board gives the same bytes", _same_again),
    Rule("nothing is left behind", _leaves_nothing),
)
