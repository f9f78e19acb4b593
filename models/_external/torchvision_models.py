"""``torchvision:NAME``: the classification models of torchvision, with random, published or other weights."""

from __future__ import annotations

from typing import Any

from robbench.core.errors import RequestError, did_you_mean, explain
from robbench.models._external.fingerprint import argument_identity
from robbench.models._external.found import Found, LoadRequest, Metadata
from robbench.models._external.normalization import MODEL, Normalization
from robbench.models._external.weights import load_weights, random_note, read_weights


def load(wanted: LoadRequest) -> Found:
    """A model of torchvision.

    Its weights are random ones, those of a file, or published ones, which torchvision downloads. The metadata are those
    of the published weights; for other weights, those of its default ones where the number of classes is theirs too,
    or where they are asked for.

    Raises:
        RequestError: If there is no such model or no such weights.
    """
    from torchvision import models

    request, name = wanted.request, wanted.request.source.partition(":")[2]
    if name not in models.list_models(module=models):
        raise RequestError(
            f'torchvision has no classifier "{name}"; {did_you_mean(name, models.list_models(module=models))}'
        )
    published: Any = models.get_model_weights(name)
    chosen = published[request.weights] if request.weights in published.__members__ else None
    usual = {} if chosen or wanted.num_classes is None else {"num_classes": wanted.num_classes}
    arguments = usual | request.arguments
    if name in ("googlenet", "inception_v3"):
        arguments.setdefault("init_weights", True)  # which silences a warning that the default will change
    try:
        network = models.get_model(name, weights=chosen, **arguments)
    except Exception as error:
        raise RequestError(f"torchvision:{name} cannot be made: {explain(error)}") from None
    if request.weights and chosen is None:
        if not wanted.path(request.weights).is_file():
            raise RequestError(
                f'there is no file "{request.weights}", and torchvision publishes none of that name for {name}; '
                f"known: {', '.join(published.__members__)}"
            )
        load_weights(network, read_weights(wanted.path(request.weights)), wanted.path(request.weights).name)
    described = chosen or getattr(published, "DEFAULT", None)
    classes = len(described.meta.get("categories", ())) if described else 0
    fits = chosen is not None or classes == wanted.num_classes or request.normalization == MODEL
    identity = {"code_sha256": None, "factory": name, "arguments": argument_identity(request.arguments, wanted.folder)}
    metadata = _metadata(described) if described and fits else Metadata()
    return Found(network, "torchvision", f"{name} (torchvision)", metadata, identity, notes=random_note(request))


def _metadata(weights: Any) -> Metadata:
    transforms = weights.transforms()
    size = transforms.crop_size
    return Metadata(
        Normalization(tuple(map(float, transforms.mean)), tuple(map(float, transforms.std))),
        (int(size[0]), int(size[-1])),
        source=weights.url,
    )
