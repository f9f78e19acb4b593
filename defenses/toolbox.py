"""Preprocessors of the Adversarial Robustness Toolbox (Nicolae et al., 2018) as defenses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from robbench.core.errors import RequestError
from robbench.core.global_rng import seeded
from robbench.core.registry import register_defense
from robbench.defenses._preprocessing import Preprocessing

Name = Literal["FeatureSqueezing", "JpegCompression", "SpatialSmoothing"]

# The parameter of each that sets its strength. Left out are preprocessors that draw at random, that change the shape of
# images, that need a network of their own, that act in training alone, and those for sound and video.
_PARAMETERS: Mapping[Name, str] = {
    "FeatureSqueezing": "bit_depth",
    "JpegCompression": "quality",
    "SpatialSmoothing": "window_size",
}


@register_defense("toolbox-preprocessor")
@dataclass(frozen=True)
class ToolboxPreprocessor(Preprocessing):
    """A preprocessor of the Adversarial Robustness Toolbox at inference time, on the CPU.

    Attributes:
        preprocessor: Its class in the toolbox.
        parameter: Its ``bit_depth``, ``quality`` or ``window_size``; the toolbox's default where it is None.
    """

    preprocessor: Name = "SpatialSmoothing"
    parameter: Annotated[int, Field(ge=1)] | None = None

    def __post_init__(self) -> None:
        """Check the fields, and that the class takes the parameter.

        Raises:
            RequestError: If one does not fit, or the class refuses it.
        """
        super().__post_init__()
        if self.parameter is not None:
            try:
                self._build()
            except (TypeError, ValueError) as error:
                raise RequestError(f"parameter = {self.parameter} of {self.preprocessor}: {error}") from None

    def change(self, images: Tensor) -> Tensor:
        """The images as the toolbox changes them."""
        if len(images) == 0:
            return images.clone()
        found, _ = self._build()(images.detach().clamp(0, 1).cpu().numpy())
        return torch.from_numpy(found).to(images.device).to(images.dtype)

    def _build(self) -> Any:
        with seeded(0):  # importing the toolbox draws from the global random state
            from art.defences import preprocessor

        options: dict[str, Any] = {"clip_values": (0.0, 1.0)}
        if self.preprocessor != "FeatureSqueezing":
            options["channels_first"] = True
        if self.parameter is not None:
            options[_PARAMETERS[self.preprocessor]] = self.parameter
        return getattr(preprocessor, self.preprocessor)(**options)
