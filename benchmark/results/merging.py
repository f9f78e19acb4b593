"""One board of several people's cells. Rows and columns are told by what they are, not by what they are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from robbench.evaluation.audit import marked
from robbench.results.schema import BoardNote, CellResult, CellSpec, Outcome, Record, digest
from robbench.results.verification import CleanPredictions, refuse


@dataclass(frozen=True)
class BoardSource:
    """A board with what it rests on.

    Attributes:
        where: The store or directory that it comes from.
        note: What it says that does not follow from its cells.
        cells: Records of one data set with their outcomes, None unless done.
    """

    where: str
    note: BoardNote
    cells: tuple[CellResult, ...]

    @property
    def records(self) -> list[Record]:
        """The records."""
        return [record for record, _ in self.cells]


@dataclass(frozen=True)
class Merged:
    """What became of several sources.

    Attributes:
        source: All of them as one, under the own title.
        added: How many cells each of the others brought, by where they come from.
        set_aside: How many of the others' cells were left out, since another run of the same is there already.
        excluded: Trainings of each of the others that were excluded: the retrained model predicts differently, or
            starts from one that does.
    """

    source: BoardSource
    added: Mapping[str, int]
    set_aside: int
    excluded: Mapping[str, Sequence[str]]


def merge(own: BoardSource, others: Sequence[BoardSource]) -> Merged:
    """One board of all cells, whatever the order of the others.

    A cell that several have is there once: the own one if it is done. Where a model predicts differently elsewhere, as
    on another machine, its weights differ: no cell of it is taken from there, nor of one that starts from it. Rows of
    one name that are not the same model stay apart, the later ones with a hash behind their names. The merged rows are
    audited anew.

    Args:
        own: Comes first and gives the title.
        others: Verified boards of the same grid and data set.

    Raises:
        StoreError: If data sets or columns do not agree, or a row is not the same model in two sources.
    """
    # The largest first: what was merged before keeps its order when parts of it are merged again.
    sources = (own, *sorted(others, key=lambda other: (-len(other.cells), _content(other), other.where)))
    for other in sources[1:]:
        _check_dataset(own, other)
    _check_columns(sources)
    labels = _row_labels(sources)
    chosen: dict[str, tuple[CellResult, BoardSource]] = {}
    places: dict[tuple[str, str, int], str] = {}
    models: dict[tuple[str, int], tuple[CellSpec, BoardSource]] = {}
    added = dict.fromkeys((other.where for other in others), 0)
    set_aside, excluded = 0, {}
    predictions = CleanPredictions()
    for source, names in zip(sources, labels, strict=True):
        apart = _apart(source, chosen, predictions)
        if apart:
            excluded[source.where] = list(dict.fromkeys(apart.values()))
        for record, outcome in source.cells:
            cell = (_renamed(record, names), outcome)
            spec = cell[0].spec
            _check_model(models.setdefault((spec.model.label, spec.seed), (spec, source)), spec, source)
            if spec.model_key in apart:
                continue
            known, place = chosen.get(record.key), (spec.model.label, spec.condition.label, spec.seed)
            if known is None and places.setdefault(place, record.key) != record.key:
                set_aside += 1  # the same, but through other models: its key tells them, its specification does not
                continue
            if known is None or (known[0][0].status == "failed" and record.status != "failed"):
                chosen[record.key] = cell, source
                if outcome is not None:
                    predictions.add(record, outcome)
                if source is not own:
                    added[source.where] += 1
    references = dict.fromkeys(
        reference.model_copy(update={"row": names.get(reference.row, reference.row)})
        for source, names in zip(sources, labels, strict=True)
        for reference in source.note.references
    )
    note = own.note.model_copy(update={"references": tuple(references)})
    cells = tuple(marked([cell for cell, _ in chosen.values()], note.rank_by))
    return Merged(replace(own, note=note, cells=cells), added, set_aside, excluded)


def _content(source: BoardSource) -> str:
    """Puts sources in an order that depends on nothing but what they hold."""
    return digest([source.note.model_dump(mode="json"), [record.model_dump_json() for record in source.records]])


def _check_model(known: tuple[CellSpec, BoardSource], spec: CellSpec, source: BoardSource) -> None:
    if known[0].model_key != spec.model_key:
        refuse(
            f"{known[1].where} and {source.where}: {spec.model.label}, seed {spec.seed}, is not the same model in both "
            f"({known[0].model_key} and {spec.model_key})"
        )


def _apart(
    source: BoardSource, chosen: Mapping[str, tuple[CellResult, BoardSource]], predictions: CleanPredictions
) -> dict[str, str]:
    """Names of the source's trainings whose weights are not those of the chosen cells, by their keys."""
    names = {record.spec.model_key: f"{record.spec.model.label}, seed {record.spec.seed}" for record in source.records}
    starts = {record.spec.model_key: f"{record.spec.model.start}, seed {record.spec.seed}" for record in source.records}
    found = {
        record.spec.model_key
        for record, outcome in source.cells
        if outcome is not None
        and (_differs(chosen.get(record.key), outcome) or predictions.against(record, outcome) is not None)
    }
    while later := {
        key for key, start in starts.items() if key not in found and start in {names[key] for key in found}
    }:
        found |= later
    return {key: name for key, name in names.items() if key in found}


def _differs(known: tuple[CellResult, BoardSource] | None, outcome: Outcome) -> bool:
    """Whether a cell's outcome differs from the one that is known."""
    return known is not None and known[0][1] is not None and known[0][1].sha256() != outcome.sha256()


# -------------------------------------------------------------------------------------------------- data sets, columns


def _check_dataset(one: BoardSource, other: BoardSource) -> None:
    specs = [source.records[0].spec.dataset.model_dump() for source in (one, other)]
    for name, value in specs[0].items():
        if value != specs[1][name]:
            refuse(
                f"{one.where} and {other.where} are not of the same data set: {name} is {value} in the one and "
                f"{specs[1][name]} in the other"
            )


def _check_columns(sources: Sequence[BoardSource]) -> None:
    """One label must mean one condition in all sources, and one condition have one label."""
    meanings: dict[str, tuple[str, BoardSource]] = {}
    names: dict[str, tuple[str, BoardSource]] = {}
    for source in sources:
        for condition in (record.spec.condition for record in source.records):
            meaning = digest(_nameless(condition.model_dump(mode="json")))
            other, where = meanings.setdefault(condition.label, (meaning, source))
            if other != meaning:
                refuse(f'{where.where} and {source.where} mean two conditions by "{condition.label}"')
            other, where = names.setdefault(meaning, (condition.label, source))
            if other != condition.label:
                refuse(f'{where.where} says "{other}" to what {source.where} calls "{condition.label}"')


# ----------------------------------------------------------------------------------------------------------------- rows


def _row_labels(sources: Sequence[BoardSource]) -> list[dict[str, str]]:
    """What the rows of each source are called on the common board, by what they are called in the source."""
    taken: set[str] = set()
    called: dict[str, str] = {}
    labels = []
    for source in sources:
        names = {}
        for label, identity, keys in _rows(source):
            known = next((called[name] for name in (*keys, identity) if name in called), None)
            mark = f" ({identity[:6]})"
            base = label.removesuffix(mark)
            name = label if source is sources[0] else known or (base if base not in taken else base + mark)
            taken.add(name)
            called |= dict.fromkeys((*keys, identity), name)
            names[label] = name
        labels.append(names)
    return labels


def _rows(source: BoardSource) -> Iterable[tuple[str, str, list[str]]]:
    """Label, identity and keys of the models of each row."""
    rows: dict[str, list[Record]] = {}
    for record in source.records:
        rows.setdefault(record.spec.model.label, []).append(record)
    for label, records in rows.items():
        yield label, _identity(label, rows), sorted({record.spec.model_key for record in records})


def _identity(label: str, rows: Mapping[str, Sequence[Record]], above: tuple[str, ...] = ()) -> str:
    """A hash of a row's models without seeds and names, the model that they start from included."""
    spec = rows[label][0].spec
    start = spec.model.start
    if start is not None and start in rows and start not in (label, *above):
        start = _identity(start, rows, (label, *above))
    model = _nameless(spec.model.model_dump(mode="json", exclude={"start"}))
    return digest([model, start, spec.precision, spec.device, spec.protocol])


def _nameless(spec: Any) -> Any:
    """A specification as plain data without what things are called."""
    if isinstance(spec, list):
        return [_nameless(item) for item in spec]
    if not isinstance(spec, dict):
        return spec
    values = ("parameters", "recipe")
    return {name: item if name in values else _nameless(item) for name, item in spec.items() if name != "label"}


def _renamed(record: Record, names: Mapping[str, str]) -> Record:
    model = record.spec.model
    start = names.get(model.start, model.start) if model.start else None
    renamed = model.model_copy(update={"label": names[model.label], "start": start})
    return record.model_copy(update={"spec": record.spec.model_copy(update={"model": renamed})})
