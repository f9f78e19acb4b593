"""What a certificate proves of a subject's images, checked like what attacks return."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from robbench.core.batches import fitting, in_batches
from robbench.core.certificate import Certified
from robbench.core.contracts import Samples, to_float
from robbench.core.errors import Breach
from robbench.core.sample_rng import Streams
from robbench.core.tensor_check import plain, shown
from robbench.core.threat_model import allowed_size
from robbench.evaluation.attack_run import ATTACK_BATCH
from robbench.evaluation.query_counter import Oracle
from robbench.evaluation.referee import fair_play
from robbench.evaluation.subject import Subject
from robbench.planning.proofs import Proof
from robbench.results.schema import Outcome

RULE = "a certificate gives a radius for each image"


def certified(subject: Subject, proof: Proof, report: Callable[[int, int], None]) -> Outcome:
    """What is proved of the images that the model gets right; the others are not asked about.

    Proofs are asked for the size that the referee lets attacks have, which is a little above eps.

    Args:
        subject: Model and images.
        proof: The certificate and what it is to prove.
        report: Called after every batch with the number of samples done and to do.

    Raises:
        Breach: If a rule is broken.
        NoCertificate: If the method cannot bound the model.
    """
    index, parts = subject.right.nonzero().flatten(), []
    size = fitting(ATTACK_BATCH, subject.samples.image_shape, subject.device)
    for part in in_batches(subject.samples, size, lambda _, batch: _proved(subject, proof, batch), index):
        parts.append(part)
        report(sum(len(done["radius"]) for done in parts), len(index))
    outcome = subject.outcome("certificate")
    arrays = {name: getattr(outcome, name).copy() for name in (parts[0] if parts else ())}
    for name, values in arrays.items():
        values[index.numpy()] = torch.cat([part[name] for part in parts]).numpy()
    return replace(outcome, **arrays)


def _proved(subject: Subject, proof: Proof, samples: Samples) -> dict[str, Tensor]:
    method = proof.method
    images, labels = to_float(samples.images, subject.device), samples.labels.to(subject.device)
    threat = replace(proof.threat, eps=allowed_size(proof.threat.radius))
    rng = Streams.of(samples.ids.to(subject.device), subject.seed, method.name)
    oracle = Oracle(subject.model, len(samples))
    with fair_play(subject.model, images, labels), oracle.watching(images), torch.no_grad():
        found = method.component.certify(subject.model, images, labels, threat, rng)
    radius, chance = _checked(found, len(samples))
    counted = method.component.by_queries
    return {
        "attempted": torch.ones(len(samples), dtype=torch.bool),
        "certified": radius >= threat.radius,
        "radius": radius,
        "chance": chance,
        "forwards": oracle.forwards * counted,
        "backwards": oracle.backwards * counted,
    }


def _checked(found: object, count: int) -> tuple[Tensor, Tensor]:
    """Radii and chances as a certificate gave them, on the CPU.

    Raises:
        Breach: If they are none.
    """
    if not isinstance(found, Certified):
        raise Breach(RULE, f"got {type(found).__name__}, not Certified")
    radius = plain(found.radius, RULE)
    chance = plain(found.chance, RULE) if found.chance is not None else torch.zeros_like(radius)
    for values in (radius, chance):
        if values.shape != (count,) or values.dtype != torch.float64:
            raise Breach(RULE, f"got {shown(values)} for {count} images, not float64")
        if not bool((values.isfinite() & (values >= 0)).all()):
            raise Breach(RULE, "some are negative or not finite")
    if bool((chance > 1).any()):
        raise Breach(RULE, f"a chance of {float(chance.max()):.6g} is none")
    return radius.cpu(), chance.cpu()
