from __future__ import annotations

import subprocess
import sys
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robbench.core.registry import Registry
from robbench.evaluation.metrics.agreement import Agreement
from robbench.evaluation.metrics.change import ChangeNorms
from robbench.evaluation.metrics.decisions import Decisions, classification, confusion
from robbench.evaluation.metrics.draws import Draws
from robbench.evaluation.metrics.passes import Passes
from robbench.evaluation.metrics.robustness import Robustness
from robbench.evaluation.metrics.success import Success
from robbench.evaluation.scoring import scored
from robbench.evaluation.statistics import wilson
from robbench.evaluation.verdicts import distances, judged
from robbench.results.schema import ConditionKind, Outcome


def make(
    kind: ConditionKind, labels: list[int], clean: list[int], final: list[int], k: int = 3, **arrays: object
) -> Outcome:
    applied = [kind != "clean" and (kind != "attack" or a == b) for a, b in zip(labels, clean, strict=True)]
    values: dict[str, Any] = {"ids": range(len(labels)), "labels": labels, "clean": clean}
    values |= {"final": final, "rounded": final, "attempted": applied} | arrays
    specs = Outcome.arrays()
    return Outcome.of(k, kind, **{name: np.asarray(value).astype(specs[name].dtype) for name, value in values.items()})


pairs = st.integers(2, 10).flatmap(
    lambda k: st.tuples(
        st.just(k), st.lists(st.tuples(st.integers(0, k - 1), st.integers(0, k - 1)), min_size=1, max_size=60)
    )
)


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
@given(pairs)
@settings(deadline=None)
def test_classification_agrees_with_scikit_learn(case: tuple[int, list[tuple[int, int]]]) -> None:
    from sklearn import metrics

    k, both = case
    labels, decisions = (np.array(column, dtype=np.int64) for column in zip(*both, strict=True))
    found = classification(labels, decisions, k)
    seen = np.unique(labels)
    table = confusion(labels, decisions, k)
    assert (table == metrics.confusion_matrix(labels, decisions, labels=range(k))).all()
    theirs = metrics.classification_report(labels, decisions, labels=seen, output_dict=True, zero_division=0)
    for label in seen:
        row = theirs[str(label)]
        assert found[f"precision/{label}"].value == pytest.approx(row["precision"])
        assert found[f"recall/{label}"].value == pytest.approx(row["recall"])
        assert found[f"f1/{label}"].value == pytest.approx(row["f1-score"])
        assert found[f"support/{label}"].value == row["support"]
    for kind in ("macro", "weighted"):
        row = theirs[f"{kind} avg"]
        for ours, name in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert found[f"{kind}_{ours}"].value == pytest.approx(row[name])
    assert found["accuracy"].value == pytest.approx(metrics.accuracy_score(labels, decisions))
    recalls = [found[f"recall/{label}"].value for label in seen]
    assert found["balanced_accuracy"].value == pytest.approx(np.mean(recalls))
    assert found["worst_class_accuracy"].value == min(recalls)
    if len(seen) > 1:
        assert found["balanced_accuracy"].value == pytest.approx(metrics.balanced_accuracy_score(labels, decisions))


def test_a_model_that_always_says_the_majority() -> None:
    labels = np.repeat([0, 1, 2], [551, 51, 23])
    found = classification(labels, np.zeros_like(labels), 3)
    assert found["accuracy"].value == pytest.approx(0.8816)
    assert found["balanced_accuracy"].value == pytest.approx(1 / 3)
    assert found["macro_f1"].value == pytest.approx(0.312, abs=0.001)
    assert found["precision/1"].low is None
    assert found["recall/2"].high == pytest.approx(0.1431, abs=0.0005)


def test_robustness_needs_both_decisions_right_and_a_chain_has_a_plain_accuracy() -> None:
    arguments = ([0, 0, 1, 1, 2], [0, 1, 1, 1, 2], [0, 0, 0, 1, 1])
    chain = make("chain", *arguments, rounded=[0, 0, 1, 1, 1])
    found = Robustness().measure(chain)
    assert found["robust_accuracy"].value == 2 / 5
    assert found["balanced_robust_accuracy"].value == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert found["worst_class_robust_accuracy"].value == 0
    assert found["robust_accuracy/0"][::3] == (1 / 2, 2)
    assert found["robust_accuracy_8bit"].value == 3 / 5
    assert Decisions().measure(chain)["accuracy"].value == 3 / 5
    assert Decisions().measure(chain)["clean_accuracy"].value == 4 / 5
    assert Success().measure(chain)["success_rate"][::3] == (2 / 4, 4)
    assert Robustness().measure(make("natural", *arguments)) == {}


def test_attacked_samples_that_were_wrong_before_keep_their_decision() -> None:
    attack = make("attack", [0, 0, 1, 1], [0, 1, 1, 1], [0, 1, 0, 1], k=2)
    found = Decisions().measure(attack)
    assert found["accuracy"] == Robustness().measure(attack)["robust_accuracy"]
    assert found["recall/0"].value == 1 / 2
    assert Success().measure(attack)["success_rate"][::3] == (1 / 3, 3)


def test_right_samples_of_the_target_class_tell_nothing_of_robustness() -> None:
    # Reached; survives; its label is the target, right before, so not attacked; wrong before.
    arguments = ([0, 0, 1, 1], [0, 0, 1, 0], [1, 0, 1, 0])
    targeted = make("attack", *arguments, k=2, attempted=[True, True, False, False], targets=[1, 1, -1, -1])
    assert judged(targeted).tolist() == [True, True, False, True]
    found = Robustness().measure(targeted)
    assert found["robust_accuracy"][::3] == (1 / 3, 3)
    assert found["robust_accuracy_8bit"][::3] == (1 / 3, 3)
    assert found["robust_accuracy/1"][::3] == (0, 1)
    assert found["balanced_robust_accuracy"].value == pytest.approx((1 / 2 + 0) / 2)
    assert Robustness().measure(make("attack", [1], [1], [1], attempted=[False])) == {}


@given(pairs, st.randoms())
def test_every_sample_of_an_untargeted_attack_is_judged(
    case: tuple[int, list[tuple[int, int]]], random: Random
) -> None:
    k, both = case
    labels, clean = (list(column) for column in zip(*both, strict=True))
    final = [random.randrange(k) if a == b else b for a, b in both]
    attack = make("attack", labels, clean, final, k)
    assert judged(attack).all()
    assert Robustness().measure(attack)["robust_accuracy"].value == pytest.approx(attack.robust.mean())


def test_distances() -> None:
    # Fooled; fooled a rounding error above eps; survives; wrong before, whatever its norm.
    attack = make("attack", [0, 0, 0, 0], [0, 0, 0, 1], [1, 1, 0, 1], k=2, linf=[0.05, 0.1000001, 0.1, 0.3])
    assert distances(attack, "linf", 0.1).tolist() == [0.05, 0.1, np.inf, 0]
    assert distances(attack, "linf").tolist() == [0.05, 0.1000001, np.inf, 0]
    targeted = make("attack", [0, 0], [0, 0], [1, 2], targets=[1, 1], l1=[3.0, 4.0])
    assert distances(targeted, "l1").tolist() == [3.0, np.inf]


def test_draws() -> None:
    rng = np.random.default_rng(0)
    labels = np.zeros(50, dtype=int)
    decisions = (rng.random((50, 12)) < 0.2).astype(int)
    natural = make("natural", labels.tolist(), labels.tolist(), decisions[:, 0].tolist(), draws=decisions)
    found = Draws().measure(natural)
    by_draw = (decisions == 0).mean(axis=0)
    assert found["draws_mean"].value == pytest.approx(by_draw.mean())
    assert found["draws_std"].value == pytest.approx(np.std(by_draw, ddof=1))
    assert (found["draws_min"].value, found["draws_max"].value) == (by_draw.min(), by_draw.max())
    assert found["worst_of_1"] == Decisions().measure(natural)["accuracy"]
    assert found["worst_of_10"].value == (decisions[:, :10] == 0).all(axis=1).mean()
    assert "worst_of_100" not in found
    assert set(Draws().measure(make("natural", [0], [0], [0], draws=[[0]]))) == {"draws_mean", "worst_of_1"}


def test_targeted_success_counts_samples_of_other_classes() -> None:
    # Hit; wrong but elsewhere; its label is the target; wrong before.
    attack = make("attack", [0, 0, 1, 0], [0, 0, 1, 2], [1, 2, 1, 2], targets=[1, 1, 1, -1])
    found = Success().measure(attack)
    assert found["targeted_success"][::3] == (1 / 2, 2)
    assert found["success_rate"][::3] == (2 / 3, 3)


def test_every_target() -> None:
    tried = [[-1, 1, 2], [-1, 0, 0], [1, -1, 2], [-1, -1, -1]]
    attack = make("attack", [0, 0, 1, 2], [0, 0, 1, 1], [1, 0, 2, 1], targets=[1, -1, 2, -1], every_target=tried)
    found = Success().measure(attack)
    assert found["targeted_success"][::3] == (2 / 3, 3)
    assert found["targeted_success_mean"].value == pytest.approx((1 + 0 + 1 / 2) / 3)


def test_change_is_over_attempted_and_over_successes() -> None:
    attack = make("attack", [0, 0, 0, 0], [0, 0, 0, 1], [1, 0, 1, 1], k=2, l2=[1.0, 2.0, 5.0, 0.0])
    found = ChangeNorms().measure(attack)
    assert [found[f"l2_{name}"][::3] for name in ("mean", "median", "max")] == [(8 / 3, 3), (2.0, 3), (5.0, 3)]
    assert [found[f"l2_{name}_success"][::3] for name in ("mean", "max")] == [(3.0, 2), (5.0, 2)]
    unmoved = make("attack", [0], [0], [0], k=2)
    assert "l2_mean" in ChangeNorms().measure(unmoved)
    assert "l2_mean_success" not in ChangeNorms().measure(unmoved)
    assert "l2_mean_success" not in ChangeNorms().measure(make("natural", [0], [0], [1], k=2))


def test_passes() -> None:
    attack = make("attack", [0, 0], [0, 1], [0, 1], k=2, forwards=[20.0, 0.5], backwards=[10.0, 0.0])
    assert {name: figure.value for name, figure in Passes().measure(attack).items()} == {
        "forwards": 10.25,
        "backwards": 5.0,
    }


@pytest.mark.parametrize("kind", ["clean", "natural", "attack", "chain"])
def test_registered_metrics_have_names_of_their_own_and_stand_empty_outcomes(kind: ConditionKind) -> None:
    entries = Registry(installed=False).entries("metric")
    assert set(entries) == {"agreement", "change", "decisions", "draws", "passes", "robustness", "success"}
    outcome = make(kind, [0, 1, 2], [0, 1, 1], [0, 1, 1], draws=[[0], [1], [1]])
    found = [name for entry in entries.values() for name in entry.cls().measure(outcome)]  # type: ignore[attr-defined]
    assert len(found) == len(set(found))
    assert "accuracy" in found
    empty = make(kind, [], [], [])
    assert [dict(entry.cls().measure(empty)) for entry in entries.values()] == [{}] * len(entries)  # type: ignore[attr-defined]


def test_figures_need_no_torch() -> None:
    code = "import sys, robbench.evaluation.metrics.decisions; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_agreement_of_scores_and_decisions() -> None:
    attack = make("attack", [0, 0, 1, 1], [0, 0, 1, 0], [0, 1, 1, 0], k=2, scored=[0, 0, 1, 0])
    assert Agreement().measure(attack)["surrogate_agreement"].value == pytest.approx(2 / 3)
    assert Agreement().measure(attack)["surrogate_agreement"].n == 3
    clean = make("clean", [0, 1], [0, 1], [0, 1], k=2, scored=[1, 1])
    assert Agreement().measure(clean)["surrogate_agreement"] == pytest.approx((0.5, *wilson(1, 2)[1:3], 2))
    assert Agreement().measure(make("natural", [0], [0], [0])) == {}


def test_any_wrong_class_counts_where_every_target_is_tried() -> None:
    """The curve over sizes then ends at robust accuracy, also where an attempt ends in a class it did not aim at."""
    every = np.array([[-1, 2, 2], [1, -1, 1], [2, 2, -1], [-1, -1, -1]])
    result = make(
        "attack", [0, 1, 2, 0], [0, 1, 2, 1], [2, 1, 2, 1], targets=[1, 0, 0, -1], every_target=every, linf=[0.1] * 4
    )
    found = distances(result, "linf", 0.1)
    assert found.tolist() == [0.1, np.inf, np.inf, 0]
    assert ((found > 0.1) == result.robust).all()


def test_a_cell_of_a_chain_counts_the_same_images_as_right_throughout() -> None:
    """Its record's confusion matrix and accuracy are both of the predictions after the chain, whatever was before."""
    from board_cells import CHAIN, cell, model

    result = make("chain", [0, 0, 1, 1, 2], [0, 1, 1, 1, 0], [0, 0, 0, 1, 0])
    record = scored(cell(model("a"), CHAIN, result)[0], result, Registry(installed=False))
    assert np.trace(record.confusion) == 3
    assert record.metrics["accuracy"].value == 3 / 5
    assert record.metrics["robust_accuracy"].value == 2 / 5
