"""Expectation over the draws of a random model (Athalye et al., "Synthesizing robust adversarial examples", 2018)."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from robbench.core.contracts import Classifier
from robbench.core.sample_rng import Draw, digest64

Answer = tuple[Tensor, Tensor, Tensor]
"""A gradient, or a stand-in for one; values; which images fool the model: what ``Survivors.gradient`` returns."""


def drawing_apart(model: Classifier) -> Classifier:
    """The same model, which shares its weights, whose random numbers can be drawn anew without a trace."""
    shared = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)


def mean_over_draws(model: Classifier, draws: int, names: Draw, question: Callable[[], Answer]) -> Answer:
    """The mean of what a random model answers over draws of its own.

    Args:
        model: Is drawn anew before each question; one that averages by itself is asked accordingly less often.
        draws: How many draws to average over.
        names: What tells these draws from others.
        question: Asks the model.

    Returns:
        Mean gradients; mean values; which images fool the model in more than half of the draws.
    """
    calls = -(-draws // model.draws)
    totals: list[Tensor] = []
    for call in range(calls):
        model.redraw(digest64("expectation", *(names if isinstance(names, tuple) else (names,)), call))
        gradient, value, fooled = question()
        found = [gradient, value, fooled.to(value.dtype)]
        totals = found if not totals else [torch.add(*pair) for pair in zip(totals, found, strict=True)]
    gradient, value, fooled = (total / calls for total in totals)
    return gradient, value, fooled > 0.5
