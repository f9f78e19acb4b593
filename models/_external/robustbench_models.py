"""``robustbench:NAME``: the models of RobustBench's leaderboards, where that package is installed."""

from __future__ import annotations

import importlib

from robbench.core.errors import RequestError, explain
from robbench.models._external.fingerprint import argument_identity
from robbench.models._external.found import Found, LoadRequest

_DATASETS = {10: "cifar10", 100: "cifar100", 1000: "imagenet"}


def load(wanted: LoadRequest) -> Found:
    """A model of RobustBench, which downloads it; ``arguments`` are those of its ``load_model``.

    Raises:
        RequestError: If the package is not installed, or it has no such model.
    """
    name = wanted.request.source.partition(":")[2]
    try:
        utils = importlib.import_module("robustbench.utils")
    except ImportError:
        raise RequestError(
            "robustbench:NAME needs robustbench; pip install git+https://github.com/RobustBench/robustbench.git"
        ) from None
    given = wanted.request.arguments
    chosen = {"dataset": _DATASETS.get(wanted.num_classes or 10, "cifar10"), "threat_model": "Linf"} | given
    try:
        network = utils.load_model(model_name=name, **chosen)
    except Exception as error:
        raise RequestError(f"robustbench:{name} cannot be had: {explain(error)}") from None
    identity = {"code_sha256": None, "factory": name, "arguments": argument_identity(chosen, wanted.folder)}
    return Found(network, "robustbench", f"{name} (robustbench)", identity=identity)
