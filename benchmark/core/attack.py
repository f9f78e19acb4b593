"""What attacks do: the contract that built-in attacks and plugins fulfil."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from robbench.core.best_points import BestPoints, raise_lead, unknown_lead
from robbench.core.component import Component
from robbench.core.contracts import Classifier
from robbench.core.rejection import misled
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat

Loss: TypeAlias = Literal["ce", "dlr", "margin"]
"""A loss of the scores that an attack raises: cross-entropy; the difference of logits ratio, which is the margin over
the gap between the first and the third score; the margin, the best other score minus that of the label."""

Needs = Literal["gradients", "scores", "decisions", "nothing"]
"""What an attack asks of a model, the most first."""


@dataclass(frozen=True)
class Attack(Component):
    """A way to change images. ``perturb`` must keep to the contract that the referee checks."""

    targetable: ClassVar[bool] = False
    """Whether ``threat.targeted`` is understood."""
    bounded: ClassVar[bool] = True
    """Whether the attack takes an eps; otherwise it looks for a small change by itself."""
    white_box: ClassVar[bool] = False
    """Whether the attack uses gradients."""
    black_box: ClassVar[bool] = False
    """Whether the attack asks the model for scores or predictions and learns from them without gradients."""
    decision_based: ClassVar[bool] = False
    """Whether the attack learns from predictions alone."""
    losses: ClassVar[tuple[Loss, ...]] = ()
    """The losses that the attack follows in any part. Attacks on gradients that name none count as on cross-entropy;
    others, such as a loss on features, have no name."""
    adversarial: ClassVar[bool] = False
    """For attacks without a norm: whether the change is chosen by what the model answers, so that it is no natural
    perturbation."""
    needs_peers: ClassVar[bool] = False
    """Whether the attack works through other models of the grid; ``bind`` hands them to it."""
    global_state: ClassVar[bool] = False
    """Whether the attack draws from global random state, which it then sets, saves and restores."""

    @abc.abstractmethod
    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """Changed images.

        Args:
            model: The model, in evaluation mode, its weights frozen.
            images: Float in [0, 1], shape ``(N, C, H, W)``; not to be written to.
            labels: int64, shape ``(N,)``: the true classes, or the targets where ``threat.targeted``.
            threat: What is allowed.
            rng: One stream of random numbers per sample.

        Returns:
            Images as a plain tensor of the same shape and dtype, inside [0, 1] and inside the ball of ``threat`` around
            ``images``.
        """

    def advance(
        self,
        model: Classifier,
        images: Tensor,
        labels: Tensor,
        threat: Threat,
        rng: Streams,
        start: BestPoints | None = None,
    ) -> BestPoints:
        """Attack from where another attack ended, and say where this one did.

        An attack that only has ``perturb`` begins anew, and what it returns is looked at, for a forward pass.

        Args:
            model: As in ``perturb``, like the next four.
            images: The clean images, around which the ball lies.
            labels: True classes or targets.
            threat: What is allowed.
            rng: Streams of its own.
            start: Where to start, inside the ball; None to begin anew.
        """
        lead = unknown_lead(images, model.num_classes) if start is None else start.lead
        changed = self.perturb(model, images, labels, threat, rng)
        with torch.no_grad():
            scores, predicted = model.decide(changed)
        fooled = predicted == labels if threat.targeted else misled(predicted, labels)
        ahead = (scores - scores.gather(1, labels[:, None])).scatter(1, labels[:, None], -torch.inf).amax(dim=1)
        return BestPoints(changed, -ahead if threat.targeted else ahead, fooled, raise_lead(lead, scores, labels))

    @property
    def gradient_steps(self) -> int:
        """Gradient steps in a row from one start: none without gradients, one where there is no number of steps."""
        steps = getattr(self, "steps", 1)
        return (steps if isinstance(steps, int) else 1) if self.white_box else 0

    @property
    def averaged_draws(self) -> int:
        """Draws of a random model that gradients are averaged over."""
        return 1

    @property
    def needs(self) -> Needs:
        """The most that the attack asks of the model."""
        if self.white_box:
            return "gradients"
        if self.black_box and not self.decision_based:
            return "scores"
        return "decisions" if self.black_box or self.needs_peers or self.passes(2)[0] else "nothing"

    def variants(self, which: str) -> Sequence[Attack]:
        """What ``@which`` stands for where the attack has no eps: several of its kind, or none if nothing is meant.

        Args:
            which: ``each`` or another word of the attack's own.
        """
        return ()

    def bind(self, peers: Sequence[Classifier]) -> Attack:
        """The attack that works through other models.

        Args:
            peers: In evaluation mode, their weights frozen.
        """
        return self

    def refusal(self, threat: Threat, num_classes: int) -> str | None:
        """Why this attack cannot be run so, or None."""
        return None

    def passes(self, num_classes: int) -> tuple[int, int]:
        """Forward and backward passes that one sample costs at the most."""
        return 0, 0

    def chain_passes(self, num_classes: int) -> tuple[int, int]:
        """Those that ``advance`` costs: a look at what ``perturb`` returned more."""
        forwards, backwards = self.passes(num_classes)
        return forwards + 1, backwards
