"""What a comparison says in a few lines: as text of 80 columns and as markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robbench.api.text import WIDTH, cut, text_table, wrapped
from robbench.leaderboards.markdown import counted, escape, probability, reach, signed
from robbench.leaderboards.readme import markdown_table
from robbench.leaderboards.sheet import Sheet, SheetLine, TableCell, numbers, words

if TYPE_CHECKING:
    from robbench.api.comparison import ComparedCondition, Comparison

LINES, CLASSES = 40, 5
"""So many conditions, and classes, are shown."""


def headline(found: Comparison) -> str:
    """The first condition and the largest drop."""
    if not found.conditions:
        return "nothing could be compared"
    first, worst = found.conditions[0], found.worst_drop
    text = _told(first)
    if worst is not first and worst.drop > 0:
        text += f"; largest drop: {_told(worst)}"
    return text


def _told(one: ComparedCondition) -> str:
    ends = reach(one.difference.low, one.difference.high)
    return f"{one.condition} {signed(one.difference.value)} points ({ends}, p {probability(one.p)})"


def results(found: Comparison, exact: bool) -> Sheet:
    """A line per condition; with McNemar's p where ``exact``."""
    lines = []
    for one in found.conditions:
        shares = [TableCell.percentage(measure.value) for measure in (one.first, one.second)]
        added, ends = one.difference.value, reach(one.difference.low, one.difference.high)
        cells = [TableCell(one.condition), *shares, TableCell(signed(added), added), TableCell(ends)]
        cells += [TableCell(probability(one.p), one.p), TableCell(f"{one.lost}/{one.won}")]
        cells += [TableCell(probability(one.mcnemar), one.mcnemar)] if exact else []
        lines.append(SheetLine(tuple(cells)))
    names = ("A", "B", "B − A", "95 % interval", "p", "lost/won", *(["McNemar p"] if exact else []))
    return Sheet("Accuracy in percent, averaged over classes", (*words("Condition"), *numbers(*names)), tuple(lines))


def classes(found: Comparison) -> Sheet | None:
    """The classes that lose most under the first condition."""
    if not found.conditions:
        return None
    first = found.conditions[0]
    losing = sorted((part for part in first.classes if part.difference.value < 0), key=lambda one: one.difference.value)
    if not losing:
        return None
    lines = []
    for part in losing:
        shares = [TableCell.percentage(value) for value in (part.first, part.second)]
        added, ends = part.difference.value, reach(part.difference.low, part.difference.high)
        lines.append(SheetLine((TableCell(part.name), *shares, TableCell(signed(added), added), TableCell(ends))))
    headings = (*words("Class"), *numbers("A", "B", "B − A", "95 % interval"))
    return Sheet(f"Classes that lose most, {first.condition}", headings, tuple(lines))


def remarks(found: Comparison) -> list[str]:
    """What the audit says of both, what is missing, and what the figures are about."""
    texts = [
        f"{name}: the audit objects: {flag}: {text}"
        for name, flags in zip("AB", found.flags, strict=True)
        for flag, text in flags.items()
    ]
    texts += [f"{label}: B has no result: {reason}" for label, reason in found.missing.items()]
    texts += found.notes
    if found.conditions:
        one = found.conditions[0]
        exact = probability(one.mcnemar)
        texts.append(
            f"{one.condition}, {counted(one.difference.n, 'image')}: {one.lost} lost, {one.won} won; McNemar's exact "
            f"p {exact}."
        )
    about = f"methods, {len(found.seeds)} seeds" if found.about_methods else "these checkpoints, not about methods"
    return [*texts, f"Differences are about {about}."]


def summary(found: Comparison) -> str:
    """The comparison as text; see ``Comparison.summary``."""
    lost = classes(found)
    names = "\n".join(
        cut(f"{letter}: {name}", WIDTH) for letter, name in zip("AB", (found.first, found.second), strict=True)
    )
    tables = [(results(found, exact=False), LINES)] if found.conditions else []
    tables += [(lost, CLASSES)] if lost else []
    parts = [wrapped(f"B − A: {headline(found)}"), names, *(text_table(made, most) for made, most in tables)]
    return "\n\n".join([*parts, "\n".join(map(wrapped, remarks(found)))]) + "\n"


def markdown(found: Comparison) -> str:
    """The comparison as markdown; see ``Comparison.to_markdown``."""
    names = f"A: {escape(found.first)}; B: {escape(found.second)}"
    table = [markdown_table(results(found, exact=True), len(found.conditions))] if found.conditions else []
    notes = "\n".join(f"- {escape(text)}" for text in remarks(found))
    return "\n\n".join([f"**B − A: {escape(headline(found))}**", names, *table, notes]) + "\n"
