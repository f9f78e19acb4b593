"""What is asked for when a model is asked for that others trained. Needs no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Answers = Literal["gradients", "scores", "labels"]
"""The most that a model answers: scores that gradients pass, scores, or predicted labels alone."""

# TOML has lists and no tuples.
_Numbers: TypeAlias = Annotated[tuple[float, ...], Field(strict=False)]
_Lengths: TypeAlias = Annotated[tuple[int, ...], Field(strict=False)]


class ExternalRequest(BaseModel):
    """A model that others trained, as it is asked for; what it turns out to be identifies it, not this.

    Attributes:
        source: Where it is: ``file.py:factory``, ``package.module:factory``, ``torchvision:NAME``, ``timm:NAME``,
            ``robustbench:NAME``, ``store:KEY``, or a TorchScript, ``torch.export`` (``.pt2``) or ONNX file.
        weights: File of weights to load into what the factory makes: safetensors, or what
            ``torch.load(weights_only=True)`` reads; for ``torchvision`` and ``timm`` also the name of published ones.
        arguments: Keyword arguments of the factory.
        normalization: Name of a preset, or ``model`` for what the model's own metadata says. Empty for ``model`` where
            there are metadata, otherwise for ``none``.
        mean: Subtracted from images in [0, 1], per channel; in place of a preset.
        std: What they are then divided by, per channel.
        input_size: Height and width that images are resized to inside the model. Empty for those of the metadata where
            there are any, otherwise images stay as they are.
        answers: The most that attacks may ask of it; ``auto`` for what it gives.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    source: str
    weights: str = ""
    arguments: dict[str, Any] = {}
    normalization: str = ""
    mean: _Numbers = ()
    std: _Numbers = ()
    input_size: _Lengths = ()
    answers: Answers | Literal["auto"] = "auto"

    @property
    def handed_over(self) -> bool:
        """Whether the model comes as an object, which no other process can load again."""
        return not self.source or self.source.startswith("store:")
