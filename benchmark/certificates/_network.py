"""A model as a list of layers that bounds can pass through; what cannot be bounded is refused by its name."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from robbench.certificates._functions import FUNCTIONS, At, Call, Node, Steps, flat
from robbench.certificates._layers import Layer, Scale
from robbench.certificates._modules import MODULES, Make
from robbench.core.certificate import NoCertificate
from robbench.core.errors import explain
from robbench.models._external.classifier import ExternalClassifier

TRACED = 2
"""Images that shapes are found with: a step that mixes images does not keep their number."""


@dataclass(frozen=True)
class Evaluated:
    """A network on some images.

    Attributes:
        layers: Its layers from the second position on, in order; the first position is the images'.
        inputs: Of each layer, positions of what it is given.
        values: What stands at each position, shape ``(N, ...)``.
    """

    layers: tuple[Layer, ...]
    inputs: tuple[tuple[int, ...], ...]
    values: tuple[Tensor, ...]


@dataclass(frozen=True)
class Network:
    """The layers of a model in the order in which they are computed, the scores last."""

    nodes: tuple[Node, ...]

    @classmethod
    def of(cls, model: nn.Module, image_shape: Sequence[int]) -> Network:
        """The layers of a model, traced; its weights are read anew whenever images pass.

        Args:
            model: From images in [0, 1] to scores.
            image_shape: ``(C, H, W)``.

        Raises:
            NoCertificate: If it cannot be traced, or a layer cannot be bounded.
        """
        weights = next((one for one in model.parameters() if one.is_floating_point()), torch.zeros(()))
        images = torch.full((TRACED, *image_shape), 0.5, dtype=weights.dtype, device=weights.device)
        steps = Steps([], [images])
        with torch.no_grad():
            end = _read(steps, model, 0)
        if not steps.nodes or end != len(steps.nodes):
            raise NoCertificate("no layer turns the images into scores")
        return cls(tuple(steps.nodes))

    def __call__(self, images: Tensor) -> Evaluated:
        """The network on images, in their type; batch normalization in training mode goes by these images."""
        layers: list[Layer] = []
        values = [images]
        for node in self.nodes:
            given = [values[at] for at in node.inputs]
            layers.append(node.make(given))
            values.append(layers[-1](*given))
        return Evaluated(tuple(layers), tuple(node.inputs for node in self.nodes), tuple(values))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return type_before_parametrizations(module) in MODULES or super().is_leaf_module(module, name)


def _read(steps: Steps, module: nn.Module, start: int) -> int:
    """Append a module's layers, and say at which position it ends."""
    if isinstance(module, ExternalClassifier):
        return _external(steps, module, start)
    if type_before_parametrizations(module) in MODULES:
        return steps.module(module, type(module).__name__, start)
    name = type(module).__name__
    try:
        graph = _Tracer().trace(module)
    except Exception as error:
        raise NoCertificate(f"{name} cannot be traced, so its layers are not known: {explain(error)}") from None
    known: dict[fx.Node, object] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            known[node] = At(start) if not known else node.args[0] if node.args else None
        elif node.op == "output":
            found = _replaced(node.args[0], known)
            if isinstance(found, At):
                return found.position
            raise NoCertificate(f"{name} does not return scores alone")
        else:
            known[node] = _step(steps, node, module, known)
    raise NoCertificate(f"{name} returns nothing")


def _external(steps: Steps, model: ExternalClassifier, start: int) -> int:
    if model.answers != "gradients":
        raise NoCertificate(f"the model answers {model.answers} alone, so its layers are not known")
    if model.input_size and model.input_size != tuple(steps.values[start].shape[2:]):
        raise NoCertificate("images are resized inside the model, which cannot be bounded")
    return _read(steps, model.network, steps.add("normalization", _normalization(model), start))


def _step(steps: Steps, node: fx.Node, root: nn.Module, known: Mapping[fx.Node, object]) -> object:
    args, kwargs = _replaced(node.args, known), _replaced(node.kwargs, known)
    if node.op == "get_attr":
        return operator.attrgetter(str(node.target))(root)
    places = [one.position for one in flat((args, kwargs)) if isinstance(one, At)]
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        if len(places) != 1 or not isinstance(args[0], At):
            raise NoCertificate(f"{_called(node, module)} takes other than one input")
        return At(steps.module(module, _called(node, module), places[0]))
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))
    if not places or (name in _ABOUT and len(places) == 1):
        return _constant(node, *_concrete((args, kwargs), steps.values))
    read = FUNCTIONS.get(name.strip("_"))
    if read is None:
        raise NoCertificate(f'"{node.name}" ({name}) cannot be bounded')
    return read(steps, Call(f'"{node.name}" ({name})', args, kwargs))


def _called(node: fx.Node, module: nn.Module) -> str:
    return f'"{node.target}" ({type(module).__name__})'


def _replaced(value: Any, known: Mapping[fx.Node, object]) -> Any:
    return fx.node.map_arg(value, cast(Any, known).__getitem__)


def _concrete(value: Any, values: Sequence[Tensor]) -> Any:
    if isinstance(value, At):
        return values[value.position]
    if isinstance(value, tuple | list):
        return type(value)(_concrete(one, values) for one in value)
    return {key: _concrete(one, values) for key, one in value.items()} if isinstance(value, Mapping) else value


_ABOUT = frozenset(("size", "dim", "getattr", "numel", "ndimension", "assert"))
"""What is asked about shapes alone."""


def _constant(node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> object:
    """What a step is that does not depend on the images but for their shape."""
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.target is getattr and args[1] not in ("shape", "ndim", "dtype", "device"):
        raise NoCertificate(f'"{node.name}" (.{args[1]}) cannot be bounded')
    return cast(Callable[..., object], node.target)(*args, **kwargs)


def _normalization(model: ExternalClassifier) -> Make:
    def make(given: Sequence[Tensor]) -> Layer:
        mean, std = model.mean.to(given[0]), model.std.to(given[0])
        return Scale(1 / std, -mean / std, terms=3)

    return make
