"""Threat models: what an attacker may do to an image whose pixels lie in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Norm = Literal["linf", "l2", "l1", "l0", "none"]
NORMS: tuple[Norm, ...] = get_args(Norm)
LP_NORMS: tuple[Norm, ...] = tuple(norm for norm in NORMS if norm != "none")


@dataclass(frozen=True)
class Threat:
    """The attacker's limits.

    Attributes:
        norm: Norm of the change, taken over all values of an image (``l0`` counts changed values); ``none`` for
            natural perturbations, which are limited by their own parameters instead.
        eps: Largest norm allowed, in units of a [0, 1] pixel. None where the change is not limited, as for natural
            perturbations and for attacks that look for the smallest change.
        targeted: Whether the labels given to the attack are targets to reach rather than classes to leave.
    """

    norm: Norm
    eps: float | None = None
    targeted: bool = False

    def __post_init__(self) -> None:
        """Refuse limits that mean nothing.

        Raises:
            ValueError: If the norm is unknown, or ``eps`` is negative, not finite, or given without a norm.
        """
        if self.norm not in NORMS:
            raise ValueError(f"unknown norm {self.norm!r}; known: {', '.join(NORMS)}")
        if self.norm == "none" and self.eps is not None:
            raise ValueError("a natural perturbation has no eps")
        if self.eps is not None and not (math.isfinite(self.eps) and self.eps >= 0):
            raise ValueError(f"eps must be finite and not negative, not {self.eps}")

    def doubt(self, values: int) -> str:
        """What is odd about the limit, or nothing.

        Args:
            values: Number of values of an image, channels times height times width.
        """
        largest = {"linf": 1.0, "l2": math.sqrt(values)}.get(self.norm, float(values))
        if self.eps is not None and self.eps > largest:
            levels = f"; for {self.eps:g} of 255 levels write {self.eps:g}/255" if self.norm == "linf" else ""
            return f"pixels lie in [0, 1], and no change is larger than {largest:g} in {self.norm}{levels}"
        if self.norm == "l0" and 0 < self.radius < 1:
            return "l0 counts changed values, and less than 1 of them is no change"
        return ""

    @property
    def radius(self) -> float:
        """The limit as a number: ``eps``, or infinity where there is none."""
        return math.inf if self.eps is None else self.eps


def asked_threat(norm: Norm, eps: float | None, targeted: bool = False) -> Threat:
    """Limits as somebody asks for them: ``Threat``, but for levels of 255 where shares of 1 are meant.

    Args:
        norm: The norm.
        eps: Largest norm allowed.
        targeted: Whether labels are targets.

    Raises:
        ValueError: If the limits mean nothing, or ``eps`` in Linf is above 1, which any change keeps to.
    """
    threat = Threat(norm, eps, targeted)
    if norm == "linf" and threat.eps is not None and threat.eps > 1:
        raise ValueError(f"pixels lie in [0, 1]; did you mean {threat.eps:g}/255?")
    return threat


def allowed_size(eps: float) -> float:
    """The largest change that passes for one of at most eps: its own rounding is forgiven."""
    return eps * (1 + 1e-5) + 1e-6


def size_name(norm: str, eps: float) -> str:
    """As grids and notes of boards name the limits that rank: ``linf@8/255``."""
    return f"{norm}@{format_eps(eps)}"


def precedence(norm: str, eps: float, reference: Mapping[str, float]) -> tuple[bool, int, float, float]:
    """Sorts limits by how much they matter: a data set's reference sizes first, Linf before L2, L1 and L0.

    Args:
        norm: The norm.
        eps: The limit.
        reference: The data set's reference size per norm.
    """
    usual = reference.get(norm, 0.0)
    return eps != usual, [str(known) for known in NORMS].index(norm), abs(eps - usual), eps


def format_eps(eps: float) -> str:
    """``0.1`` as ``0.1``, and ``0.03137…`` as ``8/255``: the shorter of the two usual ways to write it."""
    short = f"{eps:.4g}"
    levels = round(eps * 255)
    text = short if float(short) == eps else f"{levels}/255" if levels / 255 == eps else f"{eps!r}"
    # A plus sign joins the attacks of a chain.
    return text.replace("+", "")
