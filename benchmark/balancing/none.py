"""Doing nothing about unequal class counts."""

from __future__ import annotations

from dataclasses import dataclass

from robbench.interfaces import Balancer
from robbench.registry import register_balancer


@register_balancer("none")
@dataclass(frozen=True)
class Unbalanced(Balancer):
    """The training set as it is."""
