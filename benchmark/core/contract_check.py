"""Whether a component class fulfills its contract, seen from its members alone, before anything is run."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterator

from pydantic import ConfigDict, TypeAdapter, ValidationError

from robbench.core.component import Component

RESERVED = ("name",)
"""Names that no field can have: a table of a grid names the component by it."""


def contract_of(cls: type) -> type[Component] | None:
    """The contract that a class is derived from, or None."""
    return next((parent for parent in cls.__mro__ if _is_ours(parent) and Component in parent.__bases__), None)


def contract_faults(cls: type[Component]) -> Iterator[str]:
    """What in a component class is not as its contract says, a line each.

    Members are compared with those of the nearest class of the package above, be it the contract itself or a component
    that is built on.

    Args:
        cls: A class that is derived from a contract.
    """
    parameters = cls.__dict__.get("__dataclass_params__")
    if parameters is None or not parameters.frozen:
        yield f"class {cls.__name__} is not a frozen dataclass: write @dataclass(frozen=True) above it"
        return
    for field in dataclasses.fields(cls):
        fault = _field_fault(cls, field.name)
        if fault:
            yield f'class {cls.__name__} has a field "{field.name}": {fault}'
    for name in sorted(cls.__abstractmethods__):
        yield f"class {cls.__name__} lacks {_called(_above(cls, name) or cls, name)}"
    own = [parent for parent in cls.__mro__ if parent is cls or not _is_ours(parent)]
    for name in dict.fromkeys(name for parent in own for name in vars(parent) if not name.startswith("__")):
        above = _above(cls, name)
        fault = _member_fault(cls, above, name) if above and name not in cls.__abstractmethods__ else None
        if fault:
            yield fault


def _is_ours(cls: type) -> bool:
    return cls.__module__.startswith("robbench.")


def _above(cls: type, name: str) -> type | None:
    """The nearest class of the package above a class that has a member of a name."""
    return next((parent for parent in cls.__mro__[1:] if _is_ours(parent) and name in vars(parent)), None)


def _field_fault(cls: type, name: str) -> str | None:
    above = _above(cls, name)
    if name in RESERVED:
        return "a grid names the component by that word"
    if above is None or (name in getattr(above, "__dataclass_fields__", ()) and name not in _class_variables(above)):
        return None
    if name in _class_variables(above):
        return f"that is a class variable of {above.__name__}, to be annotated with ClassVar or not at all"
    return f"that is a method of {above.__name__}" if _is_method(vars(above)[name]) else None


def _class_variables(cls: type) -> dict[str, object]:
    """The types of a class's variables by name."""
    hints = typing.get_type_hints(cls, include_extras=True)
    variables = {name: hint for name, hint in hints.items() if typing.get_origin(hint) is typing.ClassVar}
    return {name: typing.get_args(hint)[0] for name, hint in variables.items()}


def _member_fault(cls: type, above: type, name: str) -> str | None:
    wanted, found = inspect.getattr_static(above, name), inspect.getattr_static(cls, name)
    if _is_method(wanted):
        if not _is_method(found):
            what = "a property" if isinstance(found, property) else repr(found)
            return f"{cls.__name__}.{name} is {what}, not a method like {_called(above, name)}"
        reason = _mismatch(_signature(found), _signature(wanted))
        if inspect.iscoroutinefunction(found):
            reason = "it is a coroutine"
        return f"{_called(cls, name)} does not stand in for {_called(above, name)}: {reason}" if reason else None
    kind: typing.Any = _class_variables(above).get(name)
    if kind is not None and not isinstance(found, property):
        try:
            TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(found, strict=True)
        except ValidationError as error:
            return f"{cls.__name__}.{name} is {found!r}: {error.errors()[0]['msg']}"
    return None


def _is_method(member: object) -> bool:
    return callable(member) or isinstance(member, classmethod | staticmethod)


def _signature(member: typing.Any) -> inspect.Signature:
    """What a method takes when it is called on a component."""
    static = isinstance(member, staticmethod)
    signature = inspect.signature(member.__func__ if static or isinstance(member, classmethod) else member)
    return signature.replace(parameters=list(signature.parameters.values())[0 if static else 1 :])


def _called(cls: type, name: str) -> str:
    """A method as it is called, without its annotations."""
    parameters = _signature(inspect.getattr_static(cls, name)).parameters.values()
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return f"{cls.__name__}.{name}{inspect.Signature(plain)}"


def _mismatch(found: inspect.Signature, wanted: inspect.Signature) -> str | None:
    """Why a method cannot be called like another one, which is called by position; None if it can."""
    names = list(wanted.parameters)
    for arguments in (names, [name for name in names if wanted.parameters[name].default is inspect.Parameter.empty]):
        try:
            taken = found.bind(*arguments).arguments
        except TypeError as error:
            return str(error)
        for name, value in taken.items():
            if isinstance(value, str) and name != value:
                return f'"{name}" stands where "{value}" should'
    return None
