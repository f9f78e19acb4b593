"""The conditions that a model is put to where nobody says which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robbench.models._external.request import Answers


@dataclass(frozen=True)
class Preset:
    """Conditions by what a model answers.

    Attributes:
        summary: What it is for, in a line.
        conditions: As a grid lists them, by the most that the model answers.
        audit: Whether to add the audit's checks.
    """

    summary: str
    conditions: Mapping[Answers, tuple[str | dict[str, Any], ...]]
    audit: bool


def _sampled(size: int, *chains: str, **options: Any) -> tuple[dict[str, Any], ...]:
    return tuple({"chain": chain, "sample": size, **options} for chain in chains)


_NATURAL = ({"chain": "perturbation", "draws": 10}, "rotation", "corruption@each")

PRESETS: Mapping[str, Preset] = {
    "quick": Preset(
        "a first look: 100 images, gradients of margins, no audit",
        {
            "gradients": _sampled(100, "clean", "perturbation", "apgd-margin[steps=20]@each"),
            "scores": _sampled(100, "clean", "perturbation", "square[queries=300]@each"),
            "labels": (
                *_sampled(100, "clean", "perturbation", "noise-search[draws=300]@each"),
                *_sampled(20, "hop-skip-jump[iterations=10]@linf:"),
            ),
        },
        audit=False,
    ),
    "standard": Preset(
        "1,000 images, the ensemble at every eps, natural perturbations, the audit",
        {
            "gradients": (
                "clean",
                *_sampled(1000, "strong@each", "fgsm@ref"),
                {"chain": "perturbation", "draws": 10, "sample": 1000},
                *_sampled(1000, "rotation", "corruption@each"),
            ),
            "scores": (
                "clean",
                *_sampled(1000, "square[queries=1000]@each"),
                {"chain": "perturbation", "draws": 10, "sample": 1000},
                *_sampled(1000, "rotation", "corruption@each"),
            ),
            "labels": (
                "clean",
                *_sampled(1000, "noise-search[draws=1000]@each"),
                *_sampled(100, "hop-skip-jump", "hop-skip-jump@linf:"),
                {"chain": "perturbation", "draws": 10, "sample": 1000},
                *_sampled(1000, "rotation", "corruption@each"),
            ),
        },
        audit=True,
    ),
    "full": Preset(
        "all test images, AutoAttack, Linf, L2 and L1, smallest changes, natural perturbations, the audit",
        {
            "gradients": (
                "clean",
                "strong@each",
                "autoattack@ref",
                "strong@l2:each",
                "strong@l1:each",
                *_sampled(200, "fmn[steps=100]", "fmn[steps=100]@linf:", "carlini-wagner", "sparse-rs@10"),
                *_NATURAL,
            ),
            "scores": ("clean", "square@each", "square@l2:each", "square@l1:each", *_NATURAL),
            "labels": (
                "clean",
                "noise-search@each",
                *_sampled(200, "hop-skip-jump", "hop-skip-jump@linf:"),
                *_NATURAL,
            ),
        },
        audit=True,
    ),
}
