"""What bounds cannot pass is refused by its name, never skipped."""

from __future__ import annotations

import pytest
import torch
from certified import Plain, radii
from torch import Tensor, nn

from robbench.core.certificate import NoCertificate
from robbench.core.threat_model import Threat


class Renamed(nn.Module):
    """Does what no trace can see."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) if float(images.sum()) > 0 else -images.flatten(1)


class Batched(nn.Module):
    """Scores that depend on the other images of a batch."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) - images.flatten(1).mean(dim=0)


class Sneaky(nn.ReLU):
    """A known layer in name alone."""

    def forward(self, images: Tensor) -> Tensor:
        return -images


def _hooked() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda module, given, found: -found)
    return layer


REFUSED = {
    "1.*Sigmoid": nn.Sequential(nn.Flatten(), nn.Sigmoid()),
    "1.*GELU": nn.Sequential(nn.Flatten(), nn.GELU()),
    "Softmax": nn.Sequential(nn.Flatten(), nn.Softmax(dim=1)),
    "Sneaky|neg": nn.Sequential(nn.Flatten(), Sneaky()),
    "hooks": nn.Sequential(nn.Flatten(), _hooked()),
    "no statistics": nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten()),
    "reflect": nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), nn.Flatten()),
    "ceil|partial": nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(1, 4)),
    "cannot be traced": Renamed(),
    "mixes images": Batched(),
    "no layer": nn.Identity(),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_bounded_is_refused_by_its_name(reason: str) -> None:
    with pytest.raises(NoCertificate, match=reason) as caught:
        radii(Plain(REFUSED[reason], 4), torch.rand(3, 1, 2, 2), Threat("linf", 0.1))
    assert "\n" not in str(caught.value)


def test_a_model_that_is_not_what_its_layers_say_is_refused() -> None:
    class Switched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.times = nn.Linear(4, 4), 0

        def forward(self, images: Tensor) -> Tensor:
            self.times += 1
            scores: Tensor = self.layer(images.flatten(1)) * (1 + self.times)
            return scores

    with pytest.raises(NoCertificate, match="off what its layers make"):
        radii(Plain(Switched(), 4), torch.rand(3, 1, 2, 2), Threat("linf", 0.1))


def test_predictions_that_are_no_largest_score_are_refused() -> None:
    class Voting(Plain):
        def predict(self, images: Tensor) -> Tensor:
            lowest: Tensor = self(images).argmin(dim=1)
            return lowest

    with pytest.raises(NoCertificate, match="Voting is not the class with the largest score"):
        radii(Voting(nn.Flatten(), 4), torch.rand(3, 1, 2, 2), Threat("linf", 0.1))
