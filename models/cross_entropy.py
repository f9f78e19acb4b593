"""Classifiers that end in logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robbench.core.contracts import Backbone, Classifier, Objective
from robbench.core.registry import register_objective


class LogitClassifier(Classifier):
    """A backbone with a linear head; the prediction is the largest logit."""

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = backbone
        self.head = nn.Linear(backbone.out_features, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """The backbone's output, shape ``(N, D)``."""
        features: Tensor = self.backbone(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape ``(N, K)``."""
        logits: Tensor = self.head(self.embed(images))
        return logits


@register_objective("cross-entropy")
@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Cross-entropy of the logits, class weights included where a balancer gives them."""

    def build(self, backbone: Backbone, num_classes: int, gallery_labels: Tensor) -> Classifier:
        """A linear head on the backbone."""
        return LogitClassifier(backbone, num_classes)

    def batches(self, labels: Tensor, batch_size: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """Every sample once, in random order. A last batch of one, on which batch norm fails, joins the one before."""
        order = torch.from_numpy(rng.permutation(len(labels)))
        chunks = list(torch.split(order, batch_size))
        if len(chunks) > 1 and len(chunks[-1]) == 1:
            chunks[-2:] = [torch.cat(chunks[-2:])]
        yield from chunks

    def loss(
        self, model: Classifier, images: Tensor, labels: Tensor, weights: Tensor | None, anchor: Tensor | None = None
    ) -> Tensor:
        """The (weighted) mean cross-entropy; ``anchor`` has no part in it."""
        return self.score_loss(model(images).float(), labels, weights)

    def score_loss(self, scores: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        """The same of scores."""
        weights = None if weights is None else weights.to(scores)
        if not labels.is_floating_point():
            return F.cross_entropy(scores, labels, weight=weights)
        # torch divides by the number of images here, and by the sum of their weights where labels are hard.
        total = F.cross_entropy(scores, labels.to(scores), weight=weights, reduction="sum")
        return total / (len(labels) if weights is None else (labels.to(weights) @ weights).sum())
