"""Keeping the average of the weights instead of the last ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from robbench.core.contracts import Classifier, Defense
from robbench.core.registry import register_defense
from robbench.core.training_step import Batch

_COUNT, _AVERAGE = "count", "average."


@register_defense("averaging", brief="Exponential or stochastic weight averaging")
@dataclass(frozen=True)
class Averaging(Defense):
    """Exponential or stochastic weight averaging; buffers are averaged as weights are.

    ``ema``: ``a = d * a + (1 - d) * w`` with ``d = min(decay, t / (t + 9))`` after step t, from 0, so that early
    weights fade (Rebuffi et al., "Fixing data augmentation to improve adversarial robustness", 2021). ``swa``: the mean
    of the weights at the ends of epochs (Izmailov et al., "Averaging weights leads to wider optima", 2018).

    Attributes:
        kind: ``ema`` or ``swa``.
        decay: Of ``ema``.
        start: Share of training after which averaging begins.
    """

    kind: Literal["ema", "swa"] = "ema"
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.995
    start: Annotated[float, Field(ge=0, lt=1)] = 0.5

    def after_step(self, batch: Batch) -> None:
        """Take the weights into the average."""
        if batch.progress < self.start or (self.kind == "swa" and not batch.ends_epoch):
            return
        state = batch.state
        count = int(state.get(_COUNT, torch.zeros(())))
        share = 1 / (count + 1) if self.kind == "swa" else 1 - min(self.decay, count / (9 + count))
        for name, value in batch.model.state_dict().items():
            if count and value.is_floating_point():
                # Unlike a sum of two products, it leaves what does not change to the last bit.
                state[_AVERAGE + name].lerp_(value, share)
            else:
                state[_AVERAGE + name] = value.detach().clone()
        state[_COUNT] = torch.tensor(count + 1)

    def final_weights(self, model: Classifier, state: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        """The average, once it has begun."""
        found = {name.removeprefix(_AVERAGE): value for name, value in state.items() if name.startswith(_AVERAGE)}
        return found or None
