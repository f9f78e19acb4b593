"""What models and attacks return is checked for its form before anything is made of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from resident import held
from subjects import Exact, Idle, condition, exact, put_to, samples, subject
from torch import Tensor, nn
from traps import Noisy

from robbench.core.attack import Attack
from robbench.core.contracts import Classifier, to_float
from robbench.core.errors import Breach
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat
from robbench.evaluation.evaluator import evaluate
from robbench.evaluation.referee import (
    check_answers,
    check_classes,
    check_embeddings,
    check_images,
    check_predictions,
    check_scores,
)

IMAGES = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))


class Lying(Tensor):
    """A tensor that could say what it likes."""


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    NESTED = torch.nested.nested_tensor([torch.zeros(3, 5, 5)] * 4)
NO_TENSORS = [
    None,
    1,
    "images",
    [0.0],
    IMAGES.numpy(),
    nn.Parameter(IMAGES),
    IMAGES.as_subclass(Lying),
    IMAGES.to_sparse(),
    NESTED,
]


@pytest.mark.parametrize("found", NO_TENSORS)
def test_nothing_but_a_plain_dense_tensor_is_taken(found: object) -> None:
    checks: list[Callable[[], Tensor]] = [
        lambda: check_images(IMAGES, found, Threat("none")),
        lambda: check_scores(found, 4, 3),
        lambda: check_predictions(found, 4, 3),
        lambda: check_embeddings(found, 4),
    ]
    for check in checks:
        with pytest.raises(Breach, match=r"not a plain torch\.Tensor|a tensor of layout"):
            check()


def test_images_are_copied_so_that_nobody_changes_them_afterwards() -> None:
    given = IMAGES.clone()
    for returned in (given, given[:], given.detach(), IMAGES[:1].expand(4, -1, -1, -1), given.permute(0, 1, 3, 2)):
        found = check_images(IMAGES, returned, Threat("none"))
        before = found.clone()
        with torch.no_grad():
            given.add_(1e-3).clamp_(0, 1)
        assert torch.equal(found, before)
        assert found.untyped_storage().data_ptr() != returned.untyped_storage().data_ptr()


def test_the_copy_keeps_the_order_in_memory_on_which_sums_depend() -> None:
    returned = IMAGES.contiguous(memory_format=torch.channels_last)
    assert check_images(IMAGES, returned, Threat("none")).stride() == returned.stride()


def test_images_made_in_inference_mode_can_be_written_to() -> None:
    with torch.inference_mode():
        returned = IMAGES.clone()
    assert not check_images(IMAGES, returned, Threat("none")).is_inference()


def test_negative_zeros_and_denormal_numbers_are_numbers() -> None:
    images = torch.zeros(2, 1, 1, 2)
    changed = torch.tensor([[-0.0, 1e-45], [-0.0, 0.0]]).reshape(images.shape)
    assert torch.equal(check_images(images, changed, Threat("linf", 1e-6)), changed)
    assert torch.equal(check_images(images[1:], changed[1:], Threat("l0", 0)), images[1:])
    with pytest.raises(Breach, match=r"inside \[0, 1\]"):
        check_images(images, changed - 1e-45, Threat("linf", 1e-6))


@pytest.mark.parametrize(
    "scores",
    [
        torch.zeros(4, 2),
        torch.zeros(3, 3),
        torch.zeros(1, 3),
        torch.zeros(3),
        torch.zeros(4, 3, 1),
        torch.zeros(4, 3, dtype=torch.int64),
        torch.zeros(4, 3, dtype=torch.complex64),
        torch.zeros(()),
    ],
)
def test_scores_are_floats_for_each_image_and_class(scores: Tensor) -> None:
    with pytest.raises(Breach, match="the model scores each class of each image"):
        check_scores(scores, 4, 3)


def test_scores_that_are_not_finite_are_for_the_audit_to_flag() -> None:
    scores = torch.tensor([[torch.nan, 0.0], [torch.inf, -torch.inf]])
    assert torch.equal(check_scores(scores, 2, 2).isnan(), scores.isnan())


@pytest.mark.parametrize(
    "predicted",
    [
        torch.zeros(1, dtype=torch.int64),
        torch.zeros((), dtype=torch.int64),
        torch.zeros(4, 1, dtype=torch.int64),
        torch.zeros(4),
        torch.zeros(4, dtype=torch.int32),
        torch.zeros(4, dtype=torch.bool),
        torch.tensor([0, 1, 2, 3]),
        torch.tensor([0, 1, 2, -1]),
    ],
)
def test_predictions_are_classes_one_for_each_image(predicted: Tensor) -> None:
    with pytest.raises(Breach, match="the model predicts a class for each image"):
        check_predictions(predicted, 4, 3)


@pytest.mark.parametrize(
    "features", [torch.zeros(4), torch.zeros(1, 6), torch.zeros(4, 2, 2), torch.full((4, 2), torch.nan)]
)
def test_embeddings_are_finite_floats_for_each_image(features: Tensor) -> None:
    with pytest.raises(Breach, match="the model embeds each image"):
        check_embeddings(features, 4)


# --- models


class Odd(Classifier):
    """A model that can be spoiled in one respect."""

    def __init__(self, inner: Exact) -> None:
        super().__init__()
        self.inner, self.num_classes = inner, inner.num_classes
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.inner(images)
        return scores

    def embed(self, images: Tensor) -> Tensor:
        return self.inner.embed(images)


class OnePredictionForAll(Odd):
    def predict(self, images: Tensor) -> Tensor:
        return self.inner.predict(images)[:1]

    def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self(images), self.predict(images)


class OneScoreForAll(Odd):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[:1]


class Text(Odd):
    def predict(self, images: Tensor) -> Any:
        return ["cat"] * len(images)


class Fewer(Odd):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[:, :2]

    def predict(self, images: Tensor) -> Tensor:
        return self.inner.predict(images)


class DecidesOtherwise(Odd):
    """Tells attacks that they have already won."""

    def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
        scores = self(images)
        return scores, (scores.argmax(dim=1) + 1) % self.num_classes

    def predict(self, images: Tensor) -> Tensor:
        predicted: Tensor = self(images).argmax(dim=1)
        return predicted


class ScoresOtherwise(Odd):
    def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
        scores = self(images)
        return -scores, scores.argmax(dim=1)


class DecidesAlone(Odd):
    def decide(self, images: Tensor) -> Any:
        return self(images)

    def predict(self, images: Tensor) -> Tensor:
        predicted: Tensor = self(images).argmax(dim=1)
        return predicted


SPOILED: list[tuple[Callable[[Exact], Classifier], str]] = [
    (OnePredictionForAll, "the model predicts a class for each image"),
    (OneScoreForAll, "the model predicts a class for each image"),
    (Text, "the model predicts a class for each image: got builtins.list"),
    (Fewer, "the model scores each class of each image"),
    (DecidesOtherwise, "decide gives the scores of forward and the prediction of predict"),
    (ScoresOtherwise, "decide gives the scores of forward and the prediction of predict"),
    (DecidesAlone, "decide gives the scores of forward and the prediction of predict: got Tensor"),
]


@pytest.mark.parametrize(("make", "rule"), SPOILED)
def test_a_model_that_answers_in_another_form_is_refused_before_it_is_attacked(
    make: Callable[[Exact], Classifier], rule: str
) -> None:
    with pytest.raises(Breach, match=rule):
        subject(make(exact(4)), samples(40, 4))


class LiesUnderAttack(Odd):
    """Is honest on 8-bit images and tells attacks that they have won on all others."""

    def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
        scores = self(images)
        clean = torch.isclose(images * 255, (images * 255).round(), atol=1e-3).flatten(1).all(dim=1)
        predicted = scores.argmax(dim=1)
        return scores, torch.where(clean, predicted, (predicted + 1) % self.num_classes)

    def predict(self, images: Tensor) -> Tensor:
        predicted: Tensor = self(images).argmax(dim=1)
        return predicted


def test_a_model_that_answers_attacks_otherwise_than_the_judge_is_found_out_on_attacked_images() -> None:
    here = subject(LiesUnderAttack(exact(4)), samples(40, 4))
    assert len(evaluate(here, condition("clean")).outcome) == 40
    with pytest.raises(Breach, match=r"decide gives .*: [0-9]+ of [0-9]+ predictions differ"):
        evaluate(here, condition("fgsm@0.1"))


class OneForAllUnderAttack(LiesUnderAttack):
    decide = Odd.decide

    def predict(self, images: Tensor) -> Tensor:
        predicted: Tensor = self(images).argmax(dim=1)
        return predicted if torch.equal(images, to_float((images * 255).round().to(torch.uint8))) else predicted[:1]


def test_predictions_are_checked_on_every_batch_that_is_judged() -> None:
    here = subject(OneForAllUnderAttack(exact(4)), samples(40, 4))
    with pytest.raises(Breach, match="the model predicts a class for each image"):
        evaluate(here, condition("fgsm@0.1"))


def test_random_models_are_held_to_the_form_alone() -> None:
    images = to_float(samples(8, 4).images)
    check_answers(Noisy(exact(4)), images)


def test_a_model_with_other_classes_than_its_data_is_refused() -> None:
    check_classes(exact(4), 4)
    with pytest.raises(Breach, match="its num_classes is 3, not 4"):
        subject(exact(3), samples(20, 3), num_classes=4)


# --- attacks


@dataclass(frozen=True)
class Returning(Attack):
    """Returns images of a kind."""

    kind: str

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Any:
        changed = images.clone()
        return {
            "given": images,
            "requiring": changed.requires_grad_(),
            "parameter": nn.Parameter(changed.detach().clone()),
            "subclass": changed.detach().as_subclass(Lying),
            "sparse": changed.detach().to_sparse(),
            "array": changed.detach().numpy(),
        }[self.kind]


@pytest.mark.parametrize("kind", ["given", "requiring"])
def test_images_as_they_were_given_are_taken(kind: str) -> None:
    assert evaluate(subject(exact(4)), put_to(Returning(kind))).outcome.robust.sum() == 50


@pytest.mark.parametrize("kind", ["parameter", "subclass", "sparse", "array"])
def test_images_that_are_no_plain_tensor_are_refused(kind: str) -> None:
    with pytest.raises(Breach, match="images are a plain tensor"):
        evaluate(subject(exact(4)), put_to(Returning(kind)))


KEPT: list[Tensor] = []


@dataclass(frozen=True)
class Later(Attack):
    """Changes the images of a batch when it is given the next one."""

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        for earlier in KEPT:
            earlier.zero_()
        KEPT.append(images.clone())
        return KEPT[-1]


def test_images_that_change_later_are_judged_as_they_were_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robbench.evaluation.attack_run.attack_batch", lambda shape: 16)
    outcome = evaluate(subject(exact(4)), put_to(Later())).outcome
    assert not outcome.linf.any()
    assert outcome.robust.sum() == 50
    assert any(not earlier.any() for earlier in KEPT)


# --- surroundings


class Drawing(Odd):
    """Draws from global random state."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + 1e-6 * torch.randn(len(images), self.num_classes)


def test_a_model_that_draws_from_global_state_draws_the_same_in_every_run() -> None:
    here = subject(Drawing(exact(4)), samples(40, 4))
    first = evaluate(here, condition("uniform-noise@0.1")).outcome
    torch.manual_seed(5)
    before = torch.get_rng_state()
    second = evaluate(here, condition("uniform-noise@0.1")).outcome
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(first.final, second.final)


class Switching(Odd):
    """Switches something of the process when it is asked."""

    def predict(self, images: Tensor) -> Tensor:
        torch.set_default_dtype(torch.float64)
        return super().predict(images)


def test_a_model_that_switches_a_setting_of_the_process_fails_its_cell_and_no_other() -> None:
    here = subject(exact(4))
    with pytest.raises(Breach, match="the default type stays"):
        subject(Switching(exact(4)), held(here.samples))
    with pytest.raises(Breach, match=r"the default type stays: torch\.float32 became torch\.float64"):
        evaluate(replace(here, model=Switching(exact(4))), put_to(Idle()))
    assert torch.get_default_dtype() == torch.float32
