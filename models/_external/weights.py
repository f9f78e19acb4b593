"""Files of weights: safetensors, and what ``torch.load(weights_only=True)`` reads, which runs no code."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from robbench.core.errors import RequestError
from robbench.core.safe_text import one_line
from robbench.models._external.archive import Archive
from robbench.models._external.request import ExternalRequest

_WRAPPED = ("state_dict", "model_state_dict", "model", "net", "weights")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
REMEDY = (
    "save its weights with safetensors.torch.save_file(net.state_dict(), FILE) or torch.save(net.state_dict(), FILE), "
    "and pass them as weights of the factory that builds it"
)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU.

    Raises:
        RequestError: If it cannot be read without running code, or holds other things than weights.
    """
    if not path.is_file():
        raise RequestError(f'there is no file of weights "{path}"')
    try:
        if path.suffix == ".safetensors":
            return load(path.read_bytes())
        if zipfile.is_zipfile(path):
            Archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickles of another protocol, which are refused or read all the same
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise RequestError(f"{path.name} holds pickled objects beside weights, which is not loaded: {REMEDY}") from None
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError, TypeError) as error:
        raise RequestError(f"{path.name} cannot be read as weights: {one_line(str(error))}") from None
    return _tensors(loaded, path.name)


def load_weights(network: object, weights: Mapping[str, Tensor], name: str) -> None:
    """Put weights into a network, all of them and into all places.

    Names that a wrapper has given a prefix (``module.``, ``_orig_mod.``) are understood.

    Raises:
        RequestError: If they do not fit.
    """
    if not isinstance(network, nn.Module):
        raise RequestError(f"weights are for a module; what the factory gives is {type(network).__name__}")
    own = network.state_dict()
    for prefix in _PREFIXES:
        if not own.keys() & weights.keys() and weights and all(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    other = [key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape]
    for what, keys in (("lacks", missing), ("has besides", extra), ("has in another shape", sorted(other))):
        if keys:
            shown = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
            raise RequestError(
                f"the weights of {name} do not fit: it {what} {len(keys)} of the network's {len(own)} tensors ({shown})"
                if what != "has besides"
                else f"the weights of {name} do not fit: it has {len(keys)} that the network lacks ({shown})"
            )
    network.load_state_dict(dict(weights), strict=True)


def random_note(request: ExternalRequest) -> tuple[str, ...]:
    """What is to be said of a network without weights."""
    return () if request.weights else ("random weights, drawn under a fixed seed",)


def _tensors(loaded: Any, name: str) -> dict[str, Tensor]:
    inner = [loaded[key] for key in _WRAPPED if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping)]
    if len(inner) > 1:
        raise RequestError(f"{name} holds several sets of weights; save the one that is meant alone")
    found = inner[0] if inner else loaded
    if not isinstance(found, Mapping) or not found or not all(isinstance(one, Tensor) for one in found.values()):
        raise RequestError(f"{name} holds no weights by name; save net.state_dict()")
    return {str(key): value for key, value in found.items()}
