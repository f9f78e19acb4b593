"""The random state that a process shares: kept aside, compared, put back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class GlobalState:
    """Python's, NumPy's and torch's global random state at one moment; equal where all of them are."""

    python: Any
    numpy: tuple[Any, ...]
    cpu: bytes
    cuda: tuple[bytes, ...]

    @classmethod
    def now(cls) -> GlobalState:
        """The state as it is."""
        state: Any = np.random.get_state()
        kind, keys, *rest = state
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return cls(
            random.getstate(),
            (kind, tuple(keys.tolist()), *rest),
            torch.get_rng_state().numpy().tobytes(),
            tuple(state.numpy().tobytes() for state in cuda),
        )

    def restore(self) -> None:
        """Put the state back."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(_tensor(self.cpu))
        for device, state in enumerate(self.cuda):
            torch.cuda.set_rng_state(_tensor(state), device)


@contextmanager
def seeded(value: int) -> Iterator[None]:
    """Set the whole state from a number, and put it back afterwards."""
    before = GlobalState.now()
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value % 2**63)
    try:
        yield
    finally:
        before.restore()


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
