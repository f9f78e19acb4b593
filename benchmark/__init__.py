"""robbench: a benchmark harness for the adversarial robustness of image classifiers.

``load`` reads the results of a run as a ``Report``, ``compare`` compares two of them, and ``attack`` attacks images
without a run. The other names are what plugins need. Each is imported from its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robbench.api.attack import attack
    from robbench.api.comparison import Comparison, compare
    from robbench.api.evaluation import evaluate, run
    from robbench.api.loading import load
    from robbench.api.report import Report
    from robbench.attacks._ensemble import Anew, chain, passes_of_chain
    from robbench.attacks._gradients import input_gradient, steepest_step
    from robbench.attacks._projections import project, uniform_in_ball
    from robbench.attacks._random_transform import RandomTransform
    from robbench.attacks.apgd import APGD
    from robbench.attacks.ascent import MomentumAscent
    from robbench.attacks.square import Square
    from robbench.core.attack import Attack
    from robbench.core.best_points import BestPoints
    from robbench.core.certificate import Certificate, Certified, NoCertificate
    from robbench.core.component import NoIdentity
    from robbench.core.contracts import Architecture, Backbone, Balancer, Classifier, Defense, Objective, Samples
    from robbench.core.errors import RequestError
    from robbench.core.metric import Metric
    from robbench.core.registry import (
        register_architecture,
        register_attack,
        register_balancer,
        register_certificate,
        register_dataset,
        register_defense,
        register_figure,
        register_metric,
        register_objective,
    )
    from robbench.core.sample_rng import Streams
    from robbench.core.threat_model import Threat
    from robbench.core.training_step import Batch
    from robbench.data.dataset import Dataset, EpsList, Raw
    from robbench.defenses._preprocessing import DifferentiablePreprocessing, Preprocessing
    from robbench.defenses._random_front import RandomPreprocessing
    from robbench.leaderboards.plots._scene import Figure, Scene, Sketch
    from robbench.results.schema import Measure, Outcome, Record

_MODULES = {
    "api.attack": "attack",
    "api.comparison": "Comparison compare",
    "api.evaluation": "evaluate run",
    "api.loading": "load",
    "api.report": "Report",
    "attacks._ensemble": "Anew chain passes_of_chain",
    "attacks._gradients": "input_gradient steepest_step",
    "attacks._projections": "project uniform_in_ball",
    "attacks._random_transform": "RandomTransform",
    "attacks.apgd": "APGD",
    "attacks.ascent": "MomentumAscent",
    "attacks.square": "Square",
    "core.best_points": "BestPoints",
    "core.certificate": "Certificate Certified NoCertificate",
    "core.component": "NoIdentity",
    "core.attack": "Attack",
    "core.contracts": "Architecture Backbone Balancer Classifier Defense Objective Samples",
    "core.errors": "RequestError",
    "core.metric": "Metric",
    "results.schema": "Measure Outcome Record",
    "core.registry": (
        "register_architecture register_attack register_balancer register_certificate register_dataset "
        "register_defense register_figure register_metric register_objective"
    ),
    "core.sample_rng": "Streams",
    "defenses._preprocessing": "DifferentiablePreprocessing Preprocessing",
    "defenses._random_front": "RandomPreprocessing",
    "data.dataset": "Dataset EpsList Raw",
    "core.threat_model": "Threat",
    "core.training_step": "Batch",
    "leaderboards.plots._scene": "Figure Scene Sketch",
}
_HOMES = {name: f"robbench.{module}" for module, names in _MODULES.items() for name in names.split()}

__all__ = [
    "APGD",
    "Anew",
    "Architecture",
    "Attack",
    "Backbone",
    "Balancer",
    "Batch",
    "BestPoints",
    "Certificate",
    "Certified",
    "Classifier",
    "Comparison",
    "Dataset",
    "Defense",
    "DifferentiablePreprocessing",
    "EpsList",
    "Figure",
    "Measure",
    "Metric",
    "MomentumAscent",
    "NoCertificate",
    "NoIdentity",
    "Objective",
    "Outcome",
    "Preprocessing",
    "RandomPreprocessing",
    "RandomTransform",
    "Raw",
    "Record",
    "Report",
    "RequestError",
    "Samples",
    "Scene",
    "Sketch",
    "Square",
    "Streams",
    "Threat",
    "attack",
    "chain",
    "compare",
    "evaluate",
    "input_gradient",
    "load",
    "passes_of_chain",
    "project",
    "register_architecture",
    "register_attack",
    "register_balancer",
    "register_certificate",
    "register_dataset",
    "register_defense",
    "register_figure",
    "register_metric",
    "register_objective",
    "run",
    "steepest_step",
    "uniform_in_ball",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
