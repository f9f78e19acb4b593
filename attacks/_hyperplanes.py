"""The nearest point of a hyperplane within [0, 1], in Linf, L2 and L1."""

from __future__ import annotations

import torch
from torch import Tensor

from robbench.core.threat_model import Norm


def onto_hyperplane(starts: Tensor, slope: Tensor, values: Tensor, norm: Norm) -> Tensor:
    """The smallest changes within [0, 1] that bring linear functions to zero, each from several starts.

    Only changes towards zero help, so pixel j moves by d_j in that direction, up to the room r_j that it has there,
    and the task is to minimize ‖d‖ subject to ``Σ |slope_j| d_j = |value|``. In Linf ``d_j = min(r_j, t)`` and in L2
    ``d_j = min(r_j, t |slope_j|)`` for one t; in L1 the steepest pixels are used up one after the other (Croce and
    Hein, "Minimally distorted adversarial examples", 2020, section 2.2 and appendix).

    Args:
        starts: Floats in [0, 1], shape ``(S, N, ...)``.
        slope: Gradients of the functions, shape ``(N, ...)``.
        values: The functions at the starts, shape ``(S, N)``.
        norm: ``linf``, ``l2`` or ``l1``.

    Returns:
        The changes, of the shape of the starts. Where the box holds no zero, those that come nearest to it; pixels
        without slope stay where they are.

    Raises:
        ValueError: If the norm is another one.
    """
    slopes, flat = slope.flatten(1), starts.flatten(2)
    rise = torch.where(values[..., None] < 0, slopes, -slopes)
    room = torch.where(rise > 0, 1 - flat, flat)
    # Scaled by the largest, the squares of slopes as small as the dtype holds do not vanish.
    largest = slopes.abs().amax(dim=1, keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    steepness, goal = slopes.abs() / largest, values.abs()[..., None] / largest
    room = room * (steepness > 0)
    if norm == "l1":
        sizes = _steepest_first(steepness, room, goal)
    elif norm in ("linf", "l2"):
        sizes = _at_one_pace(steepness, room, goal, torch.ones_like(steepness) if norm == "linf" else steepness)
    else:
        raise ValueError(f"no projection onto a hyperplane in {norm}")
    return torch.copysign(sizes, rise).reshape(starts.shape)


def _at_one_pace(steepness: Tensor, room: Tensor, goal: Tensor, pace: Tensor) -> Tensor:
    """``d = min(room, t * pace)`` with ``Σ steepness * d = goal``, row by row.

    The sum is concave in t and linear while the same pixels have room, so Newton's method from t = 0 never oversteps
    and has the exact t as soon as a step leaves no further pixel without room.
    """
    gains, rates = steepness * room, steepness * pace
    full = room <= 0
    while True:
        gained = gains.where(full, 0).sum(dim=-1, keepdim=True)
        rate = rates.where(~full, 0).sum(dim=-1, keepdim=True)
        time = (goal - gained).clamp(min=0) / rate.clamp(min=torch.finfo(rate.dtype).tiny)
        change = time * pace
        over = full | (change >= room)
        if torch.equal(over, full):
            return torch.where(full, room, change)
        full = over


def _steepest_first(steepness: Tensor, room: Tensor, goal: Tensor) -> Tensor:
    """The least ``Σ d`` with ``Σ steepness * d = goal`` and d at most ``room``: a fractional knapsack, row by row."""
    steepness, order = steepness.sort(dim=1, descending=True, stable=True)
    order = order.expand_as(room)
    room = room.gather(2, order)
    gains = steepness * room
    missing = (goal - (gains.cumsum(dim=2) - gains)).clamp(min=0)
    taken = torch.minimum(missing / steepness.clamp(min=torch.finfo(steepness.dtype).tiny), room)
    return torch.zeros_like(room).scatter_(2, order, taken)
