from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robbench.core.errors import StoreError
from robbench.results.verification import files_follow, first_difference

THIRD = 1 / 3
NEXT = math.nextafter(THIRD, 1)
ROUNDING = 2.0**-53


def same(written: object, follows: object) -> bool:
    """Whether two texts, or the JSON of two values, say the same."""
    texts = [text if isinstance(text, str) else json.dumps(text, indent=1) for text in (written, follows)]
    return first_difference(texts[0].encode(), texts[1].encode()) is None


@given(st.floats(-1, 1), st.integers(-100, 100))
def test_figures_may_differ_in_their_last_digits(value: float, steps: int) -> None:
    assert same({"added": [value, 2, "a"]}, {"added": [value + steps * ROUNDING, 2, "a"]})


@given(st.floats(-1, 1), st.floats(1e-6, 1))
def test_figures_may_not_differ_by_a_sample_in_a_million(value: float, off: float) -> None:
    assert not same([value], [value + off])


@pytest.mark.parametrize(
    ("written", "follows"),
    [
        (f"a,{THIRD}\n", f"b,{NEXT}\n"),
        (f"{THIRD}\n", f"{NEXT}\n1\n"),
        (f"{THIRD},3\n", f"{NEXT},4\n"),
        ("91.25 %\n", "91.250 %\n"),
        ("0.3333333\n", "0.3333334\n"),
        ("9000000000000000\n", "9000000000000001\n"),
        (f'"{"ab" * 20}9e{"1" * 20}"', f'"{"ab" * 20}9e{"1" * 19}2"'),
        (f"9e{'1' * 20}", f"9e{'1' * 19}2"),
        ("NaN", str(THIRD)),
    ],
    ids=["words", "lines", "counts", "printed", "rounded", "large counts", "hashes", "infinite", "no number"],
)
def test_everything_else_is_equal_as_it_is_printed(written: str, follows: str) -> None:
    assert not same(written, follows)
    assert same(written, written)


def test_the_first_difference_is_named_and_not_a_last_digit_before_it() -> None:
    found = first_difference(f"{THIRD}\n{THIRD} of 20\n".encode(), f"{NEXT}\n{NEXT} of 21\n".encode())
    assert found == f'line 2 is written as "{THIRD} of 20", but "{NEXT} of 21" follows from the records'


def test_files_of_another_processor_follow_and_missing_or_changed_ones_do_not() -> None:
    wanted = {"leaderboard.json": json.dumps([THIRD]).encode()}
    files_follow({"leaderboard.json": json.dumps([NEXT]).encode()}, wanted, "boards/a")
    with pytest.raises(StoreError, match=r"boards/a/leaderboard.json is missing"):
        files_follow({"leaderboard.json": None}, wanted, "boards/a")
    with pytest.raises(StoreError, match=r"boards/a/leaderboard.json: line 1 is written as .*0\.34"):
        files_follow({"leaderboard.json": b"[0.34]"}, wanted, "boards/a")
