"""Defenses that break a rule are told which."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from rule_results import broken
from torch import Tensor

from robbench.conformance.defenses import DEFENSES
from robbench.conformance.rules import judge
from robbench.core.contracts import Classifier, Defense
from robbench.core.training_step import Batch
from robbench.defenses._preprocessing import Preprocessed
from robbench.defenses.bit_depth import BitDepth


@dataclass(frozen=True)
class Negative(Defense):
    def training_loss(self, batch: Batch) -> Tensor:
        return batch.loss(batch.images).detach()


@dataclass(frozen=True)
class Global(Defense):
    def training_loss(self, batch: Batch) -> Tensor:
        return batch.loss(batch.images + 0.01 * torch.randn_like(batch.images))


@dataclass(frozen=True)
class Steps(Defense):
    def training_loss(self, batch: Batch) -> Tensor:
        batch.loss(batch.images).backward()
        return batch.loss(batch.images)


class Front(Classifier):
    """A model behind something that is done to images or scores."""

    def __init__(self, model: Classifier, classes: int) -> None:
        super().__init__()
        self.model, self.num_classes = model, classes

    def before(self, images: Tensor) -> Tensor:
        return images

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.model(self.before(images))
        return result

    def embed(self, images: Tensor) -> Tensor:
        return self.model.embed(self.before(images))


class Rounding(Front):
    def before(self, images: Tensor) -> Tensor:
        return images.detach().round()


class Centering(Front):
    def before(self, images: Tensor) -> Tensor:
        return 50 * (images - images.mean(dim=0)) * (1 + torch.arange(len(images)))[:, None, None, None]


@dataclass(frozen=True)
class Blocked(Defense):
    def wrap(self, model: Classifier) -> Classifier:
        return Rounding(model, model.num_classes)


@dataclass(frozen=True)
class Flattering(BitDepth):
    gradients = "exact"

    def wrap(self, model: Classifier) -> Classifier:
        return Preprocessed(model, self.change, "straight-through")


@dataclass(frozen=True)
class Batched(Defense):
    def wrap(self, model: Classifier) -> Classifier:
        return Centering(model, model.num_classes)


@dataclass(frozen=True)
class Miscounting(Defense):
    def wrap(self, model: Classifier) -> Classifier:
        return Front(model, model.num_classes + 1)


@dataclass(frozen=True)
class Direct(Defense):
    def training_loss(self, batch: Batch) -> Tensor:
        batch.model(batch.images)
        return batch.loss(batch.images)


@dataclass(frozen=True)
class Evaluating(Defense):
    def training_loss(self, batch: Batch) -> Tensor:
        batch.model.eval()
        return batch.loss(batch.images)


@dataclass(frozen=True)
class Blending(Defense):
    def training_loss(self, batch: Batch) -> Tensor:
        return batch.loss(batch.images, torch.full((len(batch.labels), 3), 1 / 3))


@dataclass(frozen=True)
class Aside(Defense):
    def training_loss(self, batch: Batch) -> Tensor:
        return batch.score_loss(batch.model(batch.images))


@dataclass(frozen=True)
class Forgetful(Defense):
    kept: ClassVar[list[int]] = []

    def after_step(self, batch: Batch) -> None:
        self.kept.append(0)
        with torch.no_grad():
            next(batch.model.parameters()).add_(1e-3 * len(self.kept))


@dataclass(frozen=True)
class Partial(Defense):
    def final_weights(self, model: Classifier, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {"head.bias": torch.zeros(3)}


@dataclass(frozen=True)
class Mute(Defense):
    def stop(self, robust_accuracies: Sequence[float]) -> str | None:
        return " " if robust_accuracies else None


@dataclass(frozen=True)
class Costly(Defense):
    def training_loss(self, batch: Batch) -> Tensor:
        return batch.loss(batch.images + 0 * batch.attack_scores(batch.images).sum())


@dataclass(frozen=True)
class Never(Defense):
    def steps_per_batch(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("defense", "rule", "part"),
    [
        (Direct(), "training leaves the network as it was", "move 2 times in 1 training passes"),
        (Evaluating(), "training leaves the network as it was", "another mode"),
        (Blending(), "training leaves the network as it was", "set mixes_labels"),
        (Aside(), "training leaves the network as it was", "move 1 times in 0 training passes"),
        (Costly(), "a step takes the passes that are told", "2 forward passes per image, passes tells 1 + 0"),
        (Forgetful(), "hooks keep their promises", "after a checkpoint"),
        (Partial(), "hooks keep their promises", "no state of the model"),
        (Mute(), "hooks keep their promises", "no reason to stop"),
        (Never(), "hooks keep their promises", "steps_per_batch is 0"),
        (Negative(), "the training loss descends", "no gradient flows"),
        (Global(), "the training loss descends", "global random state"),
        (Steps(), "the training loss descends", "a gradient is left"),
        (Miscounting(), "the wrapped model answers", "num_classes is 4"),
        (Blocked(), "gradients pass as it says", 'gradients = "exact"'),
        (Flattering(), "gradients pass as it says", "the derivative along 0 of 11 ways"),
        (Batched(), "batch and order change nothing", "predictions change"),
    ],
)
def test_a_defense_that_breaks_a_rule_is_told_which(defense: Defense, rule: str, part: str) -> None:
    found = broken(judge(DEFENSES, defense))
    assert next(iter(found)) == rule
    assert part in found[rule]


class OneForAll(Front):
    def predict(self, images: Tensor) -> Tensor:
        return self.model.predict(images)[:1]


class Deciding(Front):
    def predict(self, images: Tensor) -> Tensor:
        return self.model.predict(images)

    def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self(images), (self.predict(images) + 1) % self.num_classes


class Moving(Front):
    def before(self, images: Tensor) -> Tensor:
        os.chdir("/")
        return images


class NoFeatures(Front):
    def embed(self, images: Tensor) -> Tensor:
        return images


@pytest.mark.parametrize(
    ("front", "part"),
    [
        (OneForAll, "the model predicts a class for each image: got torch.int64 of shape (1,)"),
        (Deciding, "decide gives the scores of forward and the prediction of predict"),
        (Moving, "the working directory stays"),
        (NoFeatures, "the model embeds each image"),
    ],
)
def test_a_defense_is_told_what_would_fail_its_cells(front: type[Front], part: str) -> None:
    class Own(Defense):
        def wrap(self, model: Classifier) -> Classifier:
            return front(model, model.num_classes)

    here = Path.cwd()
    try:
        assert part in broken(judge(DEFENSES, Own()))["the wrapped model answers"]
    finally:
        os.chdir(here)
