"""Several models that vote."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from robbench.core.contracts import Classifier
from robbench.core.errors import RequestError


class Vote(Classifier):
    """The class that most models predict; of classes with as many votes, the one of the highest mean probability.

    Votes have no gradient: attacks follow the log of the mean probability.

    Args:
        members: The models, of the same classes.

    Raises:
        RequestError: If one may reject images, which is no vote.
    """

    def __init__(self, members: Sequence[Classifier]) -> None:
        super().__init__()
        if any(member.rejects for member in members):
            raise RequestError("a model that rejects images has no vote; put the detector in front of the vote instead")
        self.members = nn.ModuleList(members)
        self.num_classes, self.training = members[0].num_classes, members[0].training
        # What no member says of itself does not hold for all of them.
        self.draws, self.votes = min(member.draws for member in members), min(member.votes for member in members)

    @property
    def _voters(self) -> list[Classifier]:
        return [member for member in self.members if isinstance(member, Classifier)]

    def forward(self, images: Tensor) -> Tensor:
        """Log of the mean probabilities, shape ``(N, K)``."""
        return _mean([member(images) for member in self._voters])

    def embed(self, images: Tensor) -> Tensor:
        """All members' embeddings, one behind the other."""
        return torch.cat([member.embed(images) for member in self._voters], dim=1)

    def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Log of the mean probabilities, and the most frequent prediction."""
        answers = [member.decide(images) for member in self._voters]
        scores = _mean([scores for scores, _ in answers])
        votes = torch.stack([functional.one_hot(predicted, self.num_classes) for _, predicted in answers]).sum(dim=0)
        leading = votes == votes.amax(dim=1, keepdim=True)
        return scores, scores.masked_fill(~leading, -torch.inf).argmax(dim=1)

    def subset(self, index: Tensor) -> Classifier:
        """The same for some samples of the batch at hand."""
        return Vote([member.subset(index) for member in self._voters])

    def redraw(self, stream: int) -> None:
        """Draw other random numbers in every member."""
        for member in self._voters:
            member.redraw(stream)


def _mean(scores: Sequence[Tensor]) -> Tensor:
    logs = torch.stack([functional.log_softmax(own.double(), dim=1) for own in scores])
    return (logs.logsumexp(dim=0) - math.log(len(scores))).to(scores[0].dtype)
