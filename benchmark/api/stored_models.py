"""Models of a store, as models that are handed over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robbench.core.errors import RequestError, did_you_mean
from robbench.core.global_rng import seeded
from robbench.core.registry import Registry
from robbench.planning.component_spec import choose
from robbench.results.schema import DatasetSpec, ModelSpec
from robbench.results.store import Store

if TYPE_CHECKING:
    from robbench.core.contracts import Classifier

PREFIX = "store:"


def stored_model(
    source: str, store: Store, registry: Registry, shape: tuple[int, ...], class_names: tuple[str, ...] | None
) -> tuple[Classifier, str]:
    """A model that a grid trained, with its inference-time defenses, and its label.

    Args:
        source: ``store:KEY``; the first digits of the key are enough.
        store: Where it is.
        registry: The known components.
        shape: ``(C, H, W)`` of the images.
        class_names: Names of their classes; None where they have none.

    Raises:
        RequestError: If there is none, or several, or it is made of what is not known; or if it was trained on some of
            the classes in another order, or beside others.
        StoreError: If it is damaged.
    """
    import torch
    from safetensors.torch import load

    from robbench.training.network import NormalizedBackbone

    key = _key(source.removeprefix(PREFIX), store)
    info = store.model_info(key)
    spec, dataset = ModelSpec.model_validate(info["spec"]), DatasetSpec.model_validate(info["dataset"])
    if class_names not in (None, dataset.class_names) and {*class_names} & {*dataset.class_names}:
        trained, given = (", ".join(names[:10]) for names in (dataset.class_names, class_names))
        raise RequestError(f"it was trained on the classes {trained}, the images are of {given}", source)
    architecture = choose(registry, "architecture", spec.architecture.label, source)
    objective = choose(registry, "objective", spec.objective.label, source)
    channels, height, width = shape
    blank = torch.zeros(channels)
    gallery = torch.tensor(dataset.counts["gallery"])
    labels = torch.arange(len(gallery)).repeat_interleave(gallery)
    with seeded(0):  # the first weights, which those that are stored replace
        backbone = NormalizedBackbone(architecture.component.build((channels, height, width)), blank, blank + 1)
        model = objective.component.build(backbone, len(dataset.class_names), labels)
    try:
        model.load_state_dict(load(store.weights(key)))
    except RuntimeError as error:
        size = "×".join(map(str, shape))
        raise RequestError(f"it was not trained on images of {size}: {error}".splitlines()[0], source) from None
    model.eval().requires_grad_(False)
    for defense in reversed(spec.defenses):
        model = choose(registry, "defense", defense.label, source).component.wrap(model)
    return model, f"{spec.label}, seed {info['seed']}"


def _key(wanted: str, store: Store) -> str:
    meant = [key for key in store.keys("models") if wanted and key.startswith(wanted)]
    found = [key for key in meant if store.has_model(key)]
    if len(found) == 1:
        return found[0]
    if found:
        raise RequestError(f'"{wanted}" begins {len(found)} keys; write more of it', PREFIX + wanted)
    for key in meant:
        store.check_model(key)  # which names what is damaged
    known = filter(store.has_model, store.keys("models"))
    raise RequestError(f'{store.root} has no model "{wanted}"; {did_you_mean(wanted, known)}', PREFIX + wanted)
