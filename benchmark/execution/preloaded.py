"""What the process that starts the others loads, so that those that are forked from it have it at once."""

from __future__ import annotations

import importlib
import warnings

_MODULES = ("robbench.execution.worker", "torch._dynamo")
"""Libraries import the last one for every optimizer."""

# They may warn of what the machine lacks, as of shared memory between processes, which nothing here needs.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for module in _MODULES:
        importlib.import_module(module)
