"""Whether what was proved of a row's images and what was tried on them contradict each other. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from robbench.core.threat_model import allowed_size
from robbench.evaluation.audit_flags import UNRANKED, Flag
from robbench.results.schema import Bools, Outcome, Record

IMPLAUSIBLE = 1e-4
"""Probability from which on so many broken proofs that are not certain are more than chance."""


def broken_certificates(cells: Sequence[tuple[Record, Outcome]]) -> Iterator[Flag]:
    """Each certificate of which a change, within what it proves and of whatever kind, alters the prediction.

    One image is enough where proofs are certain. The others hold with a probability each, so that their broken ones
    must be more than chance leaves.

    Args:
        cells: The finished cells of one model of one seed.
    """
    tried = [cell for cell in cells if cell[1].kind in ("attack", "chain", "natural")]
    tried = [cell for cell in tried if not cell[0].spec.condition.undefended]
    for record, proved in cells:
        proof = record.spec.condition.certificate
        if proof is None:
            continue
        limits = np.where(proved.chance > 0, np.minimum(proved.radius, allowed_size(proof.eps)), proved.radius)
        for other, outcome in tried:
            shared = np.intersect1d(proved.ids[proved.radius > 0], outcome.ids[outcome.attempted])
            here, there = (np.flatnonzero(np.isin(ids, shared)) for ids in (proved.ids, outcome.ids))
            here, there = here[np.argsort(proved.ids[here])], there[np.argsort(outcome.ids[there])]
            sizes = getattr(outcome, proof.norm)[there]
            within: Bools = sizes <= limits[here]
            wrong = within & (outcome.final[there] != outcome.labels[there])
            chance = proved.chance[here][within]
            certain = wrong & (proved.chance[here] == 0)
            if certain.any() or _implausible(int(wrong.sum()), float(chance.sum())):
                label, by = record.spec.condition.label, other.spec.condition.label
                text = f"{by} fools {int(wrong.sum())} of {int(within.sum())} images within what {label} proves"
                yield Flag(record.key, UNRANKED, f"{text} (first: sample {int(shared[wrong][0])})")


def _implausible(count: int, expected: float) -> bool:
    """Whether so many are more than chance makes of what is expected at the most."""
    if not count:
        return False
    from scipy.stats import poisson

    return bool(poisson.sf(count - 1, expected) < IMPLAUSIBLE)
