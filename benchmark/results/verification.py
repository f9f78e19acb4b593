"""Whether figures follow from what they are said to rest on. Records may be of others, so nothing is taken on trust."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from robbench.core.errors import StoreError
from robbench.core.registry import Registry
from robbench.core.safe_text import one_line
from robbench.core.threat_model import NORMS, allowed_size
from robbench.evaluation.audit import marked
from robbench.evaluation.scoring import measure, metrics_digest, scored
from robbench.evaluation.verdicts import union
from robbench.leaderboards.html.records import unpacked
from robbench.results.outcome import Outcome
from robbench.results.schema import CellResult, Costs, Measure, Record

RELATIVE_TOLERANCE = ABSOLUTE_TOLERANCE = 1e-9
"""By how much unrounded figures may differ where another processor or library computed them.

Far above what rounding makes of sums over a test set (1e-16 per addition), far below what one sample of it moves.
"""

_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.]*\w)")
_UNROUNDED = 15
"""Characters of a number that is written as it was computed, at least; shorter ones were rounded for readers."""


class CleanPredictions:
    """Predictions of models on clean images, by which their weights are told apart."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, bool], dict[int, int]] = {}

    def against(self, record: Record, outcome: Outcome) -> int | None:
        """The first sample of a cell that earlier cells of the same model predict otherwise, or None."""
        known = self._known.get(self._model(record), {})
        pairs = zip(outcome.ids.tolist(), outcome.clean.tolist(), strict=True)
        return next((sample for sample, found in pairs if known.get(sample, found) != found), None)

    def add(self, record: Record, outcome: Outcome) -> None:
        """Take over the predictions of a cell's model."""
        known = self._known.setdefault(self._model(record), {})
        known.update(zip(outcome.ids.tolist(), outcome.clean.tolist(), strict=True))

    @staticmethod
    def _model(record: Record) -> tuple[str, bool]:
        return record.spec.model_key, record.spec.condition.undefended


def refuse(reason: str) -> NoReturn:
    """Raise a ``StoreError`` of one line."""
    raise StoreError(one_line(reason, 1000))


def verify(
    cells: Sequence[CellResult], registry: Registry, file: Callable[[str], str], rank_by: str = ""
) -> frozenset[str]:
    """See that cells are whole and that every figure of their records follows from their outcomes.

    Metrics, confusion matrices, passes and what the audit finds are computed again. Intervals of records with other
    metrics, as those of an earlier version, are not compared.

    Args:
        cells: Of one board; each outcome is already known to be the one that its record names.
        registry: The known metrics.
        file: Where a cell's record stands, by its key.
        rank_by: The threat model that the board is to rank by, as in its note.

    Returns:
        Figures in the records that no known metric gives, which could not be checked.

    Raises:
        StoreError: At the first that does not follow, naming file, cell, figure, what is written and what follows.
    """
    _check_shapes(cells, file)
    _check_unions(cells, file)
    built_in, current = Registry(installed=False), metrics_digest(registry)
    unchecked: set[str] = set()
    for (record, outcome), (audited, _) in zip(cells, marked(cells, rank_by), strict=True):
        place = f"{file(record.key)}: {name_of(record)}"
        try:
            fresh = _made_again(audited, outcome, registry)
            needed = measure(outcome, built_in) if outcome is not None else {}
        except Exception as error:  # metrics of plugins, which may raise anything
            refuse(f"{place}: a metric fails on its outcome: {error!r}")
        unknown = record.metrics.keys() - fresh.metrics.keys()
        unchecked |= {one_line(name, 60) for name in unknown} if record.status == "done" else set()
        optional = fresh.metrics.keys() - needed.keys() - record.metrics.keys()
        skipped = {_metric(name) for name in (optional | unknown if record.status == "done" else optional)}
        written, follows = _figures(record), _figures(fresh)
        if record.metrics_digest != current:
            written, follows = ({name: _without_ends(one) for name, one in part.items()} for part in (written, follows))
        for figure in {**written, **follows}:
            if figure not in skipped and not _same(written.get(figure), follows.get(figure)):
                found, wanted = _text(written.get(figure)), _text(follows.get(figure))
                refuse(f"{place}: {figure} is written as {found}, but {wanted} follows from the outcomes")
    return frozenset(unchecked)


def name_of(record: Record) -> str:
    """A cell in words: its key and its place on the board."""
    spec = record.spec
    return f"cell {record.key} ({spec.model.label} · {spec.condition.label} · seed {spec.seed})"


# --------------------------------------------------------------------------------------------------------------- shapes


def _check_shapes(cells: Sequence[CellResult], file: Callable[[str], str]) -> None:
    truth: dict[int, int] = {}
    seen = CleanPredictions()
    for record, outcome in cells:
        place = f"{file(record.key)}: {name_of(record)}"
        if (record.status == "done") != (outcome is not None):
            refuse(
                f'{place}: its status is "{record.status}", {"and" if outcome else "but"} it has '
                f"{'an' if outcome else 'no'} outcome"
            )
        if record.spec.dataset != cells[0][0].spec.dataset:
            refuse(f"{place}: its data set is not specified as that of {cells[0][0].key}")
        fault = _stages_fault(record) or (outcome_fault(record, outcome) if outcome is not None else None)
        if fault:
            refuse(f"{place}: {fault}")
        if outcome is not None:
            for sample, label in zip(outcome.ids.tolist(), outcome.labels.tolist(), strict=True):
                if truth.setdefault(sample, label) != label:
                    refuse(f"{place}: sample {sample} is of class {label}, but of class {truth[sample]} in other cells")
            other = seen.against(record, outcome)
            if other is not None:
                refuse(f"{place}: the clean prediction of sample {other} is not that of other cells of the same model")
            seen.add(record, outcome)


def _stages_fault(record: Record) -> str | None:
    condition = record.spec.condition
    count = len(condition.stages)
    fits = {"clean": count == 0, "union": count == 0, "certificate": count == 0, "attack": count == 1}
    if not fits.get(condition.kind, count > 0):
        return f'its condition is of kind "{condition.kind}" and has {count} stages'
    if (condition.kind == "union") != bool(condition.union):
        return f'its condition is of kind "{condition.kind}" and over {len(condition.union)} threat models'
    if (condition.kind == "certificate") != (condition.certificate is not None):
        return f'its condition is of kind "{condition.kind}" and names {"a" if condition.certificate else "no"} method'
    proved = [(condition.certificate.norm, condition.certificate.eps)] if condition.certificate else []
    for norm, eps in (*((stage.norm, stage.eps) for stage in condition.stages), *condition.union, *proved):
        if norm not in NORMS or not (eps is None or (math.isfinite(eps) and eps >= 0)):
            return f"its condition has the limit {norm}, {eps}"
    return None


def _check_unions(cells: Sequence[CellResult], file: Callable[[str], str]) -> None:
    """See that worst cases over several threat models follow from all attacks that rank there on their row."""
    for record, outcome in cells:
        spec = record.spec
        if outcome is None or not spec.condition.union:
            continue
        row = [cell for cell in cells if (cell[0].spec.model_key, cell[0].spec.seed) == (spec.model_key, spec.seed)]
        ranking = {
            other.key: found
            for other, found in row
            if other.status != "unsupported"
            and (threat := other.spec.condition.ranks_within) is not None
            and threat in spec.condition.union
        }
        parts = [ranking.get(key) for key in spec.needs]
        known = [part for part in parts if part is not None]
        place = f"{file(record.key)}: {name_of(record)}"
        if {*spec.needs} != ranking.keys() or len(known) < len(parts) or not known:
            refuse(f"{place}: it does not rest on the attacks that rank in its threat models on its row")
        follows = union(known)
        for name in outcome.arrays():
            if not np.array_equal(getattr(outcome, name), getattr(follows, name)):
                refuse(f"{place}: the array {name} of its outcome does not follow from the attacks that it rests on")


def outcome_fault(record: Record, outcome: Outcome) -> str | None:
    """What makes the arrays of an outcome meaningless, or None."""
    classes, size = len(record.spec.dataset.class_names), outcome.ids.size
    if (outcome.kind, outcome.num_classes) != (record.spec.condition.kind, classes):
        return f'its outcome is of kind "{outcome.kind}" with {outcome.num_classes} classes'
    for name, spec in outcome.arrays().items():
        fault = spec.fault(getattr(outcome, name), size, classes)
        if fault:
            return f"the array {name} of its outcome {fault}"
    return _limit_fault(record, outcome)


def _limit_fault(record: Record, outcome: Outcome) -> str | None:
    """Whether a single attack went beyond its limit, as the referee would have seen."""
    condition = record.spec.condition
    for stage in condition.stages if condition.kind == "attack" else ():
        if stage.eps is not None and stage.norm != "none":
            largest = getattr(outcome, stage.norm).max(initial=0.0)
            if largest > allowed_size(stage.eps):
                return f"its outcome has changes of {stage.norm} {largest:.6g}, beyond the limit {stage.eps:.6g}"
    proof = condition.certificate
    if proof and bool((outcome.certified & ~(outcome.attempted & (outcome.radius >= proof.eps))).any()):
        return f"its outcome certifies images whose proved radius is below {proof.eps:.6g}, or that were not tried"
    return None


# -------------------------------------------------------------------------------------------------------------- figures


def _made_again(record: Record, outcome: Outcome | None, registry: Registry) -> Record:
    """The record with everything that follows from its outcome."""
    if outcome is None:
        return record.model_copy(update={"metrics": {}, "confusion": (), "costs": Costs()})
    costs = Costs(forwards=float(outcome.forwards.sum()), backwards=float(outcome.backwards.sum()))
    return scored(record.model_copy(update={"costs": costs}), outcome, registry)


def _figures(record: Record) -> dict[str, Any]:
    return {
        **{_metric(name): figure for name, figure in record.metrics.items()},
        **{f"row {place} of the confusion matrix": counts for place, counts in enumerate(record.confusion)},
        "the number of forward passes": record.costs.forwards,
        "the number of backward passes": record.costs.backwards,
        **{f'flag "{name}"': found for name, found in record.flags.items()},
        **{f'caution "{name}"': found for name, found in record.cautions.items()},
    }


def _without_ends(figure: Any) -> Any:
    return Measure(figure.value, n=figure.n) if isinstance(figure, Measure) else figure


def _metric(name: str) -> str:
    return f'metric "{name}"'


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _text(figure: Any) -> str:
    if figure is None:
        return "nothing"
    if isinstance(figure, Measure):
        ends = "" if figure.low is None else f" ({figure.low} to {figure.high})"
        return f"{figure.value}{ends} of {figure.n} samples"
    return f'"{figure}"' if isinstance(figure, str) else one_line(figure, 120)


# ---------------------------------------------------------------------------------------------------------------- files


def first_difference(written: bytes, follows: bytes) -> str | None:
    """Where two texts differ first: the line, and what stands there in each, from a little before the difference on.

    Unrounded figures are equal within the tolerances, everything else as it is printed.

    Returns:
        A sentence, or None where the texts say the same.
    """
    lines = [text.decode("utf-8", "replace").split("\n") for text in (written, follows)]
    for number, (found, wanted) in enumerate(zip(*lines, strict=False), start=1):
        if found != wanted and not _says_the_same(found, wanted):
            start = max(0, next(_differing(found, wanted)) - 40)
            parts = [one_line(line[start : start + 100]) for line in (found, wanted)]
            return f'line {number} is written as "{parts[0]}", but "{parts[1]}" follows from the records'
    if len(lines[0]) == len(lines[1]):
        return None
    return f"it has {len(lines[0])} lines, but {len(lines[1])} follow from the records"


def _says_the_same(found: str, wanted: str) -> bool:
    numbers = [_NUMBER.findall(line) for line in (found, wanted)]
    return _NUMBER.sub("0", found) == _NUMBER.sub("0", wanted) and all(map(_same_number, *numbers))


def _same_number(found: str, wanted: str) -> bool:
    if found == wanted or (found.lstrip("-") == wanted.lstrip("-") and float(found) == 0):
        return True
    if max(len(found), len(wanted)) < _UNROUNDED or found.lstrip("-").isdigit() or wanted.lstrip("-").isdigit():
        return False
    return math.isfinite(float(found)) and _same(float(found), float(wanted))


def _differing(one: str, other: str) -> Iterator[int]:
    yield from (place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    yield min(len(one), len(other))


def _plain(name: str, text: bytes) -> bytes:
    if not name.endswith(".html"):
        return text
    try:
        return unpacked(text.decode("utf-8", "replace")).encode()
    except ValueError:
        return text  # which then differs


def files_follow(written: Mapping[str, bytes | None], follows: Mapping[str, bytes], folder: str) -> None:
    """See that files say what they should: see ``first_difference``.

    Args:
        written: What they hold, by name; None for one that is not there.
        follows: What follows from the records.
        folder: Where they lie.

    Raises:
        StoreError: At the first that is missing or differs.
    """
    for name, wanted in follows.items():
        found = written.get(name)
        if found is None:
            refuse(f"{folder}/{name} is missing; robbench report makes it again")
        difference = None if found == wanted else first_difference(*(_plain(name, text) for text in (found, wanted)))
        if difference:
            refuse(f"{folder}/{name}: {difference}; robbench report makes it again")
