from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from closed_forms import SHAPE, SIZE, Linear
from torch import Tensor

from robbench.cli._inventory import ALL_KINDS, CLASSES, items
from robbench.cli.main import main
from robbench.core.attack import Attack
from robbench.core.contracts import Classifier
from robbench.core.errors import RequestError
from robbench.core.registry import KINDS, Kind, Registry
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import NORMS, Norm, Threat
from robbench.data.dataset import EpsList
from robbench.planning.conditions import ConditionRequest
from robbench.planning.grid import built_in_grids

REGISTRY = Registry(installed=False)
ATTACKS = REGISTRY.entries("attack")
COMPONENTS = [(kind, name) for kind in KINDS for name in REGISTRY.entries(kind)]
EPS: dict[Norm, EpsList] = {norm: EpsList((0.1,), reference=0.1) for norm in NORMS}


def made(name: str) -> Attack:
    attack = ATTACKS[name].cls.make(ATTACKS[name].mark.preset, name)
    assert isinstance(attack, Attack)
    return attack


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["list", *words]) == 0
    return capsys.readouterr().out


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    found = json.loads(shown(capsys, *words, "--json"))
    assert isinstance(found, list)
    return found


def names(capsys: pytest.CaptureFixture[str], *words: str) -> set[str]:
    return {item["name"] for item in listed(capsys, *words)}


# --- a screen


def test_the_attacks_fit_a_screen_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, "attack").splitlines()
    assert len(lines) < 40, "and the prompt below"
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    first = Counter(line.split()[0] for line in lines if line.strip())
    assert all(first[name] == 1 for name in ATTACKS)
    assert len(set(line.split(maxsplit=1)[1] for line in lines[1 : 1 + len(ATTACKS)])) == len(ATTACKS)


def test_the_line_of_an_attack_tells_norms_passes_needs_and_its_preset(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {line.split()[0]: line for line in shown(capsys, "attacks").splitlines() if line.strip()}
    for name, entry in ATTACKS.items():
        attack = made(name)
        passes = "–" if attack.needs_peers else f"{sum(attack.passes(10)):,}"
        star = "" if attack.bounded else "*"
        assert f"{' '.join(entry.mark.norms)}{star} " in rows[name]
        assert f" {passes} {attack.needs} " in rows[name]
    for name, words in {"apgd": "cross-entropy", "apgd-dlr": "DLR loss", "apgd-t": "DLR loss, 9 targets"}.items():
        assert rows[name].rstrip().endswith(words)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_name_of_a_kind_stands_whole_in_its_list(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, kind)
    assert set(items(REGISTRY, kind)) <= set(text.split())
    assert max(map(len, text.splitlines())) <= 80
    assert shown(capsys, f"{kind}s") == text


def test_a_plain_list_shows_every_kind_on_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys)
    assert {*KINDS, *built_in_grids(), *(name for _, name in COMPONENTS)} <= set(text.split())
    assert len(text.splitlines()) < 45


def test_an_attack_of_a_plugin_is_cut_to_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from dataclasses import dataclass\n"
        "from robbench import Attack, register_attack\n"
        "@register_attack('mine', norms=('linf',))\n"
        "@dataclass(frozen=True)\n"
        "class Mine(Attack):\n"
        "    '''An attack (Somebody et al., 2020) that takes more than a line of eighty columns to say.'''\n"
        "    strength: float\n"
        "    def perturb(self, model, images, labels, threat, rng):\n"
        "        return images\n",
        encoding="utf-8",
    )
    words = ("attack", "--plugin", str(plugin))
    text = shown(capsys, *words).splitlines()
    assert len(text) == len(shown(capsys, "attack").splitlines()) + 2
    assert [line.split()[0] for line in text if "mine" in line] == ["mine", "mine:"]
    assert text[-1].endswith(str(plugin))
    assert next(item for item in listed(capsys, *words) if item["name"] == "mine")["brief"].startswith("An attack that")
    detail = " ".join(shown(capsys, "attack", "mine", "--plugin", str(plugin)).split())
    assert "mine.py" in detail
    assert "strength required number" in detail


# --- filters


def test_filters_keep_the_attacks_that_fit(capsys: pytest.CaptureFixture[str]) -> None:
    for norm in NORMS:
        assert names(capsys, "attack", "--norm", norm) == {n for n, e in ATTACKS.items() if norm in e.mark.norms}
    for needs in ("gradients", "scores", "decisions", "nothing"):
        found = names(capsys, "--needs", needs)
        assert found == {name for name in ATTACKS if made(name).needs == needs}
        assert found
    assert names(capsys, "attack", "--norm", "l2", "--needs", "scores") == {"square"}


def test_a_search_looks_into_names_and_descriptions_of_all_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    found = {(item["kind"], item["name"]) for item in listed(capsys, "--search", "ADVERSARIAL training")}
    assert ("defense", "fgm") in found
    assert ("attack", "apgd") not in found
    assert names(capsys, "attack", "--search", "croce") >= {"apgd", "fab", "autoattack", "sparse-rs"}
    assert shown(capsys, "--search", "no such words anywhere") == "nothing fits these filters\n"
    assert listed(capsys, "--search", "no such words anywhere") == []


# --- one in full


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_one_component_is_shown_with_every_parameter(kind: Kind, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, kind, name)
    assert max(map(len, text.splitlines())) <= 80
    entry = REGISTRY.entry(kind, name)
    flat = " ".join(text.split())
    assert entry.summary.replace("``", "") in flat
    first = {line.split()[0] for line in text.splitlines() if line and not line.startswith(" ")}
    assert set(entry.cls.field_names()) <= first


def test_the_parameters_of_a_preset_have_its_values(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(shown(capsys, "attack", "apgd-t").split())
    for part in ("loss dlr ce, dlr, margin", "targets 9 integer ≥ 0", "at most 910 forward + 900 backward", "Croce"):
        assert part in text
    assert "loss ce ce, dlr, margin" in " ".join(shown(capsys, "attack", "apgd").split())
    assert "alpha_max 0.1 number ≥ 0, ≤ 1" in " ".join(shown(capsys, "attack", "fab").split())


def test_every_parameter_says_what_it_means(capsys: pytest.CaptureFixture[str]) -> None:
    lacking = [
        (item["kind"], item["name"], parameter["name"])
        for item in listed(capsys)
        for parameter in item["parameters"]
        if not parameter["about"]
    ]
    assert not lacking


def _outside(schema: dict[str, Any]) -> Iterator[object]:
    """Values just outside what a schema allows."""
    step = 1 if schema.get("type") == "integer" else 1e-6
    as_type = int if schema.get("type") == "integer" else float
    if "minimum" in schema:
        yield as_type(schema["minimum"] - step)
    if "maximum" in schema:
        yield as_type(schema["maximum"] + step)
    for bound in ("exclusiveMinimum", "exclusiveMaximum"):
        if bound in schema:
            yield as_type(schema[bound])
    if "enum" in schema:
        yield "no such value"


def test_the_bounds_that_are_told_are_those_that_hold(capsys: pytest.CaptureFixture[str]) -> None:
    tried = 0
    for item in listed(capsys):
        if item["kind"] in KINDS and not any(parameter["required"] for parameter in item["parameters"]):
            entry = REGISTRY.entry(item["kind"], item["name"])
            usual = {parameter["name"]: parameter["default"] for parameter in item["parameters"]}
            assert entry.cls.make(usual, "").parameters() == entry.cls.make(entry.mark.preset, "").parameters()
            for parameter in item["parameters"]:
                for value in _outside(parameter["schema"]):
                    tried += 1
                    with pytest.raises(RequestError):
                        entry.cls.make({**entry.mark.preset, parameter["name"]: value}, "")
    assert tried > 50


@pytest.mark.parametrize("name", ATTACKS)
def test_the_example_of_an_attack_is_a_condition(name: str) -> None:
    example = items(REGISTRY, "attack")[name].example
    conditions = ConditionRequest(example).resolve(REGISTRY, EPS, tuple("abcdefghij"), "")
    assert [condition.refusal(CLASSES) for condition in conditions] == [None]


def test_grids_and_attacks_of_the_toolbox_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert built_in_grids()["full"].strip() in shown(capsys, "grid", "full")
    assert "art:ProjectedGradientDescent" in shown(capsys, "toolbox").split()
    text = shown(capsys, "attack", "art:SquareAttack")
    assert "norms    linf, l2\nneeds    scores\n" in text
    assert text == shown(capsys, "toolbox", "art:SquareAttack")


# --- what attacks need


class Asked(Classifier):
    """A linear model that notes what it is asked for."""

    def __init__(self, seen: set[str]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(CLASSES, SIZE, generator=generator, dtype=torch.float64)
        self.inner = Linear(weight, torch.zeros(CLASSES, dtype=torch.float64)).eval()
        self.num_classes, self.seen = CLASSES, seen

    def forward(self, images: Tensor) -> Tensor:
        self.seen.add("scores")
        scores: Tensor = self.inner(images)
        if scores.requires_grad:
            scores.register_hook(lambda gradient: self.seen.add("gradients"))
        return scores

    def embed(self, images: Tensor) -> Tensor:
        return self.inner.embed(images)

    def predict(self, images: Tensor) -> Tensor:
        self.seen.add("decisions")
        return self.inner.predict(images)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_asks_for_what_it_is_said_to_need(name: str) -> None:
    attack, norm, seen = made(name), ATTACKS[name].mark.norms[0], set[str]()
    for field, value in {"steps": 3, "search_steps": 1, "queries": 20, "draws": 16, "iterations": 2}.items():
        if field in attack.field_names():
            attack = type(attack).make({**attack.parameters(), field: value}, name)
    model, peer = Asked(seen).eval(), Asked(set()).eval()
    images = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = model.inner.predict(images)
    size = 3.0 if norm == "l0" else 0.01
    threat = Threat(norm, size if attack.bounded and norm != "none" else None)
    if attack.refusal(threat, CLASSES):
        threat, labels = Threat(norm, threat.eps, True), (labels + 1) % CLASSES
    attack.bind([peer]).perturb(model, images, labels, threat, Streams.of(torch.arange(4), 0, "needs"))
    order = ("gradients", "scores", "decisions")
    most = min((order.index(what) for what in seen), default=math.inf)
    assert (order[int(most)] if seen else "nothing") == attack.needs
