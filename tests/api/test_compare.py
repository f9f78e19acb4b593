from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from math import comb
from pathlib import Path

import numpy as np
import pytest
from board_cells import A_MODEL, CLEAN, FGSM, L2, PGD, PGD_2, TOYS, Cell, cell, dataset, model, outcome
from hypothesis import given
from hypothesis import strategies as st
from stores import B_MODEL, attacked, fill, row, whole

from robbench import Report, RequestError, compare
from robbench.api.comparison import mcnemar
from robbench.api.text import cut
from robbench.api.thresholds import below, dropped, read_threshold
from robbench.cli.main import main
from robbench.evaluation import statistics
from robbench.evaluation.statistics import Scores
from robbench.results.schema import ConditionSpec

IDS = np.arange(40)
LABELS = IDS % 2


def attack(right: np.ndarray, ids: np.ndarray = IDS) -> Cell:
    labels = ids % 2
    return cell(A_MODEL, PGD, outcome("attack", labels, labels, np.where(right, labels, 1 - labels), ids=ids))


def report(*cells: Cell, name: str = "board") -> Report:
    return Report(name, TOYS, tuple(cells))


def clean(ids: np.ndarray = IDS) -> Cell:
    return cell(A_MODEL, CLEAN, outcome("clean", ids % 2, ids=ids))


def bits(seed: int, share: float) -> np.ndarray:
    return np.random.default_rng(seed).random(40) < share


# --- statistics


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(lost: int, won: int) -> None:
    n, low = lost + won, min(lost, won)
    expected = min(1.0, 2 * sum(comb(n, k) for k in range(low + 1)) / 2**n)
    assert mcnemar(lost, won) == pytest.approx(expected, rel=1e-12)
    assert mcnemar(lost, won) == mcnemar(won, lost)


def test_the_difference_is_that_of_the_one_method() -> None:
    before, after = bits(1, 0.8), bits(2, 0.5)
    found = compare(report(clean(), attack(before)), report(clean(), attack(after)))["pgd@0.1"]
    scores = [Scores(IDS, LABELS, part.astype(float)) for part in (before, after)]
    expected = statistics.compare(scores[:1], scores[1:])
    assert expected is not None
    assert (found.difference, found.p) == (expected.added, expected.p)
    assert (found.lost, found.won) == (int((before & ~after).sum()), int((after & ~before).sum()))
    assert found.mcnemar == mcnemar(found.lost, found.won)
    assert found.second.value - found.first.value == pytest.approx(found.difference.value)
    for at, part in enumerate(found.classes):
        own = at == LABELS
        assert part.difference.value == pytest.approx(after[own].mean() - before[own].mean())
        assert (part.first, part.second) == pytest.approx((before[own].mean(), after[own].mean()))


def test_samples_are_paired_by_their_ids() -> None:
    """One run has all samples, the other a few, in another order: those are compared."""
    right = bits(3, 0.6)
    few = np.array([31, 4, 17, 8, 22, 5])
    found = compare(report(clean(), attack(right)), report(clean(few), attack(~right[few], few)))["pgd@0.1"]
    assert found.difference.n == 6
    assert (found.lost, found.won) == (int(right[few].sum()), int((~right[few]).sum()))


def test_a_model_is_as_good_as_itself_and_turning_turns_the_sign() -> None:
    one, other = report(clean(), attack(bits(1, 0.9))), report(clean(), attack(bits(2, 0.4)))
    same = compare(one, one)
    assert all(part.difference.value == 0 and part.p == 1 and part.mcnemar == 1 for part in same.conditions)
    assert same.worst_drop.drop == 0
    there, back = compare(one, other)["pgd@0.1"], compare(other, one)["pgd@0.1"]
    assert there.difference.value == pytest.approx(-back.difference.value)
    assert (there.lost, there.won, there.p) == (back.won, back.lost, back.p)


def test_worst_cases_are_over_the_attacks_that_both_have() -> None:
    fooled = [attacked(30), outcome("attack", LABELS, LABELS, np.where(IDS >= 20, LABELS, 1 - LABELS))]
    before = report(clean(), cell(A_MODEL, PGD, fooled[0]), cell(A_MODEL, FGSM, fooled[1]))
    both = compare(before, report(clean(), cell(A_MODEL, PGD, fooled[1]), cell(A_MODEL, FGSM, fooled[1])))
    assert both["worst case Linf 0.1"].first.value == pytest.approx(10 / 40)
    assert both["worst case Linf 0.1"].second.value == pytest.approx(20 / 40)
    assert not both.notes
    one = compare(before, report(clean(), cell(A_MODEL, PGD, fooled[1])))
    assert one["worst case Linf 0.1"].first.value == pytest.approx(30 / 40)
    assert one.notes == (
        "worst case Linf 0.1: over the attacks that both have, pgd@0.1",
        "fgsm@0.1: not compared; board · a does not have it",
    )


def test_with_three_seeds_it_is_about_methods() -> None:
    def seeds(count: int, left: int) -> Report:
        return report(*(made for seed in range(count) for made in row(A_MODEL, (38, left - seed), seed=seed)))

    few, many = compare(seeds(2, 30), seeds(2, 20)), compare(seeds(3, 30), seeds(4, 20))
    assert (few.seeds, few.about_methods) == ((0, 1), False)
    assert (many.seeds, many.about_methods) == ((0, 1, 2), True)
    assert "about methods, 3 seeds" in many.summary()
    assert "about these checkpoints" in few.summary()
    assert many["pgd@0.1"].difference.value == pytest.approx(-10 / 40)
    assert many["pgd@0.1"].lost == 12


def test_rows_without_a_common_seed_are_compared_by_their_means() -> None:
    found = compare(report(*row(A_MODEL, seed=1)), report(*row(A_MODEL, (30, 10), seed=2)))
    assert found["pgd@0.1"].difference.value == pytest.approx(-10 / 40)
    assert any("no seed in common" in note for note in found.notes)


# --- what cannot be compared


def test_other_data_are_refused_in_one_line() -> None:
    other = replace_data(clean())
    with pytest.raises(RequestError, match="samples of other data cannot be paired") as error:
        compare(report(clean(), name="one"), report(other, name="two"))
    assert "\n" not in str(error.value)


def replace_data(made: Cell) -> Cell:
    record, result = made
    changed = dataset().model_copy(update={"fingerprint": "e" * 64})
    return record.model_copy(update={"spec": record.spec.model_copy(update={"dataset": changed})}), result


def test_attacks_of_one_name_that_differ_are_not_compared() -> None:
    stage = PGD.stages[0].model_copy(update={"version": 2})
    newer = PGD.model_copy(update={"stages": (stage,)})
    found = compare(report(clean(), attack(bits(1, 0.5))), report(clean(), cell(A_MODEL, newer, attacked(40))))
    assert [one.condition for one in found.conditions] == ["clean"]
    assert "pgd@0.1: not compared; pgd has version 1 there and 2 here" in found.notes
    assert dropped(found, 100) == ["worst case Linf 0.1: no result: none of its attacks was run"]


def test_labels_do_not_decide_what_is_compared() -> None:
    renamed = PGD.model_copy(update={"label": "ours"})
    found = compare(
        report(clean(), cell(A_MODEL, PGD, attacked(20))), report(clean(), cell(A_MODEL, renamed, attacked(10)))
    )
    assert found["pgd@0.1"].difference.value == pytest.approx(-10 / 40)


def test_nothing_in_common_is_refused() -> None:
    seeking = ConditionSpec(
        label="ddn", kind="attack", stages=(L2.stages[0].model_copy(update={"bounded": False, "eps": None}),)
    )
    only = report(cell(A_MODEL, seeking, attacked(10)))
    with pytest.raises(RequestError, match="have no condition in common"):
        compare(only, report(clean()))


def test_rows_are_named_where_there_are_several() -> None:
    both = report(*whole())
    assert compare(both, both, "a", "b")["pgd@0.1"].difference.value == pytest.approx(5 / 40)
    with pytest.raises(RequestError, match='row_b: there is no row "c"; known: a, b'):
        compare(both, both, "a", "c")
    with pytest.raises(RequestError, match='row_a: the board has 2 rows, name one: "b", "a"'):
        compare(both, both)
    with pytest.raises(RequestError, match=r'"pgd@0\.2" was not compared; did you mean "pgd@0\.1"'):
        compare(both, both, "a", "b")["pgd@0.2"]


# --- shown


def test_the_frame_has_a_line_per_condition_and_class() -> None:
    frame = compare(report(clean(), attack(bits(1, 0.9))), report(clean(), attack(bits(2, 0.4)))).to_frame()
    assert frame["condition"].value_counts().to_dict() == {"worst case Linf 0.1": 3, "clean": 3, "pgd@0.1": 3}
    assert frame["class"].unique().tolist() == ["", "car", "cat"]
    assert frame[frame["class"] == ""]["lost"].notna().all()


def test_the_summary_fits_a_terminal_and_says_the_difference_first() -> None:
    long = model("a model whose name is longer than any line of a terminal is, by far and with room to spare")
    eps = 0.12345678901234567
    stages = (PGD.stages[0].model_copy(update={"eps": eps}),)
    wide = ConditionSpec(label=f"perturbation+a-very-long-attack[steps=100]@{eps}", kind="attack", stages=stages)
    data = dataset([f"class number {at} with a long name" for at in range(50)])
    labels = np.arange(200) % 50
    hits = [np.where(np.arange(200) < cut, labels, (labels + 1) % 50) for cut in (150, 20)]
    one, other = (
        report(
            cell(long, CLEAN, outcome("clean", labels, k=50), data=data),
            cell(long, wide, outcome("attack", labels, labels, hit, k=50, linf=np.full(200, eps)), data=data),
        )
        for hit in hits
    )
    text = compare(one, other).summary()
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith("B − A: worst case Linf 0.12345678901234566 -65.0 points (")
    assert "McNemar's exact p < 0.001" in " ".join(text.split())
    assert "and 45 more" in text
    assert "McNemar p" in compare(one, other).to_markdown()


# --- thresholds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linf:8/255=40", ("linf:8/255", 40.0)),
        ("clean=90%", ("clean", 90.0)),
        ("pgd[steps=20,restarts=2]@8/255=45.5", ("pgd[steps=20,restarts=2]@8/255", 45.5)),
        (" l2:0.5 = 0 ", ("l2:0.5", 0.0)),
    ],
)
def test_thresholds_are_read(text: str, expected: tuple[str, float]) -> None:
    assert read_threshold(text) == expected


@pytest.mark.parametrize(
    "text", ["", "linf:8/255", "=40", "clean=", "clean=ninety", "clean=101", "clean=-1", "clean=nan"]
)
def test_what_is_no_threshold_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match=r"--fail-below: .* is no threshold"):
        read_threshold(text)


def test_a_share_where_percent_are_meant_is_refused() -> None:
    with pytest.raises(RequestError, match="write 40 for 40 %"):
        read_threshold("linf:8/255=0.4")


def test_a_threshold_is_missed_below_it_and_not_at_it() -> None:
    found = report(*row(A_MODEL, (36, 30)))
    assert below(found, "linf:0.1=75") is None
    assert below(found, "linf=75") is None
    assert below(found, "fgsm@0.1=90") is None
    assert below(found, "clean=100") is None
    assert below(found, "linf:0.1=75.1") == "linf:0.1: 75.0 % (59.7–85.9) is below 75.1 %"
    assert below(found, "fgsm@0.1=91") is not None
    with pytest.raises(RequestError, match="no attack was run within linf 8/255"):
        below(found, "linf:8/255=40")
    with pytest.raises(RequestError, match=r'no condition "pgd@0\.12"; did you mean "pgd@0\.1"'):
        below(found, "pgd@0.12=4")


def test_failures_and_robustness_that_is_not_to_be_trusted_miss_every_threshold() -> None:
    failed = report(clean(), cell(A_MODEL, PGD, "it broke"))
    assert "it broke" in str(below(failed, "linf:0.1=0"))
    assert below(failed, "clean=100") is None
    masked = [made[0].model_copy(update={"flags": {"zero-gradient": "flat"}}) for made in row(A_MODEL)]
    found = report(*((record, made[1]) for record, made in zip(masked, row(A_MODEL), strict=True)))
    assert below(found, "linf:0.1=0") == (
        "linf:0.1: 50.0 % (35.1–64.9) is not to be trusted: the audit objects (zero-gradient)"
    )
    assert below(found, "clean=100") is None


def test_a_drop_is_more_than_so_many_points() -> None:
    before, after = report(*row(A_MODEL, (36, 30))), report(*row(A_MODEL, (36, 29)))
    found = compare(before, after)
    assert found.worst_drop.drop == pytest.approx(1 / 40)
    assert dropped(found, 2.5) == []
    assert [text.partition(":")[0] for text in dropped(found, 2.4)] == ["worst case Linf 0.1", "pgd@0.1"]
    assert dropped(compare(after, before), 0) == []


def test_a_lost_result_and_a_new_flag_are_drops() -> None:
    before = report(*row(A_MODEL))
    broken = report(*row(A_MODEL)[:2], cell(A_MODEL, PGD, "it broke"))
    texts = dropped(compare(before, broken), 100)
    assert len(texts) == 2
    assert all("it broke" in text for text in texts)
    made = row(A_MODEL)
    flagged = report((made[0][0].model_copy(update={"flags": {"collapsed": "one class"}}), made[0][1]), *made[1:])
    assert dropped(compare(before, flagged), 100) == [
        "the audit objects to what it did not object to before: collapsed"
    ]
    assert dropped(compare(flagged, flagged), 0) == []


# --- the command


def test_the_command_compares_directories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "before", row(A_MODEL, (36, 30)))
    fill(tmp_path / "after", [*row(A_MODEL, (36, 20)), *row(B_MODEL, (10, 5))])
    words = ["compare", str(tmp_path / "before"), f"{tmp_path / 'after'}#a"]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert shown.out == compare(tmp_path / "before", str(tmp_path / "after"), row_b="a").summary()
    assert shown.out.startswith("B − A: worst case Linf 0.1 -25.0 points")
    assert max(map(len, shown.out.splitlines())) <= 80
    assert main([*words, "--fail-drop", "20", "--fail-below", "linf:0.1=60", "--fail-below", "clean=90"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0] == "robbench: missed: linf:0.1: 50.0 % (35.1–64.9) is below 60 %"
    assert lines[1].startswith("robbench: missed: worst case Linf 0.1: -25.0 points")
    assert main([*words, "--fail-drop", "25", "--fail-below", "linf:0.1=50"]) == 0
    capsys.readouterr()
    assert main([*words[:2], str(tmp_path / "after"), "--row-b", "b", "--json", "--fail-drop", "1"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["conditions"][0]["difference"]["value"] == pytest.approx(-25 / 40)
    assert len(found["missed"]) == 3


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--fail-below", "linf:0.1"], "--fail-below"),
        (["--fail-below", "linf:0.7=3"], "no attack was run within linf 0.7"),
        (["--fail-drop", "-1"], "--fail-drop"),
        (["--fail-drop", "nan"], "--fail-drop"),
        (["--row-a", "zz"], 'no row "zz"'),
    ],
)
def test_wrong_requests_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], hint: str
) -> None:
    fill(tmp_path / "runs", row(A_MODEL))
    assert main(["compare", str(tmp_path / "runs"), str(tmp_path / "runs"), *words]) == 2
    shown = capsys.readouterr()
    assert (shown.out, len(shown.err.splitlines())) == ("", 1)
    assert hint in shown.err


def test_sizes_beyond_the_ranking_are_compared_too() -> None:
    largest = [cell(A_MODEL, PGD_2, replace(attacked(left), linf=np.full(40, 0.2))) for left in (9, 3)]
    found = compare(report(*row(A_MODEL), largest[0]), report(*row(A_MODEL), largest[1]))
    assert found.worst_drop.condition == "worst case Linf 0.2"
    assert found.conditions[0].condition == "worst case Linf 0.1"
    assert "largest drop: worst case Linf 0.2" in " ".join(found.summary().split())


def test_comparing_needs_no_torch(tmp_path: Path) -> None:
    store = fill(tmp_path / "runs", row(A_MODEL)).root
    code = "import sys; from robbench.cli.main import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    words = [sys.executable, "-c", code, "compare", str(store), str(store), "--fail-drop", "0"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_long_label_is_cut_before_its_end() -> None:
    labels = [f"apgd-margin[steps=20]@{size}/255" for size in (2, 4, 8)]
    shown = [cut(label, 25) for label in labels]
    assert len(set(shown)) == 3
    assert {len(text) for text in shown} == {25}
    assert all(text.endswith(label[-6:]) for text, label in zip(shown, labels, strict=True))
    assert cut("short", 5) == "short"
    assert [len(cut("long enough", width)) for width in range(1, 12)] == list(range(1, 12))
