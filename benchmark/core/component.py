"""What every component is: a frozen dataclass whose fields are its validated hyperparameters."""

from __future__ import annotations

import abc
import functools
import inspect
import re
import typing
from collections.abc import Hashable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from robbench.core.errors import RequestError, did_you_mean


class NoIdentity:
    """Marks a field of a component as no part of its identity, as in ``path: Annotated[str, NoIdentity] = ""``.

    For a field that only says where something lies or how it is computed (a path, a cache, a number of threads) and
    cannot change a result. It is left out of keys, of labels and of records; the files that a path leads to identify
    themselves by their content.
    """


class OmittedAtDefault:
    """Marks a field that a component got after results of it were stored, as in ``Annotated[int, OmittedAtDefault]``.

    At its default it is left out of the identity, so that keys are what they were before there was the field.
    """


@dataclass(frozen=True)
class AskedAs:
    """The name that a field is asked for by, where its own is that of something else.

    As in ``form: Annotated[str, AskedAs("version")] = "standard"``. Texts, keys and labels have that name.
    """

    name: str


@dataclass(frozen=True)
class Component(abc.ABC):  # noqa: B024 - what is abstract differs from kind to kind
    """A named thing of the benchmark.

    Fields are checked against their annotations when a component is made; ``Annotated[int, Field(ge=1)]`` with
    ``pydantic.Field`` adds bounds. Together with ``version``, which is raised when a component's results change, they
    are its cache identity, except fields marked with ``NoIdentity``.
    """

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Check every field against its annotation.

        Raises:
            RequestError: If a value does not fit, naming the field and the value.
        """
        for name, adapter in _adapters(type(self)).items():
            value = getattr(self, name)
            value = _tuples(value)
            try:
                object.__setattr__(self, name, adapter.validate_python(value, strict=True))
            except ValidationError as error:
                asked = _names(type(self))[name]
                raise RequestError(f"{asked} = {value!r}: {error.errors()[0]['msg']}") from None

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """The names of the hyperparameters."""
        return tuple(_names(cls).values())

    @classmethod
    def make(cls, options: Mapping[str, object], where: str) -> typing.Self:
        """A component with some hyperparameters set and the others at their defaults.

        Args:
            options: Values by field name. A string is also tried as the number or truth value that it spells.
            where: What is being made and where it was asked for, for messages.

        Raises:
            RequestError: If a name is unknown, a value does not fit, or a required one is missing.
        """
        for name in options:
            if name not in cls.field_names():
                raise RequestError(f'unknown parameter "{name}"; {did_you_mean(name, cls.field_names())}', where)
        for field, name in zip(fields(cls), cls.field_names(), strict=True):
            if name not in options and field.default is MISSING and field.default_factory is MISSING:
                raise RequestError(f'parameter "{name}" is required', where)
        asked = {name: options[name_asked] for name, name_asked in _names(cls).items() if name_asked in options}
        values = {name: fit(_adapters(cls)[name], value) for name, value in asked.items()}
        try:
            return cls(**values)
        except RequestError as error:
            raise RequestError(str(error), where) from None
        except (TypeError, ValueError) as error:
            raise RequestError(f"{dict(options)!r}: {error}", where) from None

    def parameters(self) -> dict[str, Any]:
        """The hyperparameters by name."""
        return {asked: getattr(self, name) for name, asked in _names(type(self)).items()}

    def identity(self) -> dict[str, Any]:
        """The hyperparameters that can change a result, by name."""
        usual, later = self._defaults(), _marked(cast(Hashable, type(self)), OmittedAtDefault)
        return {k: v for k, v in self._identifying().items() if k not in later or v != usual[k]}

    @classmethod
    def unidentifying(cls) -> frozenset[str]:
        """The names of the fields that are marked with ``NoIdentity``."""
        return _marked(cast(Hashable, cls), NoIdentity)

    def changed(self, preset: Mapping[str, object]) -> dict[str, Any]:
        """Those that can change a result and differ from their defaults, or from a preset where it has them."""
        usual = self._defaults() | {k: _tuples(v) for k, v in preset.items()}
        return {name: value for name, value in self._identifying().items() if value != usual[name]}

    def _identifying(self) -> dict[str, Any]:
        return {name: value for name, value in self.parameters().items() if name not in self.unidentifying()}

    def _defaults(self) -> dict[str, Any]:
        return {name: field.default for name, field in zip(self.field_names(), fields(self), strict=True)}


def _adapters(cls: type[Component]) -> dict[str, TypeAdapter[Any]]:
    return _cached_adapters(cast(Hashable, cls))


@functools.cache
def _cached_adapters(cls: type[Component]) -> dict[str, TypeAdapter[Any]]:
    hints = typing.get_type_hints(cls, include_extras=True)
    config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
    return {field.name: TypeAdapter(hints[field.name], config=config) for field in fields(cls)}


def _names(cls: type[Component]) -> Mapping[str, str]:
    """The names that fields are asked for by, in their order."""
    return _cached_names(cast(Hashable, cls))


@functools.cache
def _cached_names(cls: type[Component]) -> Mapping[str, str]:
    hints = typing.get_type_hints(cls, include_extras=True)
    marks = {field.name: getattr(hints[field.name], "__metadata__", ()) for field in fields(cls)}
    return {name: next((mark.name for mark in of if isinstance(mark, AskedAs)), name) for name, of in marks.items()}


@functools.cache
def _marked(cls: type[Component], mark: type) -> frozenset[str]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return frozenset(asked for name, asked in _names(cls).items() if _is_marked(hints[name], mark))


def _is_marked(hint: object, mark: type) -> bool:
    """Whether a type has a mark, wherever it stands in it."""
    return mark in getattr(hint, "__metadata__", ()) or any(_is_marked(part, mark) for part in typing.get_args(hint))


def _tuples(value: object) -> object:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def field_texts(cls: type) -> dict[str, str]:
    """What the docstrings of a class and of those that it is derived from say of each field."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        section = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
        for match in re.finditer(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", section, flags=re.MULTILINE):
            text = " ".join(match[2].split()).replace("``", "")
            found.update(dict.fromkeys(match[1].split(", "), text))
    return found


def number(text: str) -> float:
    """A number or a fraction, as in ``0.1`` and ``8/255``.

    Raises:
        ValueError: If the text is neither.
    """
    top, slash, bottom = text.partition("/")
    try:
        return float(top) / float(bottom) if slash else float(top)
    except ZeroDivisionError:
        raise ValueError(f"{text} divides by zero") from None


def _integer(text: str) -> int:
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{text} has more than 64 bits")
    return value


def _readings(value: object) -> list[object]:
    if not isinstance(value, str):
        return [_tuples(value)]
    readings: list[object] = [value]
    if value in ("true", "false"):
        readings.append(value == "true")
    for read in (_integer, number):
        try:
            readings.append(read(value))
        except ValueError:
            continue
    items = value.split("|")
    for read_item in (int, number, str):
        try:
            readings.append(tuple(read_item(item) for item in items))
        except ValueError:
            continue
    return readings


def fit(adapter: TypeAdapter[Any], value: object) -> object:
    """The reading of a value that fits a type; where none does, one that is only out of bounds, or the value itself."""
    closest = value
    for reading in _readings(value):
        try:
            adapter.validate_python(reading, strict=True)
        except ValidationError as error:
            if any(problem["type"].startswith(("greater_", "less_")) for problem in error.errors()):
                closest = reading
            continue
        return reading
    return closest
