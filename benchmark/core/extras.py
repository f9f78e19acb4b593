"""Modules that are not everywhere: packages of an extra of robbench, and what only POSIX systems have."""

from __future__ import annotations

import importlib
from typing import Any

from robbench.core.errors import RequestError


def posix_module(name: str) -> Any:
    """A module of the standard library that only POSIX systems have; None elsewhere."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


def require(module: str, extra: str, use: str) -> Any:
    """Import a module of an extra.

    Args:
        module: The module.
        extra: The extra that it comes with.
        use: What needs it, for the message.

    Raises:
        RequestError: If its package is not installed.
    """
    package = module.partition(".")[0]
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise RequestError(f"{use} needs {package}; pip install 'robbench[{extra}]'") from None
    return importlib.import_module(module)
