"""The vote of nearest neighbors as a certificate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robbench.certificates._bounds import check_same, propagate, unit_roundoff
from robbench.certificates._layers import gamma
from robbench.certificates._network import Network
from robbench.core.certificate import Certificate, Certified, NoCertificate
from robbench.core.contracts import Classifier
from robbench.core.registry import register_certificate
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat
from robbench.models._neighbors import NeighborClassifier

AT_ONCE = 16
"""Images that linear bounds are kept of at once."""


class _Embedding(nn.Module):
    """What a nearest-neighbor model compares, before it is normalized."""

    def __init__(self, model: NeighborClassifier) -> None:
        super().__init__()
        self.backbone, self.projection = model.backbone, model.projection

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.projection(self.backbone(images))
        return found


@register_certificate("neighbors", norms=("linf", "l2", "l1"))
@dataclass(frozen=True)
class NeighborsBound(Certificate):
    """The vote of nearest neighbors: linear bounds of the embedding say by how much similarities can move (CROWN).

    A reference votes for certain where fewer than k others can be as near, and cannot where k others are nearer for
    certain. The prediction is proved where its certain votes are more than any other class can have.
    """

    def certify(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Certified:
        """The threat's eps where no vote can go to another class.

        Raises:
            NoCertificate: If the model is no nearest-neighbor model, or a layer cannot be bounded.
        """
        if not isinstance(model, NeighborClassifier):
            raise NoCertificate(f"{type(model).__name__} is no nearest-neighbor model")
        for name in ("predict", "decide", "hard_vote", "similarities", "project"):
            if getattr(type(model), name) is not getattr(NeighborClassifier, name):
                raise NoCertificate(f"{type(model).__name__} votes otherwise than nearest neighbors do")
        network = Network.of(_Embedding(model), images.shape[1:])
        parts = torch.arange(len(images)).split(AT_ONCE)
        found = [_proved(model, network, images[part], labels[part], threat) for part in parts]
        return Certified.where(torch.cat(found) if found else labels < 0, threat)


def _proved(model: NeighborClassifier, network: Network, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
    own = unit_roundoff(model, images)
    unit = own + 64 * torch.finfo(torch.float64).eps
    still = propagate(network, images.double(), Threat(threat.norm, 0.0), unit=unit)
    check_same(_Embedding(model), images, still.intervals[-1])
    bounds = propagate(network, images.double(), threat, linear=True, unit=unit)
    center = bounds.network.values[-1]
    rows = torch.eye(center.shape[1], dtype=torch.float64, device=images.device).expand(len(images), -1, -1)
    ends = bounds.least(torch.cat([rows, -rows], dim=1)).tensor_split(2, dim=1)
    moved = torch.maximum(
        center - torch.maximum(ends[0], bounds.intervals[-1].lower),
        torch.minimum(-ends[1], bounds.intervals[-1].upper) - center,
    )
    # A point within ``distance`` of another lies within that angle of it, seen from the origin.
    distance, length = moved.norm(dim=1), center.norm(dim=1)
    angle = torch.asin((distance / length.clamp_min(1e-300)).clamp(max=1))
    chord = torch.where(distance < length, 2 * torch.sin(angle / 2), 2.0)
    gallery = model.gallery.double()
    # Normalizing and comparing are rounded as well: a few times for each value of an embedding.
    reach = chord * gallery.norm(dim=1).amax() + 4 * gamma(center.shape[1] + 4, unit)
    similarities = F.normalize(center, dim=1) @ gallery.T
    return _vote_stays(model, similarities, reach.unsqueeze(1), labels)


def _vote_stays(model: NeighborClassifier, similarities: Tensor, reach: Tensor, labels: Tensor) -> Tensor:
    """Whether the vote is the same however far each similarity moves, up to ``reach`` of shape ``(N, 1)``."""
    ordered = similarities.sort(dim=1).values

    def above(limits: Tensor, side: str) -> Tensor:
        """How many similarities are larger; of equal ones those on the right are not counted."""
        return similarities.shape[1] - torch.searchsorted(ordered, limits.contiguous(), side=side)

    rivals = above(similarities - 2 * reach, "left") - 1  # others that can be as near
    nearer = above(similarities + 2 * reach, "right")  # others that are nearer for certain
    members = F.one_hot(model.gallery_labels, model.num_classes).double()
    certain, possible = (rivals < model.k).double() @ members, (nearer < model.k).double() @ members
    # No more than k vote, of whom some are certain to vote for others.
    rest = model.k - (certain.sum(dim=1, keepdim=True) - certain)
    most = torch.minimum(possible, rest).scatter(1, labels[:, None], -torch.inf)
    return certain.gather(1, labels[:, None])[:, 0] > most.amax(dim=1)
