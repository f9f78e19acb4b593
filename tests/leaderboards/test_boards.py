from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from board_cells import (
    ALL,
    CHAIN,
    CLEAN,
    FGSM,
    L2,
    NEXT,
    NOISE,
    PGD,
    PGD_2,
    ROTATION,
    TOYS,
    Cell,
    cell,
    dataset,
    model,
    outcome,
    stage,
)
from sheets import first, heads, lines

from robbench.leaderboards import board_data, summary_rows, tables, write_board
from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.readme import readme
from robbench.results.schema import ConditionSpec, ExternalSpec, Outcome


def board(cells: Sequence[Cell]) -> Board:
    return board_data("Toys", "small", cells)


def row_of(made: Board, label: str) -> Row:
    return next(row for row in made.rows if row.label == label)


def order(made: Board) -> list[tuple[str, str]]:
    return [(row.rank, row.label) for row in made.rows]


def attacked(right: Sequence[int] | np.ndarray, labels: Sequence[int] | np.ndarray, **options: object) -> Outcome:
    """An attack that leaves the samples that are 1 in ``right`` right."""
    truth = np.asarray(labels)
    return outcome("attack", truth, truth, np.where(np.asarray(right) == 1, truth, 1 - truth), **options)  # type: ignore[arg-type]


LABELS = [0, 0, 0, 1]
A, B = model("a"), model("b", "fgm")


def test_worst_case_is_taken_per_sample_then_averaged_over_classes() -> None:
    cells = [cell(A, FGSM, attacked([1, 1, 0, 1], LABELS)), cell(A, PGD, attacked([0, 1, 1, 1], LABELS))]
    made = board(cells)
    worst = made.rows[0].worst["Linf 0.1"]
    assert worst is not None
    assert worst.share.value == 2 / 4
    assert worst.balanced.value == pytest.approx((1 / 3 + 1) / 2)
    assert [figure.value for figure in worst.per_class if figure] == pytest.approx([1 / 3, 1])
    assert worst.share.value < min(made.rows[0].cells[label].rates.share.value for label in ("fgsm@0.1", "pgd@0.1"))  # type: ignore[union-attr]


def test_worst_case_is_on_the_samples_that_every_attack_covers() -> None:
    cells = [
        cell(A, FGSM, attacked([1, 0, 1, 1], LABELS)),
        cell(A, PGD, attacked([1, 0], [0, 1], ids=[0, 3])),
    ]
    worst = board(cells).rows[0].worst["Linf 0.1"]
    assert worst is not None
    assert worst.share.n == 2
    assert [figure.value for figure in worst.per_class if figure] == [1, 0]
    assert "Worst case Linf 0.1 (n = 2)" in heads(tables.ranks.ranking(board(cells)))


def test_only_bounded_attacks_towards_any_class_enter_a_worst_case() -> None:
    conditions = (CLEAN, ROTATION, PGD, NEXT, ALL, NOISE, CHAIN, PGD_2, L2)
    broken = attacked([0, 0, 0, 0], LABELS)
    fine = attacked([1, 1, 1, 1], LABELS)
    results = {NEXT.label: broken, NOISE.label: broken, CHAIN.label: replace(broken, kind="chain")}
    results |= {CLEAN.label: outcome("clean", LABELS), ROTATION.label: outcome("natural", LABELS, LABELS, [1, 1, 1, 0])}
    made = board([cell(A, condition, results.get(condition.label, fine)) for condition in conditions])
    assert made.threats == {
        "Linf 0.1": ("pgd@0.1", "pgd@0.1->all"),
        "L2 0.5": ("pgd@l2:0.5",),
        "Linf 0.2": ("pgd@0.2",),
    }
    assert made.ranked_by == "Linf 0.1"
    assert [rates.share.value for rates in made.rows[0].worst.values() if rates] == [1, 1, 1]
    assert made.rows[0].cells[CHAIN.label].accuracy is not None


def test_ranks_by_the_balanced_worst_case_and_ties_what_cannot_be_told_apart() -> None:
    labels = np.repeat([0, 1], [300, 40])
    majority = (labels == 0).astype(int)
    even = np.r_[np.tile([1, 1, 1, 0], 75), np.tile([1, 1, 1, 0], 10)]
    nearly = even.copy()
    nearly[0] = 0
    rows = {"majority": majority, "nearly": nearly, "even": even}
    made = board([cell(model(name), PGD, attacked(right, labels)) for name, right in rows.items()])
    assert majority.mean() > even.mean()
    assert order(made) == [("1=", "even"), ("1=", "nearly"), ("3", "majority")]


def test_ranks_by_clean_accuracy_where_nothing_is_attacked_and_says_so() -> None:
    cells = [cell(A, CLEAN, outcome("clean", LABELS, [1, 1, 1, 1])), cell(B, CLEAN, outcome("clean", LABELS))]
    made = board(cells)
    assert made.ranked_by is None
    assert [label for _, label in order(made)] == ["b", "a"]
    assert "says nothing about robustness" in readme(made)


def test_without_an_attack_at_the_reference_the_nearest_ranks_and_the_board_says_so() -> None:
    made = board([cell(A, PGD_2, attacked([1, 1, 1, 1], LABELS))])
    assert (made.ranked_by, made.reference) == ("Linf 0.2", False)
    assert "no attack at the data set's reference eps" in readme(made)


def test_a_row_with_a_failed_missing_or_unsupported_cell_is_not_ranked() -> None:
    fine = attacked([1, 1, 1, 1], LABELS)
    weak = attacked([0, 0, 0, 1], LABELS)
    rows = [model(name) for name in ("weak", "failed", "missing", "unsupported", "a seed")]
    cells = [cell(row, FGSM, fine) for row in rows] + [cell(rows[0], PGD, weak)]
    cells += [cell(rows[1], PGD, "out of memory"), cell(rows[3], PGD, "!takes no such model")]
    cells += [cell(rows[4], PGD, fine), cell(rows[4], FGSM, fine, seed=1), cell(rows[4], PGD, "crashed", seed=1)]
    made = board(cells)
    assert order(made) == [("1", "weak"), ("", "failed"), ("", "missing"), ("", "unsupported"), ("", "a seed")]
    assert row_of(made, "failed").worst["Linf 0.1"] is None
    assert row_of(made, "failed").unranked == "pgd@0.1: seed 0: out of memory"
    assert row_of(made, "missing").unranked == "pgd@0.1: seed 0: not run"
    assert row_of(made, "a seed").cells["pgd@0.1"].rates is None
    assert row_of(made, "a seed").unranked == "pgd@0.1: seed 1: crashed"
    text = readme(made)
    assert "out of memory" in text
    assert "takes no such model" in text


def test_a_condition_that_suits_no_row_does_not_keep_rows_from_a_rank() -> None:
    cells = [cell(row, FGSM, attacked([1, 1, 1, 1], LABELS)) for row in (A, B)]
    made = board(cells + [cell(row, PGD, "!needs three classes") for row in (A, B)])
    assert made.threats == {"Linf 0.1": ("fgsm@0.1",)}
    assert [rank for rank, _ in order(made)] == ["1=", "1="]


def test_flagged_rows_rank_below_the_others() -> None:
    labels = [0, 1] * 30
    cells = [
        cell(A, PGD, attacked([1] * 60, labels), flags={"zero-gradient": "of 9 images"}),
        cell(B, PGD, attacked([0] * 60, labels)),
    ]
    made = board(cells)
    assert order(made) == [("1", "b"), ("2", "a")]
    assert lines(tables.ranks.ranking(made))[1][1] == "a (flag: zero-gradient)"


def test_rows_without_a_strong_white_box_attack_are_not_audited() -> None:
    result = attacked([1, 1, 1, 1], LABELS)
    short = FGSM.model_copy(update={"label": "pgd", "stages": (stage("pgd", steps=19),)})
    assert not board([cell(A, short, result)]).rows[0].audited
    assert board([cell(A, short, result), cell(A, PGD, result)]).rows[0].audited
    assert "not audited" in readme(board([cell(A, short, result)]))


def test_seeds_are_shown_one_by_one_and_averaged_per_sample() -> None:
    cells = [cell(A, PGD, attacked([1, 1, 1, 0], LABELS), seed=7), cell(A, PGD, attacked([1, 0, 0, 0], LABELS), seed=3)]
    cells.append(cell(B, PGD, attacked([1, 1, 1, 1], LABELS), seed=7))
    made = board(cells)
    found = row_of(made, "a").worst["Linf 0.1"]
    assert found is not None
    assert row_of(made, "a").seeds == (3, 7)
    assert found.share.seeds == (0.25, 0.75)
    assert found.share.value == 0.5
    assert found.balanced.seeds == pytest.approx((1 / 6, 1 / 2))
    assert lines(tables.ranks.by_seed(made)) == [
        ["b", "–", "100.0", "100.0–100.0"],
        ["a", "16.7", "50.0", "16.7–50.0"],
    ]
    assert "1 of 2 seeds" in lines(tables.ranks.ranking(made))[0][1]
    given = B.model_copy(update={"external": ExternalSpec(identity={}, facts={})})
    made = board([*cells[:2], cell(given, PGD, attacked([1, 1, 1, 1], LABELS), seed=7)])
    assert "one checkpoint" in lines(tables.ranks.ranking(made))[0][1]


@pytest.mark.parametrize("k", [1, 2, 3, 10])
@pytest.mark.parametrize("n", [1, 40])
def test_any_number_of_classes_and_samples(k: int, n: int, tmp_path: Path) -> None:
    data = dataset([f"class {label}" for label in range(k)])
    labels = np.arange(n) % k
    wrong = (labels + 1) % k
    results = [
        (CLEAN, outcome("clean", labels, k=k)),
        (ROTATION, outcome("natural", labels, labels, wrong, k=k)),
        (PGD, outcome("attack", labels, labels, wrong, k=k)),
        (CHAIN, outcome("chain", labels, labels, wrong, k=k)),
    ]
    cells = [cell(row, condition, result, data=data) for row in (A, B) for condition, result in results]
    made = board(cells)
    assert [rank for rank, _ in order(made)] == ["1=", "1="]
    assert made.rows[0].cells["clean"].rates.share.value == 1  # type: ignore[union-attr]
    assert made.rows[0].worst["Linf 0.1"].balanced.value == (1 if k == 1 else 0)  # type: ignore[union-attr]
    assert all(path.stat().st_size for path in write_board(tmp_path, TOYS, cells))


def test_balanced_figures_stand_beside_plain_ones_where_the_test_set_is_imbalanced() -> None:
    even = [cell(A, CLEAN, outcome("clean", LABELS))]
    uneven = [cell(A, CLEAN, outcome("clean", LABELS, [0, 0, 0, 0]), data=dataset(test=(3, 1)))]
    assert not board(even).imbalanced
    assert board(uneven).imbalanced
    ranking = tables.ranks.ranking(board(uneven))
    assert heads(ranking)[1:3] == ["Clean (n = 4)", "Clean, plain"]
    assert [line[1:3] for line in lines(ranking)] == [["50.0 (21.2–90.2)", "75.0"]]


def test_class_tables_and_confusion_matrices() -> None:
    data = dataset(("car", "cat"), train=(106, 6))
    cells = [
        cell(A, CLEAN, outcome("clean", LABELS, [0, 0, 1, 1]), data=data),
        cell(A, PGD, outcome("attack", LABELS, [0, 0, 1, 1], [0, 1, 1, 0]), data=data),
    ]
    made = board(cells)
    found = {sheet.caption: sheet for sheet in tables.classes.per_class(made)}
    assert heads(found["clean"])[-2:] == ["car (106 train)", "cat (6 train)"]
    assert lines(found["Worst case Linf 0.1"])[0] == ["a", "25.0", "16.7", "0.0", "33.3", "0.0"]
    assert made.rows[0].cells["pgd@0.1"].confusion == ((1, 2), (1, 0))
    matrices = list(tables.classes.matrices(made, made.rows[0]))
    assert [sheet.caption for sheet in matrices] == ["clean", "pgd@0.1"]
    assert lines(matrices[1]) == [["car", "1", "2"], ["cat", "1", "0"]]


def test_attacks_towards_targets_are_listed() -> None:
    result = attacked([0, 0, 1, 1], LABELS, targets=np.array([1, 1, -1, -1]), l1=np.array([2.0, 4.0, 9.0, 9.0]))
    table = tables.robustness.aimed(board([cell(A, NOISE, result), cell(A, PGD, result)]))
    line = first(table)
    assert len(table.lines) == 1
    assert line["Misclassified"].startswith("50.0 (")
    assert line["Target reached"].startswith("100.0 (")
    assert line["Median L1"] == "3"


def test_the_same_cells_give_the_same_bytes_whatever_the_timings(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    results = [attacked(rng.integers(0, 2, 60), labels) for _ in range(4)]
    for at, seconds in (("one", 1.0), ("two", 99.5)):
        cells = [
            cell(row, condition, results[place], seconds=seconds + place)
            for place, (row, condition) in enumerate((row, spec) for row in (A, B) for spec in (FGSM, PGD))
        ]
        write_board(tmp_path / at, TOYS, cells)
        write_board(tmp_path / at, TOYS, cells)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    boards = ["README.md", "board.json", "changes.csv", "index.html", "leaderboard.csv", "leaderboard.json"]
    assert names == [*boards, "per_class.csv", "timings.csv"]
    for name in names:
        same = (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        assert same is (name != "timings.csv"), name
        if name != "timings.csv":
            text = (tmp_path / "one" / name).read_text(encoding="utf-8")
            assert "thishost" not in text
            assert "2024" not in text
    timings = list(csv.DictReader(io.StringIO((tmp_path / "one" / "timings.csv").read_text(encoding="utf-8"))))
    assert [line["value"] for line in timings[:2]] == ["1.0", "2.0"]
    assert timings[1]["timing"] == "training.seconds"


def test_csv_and_json_hold_the_figures_unrounded(tmp_path: Path) -> None:
    cells = [cell(A, CLEAN, outcome("clean", [0, 0, 0, 1])), cell(A, PGD, attacked([1, 0, 0, 1], [0, 0, 0, 1]))]
    write_board(tmp_path, TOYS, cells)
    line = next(csv.DictReader(io.StringIO((tmp_path / "leaderboard.csv").read_text(encoding="utf-8"))))
    assert line["rank"] == "1"
    assert float(line["worst case Linf 0.1, balanced"]) == (1 / 3 + 1) / 2
    assert float(line["pgd@0.1: n"]) == 4
    per_class = list(csv.DictReader(io.StringIO((tmp_path / "per_class.csv").read_text(encoding="utf-8"))))
    chosen = [row for row in per_class if (row["condition"], row["class"]) == ("pgd@0.1", "car")]
    assert [(float(row["value"]), row["n"], row["train images"]) for row in chosen] == [(1 / 3, "3", "30")]
    plain = json.loads((tmp_path / "leaderboard.json").read_text(encoding="utf-8"))
    assert plain["rows"][0]["worst"]["Linf 0.1"]["share"][0] == 0.5
    assert plain["rows"][0]["cells"]["clean"]["confusion"] == [[3, 0], [0, 1]]
    assert plain["rows"][0]["cells"]["clean"]["keys"] == {"0": cells[0][0].key}


def test_names_cannot_break_the_markdown() -> None:
    from markdown_it import MarkdownIt

    label = "a|b `c` <script>*x*</script> [y](z) _q_ &amp; \\ ~~s~~\n# t"
    text = readme(
        board([cell(model(label), CLEAN, outcome("clean", LABELS)), cell(B, CLEAN, outcome("clean", LABELS))])
    )
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)
    shown = html.escape(" ".join(label.split()), quote=False)
    assert f'<td style="text-align:left">{shown}</td>' in page
    assert "<script>" not in page
    for table in re.findall(r"<table>(.*?)</table>", page, re.DOTALL):
        assert len({line.count("<t") for line in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)}) == 1


def test_the_readme_explains_itself() -> None:
    labels = [0, 1] * 40
    cells = [cell(A, CLEAN, outcome("clean", labels)), cell(A, PGD, attacked([0] * 80, labels))]
    cells += [cell(B, CLEAN, outcome("clean", labels)), cell(B, PGD, attacked([1, 0] * 40, labels))]
    art = ConditionSpec(label="art:x@0.1", kind="attack", stages=(stage("art:x", steps=5),))
    text = readme(board([*cells, cell(A, art, attacked([0] * 80, labels)), cell(B, art, attacked([1] * 80, labels))]))
    assert text.splitlines()[2].startswith("Best: **b**, 50.0 % worst-case robust accuracy (")
    assert ", 50.0 points (" in text.splitlines()[2]
    assert ") above the best undefended model (a, 0.0 %)" in text.splitlines()[2]
    assert "Best model per class: 0 % (cat) to 100 % (car)." in text
    for needed in (
        "`ffffffffffffffff`",
        "steps = 20",
        "Linf ≤ 0.1",
        "global random state, fixed batches",
        "torch 2.4.0",
    ):
        assert needed in text


def test_a_note_warns_where_rows_start_from_different_weights() -> None:
    result = outcome("clean", LABELS)
    mixed = [cell(A, CLEAN, result), cell(model("tuned", start="a"), CLEAN, result)]
    assert "only between rows of the same start" in readme(board(mixed))
    assert "only between rows of the same start" not in readme(board(mixed[:1]))


def test_cells_that_make_no_table_are_refused() -> None:
    one = cell(A, CLEAN, outcome("clean", LABELS))
    with pytest.raises(ValueError, match="at least one"):
        board([])
    with pytest.raises(ValueError, match="two cells"):
        board([one, one])
    with pytest.raises(ValueError, match="no outcome"):
        board([(one[0], None)])
    with pytest.raises(ValueError, match="one data set"):
        board([one, cell(B, CLEAN, outcome("clean", LABELS), data=dataset(label="others"))])


def test_summary() -> None:
    labels = [0, 1] * 40
    cells = [cell(A, CLEAN, outcome("clean", labels)), cell(A, ROTATION, outcome("natural", labels, labels, [0] * 80))]
    cells += [cell(A, PGD, attacked([0, 1] * 40, labels)), cell(B, PGD, "crashed")]
    assert summary_rows(cells) == [
        {
            "rank": "1",
            "model": "a",
            "clean": "100.0",
            "rotation": "50.0",
            "worst case Linf 0.1": summary_rows(cells)[0]["worst case Linf 0.1"],
            "remarks": "",
        },
        {
            "rank": "–",
            "model": "b",
            "clean": "–",
            "rotation": "–",
            "worst case Linf 0.1": "–",
            "remarks": "pgd@0.1: seed 0: crashed",
        },
    ]
    assert summary_rows(cells)[0]["worst case Linf 0.1"].startswith("50.0 (")
