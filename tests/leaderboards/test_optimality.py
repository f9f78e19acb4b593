"""Minimal-norm attacks beside the best known distances."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from board_cells import CLEAN, NEXT, TOYS, Cell, cell, model, outcome, stage
from hypothesis import given
from hypothesis import strategies as st
from sheets import heads, lines

from robbench.leaderboards import board_data, tables, write_board
from robbench.leaderboards.artifact_reader import NOTHING
from robbench.leaderboards.findings import findings
from robbench.leaderboards.optimality import ENVELOPE, local_optimality
from robbench.leaderboards.plots._scene import Scene
from robbench.leaderboards.plots._style import Fonts, style
from robbench.leaderboards.plots.distance_curves import DistanceCurves
from robbench.leaderboards.table import Table
from robbench.leaderboards.tables.minimal_norms import about_norms, frontier, standings
from robbench.results.schema import ConditionSpec

INF = np.inf
TRUTH = np.array([0, 0, 1, 1, 0])


def attack(name: str, eps: float | None = None, norm: str = "l2", target: str | None = None) -> ConditionSpec:
    label = f"{name}@{norm}:{eps or ''}" + (f"->{target}" if target else "")
    return ConditionSpec(label=label, kind="attack", stages=(stage(name, norm, eps, steps=20),), target=target)


FMN, DDN, PGD = attack("fmn"), attack("ddn"), attack("pgd", 2.5)


def reached(
    spec: ConditionSpec,
    distances: Sequence[float],
    row: str = "a",
    ids: Sequence[int] | None = None,
    seed: int = 0,
    forwards: float = 3,
) -> Cell:
    """A cell of samples that fall at their distances; those at 0 are misclassified clean."""
    found = np.asarray(distances, dtype=float)
    at = np.arange(len(found)) if ids is None else np.asarray(ids)
    clean = np.where(found == 0, 1 - TRUTH[at], TRUTH[at])
    final = np.where(np.isfinite(found), 1 - TRUTH[at], TRUTH[at])
    sizes = np.where(np.isfinite(found), found, 0.0)
    measured: dict[str, Any] = {spec.stages[0].norm: sizes, "forwards": np.full(len(at), float(forwards))}
    made = outcome("attack", TRUTH[at], clean, final, ids=at, **measured)
    return cell(model(row), spec, made, seed=seed)


# --- local optimality


@pytest.mark.parametrize(
    ("distances", "best", "expected"),
    [
        ([1, 2, 3, 0], [1, 2, 3, 0], 1.0),
        ([INF, INF, INF, 0], [1, 2, 3, 0], 0.0),
        ([3, 4, 5, 0], [1, 2, 3, 0], 0.0),  # nothing within the largest best known distance
        ([2, 2, 3, 0], [1, 2, 3, 0], 2 / 3),  # areas (3 - 2) + (3 - 2) of (3 - 1) + (3 - 2)
        ([1, INF, INF], [1, 2, 3], 2 / 3),
        ([1, 2, INF, INF], [1, 2, 3, INF], 1.0),  # at the largest and beyond there is no area to lose
        ([2, 2], [2, 2], None),
        ([2, INF], [2, INF], None),
        ([INF, INF], [INF, INF], None),
        ([0, 0], [0, 0], None),
        ([], [], None),
    ],
)
def test_local_optimality_is_a_ratio_of_areas(
    distances: Sequence[float], best: Sequence[float], expected: float | None
) -> None:
    found = local_optimality(np.asarray(distances, dtype=float), np.asarray(best, dtype=float))
    assert found == (None if expected is None else pytest.approx(expected))


sizes = st.floats(0.01, 100) | st.just(INF)
samples = st.lists(st.tuples(sizes, sizes), min_size=2, max_size=30).map(np.array)


@given(samples, st.floats(0.1, 10))
def test_it_is_a_share_that_no_scale_and_no_image_without_news_changes(pairs: np.ndarray, scale: float) -> None:
    own, best = pairs[:, 0], pairs.min(axis=1)
    found = local_optimality(own, best)
    if found is None:
        return
    assert 0 <= found <= 1 + 1e-12
    assert local_optimality(scale * own, scale * best) == pytest.approx(found)
    # Misclassified clean, or fooled by no attack at all.
    assert local_optimality(np.append(own, [0, INF]), np.append(best, [0, INF])) == pytest.approx(found)
    better = local_optimality((own.clip(max=1e3) + best.clip(max=1e3)) / 2, best)
    assert better is not None
    assert better >= found - 1e-12


def test_it_is_what_attackbench_computes_of_many_images() -> None:
    rng = np.random.default_rng(0)
    best = np.where(rng.random(4000) < 0.1, 0, rng.gamma(3, size=4000))
    own = np.where(rng.random(4000) < 0.05, INF, best * (1 + rng.exponential(0.3, 4000)))
    own[best == 0] = 0
    end = best.max()

    def area(distances: np.ndarray) -> float:
        """Under the curve through the share of images beyond each distance, its points joined by lines."""
        at = np.sort(distances.clip(max=end))
        left = 1 - np.arange(1, len(at) + 1) / len(at)
        return float(np.sum(np.diff(at) * (left[1:] + left[:-1]) / 2))

    expected = 1 - (area(own) - area(best)) / ((best > 0).mean() * end - area(best))
    assert local_optimality(own, best) == pytest.approx(expected, abs=1e-3)


# --- boards


def test_the_best_known_is_the_least_of_every_attack_of_the_norm() -> None:
    board = board_data(
        "",
        "",
        [
            reached(FMN, [1, 3, INF, 4, 0]),
            reached(DDN, [2, 2, INF, INF, 0]),
            reached(PGD, [INF, INF, 2.5, INF], ids=[0, 1, 2, 3]),  # within a ball, and not on all images
            reached(attack("hop", norm="linf"), [0.1, 0.1, 0.1, 0.1, 0]),
            reached(attack("aimed", target="next"), [0.5, 0.5, 0.5, 0.5, 0]),
            cell(model("a"), CLEAN, outcome("clean", TRUTH, [0, 0, 1, 1, 1])),
        ],
    )
    (compared,) = board.minimal_norms
    assert (compared.norm, compared.conditions, compared.n) == ("l2", (FMN.label, DDN.label), 5)
    assert compared.known == (FMN.label, DDN.label, PGD.label)
    line = compared.lines["a"]
    # Best known 1, 2, 2.5 and 4: an area of 3 + 2 + 1.5.
    shares = {label: one.optimality.value for label, one in line.items() if one.optimality}
    assert shares == {
        FMN.label: pytest.approx((3 + 1) / 6.5),
        DDN.label: pytest.approx((2 + 2) / 6.5),
        ENVELOPE: 1,
    }
    assert [line[label].success.value for label in (FMN.label, DDN.label, ENVELOPE)] == [0.75, 0.5, 1.0]
    assert line[FMN.label].success.n == 4
    medians = {label: one.median.value for label, one in line.items() if one.median}
    assert medians == {FMN.label: 3.5, ENVELOPE: 2.25}, "a median that is infinite is not shown"
    assert (line[FMN.label].forwards, line[FMN.label].backwards) == (3, 2)
    assert line[ENVELOPE].forwards is None


def test_one_attack_of_a_norm_is_compared_with_nothing(tmp_path: Path) -> None:
    cells = [reached(FMN, [1, 2, 3, 4, 0]), reached(PGD, [2, 2, 2, 2, 0]), reached(attack("fmn", None, "l1"), [1] * 5)]
    assert board_data("", "", cells).minimal_norms == ()
    write_board(tmp_path, TOYS, cells)
    assert not (tmp_path / "minimal_norms.csv").exists()
    assert "minimal_norms" not in json.loads((tmp_path / "leaderboard.json").read_text())
    assert "Minimal-norm" not in (tmp_path / "README.md").read_text()


def test_a_row_without_an_attack_is_not_compared_and_means_are_over_rows_and_seeds() -> None:
    cells = [
        *(reached(FMN, [1, 3, 3, 4, 0], row, seed=seed) for row in "abc" for seed in (0, 1)),
        *(reached(DDN, [2, 2, 3, 4, 0], "a", seed=seed) for seed in (0, 1)),
        reached(DDN, [1, 3, 3, 4, 0], "b", seed=0),
        reached(DDN, [INF, INF, INF, INF, 0], "b", seed=1),
    ]
    board = board_data("", "", cells)
    (compared,) = board.minimal_norms
    assert set(compared.lines) == {"a", "b"}
    ddn = compared.lines["b"][DDN.label]
    assert ddn.optimality is not None
    assert (ddn.optimality.value, ddn.optimality.seeds, ddn.success.value) == (0.5, (1.0, 0.0), 0.5)
    (sheet,) = tables.contents.sheets(board)["minimal_norms"]
    assert heads(sheet)[:5] == ["Attack", "Optimality (n = 5)", "Lowest", "Of model", "Success"]
    # On a the best known are 1, 2, 3 and 4: of an area of 6, fmn finds 5 and ddn 5.
    assert lines(sheet) == [
        ["fmn", "91.7", "83.3", "a", "100.0", "3", "2"],
        ["ddn", "66.7", "50.0", "b", "75.0", "3", "2"],
    ]


def test_what_a_board_shows(tmp_path: Path) -> None:
    cells = [reached(FMN, [1, 3, 3, 4, 0]), reached(DDN, [2, 2, 3, 4, 0]), cell(model("a"), NEXT, "failed")]
    write_board(tmp_path, TOYS, cells)
    readme, page = ((tmp_path / name).read_text() for name in ("README.md", "index.html"))
    assert "| Attack | Optimality (n = 5) | Success | Forward passes | Backward passes |" in readme
    assert "(minimal_norms.csv)" in readme
    assert "Distances: L2" in page
    table = (tmp_path / "minimal_norms.csv").read_text().splitlines()
    assert table[0].startswith("Model,Attack,Success,Success: low")
    assert [line.split(",")[1] for line in table[1:]] == [FMN.label, DDN.label, ENVELOPE]
    plain = json.loads((tmp_path / "leaderboard.json").read_text())
    assert plain["minimal_norms"][0]["lines"]["a"][ENVELOPE]["optimality"][0] == 1


def test_curves_show_each_attack_once_and_the_best_known() -> None:
    other = attack("fmn[steps=9]").model_copy(update={"stages": FMN.stages})
    cells = [reached(FMN, [1, 3, 3, 4, 0]), reached(other, [2, 4, 4, 5, 0]), reached(DDN, [2, 2, 3, INF, 0])]
    scene = Scene(board_data("", "", cells), Table.of(cells), NOTHING, Fonts.installed())
    with style(scene.fonts):
        (sketch,) = DistanceCurves().draw(scene)
    assert sketch.name == "distance-curves-l2"
    (axes,) = sketch.sheet.axes
    curves = {line.get_label(): np.asarray(line.get_xydata()) for line in axes.lines}
    assert list(curves) == ["fmn", "ddn", ENVELOPE]
    assert curves[ENVELOPE].tolist() == [[0, 80], [1, 60], [2, 40], [3, 20], [4, 0]]
    assert curves["ddn"].tolist() == [[0, 80], [2, 40], [3, 20], [4, 20]]
    assert "83 %" in sketch.caption


# --- boards about them


def test_a_board_about_minimal_norms_answers_which_attack_comes_nearest_at_which_budget(tmp_path: Path) -> None:
    quick, dear = attack("fmn[steps=1]"), attack("fmn[steps=999]")
    cells = [
        reached(DDN, [1, 2, 3, 4, 0], forwards=100),
        reached(dear, [1, 2, 3, 5, 0], forwards=105),
        reached(FMN, [1, 3, 3, 5, 0], forwards=95),
        reached(quick, [2, 3, 3, 5, 0], forwards=5),
        cell(model("a"), CLEAN, outcome("clean", TRUTH, [0, 0, 1, 1, 1])),
    ]
    board = board_data("", "", cells)
    assert about_norms(board)
    (compared,) = board.minimal_norms
    kept = [one.label for one in frontier(standings(board, compared))]
    assert kept == [DDN.label, quick.label], "passes of 97 are about as many as 102"
    first, *others = findings(board)
    near = f"**{DDN.label.partition('@')[0]}** in L2 (optimality 100.0 %), at 102 passes per image"
    assert first.startswith(f"Nearest to the smallest changes known: {near}.")
    assert "At 7 passes: fmn in L2" in first
    assert any("No attack was run" in other or "worst-case" in other for other in others)
    write_board(tmp_path, TOYS, cells)
    readme, page = ((tmp_path / name).read_text() for name in ("README.md", "index.html"))
    assert readme.index("Nearest attack by budget") < readme.index("## Ranking")
    assert page.index('id="minimal-norms"') < page.index('id="ranking"')
    assert readme.count("## Minimal-norm attacks") == 1


def test_a_board_of_other_attacks_is_not_about_them(tmp_path: Path) -> None:
    bounded = [attack(f"pgd-{at}", 0.1, "linf") for at in range(3)]
    cells = [reached(one, [INF] * 4 + [0]) for one in bounded]
    cells += [reached(FMN, [1, 2, 3, 4, 0]), reached(DDN, [2, 2, 3, 4, 0])]
    board = board_data("", "", cells)
    assert board.minimal_norms
    assert not about_norms(board)
    write_board(tmp_path, TOYS, cells)
    readme = (tmp_path / "README.md").read_text()
    assert readme.index("## Ranking") < readme.index("## Minimal-norm attacks")
    assert "Nearest attack" not in readme
