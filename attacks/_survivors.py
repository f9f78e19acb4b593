"""Bookkeeping of attacks: the samples that an attack is still at work on, and the images that it will return."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypeVarTuple, cast

import torch
from torch import Tensor

from robbench.attacks._gradients import score_gradient
from robbench.attacks._losses import AnyLoss, Gain, gain
from robbench.core.best_points import raise_lead
from robbench.core.contracts import Classifier
from robbench.core.rejection import misled
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat

Ts = TypeVarTuple("Ts")


def staying(mask: Tensor, *records: *Ts) -> tuple[*Ts]:
    """Those samples of some records for which a mask holds; the records themselves where it holds everywhere.

    A mask that lies on an accelerator is waited for once, however many records there are.

    Args:
        mask: bool, shape ``(M,)``.
        *records: Tensors, streams or ``Rows`` of ``M`` samples; None stays None.
    """
    at = mask.nonzero()[:, 0]
    if len(at) == len(mask):
        return records
    return cast("tuple[*Ts]", tuple(_rows(record, at) for record in cast("tuple[Any, ...]", records)))


def _rows(record: Any, at: Tensor) -> Any:
    # Whole rows at once, which indexing copies value by value.
    return record.index_select(0, at) if isinstance(record, Tensor) else None if record is None else record[at]


@dataclass(frozen=True)
class Rows:
    """A record with one row per sample: tensors, streams, views of a model and other records, next to shared values."""

    def __getitem__(self, index: Tensor) -> Self:
        """Some of the samples, by a mask or indices; the record itself where a mask holds everywhere."""
        if index.dtype == torch.bool:
            (found,) = staying(index, self)
            return found
        rows: dict[str, object] = {}
        for field in fields(self):
            row = getattr(self, field.name)
            if isinstance(row, Classifier):
                rows[field.name] = row.subset(index)
            elif isinstance(row, Tensor | Rows | Streams):
                rows[field.name] = _rows(row, index)
        return replace(self, **rows)


@dataclass(frozen=True)
class Lead:
    """By how much each class came ahead of the label at any point that was looked at; ``note`` writes to it.

    Attributes:
        values: For the whole batch, shape ``(N, K)``.
    """

    values: Tensor

    def note(self, index: Tensor, scores: Tensor, labels: Tensor) -> None:
        """Take in the scores ``(M, K)`` at a point of some samples."""
        self.values.index_copy_(0, index, raise_lead(self.values.index_select(0, index), scores, labels))


@dataclass(frozen=True)
class Survivors(Rows):
    """The samples of a batch that an attack is still at work on.

    Attributes:
        model: The model's view of them: what they are passed through is charged to them alone.
        images: The images that were given, shape ``(M, C, H, W)``.
        labels: The true classes, or the targets where ``targeted``, int64, shape ``(M,)``.
        rng: Their streams.
        index: Their places in the batch, int64, shape ``(M,)``.
        targeted: Whether labels are targets.
        lead: Takes in the scores at every point, None if nobody wants to know.
    """

    model: Classifier
    images: Tensor
    labels: Tensor
    rng: Streams
    index: Tensor
    targeted: bool
    lead: Lead | None = None

    @classmethod
    def of(
        cls,
        model: Classifier,
        images: Tensor,
        labels: Tensor,
        threat: Threat,
        rng: Streams,
        lead: Tensor | None = None,
    ) -> Survivors:
        """The whole batch, as ``perturb`` is handed it; ``lead`` is written to."""
        index = torch.arange(len(images), device=images.device)
        return cls(model, images, labels, rng, index, threat.targeted, None if lead is None else Lead(lead))

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.index)

    def alone(self) -> Survivors:
        """The same samples as a batch of their own."""
        return replace(self, index=torch.arange(len(self), device=self.index.device), lead=None)

    def gain(self, loss: AnyLoss) -> Gain:
        """The loss of the attack, as a function of the scores."""
        return gain(loss, self.labels, self.targeted)

    def fooled(self, decisions: Tensor) -> Tensor:
        """Which hard predictions are as the attacker wants them, bool, shape ``(M,)``; from ``(M,)`` or ``(B, M)``."""
        return decisions == self.labels if self.targeted else misled(decisions, self.labels)

    def fools(self, x: Tensor) -> Tensor:
        """Which images fool the model, bool, shape ``(M,)``; one forward pass, none where there is no sample."""
        if not len(self):
            return torch.zeros_like(self.labels, dtype=torch.bool)
        with torch.no_grad():
            decisions = self.model.predict(x) if self.lead is None else self.decide(x)[1]
        return self.fooled(decisions)

    def decide(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores ``(M, K)`` and hard predictions ``(M,)`` at ``x``, without gradients; one forward pass."""
        with torch.no_grad():
            scores, decisions = self.model.decide(x)
        if self.lead is not None:
            self.lead.note(self.index, scores, self.labels)
        return scores, decisions

    def look(self, x: Tensor, objective: Gain) -> tuple[Tensor, Tensor]:
        """An objective of the scores at ``x``, and which images fool the model, both ``(M,)``; one forward pass."""
        scores, decisions = self.decide(x)
        return objective(scores), self.fooled(decisions)

    def gradient(self, x: Tensor, objective: Gain) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient at ``x`` of an objective of the scores, of the shape of ``x``, and what ``look`` returns.

        One forward and one backward pass.
        """
        g, value, decisions = score_gradient(self.model, x, self._noted(objective))
        return g, value, self.fooled(decisions)

    def _noted(self, objective: Gain) -> Gain:
        """The same objective, which takes note of the scores that it is given where somebody wants to know."""
        lead = self.lead
        if lead is None:
            return objective

        def values(scores: Tensor) -> Tensor:
            lead.note(self.index, scores.detach(), self.labels)
            return objective(scores)

        return values


@dataclass(frozen=True)
class Kept:
    """The images to return: those that fool the model before others, then by value; ``offer`` writes to the tensors.

    Attributes:
        images: Shape ``(N, C, H, W)``.
        value: What is to be high, shape ``(N,)``; -inf where nothing was offered with a value.
        fooled: Whether the images fool the model, bool, shape ``(N,)``.
    """

    images: Tensor
    value: Tensor
    fooled: Tensor

    @classmethod
    def of(cls, images: Tensor, dtype: torch.dtype | None = None) -> Kept:
        """The images as they were given, for want of better ones; values are of their dtype unless another is given."""
        value = torch.full((len(images),), -torch.inf, dtype=dtype or images.dtype, device=images.device)
        return cls(images.clone(), value, torch.zeros_like(value, dtype=torch.bool))

    def offer(self, left: Survivors, images: Tensor, fooled: Tensor, value: Tensor | None = None) -> Tensor:
        """Keep images that are better than what there is.

        Args:
            left: The samples in question.
            images: Shape ``(M, C, H, W)``.
            fooled: Whether they fool the model, bool, shape ``(M,)``.
            value: Shape ``(M,)``; without, later images are better than earlier ones.

        Returns:
            Which were kept, bool, shape ``(M,)``.
        """
        before = self.fooled.index_select(0, left.index)
        better = fooled >= before
        if value is not None:
            better &= (value > self.value.index_select(0, left.index)).logical_or_(fooled > before)
        self._write(left, images, fooled, better, value)
        return better

    def offer_fooling(self, left: Survivors, images: Tensor, fooled: Tensor) -> None:
        """Keep the images that fool the model, and no others, for as long as better ones are to come."""
        self._write(left, images, fooled, fooled, None)

    def _write(self, left: Survivors, images: Tensor, fooled: Tensor, better: Tensor, value: Tensor | None) -> None:
        at = better.nonzero()[:, 0]
        if not len(at):
            return
        rows = left.index.index_select(0, at)
        self.images.index_copy_(0, rows, images.index_select(0, at))
        self.fooled.index_copy_(0, rows, fooled.index_select(0, at))
        if value is not None:
            self.value.index_copy_(0, rows, value.index_select(0, at).to(self.value.dtype))
