"""A card for each model of a board: what it is, how it was trained, what that cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.markdown import number
from robbench.leaderboards.tables.robustness import parameters
from robbench.results.schema import PartSpec, Record


@dataclass(frozen=True)
class ModelCard:
    """What a page tells of a model.

    Attributes:
        row: Label of its row.
        facts: Names and values in the order in which they are shown, as plain text.
        seeds: A line for each trained model: seed, key and hash of the weights, which older records lack.
    """

    row: str
    facts: Mapping[str, str]
    seeds: tuple[tuple[int, str, str], ...]


def model_cards(board: Board, records: Iterable[Record]) -> list[ModelCard]:
    """The cards of a board, a card a row.

    Args:
        board: The board.
        records: Those that it was made of.
    """
    by_row: dict[str, dict[int, Record]] = {}
    for record in records:
        by_row.setdefault(record.spec.model.label, {}).setdefault(record.spec.seed, record)
    facts = {row.label: _facts(row, alone=len(board.rows) == 1) for row in board.rows}
    return [
        ModelCard(label, {name: text for name, text in found.items() if text}, _seeds(by_row[label]))
        for label, found in facts.items()
    ]


def _facts(row: Row, alone: bool) -> dict[str, str]:
    spec, trained = row.model, list(row.training.values())
    rank = f"not ranked: {row.unranked}" if not row.rank else "" if alone else row.rank
    if spec.external:
        front = " + ".join(_part(part) for part in spec.defenses if part.name != "none")
        own = {name: text for name, text in spec.external.identity.items() if name != "weights_sha256"}
        return {
            "Rank": rank,
            "Model": spec.architecture.label,
            "Size": _size(row),
            "Trained": "its members are"
            if "vote" in spec.external.identity
            else "by others; passes of training unknown",
            "Defense in front": front,
            "Facts": parameters(spec.external.facts),
            "Told by": parameters(own),
        }
    facts = {
        "Rank": rank,
        "Architecture": _part(spec.architecture),
        "Size": _size(row),
        "Objective": _part(spec.objective),
        "Training and defense": " + ".join(map(_part, spec.defenses)),
        "Balancing": _part(spec.balancer),
        "Started from": spec.start or "",
        "Recipe": parameters(spec.recipe) if spec.recipe else "",
    }
    if trained:
        facts |= {
            "Training images": _extent([part.images for part in trained]),
            "Epochs and steps": f"{_extent([part.epochs for part in trained])} epochs, "
            f"{_extent([part.steps for part in trained])} optimizer steps",
            "Training passes": f"{_mean([part.forwards for part in trained])} forward, "
            f"{_mean([part.backwards for part in trained])} backward, of images through the network",
        }
    return facts


def _seeds(found: Mapping[int, Record]) -> tuple[tuple[int, str, str], ...]:
    return tuple((seed, record.spec.model_key, _weights(record)) for seed, record in sorted(found.items()))


def _weights(record: Record) -> str:
    """The hash of the weights, of a trained model in the provenance, of one of others in what identifies it."""
    external = record.spec.model.external
    return str((external.identity if external else record.provenance).get("weights_sha256") or "")


def _size(row: Row) -> str:
    counts = {"parameters": row.parameters, "multiply-adds of one prediction": row.multiply_adds}
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


def _part(spec: PartSpec) -> str:
    return f"{spec.label} ({parameters(spec.parameters)})" if spec.parameters else spec.label


def _extent(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _mean(values: Sequence[float]) -> str:
    return number(sum(values) / len(values))
