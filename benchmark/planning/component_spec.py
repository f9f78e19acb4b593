"""Components as they are asked for: ``pgd[steps=20]`` in text, or a table with a name, made into components."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from robbench.core.component import Component
from robbench.core.errors import RequestError
from robbench.core.registry import Kind, Registry
from robbench.core.threat_model import LP_NORMS, Threat
from robbench.results.schema import PartSpec

T = TypeVar("T", bound=Component)

_SIZES = ("eps", "sigma", "std")
"""What components call hyperparameters that are sizes of change in units of a [0, 1] pixel."""


@dataclass(frozen=True)
class Choice(Generic[T]):
    """A component with the name it was asked for by.

    Attributes:
        name: Registered name.
        component: The component.
        source: Hash of its source where it comes from a plugin.
        label: Name and the hyperparameters that differ from what the name means, as it can be asked for again, without
            those that are no part of the identity.
    """

    name: str
    component: T
    source: str | None
    label: str

    def spec(self) -> PartSpec:
        """Everything that identifies it, as plain data."""
        return PartSpec(
            name=self.name,
            label=self.label,
            version=self.component.version,
            source=self.source,
            parameters=plain(self.component.identity()),
        )


def plain(value: Any) -> Any:
    """A value as JSON would give it back: tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def choose(registry: Registry, kind: Kind, wanted: object, where: str) -> Choice[Any]:
    """Make the component that a text or a table asks for.

    Args:
        registry: The known components.
        kind: Kind of the component.
        wanted: ``"name"``, ``"name[key=value,…]"``, or ``{"name": …, key: value, …}``.
        where: File and key in which it stands, for messages.

    Raises:
        RequestError: If it is malformed, unknown, or given parameters that do not fit.
    """
    name, options = _read(wanted, kind, where)
    here = f'{where}: {kind} "{name}"' if where else f'{kind} "{name}"'
    if kind == "attack" and name.startswith("art:"):
        from robbench.attacks.toolbox import toolbox_attack

        return Choice(name, toolbox_attack(name.removeprefix("art:"), options, here), None, _label(name, options))
    entry = registry.entry(kind, name, where)
    component = entry.cls.make({**entry.mark.preset, **options}, here)
    return Choice(name, component, entry.source, _label(name, component.changed(entry.mark.preset)))


def full_choice(choice: Choice[T], component: T) -> Choice[T]:
    """Another component of the same name, whose label says every hyperparameter."""
    return Choice(choice.name, component, choice.source, _label(choice.name, component.identity()))


def size_doubts(choice: Choice[Any], values: int) -> list[str]:
    """What is odd about the sizes of change among a component's hyperparameters.

    Args:
        choice: The component.
        values: Number of values of an image, channels times height times width.
    """
    own = choice.component.parameters()
    norm = next((norm for norm in LP_NORMS if norm == own.get("norm")), LP_NORMS[0])
    sizes = [float(own[name]) for name in _SIZES if isinstance(own.get(name), int | float) and own[name] > 0]
    doubts = (Threat(norm, size).doubt(values) for size in sizes if math.isfinite(size))
    return [f'"{choice.label}": {doubt}' for doubt in doubts if doubt]


def _read(wanted: object, kind: Kind, where: str) -> tuple[str, dict[str, object]]:
    if isinstance(wanted, str):
        return read_text(wanted, where)
    if isinstance(wanted, Mapping) and isinstance(wanted.get("name"), str):
        options = {str(key): value for key, value in wanted.items() if key != "name"}
        return str(wanted["name"]), options
    raise RequestError(f'{wanted!r} is not a {kind}: write "name", "name[key=value]" or a table with a name', where)


def read_text(text: str, where: str) -> tuple[str, dict[str, object]]:
    """Split ``name[key=value,…]`` into the name and the options, whose values stay text.

    Raises:
        RequestError: If the text has another form.
    """
    name, bracket, rest = text.strip().partition("[")
    options: dict[str, object] = {}
    if bracket:
        if not rest.endswith("]"):
            raise RequestError(f'"{text}": the bracket is not closed', where)
        for item in rest[:-1].split(","):
            key, equals, value = item.partition("=")
            if not equals or not key.strip() or not value.strip():
                raise RequestError(f'"{text}": "{item}" is not of the form key=value', where)
            options[key.strip()] = value.strip()
    if not name.strip():
        raise RequestError(f'"{text}" names nothing', where)
    return name.strip(), options


def _label(name: str, options: Mapping[str, object]) -> str:
    inside = ",".join(f"{key}={_text(value)}" for key, value in sorted(options.items()))
    return f"{name}[{inside}]" if inside else name


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return "|".join(_text(item) for item in value) if isinstance(value, list | tuple) else str(value)


def split_outside_brackets(text: str, separator: str) -> list[str]:
    """The parts of a text between separators that do not stand inside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def row_label(
    architecture: Choice[Any],
    objective: Choice[Any],
    defenses: Sequence[Choice[Any]],
    balancer: Choice[Any],
    usual_architecture: str,
) -> str:
    """What a row is called that has no name.

    Args:
        architecture, objective, defenses, balancer: The components of its model.
        usual_architecture: The architecture that goes without saying.
    """
    training = "+".join(defense.label for defense in defenses)
    parts = [objective.label, "no defense" if training == "none" else training]
    if balancer.name != "none":
        parts.append(balancer.label)
    if architecture.label != usual_architecture:
        parts.append(architecture.label)
    return " · ".join(parts)
