from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from board_cells import CLEAN, FGSM, L2, NOISE, PGD, PGD_2, TOYS, cell, model, outcome
from hypothesis import given, settings
from hypothesis import strategies as st
from sheets import first, heads, lines

from robbench.leaderboards import board_data, tables, write_board
from robbench.leaderboards.curves import CurveLine
from robbench.results.schema import Outcome

A, B = model("a"), model("b")
LABELS = np.array([0, 0, 1, 1, 1])
RIGHT = np.array([1, 1, 1, 1, 0])


def attack(survives: Sequence[int], sizes: Sequence[float] | float = 0.1, **options: object) -> Outcome:
    """An attack on samples of which the last is wrong unchanged; those that are 1 survive it."""
    clean = np.where(RIGHT == 1, LABELS, 1 - LABELS)
    final = np.where(np.asarray(survives) == 1, clean, 1 - LABELS)
    return outcome("attack", LABELS, clean, final, linf=np.broadcast_to(sizes, 5), **options)  # type: ignore[arg-type]


def shares(line: CurveLine) -> list[float]:
    return [point.share.value for point in line.points]


def test_strength_carries_successes_forward_and_its_area_is_that_of_the_smallest_changes() -> None:
    cells = [
        # Run at one eps, this attack has no part in a comparison of two.
        cell(A, FGSM, attack([1, 1, 1, 0, 1])),
        cell(A, PGD, attack([0, 1, 1, 1, 1])),
        # The second sample falls to less than this eps, the third to all of it; the first only at the smaller one.
        cell(A, PGD_2, attack([1, 0, 0, 1, 1], [0.2, 0.05, 0.2 + 1e-7, 0.2, 0])),
    ]
    (curve,) = board_data("", "", cells).strength
    assert (curve.label, curve.radii) == ("Linf", (0.1, 0.2))
    assert curve.conditions == ("pgd@0.1", "pgd@0.2")
    line = curve.lines["a"]
    assert shares(line) == [2 / 5, 1 / 5]
    assert line.area.share.value == pytest.approx((0.1 / 0.2 + 0.05 / 0.2 + 1 + 1 + 0) / 5)
    assert line.area.balanced.value == pytest.approx(((0.5 + 0.25) / 2 + (1 + 1 + 0) / 3) / 2)


survivors = st.lists(st.integers(0, 1), min_size=5, max_size=5)


@given(st.lists(survivors, min_size=3, max_size=3), st.lists(st.floats(0, 0.1), min_size=5, max_size=5))
@settings(max_examples=25, deadline=None)
def test_strength_never_rises_and_is_never_above_any_attack(found: list[list[int]], sizes: list[float]) -> None:
    conditions = (FGSM, PGD, PGD_2)
    board = board_data("", "", [cell(A, spec, attack(s, sizes)) for spec, s in zip(conditions, found, strict=True)])
    (curve,) = board.strength
    line = curve.lines["a"]
    at_0_1, at_0_2 = shares(line)
    assert at_0_1 >= at_0_2
    assert at_0_2 <= line.area.share.value <= 4 / 5
    for spec, limit in ((PGD, at_0_1), (PGD_2, at_0_2)):
        rates = board.rows[0].cells[spec.label].rates
        assert rates is not None
        assert limit <= rates.share.value


def test_strength_is_on_common_samples_of_rows_that_have_it_all_and_averages_seeds() -> None:
    part = outcome("attack", [0, 1], [0, 1], [0, 0], ids=[0, 3])
    cells = [cell(A, PGD, attack([1, 1, 1, 1, 1])), cell(A, PGD_2, part), cell(A, L2, attack([1, 1, 1, 1, 1]))]
    cells += [cell(A, spec, attack([1] * 5), seed=1) for spec in (PGD, PGD_2, L2)]
    cells += [cell(B, PGD, attack([1, 1, 1, 1, 1])), cell(B, PGD_2, "crashed")]
    board = board_data("", "", cells)
    (curve,) = board.strength
    assert set(curve.lines) == {"a"}
    assert curve.lines["a"].points[1].share.seeds == (0.5, 1.0)
    assert curve.lines["a"].points[1].share.value == 0.75
    table = tables.robustness.curve(board, curve, median=False)
    assert heads(table) == ["Model", "Clean (n = 2)", "Linf ≤ 0.1", "Linf ≤ 0.2", "Area"]
    assert lines(table) == [["a", "100.0", "75.0", "75.0", "87.5"]]


def test_one_eps_is_no_curve() -> None:
    board = board_data("", "", [cell(A, PGD, attack([1] * 5)), cell(A, CLEAN, outcome("clean", LABELS))])
    assert board.strength == board.sizes == ()
    assert tables.contents.sheets(board)["strength"] == tables.contents.sheets(board)["sizes"] == []


def noise(targets: Sequence[int], reached: Sequence[int], l1: Sequence[float]) -> Outcome:
    truth, aims = np.zeros(len(targets), dtype=int), np.array(targets)
    return outcome(
        "attack", truth, truth, np.where(np.array(reached) == 1, aims, truth), targets=aims, l1=np.array(l1, float)
    )


def test_sizes_are_read_off_at_rounded_quantiles_of_all_rows() -> None:
    cells = [
        cell(A, NOISE, noise([1] * 4, [1, 1, 1, 0], [10.01, 20.01, 30.01, 500])),
        cell(B, NOISE, noise([1] * 4, [1, 1, 0, 0], [40.01, 50.01, 1, 1])),
    ]
    board = board_data("", "", cells)
    (curve,) = board.sizes
    assert (curve.label, curve.norm, curve.radii) == (NOISE.label, "l1", (21.0, 31.0, 41.0, 51.0))
    assert shares(curve.lines["a"]) == [1 / 2, 1 / 4, 1 / 4, 1 / 4]
    assert shares(curve.lines["b"]) == [1, 1, 3 / 4, 1 / 2]
    assert curve.lines["b"].area.share.value == pytest.approx((40.01 / 51 + 50.01 / 51 + 1 + 1) / 4)
    line = first(tables.robustness.curve(board, curve, median=True))
    assert (line["Model"], line["L1 ≤ 21"], line["Median change"]) == ("a", "50.0", "20")
    assert line["Clean (n = 4)"] == "100.0"


@pytest.mark.parametrize("size", [0.0123, 0.5, 1.0, 29.71, 99.5, 1234.0])
def test_the_last_size_covers_every_success(size: float) -> None:
    board = board_data("", "", [cell(A, NOISE, noise([1], [1], [size]))])
    (curve,) = board.sizes
    assert len(curve.radii) == 1
    assert size <= curve.radii[0] <= 1.1 * size
    assert float(f"{curve.radii[0]:.2g}") == curve.radii[0]
    assert shares(curve.lines["a"]) == [0]


def test_curves_are_in_the_files(tmp_path: Path) -> None:
    cells = [cell(A, PGD, attack([1] * 5)), cell(A, PGD_2, attack([0] * 5))]
    cells += [cell(A, NOISE, noise([1, 1], [1, 0], [3, 9]))]
    write_board(tmp_path, TOYS, cells)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "Robust accuracy over size: Linf" in text
    assert "L1 ≤ 3" in text
    plain = json.loads((tmp_path / "leaderboard.json").read_text(encoding="utf-8"))
    assert plain["strength"][0]["radii"] == [0.1, 0.2]
    assert plain["strength"][0]["lines"]["a"]["points"][0]["share"][0] == 0
    assert plain["sizes"][0]["lines"]["a"]["area"]["share"][3] == 2
