from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from rule_results import broken, check_attack, status
from torch import Tensor, nn

from robbench.attacks._losses import gain
from robbench.attacks.fgm import FGM
from robbench.attacks.pgd import PGD
from robbench.conformance.rules import Broken, NotApplicable, Rule, RuleResult, judge
from robbench.conformance.scenarios import largest_gain, smallest_change
from robbench.core.attack import Attack, Loss
from robbench.core.contracts import Classifier
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Norm, Threat

# --- the engine


def test_every_rule_gives_one_finding_whatever_happens() -> None:
    def passes(value: int) -> str:
        return f"saw {value}"

    def breaks(value: int) -> str:
        raise Broken("too small")

    def skips(value: int) -> str:
        raise NotApplicable("no reason")

    def crashes(value: int) -> str:
        raise ValueError("two\nlines")

    def exits(value: int) -> str:
        raise SystemExit(3)

    rules = [Rule(check.__name__, check) for check in (passes, breaks, skips, crashes, exits)]
    assert judge(rules, 7) == [
        RuleResult("passes", True, "saw 7"),
        RuleResult("breaks", False, "too small"),
        RuleResult("skips", None, "not applicable: no reason"),
        RuleResult("crashes", False, "ValueError: two lines"),
        RuleResult("exits", False, "SystemExit: 3"),
    ]


def test_an_interruption_is_no_finding() -> None:
    def interrupted(value: int) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge([Rule("interrupted", interrupted)], 1)


# --- closed forms


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_a_change_of_the_smallest_size_gains_exactly_the_gap(norm: Norm) -> None:
    slopes = torch.tensor([[2.0, -1.0, 0.5]], dtype=torch.float64)
    images = torch.full((1, 3), 0.5, dtype=torch.float64)
    gaps = torch.tensor([0.2], dtype=torch.float64)
    size = float(smallest_change(slopes, gaps, images, norm))
    assert size == pytest.approx({"linf": 0.2 / 3.5, "l2": 0.2 / 5.25**0.5, "l1": 0.1, "l0": 1.0}[norm])
    gained = float(largest_gain(slopes, images, norm, size))
    assert gained == pytest.approx(1.0 if norm == "l0" else 0.2)  # one value has room for 0.5 at a slope of 2
    assert float(smallest_change(slopes, -gaps, images, norm)) == 0


def test_l0_counts_the_values_that_are_worth_most() -> None:
    slopes = torch.tensor([[2.0, -1.0, 0.5]], dtype=torch.float64)
    images = torch.tensor([[0.9, 0.8, 0.0]], dtype=torch.float64)  # worth 0.2, 0.8, 0.5
    assert float(largest_gain(slopes, images, "l0", 2)) == pytest.approx(1.3)
    for gap, count in ((0.8, 1), (0.81, 2), (1.3, 2), (1.4, 3)):
        assert float(smallest_change(slopes, torch.tensor([gap - 1e-12], dtype=torch.float64), images, "l0")) == count


# --- attacks that break one rule


@dataclass(frozen=True)
class Steps(Attack):
    """FGM on the margin, to be spoiled in one respect."""

    targetable: ClassVar[bool] = True
    white_box: ClassVar[bool] = True
    losses: ClassVar[tuple[Loss, ...]] = ("margin",)

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        return FGM()._step(model, images, gain("margin", labels, threat.targeted), threat)

    def passes(self, num_classes: int) -> tuple[int, int]:
        return 1, 1


class WritesInput(Steps):
    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        changed = super().perturb(model, images, labels, threat, rng)
        return images.copy_(changed)


class WritesLabels(Steps):
    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        labels += 0 if threat.eps == 0 else 1
        return super().perturb(model, images, (labels - 1) % model.num_classes, threat, rng)


class LeavesBall(Steps):
    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        further = Threat(threat.norm, 1.01 * threat.radius, threat.targeted)
        return super().perturb(model, images, labels, further, rng)


class LeavesBox(Steps):
    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        return images + threat.radius * rng.signs("signs", images.shape[1:], images.dtype)


class NotFinite(Steps):
    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        return super().perturb(model, images, labels, threat, rng) * torch.nan


class WrongShape(Steps):
    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        return super().perturb(model, images, labels, threat, rng)[:, :1]


class WrongType(Steps):
    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        return super().perturb(model, images, labels, threat, rng).to(torch.float16)


class DrawsGlobally(Steps):
    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        torch.rand(1)
        return super().perturb(model, images, labels, threat, rng)


class LooksAtBatch(Steps):
    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        share = 1 / (1 + torch.arange(len(images)))[:, None, None, None]
        changed = super().perturb(model, images, labels, threat, rng)
        return images + share.to(images.dtype) * (changed - images)


class IgnoresZero(Steps):
    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        changed = super().perturb(model, images, labels, threat, rng)
        return torch.where(images > 0.5, changed - 1e-7 * (threat.eps == 0), changed)


class SpendsMore(Steps):
    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        model.predict(images)
        return super().perturb(model, images, labels, threat, rng)


class GoesRound(Steps):
    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        if isinstance(model.model, Classifier):
            copy.deepcopy(model.model)(images)
        return super().perturb(model, images, labels, threat, rng)


class OwnKindOfTensor(Steps):
    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        return nn.Parameter(super().perturb(model, images, labels, threat, rng), requires_grad=False)


class SwitchesThreads(Steps):
    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        torch.set_num_threads(torch.get_num_threads() + 1)
        return super().perturb(model, images, labels, threat, rng)


class CrashesWithTwo(Steps):
    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        model.predict(images[:0]).new_zeros(model.num_classes)[2]
        return super().perturb(model, images, labels, threat, rng)


class LeavesTraining(Steps):
    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        changed = super().perturb(model, images, labels, threat, rng)
        model.train()
        return changed


class KeepsGradients(Steps):
    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        with torch.enable_grad():
            moving = images.clone().requires_grad_()
            model(moving).gather(1, labels[:, None]).sum().backward()
        assert moving.grad is not None
        gradient = moving.grad if threat.targeted else -moving.grad
        step = gradient.sign() * threat.radius * model.num_classes**0
        return torch.maximum(
            torch.minimum(images + step, (images + threat.radius).clamp(max=1)), (images - threat.radius).clamp(min=0)
        )


class NeedsGradientsOutside(Steps):
    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        moving = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(moving).sum(), moving)
        del gradient
        return images.clone()


class MisreadsTargets(Steps):
    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        return super().perturb(model, images, labels, Threat(threat.norm, threat.eps), rng)


class NoEmptyBatch(Steps):
    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        images.max()
        return super().perturb(model, images, labels, threat, rng)


class DividesByZero(Steps):
    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        changed = super().perturb(model, images, labels, threat, rng)
        spread = model(images).std(dim=0).amax() if len(images) > 1 else torch.ones((), dtype=images.dtype)
        return changed + 0 / spread

    def passes(self, num_classes: int) -> tuple[int, int]:
        return 2, 1


class Saturates(Steps):
    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        return FGM().perturb(model, images, labels, threat, rng)


class SaysNoGradients(Steps):
    white_box: ClassVar[bool] = False


class OtherEveryTime(Steps):
    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        changed = super().perturb(model, images, labels, threat, rng)
        CALLS.append(1)
        return images + (changed - images) / len(CALLS)


CALLS: list[int] = []
SPOILED: list[tuple[type[Steps], str]] = [
    (WritesInput, "inputs are not written to"),
    (WritesLabels, "labels are not written to"),
    (LeavesBall, "the change stays within eps"),
    (LeavesBox, "images stay inside [0, 1]"),
    (NotFinite, "images are finite"),
    (WrongShape, "images keep their shape"),
    (WrongType, "images stay floats of the same type"),
    (DrawsGlobally, "the global random state stays"),
    (LeavesTraining, "the training mode stays"),
    (CrashesWithTwo, "any number of classes"),
    (MisreadsTargets, "targets are approached"),
    (IgnoresZero, "eps = 0 changes nothing"),
    (LooksAtBatch, "batch and order change nothing"),
    (OtherEveryTime, "a seed gives the same again"),
    (NeedsGradientsOutside, "gradients may be off outside"),
    (KeepsGradients, "no gradient is left behind"),
    (NoEmptyBatch, "an empty batch is possible"),
    (DividesByZero, "a constant model is possible"),
    (Saturates, "the scale of scores changes nothing"),
    (SpendsMore, "passes as announced"),
    (GoesRound, "passes as announced"),
    (OwnKindOfTensor, "images are a plain tensor"),
    (SwitchesThreads, "the number of threads stays"),
    (SaysNoGradients, "gradients as announced"),
]

BREAK_NOTHING_ELSE = (
    LeavesTraining,
    CrashesWithTwo,
    MisreadsTargets,
    IgnoresZero,
    SpendsMore,
    SaysNoGradients,
    NoEmptyBatch,
)


@pytest.mark.parametrize(("cls", "rule"), SPOILED)
def test_an_attack_that_breaks_a_rule_is_told_which(cls: type[Steps], rule: str) -> None:
    results = check_attack(cls(), ("linf",))
    assert broken(results)[rule]
    if cls in BREAK_NOTHING_ELSE:
        assert list(broken(results)) == [rule]


def test_what_they_are_spoiled_from_breaks_none() -> None:
    results = check_attack(Steps(), ("linf", "l2", "l1"))
    assert broken(results) == {}
    assert None not in status(results).values()


@dataclass(frozen=True)
class Always(Attack):
    """An attack that refuses everything, for a reason or for none."""

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        raise AssertionError

    def refusal(self, threat: Threat, num_classes: int) -> str | None:
        return "never"


def test_an_attack_that_refuses_everything_passes_nothing() -> None:
    assert True not in status(check_attack(Always(), ("linf",))).values()


def test_cross_entropy_is_not_held_to_confident_scores() -> None:
    (told,) = (result for result in check_attack(PGD(steps=2), ("linf",)) if "scale of scores" in result.rule)
    assert told.passed is None
    assert "cross-entropy" in told.detail


def test_draws_from_global_state_are_not_held_to_batches() -> None:
    class Labelled(LooksAtBatch):
        global_state: ClassVar[bool] = True

    (finding,) = (f for f in check_attack(Labelled(), ("linf",)) if f.rule == "batch and order change nothing")
    assert finding.passed is None
    assert "global state" in finding.detail
