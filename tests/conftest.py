from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from maps import map_by_axes

pytest.register_assert_rewrite("browsing")

# How long an example takes says more of how busy the machine is than of what is tested.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """One thread, whatever a test before left: small tensors lose more to the hand-over than they gain."""
    torch.set_num_threads(1)


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs on as many workers as a machine with one core has."""
    monkeypatch.setattr("robbench.execution.local.cores", lambda: 1)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boards without figures, where a test looks at none: drawing them takes most of a small run."""
    monkeypatch.setattr("robbench.leaderboards.plots.draw", lambda *_: ())


@pytest.fixture
def no_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps of embeddings by their first two coordinates."""
    map_by_axes(monkeypatch)
