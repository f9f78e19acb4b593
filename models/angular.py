"""Embeddings trained with the angular loss, and the vote of nearest neighbours that makes a classifier of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from robbench.interfaces import Backbone, Classifier, Objective, to_float
from robbench.registry import register_objective


class NeighborClassifier(Classifier):
    """Votes of the k most similar reference images, by cosine similarity of normalised embeddings.

    The hard vote has no gradient. ``forward`` returns the log of a smooth vote in its place: with s_j the similarity to
    reference j and θ halfway between the k-th and the (k+1)-th similarity, held constant in the gradient and recomputed
    at every call, v_c is the sum over class c of σ((s_j − θ)/τ), and the score is log(v_c + 0.001).

    Args:
        backbone: Network from images to features.
        embedding_size: Number of values of an embedding.
        num_classes: Number of classes K.
        gallery_labels: Labels of the reference images, int64, shape ``(G,)``, the same number of each class.
        k: Number of neighbours that vote; at most the reference images per class, so that it is less than G.
        tau: Temperature τ of the smooth vote.
    """

    gallery: Tensor
    gallery_labels: Tensor

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
        """Normalised embeddings, shape ``(N, embedding_size)``."""
        return F.normalize(self.projection(self.embed(images)).to(self.gallery.dtype), dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Log of the smooth vote, shape ``(N, K)``."""
        return self._smooth_vote(self._similarities(images))

    def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Log of the smooth vote, and the hard vote; ties go to the larger summed similarity, then the lower class."""
        similarities = self._similarities(images)
        return self._smooth_vote(similarities), self._hard_vote(similarities.detach())

    def _similarities(self, images: Tensor) -> Tensor:
        return self.project(images) @ self.gallery.T

    def _smooth_vote(self, similarities: Tensor) -> Tensor:
        largest = similarities.detach().topk(self.k + 1, dim=1).values
        threshold = largest[:, -2:].mean(dim=1, keepdim=True)
        members = F.one_hot(self.gallery_labels, self.num_classes).to(similarities.dtype)
        return torch.log(torch.sigmoid((similarities - threshold) / self.tau) @ members + 1e-3)

    def _hard_vote(self, similarities: Tensor) -> Tensor:
        nearest, index = similarities.double().topk(self.k, dim=1)
        members = F.one_hot(self.gallery_labels[index], self.num_classes).double()
        # Summed similarities lie in [-k, k]: scaled below one half they only decide between equal votes.
        summed = torch.einsum("nk,nkc->nc", nearest, members)
        return (members.sum(dim=1) + summed / (4 * self.k)).argmax(dim=1)


@register_objective("angular")
@dataclass(frozen=True)
class Angular(Objective):
    """The angular loss (Wang et al., 2017) on normalised embeddings; decisions by the vote of nearest neighbours.

    Attributes:
        alpha: Upper bound of the angle at the negative, in degrees.
        embedding_size: Number of values of an embedding.
        per_class: Images of each class in a batch.
        k: Number of neighbours that vote.
        tau: Temperature of the smooth vote that attacks see.
    """

    alpha: Annotated[float, Field(gt=0, lt=90)] = 40.0
    embedding_size: Annotated[int, Field(ge=2)] = 128
    per_class: Annotated[int, Field(ge=2)] = 8
    k: Annotated[int, Field(ge=1)] = 100
    tau: Annotated[float, Field(gt=0)] = 0.1

    def build(self, backbone: Backbone, num_classes: int, gallery_labels: Tensor) -> Classifier:
        """A linear projection on the backbone, normalised, with an empty gallery."""
        return NeighborClassifier(backbone, self.embedding_size, num_classes, gallery_labels, self.k, self.tau)

    def batches(self, labels: Tensor, batch_size: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """As many batches as cover the set once, each of ``per_class`` images of as many classes as fit, at least two.

        Every class walks through its images in random order and starts over when it has none left.
        """
        classes = torch.unique(labels).tolist()
        members = {c: torch.nonzero(labels == c).flatten().numpy() for c in classes}
        waiting: dict[int, list[int]] = {c: [] for c in classes}
        per_batch = min(len(classes), max(2, batch_size // self.per_class))
        for _ in range(-(-len(labels) // (per_batch * self.per_class))):
            batch: list[int] = []
            for c in rng.choice(classes, per_batch, replace=False).tolist():
                while len(waiting[c]) < self.per_class:
                    waiting[c] += rng.permutation(members[c]).tolist()
                batch += waiting[c][: self.per_class]
                del waiting[c][: self.per_class]
            yield torch.tensor(batch)

    def loss(
        self, model: Classifier, images: Tensor, labels: Tensor, weights: Tensor | None, anchor: Tensor | None = None
    ) -> Tensor:
        """The smooth batch form of the loss; class weights weigh anchors.

        With ``anchor``, ``images`` are the anchors, and the embeddings of ``anchor`` their frozen positives and
        negatives.
        """
        from pytorch_metric_learning.losses import AngularLoss
        from pytorch_metric_learning.reducers import DoNothingReducer

        assert isinstance(model, NeighborClassifier)
        embeddings = model.project(images)
        frozen: dict[str, Tensor] = {}
        if anchor is not None:
            with torch.no_grad():
                frozen = {"ref_emb": model.project(anchor), "ref_labels": labels}
        found = AngularLoss(self.alpha, reducer=DoNothingReducer())(embeddings, labels, **frozen)["loss"]
        if found["indices"] is None:  # no two images of a class, or no other class
            return embeddings.sum() * 0
        # Losses come as a column, which the library's own weighting multiplies by every weight instead of by its own.
        losses: Tensor = found["losses"].flatten()
        if weights is None:
            return losses.mean()
        anchors, _ = found["indices"]
        return (losses * weights.to(losses.dtype)[labels[anchors]]).mean()

    def finish(self, model: Classifier, gallery: Tensor) -> None:
        """Embed the reference images."""
        assert isinstance(model, NeighborClassifier)
        device = model.gallery.device
        with torch.no_grad():
            model.gallery.copy_(
                torch.cat([model.project(to_float(part, device)) for part in torch.split(gallery, 256)])
            )
