"""The networks that attacks are timed on, with images that they get right; all but one are made on the spot."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from proved_networks import make
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from robbench.core.contracts import Classifier
from robbench.core.threat_model import Norm
from robbench.models.compact_cnn import CompactCNN

LARGE, ROBUST = "natural ResNet-20", "robust CNN"
"""A pass through the large network takes some forty times as long as one through the others."""
TRUTHS = Path(os.environ.get("ROBBENCH_TRUTHS") or Path(__file__).resolve().parents[3] / "shared" / "truths")


class Network(Classifier):
    """A body and a linear layer."""

    def __init__(self, body: nn.Module, head: nn.Module, num_classes: int = 10) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.body, self.head = body, head

    def embed(self, images: Tensor) -> Tensor:
        features: Tensor = self.body(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(images))
        return scores


@dataclass(frozen=True)
class Subject:
    """A network in evaluation mode with images that it gets right, and the radii that it is attacked at."""

    name: str
    about: str
    model: Network
    images: Tensor
    labels: Tensor
    eps: Mapping[Norm, float]

    @classmethod
    def of(cls, name: str, about: str, model: Network, images: Tensor, labels: Tensor, **eps: float) -> Subject:
        model.eval().requires_grad_(False)
        with torch.no_grad():
            right = model.predict(images) == labels
        radii: Mapping[Norm, float] = {"linf": eps["linf"], **({"l2": eps["l2"]} if "l2" in eps else {})}
        return cls(name, about, model, images[right].contiguous(), labels[right], radii)


def natural_resnet20(cache: Path | None = None, steps: int = 60) -> Subject:
    """ResNet-20 (He et al., 2016) trained on clean images whose classes differ in faint textures.

    The images are made up: smooth colors, noise, and a texture of the class that no eye sees. A network that learns
    such textures is fooled at once, as natural networks are on CIFAR-10.
    """
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(10, 3, 4, 4, generator=generator).sign().repeat(1, 1, 8, 8)

    def drawn(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count) % 10
        colors = functional.interpolate(torch.rand(count, 3, 4, 4, generator=generator), 32, mode="bilinear")
        noise = torch.randn(count, 3, 32, 32, generator=generator)
        return (0.2 + 0.6 * colors + 0.02 * noise + 6 / 255 * patterns[labels]).clamp(0, 1), labels

    torch.manual_seed(0)
    model = Network(_resnet20(), nn.Linear(64, 10))
    given = drawn(64 * steps)
    _weigh(model, cache, f"resnet20-{steps}", lambda: _train(model, *given, steps, batch=64, eps=0.0, rate=0.01))
    about = f"ResNet-20 with batch normalization, 3×32×32, {steps} steps on clean images with faint class textures"
    return Subject.of(LARGE, about, model, *drawn(160), linf=8 / 255, l2=0.5)


def robust_cnn(cache: Path | None = None, steps: int = 300) -> Subject:
    """The compact CNN, adversarially trained (FGSM at 0.1) on scikit-learn's digits at 3×32×32."""
    images, classes = load_digits(return_X_y=True)
    grays = torch.from_numpy(images.reshape(-1, 1, 8, 8) / 16).float()
    large = functional.interpolate(grays, 32, mode="bilinear").expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(classes).long()
    torch.manual_seed(0)
    body = CompactCNN().build((3, 32, 32))
    model = Network(body, nn.Linear(body.out_features, 10))
    order = torch.randperm(1200, generator=torch.Generator().manual_seed(0)).repeat(-(-64 * steps // 1200))
    given = large[order], labels[order]
    _weigh(model, cache, f"robust-cnn-{steps}", lambda: _train(model, *given, steps, batch=64, eps=0.1, rate=0.002))
    about = f"compact CNN, 3×32×32, {steps} steps of FGSM adversarial training at 0.1 on digits"
    return Subject.of(ROBUST, about, model, large[1200:], labels[1200:], linf=0.1, l2=1.0)


def wk17a(cache: Path | None = None) -> Subject:
    """The network of Wong and Kolter (2018) whose robust error is known exactly."""
    path = TRUTHS / "wk17a_mnist.npz"
    net = make(str(path))
    assert isinstance(net, nn.Sequential)
    *body, head = net
    with np.load(path, allow_pickle=False) as arrays:
        images, labels = arrays["images"][:1000], arrays["labels"][:1000]
    about = "two convolutions and two linear layers, 1×28×28, provably trained (Wong and Kolter, 2018)"
    images, labels = torch.from_numpy(images).float() / 255, torch.from_numpy(labels).long()
    return Subject.of("wk17a_mnist", about, Network(nn.Sequential(*body), head), images, labels, linf=0.1)


def fgsm_step(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Images one step of FGSM away."""
    images = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(functional.cross_entropy(model(images), labels), images)
    return (images.detach() + eps * gradient.sign()).clamp(0, 1)


def _weigh(model: Network, cache: Path | None, name: str, train: Callable[[], None]) -> None:
    """Read a network's weights where an earlier run kept them, otherwise train it and keep them."""
    file = None if cache is None else cache / f"{name}.pt"
    if file is not None and file.is_file():
        model.load_state_dict(torch.load(file, weights_only=True))
        return
    train()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), file)


def _train(model: Network, images: Tensor, labels: Tensor, steps: int, batch: int, eps: float, rate: float) -> None:
    optimizer = torch.optim.Adam(model.parameters(), rate)
    model.train()
    for step in range(steps):
        part = slice(step * batch, (step + 1) * batch)
        x, y = images[part], labels[part]
        x = fgsm_step(model, x, y, eps) if eps else x
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()


class _Block(nn.Module):
    def __init__(self, given: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(_convolution(given, out, stride), nn.BatchNorm2d(out), nn.ReLU())
        self.second = nn.Sequential(_convolution(out, out, 1), nn.BatchNorm2d(out))
        self.shortcut: nn.Module = nn.Identity()
        if given != out:
            self.shortcut = nn.Sequential(nn.Conv2d(given, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.second(self.first(x)) + self.shortcut(x))


def _resnet20() -> nn.Sequential:
    layers: list[nn.Module] = [_convolution(3, 16, 1), nn.BatchNorm2d(16), nn.ReLU()]
    for given, out, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2)):
        layers += [_Block(given, out, stride), _Block(out, out, 1), _Block(out, out, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _convolution(given: int, out: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(given, out, 3, stride, padding=1, bias=False)


SUBJECTS: Mapping[str, Callable[[Path | None], Subject]] = {
    LARGE: natural_resnet20,
    ROBUST: robust_cnn,
    **({"wk17a_mnist": wk17a} if (TRUTHS / "wk17a_mnist.npz").is_file() else {}),
}
"""Those that can be had here, by name, with their weights from a folder if they are there."""
