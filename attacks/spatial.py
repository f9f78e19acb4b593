"""Small rotations and shifts, the worst of a grid of them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robbench.attacks._survivors import Kept, Survivors
from robbench.attacks._warp import centered, sample, turned
from robbench.core.attack import Attack
from robbench.core.contracts import Classifier
from robbench.core.errors import RequestError
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat


def moved(images: Tensor, degrees: float, down: float, right: float) -> Tensor:
    """Images turned counter-clockwise about their centers and then shifted, in one reading, on black.

    Args:
        images: Floats in [0, 1], shape ``(N, C, H, W)``.
        degrees: Angle.
        down: Shift in pixels.
        right: Shift in pixels.
    """
    height, width = images.shape[-2:]
    rows, columns = centered(images)
    angle = torch.tensor(degrees, dtype=torch.float64, device=images.device)
    rows, columns = turned(rows - down, columns - right, angle)
    return sample(images, rows + (height - 1) / 2, columns + (width - 1) / 2, "zeros").clamp(0, 1)


@register_attack("spatial", norms=("none",), brief="Worst rotation and shift")
@dataclass(frozen=True)
class Spatial(Attack):
    """The worst of a grid of rotations and shifts (Engstrom et al., "Exploring the landscape", 2019).

    The grid is tried from the smallest move to the largest, the image itself first; a sample leaves at the first move
    that fools the model. Of a sample that none fools, the move that leaves the smallest margin is returned.
    Costs at most ``rotations * shifts**2`` forward passes.

    Attributes:
        max_rotation: Largest angle in degrees, either way.
        rotations: How many angles, evenly spaced; odd, so that the image itself is among them.
        max_shift: Largest shift along each axis as a share of the side, either way.
        shifts: How many shifts along each axis, evenly spaced; odd.
    """

    max_rotation: Annotated[float, Field(ge=0, le=180)] = 5.0
    rotations: Annotated[int, Field(ge=1)] = 7
    max_shift: Annotated[float, Field(ge=0, le=1)] = 0.06
    shifts: Annotated[int, Field(ge=1)] = 3

    adversarial: ClassVar[bool] = True
    black_box: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            RequestError: If a value does not fit, or a number of angles or shifts is even.
        """
        super().__post_init__()
        for name in ("rotations", "shifts"):
            if getattr(self, name) % 2 == 0:
                raise RequestError(f"{name} = {getattr(self, name)}: must be odd, so that no move is among the moves")

    def moves(self) -> list[tuple[float, float, float]]:
        """Angle in degrees and shifts down and right as shares of the sides, from the smallest move to the largest."""
        turns, steps = _evenly(self.rotations), _evenly(self.shifts)
        shares = sorted(itertools.product(turns, steps, steps), key=lambda share: sum(map(abs, share)))
        return [
            (self.max_rotation * turn, self.max_shift * down, self.max_shift * right) for turn, down, right in shares
        ]

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """The first moves that fool the model, or those with the smallest margin of the true class."""
        height, width = images.shape[-2:]
        kept, left = Kept.of(images), Survivors.of(model, images, labels, threat, rng)
        for degrees, down, right in self.moves():
            if not left:
                break
            still = degrees == down == right == 0
            tried = left.images if still else moved(left.images, degrees, height * down, width * right)
            margins, fooled = left.look(tried, left.gain("margin"))
            kept.offer(left, tried, fooled, margins.to(images.dtype))
            left = left[~fooled]
        return kept.images

    def passes(self, num_classes: int) -> tuple[int, int]:
        """One forward pass per move."""
        return self.rotations * self.shifts**2, 0


def _evenly(count: int) -> list[float]:
    """Numbers from -1 to 1 with 0 in the middle; 0 alone where there is one."""
    half = count // 2
    return [step / max(1, half) for step in range(-half, half + 1)]
