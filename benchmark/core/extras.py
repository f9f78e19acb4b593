"""Packages that come with an extra of robbench, imported when they are used."""

from __future__ import annotations

import importlib
from typing import Any

from robbench.core.errors import RequestError


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
