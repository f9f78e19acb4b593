"""Sentences about a board that its numbers bear out, in markdown: the answer first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from robbench.evaluation.statistics import LEVEL, SEEDS
from robbench.leaderboards.ablations import Change, Pair, Part
from robbench.leaderboards.aggregates import Estimate, Rates, against_constant
from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.check_results import Checked
from robbench.leaderboards.markdown import counted, ends, escape, listed, number, percent, reach, signed
from robbench.leaderboards.table import ThreatModel
from robbench.leaderboards.tables.making import named, tested
from robbench.leaderboards.tables.minimal_norms import Standing, about_norms, frontier, standings, without_norm
from robbench.results.schema import ConditionSpec

MOST = 3
"""Findings after the headline."""
NAMED = 10
"""Up to so many classes of one accuracy are all named."""
TENTH = 10
"""So many times fewer passes a cheap attack spends than the nearest one."""
FLOOR = 0.02
"""Worst-case robust accuracy below which next to nothing is left."""


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
    if about_norms(board):
        return [_nearest(board), _best(board), *found[: MOST - 1]]
    return [_headline(board), *found[:MOST]]


# ------------------------------------------------------------------------------------------------------------- headline


def _headline(board: Board) -> str:
    """The best row; before it what a check of every row found, which is what such a grid is for."""
    ranked = sum(bool(row.rank) for row in board.rows)
    checked = [text for rows, text in _checks(board) if rows == ranked]
    return " ".join([*checked[:1], _best(board)])


def _nearest(board: Board) -> str:
    """Of each norm the attack nearest to the smallest change known, and the nearest for a tenth of its passes."""
    near: dict[str, Standing] = {}
    cheap: dict[str, Standing] = {}
    for compared in board.minimal_norms:
        norm, found = compared.norm.capitalize(), frontier(standings(board, compared))
        near |= {norm: found[0]} if found else {}
        few = [one for one in found if TENTH * one.passes <= found[0].passes]
        cheap |= {norm: few[0]} if few else {}
    if not near:
        return _best(board)
    text = f"Nearest to the smallest changes known: {_by_attack(near, '**')}, at {_passes(near)} per image."
    return f"{text} At {_passes(cheap)}: {_by_attack(cheap)}." if cheap else text


def _by_attack(found: Mapping[str, Standing], mark: str = "") -> str:
    """``fmn in Linf (optimality 95.3 %) and L2 (96.0 %); ddn in L1 (90.1 %)``, from attacks by norm."""
    norms: dict[str, list[str]] = {}
    for norm, one in found.items():
        what = "" if norms else "optimality "
        reached = f"{norm} ({what}{100 * (one.optimality or 0.0):.1f} %)"
        norms.setdefault(without_norm(one.label).partition("[")[0], []).append(reached)
    return "; ".join(f"{mark}{escape(attack)}{mark} in {listed(parts)}" for attack, parts in norms.items())


def _passes(found: Mapping[str, Standing]) -> str:
    counts = dict.fromkeys(number(one.passes) for one in sorted(found.values(), key=lambda one: one.passes))
    first, *_, last = [*counts, *counts]
    return f"{first if first == last else f'{first}–{last}'} passes"


def _best(board: Board) -> str:
    best, found = board.sound[0], _rates(board, board.sound[0]).balanced
    tied = [escape(row.label) for row in board.sound[1:] if row.rank == best.rank]
    others = f"; tied with {listed(tied) if len(tied) <= 2 else f'{len(tied)} others'}" if tied else ""
    text = f"{'Best: ' * (len(board.rows) > 1)}**{escape(best.label)}**, {percent(found)} %"
    if board.ranked_by is None:
        text += f" balanced clean accuracy ({ends(found)})"
        if board.threat is None:
            return f"{text}{others}. No attack was run: this says nothing about robustness."
        return f"{text}{_beside(board, best)}{_ahead(board, 'row without a countermeasure')}{others}."
    text += f" worst-case robust accuracy ({ends(found)}) at {escape(board.ranked_by)}"
    if all(_at_floor(board, row) for row in board.sound):
        return f"{_floor(board)} {text}{others}."
    text += ", itself undefended" if board.baseline is best else _ahead(board, "undefended model")
    classes = len(board.dataset.class_names)
    stands = {"below": "Below", "like": "Not distinguishable from", "above": ""}[against_constant(found, classes)]
    constant = f". {stands} a constant prediction ({100 / classes:.1f} %)" if stands else ""
    return f"{text}{others}{constant}."


def _beside(board: Board, row: Row) -> str:
    """The row's worst case, where clean accuracy ranks."""
    found = board.robust(row)
    robust = f"{percent(found.balanced)} % ({ends(found.balanced)})" if found else "an unknown share"
    return f" and {robust} in the worst case at {escape(board.threat or '')}"


def _ahead(board: Board, other: str) -> str:
    """The best row's margin over the baseline, in the accuracy that ranks; empty where it is the baseline."""
    baseline = board.baseline
    if baseline is None or board.margin is None:
        return ""
    added, alone = board.margin.added, ", these checkpoints" if board.margin.p is None else ""
    return (
        f", {abs(100 * added.value):.1f} points ({reach(added.low, added.high)}{alone}) "
        f"{'above' if added.value >= 0 else 'below'} the best {other} ({escape(baseline.label)}, "
        f"{percent(_rates(board, baseline).balanced)} %)"
    )


def _at_floor(board: Board, row: Row) -> bool:
    """Whether a row keeps next to nothing, or no more than chance may have left."""
    robust = board.robust(row)
    if robust is None:
        return False
    found = robust.balanced
    low = found.value if found.low is None else found.low
    return found.value < FLOOR or (low < FLOOR / 2 and found.value < 2 * FLOOR)


def _floor(board: Board) -> str:
    """That no row keeps anything, and the largest smaller size at which some row does."""
    size = _size_left(board, board.sound)
    text = f"Every model is at the floor at {escape(board.ranked_by)}: next to nothing is left to rank."
    if size is None:
        return f"{text} Nothing is left at a smaller size that was run either."
    left = max((found.balanced.value for row in board.sound if (found := row.worst[size])), default=0.0)
    return f"{text} Something is left at {escape(size)}: up to {100 * left:.1f} %."


def _size_left(board: Board, rows: Sequence[Row]) -> str | None:
    """The largest size below the one that ranks at which some of the rows keep more than next to nothing."""
    eps = {spec.label: spec.stages[0].eps or 0.0 for spec in board.conditions if spec.stages}
    sizes = {threat: eps[labels[0]] for threat, labels in board.threats.items()}
    ranked = board.threat or ""
    smaller = [size for size in sizes if size.split()[0] == ranked.split()[0] and sizes[size] < sizes[ranked]]
    for size in sorted(smaller, key=lambda size: -sizes[size]):
        kept = [found.balanced for row in rows if (found := row.worst[size])]
        if any((found.value if found.low is None else found.low) >= FLOOR for found in kept):
            return size
    return None


def floor_summary(board: Board) -> str:
    """How many rows are at the floor, and what they keep at a smaller size; empty unless half are, and not all."""
    rows = [row for row in board.sound if _at_floor(board, row)]
    size = _size_left(board, rows) if 1 < len(rows) < len(board.sound) <= 2 * len(rows) else None
    kept = [found.balanced for row in rows if (found := row.worst[size])] if size else []
    if not kept:
        return ""
    return (
        f"{len(rows)} of {len(board.sound)} models are at the floor (below {100 * FLOOR:.0f} % or not distinguishable "
        f"from 0); at {escape(size)} they keep {_least_and_most(kept)} %."
    )


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
    robust = board.robust(row)
    return found | ({"worst case": percent(robust.balanced)} if robust else {})


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
    parts: list[tuple[float, str, bool]] = []
    for part in ("defenses", "balancer", "objective"):
        effects = [found for key, pairs in groups.items() if key[0] == part and (found := _effect(board, pairs))]
        if effects:
            parts.append(max(effects))
    parts = parts[:2]
    every = all(alone for *_, alone in parts)
    texts = [text + ", these checkpoints" * (alone and not every) for _, text, alone in parts]
    if parts:
        yield f"Single changes{', of these checkpoints' * every}, in points: {'; '.join(texts)}."


def _effect(board: Board, pairs: Sequence[Pair]) -> tuple[float, str, bool] | None:
    """How large the effect of a change is, for sorting; what it is; and whether it is one of these checkpoints alone.

    On clean images for balancing.
    """
    part, threat = pairs[0].part, board.threat
    where = ["Clean, balanced"] if part == "balancer" or threat is None else [f"Worst case {threat}"]
    if part == "objective":
        where += [f"Worst case {size}" for size in pairs[0].elsewhere]
    changes = {name: [found for pair in pairs if (found := pair.changes(threat)[name])] for name in where}
    means = {name: fmean(change.added.value for change in found) for name, found in changes.items() if found}
    if not means:
        return None
    leading = max(means, key=lambda name: abs(means[name]))
    values = [change.added.value for change in changes[leading]]
    if len(values) > 2:
        effect = f"{signed(means[leading])} on average over {len(values)} pairs ({reach(min(values), max(values))})"
    else:
        effect = " and ".join(f"{signed(one.added.value)} ({tested(one)})" for one in changes[leading])
    names = f"{named(part, pairs[0].after)} vs. {named(part, pairs[0].before)}"
    text = f"{escape(names)} {effect} {_place(leading)}"
    if leading != where[0] and where[0] in means and not any(map(_is_shown, changes[where[0]])):
        text += f", none shown {_place(where[0])}"
    return abs(means[leading]), text, any(change.p is None for change in changes[leading])


def _is_shown(change: Change) -> bool:
    """Whether it is distinguishable from none."""
    if change.p is not None:
        return change.p < 1 - LEVEL
    return (change.added.low or 0.0) > 0 or (change.added.high or 0.0) < 0


def comparison_note(board: Board) -> str:
    """What intervals and p values of single changes rest on."""
    found = [change for pair in board.pairs for change in pair.changes(board.threat).values() if change]
    methods = (
        "95 % intervals over training seeds and test images, paired by both. p values are corrected over all pairs "
        "(Holm), intervals are not: p can exceed 0.05 where an interval excludes 0."
    )
    checkpoints = (
        f"95 % intervals over test images, paired, for these checkpoints: fewer than {SEEDS} training seeds show "
        "nothing of the methods, so there is no p."
    )
    if all(change.p is not None for change in found):
        return methods
    if all(change.p is None for change in found):
        return checkpoints
    return f"{methods} Without p: {checkpoints}"


def _place(name: str) -> str:
    size = escape(name.removeprefix("Worst case "))
    return "in clean balanced accuracy" if name == "Clean, balanced" else f"at {size}"


def _classes(board: Board) -> Iterator[str]:
    rates = _rates(board, board.sound[0])
    names = board.dataset.class_names
    found = {name: figure.value for name, figure in zip(names, rates.per_class, strict=True) if figure}
    if len(found) > 1 and min(found.values()) < max(found.values()):
        ends = [
            f"{100 * value:.0f} % ({_few([escape(name) for name in found if found[name] == value])})"
            for value in (min(found.values()), max(found.values()))
        ]
        which = "Best model per class" if len(board.rows) > 1 else "Per class"
        clean = ", clean" if board.threat and not board.ranked_by else ""
        yield f"{which}{clean}: {' to '.join(ends)}."


def _few(names: Sequence[str]) -> str:
    """Names, of many the first."""
    shown = names if len(names) <= NAMED else names[:3]
    return ", ".join(shown) + (f" and {len(names) - 3:,} more" if len(names) > NAMED else "")


def _flagged(board: Board) -> Iterator[str]:
    count = sum(bool(row.flags) for row in board.rows if row.rank)
    if count:
        yield f"{counted(count, 'row')} with an audit flag {'rank' if count > 1 else 'ranks'} below all others."


# -------------------------------------------------------------------------------------------------------------- figures


def _rates(board: Board, row: Row) -> Rates:
    found = board.ranking(row)
    assert found is not None, "ranked rows have what they are ranked by"
    return found


def about_ranking(board: Board) -> list[str]:
    """What is to be said of the ranking as a whole: the audit, rows at the floor, what it leaves out."""
    return [text for text in (audit_summary(board), floor_summary(board), left_out(board)) if text]


def left_out(board: Board) -> str:
    """What stands in tables of its own, as it cannot be compared with the ranking, and why; empty where all can be."""
    first, *others = board.comparisons or (None,)
    parts = []
    beside = {board.threat} if board.ranked_by is None else set()
    for comparison in (one for one in others if one.n and not beside & set(one.threats)):
        n = f"n = {comparison.n:,}"
        if comparison.threats and first is not None:
            attacks, sizes = (listed(list(map(escape, found))) for found in (comparison.attacks, comparison.threats))
            under = f"under {attacks}, " * (comparison.attacks != first.attacks)
            cases = f"worst case{'s' if len(comparison.threats) > 1 else ''}"
            parts.append(f"{cases} at {sizes} ({under}{n})")
        else:
            parts.append(f"accuracy without an adversary ({n})")
    return f"Other images or attacks, so in tables of their own: {'; '.join(parts)}." if parts else ""


def audit_summary(board: Board) -> str:
    """How many of the ranked rows are audited without a flag; empty where nothing was attacked."""
    ranked = [row for row in board.rows if row.rank]
    sound = [row for row in ranked if row.audited and not row.flags]
    flagged, unaudited = sum(bool(row.flags) for row in ranked), sum(not row.audited for row in ranked)
    if not board.threat or not ranked:
        return ""
    if len(sound) == len(ranked):
        return f"Audited, no flags: {'all ' * (len(ranked) > 1)}{counted(len(ranked), 'model')}."
    rest = [f"{number} {name}" for number, name in ((flagged, "flagged"), (unaudited, "not audited")) if number]
    return f"Audited, no flags: {len(sound)} of {counted(len(ranked), 'model')}; {listed(rest)}."
