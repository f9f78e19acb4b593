"""Sentences about a board that its numbers bear out, in markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from statistics import fmean

from robbench.evaluation.statistics import LEVEL
from robbench.leaderboards.ablations import Change, Pair
from robbench.leaderboards.aggregates import Figure, Rates
from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.markdown import counted, escape, listed, percent, points, probability, signed, value_list


def findings(board: Board) -> list[str]:
    """What the board shows: best and lowest row, what perturbations and attacks cost, the weakest class."""
    rows = [row for row in board.rows if row.rank]
    if not rows:
        return ["No row could be ranked; the reasons are listed below."]
    sound = [row for row in rows if not row.flags] or rows
    return [
        *_ends(board, sound),
        *_countermeasures(board, sound),
        *_chosen(board, sound),
        *_undefended(board, sound),
        *_training(board, sound),
        *_objectives(board, sound),
        *_rarest_class(board, sound),
        *_weakest_class(board, sound[0]),
        *_flagged(rows),
    ]


def _rate(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return f"{percent(figure)} %"
    return f"{percent(figure)} % ({100 * figure.low:.1f}–{100 * figure.high:.1f})"


def _measure(board: Board) -> str:
    if board.ranked_by is None:
        return "balanced clean accuracy"
    return f"balanced robust accuracy in the worst case at {escape(board.ranked_by)}"


def _rates(board: Board, row: Row) -> Rates:
    found = board.ranking(row)
    assert found is not None, "ranked rows have what they are ranked by"
    return found


def _ends(board: Board, rows: list[Row]) -> Iterator[str]:
    first, last = rows[0], rows[-1]
    leading = _rates(board, first).balanced
    tied = sum(row.rank == first.rank for row in rows) - 1
    together = (
        f", and {tied} other row{'s are' if tied > 1 else ' is'} not told apart from it on these samples"
        if tied
        else ""
    )
    if len(rows) == 1:
        yield f"**{escape(first.label)}** reaches {_rate(leading)} {_measure(board)}."
    else:
        yield f"First is **{escape(first.label)}** with {_rate(leading)} {_measure(board)}{together}."
    constant = 1 / len(board.dataset.class_names)
    if board.ranked_by and leading.low is not None and leading.low <= constant:
        yield (
            f"That is not told apart from the {100 * constant:.1f} % of a model that answers with the same class "
            "whatever it is shown, and so keeps that class under any attack."
        )
    if last.rank != first.rank and "=" not in last.rank:
        yield f"Last is {escape(last.label)} with {_rate(_rates(board, last).balanced)}."


def _undefended(board: Board, rows: list[Row]) -> Iterator[str]:
    plain = [row for row in rows if _undefended_row(row)]
    if not plain or board.ranked_by is None:
        return
    row = plain[0]
    clean, left = board.clean(row), _rates(board, row).balanced
    if clean is None:
        return
    constant = 1 / len(board.dataset.class_names)
    if left.value < constant:
        yield (
            f"Without a defense no row keeps more than {percent(left)} % in that worst case ({escape(row.label)}); a "
            f"model that answers with the same class whatever it is shown keeps {100 * constant:.1f} %."
        )
        return
    natural = row.cells[board.perturbed].rates if board.perturbed else None
    middle = f" to {percent(natural.balanced)} % under {escape(board.perturbed)} and" if natural else ""
    yield (
        f"Of the rows trained without a defense, {escape(row.label)} stands highest: from "
        f"{percent(clean.balanced)} % balanced accuracy on unchanged images it goes{middle} to {percent(left)} % in "
        "that worst case."
    )


def _countermeasures(board: Board, rows: list[Row]) -> Iterator[str]:
    """What is done about imbalance, beside the row where nothing is: what it adds without an attack, and its price."""
    known = {row.label: row for row in rows}
    groups: dict[str, list[Pair]] = {}
    for pair in board.pairs:
        sound = {pair.first, pair.second} <= known.keys()
        if pair.part == "balancer" and pair.clean and sound and _undefended_row(known[pair.first]):
            groups.setdefault(pair.first, []).append(pair)
    for label, found in groups.items():
        clean = board.clean(known[label])
        found.sort(key=lambda pair: -pair.clean.added.value if pair.clean else 0)
        parts = [
            f"{escape(pair.second)} {points(pair.clean.added)[:-1]}, p {_is(probability(pair.clean.p))})"
            f"{_times(board, known[label], known[pair.second], ', ')}"
            for pair in found
            if pair.clean
        ]
        always = [
            escape(pair.second)
            for pair in found
            if pair.clean and len(pair.clean.by_seed) > 1 and min(pair.clean.by_seed) > 0
        ]
        yield (
            f"Beside {escape(label)}, where nothing is done about imbalance, balanced accuracy on unchanged images"
            f"{f' ({percent(clean.balanced)} %)' if clean else ''} moves by points: {'; '.join(parts)}."
            + (f" With every seed it is higher with {listed(always)}." if always else "")
        )


def _times(board: Board, first: Row, second: Row, before: str) -> str:
    """``2.0 times the passes in training`` behind a text, where they are not the same."""
    ratio = f"{board.times(first, second) or 1.0:.1f}"
    return f"{before}{ratio} times the passes in training" if ratio != "1.0" else ""


def _training(board: Board, rows: list[Row]) -> Iterator[str]:
    """Each defense against the rows that differ from its own in nothing else."""
    known = {row.label for row in rows}
    groups: dict[str, list[Pair]] = {}
    for pair in board.pairs:
        if board.ranked_by and pair.part == "defenses" and pair.robust and {pair.first, pair.second} <= known:
            groups.setdefault(pair.after, []).append(pair)
    for defense, found in groups.items():
        changes = [pair.robust for pair in found if pair.robust]
        if len(changes) == 1:
            yield f"Training with {escape(defense)} instead of none moves the worst case by {_moved(changes[0])}."
            continue
        values = [change.added.value for change in changes]
        yield (
            f"Training with {escape(defense)} instead of none moves the worst case by {signed(fmean(values))} points "
            f"on average over {counted(len(values), 'otherwise equal pair')} ({signed(min(values))} to "
            f"{signed(max(values))}); it is higher in {sum(value > 0 for value in values)} of {len(values)}."
        )


def _chosen(board: Board, rows: list[Row]) -> Iterator[str]:
    """The row to choose, by validation data, and what it costs."""
    most = max(len(row.training) for row in rows)
    known = {row.label: row for row in rows if row.training and len(row.training) == most}
    if len(known) < 2:
        return
    figures = {
        label: fmean(part.validation_balanced_accuracy for part in row.training.values())
        for label, row in known.items()
    }
    first, second, *_ = sorted(figures, key=lambda label: -figures[label])
    row = known[first]
    parts = list(row.training.values())
    seeds = f" (by seed {value_list(f'{100 * part.validation_balanced_accuracy:.1f}' for part in parts)})"
    yield (
        f"On validation data, which is what a method is to be chosen on, {escape(first)} stands highest without an "
        f"attack: {100 * figures[first]:.1f} % balanced accuracy{seeds if most > 1 else ''} on "
        f"{parts[0].validation_images:,} images; next is {escape(second)} with {100 * figures[second]:.1f} %. "
        f"{_price(board, row, rows)}"
    )


def _price(board: Board, row: Row, rows: list[Row]) -> str:
    """What a row gives up or gains on test images, beside the row where nothing is done but for its objective."""
    bare = [
        other
        for other in rows
        if _undefended_row(other)
        and _unbalanced(other)
        and _apart_from(other, "balancer", "defenses") == _apart_from(row, "balancer", "defenses")
    ]
    clean = board.clean(row)
    if not clean:
        return ""
    worst = f", in the worst case {percent(_rates(board, row).balanced)} %" if board.ranked_by else ""
    text = f"On test images it has {percent(clean.share)} %, averaged over classes {percent(clean.balanced)} %{worst}"
    before = board.clean(bare[0]) if bare and bare[0] is not row else None
    if not before:
        return f"{text}."
    worst = f" and {percent(_rates(board, bare[0]).balanced)} %" if board.ranked_by else ""
    return (
        f"{text}; {escape(bare[0].label)}, without all that, {percent(before.share)} %, {percent(before.balanced)} %"
        f"{worst}{_times(board, bare[0], row, '. It took ')}."
    )


def _objectives(board: Board, rows: list[Row]) -> Iterator[str]:
    """What another objective does to robustness, everything else being equal."""
    known = {row.label: row for row in rows}
    for pair in board.pairs:
        if pair.part != "objective" or pair.robust is None or not {pair.first, pair.second} <= known.keys():
            continue
        first, second = known[pair.first], known[pair.second]
        if not (_undefended_row(first) and _unbalanced(first)):
            continue
        sizes = [(board.ranked_by or "", pair.robust), *pair.elsewhere.items()]
        moved = "; ".join(f"at {escape(size)} by {_moved(change)}" for size, change in sizes if change)
        yield (
            f"Beside {escape(pair.first)}, {escape(pair.second)} has {escape(pair.after)} for its objective and is "
            f"otherwise the same{_steps(first, second)}: that moves the worst case {moved}."
        )


def _steps(first: Row, second: Row) -> str:
    """Where batches of another size make another number of steps, a comparison is not of objectives alone."""
    if not (first.training and second.training):
        return ""
    before, after = (fmean(part.steps for part in row.training.values()) for row in (first, second))
    return f", but for {after:,.0f} training steps in place of {before:,.0f}" if before != after else ""


def _moved(change: Change) -> str:
    seeds = f"; by seed {value_list(map(signed, change.by_seed))}" if len(change.by_seed) > 1 else ""
    sure = "" if change.p < 1 - LEVEL else "not told apart from chance, "
    return f"{points(change.added, ' points')[:-1]}{seeds}; {sure}p {_is(probability(change.p))})"


def _is(text: str) -> str:
    return text if text.startswith("<") else f"= {text}"


def _rarest_class(board: Board, rows: list[Row]) -> Iterator[str]:
    """What becomes of the class with the fewest training images, in rows that differ in their countermeasure alone."""
    train = board.dataset.counts.get("train", ())
    if not train or max(train) < 1.5 * min(train):
        return
    rarest = train.index(min(train))
    known = {row.label: row for row in rows}
    recalls: dict[str, dict[str, tuple[float, list[float]]]] = {}
    for pair in board.pairs:
        if pair.part == "balancer" and {pair.first, pair.second} <= known.keys():
            first, second = (board.clean(known[label]) for label in (pair.first, pair.second))
            figures = [rates.per_class[rarest] if rates else None for rates in (first, second)]
            if figures[0] and figures[1]:
                bare = recalls.setdefault(known[pair.first].model.objective.label, {})
                bare.setdefault(pair.first, (figures[0].value, []))[1].append(figures[1].value)
    for objective, found in recalls.items():
        even = any("per_class" in known[label].model.objective.parameters for label in found)
        count = sum(len(values) for _, values in found.values())
        yield (
            f"With {escape(objective)}{', whose batches hold as many images of each class,' if even else ''} the "
            f"rarest class, {escape(board.dataset.class_names[rarest])} with {train[rarest]:,} of {sum(train):,} "
            f"training images, is recognised unchanged in {_mean(value for value, _ in found.values())} % on average "
            f"where nothing is done about it ({counted(len(found), 'row')}) and in "
            f"{_mean(fmean(values) for _, values in found.values())} % where that alone is different "
            f"({counted(count, 'row')})."
        )


def _unbalanced(row: Row) -> bool:
    return row.model.balancer.name == "none"


def _undefended_row(row: Row) -> bool:
    return all(part.name == "none" for part in row.model.defenses)


def _apart_from(row: Row, *fields: str) -> str:
    return row.model.model_dump_json(exclude={*fields, "label"})


def _mean(values: Iterable[float]) -> str:
    return f"{100 * fmean(values):.1f}"


def _weakest_class(board: Board, row: Row) -> Iterator[str]:
    rates = _rates(board, row)
    figures = {label: figure for label, figure in enumerate(rates.per_class) if figure}
    if len(figures) < 2:
        return
    ends = [pick(figure.value for figure in figures.values()) for pick in (min, max)]
    if ends[0] < ends[1]:
        weakest, strongest = (_classes(board, figures, end) for end in ends)
        yield f"Class by class, the first row keeps least of {weakest}, and most of {strongest}."


def _classes(board: Board, figures: Mapping[int, Figure], value: float) -> str:
    """The classes of that figure."""
    found = [label for label, figure in figures.items() if figure.value == value]
    return f"{listed([escape(board.dataset.class_names[label]) for label in found])}, {_rate(figures[found[0]])}"


def _flagged(rows: list[Row]) -> Iterator[str]:
    count = sum(bool(row.flags) for row in rows)
    if count:
        yield (
            f"{count} row{'s carry' if count > 1 else ' carries'} an audit flag, which puts "
            f"{'them' if count > 1 else 'it'} below the others: their robustness cannot be trusted."
        )
