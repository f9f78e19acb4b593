"""robbench: a benchmark harness for the adversarial robustness of image classifiers.

The names below are what plugins need; each is imported from its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robbench.interfaces import (
        Architecture,
        Attack,
        Backbone,
        Balancer,
        Batch,
        Classifier,
        Defense,
        Metric,
        Objective,
        Samples,
    )
    from robbench.records import Measure, Outcome, Record
    from robbench.registry import (
        register_architecture,
        register_attack,
        register_balancer,
        register_dataset,
        register_defense,
        register_metric,
        register_objective,
    )
    from robbench.rng import Streams
    from robbench.sources import Dataset, EpsList, Raw
    from robbench.threat import Threat

_MODULES = {
    "interfaces": ("Architecture Attack Backbone Balancer Batch Classifier Defense Metric Objective Samples"),
    "records": "Measure Outcome Record",
    "registry": (
        "register_architecture register_attack register_balancer register_dataset register_defense register_metric "
        "register_objective"
    ),
    "rng": "Streams",
    "sources": "Dataset EpsList Raw",
    "threat": "Threat",
}
_HOMES = {name: f"robbench.{module}" for module, names in _MODULES.items() for name in names.split()}

__all__ = [
    "Architecture",
    "Attack",
    "Backbone",
    "Balancer",
    "Batch",
    "Classifier",
    "Dataset",
    "Defense",
    "EpsList",
    "Measure",
    "Metric",
    "Objective",
    "Outcome",
    "Raw",
    "Record",
    "Samples",
    "Streams",
    "Threat",
    "register_architecture",
    "register_attack",
    "register_balancer",
    "register_dataset",
    "register_defense",
    "register_metric",
    "register_objective",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
