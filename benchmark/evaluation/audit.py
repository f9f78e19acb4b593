"""The audit: signs of gradient masking and of failed attacks on a row, derived from its cells. Needs no torch.

Every rule compares outcomes on the samples that they share, and needs more than 1 % of the samples and at least three
of them. A flag blocks: its row ranks below every row without one. A caution tells what had to be done to attack a model
at all; where it was not done, it is a flag.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from robbench.core.threat_model import format_eps
from robbench.evaluation.audit_flags import CAUTIONS, DRAWN_ONCE, FLAGS, Flag
from robbench.evaluation.audited_cells import (
    LEAST,
    DoneCell,
    by_threat,
    enough,
    first_stage,
    follows_gradients,
    fooled_within,
    is_strong,
    label_of,
    left_by,
    norm_attacks,
    ranking_attacks,
)
from robbench.evaluation.contradictions import broken_certificates
from robbench.results.schema import CellResult, StageSpec

STILL = 0.05
"""Share of zero gradients from which on they are flagged."""
SEARCHED = 0.05
"""Share of the images from which on it is flagged that the search inside an attack wins: what it finds is counted."""
OVERSHOOT = 0.01
"""By how much attacks that look for the smallest change may miss it, relative to it."""
COLLAPSED = 0.95
"""Share of class-balanced images from which on one predicted class is flagged."""
FALSE_ALARMS = 0.1
"""Share of clean images from which on it is flagged that they are rejected."""
LOWERED = 0.005
"""By how much twice the steps may lower robust accuracy."""


def examine(cells: Sequence[DoneCell], rank_by: str = "") -> list[Flag]:
    """Everything that the cells of one model of one seed tell against it, in the order of the rules.

    Args:
        cells: The finished ones.
        rank_by: The threat model to rank by where the cells have it, as ``linf@8/255``.
    """
    ranking = ranking_attacks(cells, rank_by)
    rules = (
        _survives_everything(cells),
        _not_monotone(cells),
        _weaker_wins(cells),
        _search_inside_wins(cells),
        _smallest_beaten(cells),
        _not_converged(cells),
        _zero_gradient(cells, ranking),
        _non_finite(cells),
        _collapsed(cells),
        _rejects(cells),
        _surrogate_gap(cells),
        _remedies(cells, ranking),
        _draws_nothing(cells),
        _undefended(cells),
        broken_certificates(cells),
    )
    return list(itertools.chain.from_iterable(rules))


def marked(cells: Sequence[CellResult], rank_by: str = "") -> list[CellResult]:
    """The cells of a board with what the audit finds on its rows in their records.

    Args:
        cells: Records with their outcomes, None unless done.
        rank_by: The threat model that the board is to rank by, as in its note.
    """
    rows: dict[tuple[str, int], list[DoneCell]] = {}
    for record, outcome in cells:
        if outcome is not None:
            rows.setdefault((record.spec.model_key, record.spec.seed), []).append((record, outcome))
    flags = [flag for row in rows.values() for flag in examine(row, rank_by)]
    marks = [{"flags": _texts(flags, cell.key, True), "cautions": _texts(flags, cell.key, False)} for cell, _ in cells]
    return [(cell.model_copy(update=mark), outcome) for (cell, outcome), mark in zip(cells, marks, strict=True)]


def _texts(flags: Sequence[Flag], key: str, blocks: bool) -> dict[str, str]:
    """The flags or the cautions that belong to one record, each with what was found."""
    found: dict[str, list[str]] = {}
    for flag in flags:
        if flag.key == key and flag.blocks is blocks:
            found.setdefault(flag.name, []).append(flag.text)
    return {name: "; ".join(texts) for name, texts in found.items()}


# ----------------------------------------------------------------------------------------------------------- the rules


def _survives_everything(cells: Sequence[DoneCell]) -> Iterator[Flag]:
    for (norm, eps), found in by_threat(cells).items():
        strong = [cell for cell in found if follows_gradients(cell)]
        if norm != "linf" or eps < 0.5 or not strong:
            continue
        left = left_by(strong, norm, eps)
        kept = {number for number, stays in left.items() if stays}
        classes = {int(label) for _, outcome in strong for label in outcome.labels[np.isin(outcome.ids, list(kept))]}
        if len(classes) > 1 or (eps >= 1 and kept):
            names = ", ".join(label_of(cell) for cell in strong)
            several = f", of {len(classes)} classes," if len(classes) > 1 else ""
            text = f"{len(kept)} of {len(left)} images{several} are robust to {names}"
            yield Flag(strong[-1][0].key, "survives-everything", text)


def _not_monotone(cells: Sequence[DoneCell]) -> Iterator[Flag]:
    families: dict[str, dict[float, DoneCell]] = {}
    for (norm, eps), found in by_threat(cells).items():
        for cell in filter(is_strong, found):
            stage = first_stage(cell)
            family = f"{stage.name} {norm} {sorted(stage.parameters.items())} {cell[0].spec.condition.target}"
            families.setdefault(family, {})[eps] = cell
    threats = by_threat(cells)
    for by_eps in families.values():
        for small, large in itertools.pairwise(sorted(by_eps)):
            first, second = by_eps[small], by_eps[large]
            norm = first_stage(first).norm
            fooled = {int(number) for number in first[1].ids[fooled_within(first, norm, small)]}
            later = left_by([cell for cell in threats[norm, large] if is_strong(cell)], norm, large)
            lost = sum(later[number] for number in fooled if number in later)
            if enough(lost, len(later)):
                text = f"{lost} of {len(later)} images fooled by {label_of(first)} are robust to {label_of(second)}"
                yield Flag(second[0].key, "not-monotone", text)


def _weaker_wins(cells: Sequence[DoneCell]) -> Iterator[Flag]:
    smallest = [cell for cell in norm_attacks(cells) if first_stage(cell).eps is None]
    for (norm, eps), found in by_threat(cells).items():
        strong = [cell for cell in found if is_strong(cell)]
        if not strong:
            continue
        left = left_by(strong, norm, eps)
        for cell in (*found, *(other for other in smallest if first_stage(other).norm == norm)):
            flag = _weaker(first_stage(cell))
            if flag is None:
                continue
            shared = [int(number) for number in cell[1].ids[cell[1].attempted] if int(number) in left]
            broken = {int(number) for number in cell[1].ids[fooled_within(cell, norm, eps)]}
            won = sum(left[number] for number in shared if number in broken)
            if enough(won, len(shared)):
                names = ", ".join(label_of(other) for other in strong)
                within = "" if first_stage(cell).eps is not None else f" within {norm} {format_eps(eps)}"
                text = f"{label_of(cell)} fools{within} {won} of {len(shared)} images that {names} left"
                yield Flag(cell[0].key, flag, text)


def _search_inside_wins(cells: Sequence[DoneCell]) -> Iterator[Flag]:
    """What AutoAttack's authors warn of; images that gradients of the row's other attacks fooled do not count."""
    for (norm, eps), found in by_threat(cells).items():
        gradients: set[int] = set()
        for cell in filter(follows_gradients, found):
            gradients.update(cell[1].ids[fooled_within(cell, norm, eps) & ~cell[1].searched].tolist())
        for cell in found:
            outcome = cell[1]
            won = fooled_within(cell, norm, eps) & outcome.searched & ~np.isin(outcome.ids, list(gradients))
            count, tried = int(won.sum()), int(outcome.attempted.sum())
            if enough(count, tried):
                text = f"the search inside {label_of(cell)} fools {count} of {tried} images that gradients left"
                yield Flag(cell[0].key, "black-box-wins", text, blocks=count > SEARCHED * tried)


def _weaker(stage: StageSpec) -> str | None:
    """The flag that an attack raises where it wins, or None for one that is not weaker."""
    if stage.white_box:
        return "single-step-wins" if stage.gradient_steps == 1 and stage.eps is not None else None
    if stage.through_peers:
        return "transfer-wins"
    return "black-box-wins" if stage.black_box else "noise-wins"


def _smallest_beaten(cells: Sequence[DoneCell]) -> Iterator[Flag]:
    smallest = [
        cell for cell in norm_attacks(cells) if first_stage(cell).eps is None and not cell[0].spec.condition.check
    ]
    # Search without gradients finds larger changes on any model.
    for cell in (cell for cell in smallest if first_stage(cell).white_box):
        record, outcome = cell
        beaten: list[tuple[int, str]] = []
        for (norm, eps), found in by_threat(cells).items():
            safe = outcome.attempted & ~fooled_within(cell, norm, (1 + OVERSHOOT) * eps)
            for other in found if norm == first_stage(cell).norm else ():
                shared = np.isin(outcome.ids, other[1].ids[other[1].attempted]) & outcome.attempted
                won = int((safe & np.isin(outcome.ids, other[1].ids[fooled_within(other, norm, eps)])).sum())
                if enough(won, int(shared.sum())):
                    text = (
                        f"{label_of(other)} fools {won} of {shared.sum()} images that {label_of(cell)} calls safe there"
                    )
                    beaten.append((won, text))
        if beaten:
            # It tells against that attack; worst cases and distances of the row rest on all of them together.
            yield Flag(record.key, "smallest-change-beaten", max(beaten)[1], blocks=False)


def _not_converged(cells: Sequence[DoneCell]) -> Iterator[Flag]:
    for (norm, eps), found in by_threat(cells).items():
        strong = [cell for cell in found if is_strong(cell)]
        left = left_by(strong, norm, eps)
        # The same attack with twice the steps, or a costlier one.
        for cell in (cell for cell in found if follows_gradients(cell) and cell not in strong and strong):
            fooled = {int(number) for number in cell[1].ids[fooled_within(cell, norm, eps)]}
            lost = sum(left.get(number, False) for number in fooled)
            if lost >= LEAST and lost > LOWERED * len(cell[1]):
                names = ", ".join(label_of(other) for other in strong)
                text = f"{label_of(cell)} fools {lost} of {len(cell[1])} images that {names} left"
                yield Flag(cell[0].key, "not-converged", text)


def _zero_gradient(cells: Sequence[DoneCell], ranking: Sequence[DoneCell]) -> Iterator[Flag]:
    """Each loss by itself that an attack of the threat model that ranks followed, or any attack where none ranks."""
    stages = [first_stage(cell) for cell in ranking or norm_attacks(cells)]
    gradients = [stage for stage in stages if stage.white_box]
    followed = {loss for stage in gradients for loss in stage.losses or ("ce",)}
    if any(stage.follows_margins for stage in gradients):
        followed.discard("ce")  # It saturates on confident scores, where margins do not.
    for record, outcome in cells:
        right = outcome.clean == outcome.labels  # The others are not attacked.
        for loss in (loss for loss in _NAMES if loss in followed):
            still = int((getattr(outcome, f"flat_{loss}") & right).sum())
            if still >= LEAST and still > STILL * right.sum():
                which = f"{still} of {int(right.sum())} correctly predicted images"
                text = f"the input gradient of {_NAMES[loss]} is zero or no number on {which}"
                yield Flag(record.key, "zero-gradient", text)
        between = int((outcome.flat_between & right).sum())
        # Every step but the first is taken from an image that is not of 8 bits.
        if any(stage.gradient_steps > 1 for stage in gradients) and between >= LEAST and between > STILL * right.sum():
            which = f"{between} of {int(right.sum())} correctly predicted images"
            text = f"the input gradient is zero or no number between 8-bit pixel values on {which}"
            yield Flag(record.key, "zero-gradient", text)


_NAMES = {"ce": "cross-entropy", "margin": "the margin", "dlr": "the difference of logits ratio"}


def _non_finite(cells: Sequence[DoneCell]) -> Iterator[Flag]:
    for record, outcome in cells:
        count = int(outcome.non_finite.sum())
        if count:
            after = "clean images" if outcome.kind == "clean" else f"images after {record.spec.condition.label}"
            yield Flag(record.key, "non-finite", f"scores of {count} of {len(outcome)} {after} are not finite")


def _collapsed(cells: Sequence[DoneCell]) -> Iterator[Flag]:
    """Class by class, so that a test set of one class mostly does not make up for the others."""
    usual = [cell for cell in cells if not (cell[0].spec.condition.undefended or cell[0].spec.condition.survivors)]
    if not usual:
        return
    record, outcome = max(usual, key=lambda cell: len(cell[1]))
    predicted = [outcome.clean[outcome.labels == label] for label in np.unique(outcome.labels)]
    shares = np.mean([np.bincount(part, minlength=outcome.num_classes) / len(part) for part in predicted], axis=0)
    # Sums of thirds and the like come out a little below.
    if len(predicted) > 1 and shares.max() >= COLLAPSED - 1e-9:
        favorite = int(shares.argmax())
        name, count = record.spec.dataset.class_names[favorite], int((outcome.clean == favorite).sum())
        text = f"predicts {name} for {count} of {len(outcome)} clean images, {shares.max():.0%} averaged over classes"
        yield Flag(record.key, "collapsed", text)


def _rejects(cells: Sequence[DoneCell]) -> Iterator[Flag]:
    for record, outcome in cells:
        count = int(outcome.rejected.sum())
        if count and outcome.kind == "clean":
            text, many = f"rejects {count} of {len(outcome)} clean images", count > FALSE_ALARMS * len(outcome)
            yield Flag(record.key, "rejects-clean", text, blocks=many and count >= LEAST)
        elif count and outcome.kind in ("attack", "chain") and not record.spec.condition.check:
            text = f"after {record.spec.condition.label} it rejects {count} of {int(outcome.attempted.sum())} images"
            yield Flag(record.key, "rejects-attacked", text, blocks=False)


def _surrogate_gap(cells: Sequence[DoneCell]) -> Iterator[Flag]:
    if any("randomized" in record.traits for record, _ in cells):
        return  # Scores and prediction are then counted over draws of their own, and differ near the boundary.
    for cell in filter(is_strong, norm_attacks(cells)):
        record, outcome = cell
        # Where the prediction has changed, the attack has succeeded whatever the scores are.
        gap = outcome.attempted & (outcome.final == outcome.labels) & (outcome.scored != outcome.final)
        stage = first_stage(cell)
        if stage.eps is not None and stage.eps > 0:
            strong = [other for other in by_threat(cells)[stage.norm, stage.eps] if is_strong(other)]
            left = left_by(strong, stage.norm, stage.eps)
            gap &= np.array([left.get(int(number), True) for number in outcome.ids], dtype=np.bool_)
        tried = int(outcome.attempted.sum())
        if enough(int(gap.sum()), tried):
            count = f"{int(gap.sum())} of {tried}"
            text = f"after {label_of(cell)} the scores of {count} images are fooled, the prediction is not"
            yield Flag(record.key, "surrogate-gap", text)


def _remedies(cells: Sequence[DoneCell], ranking: Sequence[DoneCell]) -> Iterator[Flag]:
    stages = [first_stage(cell) for cell in ranking]
    # One that looks for the smallest change does without gradients just as well.
    asked = [
        stage for record, _ in cells if record.spec.condition.kind == "attack" for stage in record.spec.condition.stages
    ]
    for record, _ in cells:
        traits = record.traits
        remedied: Mapping[str, Any] = {
            "randomized": "averaged" in traits,
            "outputs-probabilities": any(stage.follows_margins for stage in stages),
            "no-gradient": any(stage.black_box and not stage.white_box for stage in asked),
            "defense-in-the-way": "straight-through" in traits,
        }
        for name, remedy in remedied.items():
            if name in traits and (remedy or stages):
                averages = name == "randomized" and any(stage.averaged_draws > 1 for stage in stages)
                missing = DRAWN_ONCE if averages else FLAGS[name]
                yield Flag(record.key, name, CAUTIONS[name] if remedy else missing, blocks=not remedy)


def _draws_nothing(cells: Sequence[DoneCell]) -> Iterator[Flag]:
    known = [record for record, outcome in cells if outcome.kind == "clean"]
    if not known or any("randomized" in record.traits for record in known):
        return
    for record, _ in norm_attacks(cells):
        draws = record.spec.condition.stages[0].averaged_draws
        if draws > 1:
            text = f"{record.spec.condition.label} averages over {draws} draws, which are all the same"
            yield Flag(record.key, "draws-nothing", text, blocks=False)


def _undefended(cells: Sequence[DoneCell]) -> Iterator[Flag]:
    """Straight-through gradients are only believed where the same attack does its work without the defense."""
    if "straight-through" not in {trait for record, _ in cells for trait in record.traits}:
        return
    for bare in (cell for cell in cells if cell[0].spec.condition.undefended):
        record, outcome = bare
        tried, fooled = int(outcome.attempted.sum()), int((outcome.attempted & ~outcome.robust).sum())
        text = (
            f"without it, {record.spec.condition.label.removesuffix(', undefended')} fools {fooled} of {tried} images"
        )
        yield Flag(record.key, "defense-in-the-way", text, blocks=not enough(fooled, tried))
