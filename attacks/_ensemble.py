"""Several attacks as one: each on what the ones before it left."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from robbench.attacks._gradients import succeeded
from robbench.core.contracts import Attack, Classifier
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat


def in_turn(
    attacks: Mapping[str, Attack], model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams
) -> Tensor:
    """What attacks make of images, one after the other, each only of those that survived the ones before.

    Survival is by the hard decision on the images that an attack returns, which costs a forward pass per attack.

    Args:
        attacks: Attacks in their order by names of their own; each draws from streams that its name sets apart.
        model: The model, in evaluation mode.
        images: Float in [0, 1], shape ``(N, C, H, W)``.
        labels: Classes to leave, or targets where ``threat.targeted``, int64, shape ``(N,)``.
        threat: What is allowed.
        rng: One stream per sample.

    Returns:
        Images that fool the model where an attack found them, otherwise those of the last attack.
    """
    results, alive = images.clone(), torch.arange(len(images), device=images.device)
    for name, attack in attacks.items():
        if len(alive) == 0:
            break
        view, wanted = model.subset(alive), labels[alive]
        attacked = attack.perturb(view, images[alive], wanted, threat, rng[alive].fork(name))
        with torch.no_grad():
            decisions = view.predict(attacked)
        results[alive] = attacked
        alive = alive[~succeeded(decisions, wanted, threat.targeted)]
    return results


def passes_in_turn(attacks: Mapping[str, Attack], num_classes: int) -> tuple[int, int]:
    """Forward and backward passes of attacks in turn on a sample that survives them all."""
    costs = [attack.passes(num_classes) for attack in attacks.values()]
    return sum(forwards + 1 for forwards, _ in costs), sum(backwards for _, backwards in costs)
