"""Images before and after an attack: the hardest one, one of rising size, and optimized noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from robbench.core.registry import register_figure
from robbench.core.threat_model import format_eps
from robbench.evaluation.verdicts import succeeded
from robbench.leaderboards.aggregates import Estimate
from robbench.leaderboards.artifact_reader import Examples
from robbench.leaderboards.board import Row
from robbench.leaderboards.markdown import counted
from robbench.leaderboards.plots._rows import leading
from robbench.leaderboards.plots._scene import Figure, Scene, Sketch
from robbench.leaderboards.plots._style import ATTACKED, BLACK, WIDTH, page, place
from robbench.leaderboards.plots._words import pct, short
from robbench.results.schema import ConditionSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 5
"""Images beside one another at most."""
TARGETS = 6
"""Targets of noise at most."""
SAMPLES, SIZES = 4, 5
"""Images and sizes of eps at most."""
_SCALES = (0.5, 1, 2, 3, 4, 6, 8, 10, 15, 20, 30, 50, 100)


@dataclass(frozen=True)
class _Shot:
    """One attacked sample, with its predictions and their softmax scores."""

    label: int
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    clean: int
    final: int
    clean_score: float | None
    final_score: float | None


@register_figure("attacked-images")
@dataclass(frozen=True)
class AttackedImages(Figure):
    """Images before and after the hardest attack on the best and the best undefended row."""

    section = "images"
    position = 10
    photograph = True

    def draw(self, scene: Scene) -> Iterator[Sketch]:
        """A drawing for each row; that with the most images is a main one."""
        shown = [(row, *found) for row in leading(scene.board.rows) if (found := _hardest(scene, row))]
        sizes = [len(shots) for _, _, shots in shown]
        for number, (row, condition, shots) in enumerate(shown):
            main = number == sizes.index(max(sizes))
            yield _before_after(scene, row, condition, shots, f"attacked-{number + 1}", main)


def _hardest(scene: Scene, row: Row) -> tuple[ConditionSpec, list[_Shot]] | None:
    """The attack of the ranking threat model that leaves least and of which there are pictures; without one, any."""
    board = scene.board
    ranking = board.threats[board.ranked_by] if board.ranked_by else ()
    attacks = [condition for condition in board.conditions if condition.kind in ("attack", "chain")]
    attacks = [condition for condition in attacks if not _is_noise(condition)]

    def order(condition: ConditionSpec) -> tuple[bool, float]:
        rates = row.cells[condition.label].rates
        return condition.label not in ranking, rates.balanced.value if rates else 1.0

    for condition in sorted(attacks, key=order):
        found = _shots_of(scene, row, condition)
        if found:
            return condition, [found[sample] for sample in _spread(found, COLUMNS)]
    return None


@register_figure("attacked-over-eps")
@dataclass(frozen=True)
class AttackedOverEps(Figure):
    """Images under one attack of rising size: FGSM, or the first that was run at several eps."""

    section = "strength"
    position = 30
    photograph = True

    def draw(self, scene: Scene) -> Iterator[Sketch]:
        """Of the best undefended row, or of the best one."""
        groups: dict[str, list[ConditionSpec]] = {}
        for condition in scene.board.conditions:
            if condition.kind == "attack" and condition.target is None and condition.stages[0].eps:
                stage = condition.stages[0]
                groups.setdefault(f"{stage.label} {stage.norm}", []).append(condition)
        several = [group for group in groups.values() if len(group) > 1]
        several.sort(key=lambda group: group[0].stages[0].name != "fgsm")
        reference = [row for row in reversed(leading(scene.board.rows))]
        for group in several:
            for row in reference:
                by_size = {spec.stages[0].eps or 0.0: _shots_of(scene, row, spec, False) for spec in group}
                by_size = {eps: by_size[eps] for eps in sorted(by_size) if by_size[eps]}
                if len(by_size) > 1:
                    sizes = [list(by_size)[place] for place in _evenly(len(by_size), SIZES)]
                    yield from _draw_over_eps(scene, row, group[0], {eps: by_size[eps] for eps in sizes})
                    return


def _draw_over_eps(
    scene: Scene, row: Row, condition: ConditionSpec, by_size: Mapping[float, Mapping[int, _Shot]]
) -> Iterator[Sketch]:
    shared = set.intersection(*(set(found) for found in by_size.values()))
    sizes = by_size.values()
    wrong = {sample: sum(found[sample].final != found[sample].label for found in sizes) for sample in sorted(shared)}
    ranked = sorted((sample for sample in wrong if wrong[sample]), key=lambda sample: -wrong[sample])
    picked = [ranked[place] for place in _evenly(len(ranked), SAMPLES)]
    if not picked:
        return
    shots = [shot for found in by_size.values() for shot in found.values()]
    head, gap, words = 0.3, 0.1, _room(shots)
    side = min(1.25, WIDTH / (len(by_size) + 1) - gap)
    margin = (WIDTH - (len(by_size) + 1) * (side + gap)) / 2
    made, axes = page(head + len(picked) * (side + words) + 0.05)
    norm = condition.stages[0].norm.capitalize()
    for column, text in enumerate(["clean", *(f"{norm} {format_eps(eps)}" for eps in by_size)]):
        axes.text(margin + column * (side + gap) + side / 2, head - 0.06, text, ha="center", va="bottom")
    for line, sample in enumerate(picked):
        top = head + line * (side + words)
        shot = next(iter(by_size.values()))[sample]
        place(axes, shot.before, margin, top, side)
        _write_prediction(scene, axes, margin + side / 2, top + side, shot.label, shot.clean, shot.clean_score)
        for column, found in enumerate(by_size.values(), 1):
            left, shot = margin + column * (side + gap), found[sample]
            place(axes, shot.after, left, top, side)
            _write_prediction(scene, axes, left + side / 2, top + side, shot.label, shot.final, shot.final_score)
    fooled = [
        f"{sum(found[sample].final != found[sample].label for sample in picked)} at {format_eps(eps)}"
        for eps, found in by_size.items()
    ]
    name = condition.stages[0].label
    told = f"Wrong predictions among {counted(len(picked), 'image')}: {', '.join(fooled)}."
    caption = (
        f"{told} {short(row.label)} under {short(name)} of rising size, predicted class below (colored where "
        f"wrong){_scores(' with', shots)}. Images that no size fools are left out."
    )
    title = f"Attacked images over eps: {short(name)}"
    yield Sketch("attacked-over-eps", title, caption, f"Rows of images. {told}", made)


def _evenly(length: int, count: int) -> list[int]:
    """Places of at most ``count`` of ``length`` things, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, length - 1, min(length, count))}) if length else []


@register_figure("noise-images")
@dataclass(frozen=True)
class NoiseImages(Figure):
    """Images with optimized noise, a drawing for each target."""

    section = "images"
    position = 30
    photograph = True

    def draw(self, scene: Scene) -> Iterator[Sketch]:
        """Of the settings that reach a target most often, the one with the least noise."""
        by_target: dict[str, list[ConditionSpec]] = {}
        for condition in scene.board.conditions:
            if _is_noise(condition) and condition.target:
                by_target.setdefault(condition.target, []).append(condition)
        for number, specs in enumerate(list(by_target.values())[:TARGETS], 1):
            # Noise may have been asked of other rows than those that lead.
            for row in (*leading(scene.board.rows), *scene.board.rows):
                order = sorted(specs, key=lambda spec: _reach(row.cells[spec.label].details or {}))
                found = next(((spec, shots) for spec in order if (shots := _shots_of(scene, row, spec))), None)
                if found:
                    spec, shots = found
                    chosen = [shots[sample] for sample in _spread(shots, COLUMNS)]
                    yield _before_after(scene, row, spec, chosen, f"noise-images-{number}")
                    break


def _reach(details: Mapping[str, Estimate]) -> tuple[float, float]:
    """Smaller for noise that reaches its target more often and, among equals, is less."""
    success, size = details.get("targeted_success"), details.get("l1_median_success")
    return -(success.value if success else 0.0), size.value if size else 0.0


def _shots_of(scene: Scene, row: Row, condition: ConditionSpec, succeeding: bool = True) -> dict[int, _Shot]:
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


def _shot(found: Examples, position: int) -> _Shot:
    clean, final = int(found.clean[position]), int(found.final[position])
    before, after = found.clean_scores, found.final_scores
    return _Shot(
        int(found.labels[position]),
        found.images[position] / 255,
        found.attacked[position].astype(np.float64),
        clean,
        final,
        None if before is None else float(before[position, clean]),
        None if after is None else float(after[position, final]),
    )


def _spread(shots: Mapping[int, _Shot], count: int) -> list[int]:
    """A few samples, of as many classes as there are."""
    seen: dict[int, int] = {}
    order = {}
    for sample, shot in shots.items():
        seen[shot.label] = seen.get(shot.label, 0) + 1
        order[sample] = seen[shot.label]
    return sorted(sorted(shots, key=lambda sample: order[sample])[:count], key=lambda sample: shots[sample].label)


def _before_after(
    scene: Scene, row: Row, condition: ConditionSpec, shots: Sequence[_Shot], name: str, main: bool = False
) -> Sketch:
    """Images, what the attack adds to them, and the sum, with the predictions under them."""
    gap, words = 0.08, _room(shots)
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
        _write_prediction(scene, axes, left + side / 2, tops[0] + side, shot.label, shot.clean, shot.clean_score)
        _write_prediction(scene, axes, left + side / 2, tops[2] + side, shot.label, shot.final, shot.final_score)
    told = _told(scene, shots)
    caption = (
        f"{told} {short(row.label)} under {short(condition.label)}: clean image, change (times {scale:g}, gray is "
        f"none), attacked image. Below: predicted class{_scores(' and', shots)}."
    )
    title = f"Attacked images: {short(row.label)}"
    return Sketch(name, title, caption, f"Images before and after {short(condition.label)}. {told}", made, main)


def _scale(shots: Sequence[_Shot]) -> float:
    """By how much changes can be enlarged without leaving [0, 1] around gray."""
    largest = max(float(np.abs(shot.after - shot.before).max()) for shot in shots)
    return max((scale for scale in _SCALES if scale * largest <= 0.45), default=_SCALES[0])


def _write_prediction(
    scene: Scene, axes: Axes, center: float, top: float, label: int, predicted: int, score: float | None
) -> None:
    """Under an image, colored where it is wrong."""
    text = scene.class_name(predicted, 14) + ("" if score is None else f"\n{pct(score)}")
    color = BLACK if predicted == label else ATTACKED
    axes.text(center, top + 0.03, text, ha="center", va="top", color=color, fontsize=8.5, linespacing=1.0)


def _scores(joined: str, shots: Sequence[_Shot]) -> str:
    return f"{joined} its softmax score" if all(shot.final_score is not None for shot in shots) else ""


def _room(shots: Sequence[_Shot]) -> float:
    """The room for what is written under an image, in inches."""
    return 0.24 if all(shot.final_score is None for shot in shots) else 0.38


def _told(scene: Scene, shots: Sequence[_Shot]) -> str:
    pairs = dict.fromkeys((scene.said(shot.label), scene.said(shot.final)) for shot in shots)
    return f"Left to right: {', '.join(f'{true} predicted as {wrong}' for true, wrong in pairs)}."


def _is_noise(condition: ConditionSpec) -> bool:
    """Whether it is optimized noise, which has drawings of its own."""
    return [stage.name for stage in condition.stages] == ["noise-optimization"]
