"""From a request, or from a live object, to a classifier with what identifies it."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from robbench.core.contracts import Classifier
from robbench.core.errors import RequestError, explain
from robbench.core.global_rng import seeded
from robbench.core.process_state import ProcessState
from robbench.core.safe_text import file_text
from robbench.models._external import (
    exported_program,
    factory,
    onnx_file,
    robustbench_models,
    timm_models,
    torchscript,
    torchvision_models,
)
from robbench.models._external.classifier import Function, Unswitched, probed
from robbench.models._external.fingerprint import code_sha256, modules_of, structure_sha256, weights_sha256
from robbench.models._external.found import Found, LoadRequest
from robbench.models._external.normalization import NONE, declared
from robbench.models._external.request import Answers, ExternalRequest
from robbench.models._external.weights import REMEDY

_SEED = 0
_HALVES = frozenset({"torch.float16", "torch.bfloat16"})


@dataclass(frozen=True)
class Format:
    """A way in which a source is given.

    Attributes:
        example: How such a source looks, or empty for what is refused.
        suits: Whether a source is given in this way.
        load: Loads it.
        built: Whether the network is built, from arguments and weights, rather than read with them.
    """

    example: str
    suits: Callable[[str], bool]
    load: Callable[[LoadRequest], Found]
    built: bool = False


def _zoo(name: str) -> Callable[[str], bool]:
    return lambda source: source.startswith(f"{name}:")


def _file(*suffixes: str) -> Callable[[str], bool]:
    return lambda source: source.lower().endswith(suffixes)


def _refused(remedy: str) -> Callable[[LoadRequest], Found]:
    def load(wanted: LoadRequest) -> Found:
        raise RequestError(remedy)

    return load


FORMATS: tuple[Format, ...] = (
    Format("torchvision:resnet18", _zoo("torchvision"), torchvision_models.load, built=True),
    Format("timm:resnet18", _zoo("timm"), timm_models.load, built=True),
    Format("robustbench:Standard", _zoo("robustbench"), robustbench_models.load, built=True),
    Format("net.pt2 (torch.export)", _file(".pt2"), exported_program.load),
    Format("net.onnx", _file(".onnx"), onnx_file.load),
    Format("net.pt (TorchScript)", _file(".pt", ".pth", ".ts", ".torchscript"), torchscript.load),
    Format(
        "weights of a factory",
        _file(".safetensors"),
        _refused("holds weights alone; name the factory of the network, and this file as --weights (weights)"),
    ),
    Format(
        "",
        _file(".pkl", ".pickle", ".bin", ".ckpt", ".joblib", ".npz", ".npy", ".tar"),
        _refused(f"is of a format that can run code when it is loaded, or holds no network: {REMEDY}"),
    ),
    Format(
        "",
        _file(".h5", ".hdf5", ".keras", ".pb", ".tflite", ".mlmodel"),
        _refused("is of another framework; export it as ONNX (tf2onnx for TensorFlow and Keras)"),
    ),
    Format("", _file(".ipynb"), _refused("is a notebook; name a Python file with the factory: net.py:make")),
    Format("net.py:make", lambda source: ".py:" in source, factory.load_from_file, built=True),
    Format(
        "",
        _file(".py"),
        _refused("names no factory in the file; write net.py:make, where make() returns the network"),
    ),
    Format("package.module:make", lambda source: ":" in source, factory.load_from_module, built=True),
)
"""The formats; a source is given in the first that suits it."""


@dataclass(frozen=True)
class External:
    """What a request turned out to be.

    Attributes:
        model: On images in [0, 1], in evaluation mode, its weights frozen, on the CPU.
        label: Short name for rows, without directories.
        identity: JSON that tells it from other models; no path, no clock, no machine.
        facts: JSON for model cards.
        notes: What a reader should know.
    """

    model: Classifier
    label: str
    identity: dict[str, Any]
    facts: dict[str, Any]
    notes: tuple[str, ...]


def load_external(
    request: ExternalRequest, image_shape: tuple[int, int, int], num_classes: int | None, folder: Path | None = None
) -> External:
    """Load a model that others trained.

    Factories and random weights draw from a fixed seed; the random state and the settings of the process are put back.

    Args:
        request: What is asked for.
        image_shape: ``(C, H, W)`` of the images that it will see.
        num_classes: Number of classes K that it has to know; None for as many as it has scores.
        folder: What relative paths are relative to; the working directory where None.

    Raises:
        RequestError: If it cannot be had, would run code on loading, or does not fit the images or the classes.
    """
    wanted = LoadRequest(request, image_shape, num_classes, Path.cwd() if folder is None else folder.absolute())
    source = request.source
    chosen = next((one for one in FORMATS if one.suits(source)), None)
    if chosen is None:
        known = ", ".join(one.example for one in FORMATS if one.example)
        raise RequestError(f"is no model; models are given as {known}", source)
    if not wanted.folder.is_dir():
        raise RequestError(f'there is no folder "{wanted.folder}"', source)
    if chosen.example and not chosen.built and (request.weights or request.arguments):
        raise RequestError("holds its own weights and takes no arguments; leave them out", source)
    try:
        with _undisturbed():
            os.chdir(wanted.folder)  # where a factory looks for the files that its arguments name
            found = _found(chosen, wanted)
            return _external(replace(found, label=file_text(found.label)), wanted)
    except RequestError as error:
        raise RequestError(str(error), source) from error.__cause__


def _found(chosen: Format, wanted: LoadRequest) -> Found:
    try:
        return chosen.load(wanted)
    except RequestError:
        raise
    except Exception as error:  # what a damaged or a hostile file can bring about is not to be listed
        raise RequestError(f"it cannot be loaded: {explain(error)}") from error


def as_external(
    model: object,
    image_shape: tuple[int, int, int],
    num_classes: int | None,
    *,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    normalization: str = "",
    input_size: tuple[int, ...] = (),
    answers: Answers | str = "auto",
    label: str = "",
) -> External:
    """A live object as a model: a copy of a module, a callable, or a ``Classifier``.

    Args:
        model: ``nn.Module`` or callable from normalized images to scores ``(N, K)`` or labels ``(N,)``, as tensors or
            NumPy arrays; a ``Classifier`` is taken as it is.
        image_shape: ``(C, H, W)`` of the images that it will see.
        num_classes: Number of classes K that it has to know; None for as many as it has scores.
        mean: As in ``ExternalRequest``, and so on.
        std: As there.
        normalization: As there.
        input_size: As there.
        answers: As there.
        label: Short name; that of its class or function where empty.

    Raises:
        RequestError: If it does not fit the images or the classes.
    """
    name = label or getattr(model, "__name__", type(model).__name__)
    if not callable(model):
        raise RequestError(f"{name} is no model: neither a module nor anything else that can be called")
    declared = {"mean": tuple(mean), "std": tuple(std), "normalization": normalization, "input_size": tuple(input_size)}
    try:
        request = ExternalRequest.model_validate({"source": name, "answers": answers, **declared})
    except ValidationError as error:
        (first, *_) = error.errors()
        raise RequestError(f'"{first["loc"][0]}": {first["msg"]}', name) from None
    try:
        with _undisturbed():
            found = Found(_copied(model), "Python object", name, identity={"code_sha256": code_sha256(model)})
            return _external(found, LoadRequest(request, image_shape, num_classes, Path()))
    except RequestError as error:
        raise RequestError(str(error), name) from error.__cause__


def as_it_lies(model: object, images: Tensor, num_classes: int | None) -> Classifier:
    """A live object as a classifier around it: nothing is copied or moved.

    Args:
        model: As ``as_external`` takes it, on images in [0, 1]; a module in evaluation mode.
        images: One or more that it is tried on, in [0, 1], where it lies, shape ``(N, C, H, W)``.
        num_classes: Number of classes K; None for as many as it has scores.

    Raises:
        RequestError: If its answers are neither scores nor labels.
    """
    if isinstance(model, Classifier):
        return model
    if not callable(model):
        raise RequestError(f"{type(model).__name__} cannot be asked; give a network or a function")
    networks = (_in_evaluation(model),) if isinstance(model, nn.Module) else _functions(model, [])
    return probed(networks, images, num_classes, NONE, (), "auto", 0).model


def _copied(model: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A copy of a module, which its owner goes on with, without what wraps it for speed."""
    if isinstance(model, torch.export.ExportedProgram):
        model = exported_program.module_of(model)
    while isinstance(model, nn.DataParallel) or hasattr(model, "_orig_mod"):
        model = model.module if isinstance(model, nn.DataParallel) else model._orig_mod
    if not isinstance(model, nn.Module):
        return model
    try:
        with torch.no_grad():  # TorchScript copies its weights by an operator
            return copy.deepcopy(model)
    except Exception as error:
        raise RequestError(f"it cannot be copied: {explain(error)}; pass a function that calls it") from None


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A fixed seed; the random state and the settings of the process are put back."""
    settings = ProcessState.now()
    try:
        with seeded(_SEED):
            yield
    finally:
        settings.restore()


def _external(found: Found, wanted: LoadRequest) -> External:
    if isinstance(found.network, Classifier):
        return _taken(found, found.network, wanted)
    request, notes = wanted.request, list(found.notes)
    normalization = declared(
        request.normalization, request.mean, request.std, found.metadata.normalization, wanted.image_shape[0]
    )
    normalization = normalization.wide(wanted.image_shape[0])
    size = request.input_size or found.metadata.input_size
    if isinstance(found.network, nn.Module) and any(map(is_lazy, found.network.parameters())):
        raise RequestError("it has lazy layers without weights; call it once on an image before it is returned")
    identity = _identity(found)
    if not any(identity[name] for name in ("weights_sha256", "code_sha256", "structure")):
        notes.append("neither its weights nor its code can be read: nothing tells it from others")
    networks = _networks(found.network, notes)
    images = torch.rand(2, *wanted.image_shape, generator=torch.Generator().manual_seed(_SEED))
    result = probed(networks, images, wanted.num_classes, normalization, size, request.answers, found.batch)
    said = {
        "answers": result.model.answers,
        "mean": list(normalization.mean),
        "std": list(normalization.std),
        "input_size": list(size),
    }
    facts = _facts(found, result.model, request) | said | {"channels": wanted.image_shape[0]}
    return External(result.model, found.label, identity | said, facts, (*notes, *result.notes))


def _taken(found: Found, model: Classifier, wanted: LoadRequest) -> External:
    """A classifier as it is, which takes images in [0, 1] already."""
    request = wanted.request
    if request.mean or request.std or request.normalization not in ("", "none") or request.input_size:
        raise RequestError("it is a Classifier, which takes images as they are; leave out mean, std and input_size")
    if wanted.num_classes not in (None, model.num_classes):
        raise RequestError(f"it knows {model.num_classes} classes, the data set has {wanted.num_classes}")
    if request.answers not in ("auto", model.answers):
        raise RequestError(f"it is a Classifier that answers {model.answers}; leave answers out")
    identity = _identity(found) | {"answers": model.answers}
    model.cpu().eval().requires_grad_(False)
    return External(
        model, found.label, identity, _facts(found, model, request) | {"answers": model.answers}, found.notes
    )


def _networks(network: Callable[[Any], Any], notes: list[str]) -> tuple[nn.Module, ...]:
    """The network on the CPU, in single precision where its weights are in half; a callable in both ways to call it."""
    if not isinstance(network, nn.Module):
        return _functions(network, notes)
    network = _in_evaluation(network.cpu())
    halves = {str(getattr(one, "dtype", "")) for one in network.state_dict().values()} & _HALVES
    if halves:
        notes.append(f"weights converted to float32 from {', '.join(sorted(halves)).replace('torch.', '')}")
        network.float()
    return (network,)


def _in_evaluation(network: nn.Module) -> nn.Module:
    try:
        return network.eval()
    except NotImplementedError:
        return Unswitched(network)


def _functions(function: Callable[[Any], Any], notes: list[str]) -> tuple[nn.Module, ...]:
    """A callable in both ways to call it, with tensors and with NumPy arrays."""
    training = [one for one in modules_of(function) if one.training]
    if any(isinstance(one, _BatchNorm) and one.track_running_stats for one in training):
        raise RequestError("it calls a network in training mode, whose batch norm would change; call .eval() on it")
    if any(isinstance(one, _DropoutNd) for one in training):
        notes.append("calls a network in training mode: its dropout is random")
    return Function(function), Function(function, arrays=True)


def _identity(found: Found) -> dict[str, Any]:
    own = {
        "format": found.format,
        "weights_sha256": found.identity.get("weights_sha256") or weights_sha256(found.network),
        "code_sha256": None,
        "structure": found.identity.get("structure") or structure_sha256(found.network),
    }
    return own | {key: value for key, value in found.identity.items() if key not in own or own[key] is None}


def _facts(found: Found, model: Classifier, request: ExternalRequest) -> dict[str, Any]:
    told = {
        "license": request.license or found.metadata.license,
        "source": request.origin or found.metadata.source,
    }
    return {
        "format": found.format,
        "parameters": sum(one.numel() for one in model.parameters()),
        **{key: value for key, value in told.items() if value},
    }
