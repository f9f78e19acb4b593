from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from audits import flags, row
from closed_forms import SHAPE
from resident import held
from subjects import (
    Constant,
    Idle,
    assert_same,
    condition,
    exact,
    examples,
    put_to,
    samples,
    subject,
)
from torch import Tensor, nn

from robbench.core.attack import Attack
from robbench.core.contracts import Classifier, to_float
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Norm, Threat
from robbench.evaluation import attack_run
from robbench.evaluation.evaluator import evaluate
from robbench.evaluation.referee import Breach
from robbench.evaluation.subject import Subject
from robbench.execution.jobs import carry_out
from robbench.results.store import Store
from robbench.training.model_loading import load_model
from robbench.training.trainer import train


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("digits")
    job, store = tiny.job(folder, recipe="epochs = 6"), Store(folder / "runs")
    train(job, store, "cpu", "float32")
    test = job.data.splits.take(job.data.decoded, job.data.splits.test)
    return subject(load_model(job, store, "cpu"), test, num_classes=3)


def test_the_size_of_batches_changes_next_to_nothing_on_a_network(
    digits: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = []
    for size in (128, 7, 1):
        monkeypatch.setattr(attack_run, "attack_batch", lambda shape, size=size: size)
        outcomes.append(evaluate(digits, condition("fgsm@0.05")).outcome)
    assert 0.1 < outcomes[0].robust.mean() < 0.9
    for other in outcomes[1:]:
        assert (other.final == outcomes[0].final).mean() >= 0.995
        np.testing.assert_array_equal(other.attempted, outcomes[0].attempted)


# --- truths


@pytest.mark.parametrize(
    "chain", ["fgsm@0", "pgd[steps=3]@0", "pgd[steps=3]@l2:0", "pgd[steps=3]@l1:0", "uniform-noise@0"]
)
def test_no_eps_changes_nothing_to_the_last_bit(digits: Subject, chain: str) -> None:
    for here in (subject(exact(3)), digits):
        result = evaluate(here, condition(chain))
        outcome, found = result.outcome, examples(result)
        assert outcome.attempted.any()
        np.testing.assert_array_equal(found["attacked"], to_float(torch.from_numpy(found["images"])).numpy())
        for norm in (outcome.linf, outcome.l2, outcome.l1, outcome.l0):
            assert not norm.any()
        np.testing.assert_array_equal(outcome.final, outcome.clean)


@pytest.mark.parametrize("eps", ["0", "0.1", "0.5", "1"])
def test_a_constant_classifier_keeps_its_share_and_is_flagged(eps: str) -> None:
    model = Constant(exact(4).weight, exact(4).bias).eval()
    given = samples(100, 4)
    cells = row(subject(model, given), f"fgsm@{eps}", f"pgd[steps=3]@{eps}", f"uniform-noise@{eps}")
    for _, outcome in cells:
        assert outcome.robust.mean() == (given.labels == 1).double().mean()
    assert {"collapsed"} | ({"survives-everything"} if eps == "1" else set()) <= flags(cells).keys()


def test_a_classifier_that_can_be_fooled_is_not_flagged() -> None:
    assert flags(row(subject(exact(4)), "fgsm@0.1")) == {}
    # On images that all show one class, saying so every time is no fault.
    given = samples(20, 1)
    model = Constant(exact(4).weight, exact(4).bias).eval()
    same = replace(given, labels=torch.ones_like(given.labels))
    assert "survives-everything" not in flags(row(subject(model, same), "fgsm@0.1"))


def test_doing_nothing_fools_nobody() -> None:
    outcome = evaluate(subject(exact(4)), put_to(Idle())).outcome
    assert outcome.robust.sum() == 50
    assert not outcome.linf.any()
    assert evaluate(subject(exact(4)), condition("fgsm@0.1")).outcome.robust.sum() < 50


# --- what goes wrong


@dataclass(frozen=True)
class Leaving(Attack):
    """Leaves the ball by a share of its size, on one sample of all."""

    share: float = 0.01

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        changed = images.clone()
        size = threat.radius * (1 + self.share)
        flat = changed.flatten(1)
        flat[3, 0] += size if flat[3, 0] < 0.5 else -size
        return changed


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_leaving_the_ball_by_one_percent_is_a_breach(norm: Norm) -> None:
    here = subject(exact(4))
    with pytest.raises(Breach, match="within eps"):
        evaluate(here, put_to(Leaving(), norm))
    assert evaluate(here, put_to(Leaving(share=0.0), norm)).outcome.linf.max() == pytest.approx(0.1)


PLUGIN = """
from dataclasses import dataclass
from robbench import Attack, register_attack

@register_attack("raising", norms=("linf",))
@dataclass(frozen=True)
class Raising(Attack):
    def perturb(self, model, images, labels, threat, rng):
        raise RuntimeError("no luck\\ntoday")

@register_attack("leaving", norms=("linf",))
@dataclass(frozen=True)
class Leaving(Attack):
    def perturb(self, model, images, labels, threat, rng):
        return (images + 1.01 * threat.radius).clamp(0, 1)

@register_attack("idle", norms=("linf",))
@dataclass(frozen=True)
class Idle(Attack):
    def perturb(self, model, images, labels, threat, rng):
        return images.clone()
"""


def test_an_error_is_never_scored(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(PLUGIN)
    chains = ["clean", "raising@0.1", "leaving@0.1", "idle@0.1", "noise-optimization"]
    plan = tiny.make(tmp_path, conditions=chains, plugins=[tmp_path / "own.py"], limit=20)
    (job,) = plan.jobs
    store = Store(plan.request.out)
    carry_out(plan, job, job.cells, lambda progress: None)
    records = {cell.condition.label: store.record(cell.key) for cell in job.cells}
    assert {label: record and record.status for label, record in records.items()} == {
        "clean": "done",
        "raising@0.1": "failed",
        "leaving@0.1": "failed",
        "idle@0.1": "done",
        "noise-optimization": "unsupported",
    }
    assert str(records["raising@0.1"] and records["raising@0.1"].reason).startswith("RuntimeError: no luck today (")
    assert "within eps" in str(records["leaving@0.1"] and records["leaving@0.1"].reason)
    assert "target" in str(records["noise-optimization"] and records["noise-optimization"].reason)
    for record in records.values():
        assert record is not None
        files = {path.name for path in store.cell_dir(record.key).iterdir()}
        if record.status == "done":
            assert record.metrics
            assert "outcome.npz" in files
        else:
            assert not record.metrics
            assert not record.confusion
            assert record.outcome_sha256 is None
            assert files == {"record.json"}


@dataclass(frozen=True)
class Hungry(Attack):
    """Has memory for so many images and no more."""

    most: int = 10

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        model.predict(images)
        if len(images) > self.most:
            raise torch.OutOfMemoryError("fake")
        return (images + threat.radius * rng.signs("signs", SHAPE)).clamp(0, 1)


def test_running_out_of_memory_halves_the_batch_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attack_run, "attack_batch", lambda shape: 32)
    here = subject(exact(4))
    result = evaluate(here, put_to(Hungry()))
    assert result.notes == (
        "batch size halved to 16: OutOfMemoryError",
        "batch size halved to 8: OutOfMemoryError",
    )
    enough = evaluate(here, put_to(Hungry(most=1000)))
    assert enough.notes == ()
    assert_same(result.outcome, enough.outcome)


def test_running_out_of_memory_on_a_single_image_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(subject(exact(4)), put_to(Hungry(most=0)))


class Hooking(Attack):
    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        assert isinstance(model.model, nn.Module)
        model.model.register_forward_hook(lambda module, given, scores: -scores)
        return images


def test_what_an_attack_does_to_its_model_reaches_neither_the_judge_nor_the_next_attack() -> None:
    here = subject(exact(3))
    assert evaluate(here, put_to(Hooking(), eps=0.0)).outcome.robust.sum() == 50
    assert evaluate(here, put_to(Idle(), eps=0.0)).outcome.robust.sum() == 50


@pytest.mark.parametrize(
    ("predict", "found"),
    [
        (lambda predicted: predicted[:1], r"got torch.int64 of shape \(1,\) for 60 images"),
        (lambda predicted: predicted.double(), r"got torch.float64 of shape"),
        (lambda predicted: predicted + 4, r"got 4 to 7 of 4 classes"),
    ],
)
def test_a_model_that_does_not_predict_a_class_for_each_image_is_refused(
    predict: Callable[[Tensor], Tensor], found: str
) -> None:
    here, plain = subject(exact(4)), exact(4).predict
    model = exact(4)
    model.predict = lambda images: predict(plain(images))  # type: ignore[method-assign]
    with pytest.raises(Breach, match=f"the model predicts a class for each image: {found}"):
        subject(model, held(here.samples))
    with pytest.raises(Breach, match="the model predicts a class for each image"):
        evaluate(replace(here, model=model), put_to(Idle()))
