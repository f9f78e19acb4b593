"""A small network for tests."""

from __future__ import annotations

from torch import Tensor, nn

from robbench.core.contracts import Classifier

SHAPE = (4, 3, 5, 5)


class TwoParts(Classifier):
    """A head on a body."""

    body: nn.Sequential
    head: nn.Linear

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.head(self.embed(images))
        return result

    def embed(self, images: Tensor) -> Tensor:
        result: Tensor = self.body(images)
        return result


class Network(TwoParts):
    """A network with everything that an attack could leave changed."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 3
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())
        self.head = nn.Linear(36, 3)
