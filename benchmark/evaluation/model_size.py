"""How large a model is: its parameters, and the multiply-adds of one prediction."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from robbench.core.contracts import Classifier
from robbench.core.errors import explain, warn
from robbench.core.global_rng import seeded
from robbench.core.process_state import settings_kept
from robbench.models._external.classifier import ExternalClassifier


class ModelSize(NamedTuple):
    """How large a model is.

    Attributes:
        parameters: Their number; 0 where they cannot be seen.
        multiply_adds: Of one prediction, in convolutions and matrix products; 0 where they cannot be seen.
    """

    parameters: int = 0
    multiply_adds: int = 0


def model_size(model: Classifier, image_shape: tuple[int, int, int], device: str) -> ModelSize:
    """Count what a model is made of, and what it does for one prediction.

    A copy is asked, so that a random model draws what it would have drawn. What runs elsewhere, as in another runtime,
    or cannot be copied is not seen.

    Args:
        model: In evaluation mode.
        image_shape: Shape of one image, ``(C, H, W)``.
        device: Where the model lies.
    """
    parameters = sum(part.numel() for part in model.parameters())
    together = max((part.batch for part in model.modules() if isinstance(part, ExternalClassifier)), default=0) or 1
    images = torch.full((together, *image_shape), 0.5, device=device)
    try:
        with torch.no_grad(), settings_kept(), seeded(0), _attention_seen(), FlopCounterMode(display=False) as counter:
            copy.deepcopy(model).predict(images)
    except Exception as error:
        # Code of others, copied and counted in a way that it was not made for; its own run is judged elsewhere.
        warn(f"the multiply-adds of {type(model).__name__} are not counted: {explain(error)}")
        return ModelSize(parameters)
    return ModelSize(parameters, counter.get_total_flops() // 2 // together)


@contextmanager
def _attention_seen() -> Iterator[None]:
    """Have attention taken apart into its matrix products, since fused kernels are not all counted."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
