from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from rule_results import broken
from torch import Tensor, nn

from robbench.cli.main import main
from robbench.conformance import kinds_of
from robbench.conformance.components import ARCHITECTURES, BALANCERS, OBJECTIVES
from robbench.conformance.data import DATASETS, METRICS, DatasetFiles
from robbench.conformance.rules import judge
from robbench.conformance.scenarios import Features
from robbench.core.contracts import Architecture, Backbone, Balancer, Classifier, Samples
from robbench.core.errors import RequestError
from robbench.core.metric import Metric
from robbench.core.registry import Registry
from robbench.core.sample_rng import Streams
from robbench.data.dataset import Dataset, EpsList
from robbench.data.datasets.digits import Digits
from robbench.models.cross_entropy import CrossEntropy
from robbench.results.schema import Measure, Outcome

BUILT_IN = Registry(installed=False)

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
