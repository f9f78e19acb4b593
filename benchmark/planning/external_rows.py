"""Rows of a grid that others trained: loaded when the plan is made, since their content identifies them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robbench.core.contracts import Defense
from robbench.core.errors import RequestError
from robbench.data.splits import stratified
from robbench.models._external.request import ExternalRequest
from robbench.planning.component_spec import Choice
from robbench.planning.plan import Data, ExternalJob, model_key
from robbench.results.schema import ExternalSpec, ModelSpec, PartSpec

if TYPE_CHECKING:
    from robbench.models._external.loading import External

QUESTIONED = 200
"""Test images on which the declared normalization is compared with others."""
_PART = PartSpec(name="external", label="external", version=1, parameters={})
_NO_BALANCER = PartSpec(name="none", label="none", version=1, parameters={})


@dataclass(frozen=True)
class Origin:
    """Where a model is looked for.

    Attributes:
        folder: What relative paths are relative to.
        live: The model itself, where it was handed over or is loaded already.
        where: File and key that ask for it, for messages.
    """

    folder: Path
    live: External | None
    where: str


def external_job(
    name: str | None,
    asked: ExternalRequest,
    defenses: Sequence[Choice[Defense]],
    data: Data,
    seed: int,
    device: str,
    origin: Origin,
) -> ExternalJob:
    """The job of a model that others trained, without cells.

    Args:
        name: Name of the row; None to name it after the model.
        asked: The model.
        defenses: What stands in front of it.
        data: What it is tested on.
        seed: Seed of its attacks.
        device: Device type.
        origin: Where it is.

    Raises:
        RequestError: If it cannot be loaded, does not fit the data, or a defense acts in training.
    """
    from robbench.models._external.loading import load_external

    for defense in defenses:
        if defense.component.trains:
            raise RequestError(f'"{defense.label}" acts in training, and nothing is trained here', origin.where)
    channels, height, width = data.decoded.images.shape[1:]
    try:
        found = origin.live or load_external(asked, (channels, height, width), data.num_classes, origin.folder)
    except RequestError as error:
        raise RequestError(str(error), origin.where) from None
    if found.model.num_classes != data.num_classes:
        known, wanted = found.model.num_classes, data.num_classes
        raise RequestError(f"{found.label} knows {known} classes, {data.choice.label} has {wanted}", origin.where)
    doubt = _doubt(found, data)
    named = [defense.label for defense in defenses if defense.name != "none"]
    spec = ModelSpec(
        label=name or " · ".join([found.label, *named]),
        architecture=_PART.model_copy(update={"label": found.label}),
        objective=_PART,
        balancer=_NO_BALANCER,
        defenses=tuple(defense.spec() for defense in defenses),
        recipe={},
        external=ExternalSpec(identity=found.identity, facts=found.facts),
    )
    return ExternalJob(
        key=model_key("float32", device, data.spec, spec, seed, None),
        data=data,
        defenses=tuple(defenses),
        seed=seed,
        spec=spec,
        refusal=None,
        notes=(*found.notes, *([doubt] if doubt else [])),
        asked=asked,
        folder=origin.folder,
        live=origin.live if asked.handed_over else None,
    )


def _doubt(found: External, data: Data) -> str | None:
    """Whether another normalization than the declared one would make much more of the model."""
    from robbench.core.batches import fitting
    from robbench.core.contracts import to_float
    from robbench.models._external.questioning import questioned

    splits = data.splits
    size = fitting(QUESTIONED, data.decoded.images.shape[1:])
    index = splits.test[stratified(splits.labels[splits.test], size, 0)]
    samples = splits.take(data.decoded, index)
    return questioned(found, to_float(samples.images), samples.labels, data.choice.name)
