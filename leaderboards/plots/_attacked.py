"""Images before and after an attack, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from robbench.evaluation.verdicts import succeeded
from robbench.leaderboards.artifact_reader import Examples
from robbench.leaderboards.board import Row
from robbench.leaderboards.plots._scene import Scene, Sketch
from robbench.leaderboards.plots._style import ATTACKED, BLACK, WIDTH, in_unit, page, place
from robbench.leaderboards.plots._words import pct, short
from robbench.results.schema import ConditionSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes


COLUMNS = 5
"""Images beside one another at most."""


SCALES = (0.5, 1, 2, 3, 4, 6, 8, 10, 15, 20, 30, 50, 100)


@dataclass(frozen=True)
class Shot:
    """One attacked sample, with its predictions and their softmax scores."""

    label: int
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    clean: int
    final: int
    clean_score: float | None
    final_score: float | None


def shots_of(scene: Scene, row: Row, condition: ConditionSpec, succeeding: bool = True) -> dict[int, Shot]:
    """Samples by id, those alone where the condition succeeded unless said otherwise."""
    place = (row.label, condition.label, scene.seed(row))
    outcomes = scene.table.outcomes(row.label, condition.label)
    if outcomes is None or place not in scene.materials.examples:
        return {}
    kept = set(outcomes[0].ids[succeeded(outcomes[0])].tolist())
    found = scene.materials.examples[place]
    return {
        int(sample): _shot(found, position)
        for position, sample in enumerate(found.ids)
        if not succeeding or int(sample) in kept
    }


def _shot(found: Examples, position: int) -> Shot:
    clean, final = int(found.clean[position]), int(found.final[position])
    before, after = found.clean_scores, found.final_scores
    return Shot(
        int(found.labels[position]),
        in_unit(found.images[position]),
        found.attacked[position].astype(np.float64),
        clean,
        final,
        None if before is None else float(before[position, clean]),
        None if after is None else float(after[position, final]),
    )


def spread(shots: Mapping[int, Shot], count: int) -> list[int]:
    """A few samples, of as many classes as there are."""
    seen: dict[int, int] = {}
    order = {}
    for sample, shot in shots.items():
        seen[shot.label] = seen.get(shot.label, 0) + 1
        order[sample] = seen[shot.label]
    return sorted(sorted(shots, key=lambda sample: order[sample])[:count], key=lambda sample: shots[sample].label)


def before_after(
    scene: Scene, row: Row, condition: ConditionSpec, shots: Sequence[Shot], name: str, main: bool = False
) -> Sketch:
    """Images, what the attack adds to them, and the sum, with the predictions under them."""
    gap, words = 0.08, room(shots)
    side = min(1.25, (WIDTH - 0.85) / len(shots) - gap)
    margin = 0.85 + (WIDTH - 0.85 - len(shots) * (side + gap)) / 2
    scale = _scale(shots)
    made, axes = page(0.15 + 3 * side + 2 * words)
    tops = (0.05, 0.05 + side + words, 0.1 + 2 * side + words)
    for top, text in zip(tops, ("clean", f"change\n× {scale:g}", "attacked"), strict=True):
        axes.text(margin - 0.1, top + side / 2, text, ha="right", va="center")
    for column, shot in enumerate(shots):
        left = margin + column * (side + gap)
        place(axes, shot.before, left, tops[0], side)
        place(axes, 0.5 + scale * (shot.after - shot.before), left, tops[1], side)
        place(axes, shot.after, left, tops[2], side)
        write_prediction(scene, axes, left + side / 2, tops[0] + side, shot.label, shot.clean, shot.clean_score)
        write_prediction(scene, axes, left + side / 2, tops[2] + side, shot.label, shot.final, shot.final_score)
    told = _told(scene, shots)
    caption = (
        f"{told} {short(row.label)} under {short(condition.label)}: clean image, change (times {scale:g}, gray is "
        f"none), attacked image. Below: predicted class{scores(' and', shots)}."
    )
    title = f"Attacked images: {short(row.label)}"
    return Sketch(name, title, caption, f"Images before and after {short(condition.label)}. {told}", made, main)


def _scale(shots: Sequence[Shot]) -> float:
    """By how much changes can be enlarged without leaving [0, 1] around gray."""
    largest = max(float(np.abs(shot.after - shot.before).max()) for shot in shots)
    return max((scale for scale in SCALES if scale * largest <= 0.45), default=SCALES[0])


def write_prediction(
    scene: Scene, axes: Axes, center: float, top: float, label: int, predicted: int, score: float | None
) -> None:
    """Under an image, colored where it is wrong."""
    text = scene.class_name(predicted, 14) + ("" if score is None else f"\n{pct(score)}")
    color = BLACK if predicted == label else ATTACKED
    axes.text(center, top + 0.03, text, ha="center", va="top", color=color, fontsize=8.5, linespacing=1.0)


def scores(joined: str, shots: Sequence[Shot]) -> str:
    return f"{joined} its softmax score" if all(shot.final_score is not None for shot in shots) else ""


def room(shots: Sequence[Shot]) -> float:
    """The room for what is written under an image, in inches."""
    return 0.24 if all(shot.final_score is None for shot in shots) else 0.38


def _told(scene: Scene, shots: Sequence[Shot]) -> str:
    pairs = dict.fromkeys((scene.said(shot.label), scene.said(shot.final)) for shot in shots)
    return f"Left to right: {', '.join(f'{true} predicted as {wrong}' for true, wrong in pairs)}."


def is_noise(condition: ConditionSpec) -> bool:
    """Whether it is optimized noise, which has drawings of its own."""
    return [stage.name for stage in condition.stages] == ["noise-optimization"]
