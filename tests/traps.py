"""Models that look more robust than they are, each by another trick, around one that can be fooled."""

from __future__ import annotations

import torch
from subjects import Exact
from torch import Tensor

from robbench.core.contracts import Classifier


class Wrapped(Classifier):
    def __init__(self, inner: Exact) -> None:
        super().__init__()
        self.inner, self.num_classes = inner, inner.num_classes
        self.eval()

    def embed(self, images: Tensor) -> Tensor:
        return self.inner.embed(images)


class Quantised(Wrapped):
    """Rounds images to 16 levels, which has gradient zero."""

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.inner((images * 15).round() / 15)
        return result


class OnlyOnLevels(Wrapped):
    """Rounds images to 8 bits; its gradient is honest where that changes nothing, and zero elsewhere."""

    def forward(self, images: Tensor) -> Tensor:
        levels = images * 255
        rounded = torch.where((levels - levels.round()).abs() < 1e-3, images, (levels.round() / 255).detach())
        result: Tensor = self.inner(rounded)
        return result


class Saturated(Wrapped):
    """Gives probabilities that are 0 and 1 to the last bit."""

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = (2000 * self.inner(images)).softmax(dim=1)
        return result


class Noisy(Wrapped):
    """Adds noise to its scores, other noise at every call, without touching the global generator."""

    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        generator = torch.Generator().manual_seed(self.calls)
        scores = self.inner(images)
        result: Tensor = scores + 0.3 * torch.randn(scores.shape, generator=generator, dtype=scores.dtype)
        return result


class Misleading(Wrapped):
    """Stairs that lead up where their slope leads down: the gradient points the wrong way everywhere."""

    def forward(self, images: Tensor) -> Tensor:
        stairs = (images.detach() * 64).round() / 64
        result: Tensor = self.inner(stairs) - 0.05 * (self.inner(images) - self.inner(images.detach()))
        return result


class Winners(Wrapped):
    """A layer of which only the largest features pass, k-winners-take-all (Xiao et al., 2020), and a fitted readout.

    The set of winners changes at every small step, so that the gradient tells of the nearest surroundings alone.
    """

    def __init__(self, inner: Exact, features: int = 1200, kept: int = 12) -> None:
        super().__init__(inner)
        generator = torch.Generator().manual_seed(5)
        size = inner.weight.shape[1]
        mixing = torch.randn(features, size, generator=generator, dtype=torch.float64)
        self.mixing = torch.nn.Parameter(mixing, requires_grad=False)
        self.kept = kept
        images = torch.rand(4000, size, generator=generator, dtype=torch.float64)
        seen = self._winners(images)
        penalty = 1e-2 * torch.eye(features, dtype=torch.float64)
        wanted = torch.nn.functional.one_hot(inner(images).argmax(dim=1), self.num_classes).double()
        readout = torch.linalg.solve(seen.T @ seen + penalty, seen.T @ wanted)
        self.readout = torch.nn.Parameter(readout, requires_grad=False)

    def _winners(self, images: Tensor) -> Tensor:
        features = (images - 0.5) @ self.mixing.T
        least = features.topk(self.kept, dim=1).values[:, -1:]
        return torch.where(features >= least, features, 0)

    def forward(self, images: Tensor) -> Tensor:
        return self._winners(images.double().flatten(1)) @ self.readout


class Blocked(Wrapped):
    """Passes no gradient at all."""

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.inner(images.detach()).detach()
        return result


class Confident(Wrapped):
    """Scores in float32 that are larger than they need be: no boundary moves, and cross-entropy saturates."""

    def __init__(self, inner: Exact, scale: float) -> None:
        super().__init__(inner)
        self.scale = scale

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = (self.scale * self.inner(images)).float()
        return result


class Half(Wrapped):
    """Half precision inside, which loses small gradients."""

    def forward(self, images: Tensor) -> Tensor:
        probabilities = (20 * self.inner(images)).half().softmax(dim=1)
        result: Tensor = probabilities.float()
        return result


class Undefined(Wrapped):
    """No number for images of more than 8 bits, as an attack makes them."""

    def forward(self, images: Tensor) -> Tensor:
        odd = ((images * 255).round() / 255 != images).flatten(1).any(dim=1)
        result: Tensor = torch.where(odd[:, None], torch.nan, self.inner(images).float())
        return result


class Steep(Wrapped):
    """A root at zero: the scores are those of the inner model, the gradient is no number."""

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.inner(images) + (0 * images.flatten(1).sum(dim=1, keepdim=True)).sqrt()
        return result


class Tied(Wrapped):
    """All scores but the highest are the same, so that the difference of logits ratio is the same everywhere."""

    def forward(self, images: Tensor) -> Tensor:
        best, second = self.inner(images).topk(2, dim=1).values.unbind(dim=1)
        place = torch.nn.functional.one_hot(self.inner(images).argmax(dim=1), self.num_classes)
        result: Tensor = (best - second)[:, None] * place
        return result
