"""The grid of minimal-norm attacks: every attack at every budget in each of its norms, within the budget."""

from __future__ import annotations

import tomllib
from importlib.resources import files

from robbench.core.registry import Registry
from robbench.data.datasets.digits import Digits
from robbench.planning.conditions import Condition, ConditionRequest

BUDGETS = (100, 1000, 2000)
CLASSES = tuple("0123456789")
ATTACKS = {
    ("fmn", "linf"), ("fmn", "l2"), ("fmn", "l1"), ("fmn", "l0"),
    ("deepfool", "linf"), ("deepfool", "l2"),
    ("fab-minimal", "linf"), ("fab-minimal", "l2"), ("fab-minimal", "l1"),
    ("ddn", "l2"), ("carlini-wagner", "l2"), ("elastic-net", "l1"), ("sigma-zero", "l0"),
}  # fmt: skip


def conditions() -> list[Condition]:
    text = (files("robbench.planning.grids") / "minimal-norms.toml").read_text()
    requests = (ConditionRequest.read(wanted, "grid") for wanted in tomllib.loads(text)["conditions"])
    registry = Registry(installed=False)
    return [one for request in requests for one in request.resolve(registry, Digits.eps, CLASSES, "grid")]


def test_every_attack_spends_every_budget_but_a_fifth_at_most() -> None:
    found: dict[tuple[str, str], list[int]] = {}
    for condition in conditions():
        if condition.kind == "attack" and condition.stages[0].threat.eps is None:
            (stage,) = condition.stages
            passes = sum(stage.attack.component.passes(len(CLASSES)))
            found.setdefault((stage.attack.name, stage.threat.norm), []).append(passes)
    assert found.keys() == ATTACKS
    for attack, spent in found.items():
        assert len(spent) == len(BUDGETS), attack
        for passes, budget in zip(spent, BUDGETS, strict=True):
            assert 0.8 * budget <= passes <= budget, (attack, passes)


def test_all_attacks_have_the_same_images() -> None:
    assert len({condition.sample for condition in conditions() if condition.kind == "attack"}) == 1
