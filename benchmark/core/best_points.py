"""What one attack hands to the next: the best points that it found."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BestPoints:
    """The best point that an attack found for each sample, and what it learned on the way.

    Attributes:
        images: The points, shape ``(N, C, H, W)``.
        value: What the attack raised, there, shape ``(N,)``; -inf of attacks that keep their latest point whatever its
            value.
        fooled: Whether the point fools the model, bool, shape ``(N,)``.
        lead: By how much each class came ahead of the label at any point that was looked at, by this attack or by those
            before it, shape ``(N, K)``; -inf where nothing is known. Its largest entry but the label's, which is zero,
            is the best margin seen, and the classes with the largest ones came nearest.
    """

    images: Tensor
    value: Tensor
    fooled: Tensor
    lead: Tensor

    def __getitem__(self, index: Tensor) -> BestPoints:
        """Those of some of the samples, by a mask or indices."""
        return BestPoints(self.images[index], self.value[index], self.fooled[index], self.lead[index])


def unknown_lead(images: Tensor, num_classes: int) -> Tensor:
    """The lead of the classes where nothing was looked at yet, shape ``(N, K)``."""
    return images.new_full((len(images), num_classes), -torch.inf)


def raise_lead(lead: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
    """The lead of the classes after another point was looked at, shape ``(N, K)``; scores that are NaN tell nothing."""
    ahead = scores - scores.gather(1, labels[:, None])
    return torch.fmax(lead, ahead.to(lead.dtype))
