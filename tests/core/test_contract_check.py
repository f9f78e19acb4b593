"""Components are compared with their contracts before anything is run."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from grid_files import tiny, write_grid
from hypothesis import given
from hypothesis import strategies as st
from plugin_files import GRAY, write

from robbench.cli.main import main
from robbench.core.contract_check import _mismatch, contract_faults
from robbench.core.errors import RequestError
from robbench.core.registry import KINDS, Kind, Registry

HEAD = """
from dataclasses import dataclass
from typing import ClassVar
from robbench import *
"""
CONTRACTS: dict[Kind, str] = {
    "certificate": "certify(self, model, images, labels, threat, rng)",
    "dataset": "locate(self, data_dir)",
    "balancer": "class_weights(self, counts)",
    "architecture": "build(self, image_shape)",
    "objective": "build(self, backbone, num_classes, gallery_labels)",
    "defense": "wrap(self, model)",
    "attack": "perturb(self, model, images, labels, threat, rng)",
    "metric": "measure(self, outcome)",
    "figure": "draw(self, scene)",
}


def component(kind: Kind, body: str, name: str = "Mine", decorator: str = "@dataclass(frozen=True)") -> str:
    norms = ', norms=("linf",)' if kind in ("attack", "certificate") else ""
    lines = [f'@register_{kind}("mine"{norms})', decorator, f"class {name}({kind.capitalize()}):", '    """Mine."""']
    return HEAD + "\n".join([*lines, *(f"    {line}" for line in body.splitlines())]) + "\n"


def fault(tmp_path: Path, text: str) -> str:
    """The line that a plugin file is refused with."""
    file = write(tmp_path / "mine.py", text)
    with pytest.raises(RequestError) as caught:
        Registry((file,), installed=False).plugins()
    line = str(caught.value)
    assert "\n" not in line
    assert str(file) in line
    return line


def method(head: str) -> str:
    return f"def {head}:\n    return None"


@pytest.mark.parametrize("kind", KINDS)
def test_built_in_components_fulfill_their_contracts(kind: Kind) -> None:
    for name, entry in Registry(installed=False).entries(kind).items():
        assert list(contract_faults(entry.cls)) == [], name


LOSS = "loss(self, model, images, labels, weights, anchor=None)"
OTHERS = {"objective": ["batches(self, labels, batch_size, rng)", LOSS]}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_compared_with_its_contract(tmp_path: Path, kind: Kind) -> None:
    head, others = CONTRACTS[kind], "\n".join(method(other) for other in OTHERS.get(kind, ()))
    fine = write(tmp_path / "fine.py", component(kind, method(head) + "\n" + others))
    assert "mine" in Registry((fine,), installed=False).entries(kind)
    name = head.partition("(")[0]
    for wrong, reason in (
        (f"{name}(self)", "too many positional arguments"),
        (head.replace(")", ", extra)"), "missing a required argument: 'extra'"),
        (head.replace(")", ", *, extra)"), "missing a required"),
        (head.replace("(self, ", "(self, other_"), '" stands where "'),
    ):
        line = fault(tmp_path, component(kind, method(wrong) + "\n" + others))
        assert f'{kind} "mine": Mine.{name}(' in line
        assert f"{kind.capitalize()}.{name}({head.partition('(self, ')[2]}" in line
        assert reason in line


ATTACK = CONTRACTS["attack"]


@pytest.mark.parametrize(
    "head",
    [
        "perturb(self, model, images, labels, threat, rng, *, share=1.0)",
        "perturb(self, model, images, labels, threat, rng, share=1.0)",
        "perturb(self, model, images, *rest)",
        "perturb(self, *arguments, **options)",
        "perturb(self, model, images, labels, threat=None, rng=None)",
        "perturb(self, model, images, labels, threat, rng, **options)",
        "perturb(itself, model, images, labels, threat, rng)",
    ],
)
def test_methods_that_take_more_or_less_strictly_are_fine(tmp_path: Path, head: str) -> None:
    file = write(tmp_path / "mine.py", component("attack", method(head)))
    assert Registry((file,), installed=False).plugins()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (method("perturb(self, images, model, labels, threat, rng)"), '"images" stands where "model" should'),
        (method("perturb(self, model, images, labels, *, threat, rng)"), "too many positional arguments"),
        (method("perturb(self, **options)"), "too many positional arguments"),
        (method("perturb(model, images, labels, threat, rng)"), "too many positional arguments"),
        ("async " + method(ATTACK), "it is a coroutine"),
        ("perturb = 3", "Mine.perturb is 3, not a method like Attack.perturb(model, images, labels, threat, rng)"),
        ("@property\n" + method("perturb(self)"), "Mine.perturb is a property, not a method"),
        ("steps: int = 3", "class Mine lacks Attack.perturb(model, images, labels, threat, rng)"),
        (method(ATTACK) + "\n" + method("refusal(self, threat)"), "Attack.refusal(threat, num_classes)"),
        (method(ATTACK) + "\ntargetable = 'yes'", "Mine.targetable is 'yes': Input should be a valid boolean"),
        (method(ATTACK) + "\nversion = '2'", "Mine.version is '2': Input should be a valid integer"),
        (method(ATTACK) + "\nversion = True", "Mine.version is True: Input should be a valid integer"),
        (method(ATTACK) + "\nwhite_box: bool = True", 'field "white_box": that is a class variable of Attack'),
        (method(ATTACK) + "\npasses: int = 3", 'field "passes": that is a method of Attack'),
        (method(ATTACK) + "\nname: str = 'mine'", 'field "name": a grid names the component by that word'),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, body: str, reason: str) -> None:
    assert reason in fault(tmp_path, component("attack", body))


def test_a_class_that_is_no_dataclass_is_refused(tmp_path: Path) -> None:
    line = fault(tmp_path, component("attack", method(ATTACK), decorator=""))
    assert "class Mine is not a frozen dataclass: write @dataclass(frozen=True) above it" in line


def test_a_dataclass_that_is_not_frozen_is_refused(tmp_path: Path) -> None:
    line = fault(tmp_path, component("attack", method(ATTACK), decorator="@dataclass"))
    assert "cannot inherit non-frozen dataclass from a frozen one" in line


def test_class_variables_that_fit_are_fine(tmp_path: Path) -> None:
    body = method(ATTACK) + "\nversion: ClassVar[int] = 2\ntargetable = True\ngradient_steps: int = 5"
    file = write(tmp_path / "mine.py", component("attack", body))
    (entry,) = (e for e in Registry((file,), installed=False).entries("attack").values() if e.plugin)
    made: Any = entry.cls.make({}, "here")
    assert (made.version, made.targetable, made.gradient_steps) == (2, True, 5)


def test_members_are_compared_with_those_of_the_component_that_is_built_on(tmp_path: Path) -> None:
    text = HEAD + (
        "from robbench.attacks.fgm import FGM\n"
        '@register_attack("mine", norms=("linf",))\n@dataclass(frozen=True)\nclass Mine(FGM):\n    """Mine."""\n'
        "    def passes(self):\n        return 1, 1\n"
    )
    line = fault(tmp_path, text)
    assert "Mine.passes() does not stand in for FGM.passes(num_classes)" in line


def test_a_run_is_refused_before_anything_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = write(tmp_path / "gray.py", GRAY.replace("labels, threat, rng", "labels, rng, threat"))
    write_grid(tmp_path / "grid.toml", tiny(conditions=["clean", "fgsm@ref"]))
    out = tmp_path / "runs"
    for words in (
        ["run", "--grid", str(tmp_path / "grid.toml"), "--out", str(out)],
        ["plan", "--grid", str(tmp_path / "grid.toml"), "--out", str(out)],
        ["list", "attack"],
        ["check", "gray"],
    ):
        assert main([*words, "--plugin", str(plugin)]) == 2
        shown = capsys.readouterr()
        (line,) = shown.err.splitlines()
        assert f'{plugin}: attack "gray": Gray.perturb(model, images, labels, rng, threat)' in line
        assert '"rng" stands where "threat" should' in line
    assert not out.exists()


NAMES = st.lists(st.sampled_from("abcd"), unique=True, max_size=4)
KIND = st.sampled_from([inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY])


@given(NAMES, st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), unique_by=lambda item: item[0], max_size=5))
def test_whatever_is_accepted_can_be_called_by_position(wanted: Sequence[str], own: Sequence[tuple[str, bool]]) -> None:
    own = sorted(own, key=lambda item: item[1])
    text = ", ".join(f"{name}=None" if optional else name for name, optional in own)
    space: dict[str, Any] = {}
    exec(f"def contract({', '.join(wanted)}): ...\ndef found({text}): return locals()", space)
    reason = _mismatch(inspect.signature(space["found"]), inspect.signature(space["contract"]))
    try:
        taken = {name: value for name, value in space["found"](*wanted).items() if value is not None}
    except TypeError:
        assert reason
    else:
        assert (reason is None) == all(name == value for name, value in taken.items())
