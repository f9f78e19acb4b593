"""Sentences about a board that its numbers bear out, in markdown: the answer first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from robbench.evaluation.statistics import LEVEL
from robbench.leaderboards.ablations import Pair, Part
from robbench.leaderboards.aggregates import Estimate, Rates
from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.check_results import Checked
from robbench.leaderboards.markdown import counted, ends, escape, listed, percent, probability, reach, signed
from robbench.leaderboards.table import ThreatModel
from robbench.leaderboards.tables.making import named
from robbench.results.schema import ConditionSpec

MOST = 3
"""Findings after the headline."""


def findings(board: Board) -> list[str]:
    """The headline, then at most three findings: selection on validation data, single changes, classes."""
    ranked = [row for row in board.rows if row.rank]
    if not ranked:
        return ["No row could be ranked; the reasons are listed below."]
    if not board.sound:
        names = listed(list(dict.fromkeys(escape(flag) for row in ranked for flag in row.flags)))
        which = "the only row has" if len(ranked) == 1 else f"each of {counted(len(ranked), 'row')} has"
        return [f"No row is called best: {which} an audit flag ({names})."]
    found = [*_selected(board), *_single_changes(board), *_classes(board), *_flagged(board)]
    return [_headline(board), *found[:MOST]]


# ------------------------------------------------------------------------------------------------------------- headline


def _headline(board: Board) -> str:
    """The best row; before it what a check of every row found, which is what such a grid is for."""
    ranked = sum(bool(row.rank) for row in board.rows)
    checked = [text for rows, text in _checks(board) if rows == ranked]
    return " ".join([*checked[:1], _best(board)])


def _best(board: Board) -> str:
    best, found = board.sound[0], _rates(board, board.sound[0]).balanced
    tied = [escape(row.label) for row in board.sound[1:] if row.rank == best.rank]
    others = f"; tied with {listed(tied) if len(tied) <= 2 else f'{len(tied)} others'}" if tied else ""
    text = f"Best: **{escape(best.label)}**, {percent(found)} %"
    if board.ranked_by is None:
        text += f" balanced clean accuracy ({ends(found)}){others}."
        return f"{text} No attack was run: this says nothing about robustness."
    text += f" worst-case robust accuracy ({ends(found)}) at {escape(board.ranked_by)}"
    other = board.undefended
    if other is best:
        text += ", itself undefended"
    elif other is not None and board.margin:
        text += (
            f", {abs(100 * board.margin.value):.1f} points ({reach(board.margin.low, board.margin.high)}) "
            f"{'above' if board.margin.value >= 0 else 'below'} the best undefended model ({escape(other.label)}, "
            f"{percent(_rates(board, other).balanced)} %)"
        )
    constant = 1 / len(board.dataset.class_names)
    if found.low is not None and found.low <= constant:
        others += f". Not distinguishable from a constant prediction ({100 * constant:.1f} %)"
    return f"{text}{others}."


def check_findings(board: Board) -> list[str]:
    """What each check found, in a sentence: the images that the ranking attacks had missed, or what is left."""
    others = [(check, [one for row in board.rows if (one := row.checks[check.label])]) for check in board.checks]
    alone = [(check, [one.left for one in found if one.left and one.others is None]) for check, found in others]
    sizes = [
        f"{escape(check.label)} left {_least_and_most(left)} % robust ({counted(len(left), 'model')})."
        for check, left in alone
        if left
    ]
    return [*(text for _, text in _checks(board)), *sizes]


def _least_and_most(found: Sequence[Estimate]) -> str:
    return "–".join(dict.fromkeys(percent(end(found, key=lambda figure: figure.value)) for end in (min, max)))


def _checks(board: Board) -> list[tuple[int, str]]:
    return [found for check in board.checks if (found := _check(board, check))]


def _check(board: Board, check: ConditionSpec) -> tuple[int, str] | None:
    """How many ranked rows a check of the ranking attacks was run on, and what it found."""
    found = [one for row in board.rows if row.rank and (one := row.checks[check.label]) and one.others is not None]
    left = sum(round(one.others.n * sum(one.others.seeds)) for one in found if one.others)
    images = sum(one.others.n * len(one.others.seeds) for one in found if one.others)
    broken = sum(one.found or 0 for one in found)
    spent, theirs = (sum(_spent(one, name) for one in found) for name in ("passes", "other_passes"))
    if not left or not theirs:
        return None
    threat = ThreatModel(check.stages[0].norm, check.stages[0].eps or 0.0).label
    attacks = board.threats[threat]
    return len(found), (
        f"{escape(check.label)} broke {broken or 'none'} of the {left:,} images that "
        f"{escape(attacks[0]) if len(attacks) == 1 else 'the ranking attacks'} left robust ({images:,} images on "
        f"{counted(len(found), 'model')}), at {spent / theirs:.{0 if spent >= 2 * theirs else 1}f} times the passes."
    )


def _spent(one: Checked, name: str) -> float:
    return sum(getattr(one, name) or ()) * (one.others.n if one.others else 0)


# ------------------------------------------------------------------------------------------------------------- findings


def _selected(board: Board) -> Iterator[str]:
    """The row that validation data selects, and its test figures beside those of the baseline."""
    most = max(len(row.training) for row in board.sound)
    known = [row for row in board.sound if row.training and len(row.training) == most]
    if len(known) < 2:
        return
    scores = {row.label: fmean(part.validation_balanced_accuracy for part in row.training.values()) for row in known}
    row = max(known, key=lambda row: scores[row.label])
    test = ", ".join(f"{name} {text}" for name, text in _test(board, row).items())
    text = f"Selected on validation: {escape(row.label)} ({100 * scores[row.label]:.1f} %). Test: {test}"
    bare = next((other for other in board.sound if other is not row and _baseline_of(row, other)), None)
    beside = f"; baseline ({escape(bare.label)}) {listed(list(_test(board, bare).values()))}" if bare else ""
    yield f"{text}{beside}."


def _test(board: Board, row: Row) -> dict[str, str]:
    clean = board.clean(row)
    found = {"clean": percent(clean.balanced if board.imbalanced else clean.share)} if clean else {}
    return found | ({"worst case": percent(_rates(board, row).balanced)} if board.ranked_by else {})


def _baseline_of(row: Row, other: Row) -> bool:
    """Whether the other row has neither defense nor balancing and is otherwise the same."""
    plain = other.undefended and other.model.balancer.name == "none"
    return plain and len({part.model.model_dump_json(exclude=_MADE) for part in (row, other)}) == 1


_MADE = {"balancer", "defenses", "label"}


def _single_changes(board: Board) -> Iterator[str]:
    """The largest effect of a defense, and that of another objective or of balancing."""
    groups: dict[tuple[Part, str], list[Pair]] = {}
    sound = {row.label: row for row in board.sound}
    for pair in board.pairs:
        if {pair.first, pair.second} <= sound.keys() and (pair.part == "defenses" or sound[pair.first].undefended):
            groups.setdefault((pair.part, pair.after), []).append(pair)
    parts = []
    for part in ("defenses", "balancer", "objective"):
        effects = [found for key, pairs in groups.items() if key[0] == part and (found := _effect(board, pairs))]
        if effects:
            parts.append(max(effects)[1])
    if parts:
        yield f"Single changes, in points: {'; '.join(parts[:2])}."


def _effect(board: Board, pairs: Sequence[Pair]) -> tuple[float, str] | None:
    """How large the effect of a change is, for sorting, and what it is: on clean images for balancing."""
    part, ranked_by = pairs[0].part, board.ranked_by
    where = ["Clean, balanced"] if part == "balancer" or ranked_by is None else [f"Worst case {ranked_by}"]
    if part == "objective":
        where += [f"Worst case {size}" for size in pairs[0].elsewhere]
    changes = {name: [found for pair in pairs if (found := pair.changes(ranked_by)[name])] for name in where}
    means = {name: fmean(change.added.value for change in found) for name, found in changes.items() if found}
    if not means:
        return None
    leading = max(means, key=lambda name: abs(means[name]))
    values = [change.added.value for change in changes[leading]]
    if len(values) > 2:
        effect = f"{signed(means[leading])} on average over {len(values)} pairs ({reach(min(values), max(values))})"
    else:
        effect = " and ".join(
            f"{signed(one.added.value)} ({reach(one.added.low, one.added.high)}, p {probability(one.p)})"
            for one in changes[leading]
        )
    names = f"{named(part, pairs[0].after)} vs. {named(part, pairs[0].before)}"
    text = f"{escape(names)} {effect} {_place(leading)}"
    if leading != where[0] and where[0] in means and all(change.p >= 1 - LEVEL for change in changes[where[0]]):
        text += f", none shown {_place(where[0])}"
    return abs(means[leading]), text


def _place(name: str) -> str:
    size = escape(name.removeprefix("Worst case "))
    return "in clean balanced accuracy" if name == "Clean, balanced" else f"at {size}"


def _classes(board: Board) -> Iterator[str]:
    rates = _rates(board, board.sound[0])
    names = board.dataset.class_names
    found = {name: figure.value for name, figure in zip(names, rates.per_class, strict=True) if figure}
    if len(found) > 1 and min(found.values()) < max(found.values()):
        ends = [
            f"{100 * value:.0f} % ({', '.join(escape(name) for name in found if found[name] == value)})"
            for value in (min(found.values()), max(found.values()))
        ]
        yield f"Best model per class: {' to '.join(ends)}."


def _flagged(board: Board) -> Iterator[str]:
    count = sum(bool(row.flags) for row in board.rows if row.rank)
    if count:
        yield f"{counted(count, 'row')} with an audit flag {'rank' if count > 1 else 'ranks'} below all others."


# -------------------------------------------------------------------------------------------------------------- figures


def _rates(board: Board, row: Row) -> Rates:
    found = board.ranking(row)
    assert found is not None, "ranked rows have what they are ranked by"
    return found


def weaker_sizes(board: Board) -> str:
    """At which sizes some of the ranking attacks were not run; empty where all were."""
    if board.ranked_by is None:
        return ""
    wanted = {_attack(label) for label in board.threats[board.ranked_by]}
    found: dict[tuple[str, ...], list[str]] = {}
    for threat, labels in board.threats.items():
        names = dict.fromkeys(map(_attack, labels))
        if threat.split()[0] == board.ranked_by.split()[0] and wanted - names.keys():
            found.setdefault(tuple(names), []).append(threat)
    told = ((listed(list(map(escape, part))) for part in parts) for parts in found.items())
    return "".join(f" At {sizes} only {attacks} ran, so figures there may be too high." for attacks, sizes in told)


def _attack(label: str) -> str:
    return label.partition("@")[0]
