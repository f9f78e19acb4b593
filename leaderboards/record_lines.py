"""Records as lines of JSON: what many have in common stands once, and what follows from their outcomes not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robbench.core.safe_text import visible_json
from robbench.core.untrusted_files import parse_json
from robbench.evaluation.metrics._built_in import built_in_figures, built_in_versions
from robbench.results.schema import CellResult, Measure, Outcome, Record

FORMAT = 2
"""Of the lines. Format 1 had no first line with a number, a whole record in each, and outcomes of their own."""

_UNSTATED = {**dict.fromkeys(("agreement", "change", "decisions", "draws", "passes", "success"), 1), "robustness": 2}
"""Versions of the built-in metrics when first lines did not tell them yet."""

_MOST_UNFOLDED = 2**27
"""Letters that the records of others may have once what they share is put into each."""

_SHARED: Mapping[str, tuple[str, ...]] = {
    "spec": ("dataset", "model", "condition"),
    "": ("training", "provenance", "notes"),
}


@dataclass(frozen=True)
class RecordLine:
    """A record as it stands in its line.

    Attributes:
        number: Of the line.
        record: With those metrics alone that do not follow from the outcome.
        outcome: Fingerprint of the outcome, None where there is none.
        without: Metrics that would follow and that the record lacks, as those of an earlier version do.
    """

    number: int
    record: Record
    outcome: str | None
    without: tuple[str, ...] = ()

    def completed(self, outcome: Outcome | None) -> Record:
        """The record with what follows from its outcome.

        Raises:
            ValueError: If it was made from another outcome, or that names classes that are not there.
        """
        if (None if outcome is None else fingerprint(outcome)) != self.outcome:
            raise ValueError(f"the outcome of {self.record.key} is not what its record was made from")
        if outcome is None:
            return self.record
        # What is counted by class would take as much memory as the largest class that an array names.
        for name, spec in outcome.arrays().items():
            fault = spec.fault(getattr(outcome, name), len(outcome), outcome.num_classes)
            if spec.holds == "classes" and fault:
                raise ValueError(f"the array {name} of the outcome of {self.record.key} {fault}")
        metrics = {name: found for name, found in built_in_figures(outcome).items() if name not in self.without}
        metrics |= self.record.metrics
        update = {"metrics": dict(sorted(metrics.items())), "outcome_sha256": outcome.sha256()}
        return self.record.model_copy(update=update)


def fingerprint(outcome: Outcome) -> str:
    """Identifies the values of an outcome, whatever version of a library has written them."""
    found = hashlib.sha256()
    for name, array in outcome.written().items():
        found.update(f"{name} {array.dtype.str} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()[:20]


def record_lines(cells: Sequence[CellResult]) -> str:
    """The records of some cells: a line with the format, then a line for each shared part and for each record.

    The first line also tells the versions of the built-in metrics, whose figures are left out. A shared part stands
    before the first record that names it, as in ``{"model 3": {...}}``.
    """
    schema = cells[0][0].schema_version if cells else None
    lines = [_json({"archive": FORMAT, "schema_version": schema, "metrics": built_in_versions()})]
    places: dict[str, dict[str, str]] = {}
    for record, outcome in cells:
        data = record.model_dump(mode="json", exclude_defaults=True, exclude={"schema_version", "outcome_sha256"})
        for owner, names in _SHARED.items():
            inside = data[owner] if owner else data
            for name in names:
                if name in inside:
                    text, known = _json(inside[name]), places.setdefault(name, {})
                    if text not in known:
                        known[text] = f"{name} {len(known)}"
                        lines.append(f"{{{_json(known[text])}:{text}}}")
                    inside[name] = known[text]
        if outcome is not None:
            data |= _beyond(record.metrics, built_in_figures(outcome)) | {"outcome": fingerprint(outcome)}
        lines.append(_json(data))
    return "".join(f"{line}\n" for line in lines)


def other_versions(head: Mapping[str, Any]) -> list[str]:
    """Built-in metrics whose version is not that of an archive's first line, with both; see ``_UNSTATED``."""
    stated = head.get("metrics", _UNSTATED)
    return [
        f"{name} {stated.get(name, 'none')}, here {version}"
        for name, version in built_in_versions().items()
        if stated.get(name) != version
    ]


def _beyond(metrics: Mapping[str, Measure], following: Mapping[str, Measure]) -> dict[str, Any]:
    """What metrics have that does not follow, to the last digit, and what they lack."""
    # As text, since zeros of either sign are equal.
    own = {name: list(found) for name, found in metrics.items() if repr(following.get(name)) != repr(found)}
    lacking = sorted(following.keys() - metrics.keys())
    return {"metrics": own} | ({"without": lacking} if lacking else {})


def read_lines(lines: Iterable[str]) -> Iterator[RecordLine]:
    """The records of lines that ``record_lines`` wrote, migrated.

    Raises:
        ValueError: If a line is not what it should be, naming it.
    """
    shared: dict[str, str] = {}
    parts: dict[str, Any] = {}
    numbered = enumerate(lines, start=1)
    version, unfolded = parse_json(next(numbered)[1])["schema_version"], 0
    for number, line in numbered:
        try:
            data = parse_json(line)
            if not isinstance(data, dict):
                raise ValueError("it is no record")
            if len(data) == 1:
                shared |= {name: _json(value) for name, value in data.items()}
                continue
            references = _unfold(data, shared)
            unfolded += sum(len(shared[reference]) for reference in references.values())
            if unfolded > _MOST_UNFOLDED:
                raise ValueError(f"the records unfold to more than {_MOST_UNFOLDED:,} letters")
            outcome, without = data.pop("outcome", None), tuple(data.pop("without", ()))
            record = _sharing(Record.from_json(_json({"schema_version": version, **data})), references, parts)
        except Exception as error:
            raise ValueError(f"line {number}: {error}") from error
        yield RecordLine(number, record, outcome, without)


def _unfold(data: dict[str, Any], shared: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """Put shared parts where they are named; returns which stand where."""
    found: dict[tuple[str, str], str] = {}
    for owner, names in _SHARED.items():
        inside = data[owner] if owner else data
        for name in names:
            reference = inside.get(name)
            if isinstance(reference, str):
                if reference not in shared:
                    raise ValueError(f'there is no "{reference}" before it')
                found[owner, name] = reference
                inside[name] = json.loads(shared[reference])
    return found


def _sharing(record: Record, references: Mapping[tuple[str, str], str], parts: dict[str, Any]) -> Record:
    """The record with the shared parts of earlier ones in place of its own, so that each takes memory once."""
    for (owner, name), reference in references.items():
        holder: Any = getattr(record, owner) if owner else record
        part = getattr(holder, name)
        known = parts.setdefault(reference, part)
        if known is not part and known == part:
            holder = holder.model_copy(update={name: known})
            record = record.model_copy(update={owner: holder}) if owner else holder
    return record


def _json(value: object) -> str:
    return visible_json(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")))
