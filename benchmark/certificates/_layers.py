"""Layers that bounds pass through: what each does to intervals, to linear bounds, and to rounding errors."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input


class Interval(NamedTuple):
    """Bounds of every value, each of shape ``(N, ...)``."""

    lower: Tensor
    upper: Tensor

    @property
    def open(self) -> Tensor:
        """Where zero lies inside, bool."""
        return (self.lower < 0) & (self.upper > 0)

    @property
    def size(self) -> Tensor:
        """The largest magnitude that a value can have."""
        return torch.maximum(self.lower.abs(), self.upper.abs())

    def least(self, rows: Tensor) -> Tensor:
        """The least of linear functions, shape ``(N, M)``, of rows of shape ``(N or 1, M, ...)``."""
        center, radius = (self.upper + self.lower) / 2, (self.upper - self.lower) / 2
        return applied(rows, center) - applied(rows.abs(), radius)


def applied(rows: Tensor, values: Tensor) -> Tensor:
    """Linear functions of values, shape ``(N, M)``.

    Args:
        rows: Coefficients, shape ``(N or 1, M, ...)``.
        values: Shape ``(N or 1, ...)``.
    """
    return (rows.flatten(2) @ values.flatten(1).unsqueeze(2)).squeeze(2)


def gamma(terms: int, unit: float) -> float:
    """Relative error of a sum of so many rounded products in any order (Higham, 2002, section 3.1)."""
    return terms * unit / (1 - terms * unit) if terms * unit < 1 else torch.inf


class Layer(abc.ABC):
    """One operation with its weights in the type of what passes through it."""

    nonlinear: ClassVar[bool] = False
    mixes: ClassVar[bool] = True
    """Whether an output depends on several inputs, which intervals take for independent."""

    @abc.abstractmethod
    def __call__(self, *inputs: Tensor) -> Tensor:
        """The layer itself."""

    @abc.abstractmethod
    def interval(self, *given: Interval) -> Interval:
        """Bounds of the output, from those of the inputs."""

    @abc.abstractmethod
    def backward(self, rows: Tensor, given: Sequence[Interval]) -> tuple[list[Tensor], Tensor | float]:
        """Linear functions of the inputs that lie below linear functions of the output.

        Args:
            rows: Coefficients of the output, shape ``(N, M, ...)``.
            given: Bounds of the inputs, within which this holds.

        Returns:
            Coefficients of each input, shape ``(N, M, ...)``, and the constants, shape ``(N or 1, M)`` or 0.
        """

    def rounding(self, sizes: Sequence[Tensor], unit: float) -> Tensor | None:
        """By how much the output can be off, given the inputs as they were computed; None where it is exact.

        Args:
            sizes: The largest magnitude that each input can have, shape ``(N, ...)``.
            unit: Unit roundoff of the arithmetic.
        """
        return None


class Affine(Layer):
    """A linear map of one input with an offset."""

    terms: int
    """Products that one output sums at the most."""

    @abc.abstractmethod
    def linear(self, values: Tensor) -> Tensor:
        """The map without its offset."""

    @abc.abstractmethod
    def absolute(self, values: Tensor) -> Tensor:
        """The map without its offset, every weight replaced by its magnitude."""

    @abc.abstractmethod
    def transposed(self, rows: Tensor) -> Tensor:
        """The transposed map, on a batch of coefficients of the output."""

    @property
    def offset(self) -> Tensor | None:
        """What is added, in a shape that spreads over a batch of outputs."""
        return None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The layer itself."""
        made = self.linear(*inputs)
        return made if self.offset is None else made + self.offset

    def interval(self, *given: Interval) -> Interval:
        """From center and radius."""
        ((lower, upper),) = given
        center, radius = self((lower + upper) / 2), self.absolute((upper - lower) / 2)
        return Interval(center - radius, center + radius)

    def backward(self, rows: Tensor, given: Sequence[Interval]) -> tuple[list[Tensor], Tensor | float]:
        """Exact, whatever the bounds of the input."""
        passed = self.transposed(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
        return [passed], 0.0 if self.offset is None else applied(rows, self.offset.expand(1, *rows.shape[2:]))

    def rounding(self, sizes: Sequence[Tensor], unit: float) -> Tensor | None:
        """A rounding of each product and of each sum, in whatever order."""
        magnitude = self.absolute(*sizes)
        if self.offset is not None:
            magnitude = magnitude + self.offset.abs()
        return gamma(self.terms + 2, unit) * magnitude


@dataclass(frozen=True)
class Dense(Affine):
    """A linear layer: ``weight`` of shape ``(out, in)``."""

    weight: Tensor
    bias: Tensor | None

    @property
    def terms(self) -> int:  # type: ignore[override]
        return self.weight.shape[1]

    @property
    def offset(self) -> Tensor | None:
        return self.bias

    def linear(self, values: Tensor) -> Tensor:
        return F.linear(values, self.weight)

    def absolute(self, values: Tensor) -> Tensor:
        return F.linear(values, self.weight.abs())

    def transposed(self, rows: Tensor) -> Tensor:
        return rows @ self.weight


@dataclass(frozen=True)
class Convolution(Affine):
    """A convolution of images of shape ``(C, H, W)`` with zeros around them."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    shape: tuple[int, ...]

    @property
    def terms(self) -> int:  # type: ignore[override]
        return self.weight[0].numel()

    @property
    def offset(self) -> Tensor | None:
        return None if self.bias is None else self.bias[:, None, None]

    def linear(self, values: Tensor) -> Tensor:
        return self._convolved(values, self.weight)

    def absolute(self, values: Tensor) -> Tensor:
        return self._convolved(values, self.weight.abs())

    def transposed(self, rows: Tensor) -> Tensor:
        shape = (len(rows), *self.shape)
        found: Tensor = conv2d_input(shape, self.weight, rows, self.stride, self.padding, self.dilation, self.groups)
        return found

    def _convolved(self, values: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(values, weight, None, self.stride, self.padding, self.dilation, self.groups)


@dataclass(frozen=True)
class Scale(Affine):
    """A factor and a shift for every value, or for every channel; both spread over a batch."""

    factor: Tensor
    shift: Tensor
    terms: int = 1

    mixes = False

    @property
    def offset(self) -> Tensor | None:
        return self.shift

    def linear(self, values: Tensor) -> Tensor:
        return values * self.factor

    def absolute(self, values: Tensor) -> Tensor:
        return values * self.factor.abs()

    def transposed(self, rows: Tensor) -> Tensor:
        return rows * self.factor


@dataclass(frozen=True)
class Nonnegative(Affine):
    """A linear map without offset and without a negative weight: average pooling, reshaping, padding with zeros."""

    function: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    terms: int = 0

    @property
    def mixes(self) -> bool:  # type: ignore[override]
        return self.terms > 0

    def linear(self, values: Tensor) -> Tensor:
        return self.function(values)

    def absolute(self, values: Tensor) -> Tensor:
        return self.function(values)

    def transposed(self, rows: Tensor) -> Tensor:
        differentiated = torch.is_grad_enabled() and rows.requires_grad
        with torch.enable_grad():
            inputs = rows.new_zeros(len(rows), *self.shape, requires_grad=True)
            (found,) = torch.autograd.grad(self.function(inputs), inputs, rows, create_graph=differentiated)
        return found

    def rounding(self, sizes: Sequence[Tensor], unit: float) -> Tensor | None:
        return super().rounding(sizes, unit) if self.terms else None


class Sum(Layer):
    """The sum of two inputs, as in residual connections."""

    def __call__(self, *inputs: Tensor) -> Tensor:
        return inputs[0] + inputs[1]

    def interval(self, *given: Interval) -> Interval:
        return Interval(given[0].lower + given[1].lower, given[0].upper + given[1].upper)

    def backward(self, rows: Tensor, given: Sequence[Interval]) -> tuple[list[Tensor], Tensor | float]:
        return [rows, rows], 0.0

    def rounding(self, sizes: Sequence[Tensor], unit: float) -> Tensor | None:
        return unit * (sizes[0] + sizes[1])


@dataclass(frozen=True)
class Joined(Layer):
    """Inputs one behind the other along their channels."""

    channels: tuple[int, ...]

    def __call__(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, dim=1)

    def interval(self, *given: Interval) -> Interval:
        return Interval(self(*(one.lower for one in given)), self(*(one.upper for one in given)))

    def backward(self, rows: Tensor, given: Sequence[Interval]) -> tuple[list[Tensor], Tensor | float]:
        return list(rows.split(self.channels, dim=2)), 0.0


class ReLU(Layer):
    """The positive part; linear bounds as in CROWN with the lower slope that leaves the smaller area (Zhang, 2018)."""

    nonlinear = True

    def __call__(self, *inputs: Tensor) -> Tensor:
        return inputs[0].relu()

    def interval(self, *given: Interval) -> Interval:
        return Interval(given[0].lower.relu(), given[0].upper.relu())

    def backward(self, rows: Tensor, given: Sequence[Interval]) -> tuple[list[Tensor], Tensor | float]:
        ((lower, upper),) = given
        tiny = torch.finfo(lower.dtype).tiny
        above = upper.relu() / (upper.relu() - lower.clamp(max=0)).clamp_min(tiny)
        shift = above * -lower.clamp(max=0)
        below = (upper.relu() > -lower.clamp(max=0)).to(rows.dtype)
        passed = rows * torch.where(rows > 0, below.unsqueeze(1), above.unsqueeze(1))
        return [passed], applied(rows.clamp(max=0), shift)


@dataclass(frozen=True)
class MaxPool(Layer):
    """The largest value of each window of images.

    From below the value with the largest lower bound; from above that value where no other can exceed it, and otherwise
    the largest upper bound.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    nonlinear = True

    def __call__(self, *inputs: Tensor) -> Tensor:
        return F.max_pool2d(inputs[0], self.kernel, self.stride, self.padding)

    def interval(self, *given: Interval) -> Interval:
        return Interval(self(given[0].lower), self(given[0].upper))

    def backward(self, rows: Tensor, given: Sequence[Interval]) -> tuple[list[Tensor], Tensor | float]:
        ((lower, upper),) = given
        least, place = F.max_pool2d(lower, self.kernel, self.stride, self.padding, return_indices=True)
        settled = (least >= self._others(upper, place)).to(rows.dtype)
        top = self(upper) * (1 - settled)
        positive, negative = rows.clamp(min=0), rows.clamp(max=0)
        kept = (positive + negative * settled.unsqueeze(1)).flatten(3)
        places = place.flatten(2).unsqueeze(1).expand(kept.shape)
        passed = rows.new_zeros(*kept.shape[:3], lower[0, 0].numel()).scatter_add(3, places, kept)
        return [passed.unflatten(3, lower.shape[2:])], applied(negative, top)

    def _others(self, upper: Tensor, place: Tensor) -> Tensor:
        """The largest upper bound in each window, without that at one place of the image."""
        (down, right), (high, wide) = self.padding, self.kernel
        padded = F.pad(upper, (right, right, down, down), value=-torch.inf)
        windows = padded.unfold(2, high, self.stride[0]).unfold(3, wide, self.stride[1]).flatten(4)
        rows = torch.arange(place.shape[2], device=place.device)[:, None] * self.stride[0] - down
        columns = torch.arange(place.shape[3], device=place.device) * self.stride[1] - right
        width = upper.shape[3]
        inside = (place // width - rows) * wide + place % width - columns
        return windows.scatter(4, inside.unsqueeze(4), -torch.inf).amax(dim=4)
