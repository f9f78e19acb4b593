from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from robbench.core.errors import RequestError
from robbench.models._external.loading import as_external, load_external
from robbench.models._external.request import ExternalRequest

SHAPE = (3, 8, 8)
NET = """
import layers
from torch import nn

def make(width=4):
    return nn.Sequential(layers.conv(width), nn.ReLU(), nn.Flatten(), nn.Linear(width * 36, 5))

net = make()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "layers.py").write_text("from torch import nn\n\ndef conv(width):\n    return nn.Conv2d(3, width, 3)\n")
    return tmp_path


def images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def test_a_factory_is_run_under_a_fixed_seed_and_leaves_no_traces(folder: Path) -> None:
    before, state = set(sys.modules), torch.get_rng_state()
    found = load_external(ExternalRequest(source="net.py:make"), SHAPE, 5, folder)
    torch.rand(1)
    again = load_external(ExternalRequest(source="net.py:make"), SHAPE, 5, folder)
    assert found.identity == again.identity
    assert found.label == "net.py:make"
    assert found.facts["parameters"] == 4 * 28 + 145 * 5
    assert torch.equal(found.model(images()), again.model(images()))
    torch.rand(1)
    assert not {"layers", "net"} & set(sys.modules)
    assert not [name for name in set(sys.modules) - before if name.startswith("robbench_external")]
    torch.set_rng_state(state)


def test_a_live_module_is_copied(folder: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(192, 5))
    found = as_external(network, SHAPE, 5, normalization="half")
    assert network.training
    assert network[2].weight.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(found.model(images()), network.eval()((images() - 0.5) / 0.5))


def test_callables_answer_what_they_are_found_to_answer() -> None:
    weights = np.random.default_rng(0).normal(size=(192, 5)).astype(np.float32)

    def scores(batch: np.ndarray) -> np.ndarray:
        return batch.reshape(len(batch), -1) @ weights

    found = as_external(scores, SHAPE, 5)
    assert found.model.answers == "scores"
    labels = as_external(lambda batch: scores(np.asarray(batch)).argmax(1), SHAPE, 5)
    assert labels.model.answers == "labels"
    assert torch.equal(labels.model.predict(images()), found.model.predict(images()))
    with pytest.raises(RequestError, match="answers scores, not gradients"):
        as_external(scores, SHAPE, 5, answers="gradients")
