"""Models that may reject: closed forms on linear models, what attacks see, and how rejections are scored."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from audits import cautions, flags, row
from closed_forms import Linear, images_near, largest_gain, linear, margins, numbers
from galleries import neighbors
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Network
from resident import held
from subjects import Exact, condition, exact, samples, subject
from torch import Tensor

import robbench
from robbench.core.contracts import REJECTED, Classifier, Samples, to_float
from robbench.core.errors import RequestError
from robbench.core.rejection import accepting, misled
from robbench.defenses.bit_depth import BitDepth
from robbench.defenses.detector import Detecting, Detector
from robbench.defenses.jpeg import Jpeg
from robbench.defenses.median import Median
from robbench.defenses.noise import Noise
from robbench.evaluation.evaluator import evaluate
from robbench.evaluation.referee import Breach, check_predictions
from robbench.evaluation.scoring import counted
from robbench.execution.jobs import carry_out
from robbench.results.schema import Outcome
from robbench.results.store import Store

BY = ("confidence", "squeezing")


def detecting(model: Classifier, least: float | None = None, **options: Any) -> Detecting:
    found = Detector(**options).wrap(model).eval()
    assert isinstance(found, Detecting)
    if least is not None:
        found.threshold = math.log(least)
    return found


def binary(scale: float = 1.0) -> Exact:
    model = linear(3, 2)
    return Exact(scale * model.weight, scale * model.bias).eval()


def right_of(model: Classifier) -> Samples:
    """Samples of the labels that the model without a detector predicts."""
    found = samples(60, model.num_classes)
    with torch.no_grad():
        return Samples(found.images, model(found.images.double() / 255).argmax(dim=1), found.ids)


# --- what is rejected


def test_what_has_a_small_margin_is_rejected() -> None:
    base, images = binary(), images_near(0.5, 0.3, 60)
    model = detecting(base, least=0.8)
    margin = margins(base, images, base.predict(images))
    rejected = model.predict(images) == REJECTED
    assert torch.equal(rejected, margin < math.log(0.8 / 0.2))
    assert 5 < int(rejected.sum()) < 55
    assert torch.equal(model.predict(images)[~rejected], base.predict(images)[~rejected])
    assert torch.equal(model(images), base(images))


def test_squeezing_rejects_what_a_median_filter_moves_by_too_much() -> None:
    base, images = linear(3, 4), images_near(0.5, 0.3, 60)
    model = detecting(base, least=0.7, by="squeezing")
    moved = (base(images).softmax(1) - base(Median(size=2).change(images)).softmax(1)).abs().sum(dim=1)
    rejected = model.predict(images) == REJECTED
    assert torch.equal(rejected, moved > 2 * (1 - 0.7))
    assert 5 < int(rejected.sum()) < 55


@pytest.mark.parametrize("by", BY)
@given(st.integers(1, 70), st.floats(0, 0.99))
@settings(max_examples=20, deadline=None)
def test_no_more_validation_images_are_rejected_than_asked(by: Any, count: int, share: float) -> None:
    images = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    model = detecting(linear(3, 4), by=by, false_alarms=share)
    model.calibrate(images.split(16))
    rejected = int((model.predict(images) == REJECTED).sum())
    assert rejected <= share * count
    assert rejected >= share * count - 1


def test_nothing_is_rejected_before_the_threshold_is_set_and_none_can_be_set_on_nothing() -> None:
    model, images = detecting(linear(3, 4)), images_near(0.5, 0.5, 30)
    assert not (model.predict(images) == REJECTED).any()
    with pytest.raises(ValueError, match="validation images"):
        model.calibrate([])


@pytest.mark.parametrize("by", BY)
def test_the_acceptance_has_a_gradient_however_far_the_image_is_from_being_accepted(by: Any) -> None:
    base = linear(3, 4)
    sharp = Linear(30 * base.weight.float(), 30 * base.bias.float()).eval()
    images = torch.rand(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    model = detecting(sharp, least=0.999, by=by)
    images.requires_grad_()
    _, acceptance = model.weighed(images)
    (gradient,) = torch.autograd.grad(acceptance.sum(), images)
    rejected = acceptance < 0
    assert 0 < int(rejected.sum()) < 40
    assert bool((gradient[rejected].flatten(1).abs().amax(dim=1) > 1e-3).all())
    assert bool(gradient.isfinite().all())


# --- what attacks see


@given(st.integers(0, 999), st.floats(0.26, 0.99))
@settings(max_examples=40, deadline=None)
def test_the_label_is_outscored_exactly_where_the_model_is_fooled_and_accepts(seed: int, least: float) -> None:
    base, images = linear(3, 4), images_near(0.5, 0.3, 20)
    labels = torch.randint(0, 4, (20,), generator=torch.Generator().manual_seed(seed))
    model = detecting(base, least)
    seen = accepting(model, labels)
    lead = -margins(seen, images, labels)
    plain = -margins(base, images, labels)
    accepted = model.weighed(images)[1]
    missing = plain.clamp(max=0) + accepted.clamp(max=0)
    torch.testing.assert_close(lead, torch.where(missing < 0, missing, torch.minimum(plain, accepted)))
    assert bool((lead <= plain + 1e-12).all())
    assert torch.equal(lead > 0, misled(model.predict(images), labels))
    assert torch.equal(seen.predict(images), model.predict(images))
    some = torch.tensor([3, 7, 1])
    assert torch.equal(seen.subset(some)(images[some]), seen(images)[some])
    # The scores of other classes stay, and those of the model where images cannot be told apart.
    others = torch.ones(20, 4, dtype=torch.bool).scatter(1, labels[:, None], False)
    assert torch.equal(seen(images)[others], base(images)[others])
    assert torch.equal(seen(images[:3]), base(images[:3]))


def test_models_that_reject_nothing_are_seen_as_they_are() -> None:
    model = linear(3, 4)
    assert accepting(model, torch.zeros(3)) is model


@pytest.mark.parametrize(
    "attack", ["fgsm@0.05", "pgd[steps=20]@0.05", "apgd-margin[steps=20]@0.05", "strong[steps=24]@0.05"]
)
def test_attacks_fool_exactly_what_can_be_fooled_and_accepted(attack: str) -> None:
    base = binary()
    given = subject(detecting(base, least=0.8), right_of(base), class_names=("ant", "bee"))
    images, labels = held(given.samples).images.double() / 255, given.samples.labels
    slopes = base.weight[1 - labels] - base.weight[labels]
    accepted = math.log(0.8 / 0.2)
    best = largest_gain(slopes, images, "linf", 0.05) - margins(base, images, labels) - accepted
    outcome = evaluate(given, condition(attack)).outcome
    right = torch.tensor(outcome.clean == outcome.labels)
    assert torch.equal(right, given.right)
    clear = best.abs() > 1e-3
    assert torch.equal(torch.tensor(outcome.robust)[clear], (right & (best < 0))[clear])
    assert int(outcome.rejected.sum()) > 0
    # What is robust is right or rejected, and what is rejected counts as robust.
    assert (outcome.final == outcome.labels)[outcome.rejected].all()


@pytest.mark.parametrize("attack", ["ddn[steps=200]", "fmn[steps=200]@l2:", "carlini-wagner[steps=200]", "deepfool"])
def test_the_smallest_change_is_that_to_where_it_is_accepted(attack: str) -> None:
    base = binary()
    given = subject(detecting(base, least=0.8), right_of(base), class_names=("ant", "bee"))
    images, labels = held(given.samples).images.double() / 255, given.samples.labels
    wanted = (margins(base, images, labels) + math.log(4)) / (base.weight[1] - base.weight[0]).norm()
    outcome = evaluate(given, condition(attack)).outcome
    fooled = torch.tensor(outcome.attempted & (outcome.final != outcome.labels))
    assert int(fooled.sum()) > 0.7 * int(outcome.attempted.sum())
    found = torch.tensor(outcome.l2)
    assert bool((found[fooled] >= wanted[fooled] - 1e-4).all())
    assert float((found / wanted)[fooled].median()) < 1.05


class Walled(Exact):
    """Rejects what lies beyond a wall that the shortest way to the other class runs into."""

    rejects, blind = True, False

    def wall(self) -> Tensor:
        across = self.weight[1] - self.weight[0]
        wall = across / across.norm() + numbers(7, 48) / 48**0.5
        unit: Tensor = wall / wall.norm()
        return unit

    def weighed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        distance = 0.02 - ((images.double().flatten(1) - 0.5) @ self.wall()).abs()
        return self(images), torch.full_like(distance, torch.inf) if self.blind else distance

    def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
        scores, acceptance = self.weighed(images)
        near = acceptance if not self.blind else Walled(self.weight, self.bias).weighed(images)[1]
        return scores, scores.argmax(dim=1).masked_fill(near < 0, REJECTED)


@pytest.mark.parametrize("attack", ["pgd[steps=20]@0.1", "strong[steps=24]@0.1", "apgd-margin[steps=20]@l2:0.7"])
def test_an_attack_that_sees_the_detector_gets_past_it_and_one_that_does_not_is_rejected(attack: str) -> None:
    base, left = binary(), {}
    wall, noise = Walled(base.weight, base.bias).wall(), 0.1 * numbers(0, 60, 48)
    along = noise - (noise @ wall)[:, None] * wall
    images = (0.5 + along).clamp(0, 1).reshape(60, 3, 4, 4).float()
    given = Samples(images, base.predict(images), torch.arange(60))
    for blind in (False, True):
        model = Walled(base.weight, base.bias).eval()
        model.blind = blind
        outcome = evaluate(subject(model, given, class_names=("ant", "bee")), condition(attack)).outcome
        left[blind] = outcome.robust[outcome.attempted].mean()
        assert outcome.attempted.sum() > 20
    assert left[False] < 0.2, left
    assert left[True] > left[False] + 0.3, left


def test_attacks_called_by_themselves_see_the_detector_too() -> None:
    base = binary()
    model, given = detecting(base, least=0.8), right_of(base)
    images = to_float(given.images)
    changed = robbench.attack("pgd[steps=20]")(model, images, given.labels, eps=0.1)
    slopes = base.weight[1 - given.labels] - base.weight[given.labels]
    best = largest_gain(slopes, images.double(), "linf", 0.1) - margins(base, images.double(), given.labels)
    assert torch.equal(misled(model.predict(changed), given.labels), best > math.log(4))


# --- how it is scored


def test_rejected_clean_images_are_wrong_and_rejected_attacked_ones_are_not() -> None:
    given = subject(detecting(exact(4), least=0.6), right_of(exact(4)))
    cells = row(given, "pgd[steps=5]@0.02", "uniform-noise@0.02", "color-jitter")
    model = detecting(exact(4), least=0.6)
    rejected = model.predict(held(given.samples).images.double() / 255) == REJECTED
    clean = cells[0][1]
    assert torch.equal(torch.tensor(clean.rejected), rejected)
    assert not (clean.clean == clean.labels)[clean.rejected].any()
    assert not cells[1][1].attempted[clean.rejected].any()
    natural = cells[3][1]
    assert natural.kind == "natural"
    assert not natural.robust[natural.rejected].any()
    for _, outcome in cells:
        assert sum(map(sum, counted(outcome))) == 60
        assert Outcome.from_bytes(outcome.to_bytes()).rejected.tolist() == outcome.rejected.tolist()


def test_what_rejects_nothing_writes_nothing_of_it() -> None:
    (_, outcome), *_ = row(subject(exact(4)), "fgsm@0.02")
    assert "rejected" not in outcome.written()


def always(model: Classifier) -> Detecting:
    found = detecting(model)
    found.threshold = torch.inf
    return found


def test_a_detector_that_always_rejects_is_not_robust_and_is_flagged() -> None:
    cells = row(subject(always(exact(4)), right_of(exact(4))), "pgd[steps=20]@0.1")
    assert "rejects 60 of 60 clean images" in flags(cells)["rejects-clean"]
    assert all(outcome.robust.mean() == 0 for _, outcome in cells)


def test_an_honest_detector_is_told_of_and_not_flagged() -> None:
    model = detecting(exact(4), false_alarms=0.05)
    given = right_of(exact(4))
    model.calibrate([to_float(given.images)])
    cells = row(subject(model, given), "strong[steps=24]@0.02", "square[queries=300]@0.02")
    assert flags(cells) == {}
    assert cautions(cells)["rejects-clean"].text == "rejects 3 of 60 clean images"
    assert 0 < cells[1][1].robust.mean() < 0.95


def test_a_rejection_that_was_not_announced_is_a_breach() -> None:
    with pytest.raises(Breach, match="-1"):
        check_predictions(torch.tensor([0, REJECTED]), 2, 3)
    assert check_predictions(torch.tensor([0, REJECTED]), 2, 3, rejects=True).tolist() == [0, -1]
    with pytest.raises(Breach, match="-2"):
        check_predictions(torch.tensor([0, -2]), 2, 3, rejects=True)


# --- with other defenses


def test_it_stands_before_and_behind_other_defenses() -> None:
    base, images = linear(3, 4), images_near(0.5, 0.5, 40)
    outside = Detector(false_alarms=0.2).wrap(BitDepth(bits=2).wrap(base)).eval()
    inside = BitDepth(bits=2).wrap(Detector(false_alarms=0.2).wrap(base)).eval()
    for model in (outside, inside):
        assert model.rejects
        model.calibrate([images])
        assert int((model.predict(images) == REJECTED).sum()) == 8
    assert torch.equal(outside.predict(images), inside.predict(images))
    assert all(map(torch.equal, outside.weighed(images), inside.weighed(images)))
    assert torch.equal(copy.deepcopy(inside).predict(images), inside.predict(images))
    assert Detector().wrap(Noise().wrap(base)).votes == 100
    with pytest.raises(RequestError, match="name the detector first"):
        Noise().wrap(Jpeg().wrap(Detector().wrap(base)))


def test_other_scores_of_the_model_do_not_change_what_is_rejected() -> None:
    gallery = torch.rand(15, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inner, images = neighbors(gallery, torch.arange(15) % 3), images_near(0.5, 0.5, 30)
    model = detecting(inner, false_alarms=0.3)
    model.calibrate([images])
    for name in inner.surrogates:
        view = model.surrogate(name)
        assert torch.equal(view(images), inner.surrogate(name)(images))
        assert torch.equal(view.predict(images), model.predict(images))
        assert torch.equal(view.weighed(images)[1], model.weighed(images)[1])
        labels = model(images).argmax(dim=1)
        assert torch.equal(accepting(model, labels).surrogate(name)(images[:2]), view(images[:2]))


def test_its_state_is_that_of_the_model() -> None:
    model = detecting(Network().eval())
    assert set(model.state_dict()) == {f"model.{name}" for name in model.model.state_dict()}
    assert numbers(0, 1).isfinite().all()


def test_a_grid_with_a_detector_runs_whole(tmp_path: Path) -> None:
    plan = tiny.make(
        tmp_path,
        ["defense = 'jpeg+detector[false_alarms=0.3]'"],
        ("clean", "pgd[steps=2]@ref", "perturbation+fgsm@ref"),
        recipe="epochs = 1",
        limit=20,
    )
    (job,) = plan.jobs
    carry_out(plan, job, job.cells, lambda progress: None)
    store = Store(plan.request.out)
    records = [record for cell in job.cells if (record := store.record(cell.key))]
    assert [(record.status, record.reason) for record in records] == [("done", None)] * len(job.cells)
    outcomes = {record.spec.condition.kind: store.outcome(record) for record in records}
    assert outcomes["clean"] is not None
    assert outcomes["clean"].rejected.any()
