"""Sizes of change that cannot be meant are questioned, wherever they are written."""

from __future__ import annotations

import pytest

from robbench.core.registry import Registry
from robbench.core.threat_model import Threat
from robbench.data.datasets.digits import Digits
from robbench.planning.component_spec import choose, size_doubts
from robbench.planning.conditions import ConditionRequest

REGISTRY = Registry(installed=False)
VALUES = 3 * 32 * 32


@pytest.mark.parametrize(
    ("condition", "doubted"),
    [
        ("fgsm@8/255", ""),
        ("fgsm@1", ""),
        ("pgd@l2:55", ""),
        ("pgd@l2:128", "no change is larger than 55.4256 in l2"),
        ("pgd@l1:3073", "no change is larger than 3072 in l1"),
        ("sparse-rs@10", ""),
        ("sparse-rs@0.05", "less than 1 of them is no change"),
        ("carlini-wagner", ""),
        ("gaussian-noise[std=0.2]", ""),
        ("gaussian-noise[std=25]", "for 25 of 255 levels write 25/255"),
    ],
)
def test_sizes_of_attacks(condition: str, doubted: str) -> None:
    (one,) = ConditionRequest.read(condition, "here").resolve(REGISTRY, Digits.eps, ("a", "b", "c"), "here")
    found = one.doubts(VALUES)
    assert len(found) == bool(doubted)
    assert all(doubted in doubt for doubt in found)


@pytest.mark.parametrize(
    ("defense", "doubted"),
    [
        ("fgm", ""),
        ("fgm[eps=8/255]", ""),
        ("fgm[eps=8,norm=l2]", ""),
        ("fgm[eps=128,norm=l2]", "no change is larger than 55.4256 in l2"),
        ("smoothing[sigma=25]", "for 25 of 255 levels write 25/255"),
        ("bit-depth", ""),
    ],
)
def test_sizes_of_defenses(defense: str, doubted: str) -> None:
    found = size_doubts(choose(REGISTRY, "defense", defense, "here"), VALUES)
    assert len(found) == bool(doubted)
    assert all(doubt.startswith(f'"{defense.partition("[")[0]}') and doubted in doubt for doubt in found)


def test_what_is_possible_is_not_doubted() -> None:
    assert not Threat("none").doubt(VALUES)
    assert not Threat("linf", 0.0).doubt(VALUES)
    assert not Threat("l0", 0.0).doubt(VALUES)
