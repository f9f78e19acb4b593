"""The vote of nearest neighbors, its differentiable surrogates, and when these prove it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robbench.core.contracts import Backbone, Classifier

SHARPENING = 10
"""How many times smaller than τ the temperature of the ``sharp-vote`` is."""

MEAN_SCALE = 5
"""Class means differ by 2 at the most. Times 5, the softmax of the leading class stays below 1 by e⁻¹⁰ or more, which
float32 still holds: cross-entropy keeps a gradient towards every class."""

Scorer = Callable[[Tensor], Tensor]
"""From similarities to the references, shape ``(N, G)``, to scores, shape ``(N, K)``."""


class NeighborClassifier(Classifier):
    """Votes of the k most similar reference images, by cosine similarity of normalized embeddings.

    The hard vote has no gradient. ``forward`` returns the log of a smooth vote in its place: with s_j the similarity to
    reference j and θ halfway between the k-th and the (k+1)-th similarity, held constant in the gradient and recomputed
    at every call, v_c is the sum over class c of σ((s_j − θ)/τ), and the score is log(v_c + 0.001).

    An attack that fails on one smooth score proves little, so there are further ones: ``sharp-vote``, the same with a
    tenth of τ, and ``class-means``, the mean similarity to each class. ``surrogate("votes")`` gives the hard votes
    themselves, ties resolved; they have no gradient and are for attacks that search at random.

    Args:
        backbone: Network from images to features.
        embedding_size: Number of values of an embedding.
        num_classes: Number of classes K.
        gallery_labels: Labels of the reference images, int64, shape ``(G,)``, the same number of each class.
        k: Number of neighbors that vote; at most the reference images per class, so that it is less than G.
        tau: Temperature τ of the smooth vote.
    """

    gallery: Tensor
    gallery_labels: Tensor

    surrogates = ("sharp-vote", "class-means")

    def __init__(
        self, backbone: Backbone, embedding_size: int, num_classes: int, gallery_labels: Tensor, k: int, tau: float
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.k = min(k, int(torch.bincount(gallery_labels, minlength=num_classes).min()))
        self.tau = tau
        self.backbone = backbone
        self.projection = nn.Linear(backbone.out_features, embedding_size)
        self.register_buffer("gallery", torch.zeros(len(gallery_labels), embedding_size))
        self.register_buffer("gallery_labels", gallery_labels.clone())

    def embed(self, images: Tensor) -> Tensor:
        """The backbone's output, shape ``(N, D)``."""
        features: Tensor = self.backbone(images)
        return features

    def project(self, images: Tensor) -> Tensor:
        """Normalized embeddings, shape ``(N, embedding_size)``."""
        return F.normalize(self.projection(self.embed(images)).to(self.gallery.dtype), dim=1)

    def similarities(self, images: Tensor) -> Tensor:
        """Cosine similarities to the references, shape ``(N, G)``."""
        return self.project(images) @ self.gallery.T

    def forward(self, images: Tensor) -> Tensor:
        """Log of the smooth vote, shape ``(N, K)``."""
        return self._log_vote(self.similarities(images), self.tau)

    def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Log of the smooth vote, and the hard vote; ties go to the larger summed similarity, then the lower class."""
        similarities = self.similarities(images)
        return self._log_vote(similarities, self.tau), self.hard_vote(similarities)

    def surrogate(self, name: str) -> Classifier:
        """This model with the same hard votes and other scores.

        Args:
            name: One of ``surrogates``, or ``votes``.

        Raises:
            KeyError: If there are none of that name.
        """
        return _Rescored(self, self.scorers()[name])

    def scorers(self) -> Mapping[str, Scorer]:
        """The surrogates of the vote, by name."""
        return {
            "sharp-vote": partial(self._log_vote, tau=self.tau / SHARPENING),
            "class-means": self._class_means,
            "votes": self._votes,
        }

    def hard_vote(self, similarities: Tensor) -> Tensor:
        """The class that wins the vote, int64, shape ``(N,)``, from similarities of shape ``(N, G)``."""
        return self._votes(similarities).argmax(dim=1)

    def certified_vote(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Where the smooth vote proves the hard one.

        With n_c the votes of class c and e_c the sum over class c of σ(−|s_j − θ|/τ), |v_c − n_c| ≤ e_c: every
        reference above θ lacks so much of a vote, and every one below has so much too many. So class a has the most
        votes if v_a − v_b > e_a + e_b for every other b, here in float64 with 1e-9 per reference to spare for rounding.

        Returns:
            Whether the hard vote is proven, bool, shape ``(N,)``; and the class that the smooth vote prefers, int64,
            shape ``(N,)``, which wins the hard vote wherever that is so.
        """
        with torch.no_grad():
            similarities = self.similarities(images).double()
            distance = (similarities - self._threshold(similarities)) / self.tau
            members = self._members(torch.float64)
            votes = torch.sigmoid(distance) @ members
            errors = torch.sigmoid(-distance.abs()) @ members
            winner = votes.argmax(dim=1, keepdim=True)
            lead = (votes.gather(1, winner) - votes) - (errors.gather(1, winner) + errors)
            lead = lead.scatter(1, winner, torch.inf)
            return lead.amin(dim=1) > 1e-9 * len(self.gallery_labels), winner.squeeze(1)

    def _members(self, dtype: torch.dtype) -> Tensor:
        return F.one_hot(self.gallery_labels, self.num_classes).to(dtype)

    def _threshold(self, similarities: Tensor) -> Tensor:
        return similarities.detach().topk(self.k + 1, dim=1).values[:, -2:].mean(dim=1, keepdim=True)

    def _log_vote(self, similarities: Tensor, tau: float) -> Tensor:
        near = torch.sigmoid((similarities - self._threshold(similarities)) / tau)
        return torch.log(near @ self._members(similarities.dtype) + 1e-3)

    def _class_means(self, similarities: Tensor) -> Tensor:
        members = self._members(similarities.dtype)
        return MEAN_SCALE * (similarities @ (members / members.sum(dim=0)))

    def _votes(self, similarities: Tensor) -> Tensor:
        nearest, index = similarities.detach().double().topk(self.k, dim=1)
        members = F.one_hot(self.gallery_labels[index], self.num_classes).double()
        # Summed similarities lie in [-k, k]: scaled below one half they only decide between equal votes.
        return members.sum(dim=1) + torch.einsum("nk,nkc->nc", nearest, members) / (4 * self.k)


class _Rescored(Classifier):
    """A nearest-neighbor model with other scores; its parts are shared."""

    def __init__(self, model: NeighborClassifier, scorer: Scorer) -> None:
        super().__init__()
        self.model, self.scorer = model, scorer
        self.num_classes, self.training = model.num_classes, model.training

    def embed(self, images: Tensor) -> Tensor:
        return self.model.embed(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.scorer(self.model.similarities(images))

    def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
        similarities = self.model.similarities(images)
        return self.scorer(similarities), self.model.hard_vote(similarities)
