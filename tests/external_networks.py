"""A small network in the formats in which models of others come."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robbench.core.errors import RequestError
from robbench.models._external.loading import External, load_external
from robbench.models._external.request import ExternalRequest

SOURCE = """
import layers
from torch import nn

def make(width=4):
    first = layers.conv(width), nn.BatchNorm2d(width), nn.ReLU(), nn.AvgPool2d(3)
    return nn.Sequential(*first, nn.Flatten(), nn.Dropout(), nn.Linear(width * 4, 5))

net = make()
"""
LAYERS = "from torch import nn\n\ndef conv(width):\n    return nn.Conv2d(3, width, 3, stride=2)\n"
SHAPE = (3, 16, 16)
PROGRAMS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)
"""Whether torch writes programs in the format that is read."""


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


def load(folder: Path, **request: object) -> External:
    return load_external(ExternalRequest.model_validate(request), SHAPE, 5, folder)


def refused(folder: Path, **request: object) -> str:
    with pytest.raises(RequestError) as caught:
        load(folder, **request)
    text = str(caught.value)
    assert "\n" not in text
    return text


def images(count: int = 5) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def network(width: int = 4) -> nn.Sequential:
    """What ``net.py:make`` makes, with batch statistics of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        conv = nn.Conv2d(3, width, 3, stride=2)
        made = nn.Sequential(
            conv, nn.BatchNorm2d(width), nn.ReLU(), nn.AvgPool2d(3), nn.Flatten(), nn.Dropout(), nn.Linear(width * 4, 5)
        )
        made[1].load_state_dict({"running_mean": torch.rand(width) - 0.5, "running_var": 2 * torch.rand(width)}, False)
    return made.eval()
