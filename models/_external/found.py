"""What the loader of a format hands over: a network, what tells it from others, and what is written about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robbench.models._external.normalization import Normalization
from robbench.models._external.request import ExternalRequest


@dataclass(frozen=True)
class Metadata:
    """What a model says of itself.

    Attributes:
        normalization: What it was trained with, or None where it does not say.
        input_size: Height and width that it takes, or empty.
        license: Its license, or empty.
        source: Where it was published, or empty.
    """

    normalization: Normalization | None = None
    input_size: tuple[int, ...] = ()
    license: str = ""
    source: str = ""


@dataclass(frozen=True)
class Found:
    """A network as the loader of its format found it.

    Attributes:
        network: A module, a callable on tensors or arrays, or a ``Classifier``.
        format: Name of the format.
        label: Short name without directories.
        metadata: What it says of itself.
        identity: What tells it from others beyond its weights and structure, which are taken from ``network`` where
            they are not given here.
        batch: Images per call that it demands, or 0.
        notes: What a reader should know.
    """

    network: Callable[[Any], Any]
    format: str
    label: str
    metadata: Metadata = Metadata()
    identity: dict[str, Any] = field(default_factory=dict)
    batch: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadRequest:
    """What a loader is asked for.

    Attributes:
        request: The request.
        image_shape: ``(C, H, W)`` of the images.
        num_classes: Number of classes K; None where the model tells it.
        folder: What relative paths are relative to.
    """

    request: ExternalRequest
    image_shape: tuple[int, int, int]
    num_classes: int | None
    folder: Path

    def path(self, name: str) -> Path:
        """A file of the request."""
        return self.folder / Path(name).expanduser()
