"""Doing nothing about unequal class counts."""

from __future__ import annotations

from dataclasses import dataclass

from robbench.core.contracts import Balancer
from robbench.core.registry import register_balancer


@register_balancer("none")
@dataclass(frozen=True)
class Unbalanced(Balancer):
    """The training set as it is."""
