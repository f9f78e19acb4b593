"""Sentences about a board that its numbers bear out, in markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import fmean

from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.figures import Figure, Rates
from robbench.leaderboards.pairs import Change, Pair
from robbench.leaderboards.text import escape, percent, points, probability, single, value_list
from robbench.statistics import LEVEL


def findings(board: Board) -> list[str]:
    """What the board shows: best and lowest row, what perturbations and attacks cost, the weakest class."""
    rows = [row for row in board.rows if row.rank]
    if not rows:
        return ["No row could be ranked; the reasons are listed below."]
    sound = [row for row in rows if not row.flags] or rows
    return [
        *_ends(board, sound),
        *_undefended(board, sound),
        *_chosen(board, sound),
        *_training(board, sound),
        *_objectives(board),
        *_rarest_class(board, rows),
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
    if last.rank != first.rank:
        yield f"Last is {escape(last.label)} with {_rate(_rates(board, last).balanced)}."


def _undefended(board: Board, rows: list[Row]) -> Iterator[str]:
    plain = [row for row in rows if _undefended_row(row)]
    if not plain or board.ranked_by is None:
        return
    row = plain[0]
    clean = board.clean(row)
    if clean is None:
        return
    natural = row.cells[board.perturbed].rates if board.perturbed else None
    middle = f" to {percent(natural.balanced)} % under {escape(board.perturbed)} and" if natural else ""
    yield (
        f"Of the rows trained without a defense, {escape(row.label)} stands highest: from "
        f"{percent(clean.balanced)} % balanced accuracy on unchanged images it goes"
        f"{middle} to {percent(_rates(board, row).balanced)} % in that worst case."
    )


def _training(board: Board, rows: list[Row]) -> Iterator[str]:
    """Each defense against the rows that differ from its own in nothing else."""
    if board.ranked_by is None:
        return
    plain = {_apart_from(row, "defenses"): row for row in rows if _undefended_row(row)}
    pairs: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        twin = plain.get(_apart_from(row, "defenses"))
        if twin is not None and not _undefended_row(row):
            defense = "+".join(part.label for part in row.model.defenses)
            figures = (_rates(board, twin).balanced.value, _rates(board, row).balanced.value)
            pairs.setdefault(defense, []).append(figures)
    for defense, found in pairs.items():
        higher = sum(after > before for before, after in found)
        yield (
            f"Training with {escape(defense)} instead of none moves the worst case from "
            f"{_mean(before for before, _ in found)} to {_mean(after for _, after in found)} % on average over "
            f"{_count(len(found), 'otherwise equal pair')}; it is higher in {higher} of {len(found)}."
        )


def _chosen(board: Board, rows: list[Row]) -> Iterator[str]:
    """The row to choose, by validation data, and what it costs."""
    known = {row.label: row.training for row in rows if row.training}
    if len(known) < 2:
        return
    figures = {
        label: fmean(part.validation_balanced_accuracy for part in found.values()) for label, found in known.items()
    }
    passes = {label: fmean(part.forwards + part.backwards for part in found.values()) for label, found in known.items()}
    row = next(row for row in rows if row.label == max(figures, key=lambda label: figures[label]))
    clean, least = board.clean(row), min(passes.values())
    tested = f", and {percent(clean.balanced)} % on test images" if clean else ""
    images = next(iter(known[row.label].values())).validation_images
    yield (
        f"On validation data, which is what a method is to be chosen on, {escape(row.label)} stands highest without an "
        f"attack: {100 * figures[row.label]:.1f} % balanced accuracy on {images:,} images{tested}. Its training cost "
        f"{passes[row.label] / least:.1f} times the passes of the cheapest row."
    )


def _objectives(board: Board) -> Iterator[str]:
    """What another objective does to robustness, everything else being equal."""
    for pair in board.pairs:
        first = next(row for row in board.rows if row.label == pair.first)
        if pair.part != "objective" or pair.robust is None or not (_undefended_row(first) and _unbalanced(first)):
            continue
        sure = "is" if pair.p is not None and pair.p < 1 - LEVEL else "is not"
        yield (
            f"{escape(pair.second)} differs from {escape(pair.first)} in its objective alone, {escape(pair.after)} "
            f"instead of {escape(pair.before)}: that moves what ranks by {_moved(pair.robust)}, "
            f"which {sure} told apart from chance (p {_is(probability(pair.p))}).{_elsewhere(pair)}"
        )


def _moved(change: Change) -> str:
    seeds = f"; by seed {value_list(map(single, change.by_seed))}" if len(change.by_seed) > 1 else ""
    return f"{points(change.added)} points{seeds}"


def _elsewhere(pair: Pair) -> str:
    """What the change does at other sizes, a space before it: what ranks tells nothing where nothing is left."""
    if not pair.elsewhere:
        return ""
    parts = [f"at {escape(threat)} by {_moved(change)}" for threat, change in pair.elsewhere.items()]
    return f" It moves the worst case {', '.join(parts)}."


def _is(text: str) -> str:
    return text if text.startswith("<") else f"= {text}"


def _rarest_class(board: Board, rows: list[Row]) -> Iterator[str]:
    """What becomes of the class with the fewest training images, with and without a countermeasure."""
    train = board.dataset.counts.get("train", ())
    if not train or max(train) < 1.5 * min(train):
        return
    rarest = train.index(min(train))
    objectives = {row.model.objective.label: row.model.objective for row in rows}
    for objective in objectives.values():
        recalls: dict[bool, list[float]] = {True: [], False: []}
        places: list[int] = []
        for place, row in enumerate(rows, 1):
            clean = board.clean(row)
            figure = clean.per_class[rarest] if clean else None
            if row.model.objective == objective and figure is not None:
                bare = row.model.balancer.name == "none"
                recalls[bare].append(figure.value)
                places += [place] * bare
        if not (recalls[True] and recalls[False]):
            continue
        even = "per_class" in objective.parameters
        yield (
            f"With {escape(objective.label)}{', whose batches hold as many images of each class,' if even else ''} "
            f"the rarest class, {escape(board.dataset.class_names[rarest])} with {train[rarest]} of {sum(train)} "
            f"training images, is recognised unchanged in {_mean(recalls[True])} % on average where nothing is done "
            f"about it ({_count(len(recalls[True]), 'row')}, the highest at place {min(places)} of {len(rows)}) and in "
            f"{_mean(recalls[False])} % under the countermeasures ({_count(len(recalls[False]), 'row')})."
        )


def _unbalanced(row: Row) -> bool:
    return row.model.balancer.name == "none"


def _undefended_row(row: Row) -> bool:
    return all(part.name == "none" for part in row.model.defenses)


def _apart_from(row: Row, field: str) -> str:
    return row.model.model_dump_json(exclude={field, "label"})


def _mean(values: Iterable[float]) -> str:
    found = list(values)
    return f"{100 * sum(found) / len(found):.1f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _weakest_class(board: Board, row: Row) -> Iterator[str]:
    rates = _rates(board, row)
    figures = {label: figure for label, figure in enumerate(rates.per_class) if figure}
    if len(figures) < 2:
        return
    low = min(figures, key=lambda label: figures[label].value)
    high = max(figures, key=lambda label: figures[label].value)
    if figures[low].value < figures[high].value:
        names = board.dataset.class_names
        yield (
            f"In the first row the weakest class is {escape(names[low])} with {_rate(figures[low])}, "
            f"the strongest {escape(names[high])} with {_rate(figures[high])}."
        )


def _flagged(rows: list[Row]) -> Iterator[str]:
    count = sum(bool(row.flags) for row in rows)
    if count:
        yield (
            f"{count} row{'s carry' if count > 1 else ' carries'} an audit flag, which puts "
            f"{'them' if count > 1 else 'it'} below the others: their robustness cannot be trusted."
        )
