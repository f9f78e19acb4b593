"""Images before and after the attack that leaves a row least."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from robbench.core.registry import register_figure
from robbench.leaderboards.board import Row
from robbench.leaderboards.plots._attacked import COLUMNS, Shot, before_after, is_noise, shots_of, spread
from robbench.leaderboards.plots._rows import leading
from robbench.leaderboards.plots._scene import Figure, Scene, Sketch
from robbench.results.schema import ConditionSpec


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
            yield before_after(scene, row, condition, shots, f"attacked-{number + 1}", main)


def _hardest(scene: Scene, row: Row) -> tuple[ConditionSpec, list[Shot]] | None:
    """The attack of the ranking threat model that leaves least and of which there are pictures; without one, any."""
    board = scene.board
    ranking = board.threats[board.threat] if board.threat else ()
    attacks = [condition for condition in board.conditions if condition.kind in ("attack", "chain")]
    attacks = [condition for condition in attacks if not is_noise(condition)]

    def order(condition: ConditionSpec) -> tuple[bool, float]:
        rates = row.cells[condition.label].rates
        return condition.label not in ranking, rates.balanced.value if rates else 1.0

    for condition in sorted(attacks, key=order):
        found = shots_of(scene, row, condition)
        if found:
            return condition, [found[sample] for sample in spread(found, COLUMNS)]
    return None
