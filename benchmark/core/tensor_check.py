"""Whether what a component returns is a tensor that can be relied on."""

from __future__ import annotations

import torch
from torch import Tensor

from robbench.core.errors import Breach


def plain(found: object, rule: str) -> Tensor:
    """Check that something is a tensor as torch makes it: dense, and of no subclass, which may answer as it likes.

    Args:
        found: What a component returned.
        rule: What it should have returned.

    Returns:
        The tensor, detached.

    Raises:
        Breach: If it is something else.
    """
    if type(found) is not Tensor:
        raise Breach(rule, f"got {type(found).__module__}.{type(found).__qualname__}, not a plain torch.Tensor")
    if found.is_nested or found.layout != torch.strided:
        raise Breach(rule, f"got a tensor of layout {'nested' if found.is_nested else found.layout}")
    return found.detach()


def shown(tensor: Tensor) -> str:
    """Type and shape of a tensor, for messages."""
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"
