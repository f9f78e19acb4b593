"""Made-up cells for tests of boards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robbench.results.schema import (
    BoardNote,
    CellSpec,
    ConditionKind,
    ConditionSpec,
    DatasetSpec,
    ModelSpec,
    Outcome,
    PartSpec,
    Record,
    StageSpec,
    digest,
)

Cell = tuple[Record, Outcome | None]
TOYS = BoardNote(grid="small", title="Toys")


def part(name: str, **parameters: object) -> PartSpec:
    return PartSpec(name=name, label=name, version=1, parameters=parameters)


def dataset(
    names: Sequence[str] = ("car", "cat"), train: Sequence[int] = (), test: Sequence[int] = (), label: str = "toys"
) -> DatasetSpec:
    counts = {"train": tuple(train or [30] * len(names)), "test": tuple(test or [4] * len(names))}
    return DatasetSpec(
        **part("toys").model_dump() | {"label": label},
        fingerprint="f" * 64,
        class_names=tuple(names),
        counts=counts,
        duplicates=2,
        crossing=1,
        eps={"linf": (0.1, 0.2), "l2": (0.5,)},
        reference={"linf": 0.1, "l2": 0.5},
    )


def model(label: str, defense: str | None = None, start: str | None = None) -> ModelSpec:
    return ModelSpec(
        label=label,
        architecture=part("cnn"),
        objective=part("ce"),
        balancer=part("none"),
        defenses=(part(defense),) if defense else (),
        recipe={"epochs": 3},
        start=start,
    )


def stage(name: str, norm: str = "linf", eps: float | None = 0.1, **parameters: object) -> StageSpec:
    return StageSpec(
        **part(name, **parameters).model_dump(),
        norm=norm,
        eps=eps,
        white_box=norm != "none",
        losses=("margin",) if name == "pgd" else (),  # so that twenty steps of it are an audit
        gradient_steps=0 if norm == "none" else int(str(parameters.get("steps", 1))),
        bounded=eps is not None,
        global_state=name.startswith("art:"),
    )


A_MODEL = model("a")
CLEAN = ConditionSpec(label="clean", kind="clean")
ROTATION = ConditionSpec(label="rotation", kind="natural", stages=(stage("rotation", "none", None),), draws=2)
FGSM = ConditionSpec(label="fgsm@0.1", kind="attack", stages=(stage("fgsm"),))
PGD = ConditionSpec(label="pgd@0.1", kind="attack", stages=(stage("pgd", steps=20),))
PGD_2 = ConditionSpec(label="pgd@0.2", kind="attack", stages=(stage("pgd", eps=0.2, steps=20),))
L2 = ConditionSpec(label="pgd@l2:0.5", kind="attack", stages=(stage("pgd", "l2", 0.5, steps=20),))
NEXT = ConditionSpec(label="pgd@0.1->next", kind="attack", stages=(stage("pgd", steps=20),), target="next")
ALL = ConditionSpec(label="pgd@0.1->all", kind="attack", stages=(stage("pgd", steps=20),), target="all")
NOISE = ConditionSpec(label="noise->next", kind="attack", stages=(stage("noise", "l1", None),), target="next")
CHAIN = ConditionSpec(label="rotation+fgsm@0.1", kind="chain", stages=(stage("rotation", "none", None), stage("fgsm")))


def outcome(
    kind: ConditionKind,
    labels: Sequence[int] | np.ndarray,
    clean: Sequence[int] | np.ndarray | None = None,
    final: Sequence[int] | np.ndarray | None = None,
    *,
    k: int = 2,
    ids: Sequence[int] | np.ndarray | None = None,
    **arrays: Any,
) -> Outcome:
    truth = np.asarray(labels, dtype=np.int64)
    before = truth if clean is None else np.asarray(clean, dtype=np.int64)
    after = before if final is None else np.asarray(final, dtype=np.int64)
    n = len(truth)
    values: dict[str, Any] = {
        "ids": np.arange(n) if ids is None else np.asarray(ids, dtype=np.int64),
        "labels": truth,
        "clean": before,
        "final": after,
        "rounded": after,
        "attempted": np.full(n, kind != "clean") & ((before == truth) | (kind != "attack")),
        **{norm: np.full(n, 0.1) for norm in ("linf", "l2", "l1", "l0")},
        "forwards": np.full(n, 3.0),
        "backwards": np.full(n, 2.0),
    }
    if kind == "natural":
        values["draws"] = np.stack([after, before], axis=1)
    return Outcome.of(k, kind, **values | arrays)


def cell(
    row: ModelSpec,
    condition: ConditionSpec,
    result: Outcome | str,
    *,
    seed: int = 0,
    data: DatasetSpec | None = None,
    flags: Mapping[str, str] | None = None,
    seconds: float = 1.0,
) -> Cell:
    """A finished cell; or, with a text, one that failed for that reason ("!" in front: that is not supported)."""
    spec = CellSpec(
        dataset=data or dataset(),
        model=row,
        model_key=digest(row.label),
        condition=condition,
        seed=seed,
        precision="float32",
        device="cpu",
        protocol=1,
    )
    failed = isinstance(result, str)
    record = Record(
        key=digest([row.label, condition.label, seed]),
        status=("unsupported" if str(result).startswith("!") else "failed") if failed else "done",
        reason=str(result) if failed else None,
        spec=spec,
        flags=dict(flags or {}),
        provenance={"versions": {"torch": "2.4.0"}, "host": "thishost", "date": "2024-05-06"},
        timings={"attack": seconds, "training": {"seconds": 2 * seconds}},
    )
    return record, None if isinstance(result, str) else result
