"""What numbers lead to: the records of a board as one compact JSON, parts that many share told once."""

from __future__ import annotations

import base64
import binascii
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from robbench.core.threat_model import format_eps
from robbench.evaluation.audit_flags import CAUTIONS, FLAGS
from robbench.leaderboards.ablations import Pair
from robbench.leaderboards.aggregates import Estimate, Rates
from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.sheet import Evidence, Records
from robbench.leaderboards.tables.parts import by_class, overall
from robbench.results.schema import MANY_CLASSES, ConditionSpec, Measure, ModelSpec, Record

# Of the provenance, only what does not differ when the same is run on another machine: the page of a board is a
# function of its cells, and what was distributed gives the same page.
_LARGEST = 2**28  # bytes
_DATA = re.compile(r'(?<=id="data">)[A-Za-z0-9+/=]*(?=</script>)')
_RUN = ("commit", "source", "versions", "plugins", "batch")


class _Shared:
    """Values that many have in common, each once, in the order in which they were first met."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    def __call__(self, value: object) -> int:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return self._places.setdefault(text, len(self._places))

    def values(self) -> list[Any]:
        return [json.loads(text) for text in self._places]


@dataclass(frozen=True)
class _Pool:
    """What is told once and referred to by number: values of any kind, and figures with their intervals."""

    shared: _Shared = field(default_factory=_Shared)
    measures: _Shared = field(default_factory=_Shared)

    def figures(self, found: Mapping[str, Estimate] | Mapping[str, Measure]) -> list[int]:
        """The number of the list of their names, then the number of each figure; nothing where there are none."""
        measures = [self.measures(_values(figure)) for figure in found.values()]
        return [self.shared(list(found)), *measures] if found else []

    def rates(self, found: Rates | None, class_names: Sequence[str]) -> list[list[int]]:
        return [self.figures(overall(found)), self.figures(by_class(found, class_names))]


def embedded(board: Board, records: Records, sources: Iterable[Evidence]) -> str:
    """What the page's script reads: JSON, deflated, in base64.

    ``measures`` are figures as value, ends of the interval where there is one, and count; ``shared`` is what else is
    referred to by number. A list of figures is the number of their names in ``shared`` and their numbers in
    ``measures``. ``places`` are the board's places: number of the row, of the condition, keys of the records, figures,
    figures by class. ``records`` by key; ``figures`` what rests on several places, by anchor, as title, figures and
    numbers of places; ``rows`` what they are filtered by, with their worst cases; ``pairs`` what the board compared
    image by image; ``meanings`` what flags and cautions say.
    """
    pool = _Pool()
    numbers = {place: at for at, place in enumerate(records)}
    rows = {row.label: row for row in board.rows}
    at_row = {label: at for at, label in enumerate(rows)}
    conditions = {label: at for at, label in enumerate(dict.fromkeys(label for _, label in records))}
    corruptions = {label: place for found in board.corrupted.values() for place, label in found.conditions.items()}
    names = board.dataset.class_names
    data = {
        "classes": names,
        "conditions": list(conditions),
        "clean": board.clean_label,
        "rows": [
            {
                "label": label,
                "facets": facets(row.model),
                "worst": {threat: pool.rates(found, names) for threat, found in row.worst.items() if found},
            }
            for label, row in rows.items()
        ],
        "pairs": [[at_row[pair.first], at_row[pair.second], _changes(board, pair, pool)] for pair in board.pairs],
        "meanings": {"flags": FLAGS, "cautions": CAUTIONS},
        "places": [
            [
                at_row[row],
                conditions[condition],
                [record.key for record in found],
                *_place(board, rows[row], condition, corruptions.get(condition), pool),
            ]
            for (row, condition), found in records.items()
        ],
        "records": {record.key: _record(record, pool) for found in records.values() for record in found},
        "figures": {
            source.anchor: [
                source.title,
                pool.figures(source.figures),
                [numbers[place] for place in source.places if place in numbers],
            ]
            for source in sources
        },
        "shared": pool.shared.values(),
        "measures": pool.measures.values(),
    }
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def unpacked(page: str) -> str:
    """A page with what its script reads as JSON in place of what ``embedded`` made of it.

    Two builds of zlib may pack the same differently, so that pages are compared in this form.

    Raises:
        ValueError: If it is damaged, or would unfold to more than any board has.
    """

    def plain(found: re.Match[str]) -> str:
        inflate = zlib.decompressobj()
        text = inflate.decompress(base64.b64decode(found[0], validate=True), _LARGEST)
        if inflate.unconsumed_tail or not inflate.eof:
            raise ValueError("its data are cut short or larger than any board's")
        return text.decode()

    try:
        return _DATA.sub(plain, page)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"its data are damaged: {error}") from None


def _changes(board: Board, pair: Pair, pool: _Pool) -> dict[str, list[Any]]:
    """What a pair's second row adds to the first, by condition or threat model: the figure's number, then p or null."""
    found = {board.clean_label or "": pair.clean, board.threat or "": pair.robust, **pair.elsewhere}
    return {
        name: [pool.measures(_values(change.added)), change.p if change.p is None else _short(change.p)]
        for name, change in found.items()
        if change
    }


def facets(spec: ModelSpec) -> dict[str, str]:
    """What rows are filtered by."""
    return {
        "objective": spec.objective.label,
        "defense": " + ".join(part.label for part in spec.defenses),
        "balancer": spec.balancer.label,
        "architecture": spec.architecture.label,
    }


def _place(board: Board, row: Row, condition: str, corruption: tuple[str, int] | None, pool: _Pool) -> list[list[int]]:
    """The figures of a place, over all seeds and by class."""
    entry, checked = row.cells.get(condition), row.checks.get(condition)
    if entry is not None:
        rates = entry.rates
    else:
        rates = board.corrupted[row.label].rates.get(corruption) if corruption else None
    figures = overall(rates)
    if entry is not None and entry.accuracy is not None:
        figures |= {f"plain, {name}": figure for name, figure in overall(entry.accuracy).items()}
    if checked is not None and checked.left is not None:
        figures = {"left": checked.left}
    return [pool.figures(figures), pool.figures(by_class(rates, board.dataset.class_names))]


def _values(measure: Estimate | Measure) -> list[Any]:
    """Value and count; between them the ends of the interval, where there is one."""
    ends = [] if measure.low is None or measure.high is None else [_short(measure.low), _short(measure.high)]
    return [_short(measure.value), *ends, measure.n]


def _short(value: float) -> float | int:
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() else short


def _record(record: Record, pool: _Pool) -> dict[str, Any]:
    """A record without what is usual: ``made`` is what all records of a model share, ``status`` is told if not done."""
    spec, shared = record.spec, pool.shared
    run = {"precision": spec.precision, "device": spec.device, "protocol": spec.protocol}
    run |= {name: record.provenance[name] for name in _RUN if record.provenance.get(name)}
    made = {
        "seed": spec.seed,
        "model_key": spec.model_key,
        "model": shared(spec.model.model_dump(mode="json", exclude_defaults=True)),
        "dataset": shared(spec.dataset.model_dump(mode="json", exclude_defaults=True)),
        "run": shared(run),
        "training": shared(record.training.model_dump(mode="json")) if record.training else None,
    }
    few = len(spec.dataset.class_names) <= MANY_CLASSES
    told = {
        "made": shared(made),
        "condition": shared(_condition(spec.condition)),
        "status": record.status if record.status != "done" else None,
        "reason": record.reason,
        "metrics": pool.figures({name: found for name, found in record.metrics.items() if few or "/" not in name}),
        "confusion": record.confusion if few else (),
        "costs": [_short(record.costs.forwards), _short(record.costs.backwards)],
        "flags": record.flags,
        "cautions": record.cautions,
        "traits": record.traits,
        "notes": record.notes,
        "outcome": record.outcome_sha256 and record.outcome_sha256[:16],
    }
    return {name: value for name, value in told.items() if value not in (None, (), {}, [])}


def _condition(spec: ConditionSpec) -> dict[str, Any]:
    made = spec.model_dump(mode="json", exclude_defaults=True)
    for stage in made.get("stages", ()):
        if stage["eps"] is not None:
            stage["eps"] = format_eps(stage["eps"])
    return made
