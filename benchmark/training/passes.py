"""What training costs: images that go through the network, whoever sends them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass
class TrainingPasses:
    """Images that went through a network: forward, and backward as well."""

    forwards: int = 0
    backwards: int = 0

    def add(self, forwards: int, backwards: int) -> None:
        """Count images that went through it unseen."""
        self.forwards += forwards
        self.backwards += backwards


@contextmanager
def counted(network: nn.Module) -> Iterator[TrainingPasses]:
    """Count the images that go through a module, which takes a batch and returns a tensor with a row per image."""
    passes = TrainingPasses()

    def count(module: nn.Module, images: tuple[Tensor, ...], features: Tensor) -> None:
        if not isinstance(features, Tensor):
            return  # It is traced, without images.
        size = len(features)
        passes.forwards += size
        if features.requires_grad:
            features.register_hook(lambda gradient: count_back(size))

    def count_back(size: int) -> None:
        passes.backwards += size

    handle = network.register_forward_hook(count)
    try:
        yield passes
    finally:
        handle.remove()
