"""Images before and after attacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from robbench.core.threat_model import format_eps
from robbench.evaluation.verdicts import succeeded
from robbench.leaderboards.aggregates import Figure
from robbench.leaderboards.artifact_reader import Examples
from robbench.leaderboards.board import Row
from robbench.leaderboards.figure_manifest import Picture
from robbench.leaderboards.markdown import counted
from robbench.leaderboards.plots.scene import Scene, Sketch, leading
from robbench.leaderboards.plots.style import ATTACKED, BLACK, WIDTH, page, place
from robbench.leaderboards.plots.words import pct, short
from robbench.results.schema import ConditionSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS, SAMPLES, SIZES, TARGETS = 5, 4, 5, 6
"""Images beside one another, samples over eps, sizes of eps, and targets of noise at most."""
_SCALES = (0.5, 1, 2, 3, 4, 6, 8, 10, 15, 20, 30, 50, 100)


@dataclass(frozen=True)
class _Shot:
    """One attacked sample."""

    label: int
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    clean: int
    final: int
    clean_score: float | None
    final_score: float | None


def examples(scene: Scene) -> Iterator[Sketch]:
    """The hardest attack on the leading rows, one attack over eps, and noise that was optimized, per target."""
    shown = [(row, *found) for row in leading(scene.board.rows) if (found := _hardest(scene, row))]
    sizes = [len(shots) for _, _, shots in shown]
    for number, (row, condition, shots) in enumerate(shown):
        main = number == sizes.index(max(sizes))
        yield _before_after(scene, row, condition, shots, f"attacked-{number + 1}", main)
    yield from _over_eps(scene)
    yield from _noise(scene)


def _shots(scene: Scene, row: Row, condition: ConditionSpec, succeeding: bool = True) -> dict[int, _Shot]:
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


# ----------------------------------------------------------------------------------------------- before, change, after


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
        found = _shots(scene, row, condition)
        if found:
            return condition, [found[sample] for sample in _spread(found, COLUMNS)]
    return None


def _before_after(
    scene: Scene, row: Row, condition: ConditionSpec, shots: Sequence[_Shot], name: str, main: bool = False
) -> Sketch:
    gap, words = 0.08, _words(shots)
    side = min(1.25, (WIDTH - 0.85) / len(shots) - gap)
    margin = 0.85 + (WIDTH - 0.85 - len(shots) * (side + gap)) / 2
    scale = _scale(shots)
    made, axes = page(0.15 + 3 * side + 2 * words)
    tops = (0.05, 0.05 + side + words, 0.1 + 2 * side + words)
    for top, text in zip(tops, ("image", f"change\n× {scale:g}", "attacked"), strict=True):
        axes.text(margin - 0.1, top + side / 2, text, ha="right", va="center")
    for column, shot in enumerate(shots):
        left = margin + column * (side + gap)
        place(axes, shot.before, left, tops[0], side)
        place(axes, 0.5 + scale * (shot.after - shot.before), left, tops[1], side)
        place(axes, shot.after, left, tops[2], side)
        _decision(scene, axes, left + side / 2, tops[0] + side, shot.label, shot.clean, shot.clean_score)
        _decision(scene, axes, left + side / 2, tops[2] + side, shot.label, shot.final, shot.final_score)
    told = _told(scene, shots)
    caption = (
        f"{short(row.label)} under {short(condition.label)}: test images on which the attack succeeds, what it adds "
        f"(times {scale:g}, grey is no change), and the sum. Under each stands what the model decides"
        f"{_scores(shots)}. {told}"
    )
    title = f"Attacked images: {short(row.label)}"
    alt = f"Images before and after {short(condition.label)}. {told}"
    return Sketch(Picture(name, "examples", title, caption, alt, main), made)


def _scale(shots: Sequence[_Shot]) -> float:
    """By how much changes can be enlarged without leaving [0, 1] around grey."""
    largest = max(float(np.abs(shot.after - shot.before).max()) for shot in shots)
    return max((scale for scale in _SCALES if scale * largest <= 0.45), default=_SCALES[0])


def _decision(
    scene: Scene, axes: Axes, center: float, top: float, label: int, decided: int, score: float | None
) -> None:
    text = scene.class_name(decided, 14) + ("" if score is None else f"\n{pct(score)}")
    color = BLACK if decided == label else ATTACKED
    axes.text(center, top + 0.03, text, ha="center", va="top", color=color, fontsize=8.5, linespacing=1.0)


def _words(shots: Sequence[_Shot]) -> float:
    """The room for what is written under an image, in inches."""
    return 0.24 if all(shot.final_score is None for shot in shots) else 0.38


def _scores(shots: Sequence[_Shot]) -> str:
    if any(shot.final_score is None for shot in shots):
        return ""
    return " and the softmax score of that class"


def _told(scene: Scene, shots: Sequence[_Shot]) -> str:
    pairs = dict.fromkeys((scene.said(shot.label), scene.said(shot.final)) for shot in shots)
    return f"From left to right: {', '.join(f'{true} becomes {decided}' for true, decided in pairs)}."


# ------------------------------------------------------------------------------------------------------------- over eps


def _over_eps(scene: Scene) -> Iterator[Sketch]:
    """One attack at rising eps: FGSM where it was run at several, else the first that was."""
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
            by_size = {spec.stages[0].eps or 0.0: _shots(scene, row, spec, False) for spec in group}
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
    head, gap, words = 0.3, 0.1, _words([shot for found in by_size.values() for shot in found.values()])
    side = min(1.25, WIDTH / (len(by_size) + 1) - gap)
    margin = (WIDTH - (len(by_size) + 1) * (side + gap)) / 2
    made, axes = page(head + len(picked) * (side + words) + 0.05)
    norm = condition.stages[0].norm.capitalize()
    for column, text in enumerate(["unchanged", *(f"{norm} {format_eps(eps)}" for eps in by_size)]):
        axes.text(margin + column * (side + gap) + side / 2, head - 0.06, text, ha="center", va="bottom")
    for line, sample in enumerate(picked):
        top = head + line * (side + words)
        shot = next(iter(by_size.values()))[sample]
        place(axes, shot.before, margin, top, side)
        _decision(scene, axes, margin + side / 2, top + side, shot.label, shot.clean, shot.clean_score)
        for column, found in enumerate(by_size.values(), 1):
            left, shot = margin + column * (side + gap), found[sample]
            place(axes, shot.after, left, top, side)
            _decision(scene, axes, left + side / 2, top + side, shot.label, shot.final, shot.final_score)
    fooled = [
        f"{sum(found[sample].final != found[sample].label for sample in picked)} at {format_eps(eps)}"
        for eps, found in by_size.items()
    ]
    name = condition.stages[0].label
    told = f"Of {counted(len(picked), 'image')} shown, {', '.join(fooled)} are taken for something else."
    caption = (
        f"{short(row.label)} under {short(name)} of rising size: the more it may change, the more often the decision "
        f"under the image turns wrong (colored), and the more shows{_and_scores(by_size)}. {told} Images that no size "
        "fools are left out."
    )
    title = f"Attacked images over eps: {short(name)}"
    yield Sketch(Picture("attacked-over-eps", "examples", title, caption, f"Rows of images. {told}"), made)


def _and_scores(by_size: Mapping[float, Mapping[int, _Shot]]) -> str:
    known = all(shot.final_score is not None for found in by_size.values() for shot in found.values())
    return "; percentages are the softmax score of the class decided on" if known else ""


def _evenly(length: int, count: int) -> list[int]:
    """Places of at most ``count`` of ``length`` things, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, length - 1, min(length, count))}) if length else []


# ---------------------------------------------------------------------------------------------------------------- noise


def _is_noise(condition: ConditionSpec) -> bool:
    return [stage.name for stage in condition.stages] == ["noise-optimization"]


def _noise(scene: Scene) -> Iterator[Sketch]:
    """Optimized noise, a figure per target: of the settings that reach it most often, the one with the least noise."""
    by_target: dict[str, list[ConditionSpec]] = {}
    for condition in scene.board.conditions:
        if _is_noise(condition) and condition.target:
            by_target.setdefault(condition.target, []).append(condition)
    for number, specs in enumerate(list(by_target.values())[:TARGETS], 1):
        # Noise may have been asked of other rows than those that lead.
        for row in (*leading(scene.board.rows), *scene.board.rows):
            order = sorted(specs, key=lambda spec: _reach(row.cells[spec.label].details or {}))
            found = next(((spec, shots) for spec in order if (shots := _shots(scene, row, spec))), None)
            if found:
                spec, shots = found
                chosen = [shots[sample] for sample in _spread(shots, COLUMNS)]
                yield _before_after(scene, row, spec, chosen, f"noise-images-{number}")
                break


def _reach(details: Mapping[str, Figure]) -> tuple[float, float]:
    """Smaller for noise that reaches its target more often and, among equals, is less."""
    success, size = details.get("targeted_success"), details.get("l1_median_success")
    return -(success.value if success else 0.0), size.value if size else 0.0
