from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from audits import flags, row
from certified import Plain
from subjects import condition
from torch import Tensor, nn

from robbench.core.certificate import Certificate, Certified
from robbench.core.contracts import Classifier, Samples
from robbench.core.errors import Breach, RequestError
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat
from robbench.evaluation.audit_flags import UNRANKED
from robbench.evaluation.evaluator import evaluate
from robbench.evaluation.subject import Subject
from robbench.leaderboards.board_making import board_data
from robbench.planning.component_spec import Choice
from robbench.planning.conditions import Condition
from robbench.planning.proofs import Proof

COUNT = 40


@dataclass(frozen=True)
class Believer(Certificate):
    """Proves what it likes."""

    radius: float = 1.0
    chance: float = 0.0

    def certify(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Certified:
        each = torch.ones(len(images), dtype=torch.float64)
        return Certified(self.radius * each, self.chance * each)


def subject(images: int = COUNT) -> Subject:
    torch.manual_seed(0)
    head = nn.Linear(16, 3)
    with torch.no_grad():
        assert head.bias is not None
        head.bias.copy_(-head.weight.sum(dim=1) / 2)  # mid-gray is undecided, so that every class is predicted
    model = Plain(nn.Sequential(nn.Flatten(), head), 3)
    samples = torch.rand(images, 1, 4, 4)
    labels = model(samples).argmax(dim=1)
    labels[:4] = (labels[:4] + 1) % 3  # which it predicts wrongly
    options: dict[str, Any] = {"num_classes": 3, "class_names": ("a", "b", "c"), "seed": 0, "split_seed": 0}
    return Subject.of(model, Samples(samples, labels, torch.arange(images)), **options)


def proof(method: Certificate, eps: float = 0.05) -> Condition:
    return Condition(proof=Proof(Choice("believer", method, None, "believer"), Threat("linf", eps)))


def test_certified_accuracy_is_below_what_attacks_leave_and_counts_what_is_right_alone() -> None:
    cells = row(subject(), "fgsm@0.01", "certify[method=crown]@0.01", "certify[method=lipschitz]@linf:0.01")
    by_label = {record.spec.condition.label: (record, outcome) for record, outcome in cells}
    _, attacked = by_label["fgsm@0.01"]
    record, proved = by_label["certify[method=crown]@0.01"]
    # On a linear model all of them are exact, but for images at the very border.
    assert (proved.robust <= attacked.robust).all()
    assert (proved.robust != attacked.robust).sum() <= 1
    assert not proved.attempted[:4].any()
    assert not proved.certified[:4].any()
    assert (proved.radius[proved.certified] >= 0.01).all()
    assert not proved.forwards.any()
    assert record.spec.condition.certificate is not None
    assert flags(cells) == {}


def test_a_broken_certificate_is_told_and_the_row_is_not_ranked() -> None:
    cells = row(subject(), "fgsm@0.05", proof(Believer()))
    found = flags(cells)
    assert found.keys() == {UNRANKED}
    assert "fgsm@0.05 fools" in found[UNRANKED]
    marked = [(record.model_copy(update={"flags": found}), outcome) for record, outcome in cells]
    board = board_data("", "grid", marked)
    assert board.rows[0].rank == ""
    assert UNRANKED in board.rows[0].unranked


@pytest.mark.parametrize("chain", ["pgd[steps=3]@l2:0.4", "fgsm@0.05->next", "deepfool"])
def test_whatever_changes_little_enough_can_break_it(chain: str) -> None:
    assert UNRANKED in flags(row(subject(), chain, proof(Believer(radius=0.5))))


def test_a_radius_below_the_change_is_not_broken_by_it() -> None:
    cells = row(subject(), "fgsm@0.05", proof(Believer(radius=0.049)))
    assert flags(cells) == {}


def test_proofs_with_a_chance_are_broken_by_more_than_chance_alone() -> None:
    cells = row(subject(), "fgsm@0.05", proof(Believer(radius=0.06, chance=0.9)))
    assert int((cells[1][1].attempted & ~cells[1][1].robust).sum()) > 5
    assert flags(cells) == {}
    assert UNRANKED in flags(row(subject(), "fgsm@0.05", proof(Believer(radius=0.06, chance=1e-3))))


@pytest.mark.parametrize("radius", [np.inf, np.nan, -1.0])
def test_radii_that_are_none_fail_the_cell(radius: float) -> None:
    @dataclass(frozen=True)
    class Wrong(Believer):
        def certify(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Certified:
            return Certified(torch.full((len(images),), radius, dtype=torch.float64))

    with pytest.raises(Breach, match="negative or not finite"):
        evaluate(subject(), proof(Wrong()))


def test_something_else_than_radii_fails_the_cell() -> None:
    @dataclass(frozen=True)
    class Bare(Believer):
        def certify(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Any:
            return labels > 0

    with pytest.raises(Breach, match="a radius for each image: got Tensor"):
        evaluate(subject(), proof(Bare()))


# --- conditions


@pytest.mark.parametrize(
    ("chain", "part"),
    [
        ("certify[method=ibp]@0.1->next", "stands alone"),
        ("perturbation+certify[method=ibp]@0.1", "stands alone"),
        ("certify[method=ibp]@0.1+fgsm@0.1", "stands alone"),
        ("certify@0.1", "say by which method"),
        ("certify[method=crwn]@0.1", 'did you mean "crown"'),
        ("certify[method=smoothing]@linf:0.1", "sound for l2"),
        ("certify[method=crown]@l0:3", "sound for linf, l2, l1"),
        ("certify[method=crown]@none:0.1", "sound for"),
        ("certify[method=crown]", "no size"),
        ("certify[method=crown,steps=3]@0.1", 'unknown parameter "steps"'),
    ],
)
def test_a_certificate_is_no_attack(chain: str, part: str) -> None:
    with pytest.raises(RequestError, match=part):
        condition(chain)


@pytest.mark.parametrize("options", [{"check": True}, {"draws": 3}, {"embed": 5}])
def test_a_certificate_takes_no_options_of_attacks(options: dict[str, int]) -> None:
    with pytest.raises(RequestError, match="no draws, check or embed"):
        condition("certify[method=ibp]@0.1", **options)


def test_a_certificate_ranks_nowhere_and_its_label_asks_for_it_again() -> None:
    for text in ("certify[method=crown]@8/255", "certify[method=smoothing,n=500]@l2:0.5"):
        found = condition(text)
        assert found.label == text
        assert found.kind == "certificate"
        assert not found.ranks
        assert found.spec().ranks_within is None
        assert found.stages == ()
    assert replace(found, proof=None).kind == "clean"
