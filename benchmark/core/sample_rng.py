"""Randomness that belongs to a sample: the same draws in any batch, any order, on any device.

A stream is a pure function of (seed, names, sample id, draw). Its values come from SplitMix64 (Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", 2014) run as a counter-based generator, vectorised over samples, in
64-bit integer arithmetic, which is exact and identical on every device.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Draw: TypeAlias = str | int | tuple[str | int, ...]

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def digest64(*parts: str | int) -> int:
    """A signed 64-bit number that depends on every part and on their order."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


def _shift(values: Tensor, bits: int) -> Tensor:
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _mix(values: Tensor) -> Tensor:
    values = (values ^ _shift(values, 30)) * _MIX_1
    values = (values ^ _shift(values, 27)) * _MIX_2
    return values ^ _shift(values, 31)


@dataclass(frozen=True)
class Streams:
    """One independent stream of random numbers per sample of a batch.

    Streams have no state: the same call gives the same numbers, and what is to differ carries another ``draw``.
    Indexing selects samples, so that a batch that shrinks keeps each sample's numbers.

    Attributes:
        keys: One key per sample, int64, shape ``(N,)``, on the device where numbers are wanted.
    """

    keys: Tensor

    @classmethod
    def of(cls, ids: Tensor, *names: str | int) -> Streams:
        """The streams of samples.

        Args:
            ids: Sample ids, integers, shape ``(N,)``.
            *names: What else the numbers depend on: seed, attack, stage.
        """
        return cls(_mix(_mix(ids.to(torch.int64) * _GOLDEN) ^ digest64(*names)))

    def __len__(self) -> int:
        """The number of samples."""
        return int(self.keys.shape[0])

    def __getitem__(self, index: Tensor | slice) -> Streams:
        """The streams of some of the samples, by a mask, indices or a slice."""
        return Streams(self.keys[index])

    def fork(self, *names: str | int) -> Streams:
        """Other streams of the same samples, independent of these."""
        return Streams(_mix(self.keys ^ digest64("fork", *names)))

    def bits(self, draw: Draw, shape: tuple[int, ...]) -> Tensor:
        """Random 64-bit patterns, int64, shape ``(N, *shape)``."""
        names = draw if isinstance(draw, tuple) else (draw,)
        keys = _mix(self.keys ^ digest64("draw", *names))
        counter = torch.arange(1, math.prod(shape) + 1, device=keys.device, dtype=torch.int64) * _GOLDEN
        return _mix(keys[:, None] + counter[None, :]).reshape(len(self), *shape)

    def uniform(
        self,
        draw: Draw,
        shape: tuple[int, ...],
        low: float = 0.0,
        high: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Uniform numbers in [low, high), shape ``(N, *shape)``, of 24 random bits each.

        Args:
            draw: Names this draw; another name gives independent numbers.
            shape: Shape per sample.
            low: Lower end, included.
            high: Upper end.
            dtype: Floating type of the result.
        """
        # Two values from every 64 bits, since drawing them takes longer than most of what is done with them.
        count = math.prod(shape)
        halves = self.bits(draw, (-(-count // 2),)).view(torch.int32)[:, :count].reshape(len(self), *shape)
        unit = ((halves >> 8) & 0xFFFFFF).to(dtype) * 2.0**-24
        return unit if (low, high) == (0.0, 1.0) else low + (high - low) * unit

    def normal(self, draw: Draw, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers, shape ``(N, *shape)`` (Box and Muller, 1958; in float64, then rounded)."""
        bits = self.bits(draw, (2, *shape))
        unit = (_shift(bits, 11).to(torch.float64) + 0.5) * 2.0**-53
        radius = torch.sqrt(-2.0 * torch.log(unit[:, 0]))
        return (radius * torch.cos(2.0 * math.pi * unit[:, 1])).to(dtype)

    def integers(self, draw: Draw, shape: tuple[int, ...], high: int) -> Tensor:
        """Integers in [0, high), int64, shape ``(N, *shape)``; ``high`` at most 2**24."""
        return (_shift(self.bits(draw, shape), 40) * high) >> 24

    def signs(self, draw: Draw, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Random signs, -1 or 1, shape ``(N, *shape)``."""
        count = math.prod(shape)
        parts = self.bits(draw, (-(-count // 8),)).view(torch.int8)[:, :count].reshape(len(self), *shape)
        return 1 - 2 * (parts < 0).to(dtype)

    def subsets(self, draw: Draw, population: int, size: int) -> Tensor:
        """Random subsets without repetition, int64 indices below ``population``, shape ``(N, size)``."""
        return torch.argsort(self.bits(draw, (population,)), dim=1, stable=True)[:, :size]
