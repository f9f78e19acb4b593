"""Embeddings trained with the angular loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from robbench.core.contracts import Backbone, Classifier, Objective, to_float
from robbench.core.registry import register_objective
from robbench.models._neighbors import NeighborClassifier, Scorer


class AngularClassifier(NeighborClassifier):
    """A nearest-neighbor model that was trained with the angular loss.

    ``surrogate("metric-loss")`` scores a class by minus the loss that the image would have as an anchor of that class,
    with the references of the class as its positives and all others as negatives, none of which move. It is not among
    ``surrogates``, since it follows the loss and not the vote.

    Args:
        alpha: Upper bound of the angle at the negative, in degrees.
        rest: What a nearest-neighbor model is made of.
    """

    def __init__(self, alpha: float, *rest: Any) -> None:
        super().__init__(*rest)
        self.alpha = alpha

    def scorers(self) -> Mapping[str, Scorer]:
        """The surrogates of the vote, by name."""
        return {**super().scorers(), "metric-loss": self._metric_scores}

    def _metric_scores(self, similarities: Tensor) -> Tensor:
        tangent = math.tan(math.radians(self.alpha)) ** 2
        tiny = torch.finfo(similarities.dtype).tiny
        losses = []
        for label in range(self.num_classes):
            own = self.gallery_labels == label
            # The exponent of equation 8 is a sum of a part for (anchor, negative), one for (positive, negative) and one
            # for (anchor, positive), so that its sum over negatives is a product of matrices.
            anchors = 4 * tangent * similarities[:, ~own]
            positives = 4 * tangent * (self.gallery[own] @ self.gallery[~own].T)
            tops = anchors.detach().amax(dim=1, keepdim=True), positives.amax(dim=1, keepdim=True)
            sums = torch.exp(anchors - tops[0]) @ torch.exp(positives - tops[1]).T
            exponents = torch.log(sums.clamp_min(tiny)) + tops[0] + tops[1].T
            losses.append(F.softplus(exponents - 2 * (1 + tangent) * similarities[:, own]).mean(dim=1))
        return -torch.stack(losses, dim=1)


@register_objective("angular")
@dataclass(frozen=True)
class Angular(Objective):
    """The angular loss (Wang et al., 2017) on normalized embeddings; predictions by the vote of nearest neighbors.

    Attributes:
        alpha: Upper bound of the angle at the negative, in degrees.
        embedding_size: Number of values of an embedding.
        per_class: Images of each class in a batch.
        k: Number of neighbors that vote.
        tau: Temperature of the smooth vote that attacks see.
    """

    alpha: Annotated[float, Field(gt=0, lt=90)] = 40.0
    embedding_size: Annotated[int, Field(ge=2)] = 128
    per_class: Annotated[int, Field(ge=2)] = 8
    k: Annotated[int, Field(ge=1)] = 100
    tau: Annotated[float, Field(gt=0)] = 0.1

    def build(self, backbone: Backbone, num_classes: int, gallery_labels: Tensor) -> Classifier:
        """A linear projection on the backbone, normalized, with an empty gallery."""
        return AngularClassifier(
            self.alpha, backbone, self.embedding_size, num_classes, gallery_labels, self.k, self.tau
        )

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
