"""``timm:NAME``: the classification models of timm, with random, published or other weights."""

from __future__ import annotations

from typing import Any

from robbench.core.errors import RequestError, did_you_mean, explain
from robbench.core.extras import require
from robbench.models._external.fingerprint import argument_identity
from robbench.models._external.found import Found, LoadRequest, Metadata
from robbench.models._external.normalization import MODEL, Normalization
from robbench.models._external.weights import load_weights, random_note, read_weights

PRETRAINED = "pretrained"
"""What weights are called that timm downloads; which ones is said after a dot in the model's name."""


def load(wanted: LoadRequest) -> Found:
    """A model of timm.

    Its weights are random ones, those of a file, or published ones, which timm downloads. The metadata are those of
    the published weights; for other weights, those of its default ones where the number of classes is theirs too, or
    where they are asked for.

    Raises:
        RequestError: If timm is not installed, or there is no such model or no such weights.
    """
    timm = require("timm", "timm", "timm:NAME")
    request, name = wanted.request, wanted.request.source.partition(":")[2]
    known = timm.is_model(name) or name.startswith(("hf-hub:", "hf_hub:"))
    if not known:
        raise RequestError(f'timm has no model "{name}"; {did_you_mean(name, timm.list_models())}')
    pretrained = request.weights == PRETRAINED
    own = {} if pretrained else {"in_chans": wanted.image_shape[0]}
    if not pretrained and wanted.num_classes is not None:
        own["num_classes"] = wanted.num_classes
    try:
        network = timm.create_model(name, pretrained=pretrained, **(own | request.arguments))
    except Exception as error:
        raise RequestError(f"timm:{name} cannot be made: {explain(error)}") from None
    if request.weights and not pretrained:
        load_weights(network, read_weights(wanted.path(request.weights)), wanted.path(request.weights).name)
    described: dict[str, Any] = network.pretrained_cfg
    fits = pretrained or described.get("num_classes") == wanted.num_classes or request.normalization == MODEL
    identity = {"code_sha256": None, "factory": name, "arguments": argument_identity(request.arguments, wanted.folder)}
    metadata = _metadata(described, fits, "img_size" in request.arguments)
    return Found(network, "timm", f"{name} (timm)", metadata, identity, notes=random_note(request))


def _metadata(described: dict[str, Any], fits: bool, resized: bool) -> Metadata:
    """What is known of a model; where weights are others than the published ones, only what its layers demand."""
    size = tuple(map(int, described["input_size"][1:]))
    demanded = size if described.get("fixed_input_size") and not resized else ()
    if not fits:
        return Metadata(input_size=demanded)
    return Metadata(
        Normalization(tuple(map(float, described["mean"])), tuple(map(float, described["std"]))),
        () if resized else size,
        license=str(described.get("license") or ""),
        source=str(described.get("hf_hub_id") or described.get("url") or ""),
    )
