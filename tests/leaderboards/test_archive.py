from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from archives import write_format_1
from board_cells import A_MODEL, CHAIN, CLEAN, FGSM, PGD, ROTATION, Cell, cell, dataset, model, outcome
from hypothesis import given, settings
from hypothesis import strategies as st

from robbench.core.registry import Registry
from robbench.evaluation.metrics._built_in import built_in_figures, built_in_versions
from robbench.leaderboards.archive import OUTCOMES, RECORDS, other_metrics, read_archive, write_archive
from robbench.leaderboards.outcome_columns import pack_outcomes, unpack_outcomes
from robbench.results.schema import SCHEMA, Measure, Outcome, Record, Training

LABELS = np.array([0, 1, 1])
floats = st.floats(allow_nan=True, allow_infinity=True, width=64) | st.integers(0, 300).map(float) | st.just(-0.0)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """Libraries for metrics are loaded before examples are made, as one draws random numbers when it is loaded."""
    built_in_figures(outcome("clean", LABELS))


@st.composite
def outcomes(draw: st.DrawFn, kind: Any = "attack", classes: int = 3) -> Outcome:
    n = draw(st.integers(0, 5))

    def column(values: st.SearchStrategy[Any], dtype: type, *shape: int) -> np.ndarray:
        size = int(np.prod((n, *shape)))
        return np.array(draw(st.lists(values, min_size=size, max_size=size)), dtype=dtype).reshape(n, *shape)

    classed = st.integers(0, classes - 1)
    ids = draw(st.lists(st.integers(0, 2**62), min_size=n, max_size=n, unique=True))
    return Outcome(
        ids=np.array(ids, dtype=np.int64),
        **{name: column(classed, np.int64) for name in ("labels", "clean", "final", "rounded", "scored")},
        **{name: column(st.booleans(), np.bool_) for name in ("attempted", "flat", "flat_ce", "flat_margin")},
        **{name: column(st.booleans(), np.bool_) for name in ("flat_dlr", "flat_between", "non_finite", "searched")},
        **{name: column(st.booleans(), np.bool_) for name in ("rejected", "certified")},
        **{name: column(floats, np.float64) for name in ("linf", "l2", "l1", "l0", "forwards", "backwards")},
        **{name: column(floats, np.float64) for name in ("radius", "chance")},
        targets=column(st.integers(-1, classes - 1), np.int64),
        draws=column(classed, np.int64, draw(st.integers(0, 2))),
        every_target=column(st.integers(-1, classes - 1), np.int64, draw(st.sampled_from([0, classes]))),
        num_classes=classes,
        kind=kind,
    )


def same(one: Sequence[Cell], other: Sequence[Cell]) -> bool:
    """Equal records, and outcomes of the same bytes."""
    bits = [[None if found is None else found.to_bytes() for _, found in cells] for cells in (one, other)]
    return [record for record, _ in one] == [record for record, _ in other] and bits[0] == bits[1]


def hashed(cells: Sequence[Cell]) -> list[Cell]:
    return [
        (record.model_copy(update={"outcome_sha256": None if found is None else found.sha256()}), found)
        for record, found in cells
    ]


def back(cells: Sequence[Cell]) -> list[Cell]:
    with TemporaryDirectory() as folder:
        write_archive(Path(folder), cells)
        return read_archive(Path(folder))


# --- outcomes


@settings(deadline=None)
@given(st.lists(outcomes(), max_size=4))
def test_columns_give_back_outcomes_bit_for_bit(made: list[Outcome]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "outcomes.npz"
        path.write_bytes(pack_outcomes(made))
        with np.load(path, allow_pickle=False) as arrays:
            columns = dict(arrays)
    found = list(unpack_outcomes(columns, [(one.kind, one.num_classes) for one in made]))
    assert [one.to_bytes() for one in found] == [one.to_bytes() for one in made]
    assert pack_outcomes(found) == pack_outcomes(made)


def test_columns_are_of_the_smallest_exact_type_and_floats_are_not_rounded(tmp_path: Path) -> None:
    size = np.array([1.0, 2.0, 255.0])
    third, single = np.full(3, 1 / 3), np.full(3, np.float64(np.float32(0.1)))
    made = outcome("attack", LABELS, l0=size, linf=single, l2=third, targets=np.array([-1, 0, 1]))
    (tmp_path / "made.npz").write_bytes(pack_outcomes([made]))
    with np.load(tmp_path / "made.npz", allow_pickle=False) as columns:
        kinds = {name: columns[name].dtype for name in ("ids", "targets", "l0", "linf", "l2")}
        assert kinds == {"ids": np.uint8, "targets": np.int16, "l0": np.uint8, "linf": np.float32, "l2": np.uint8}
        # Byte by byte, the least significant of all values first.
        assert columns["l2"].T.tobytes() == struct.pack("<3d", *third)


@pytest.mark.parametrize("changed", [{"l2": np.zeros(3, np.float32)}, {"final": np.zeros(2, np.int64)}])
def test_arrays_that_outcomes_do_not_declare_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"the array {next(iter(changed))} of an outcome is"):
        pack_outcomes([outcome("attack", LABELS, **changed)])


# --- cells


def finite(found: Measure) -> bool:
    return all(end is None or np.isfinite(end) for end in found)


@st.composite
def some_cells(draw: st.DrawFn) -> list[Cell]:
    data = dataset([draw(texts), "cat", "cow"])
    rows = [model(draw(texts)), model("other", "fgm")]
    share = st.floats(0, 1)
    end = st.none() | share
    made = []
    for seed in range(draw(st.integers(0, 4))):
        condition = draw(st.sampled_from([CLEAN, FGSM, PGD, ROTATION, CHAIN]))
        found = draw(outcomes(condition.kind))
        results: list[Outcome | str] = [found, "it broke", "!not for this"]
        result = draw(st.sampled_from(results))
        record, _ = cell(draw(st.sampled_from(rows)), condition, result, seed=seed, data=data)
        metrics = {}
        if isinstance(result, Outcome) and draw(st.booleans()):
            try:
                metrics = {name: value for name, value in built_in_figures(found).items() if finite(value)}
            except ValueError:
                metrics = {}
            metrics = {name: value for name, value in metrics.items() if draw(st.booleans())}
        metrics |= draw(st.dictionaries(texts, st.builds(Measure, share, end, end, st.integers(0, 9)), max_size=2))
        notes = draw(st.sampled_from([(), ("a note\u2028of two lines",)]))
        training = draw(st.none() | st.builds(Training, **{n: st.just(1) for n in Training.model_fields}))
        record = record.model_copy(update={"metrics": metrics, "notes": notes, "training": training})
        made.append((record, result if isinstance(result, Outcome) else None))
    return hashed(made)


@settings(max_examples=50, deadline=None)
@given(some_cells())
def test_an_archive_gives_back_its_cells(cells: list[Cell]) -> None:
    found = back(cells)
    assert same(found, cells)
    assert same(back(found), cells)


@settings(max_examples=50, deadline=None)
@given(some_cells())
def test_an_archive_of_the_earlier_format_is_read_the_same(cells: list[Cell]) -> None:
    with TemporaryDirectory() as folder:
        write_format_1(Path(folder), cells)
        if cells:  # there were no boards without cells
            assert same(read_archive(Path(folder)), cells)


def test_an_archive_of_before_is_audited_for_what_is_flagged_now(tmp_path: Path) -> None:
    labels = np.arange(20) % 2
    cells = hashed([cell(A_MODEL, CLEAN, outcome("clean", labels, np.zeros(20, dtype=np.int64)))])
    write_archive(tmp_path, cells)
    assert read_archive(tmp_path)[0][0].flags == {}, "records of this version say what was found"
    path = tmp_path / RECORDS
    path.write_text(path.read_text().replace(f'"schema_version":{SCHEMA}', '"schema_version":3'))
    assert list(read_archive(tmp_path)[0][0].flags) == ["collapsed"]


@pytest.mark.parametrize(
    ("name", "fields", "losses"),
    [
        ("pgd", {}, ("ce",)),
        ("fmn", {"margin_loss": True}, ("margin",)),
        ("apgd-dlr", {"margin_loss": True, "parameters": {"loss": "dlr"}}, ("dlr",)),
        ("square", {"margin_loss": True, "white_box": False, "parameters": {"loss": "margin"}}, ("margin",)),
        ("strong", {"margin_loss": True}, ("ce", "margin", "dlr")),
        ("art:CarliniL2Method", {"bounded": False}, ("margin",)),
        ("noise", {"white_box": False}, ()),
    ],
)
def test_attacks_of_before_are_given_the_losses_that_they_follow(
    name: str, fields: dict[str, Any], losses: tuple[str, ...]
) -> None:
    data = cell(A_MODEL, PGD, "it broke")[0].model_dump(mode="json") | {"schema_version": 3}
    (attack,) = data["spec"]["condition"]["stages"]
    del attack["losses"]
    attack |= {"name": name, "parameters": {}} | fields
    assert Record.from_json(json.dumps(data)).spec.condition.stages[0].losses == losses


def measured(cells: Sequence[Cell]) -> list[Cell]:
    update = [{} if found is None else {"metrics": built_in_figures(found)} for _, found in cells]
    return hashed([(record.model_copy(update=new), found) for (record, found), new in zip(cells, update, strict=True)])


def test_what_records_share_stands_once_and_what_follows_from_outcomes_not_at_all(tmp_path: Path) -> None:
    cells = measured([cell(A_MODEL, CLEAN, outcome("clean", LABELS), seed=seed) for seed in range(3)])
    write_archive(tmp_path, cells)
    lines = [json.loads(line) for line in (tmp_path / RECORDS).read_text().splitlines()]
    assert lines[0] == {"archive": 2, "schema_version": SCHEMA, "metrics": built_in_versions()}
    assert [next(iter(line)) for line in lines[1:5]] == ["dataset 0", "model 0", "condition 0", "provenance 0"]
    assert len(lines) == 1 + 4 + 3
    assert {(line["spec"]["model"], line["spec"]["dataset"]) for line in lines[5:]} == {("model 0", "dataset 0")}
    assert all(line["metrics"] == {} for line in lines[5:])
    assert same(read_archive(tmp_path), cells)
    assert read_archive(tmp_path)[0][0].metrics["accuracy"].n == 3


def test_a_metric_that_does_not_follow_to_the_last_digit_stands_in_the_archive(tmp_path: Path) -> None:
    ((record, made),) = measured([cell(A_MODEL, CLEAN, outcome("clean", LABELS, clean=[0, 0, 1]))])
    found = record.metrics["accuracy"]
    other = found._replace(value=float(np.nextafter(found.value, 1)))
    changed = {name: value for name, value in record.metrics.items() if name != "macro_f1"} | {"accuracy": other}
    cells = [(record.model_copy(update={"metrics": changed}), made)]
    write_archive(tmp_path, cells)
    line = json.loads((tmp_path / RECORDS).read_text().splitlines()[-1])
    assert line["metrics"] == {"accuracy": list(other)}
    assert line["without"] == ["macro_f1"]
    assert same(read_archive(tmp_path), cells)


def test_the_same_cells_give_the_same_bytes(tmp_path: Path) -> None:
    cells = measured([cell(A_MODEL, FGSM, outcome("attack", LABELS)), cell(A_MODEL, CLEAN, "it broke")])
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_archive(tmp_path / name, cells)
    for name in (RECORDS, OUTCOMES):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(
    ("head", "told"),
    [
        ({}, ["decisions 1, here 3", "draws 1, here 2", "robustness 2, here 4", "success 1, here 2"]),
        ({"metrics": built_in_versions()}, []),
        ({"metrics": built_in_versions() | {"success": 7}}, ["success 7, here 2"]),
        (
            {"metrics": {name: version for name, version in built_in_versions().items() if name != "draws"}},
            ["draws none, here 2"],
        ),
    ],
)
def test_other_versions_of_built_in_metrics_are_told(head: dict[str, Any], told: list[str], tmp_path: Path) -> None:
    write_archive(tmp_path, measured([cell(A_MODEL, CLEAN, outcome("clean", LABELS))]))
    first, _, rest = (tmp_path / RECORDS).read_text().partition("\n")
    known = {name: value for name, value in json.loads(first).items() if name != "metrics"}
    (tmp_path / RECORDS).write_text(f"{json.dumps(known | head)}\n{rest}")
    assert other_metrics(tmp_path) == told
    assert len(read_archive(tmp_path)) == 1


def test_the_versions_of_the_built_in_metrics_are_those_of_the_registry() -> None:
    entries = Registry(installed=False).entries("metric")
    assert built_in_versions() == {name: entry.cls.version for name, entry in entries.items()}
    assert len(entries) > 5


def test_an_outcome_of_another_condition_than_its_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="another condition"):
        write_archive(tmp_path, [cell(A_MODEL, CLEAN, outcome("attack", LABELS))])
