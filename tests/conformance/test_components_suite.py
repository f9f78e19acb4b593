from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from rule_results import broken
from torch import Tensor, nn

from robbench.cli.main import main
from robbench.conformance import kinds_of
from robbench.conformance.components import ARCHITECTURES, BALANCERS, OBJECTIVES
from robbench.conformance.data import DATASETS, METRICS, DatasetFiles
from robbench.conformance.defenses import DEFENSES
from robbench.conformance.rules import judge
from robbench.conformance.scenarios import Features
from robbench.core.contracts import Architecture, Backbone, Balancer, Classifier, Defense, Samples
from robbench.core.errors import RequestError
from robbench.core.metric import Metric
from robbench.core.registry import Registry
from robbench.core.sample_rng import Streams
from robbench.core.training_step import Batch
from robbench.data.dataset import Dataset, EpsList
from robbench.data.datasets.digits import Digits
from robbench.defenses._preprocessing import Preprocessed
from robbench.defenses.bit_depth import BitDepth
from robbench.models.cross_entropy import CrossEntropy
from robbench.results.schema import Measure, Outcome

BUILT_IN = Registry(installed=False)

# --- defenses


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


# --- balancers


@dataclass(frozen=True)
class Silent(Balancer):
    def refusal(self, counts: Tensor) -> str | None:
        return ""


@dataclass(frozen=True)
class Doubling(Balancer):
    def resample(self, samples: Samples, dataset: Dataset, seed: int) -> tuple[Samples, tuple[str, ...]]:
        twice = [torch.cat([values, values]) for values in (samples.images, samples.labels, samples.ids)]
        return Samples(*twice), ()


@dataclass(frozen=True)
class Short(Balancer):
    def class_weights(self, counts: Tensor) -> Tensor:
        return torch.ones(2)


@dataclass(frozen=True)
class Brighter(Balancer):
    def augment(self, images: Tensor, dataset: Dataset, rng: Streams) -> Tensor:
        return images + 0.5


@pytest.mark.parametrize(
    ("balancer", "rule", "part"),
    [
        (Silent(), "refusals give a reason", "no reason"),
        (Doubling(), "resampled sets are whole", "share an id"),
        (Short(), "class weights fit", "shape (2,)"),
        (Brighter(), "augmented images are images", "leave [0, 1]"),
    ],
)
def test_a_balancer_that_breaks_a_rule_is_told_which(balancer: Balancer, rule: str, part: str) -> None:
    found = broken(judge(BALANCERS, balancer))
    assert list(found) == [rule]
    assert part in found[rule]


# --- architectures and objectives


class Misannounced(Features):
    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__(image_shape)
        self.out_features += 1


@dataclass(frozen=True)
class Wrong(Architecture):
    def build(self, image_shape: tuple[int, int, int]) -> Backbone:
        return Misannounced(image_shape)


@dataclass(frozen=True)
class Unseeded(Architecture):
    def build(self, image_shape: tuple[int, int, int]) -> Backbone:
        backbone = Features(image_shape)
        weight = backbone.layers[0].weight
        assert isinstance(weight, nn.Parameter)
        weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(torch.seed() % 2**31))
        return backbone


@pytest.mark.parametrize(
    ("architecture", "part"), [(Wrong(), "features of (3, 32, 32)"), (Unseeded(), "a seed gives other weights")]
)
def test_an_architecture_that_breaks_a_rule_is_told_which(architecture: Architecture, part: str) -> None:
    assert part in broken(judge(ARCHITECTURES, architecture))["backbones are as announced"]


@dataclass(frozen=True)
class Half(CrossEntropy):
    def batches(self, labels: Tensor, batch_size: int, rng: np.random.Generator) -> Iterator[Tensor]:
        yield from list(super().batches(labels, batch_size, rng))[:1]


@dataclass(frozen=True)
class Infinite(CrossEntropy):
    def loss(
        self, model: Classifier, images: Tensor, labels: Tensor, weights: Tensor | None, anchor: Tensor | None = None
    ) -> Tensor:
        return super().loss(model, images, labels, weights) / (weights is None)


def test_an_objective_that_breaks_a_rule_is_told_which() -> None:
    assert "fewer than the 22" in broken(judge(OBJECTIVES, Half()))["batches cover the set"]
    assert "the loss is inf" in broken(judge(OBJECTIVES, Infinite()))["the training loss descends"]


# --- data sets and metrics


@dataclass(frozen=True)
class Falling(Digits):
    eps = {"linf": EpsList((0.2, 0.1), reference=0.3)}  # noqa: RUF012
    recipe = {"architecture": "compact-cnn", "epoch": 3}  # noqa: RUF012


def test_a_data_set_that_breaks_a_rule_is_told_which() -> None:
    found = broken(judge(DATASETS, DatasetFiles(Falling())))
    assert list(found) == ["sizes of change are in order", "its recipe is one"]
    assert 'did you mean "epochs"' in found["its recipe is one"]


@dataclass(frozen=True)
class Careless(Metric):
    def measure(self, outcome: Outcome) -> Mapping[str, Measure]:
        return {"share": Measure(float(outcome.final.sum()) / max(1, len(outcome)) or float("nan"))}


@dataclass(frozen=True)
class Writing(Metric):
    def measure(self, outcome: Outcome) -> Mapping[str, Measure]:
        outcome.final.sort()
        return {}


@dataclass(frozen=True)
class Stealthy(Metric):
    def measure(self, outcome: Outcome) -> Mapping[str, Measure]:
        ctypes.memset(outcome.final.ctypes.data, 0, outcome.final.nbytes)
        return {}


def test_a_metric_that_breaks_a_rule_is_told_which() -> None:
    assert "no sample" in broken(judge(METRICS, Careless()))["figures are measures"]
    assert "read-only" in broken(judge(METRICS, Writing()))["outcomes stay as they are"]
    assert "written to" in broken(judge(METRICS, Stealthy()))["outcomes stay as they are"]


# --- the command

PLUGIN = '''
from dataclasses import dataclass
from robbench import Attack, register_attack

@register_attack("mine", norms=("linf",))
@dataclass(frozen=True)
class Mine(Attack):
    """Moves every pixel up."""

    share: float = 1.0

    def perturb(self, model, images, labels, threat, rng):
        return (images + self.share * threat.eps).clamp(0, 1)
'''


def test_the_command_says_what_is_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN, encoding="utf-8")
    assert main(["check", "mine", "--plugin", str(plugin)]) == 0
    assert "0 of 14 rules broken" in capsys.readouterr().out
    assert main(["check", "mine[share=1.01]", "--plugin", str(plugin)]) == 1
    shown = capsys.readouterr().out
    assert "broken" in shown
    assert "the change stays within eps" in shown
    assert "attack mine[share=1.01]" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_name_of_several_kinds_is_checked_in_all_that_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert kinds_of(BUILT_IN, "fgm") == ("defense", "attack")
    assert kinds_of(BUILT_IN, "fgm[alpha=0.3]") == ("defense",)
    assert kinds_of(BUILT_IN, "art:DeepFool") == ("attack",)
    assert main(["check", "fgm"]) == 0
    shown = capsys.readouterr().out
    assert "defense fgm" in shown
    assert "attack fgm" in shown
    assert main(["check", "fgm", "--kind", "defense"]) == 0
    assert "attack fgm" not in capsys.readouterr().out


def test_a_missing_component_is_an_error_for_callers_too() -> None:
    with pytest.raises(RequestError, match="did you mean"):
        kinds_of(BUILT_IN, "pgdd")
