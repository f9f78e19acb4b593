"""Boards for tests of pages: their names are hostile, and they have some of everything."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from board_cells import CHAIN, CLEAN, FGSM, NOISE, PGD, PGD_2, ROTATION, Cell, cell, dataset, model, outcome, stage
from PIL import Image

from robbench.leaderboards import board_data
from robbench.leaderboards.board import Board
from robbench.leaderboards.figure_manifest import Picture
from robbench.leaderboards.html import page
from robbench.results.schema import BoardNote, ConditionSpec, Reference

IMAGE = "<img src=x onerror=alert(1)>"
SCRIPT = "</script><script>alert(2)</script>"
QUOTES = "\"><svg onload=alert(3)>' `${alert(4)}`"
TEMPLATE = "{{ 7 * 7 }} **bold** [x](javascript:alert(5)) <!-- &amp; \\"
HOSTILE = (IMAGE, SCRIPT, QUOTES, TEMPLATE)

ROWS = (*HOSTILE, *(f"plain {number}" for number in range(8)))
CLASSES = (IMAGE, QUOTES, "cat")
ODD = ConditionSpec(label=SCRIPT, kind="attack", stages=(stage(IMAGE, eps=0.1, steps=20, **{QUOTES: SCRIPT}),))
CHECK = ConditionSpec(label="pgd[steps=40]@0.1", kind="attack", stages=(stage("pgd", steps=40),), check=True)
CONDITIONS = (CLEAN, ROTATION, FGSM, PGD, PGD_2, ODD, NOISE, CHAIN, CHECK)


@functools.cache
def hostile_cells() -> list[Cell]:
    """Twelve rows, two seeds; the last row lacks a result, and the first has a flag, a caution and notes."""
    rng = np.random.default_rng(0)
    labels = np.arange(45) % 3
    data = dataset(CLASSES, train=(30, 20, 10), test=(15, 15, 15), label=QUOTES)
    cells = []
    for at, name in enumerate(ROWS):
        row = model(name, SCRIPT if at % 2 else None)
        row = row.model_copy(update={"recipe": {"lr": 0.1, QUOTES: IMAGE}})
        for seed in (0, 1):
            clean = np.where(rng.random(45) < 0.9, labels, (labels + 1) % 3)
            for place, condition in enumerate(CONDITIONS):
                if condition is CLEAN:
                    result = outcome("clean", labels, clean, k=3)
                else:
                    lost = rng.random(45) < 0.04 * place + 0.03 * at
                    result = outcome(condition.kind, labels, clean, np.where(lost, (labels + 2) % 3, clean), k=3)
                failed = at == len(ROWS) - 1 and condition is PGD
                made = cell(row, condition, SCRIPT if failed else result, seed=seed, data=data)
                if at == 0:
                    marks = {"flags": {"noise-wins": IMAGE}, "cautions": {"randomized": SCRIPT}, "notes": (QUOTES,)}
                    made = made[0].model_copy(update=marks), made[1]
                cells.append(made)
    return cells


def hostile_note() -> BoardNote:
    return BoardNote(
        grid=QUOTES,
        title=SCRIPT,
        about=f"{IMAGE}\n\n{TEMPLATE}",
        references=(Reference(row=ROWS[4], value=0.5, remark=SCRIPT), Reference(row=IMAGE, value=0.25)),
        differences=f"{SCRIPT}\n\n{TEMPLATE}",
    )


@functools.cache
def hostile_board() -> Board:
    note = hostile_note()
    return board_data(note.title, note.grid, hostile_cells())


def picture(folder: Path, name: str, drawing: str, pixels: int) -> Picture:
    """A figure with its two files."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    (folder / "figures" / f"{name}.svg").write_text(drawing, encoding="utf-8")
    noise = np.random.default_rng(0).integers(0, 255, (pixels, pixels, 3)).astype(np.uint8)
    Image.fromarray(noise).save(folder / "figures" / f"{name}.png")
    return Picture(name=name, section="strength", title=IMAGE, caption=SCRIPT, alt=QUOTES)


DRAWING = '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="20"><rect width="30" height="9"/>{}</svg>'


def hostile_page(folder: Path) -> str:
    """The page of that board, with a drawing and a photograph."""
    pictures = [
        picture(folder, "drawn", DRAWING.format(""), 200),
        picture(folder, "photo", DRAWING.format("<image width='2' height='2'/>"), 10),
    ]
    return page(hostile_board(), hostile_note(), hostile_cells(), folder, pictures)
