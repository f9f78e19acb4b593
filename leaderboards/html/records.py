"""What numbers lead to: the records of a board as one compact JSON, parts that many share told once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from robbench.core.threat_model import format_eps
from robbench.evaluation.audit import CAUTIONS, FLAGS
from robbench.leaderboards.aggregates import Estimate
from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.sheet import Evidence, Records
from robbench.leaderboards.tables.parts import by_class, overall
from robbench.results.schema import ConditionSpec, Measure, ModelSpec, Record

# Of the provenance, only what does not differ when the same is run on another machine: the page of a board is a
# function of its cells, and what was distributed gives the same page.
_RUN = ("commit", "source", "versions", "plugins", "batch")


class _Shared:
    """Values that many records have in common, each once, in the order in which they were first met."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    def __call__(self, value: object) -> int:
        return self._places.setdefault(json.dumps(value, ensure_ascii=False, allow_nan=False), len(self._places))

    def values(self) -> list[Any]:
        return [json.loads(text) for text in self._places]


def embedded(board: Board, records: Records, sources: Iterable[Evidence]) -> str:
    """What the page's script reads, as JSON that can stand in HTML.

    ``places`` are the board's places with their figures and the keys of their records; ``records`` by key; ``figures``
    what rests on several places, by anchor; ``shared`` what records refer to by number; ``rows`` what they are filtered
    by; ``meanings`` what flags and cautions say.
    """
    shared = _Shared()
    numbers = {place: at for at, place in enumerate(records)}
    rows = {row.label: row for row in board.rows}
    corruptions = {label: place for found in board.corrupted.values() for place, label in found.conditions.items()}
    data = {
        "classes": board.dataset.class_names,
        "rows": [{"label": label, **facets(row.model)} for label, row in rows.items()],
        "meanings": {"flags": FLAGS, "cautions": CAUTIONS},
        "places": [
            {
                "row": row,
                "condition": condition,
                "keys": [record.key for record in found],
                **_place(board, rows[row], condition, corruptions.get(condition)),
            }
            for (row, condition), found in records.items()
        ],
        "records": {record.key: _record(record, shared) for found in records.values() for record in found},
        "figures": {
            source.anchor: {
                "title": source.title,
                "figures": _figures(source.figures),
                "places": [numbers[place] for place in source.places if place in numbers],
            }
            for source in sources
        },
        "shared": shared.values(),
    }
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Nothing in it can end the script element or begin a comment.
    return text.replace("<", "\\u003c")


def facets(spec: ModelSpec) -> dict[str, str]:
    """What rows are filtered by."""
    return {
        "objective": spec.objective.label,
        "defense": " + ".join(part.label for part in spec.defenses),
        "balancer": spec.balancer.label,
        "architecture": spec.architecture.label,
    }


def _place(board: Board, row: Row, condition: str, corruption: tuple[str, int] | None) -> dict[str, Any]:
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
    return {"figures": _figures(figures), "classes": _figures(by_class(rates, board.dataset.class_names))}


def _figures(figures: Mapping[str, Estimate]) -> list[list[Any]]:
    return [[name, *_values(Measure(found.value, found.low, found.high, found.n))] for name, found in figures.items()]


def _values(measure: Measure) -> list[Any]:
    """Value and count; between them the ends of the interval, where there is one."""
    ends = [] if measure.low is None or measure.high is None else [_short(measure.low), _short(measure.high)]
    return [_short(measure.value), *ends, measure.n]


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _record(record: Record, shared: _Shared) -> dict[str, Any]:
    spec = record.spec
    run = {"precision": spec.precision, "device": spec.device, "protocol": spec.protocol}
    run |= {name: record.provenance[name] for name in _RUN if record.provenance.get(name)}
    made = {
        "seed": spec.seed,
        "status": record.status,
        "reason": record.reason,
        "condition": shared(_condition(spec.condition)),
        "model": shared(spec.model.model_dump(mode="json", exclude_defaults=True)),
        "model_key": spec.model_key,
        "dataset": shared(spec.dataset.model_dump(mode="json", exclude_defaults=True)),
        "run": shared(run),
        "training": shared(record.training.model_dump(mode="json")) if record.training else None,
        "names": shared(list(record.metrics)),
        "metrics": [_values(measure) for measure in record.metrics.values()],
        "confusion": record.confusion,
        "costs": [_short(record.costs.forwards), _short(record.costs.backwards)],
        "flags": record.flags,
        "cautions": record.cautions,
        "traits": record.traits,
        "notes": record.notes,
        "outcome": record.outcome_sha256,
    }
    return {name: value for name, value in made.items() if value not in (None, (), {}, [])}


def _condition(spec: ConditionSpec) -> dict[str, Any]:
    made = spec.model_dump(mode="json", exclude_defaults=True)
    for stage in made.get("stages", ()):
        if stage["eps"] is not None:
            stage["eps"] = format_eps(stage["eps"])
    return made
