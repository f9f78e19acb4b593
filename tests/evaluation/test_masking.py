"""Masking that one loss sees and another does not, scores that are no numbers, and models that say the same always."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from audits import Cells, cautions, flags, row
from board_cells import A_MODEL, CLEAN, cell, dataset, outcome, stage
from hypothesis import given, settings
from hypothesis import strategies as st
from subjects import condition, exact, subject
from torch import Tensor
from traps import Confident, Half, Steep, Tied, Undefined, Wrapped

from robbench.core.contracts import Classifier
from robbench.evaluation.audit import examine
from robbench.evaluation.evaluator import evaluate
from robbench.evaluation.gradient_diagnostics import lost_gradients
from robbench.evaluation.subject import judged
from robbench.planning.conditions import Condition
from robbench.results.schema import ConditionSpec, Outcome

ON_CROSS_ENTROPY = ("fgsm@0.1", "pgd[steps=20]@0.1")
ON_MARGINS = "apgd-margin[steps=20]@0.1"


class Mapped(Wrapped):
    """The scores as a function of those inside."""

    def __init__(self, inner: Classifier, function) -> None:  # type: ignore[no-untyped-def]
        super().__init__(inner)  # type: ignore[arg-type]
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.function(self.inner(images))
        return result


def robust(cells: Cells, label: str) -> float:
    return next(float(found.robust.mean()) for record, found in cells if record.spec.condition.label == label)


class TestEachLossByItself:
    @pytest.mark.parametrize("scale", [1e4, 1e6])
    def test_confident_scores_are_seen_by_cross_entropy_alone(self, scale: float) -> None:
        model = Confident(exact(4), scale)
        cells = row(subject(model, wrong=0), *ON_CROSS_ENTROPY)
        assert robust(cells, ON_CROSS_ENTROPY[1]) > 0.7  # what a board would show
        assert "of cross-entropy" in flags(cells)["zero-gradient"]
        cells = row(subject(model, wrong=0), *ON_CROSS_ENTROPY, ON_MARGINS)
        assert "zero-gradient" not in flags(cells)
        assert robust(cells, ON_MARGINS) < 0.1

    def test_search_on_margins_without_gradients_is_no_remedy(self) -> None:
        cells = row(subject(Confident(exact(4), 1e6), wrong=0), *ON_CROSS_ENTROPY, "square[queries=1]@0.1")
        assert "zero-gradient" in flags(cells)

    def test_a_ratio_that_is_the_same_everywhere(self) -> None:
        cells = row(subject(Tied(exact(4)), wrong=0), "apgd-dlr[steps=20]@0.1")
        assert "of the difference of logits ratio" in flags(cells)["zero-gradient"]
        assert "zero-gradient" not in flags(row(subject(Tied(exact(4)), wrong=0), ON_MARGINS))

    def test_the_margin_counts_where_it_was_followed(self) -> None:
        # A third class draws cross-entropy away from those that matter.
        def decoy(scores: Tensor) -> Tensor:
            return torch.cat([10 + scores[:, :2].detach(), scores[:, 2:]], dim=1)

        model = Mapped(exact(4), decoy)
        assert "zero-gradient" not in flags(row(subject(model, wrong=0), "pgd[steps=2]@0.1"))
        assert "of the margin" in flags(row(subject(model, wrong=0), "pgd[steps=2]@0.1", ON_MARGINS))["zero-gradient"]

    @pytest.mark.parametrize("scale", [1e-6, 1e-4, 1.0, 10.0])
    def test_honest_scores_carry_no_flag_at_any_usual_scale(self, scale: float) -> None:
        cells = row(subject(Confident(exact(4), scale), wrong=0), ON_CROSS_ENTROPY[1], ON_MARGINS)
        assert flags(cells) == {}

    def test_log_probabilities_are_as_good_as_scores(self) -> None:
        model = Mapped(exact(4), lambda scores: scores.log_softmax(dim=1))
        assert flags(row(subject(model, wrong=0), *ON_CROSS_ENTROPY)) == {}

    def test_samples_that_are_not_attacked_do_not_count(self) -> None:
        # Where the label is third, the ratio is one.
        cells = row(subject(exact(4), wrong=40), "apgd-dlr[steps=20]@0.02")
        assert cells[0][1].flat_dlr.any()
        assert flags(cells) == {}


class TestGradients:
    @pytest.mark.parametrize(("power", "lost"), [(-30, False), (-37, False), (-42, True), (-60, True)])
    def test_what_is_below_the_smallest_normal_number_is_lost(self, power: int, lost: bool) -> None:
        model = Mapped(exact(3), lambda scores: scores.float() * 10.0 ** (power + 20) * 1e-20)
        images, labels = torch.rand(8, 3, 4, 4), torch.arange(8) % 3
        assert bool(lost_gradients(model, images, labels)["margin"].all()) is lost
        assert bool(lost_gradients(model, images, labels)["margin"].any()) is lost

    def test_no_number_is_no_direction(self) -> None:
        cells = row(subject(Steep(exact(4)), wrong=0), "pgd[steps=2]@0.1")
        assert "zero-gradient" in flags(cells)
        assert "non-finite" not in flags(cells)

    def test_one_image_does_not_spoil_the_others(self) -> None:
        def one(scores: Tensor) -> Tensor:
            return torch.cat([scores[:1] * torch.nan, scores[1:]])

        images = torch.rand(5, 3, 4, 4)
        found = lost_gradients(Mapped(exact(3), one), images, exact(3).predict(images))
        assert {loss: marks.tolist() for loss, marks in found.items()} == dict.fromkeys(found, [True] + 4 * [False])


class TestScoresThatAreNoNumbers:
    @pytest.mark.parametrize("factor", [torch.inf, torch.nan])
    def test_on_clean_images(self, factor: float) -> None:
        model = Mapped(exact(4), lambda scores: torch.where(scores > 0, scores * factor, scores))
        cells = row(subject(model, wrong=0), *ON_CROSS_ENTROPY)
        assert any("clean images are not finite" in flag.text for flag in examine(cells))
        assert "randomized" not in flags(cells)

    def test_on_attacked_images_alone(self) -> None:
        cells = row(subject(Undefined(exact(4)), wrong=0), "fgsm@0.1")
        assert flags(cells)["non-finite"].endswith("images after fgsm@0.1 are not finite")
        assert not cells[0][1].non_finite.any()

    def test_it_is_known_after_several_targets_as_well(self) -> None:
        found = evaluate(subject(Undefined(exact(4)), wrong=0), _towards_all()).outcome
        assert found.non_finite.all()

    @pytest.mark.parametrize("lost", [torch.nan, torch.inf, -torch.inf])
    def test_no_image_without_finite_scores_is_right(self, lost: float) -> None:
        model = Mapped(exact(4), lambda scores: torch.full_like(scores, lost))
        given = subject(model, wrong=0)
        assert (given.samples.labels == 0).all()  # what the arg max says
        assert not given.right.any()
        for found in (evaluate(given, condition(chain)).outcome for chain in ("clean", "gaussian-noise", "fgsm@0.1")):
            assert not found.robust.any()
            assert found.scored.tolist() == found.final.tolist()

    @pytest.mark.parametrize("chain", ["fgsm@0.1", "fgsm@0.1->all", "perturbation + fgsm@0.1"])
    def test_nor_robust_where_the_attack_spoils_them(self, chain: str) -> None:
        given = subject(Undefined(exact(4)), wrong=0)
        assert given.right.all()
        found = evaluate(given, condition(chain)).outcome
        assert not found.robust.any()

    def test_a_natural_perturbation_tells_it_too(self) -> None:
        found = evaluate(subject(Undefined(exact(4)), wrong=0), condition("gaussian-noise")).outcome
        assert found.non_finite.all()
        assert not found.robust.any()

    @pytest.mark.parametrize("classes", [2, 3, 10])
    def test_only_the_images_concerned_are_wrong(self, classes: int) -> None:
        images, labels = torch.rand(40, 3, 4, 4), torch.arange(40) % classes

        def some(scores: Tensor) -> Tensor:
            return torch.where(torch.arange(len(scores))[:, None] % 3 == 0, torch.nan, scores)

        found, usual = judged(Mapped(exact(classes), some), images, labels), judged(exact(classes), images, labels)
        assert found.non_finite.tolist() == [index % 3 == 0 for index in range(40)]
        assert not (found.predicted == labels)[found.non_finite].any()
        assert ((found.predicted >= 0) & (found.predicted < classes)).all()
        assert torch.equal(found.predicted[~found.non_finite], usual.predicted[~found.non_finite])
        assert torch.equal(usual.predicted, exact(classes).predict(images))

    def test_half_precision_overflows(self) -> None:
        model = Mapped(exact(4), lambda scores: (1e6 * scores).half().float())
        assert "non-finite" in flags(row(subject(model, wrong=0), ON_MARGINS))

    def test_probabilities_in_half_precision_are_probabilities(self) -> None:
        cells = row(subject(Half(exact(4)), wrong=0), ON_CROSS_ENTROPY[1])
        assert "outputs-probabilities" in flags(cells)
        cells = row(subject(Half(exact(4)), wrong=0), ON_CROSS_ENTROPY[1], ON_MARGINS)
        assert "outputs-probabilities" in cautions(cells)


ODD: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "rounded to whole numbers": ("zero-gradient", lambda scores: (scores * 1e3).round()),
    "saturated": ("zero-gradient", lambda scores: scores.argsort(1).argsort(1) + torch.tanh(scores * 1e6)),
    "cut off from the images": ("zero-gradient", lambda scores: scores.detach() + 0 * scores),
    "with a slope that is no number": (
        "zero-gradient",
        lambda scores: scores + 0 * ((scores - scores.detach()) ** 2).sum(1, keepdim=True).sqrt(),
    ),
    "minus infinity beside the largest": (
        "non-finite",
        lambda scores: scores.where(scores == scores.amax(1, keepdim=True), -torch.inf),
    ),
    "the logarithm of a decision": ("non-finite", lambda scores: (scores == scores.amax(1, keepdim=True)).log()),
    "no number for one image of a batch": (
        "non-finite",
        lambda scores: torch.cat([scores[:1] * torch.nan, scores[1:]]),
    ),
}


@pytest.mark.parametrize("how", ODD)
def test_a_row_that_only_looks_robust_is_flagged(how: str) -> None:
    flag, change = ODD[how]
    cells = row(subject(Mapped(exact(4), change), wrong=0), *ON_CROSS_ENTROPY, ON_MARGINS)
    assert flag in flags(cells)


def _towards_all() -> Condition:
    return condition("fgsm@0.1->all")


class TestCollapse:
    @pytest.mark.parametrize(("others", "flagged"), [(0, True), (5, True), (6, False), (50, False)])
    def test_one_class_for_95_of_100(self, others: int, flagged: bool) -> None:
        labels = np.arange(100) % 2
        clean = np.where((np.arange(100) < 2 * others) & (labels == 0), 0, 1)
        found = flags(_cells(labels, clean))
        assert ("collapsed" in found) is flagged

    def test_classes_count_alike_however_many_images_they_have(self) -> None:
        labels = np.repeat([0, 1, 2], [141, 10, 10])
        # 160 of 161 images are of one class: 97 % class by class.
        assert (
            "160 of 161 clean images, 97%" in flags(_cells(labels, np.where(np.arange(161) == 160, 2, 0)))["collapsed"]
        )
        # 95 % of all images are, but a rare class is told from the others.
        assert flags(_cells(labels, np.where(labels == 1, 1, 0))) == {}

    def test_a_test_set_of_one_class_tells_nothing(self) -> None:
        assert flags(_cells(np.zeros(20, dtype=int), np.zeros(20, dtype=int))) == {}

    def test_the_model_as_it_is_used_is_meant(self) -> None:
        labels = np.arange(100) % 2
        made = cell(A_MODEL, _attack(undefended=True), outcome("attack", labels, np.zeros(100, dtype=int)))
        assert flags([*_cells(labels, labels), (made[0], _there(made[1]))]) == {}

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=60))
    def test_it_is_the_mean_over_classes_of_the_share_of_a_prediction(self, pairs: list[tuple[int, int]]) -> None:
        labels, clean = (np.array(values) for values in zip(*pairs, strict=True))
        classes = sorted(set(labels.tolist()))
        shares = [sum(np.mean(clean[labels == label] == k) for label in classes) / len(classes) for k in range(3)]
        expected = len(classes) > 1 and bool(max(shares) >= 0.95 - 1e-9)
        assert ("collapsed" in flags(_cells(labels, clean))) is expected


def _attack(**changes: object) -> ConditionSpec:
    return ConditionSpec(label="pgd@0.1", kind="attack", stages=(stage("pgd", steps=20),), **changes)  # type: ignore[arg-type]


def _there(found: Outcome | None) -> Outcome:
    assert found is not None
    return found


def _cells(labels: np.ndarray, clean: np.ndarray) -> Cells:
    record, found = cell(A_MODEL, CLEAN, outcome("clean", labels, clean, k=3), data=dataset("abc"))
    return [(record, _there(found))]
