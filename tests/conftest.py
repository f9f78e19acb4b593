from __future__ import annotations

import pytest
import torch
from hypothesis import settings

pytest.register_assert_rewrite("browsing")

# Small tensors lose more to the hand-over between threads than they gain.
torch.set_num_threads(1)

# How long an example takes says more of how busy the machine is than of what is tested.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs on as many workers as a machine with one core has."""
    monkeypatch.setattr("robbench.execution.local.cores", lambda: 1)
