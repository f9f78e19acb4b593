"""What is registered, as plain data for lists: names, norms, costs, parameters."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from pydantic import TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema

from robbench.core.attack import Attack
from robbench.core.component import Component, field_texts
from robbench.core.errors import RequestError, did_you_mean
from robbench.core.registry import KINDS, Registration, Registry
from robbench.core.threat_model import Norm, Threat
from robbench.planning.component_spec import choose, plain
from robbench.planning.grid import built_in_grids, parse_grid

ALL_KINDS = (*KINDS, "grid", "toolbox")
CLASSES = 10
"""The number of classes for which passes are told."""
_EPS = {"linf": "8/255", "l2": "l2:1.0", "l1": "l1:12", "l0": "l0:20"}
_SETTING = {
    "dataset": 'datasets = ["{}"]',
    "balancer": 'balancer = "{}"',
    "architecture": 'architecture = "{}"',
    "objective": 'objective = "{}"',
    "defense": 'defense = "{}"',
    "certificate": "certify[method={}]@ref",
    "grid": "robbench run --grid {}",
}


@dataclass(frozen=True)
class Parameter:
    """A hyperparameter.

    Attributes:
        name: Its name.
        required: Whether it has no default.
        default: Its default under the name at hand.
        schema: JSON schema of its values.
        about: What it means, from the docstring.
    """

    name: str
    required: bool
    default: Any
    schema: Mapping[str, Any]
    about: str


@dataclass(frozen=True)
class AttackTraits:
    """What lists tell of attacks.

    Attributes:
        norms: The norms it works in, its usual one first.
        needs: The most that it asks of the model.
        passes: Forward and backward passes that one image costs at most, with ``CLASSES`` classes; None where that
            depends on the other models of the grid.
        takes_eps: Whether it takes an eps in any of its norms; otherwise it looks for the smallest change.
        targetable: Whether it may be given a target.
    """

    norms: tuple[Norm, ...]
    needs: str
    passes: tuple[int, int] | None
    takes_eps: bool
    targetable: bool


@dataclass(frozen=True)
class Item:
    """A component, a built-in grid, or an attack of the toolbox.

    Attributes:
        kind: Its kind.
        name: Its name.
        brief: What it is, in a few words.
        text: What it is, in full; of a grid, its TOML.
        example: How a grid or the command line asks for it.
        origin: The plugin and the file that it comes from, or None.
        attack: What only attacks have.
        parameters: Its hyperparameters.
    """

    kind: str
    name: str
    brief: str
    text: str = ""
    example: str = ""
    origin: str | None = None
    attack: AttackTraits | None = None
    parameters: tuple[Parameter, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Plain data for JSON, without what does not apply."""
        return {key: plain(value) for key, value in asdict(self).items() if value not in (None, "")}

    def fits(self, text: str | None, norm: str | None, needs: str | None) -> bool:
        """Whether name or description has a text, and an attack works in a norm and needs just this."""
        if text and text.lower() not in f"{self.name} {self.brief} {self.text}".lower():
            return False
        if norm or needs:
            traits = self.attack
            return traits is not None and norm in (None, *traits.norms) and needs in (None, traits.needs)
        return True


def kind_called(text: str, known: Sequence[str]) -> str:
    """The kind that is asked for, also in the plural.

    Raises:
        RequestError: If there is none, with the nearest that there is.
    """
    kind = text if text in known else text.removesuffix("s")
    if kind not in known:
        raise RequestError(f'there is no kind "{text}"; {did_you_mean(text, known)}')
    return kind


def items(registry: Registry, kind: str) -> dict[str, Item]:
    """What there is of a kind, by name."""
    if kind == "toolbox":
        from robbench.attacks.toolbox import toolbox_names

        return {name: Item("toolbox", name, "") for name in toolbox_names()}
    if kind == "grid":
        grids = built_in_grids().items()
        return {
            name: Item(kind, name, parse_grid(text, f"grid {name}").title, text, _SETTING[kind].format(name))
            for name, text in grids
        }
    return {name: _item(entry) for name, entry in registry.entries(kind).items()}  # type: ignore[arg-type]


def item(registry: Registry, kind: str, name: str) -> Item:
    """One of a kind.

    Raises:
        RequestError: If there is none of that name, with the nearest that there is.
    """
    if kind in ("attack", "toolbox") and name.startswith("art:"):
        attack = choose(registry, "attack", name, "").component
        example, traits = _traits(name, attack, attack.norms)
        return Item("attack", name, "", _text(type(attack)), example, attack=traits)
    known = items(registry, kind)
    if name not in known:
        raise RequestError(f'there is no {kind} "{name}"; {did_you_mean(name, known)}')
    return known[name]


def _item(entry: Registration) -> Item:
    kind, name = entry.mark.kind, entry.mark.name
    example, attack = _SETTING.get(kind, "").format(name), None
    origin = f"plugin {entry.plugin}: {entry.file}" if entry.plugin else None
    parameters = _parameters(entry)
    if issubclass(entry.cls, Attack) and not any(parameter.required for parameter in parameters):
        example, attack = _traits(name, entry.cls.make(entry.mark.preset, name), entry.mark.norms)
    return Item(kind, name, entry.brief.replace("``", ""), _text(entry.cls), example, origin, attack, parameters)


def _traits(name: str, attack: Attack, norms: tuple[Norm, ...]) -> tuple[str, AttackTraits]:
    """An example of a condition, and what only attacks have."""
    norm = norms[0]
    eps = 0.1 if attack.bounded and norm != "none" else None
    example = f"{name}@{_EPS[norm]}" if eps else name
    if attack.refusal(Threat(norm, eps), CLASSES) and not attack.refusal(Threat(norm, eps, True), CLASSES):
        example += "->next"
    passes = None if attack.needs_peers else attack.passes(CLASSES)
    takes_eps = attack.bounded and norms != ("none",)
    return example, AttackTraits(norms, attack.needs, passes, takes_eps, attack.targetable)


def _text(cls: type[Component]) -> str:
    """The paragraphs of the docstring, a line each, without its section on attributes and without markup."""
    text = (inspect.getdoc(cls) or "").partition("\nAttributes:\n")[0].replace("``", "").strip()
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _parameters(entry: Registration) -> tuple[Parameter, ...]:
    hints = typing.get_type_hints(entry.cls, include_extras=True)
    about = field_texts(entry.cls)
    found = []
    for field, name in zip(fields(entry.cls), entry.cls.field_names(), strict=True):
        default = entry.mark.preset.get(name, field.default)
        required = default is MISSING
        schema = _schema(hints[field.name])
        found.append(Parameter(name, required, None if required else plain(default), schema, about.get(field.name, "")))
    return tuple(found)


def _schema(hint: Any) -> Mapping[str, Any]:
    try:
        return TypeAdapter(hint).json_schema()
    except PydanticInvalidForJsonSchema:
        return {}
