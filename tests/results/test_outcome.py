"""The arrays of an outcome are declared once; whatever is declared is written, read, verified, merged and tabulated."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from board_cells import A_MODEL, CLEAN, PGD, cell, outcome
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from robbench.leaderboards.archive import OUTCOMES, read_archive, write_archive
from robbench.leaderboards.frames import samples
from robbench.results.outcome import Bools, Floats, Outcome, sizes
from robbench.results.schema import Record
from robbench.results.verification import outcome_fault


@dataclass(frozen=True)
class Timed(Outcome):
    """The one place to edit for one more array."""

    seconds: Floats = field(metadata=sizes("seconds spent", "sum", since=4))


def timed(**changes: Any) -> Timed:
    plain = outcome("attack", [0, 1, 1], [0, 1, 1], [0, 0, 1])
    known = {name: getattr(plain, name) for name in Outcome.arrays()}
    return replace(Timed.of(plain.num_classes, plain.kind, **known), **changes)


def record() -> Record:
    return cell(A_MODEL, PGD, timed())[0]


def test_one_declaration_serves_writing_and_reading() -> None:
    made = timed(seconds=np.array([1.0, 0.5, 2.0]))
    again = Timed.from_bytes(made.to_bytes())
    for item in dataclasses.fields(Timed):
        np.testing.assert_array_equal(getattr(again, item.name), getattr(made, item.name))
    assert again.sha256() == made.sha256()


def test_an_outcome_from_before_the_array_is_read_with_what_stands_for_it() -> None:
    before = outcome("attack", [0, 1], [0, 1], [0, 0])
    assert Timed.from_bytes(before.to_bytes()).seconds.tolist() == [0, 0]


def test_an_array_that_was_always_there_must_be_there() -> None:
    known = {name: getattr(timed(), name) for name in Timed.arrays() if name != "linf"}
    buffer = io.BytesIO()
    np.savez(buffer, **known, num_classes=2, kind="attack")
    with pytest.raises(TypeError, match="linf"):
        Timed.from_bytes(buffer.getvalue())


def test_an_array_that_says_nothing_new_leaves_files_and_hashes_as_they_were() -> None:
    flat = np.array([True, False, False])
    plain = outcome("clean", [0, 1, 1], flat=flat)
    assert not {"flat_ce", "flat_margin", "flat_dlr", "non_finite"} & plain.written().keys()
    again = Outcome.from_bytes(plain.to_bytes())
    np.testing.assert_array_equal(again.flat_ce, flat)
    assert again.sha256() == plain.sha256()
    more = replace(plain, flat_ce=~flat, non_finite=flat)
    assert {"flat_ce", "non_finite"} <= more.written().keys()
    assert more.sha256() != plain.sha256()
    np.testing.assert_array_equal(Outcome.from_bytes(more.to_bytes()).flat_ce, ~flat)


@pytest.mark.parametrize(
    ("seconds", "fault"),
    [
        (np.array([1.0, np.nan, 0.0]), "no sizes"),
        (np.array([1.0, -1.0, 0.0]), "no sizes"),
        (np.array([1.0, 2.0]), "of shape (2,)"),
        (np.array([1, 2, 3]), "int64"),
        (np.zeros((3, 1)), "of shape (3, 1)"),
    ],
)
def test_one_declaration_serves_verifying(seconds: np.ndarray, fault: str) -> None:
    assert outcome_fault(record(), timed()) is None
    found = outcome_fault(record(), timed(seconds=seconds))
    assert found is not None
    assert "seconds" in found
    assert fault in found


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"ids": np.array([1, 2, 1])}, "the array ids of its outcome holds a sample twice"),
        ({"draws": np.zeros(3, dtype=np.int64)}, "the array draws"),
        ({"draws": np.full((3, 2), 2)}, "classes that are not there"),
        ({"every_target": np.zeros((3, 3), dtype=np.int64)}, "the array every_target"),
        ({"every_target": np.full((3, 2), -2)}, "classes that are not there"),
        ({"targets": np.array([-1, 1, -2])}, "the array targets of its outcome names classes"),
        ({"clean": np.array([-1, 0, 0])}, "the array clean of its outcome names classes"),
        ({"flat": np.zeros(3)}, "the array flat"),
    ],
)
def test_arrays_that_are_not_as_declared_are_named(changes: dict[str, np.ndarray], fault: str) -> None:
    found = outcome_fault(record(), timed(**changes))
    assert found is not None
    assert fault in found


def test_one_declaration_serves_archives(tmp_path: Path) -> None:
    write_archive(tmp_path, [cell(A_MODEL, PGD, outcome("attack", [0, 1, 1], [0, 1, 1], [0, 0, 1]))])
    with np.load(tmp_path / OUTCOMES) as found:
        always = {name for name, spec in Outcome.arrays().items() if spec.since < 4}
        assert {name for name in found.files if not name.endswith(".width")} == {"samples", *always}
    made = outcome("clean", [0, 1, 1], non_finite=np.array([False, True, False]))
    write_archive(tmp_path, [cell(A_MODEL, CLEAN, made), cell(A_MODEL, PGD, outcome("attack", [0, 1, 1]))])
    with np.load(tmp_path / OUTCOMES) as found:
        assert "non_finite" in found.files
    assert [found.non_finite.tolist() for _, found in read_archive(tmp_path) if found] == [[0, 1, 0], [0, 0, 0]]


def test_one_declaration_serves_tables() -> None:
    made = timed(seconds=np.array([1.0, 0.5, 2.0]))
    assert samples([(record(), made)])["seconds"].tolist() == [1.0, 0.5, 2.0]


@settings(deadline=None)
@given(arrays.arrays(np.bool_, 3), st.integers(0, 3))
def test_attempts_are_put_together_as_declared(stronger: Bools, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = (
        timed(
            seconds=rng.random(3),
            linf=rng.random(3),
            final=rng.integers(0, 2, 3),
            attempted=rng.random(3) < 0.5,
            forwards=rng.random(3),
        )
        for _ in range(2)
    )
    both = first.together(second, stronger)
    np.testing.assert_array_equal(both.seconds, first.seconds + second.seconds)
    np.testing.assert_array_equal(both.forwards, first.forwards + second.forwards)
    np.testing.assert_array_equal(both.attempted, first.attempted | second.attempted)
    for name in ("linf", "final"):
        picked = np.where(stronger, getattr(second, name), getattr(first, name))
        np.testing.assert_array_equal(getattr(both, name), picked)
    np.testing.assert_array_equal(both.labels, first.labels)


def test_what_was_judged_cannot_be_written_to() -> None:
    made = timed()
    for name in Timed.arrays():
        with pytest.raises(ValueError, match="read-only"):
            getattr(made, name)[:] = 0


def test_every_array_says_what_it_holds() -> None:
    assert len(Outcome.arrays()) == 27
    assert all(len(spec.meaning) > 8 for spec in Outcome.arrays().values())
    assert [spec.since for name, spec in Outcome.arrays().items() if name in ("scored", "flat")] == [2, 2]
