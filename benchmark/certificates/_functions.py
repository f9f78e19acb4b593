"""Functions and methods of a traced model as layers that bounds can pass through."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from robbench.certificates._layers import Dense, Joined, Layer, ReLU, Scale, Sum
from robbench.certificates._modules import MODULES, Make, averaging, reshaped, weight_of
from robbench.core.certificate import NoCertificate


@dataclass(frozen=True)
class Node:
    """One layer of a network.

    Attributes:
        name: What messages call it.
        make: Reads its weights, which may change between calls.
        inputs: Positions of what it is given, 0 for the images.
    """

    name: str
    make: Make
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class At:
    """A value that depends on the images, by its position."""

    position: int


@dataclass(frozen=True)
class Steps:
    """The layers that were found so far, with what they make of a few images.

    Attributes:
        nodes: Appended to.
        values: What stands at each position, the images first; appended to.
    """

    nodes: list[Node]
    values: list[Tensor]

    def module(self, module: nn.Module, name: str, at: int) -> int:
        """Append a module and say where it stands."""
        read = MODULES.get(type_before_parametrizations(module))
        if read is None or "forward" in vars(module):
            raise NoCertificate(f"{name} cannot be bounded")
        if module._forward_hooks or module._forward_pre_hooks:
            raise NoCertificate(f"{name} has hooks, which cannot be bounded")
        return self.add(name, read(name, module, self.values[at]), at)

    def add(self, name: str, make: Make | None, *inputs: int) -> int:
        """Append a layer and say where it stands; none for what changes nothing."""
        if make is None:
            return inputs[0]
        given = [self.values[at] for at in inputs]
        value = make(given)(*given)
        if value.shape[:1] != given[0].shape[:1]:
            raise NoCertificate(f"{name} mixes images")
        self.nodes.append(Node(name, make, inputs))
        self.values.append(value)
        return len(self.values) - 1


@dataclass(frozen=True)
class Call:
    """A call of a function on what depends on the images."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """One of its arguments."""
        return self.args[place] if place < len(self.args) else self.kwargs.get(name, default)

    def plain(self) -> tuple[int, tuple[Any, ...], Mapping[str, Any]]:
        """The position of its first argument, and the others, none of which may depend on the images."""
        first = self.args[0] if self.args else self.kwargs.get("input")
        rest, named = self.args[1:], {key: one for key, one in self.kwargs.items() if key != "input"}
        if not isinstance(first, At) or any(isinstance(one, At) for one in flat((rest, named))):
            raise NoCertificate(f"{self.name} cannot be bounded on such inputs")
        return first.position, rest, named


def flat(value: object) -> list[object]:
    """What stands in arguments, however deep."""
    if isinstance(value, tuple | list):
        return [one for part in value for one in flat(part)]
    if isinstance(value, Mapping):
        return [one for part in value.values() for one in flat(part)]
    if isinstance(value, slice):
        return flat((value.start, value.stop, value.step))
    return [value]


def _call_relu(steps: Steps, call: Call) -> At:
    at, _, _ = call.plain()
    return At(steps.add(call.name, lambda given: ReLU(), at))


def _shaped_as(function: str) -> Callable[[Steps, Call], At]:
    """A step that lays out each image's values otherwise, in their order."""

    def read(steps: Steps, call: Call) -> At:
        at, rest, named = call.plain()
        value = steps.values[at]
        made = getattr(torch.Tensor, function)(value, *rest, **named)
        if made.shape[:1] != value.shape[:1] or made.numel() != value.numel():
            raise NoCertificate(f"{call.name} mixes images")
        return At(steps.add(call.name, reshaped(made.shape[1:]), at))

    return read


def _kept(steps: Steps, call: Call) -> At:
    at, _, _ = call.plain()
    return At(at)


def _call_dropout(steps: Steps, call: Call) -> At:
    if call.argument(2, "training", True):
        raise NoCertificate(f"{call.name} draws at random, which cannot be bounded")
    return _kept(steps, call)


def _arithmetic(name: str) -> Callable[[Steps, Call], At]:
    """Sums of two values, and a value with a constant."""

    def read(steps: Steps, call: Call) -> At:
        first, second = call.args[0], call.argument(1, "other")
        if call.argument(2, "alpha", 1) != 1 or call.kwargs.get("rounding_mode"):
            raise NoCertificate(f"{call.name} cannot be bounded")
        if isinstance(first, At) and isinstance(second, At):
            same = steps.values[first.position].shape == steps.values[second.position].shape
            if name != "add" or not same:
                raise NoCertificate(f"{call.name} of two values of the network cannot be bounded")
            return At(steps.add(call.name, lambda given: Sum(), first.position, second.position))
        swapped = isinstance(second, At)
        at, constant = (second, first) if swapped else (first, second)
        if swapped and name == "div":
            raise NoCertificate(f"{call.name} by a value of the network cannot be bounded")

        def make(given: Sequence[Tensor]) -> Layer:
            value = torch.as_tensor(constant).to(given[0])
            if value.ndim == given[0].ndim and value.shape[0] != 1:
                raise NoCertificate(f"{call.name} treats images of a batch otherwise than others")
            factor = {"mul": value, "div": 1 / value, "sub": -torch.ones_like(value) if swapped else None}.get(name)
            shift = {"add": value, "sub": value if swapped else -value}.get(name)
            one, zero = torch.ones_like(value), torch.zeros_like(value)
            return Scale(one if factor is None else factor, zero if shift is None else shift, terms=2)

        made = At(steps.add(call.name, make, at.position))
        if steps.values[made.position].shape != steps.values[at.position].shape:
            raise NoCertificate(f"{call.name} changes the shape, which cannot be bounded")
        return made

    return read


def _call_cat(steps: Steps, call: Call) -> At:
    parts, axis = call.args[0], call.argument(1, "dim", 0)
    if not all(isinstance(one, At) for one in parts) or axis not in (1, 1 - steps.values[parts[0].position].ndim):
        raise NoCertificate(f"{call.name} can be bounded along channels alone")
    places = [one.position for one in parts]
    channels = tuple(steps.values[at].shape[1] for at in places)
    return At(steps.add(call.name, lambda given: Joined(channels), *places))


def _call_mean(steps: Steps, call: Call) -> At:
    at, rest, named = call.plain()
    value = steps.values[at]
    axes = rest[0] if rest else named.get("dim")
    listed = [axes] if isinstance(axes, int) else list(axes or ())
    if not listed or any(axis % value.ndim < 1 for axis in listed):
        raise NoCertificate(f"{call.name} mixes images")
    terms = math.prod(value.shape[axis] for axis in listed)
    return At(steps.add(call.name, averaging(lambda x: x.mean(*rest, **named), terms), at))


def _function(module: type[nn.Module]) -> Callable[[Steps, Call], At]:
    """A function that does what a module does, with the same arguments."""

    def read(steps: Steps, call: Call) -> At:
        at, rest, named = call.plain()
        named = {key: one for key, one in named.items() if key != "inplace"}
        built = module(*rest, **named)
        return At(steps.module(built, call.name, at))

    return read


def _call_linear(steps: Steps, call: Call) -> At:
    at, _, _ = call.plain()
    weight, bias = call.argument(1, "weight"), call.argument(2, "bias")
    make: Make = lambda given: Dense(weight_of(weight, given[0]), weight_of(bias, given[0]))  # noqa: E731
    return At(steps.add(call.name, make, at))


FUNCTIONS: Mapping[str, Callable[[Steps, Call], At]] = {
    "relu": _call_relu,
    **{name: _shaped_as(name) for name in ("flatten", "reshape", "view", "squeeze", "unsqueeze")},
    **{name: _kept for name in ("contiguous", "clone", "detach", "float", "double")},
    "dropout": _call_dropout,
    **{name: _arithmetic(name) for name in ("add", "sub", "mul", "div")},
    "truediv": _arithmetic("div"),
    "cat": _call_cat,
    "mean": _call_mean,
    "linear": _call_linear,
    "max_pool2d": _function(nn.MaxPool2d),
    "avg_pool2d": _function(nn.AvgPool2d),
    "adaptive_avg_pool2d": _function(nn.AdaptiveAvgPool2d),
}
