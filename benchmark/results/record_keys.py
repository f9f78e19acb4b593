"""Whether keys are those that the specifications of their records give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from robbench.planning.plan import PROTOCOL, cell_key, model_key
from robbench.results.schema import CellResult, CellSpec, Record
from robbench.results.verification import name_of, refuse

_ONCE_BY_PATH = ("image-folder", "image-folder-imbalanced")


def check_keys(cells: Sequence[CellResult], file: Callable[[str], str]) -> frozenset[str]:
    """See that every cell and its model stand under the key that is computed anew from the record's specification.

    Records of earlier versions lack a part of what some keys rest on. Of those it is computed from what the board's
    other records say, or it is told that the key could not be checked: where a model starts from a row that is not on
    the board; where a cell works through other models, or draws its images from what other cells left, and these are
    not the board's; where keys held the path of a folder of images; and where the protocol is another.

    Args:
        cells: Of one board.
        file: Where a cell's record stands, by its key.

    Returns:
        The keys that could not be computed anew, by what is special about them.

    Raises:
        StoreError: At the first key that is another, naming file, cell, the key and what follows.
    """
    models = {(record.spec.model.label, record.spec.seed): record.spec.model_key for record, _ in cells}
    unchecked: set[str] = set()
    for record, _ in cells:
        spec = record.spec
        if spec.protocol != PROTOCOL:
            unchecked.add(f"of protocol {spec.protocol}")
            continue
        for what, key, follows, gap in (
            ("the key of its model", spec.model_key, *_model(spec, models)),
            ("its key", record.key, *_cell(record, models)),
        ):
            if key == follows:
                continue
            if not gap:
                place = f"{file(record.key)}: {name_of(record)}"
                refuse(f"{place}: {what} is {key}, but {follows} follows from its specification")
            unchecked.add(gap)
    return frozenset(unchecked)


def _model(spec: CellSpec, models: Mapping[tuple[str, int], str]) -> tuple[str, str]:
    """The key that a model's specification gives, and why it may be another all the same; empty where it may not."""
    label = spec.model.start
    known = spec.start_key or (models.get((label, spec.seed), label) if label else None)
    key = model_key(spec.precision, spec.device, spec.dataset, spec.model, spec.seed, known)
    if spec.dataset.name in _ONCE_BY_PATH:
        return key, "of folders of images, which rested on the folder's path once"
    absent = label is not None and spec.start_key is None and (label, spec.seed) not in models
    return key, "of models that start from a row that is not there" if absent else ""


def _cell(record: Record, models: Mapping[tuple[str, int], str]) -> tuple[str, str]:
    """The same of a cell."""
    spec = record.spec
    through_peers = any(stage.through_peers for stage in spec.condition.stages)
    told = bool(spec.peers or spec.needs)
    peers = spec.peers
    if through_peers and not told:
        peers = tuple(sorted(key for (_, seed), key in models.items() if seed == spec.seed and key != spec.model_key))
    key = cell_key(spec, peers, spec.needs)
    resting = not told and (through_peers or spec.condition.survivors)
    return key, "of cells that rest on others and do not name them" if resting else ""
