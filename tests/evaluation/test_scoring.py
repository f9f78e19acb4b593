"""What metrics of plugins may give, and what they may do to what they are given."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from board_cells import outcome
from hypothesis import given
from hypothesis import strategies as st

from robbench.conformance.data import METRICS, _outcomes
from robbench.conformance.rules import judge
from robbench.core.errors import Breach
from robbench.core.metric import Metric
from robbench.core.registry import Registry
from robbench.evaluation.metrics._built_in import BUILT_IN_FIGURES, built_in_figures
from robbench.evaluation.scoring import MOST_FIGURES, figures_of, measure, refuse_taken
from robbench.results.schema import Measure, Outcome

LABELS = np.array([0, 0, 1, 1])
ATTACK = outcome("attack", LABELS, LABELS, 1 - LABELS)


@dataclass(frozen=True)
class Own(Metric):
    """A metric of somebody's own."""

    act: Callable[[Any], Any] = field(default=lambda outcome: {})

    def measure(self, outcome: Outcome) -> Mapping[str, Measure]:
        found: Mapping[str, Measure] = self.act(outcome)
        return found

    def __post_init__(self) -> None:
        """Take what no grid could ask for."""


def figures(act: Callable[[Any], Any], given: Outcome = ATTACK) -> dict[str, Measure]:
    found = figures_of(Own(act), given, "own")
    refuse_taken(found, {}, "own")
    return found


# --- what a metric is given


def test_built_in_figures_are_all_known_by_name() -> None:
    found = {name.partition("/")[0] for made in _outcomes().values() for name in built_in_figures(made)}
    found |= {f"worst_of_{draws}" for draws in (10, 100)}
    assert found <= BUILT_IN_FIGURES
    assert found >= BUILT_IN_FIGURES


WRITES: list[Callable[[Outcome], object]] = [
    lambda given: given.final.__setitem__(slice(None), given.labels),
    lambda given: given.final.sort(),
    lambda given: given.final.setflags(write=True),
    lambda given: setattr(given.final.flags, "writeable", True),
    lambda given: np.copyto(given.final, given.labels),
    lambda given: given.final[:2].setflags(write=True),
    lambda given: given.final.view(np.uint8).setflags(write=True),
    lambda given: np.asarray(given.final.data).__setitem__(0, 1),
]


@pytest.mark.parametrize("write", WRITES)
def test_arrays_of_an_outcome_can_be_written_to_by_nobody(write: Callable[[Outcome], object]) -> None:
    before = ATTACK.sha256()
    with pytest.raises((ValueError, TypeError)):
        write(ATTACK)
    with pytest.raises(Breach, match='metric "own"'):
        figures(lambda given: write(given) or {})
    assert ATTACK.sha256() == before


def test_arrays_do_not_follow_those_that_they_were_made_from() -> None:
    labels = LABELS.copy()
    made = outcome("clean", labels, labels)
    labels[:] = 0
    assert made.labels.tolist() == LABELS.tolist()


def test_another_array_in_place_of_one_stays_in_the_metrics_copy() -> None:
    def swap(given: Outcome) -> dict[str, Measure]:
        object.__setattr__(given, "final", given.labels)
        return {"mine": Measure(float((given.final == given.labels).mean()))}

    assert figures(swap)["mine"].value == 1.0
    assert ATTACK.final.tolist() == (1 - LABELS).tolist()


def test_writing_past_python_is_found_out() -> None:
    made = outcome("attack", LABELS, LABELS, 1 - LABELS)
    with pytest.raises(Breach, match='outcomes stay as they are: metric "own"'):
        figures(lambda given: ctypes.memset(given.final.ctypes.data, 0, given.final.nbytes) and {}, made)


# --- what a metric gives


@pytest.mark.parametrize(
    "found",
    [
        math.nan,
        math.inf,
        -math.inf,
        "1",
        None,
        True,
        1j,
        10**400,
        np.array([0.5]),
        np.datetime64("2020-01-01"),
    ],
)
def test_a_value_that_is_no_finite_number_is_refused(found: Any) -> None:
    for broken in (Measure(found), Measure(0.5, 0.0, found) if found is not None else Measure(0.5, None, 1.0)):
        with pytest.raises(Breach, match='figures are numbers in their intervals: metric "own": "mine"'):
            figures(lambda given, broken=broken: {"mine": broken})  # type: ignore[misc]


@pytest.mark.parametrize("count", [-1, 1.5, None, "4", True, math.nan])
def test_a_number_of_samples_is_a_whole_one(count: Any) -> None:
    with pytest.raises(Breach, match="which is no number of them"):
        figures(lambda given: {"mine": Measure(0.5, n=count)})


@pytest.mark.parametrize("found", [0.5, (0.5,), (0.5, None, None), (0.5, None, None, 1, 2), [0.5, None, None, 1], None])
def test_what_is_no_measure_is_refused(found: Any) -> None:
    with pytest.raises(Breach, match="not a Measure"):
        figures(lambda given: {"mine": found})


@pytest.mark.parametrize("found", [None, 0.5, [("mine", Measure(0.5))], "mine"])
def test_what_is_no_mapping_is_refused(found: Any) -> None:
    with pytest.raises(Breach, match="not names with a Measure each"):
        figures(lambda given: found)


def test_a_value_outside_its_interval_is_refused() -> None:
    with pytest.raises(Breach, match=r"lies outside its interval, 0\.6 to 0\.7"):
        figures(lambda given: {"mine": Measure(0.5, 0.6, 0.7, 4)})


@given(st.floats(-1e6, 1e6), st.floats(0, 10), st.floats(0, 10), st.integers(0, 10**6))
def test_finite_measures_are_taken_as_plain_numbers(value: float, below: float, above: float, count: int) -> None:
    made = Measure(np.float64(value), np.float64(value - below), np.float64(value + above), np.int64(count))  # type: ignore[arg-type]
    (found,) = figures(lambda given: {"mine": made}).values()
    assert found == (value, value - below, value + above, count)
    assert [type(number) for number in found] == [float, float, float, int]


@pytest.mark.parametrize("name", ["mine", "Mine_2", "a.b-c", "mine/0", "mine/1", "x" * 60])
def test_names_that_can_be_shown_are_taken(name: str) -> None:
    assert list(figures(lambda given: {name: Measure(0.5)})) == [name]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x" * 61,
        "x" * 10**6,
        "my figure",
        "mine/2",
        "mine/-1",
        "mine/01",
        "mine/",
        "mine/cat",
        "/0",
        "a/b/0",
        "=cmd()",
        "<b>",
        "mine\n",
        "mine\x1b[31m",
        "mi\u202ene",
        "|",
        "1",
        3,
        None,
        ("mine",),
        *sorted(BUILT_IN_FIGURES),
        "recall/1",
        "robust_accuracy/0",
        "accuracy/0",
    ],
)
def test_other_names_are_refused(name: Any) -> None:
    with pytest.raises(Breach, match='figures have names of their own: metric "own"') as caught:
        figures(lambda given: {name: Measure(0.5)})
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


def test_a_built_in_name_is_refused_where_the_condition_leaves_it_free() -> None:
    clean = outcome("clean", LABELS, LABELS)
    assert "robust_accuracy" not in built_in_figures(clean)
    with pytest.raises(Breach, match="is a figure of robbench itself"):
        figures(lambda given: {"robust_accuracy": Measure(1.0)}, clean)


def test_figures_are_limited_but_for_those_of_classes() -> None:
    assert len(figures(lambda given: {f"m{i}": Measure(0.5) for i in range(MOST_FIGURES)})) == MOST_FIGURES
    assert len(figures(lambda given: {f"m{i}/{c}": Measure(0.5) for i in range(MOST_FIGURES) for c in (0, 1)})) == 200
    with pytest.raises(Breach, match="5000 figures are more than the 100"):
        figures(lambda given: {f"m{i}": Measure(0.5) for i in range(5000)})


def test_an_error_names_the_metric() -> None:
    with pytest.raises(Breach, match='metrics can measure every outcome: metric "own": ZeroDivisionError'):
        figures(lambda given: 1 / 0)


# --- among other metrics

PLUGIN = """
import os
from dataclasses import dataclass
import numpy as np
from robbench import Measure, Metric, register_metric

@register_metric("first")
@dataclass(frozen=True)
class First(Metric):
    def measure(self, outcome):
        {first}
        return {{"mine": Measure(float(np.random.rand()))}}

@register_metric("second")
@dataclass(frozen=True)
class Second(Metric):
    def measure(self, outcome):
        return {{"{second}": Measure(0.5)}}
"""


def registry(folder: Path, first: str = "pass", second: str = "other") -> Registry:
    (folder / "own.py").write_text(PLUGIN.format(first=first, second=second))
    return Registry((folder / "own.py",), installed=False)


def test_figures_of_plugins_stand_beside_the_built_in_ones_and_are_repeatable(tmp_path: Path) -> None:
    known = registry(tmp_path)
    found = measure(ATTACK, known)
    state = np.random.get_state()[1].tolist()  # type: ignore[index]
    assert found == measure(ATTACK, known), "random draws of a metric are the same each time"
    assert np.random.get_state()[1].tolist() == state  # type: ignore[index]
    assert found.keys() == built_in_figures(ATTACK).keys() | {"mine", "other"}
    assert {name: found[name] for name in built_in_figures(ATTACK)} == built_in_figures(ATTACK)


def test_two_metrics_cannot_give_one_figure(tmp_path: Path) -> None:
    with pytest.raises(Breach, match='metric "second": another metric gives "mine" as well'):
        measure(ATTACK, registry(tmp_path, second="mine"))


def test_a_metric_that_changes_a_setting_of_the_process_is_named_by_it(tmp_path: Path) -> None:
    here = os.getcwd()
    with pytest.raises(Breach, match="the working directory stays"):
        measure(ATTACK, registry(tmp_path, first="os.chdir('/')"))
    assert os.getcwd() == here


def test_the_conformance_suite_tells_of_names_that_are_taken() -> None:
    results = {result.rule: result for result in judge(METRICS, Own(lambda given: {"forwards": Measure(0.5)}))}
    assert results["figures have names of their own"].passed is False
    assert "is a figure of robbench itself" in results["figures have names of their own"].detail
    named = {result.rule: result for result in judge(METRICS, Own(lambda given: {"mine": Measure(0.5)}))}
    assert all(result.passed for result in named.values())
