"""What is asked for when a model is asked for that others trained. Needs no torch."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

T = TypeVar("T", int, float)

Answers = Literal["gradients", "scores", "labels"]
"""The most that a model answers: scores that gradients pass, scores, or predicted labels alone."""


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _finite(values: tuple[float, ...]) -> tuple[float, ...]:
    if not all(map(math.isfinite, values)):
        raise ValueError("takes finite numbers")
    return values


def _positive(values: tuple[T, ...]) -> tuple[T, ...]:
    if not all(value > 0 for value in values):
        raise ValueError("takes numbers above 0")
    return values


def _height_and_width(values: tuple[int, ...]) -> tuple[int, ...]:
    if len(values) > 2:
        raise ValueError("takes a height and a width")
    return values * 2 if len(values) == 1 else values


class ExternalRequest(BaseModel):
    """A model that others trained, as it is asked for; what it turns out to be identifies it, not this.

    Attributes:
        source: Where it is: ``file.py:factory``, ``package.module:factory``, ``torchvision:NAME``, ``timm:NAME``,
            ``robustbench:NAME``, ``store:KEY``, or a TorchScript, ``torch.export`` (``.pt2``) or ONNX file.
        weights: File of weights to load into what the factory makes: safetensors, or what
            ``torch.load(weights_only=True)`` reads. For ``torchvision`` also the name of published ones, for ``timm``
            also ``pretrained``.
        arguments: Keyword arguments of the factory.
        normalization: Name of a preset, or ``model`` for what the model's own metadata says. Empty for ``model`` where
            there are metadata, otherwise for ``none``.
        mean: Subtracted from images in [0, 1], per channel or one for all; in place of a preset.
        std: What they are then divided by, per channel or one for all.
        input_size: Height and width that images are resized to inside the model; one number for both. Empty for those
            of the metadata where there are any, otherwise images stay as they are.
        answers: The most that attacks may ask of it; ``auto`` for what it gives.
        license: Its license, for model cards.
        origin: Who trained it and where it was published, for model cards.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    source: str
    weights: str = ""
    arguments: dict[str, Any] = {}
    normalization: str = ""
    mean: Annotated[tuple[float, ...], BeforeValidator(_as_tuple), AfterValidator(_finite)] = ()
    std: Annotated[
        tuple[float, ...], BeforeValidator(_as_tuple), AfterValidator(_finite), AfterValidator(_positive)
    ] = ()
    input_size: Annotated[
        tuple[int, ...], BeforeValidator(_as_tuple), AfterValidator(_positive), AfterValidator(_height_and_width)
    ] = ()
    answers: Answers | Literal["auto"] = "auto"
    license: str = ""
    origin: str = ""

    @property
    def handed_over(self) -> bool:
        """Whether the model comes as an object, which no other process can load again."""
        return not self.source or self.source.startswith("store:")
