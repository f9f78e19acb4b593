"""What rounding attacked images to 8 bits undoes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from robbench.core.registry import register_figure
from robbench.evaluation.verdicts import succeeded
from robbench.leaderboards.aggregates import Estimate
from robbench.leaderboards.board import Row
from robbench.leaderboards.plots._rows import featured, which
from robbench.leaderboards.plots._scene import Figure, Scene, Sketch, breakable
from robbench.leaderboards.plots._style import COLORS, MARKERS, sheet, spans
from robbench.leaderboards.plots._words import pct, short
from robbench.results.schema import Measure, Outcome

ROWS, CONDITIONS, LEAST = 3, 12, 20
"""Rows and attacks that are shown, and successes that tell a share."""


@register_figure("rounding")
@dataclass(frozen=True)
class Rounding(Figure):
    """Share of successful attacks that rounding the image to 8 bits undoes."""

    section = "rounding"
    position = 30

    def draw(self, scene: Scene) -> Iterator[Sketch]:
        """Per attack and row, the share of successes that are none on the rounded image."""
        attacks = [condition.label for condition in scene.board.conditions if condition.kind in ("attack", "chain")]
        found: dict[str, dict[str, Estimate]] = {}
        for row in scene.board.rows:
            for label in attacks:
                share = undone(scene.table.outcomes(row.label, label) or [])
                if share is not None and share.n >= LEAST:
                    found.setdefault(row.label, {})[label] = share
        rows = [row for row in scene.board.rows if row.label in found]
        shown = featured(rows, ROWS)
        most = {
            label: max((found[row.label][label].value for row in shown if label in found[row.label]), default=0.0)
            for label in attacks
        }
        if not any(most.values()):
            return
        there = [label for label in attacks if any(label in found[row.label] for row in shown)]
        kept = sorted(there, key=lambda label: -most[label])[:CONDITIONS]
        conditions = [label for label in there if label in kept]
        left_out = len(there) - len(conditions)
        yield _draw(scene, found, rows, shown, conditions, left_out)


def undone(outcomes: list[Outcome]) -> Estimate | None:
    """The share of successes that rounding undoes, its mean over the seeds that have any; None without any.

    Args:
        outcomes: Of one attack or chain, by seed.
    """
    parts = []
    for outcome in outcomes:
        success = succeeded(outcome)
        aimed = outcome.targets >= 0
        stays = np.where(aimed, outcome.rounded == outcome.targets, outcome.rounded != outcome.labels)
        if success.any():
            parts.append(Measure(float((success & ~stays).sum() / success.sum()), n=int(success.sum())))
    return Estimate.mean(parts, is_rate=True) if parts else None


def _draw(
    scene: Scene,
    found: Mapping[str, Mapping[str, Estimate]],
    rows: list[Row],
    shown: tuple[Row, ...],
    conditions: list[str],
    left_out: int,
) -> Sketch:
    names = [scene.fonts.lines(breakable(label), 32) for label in conditions]
    line = max(0.14 + 0.12 * len(shown), 0.38 if any("\n" in name for name in names) else 0)
    made, panels = sheet(0.8 + 0.2 * len(shown) + line * len(conditions))
    axes = panels[0, 0]
    for place, row in enumerate(shown):
        figures = [found[row.label].get(label) for label in conditions]
        values, reach = spans(figures)
        heights = np.arange(len(conditions)) + 0.24 * (place - (len(shown) - 1) / 2)
        axes.errorbar(
            values,
            heights,
            xerr=reach,
            fmt=MARKERS[place],
            color=COLORS[place],
            elinewidth=1.1,
            capsize=2,
            label=scene.fonts.text(row.label, 70),
        )
    axes.set_yticks(range(len(conditions)), names)
    axes.set_ylim(len(conditions) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    right = axes.get_xlim()[1]
    axes.set_xlim(-0.02 * right, right)  # so that a mark at 0 is whole, and no share below it is named
    axes.grid(axis="x")
    axes.xaxis.set_major_formatter("{x:g} %")
    axes.set_xlabel("Share of successes that rounding undoes")
    made.legend(loc="outside lower center", ncols=1)
    places = [(row.label, label) for row in shown for label in conditions if label in found[row.label]]
    row_label, label = max(places, key=lambda place: found[place[0]][place[1]].value)
    figure = found[row_label][label]
    told = f"Most undone: {short(label)} on {short(row_label)}, {pct(figure.value)} of {figure.n:,} successful attacks."
    caption = (
        f"{told} Share of successful attacks that fail once the image is rounded to the 256 levels of an image file, "
        "with 95 % intervals."
    )
    if left_out:
        caption += f" Of {len(conditions) + left_out} attacks, the {len(conditions)} that lose most are shown."
    alt = f"Dot plot of {len(conditions)} attacks on {len(shown)} rows. {told}"
    return Sketch("rounding", "Attacks undone by rounding to 8 bits", caption + which(rows, shown), alt, made)
