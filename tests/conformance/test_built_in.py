"""Everything that is built in keeps the rules."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import pytest
from rule_results import broken, check_attack, status

from robbench.attacks.deepfool import DeepFool
from robbench.attacks.pgd import PGD
from robbench.attacks.strong import Strong
from robbench.conformance import RULES, check
from robbench.core.registry import KINDS, Kind, Registry

BUILT_IN = Registry(installed=False)
# What makes an attack quick enough for a test, by the name of the parameter.
SMALL: Mapping[str, object] = {
    "steps": 4,
    "queries": 20,
    "search_steps": 2,
    "restarts": 1,
    "rounds": 1,
    "draws": 20,
    "iterations": 2,
}


def quick(name: str) -> str:
    known = BUILT_IN.entry("attack", name).cls.field_names()
    options = ",".join(f"{key}={value}" for key, value in SMALL.items() if key in known)
    return f"{name}[{options}]" if options else name


# The ensemble is what it is only at full size, which takes minutes.
ATTACKS = [
    pytest.param(name, marks=pytest.mark.slow) if name == "autoattack" else name
    for name in sorted(BUILT_IN.entries("attack"))
]


@pytest.mark.parametrize("name", ATTACKS)
def test_built_in_attacks_break_no_rule(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # What the longest ensemble begins with is checked under its own name.
    monkeypatch.setattr("robbench.attacks.thorough.Strong", functools.partial(Strong, queries=20, steps=4))
    results = check(BUILT_IN, "attack", quick(name))
    assert len(results) == len(RULES["attack"])
    assert broken(results) == {}


# What cannot do without a parameter, and what is large without one.
ASKED = {
    ("architecture", "timm"): "timm[name=test_resnet]",
    ("architecture", "torchvision"): "torchvision[name=squeezenet1_1]",
    ("architecture", "wide-resnet"): "wide-resnet[depth=10,widen_factor=1]",
    ("certificate", "smoothing"): "smoothing[n=100]",
}
COMPONENTS = [
    (kind, ASKED.get((kind, name), name))
    for kind in KINDS
    for name in sorted(BUILT_IN.entries(kind))
    if kind not in ("attack", "dataset") or name in ("digits", "digits-imbalanced", "image-folder")
]


@pytest.mark.usefixtures("no_umap")
@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_built_in_components_break_no_rule(kind: Kind, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROBBENCH_DATA", raising=False)
    results = check(BUILT_IN, kind, name)
    assert results
    assert broken(results) == {}


def test_missing_files_are_told_rather_than_skipped() -> None:
    found = status(check(BUILT_IN, "dataset", "image-folder[path=/nowhere]"))
    assert found["its files are found"] is found["reading is repeatable"] is None
    assert found["its recipe is one"] is True


def test_a_white_box_attack_is_told_how_far_it_gets() -> None:
    (told,) = (result for result in check_attack(PGD(), ("linf",)) if result.rule == "no better than possible")
    shares = [int(word.strip("%,")) for word in told.detail.split() if word.strip(",").endswith("%")]
    assert len(shares) == 2
    assert all(80 < share <= 100 for share in shares)
    (told,) = (result for result in check_attack(DeepFool(), ("l2",)) if result.rule == "no better than possible")
    assert "times the smallest change: l2 1.0" in told.detail
