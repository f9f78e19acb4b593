"""No defense: the loss as it is."""

from __future__ import annotations

from dataclasses import dataclass

from robbench.core.contracts import Defense
from robbench.core.registry import register_defense


@register_defense("none")
@dataclass(frozen=True)
class NoDefense(Defense):
    """Train on the images as they are."""
