"""Several attacks as one: each on what the ones before it left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robbench.attacks._survivors import Survivors
from robbench.core.attack import Attack
from robbench.core.best_points import BestPoints, unknown_lead
from robbench.core.contracts import Classifier
from robbench.core.sample_rng import Draw, Streams
from robbench.core.threat_model import Threat


def in_turn(
    attacks: Mapping[Draw, Attack], model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams
) -> Tensor:
    """Run attacks one after the other, each only on the samples that survived the ones before.

    Survival is by the hard prediction on the images that an attack returns, at a forward pass per attack.

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
    found, left, followed = images.clone(), Survivors.of(model, images, labels, threat, rng), False
    for name, attack in attacks.items():
        if not left:
            break
        streams = left.rng.fork(*(name if isinstance(name, tuple) else (name,)))
        attacked = attack.perturb(left.model, left.images, left.labels, threat, streams)
        found[left.index] = attacked
        fooled = left.fools(attacked)
        if followed and attack.black_box and not attack.white_box:
            left[fooled].model.fooled_by_search()
        followed |= attack.white_box
        left = left[~fooled]
    return found


def chain(
    parts: Mapping[str, Attack], model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams
) -> Tensor:
    """Run attacks one after the other, each from where the one before ended, on the samples that survived so far.

    Args:
        parts: Attacks that keep to a ball, in their order by names of their own; each draws from streams that its name
            sets apart.
        model: The model, in evaluation mode.
        images: Float in [0, 1], shape ``(N, C, H, W)``.
        labels: Classes to leave, or targets where ``threat.targeted``, int64, shape ``(N,)``.
        threat: What is allowed.
        rng: One stream per sample.

    Returns:
        Images that fool the model where an attack found them, otherwise those of the last attack.

    Raises:
        ValueError: If a part looks for the smallest change, however large that is.
    """
    loose = [name for name, part in parts.items() if not part.bounded and threat.eps is not None]
    if loose:
        raise ValueError(f"{', '.join(loose)}: looks for the smallest change, which may lie outside the ball")
    found, left, followed = images.clone(), Survivors.of(model, images, labels, threat, rng), False
    points: BestPoints | None = None
    for name, part in parts.items():
        if not left:
            break
        streams = left.rng.fork(name)
        points = part.advance(left.model, left.images, left.labels, threat, streams, points)
        found[left.index] = points.images
        fooled = points.fooled.clone()
        # Samples that survive pay nothing for being sure of those that do not.
        asked = fooled.nonzero()[:, 0]
        fooled[asked] = left[asked].fools(points.images[asked])
        if followed and part.black_box and not part.white_box:
            left[fooled].model.fooled_by_search()
        followed |= part.white_box
        left, points = left[~fooled], points[~fooled]
    return found


def passes_of_chain(parts: Mapping[str, Attack], num_classes: int) -> tuple[int, int]:
    """Forward and backward passes of a chain, at the most, on a sample that survives it."""
    costs = [part.chain_passes(num_classes) for part in parts.values()]
    return sum(forwards for forwards, _ in costs), sum(backwards for _, backwards in costs)


def passes_in_turn(attacks: Mapping[Draw, Attack], num_classes: int) -> tuple[int, int]:
    """Forward and backward passes of attacks in turn on a sample that survives them all."""
    costs = [attack.passes(num_classes) for attack in attacks.values()]
    return sum(forwards + 1 for forwards, _ in costs), sum(backwards for _, backwards in costs)


@dataclass(frozen=True)
class SubstituteAttack(Attack):
    """An attack on a substitute for the model.

    Attributes:
        attack: The attack.
        substitute: Another model, or the name of other scores of the one under attack.
    """

    attack: Attack
    substitute: Classifier | str

    def __post_init__(self) -> None:
        """Nothing to check: nobody asks for it by name."""

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """The images as the attack changes them."""
        other = model.surrogate(self.substitute) if isinstance(self.substitute, str) else self.substitute
        return self.attack.perturb(other, images, labels, threat, rng)

    def advance(
        self,
        model: Classifier,
        images: Tensor,
        labels: Tensor,
        threat: Threat,
        rng: Streams,
        start: BestPoints | None = None,
    ) -> BestPoints:
        """The points that the attack finds by other scores, which tell nothing about the lead of the model's own."""
        if not isinstance(self.substitute, str):
            return super().advance(model, images, labels, threat, rng, start)
        points = self.attack.advance(model.surrogate(self.substitute), images, labels, threat, rng, start)
        lead = unknown_lead(images, model.num_classes) if start is None else start.lead
        return replace(points, lead=lead)

    def passes(self, num_classes: int) -> tuple[int, int]:
        """Those of the attack."""
        return self.attack.passes(num_classes)

    def chain_passes(self, num_classes: int) -> tuple[int, int]:
        """Those of the attack, and a look at the model where it is another one."""
        return (
            self.attack.chain_passes(num_classes)
            if isinstance(self.substitute, str)
            else super().chain_passes(num_classes)
        )


@dataclass(frozen=True)
class Anew(Attack):
    """An attack that starts from its own start although another one ended before it.

    Attributes:
        attack: The attack.
    """

    attack: Attack

    def __post_init__(self) -> None:
        """Nothing to check: nobody asks for it by name."""

    @property
    def white_box(self) -> bool:  # type: ignore[override]
        """As the attack."""
        return self.attack.white_box

    @property
    def black_box(self) -> bool:  # type: ignore[override]
        """As the attack."""
        return self.attack.black_box

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """The images as the attack changes them."""
        return self.attack.perturb(model, images, labels, threat, rng)

    def advance(
        self,
        model: Classifier,
        images: Tensor,
        labels: Tensor,
        threat: Threat,
        rng: Streams,
        start: BestPoints | None = None,
    ) -> BestPoints:
        """The best points that the attack finds, and the lead of the classes from all attacks so far."""
        points = self.attack.advance(model, images, labels, threat, rng)
        return points if start is None else replace(points, lead=torch.fmax(points.lead, start.lead))

    def passes(self, num_classes: int) -> tuple[int, int]:
        """Those of the attack."""
        return self.attack.passes(num_classes)

    def chain_passes(self, num_classes: int) -> tuple[int, int]:
        """Those of the attack."""
        return self.attack.chain_passes(num_classes)

    @property
    def bounded(self) -> bool:  # type: ignore[override]
        """As the attack."""
        return self.attack.bounded
