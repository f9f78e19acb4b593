"""Modules as layers that bounds can pass through."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from robbench.certificates._layers import Convolution, Dense, Layer, MaxPool, Nonnegative, ReLU, Scale
from robbench.core.certificate import NoCertificate
from robbench.models._convolution import Conv2d

Make = Callable[[Sequence[Tensor]], Layer]
"""From the inputs of a layer to the layer, its weights in their type."""


def weight_of(value: Tensor | None, like: Tensor) -> Any:
    """A weight in the type of what passes, None where there is none."""
    return None if value is None else value.to(like)


def _linear(name: str, module: Any, value: Tensor) -> Make:
    return lambda given: Dense(weight_of(module.weight, given[0]), weight_of(module.bias, given[0]))


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, tuple | list) else (int(value), int(value))


def _convolution(name: str, module: Any, value: Tensor) -> Make:
    padding, dilation, kernel = module.padding, _pair(module.dilation), _pair(module.kernel_size)
    if isinstance(padding, str):
        around = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        padding = [size // 2 for size in around] if padding == "same" else (0, 0)
        if module.padding == "same" and any(size % 2 for size in around):
            raise NoCertificate(f"{name} pads one side more than the other, which cannot be bounded")
    if module.padding_mode != "zeros":
        raise NoCertificate(f'{name} pads with "{module.padding_mode}", which cannot be bounded')

    def make(given: Sequence[Tensor]) -> Layer:
        return Convolution(
            weight_of(module.weight, given[0]),
            weight_of(module.bias, given[0]),
            _pair(module.stride),
            _pair(padding),
            dilation,
            module.groups,
            tuple(given[0].shape[1:]),
        )

    return make


def _batch_norm(name: str, module: Any, value: Tensor) -> Make:
    if module.running_mean is None and not module.training:
        raise NoCertificate(f"{name} has no statistics, so that images change each other's scores")

    def make(given: Sequence[Tensor]) -> Layer:
        (values,) = given
        if module.training:
            over = [axis for axis in range(values.ndim) if axis != 1]
            mean, variance = values.mean(over), values.var(over, unbiased=False)
        else:
            mean, variance = module.running_mean.to(values), module.running_var.to(values)
        factor = (variance + module.eps).rsqrt() * (1 if module.weight is None else module.weight.to(values))
        shift = (0 if module.bias is None else module.bias.to(values)) - mean * factor
        shape = (1, -1, *[1] * (values.ndim - 2))
        return Scale(factor.reshape(shape), shift.reshape(shape), terms=6)

    return make


def reshaped(shape: Sequence[int]) -> Make:
    """Each image's values in another shape, in their order."""
    inside = tuple(shape)
    return lambda given: Nonnegative(lambda x: x.reshape(len(x), *inside), tuple(given[0].shape[1:]))


def averaging(function: Callable[[Tensor], Tensor], terms: int) -> Make:
    """See ``Nonnegative``."""
    return lambda given: Nonnegative(function, tuple(given[0].shape[1:]), terms)


def _flatten(name: str, module: Any, value: Tensor) -> Make:
    if module.start_dim == 0:
        raise NoCertificate(f"{name} mixes images")
    return reshaped(module(value).shape[1:])


def _max_pool(name: str, module: Any, value: Tensor) -> Make:
    kernel, stride = _pair(module.kernel_size), _pair(module.stride or module.kernel_size)
    if _pair(module.dilation) != (1, 1) or module.ceil_mode or module.return_indices:
        raise NoCertificate(f"{name} with dilation, indices or partial windows cannot be bounded")
    return lambda given: MaxPool(kernel, stride, _pair(module.padding))


def _average_pool(name: str, module: Any, value: Tensor) -> Make:
    if module.divisor_override is not None and module.divisor_override <= 0:
        raise NoCertificate(f"{name} with this divisor cannot be bounded")
    return averaging(module, math.prod(_pair(module.kernel_size)))


def _adaptive_average(name: str, module: Any, value: Tensor) -> Make:
    return averaging(module, math.prod(value.shape[2:]))


def _nothing(name: str, module: nn.Module, value: Tensor) -> None:
    return None


MODULES: Mapping[type[nn.Module], Callable[[str, Any, Tensor], Make | None]] = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    Conv2d: _convolution,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.ReLU: lambda name, module, value: lambda given: ReLU(),
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool2d: _adaptive_average,
    nn.ZeroPad2d: lambda name, module, value: averaging(module, 0),
    nn.Flatten: _flatten,
    # In evaluation mode; training towards bounds leaves them out.
    nn.Dropout: _nothing,
    nn.Dropout2d: _nothing,
    nn.Identity: _nothing,
}
