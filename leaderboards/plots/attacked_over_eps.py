"""Images attacked at rising eps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from robbench.core.registry import register_figure
from robbench.core.threat_model import format_eps
from robbench.leaderboards.board import Row
from robbench.leaderboards.markdown import counted
from robbench.leaderboards.plots._attacked import Shot, room, scores, shots_of, write_prediction
from robbench.leaderboards.plots._rows import leading
from robbench.leaderboards.plots._scene import Figure, Scene, Sketch
from robbench.leaderboards.plots._style import WIDTH, page, place
from robbench.leaderboards.plots._words import short
from robbench.results.schema import ConditionSpec

SAMPLES, SIZES = 4, 5
"""Images and sizes of eps at most."""


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
                by_size = {spec.stages[0].eps or 0.0: shots_of(scene, row, spec, False) for spec in group}
                by_size = {eps: by_size[eps] for eps in sorted(by_size) if by_size[eps]}
                if len(by_size) > 1:
                    sizes = [list(by_size)[place] for place in _evenly(len(by_size), SIZES)]
                    yield from _draw_over_eps(scene, row, group[0], {eps: by_size[eps] for eps in sizes})
                    return


def _draw_over_eps(
    scene: Scene, row: Row, condition: ConditionSpec, by_size: Mapping[float, Mapping[int, Shot]]
) -> Iterator[Sketch]:
    shared = set.intersection(*(set(found) for found in by_size.values()))
    sizes = by_size.values()
    wrong = {sample: sum(found[sample].final != found[sample].label for found in sizes) for sample in sorted(shared)}
    ranked = sorted((sample for sample in wrong if wrong[sample]), key=lambda sample: -wrong[sample])
    picked = [ranked[place] for place in _evenly(len(ranked), SAMPLES)]
    if not picked:
        return
    shots = [shot for found in by_size.values() for shot in found.values()]
    head, gap, words = 0.3, 0.1, room(shots)
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
        write_prediction(scene, axes, margin + side / 2, top + side, shot.label, shot.clean, shot.clean_score)
        for column, found in enumerate(by_size.values(), 1):
            left, shot = margin + column * (side + gap), found[sample]
            place(axes, shot.after, left, top, side)
            write_prediction(scene, axes, left + side / 2, top + side, shot.label, shot.final, shot.final_score)
    fooled = [
        f"{sum(found[sample].final != found[sample].label for sample in picked)} at {format_eps(eps)}"
        for eps, found in by_size.items()
    ]
    name = condition.stages[0].label
    told = f"Wrong predictions among {counted(len(picked), 'image')}: {', '.join(fooled)}."
    caption = (
        f"{told} {short(row.label)} under {short(name)} of rising size, predicted class below (colored where "
        f"wrong){scores(' with', shots)}. Images that no size fools are left out."
    )
    title = f"Attacked images over eps: {short(name)}"
    yield Sketch("attacked-over-eps", title, caption, f"Rows of images. {told}", made)


def _evenly(length: int, count: int) -> list[int]:
    """Places of at most ``count`` of ``length`` things, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, length - 1, min(length, count))}) if length else []
