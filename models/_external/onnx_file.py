"""ONNX files: converted to torch where gradients can be had, otherwise run by onnxruntime for their scores.

An ONNX file is data: a graph of operators. Two things in it reach further, and are refused: tensors kept in other
files, wherever their path leads, unless these lie in the model's own folder; and operators of domains that somebody's
library would have to provide, or that load compiled code (``EPContext``).
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robbench.core.errors import RequestError, explain
from robbench.core.extras import require
from robbench.core.safe_text import one_line
from robbench.models._external.classifier import first_tensor
from robbench.models._external.fingerprint import bytes_sha256
from robbench.models._external.found import Found, LoadRequest, Metadata
from robbench.models._external.layout import Layout, arranged

_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_DENIED = frozenset({"EPContext"})
_TOLERANCE = 1e-3
_DTYPES: dict[str, Any] = {"tensor(float16)": np.float16, "tensor(double)": np.float64}
_CONVERTED = 17
_SPELLED_OUT = [("", "Gelu"), ("", "CastLike")]
_OPSETS = (21, 19, 18, 17, 15, 13)


def load(wanted: LoadRequest) -> Found:
    """The network of an ONNX file.

    Raises:
        RequestError: If there is none in the file, or it reaches beyond its folder and the standard operators.
    """
    path = wanted.path(wanted.request.source)
    if not path.is_file():
        raise RequestError(f'there is no file "{wanted.request.source}"')
    onnx = require("onnx", "onnx", "an ONNX file")
    model = read(onnx, path)
    held = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in held]
    if len(inputs) != 1:
        raise RequestError(f"it takes {len(inputs)} inputs; export it with images as its only one")
    sizes = [size.dim_value or None for size in inputs[0].type.tensor_type.shape.dim]
    layout = Layout.of(sizes, wanted.image_shape)
    network, notes = _network(onnx, model, wanted, layout)
    return Found(
        arranged(network, layout),
        "ONNX",
        path.name,
        Metadata(input_size=layout.input_size),
        _identity(onnx, model),
        layout.batch,
        notes,
    )


def read(onnx: Any, path: Path) -> Any:
    """The model of a file, with tensors from other files in its folder.

    Raises:
        RequestError: See the module.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise RequestError(f"{path.name} cannot be read as ONNX: {explain(error)}") from None
    own = {(function.domain, function.name) for function in model.functions}
    for node in _nodes(model):
        if node.op_type in _DENIED or (node.domain not in _DOMAINS and (node.domain, node.op_type) not in own):
            name = one_line(f"{node.domain}.{node.op_type}".lstrip("."), 80)
            raise RequestError(f'it uses "{name}", which is no standard operator; export it with those of ONNX alone')
    folder = path.resolve().parent
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            place = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
            file = folder / place
            if not place or not file.resolve().is_relative_to(folder) or file.is_symlink() or not file.is_file():
                raise RequestError(
                    f'it keeps "{one_line(tensor.name, 80)}" in "{one_line(place, 80)}", which is no file in its folder'
                )
    try:
        onnx.load_external_data_for_model(model, str(folder))
    except Exception as error:
        raise RequestError(f"the tensors of {path.name} cannot be read: {explain(error)}") from None
    return model


def _graphs(model: Any) -> Iterator[Any]:
    waiting = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _nodes(model: Any) -> Iterator[Any]:
    for graph in _graphs(model):
        yield from graph.node


def _tensors(model: Any) -> Iterator[Any]:
    for graph in _graphs(model):
        yield from getattr(graph, "initializer", ())
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
    for node in _nodes(model):
        for attribute in node.attribute:
            yield from [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]
            for sparse in [*([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else [])]:
                yield from (sparse.values, sparse.indices)


def _identity(onnx: Any, model: Any) -> dict[str, str]:
    """Weights and structure, without comments, which can hold paths."""
    weights = {
        tensor.name: f"{tensor.data_type} {list(tensor.dims)}".encode() + onnx.numpy_helper.to_array(tensor).tobytes()
        for tensor in model.graph.initializer
    }
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for graph in _graphs(bare):
        for part in (graph, *graph.node, *getattr(graph, "input", ()), *getattr(graph, "output", ())):
            for field in ("doc_string", "metadata_props"):
                if hasattr(part, "ClearField") and not isinstance(part, str):
                    part.ClearField(field)
    del bare.graph.initializer[:], bare.metadata_props[:]
    for field in ("doc_string", "producer_name", "producer_version"):
        bare.ClearField(field)
    return {
        "weights_sha256": bytes_sha256(weights),
        "structure": bytes_sha256({"graph": bare.SerializeToString(deterministic=True)}),
    }


# --- running it


def _network(onnx: Any, model: Any, wanted: LoadRequest, layout: Layout) -> tuple[nn.Module, tuple[str, ...]]:
    """The network in torch if that gives what onnxruntime gives, otherwise in onnxruntime."""
    onnxruntime = require("onnxruntime", "onnx", "an ONNX file")
    why = ""
    try:
        runtime = _Runtime(onnxruntime, model)
    except Exception as error:
        raise RequestError(f"onnxruntime cannot run it: {explain(error)}") from None
    for candidate in _dated(onnx, model):
        network, fault = _converted(candidate)
        if network is not None:
            fault = _difference(network, runtime, wanted, layout)
            if not fault:
                return network, ()
        why = why or fault
    return runtime, (f"run by onnxruntime: {why}; another opset may give gradients",)


def _dated(onnx: Any, model: Any) -> Iterator[Any]:
    """The model in older operators, which onnx2torch knows: as it is, converted, and claiming to be older.

    Most operators changed in little; what comes of a copy is compared with the model.
    """
    newest = max((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), default=0)
    yield _plainly_reshaped(onnx, model)
    with contextlib.suppress(Exception):  # where an operator has no older form
        converter = importlib.import_module("onnx.version_converter")
        yield _plainly_reshaped(onnx, converter.convert_version(_spelled_out(onnx, model), min(newest, _CONVERTED)))
    for version in (version for version in _OPSETS if version < newest):
        older = _plainly_reshaped(onnx, model)
        for opset in older.opset_import:
            if opset.domain in ("", "ai.onnx"):
                opset.version = version
        yield older


def _spelled_out(onnx: Any, model: Any) -> Any:
    """The model with some new operators written as the older ones that define them, where this onnx can do that."""
    with contextlib.suppress(Exception):
        inliner = importlib.import_module("onnx.inliner")
        for _ in range(2):  # what the first one brings in has types only after they are inferred
            model = inliner.inline_selected_functions(
                onnx.shape_inference.infer_shapes(model), _SPELLED_OUT, inline_schema_functions=True
            )
    return model


def _plainly_reshaped(onnx: Any, model: Any) -> Any:
    """A copy that reshapes without ``allowzero``, which matters to empty tensors alone."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in _nodes(copy):
        kept = [attribute for attribute in node.attribute if attribute.name != "allowzero"]
        if node.op_type == "Reshape" and len(kept) < len(node.attribute):
            node.ClearField("attribute")
            node.attribute.extend(kept)
    return copy


def _converted(model: Any) -> tuple[nn.Module | None, str]:
    onnx2torch = require("onnx2torch", "onnx", "gradients of an ONNX file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network: nn.Module = onnx2torch.convert(model)
    except Exception as error:
        return None, f"onnx2torch cannot convert it ({one_line(str(error) or type(error).__name__, 120)})"
    return _Quiet(network.eval()), ""


def _difference(converted: nn.Module, runtime: nn.Module, wanted: LoadRequest, layout: Layout) -> str:
    """What keeps a converted network from being the same, or nothing."""
    size = layout.input_size or wanted.image_shape[1:]
    shape = (layout.batch or 1, wanted.image_shape[0], *size)
    apart = 0.0
    try:
        for scale in (1.0, 4.0):
            images = scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))
            with torch.no_grad():
                one, other = (
                    first_tensor(arranged(network, layout)(images), len(images)) for network in (converted, runtime)
                )
            apart = max(apart, float((one - other).abs().max() / (1 + other.abs().max())))
    except Exception as error:
        return f"what onnx2torch makes of it fails ({one_line(str(error), 120)})"
    return "" if apart < _TOLERANCE else f"what onnx2torch makes of it differs by {apart:.1g}"


class _Quiet(nn.Module):
    """A converted network, without what its layers warn of at every call."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.network(images)


class _Runtime(nn.Module):
    """A model in onnxruntime, on the CPU; scores without gradients."""

    def __init__(self, onnxruntime: Any, model: Any) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        given = self.session.get_inputs()[0]
        self.input, self.dtype = given.name, _DTYPES.get(given.type, np.float32)

    def forward(self, images: Tensor) -> Tensor:
        answers = self.session.run(None, {self.input: images.detach().cpu().numpy().astype(self.dtype)})
        scores = [one for one in answers if isinstance(one, np.ndarray) and one.ndim == 2 and one.dtype.kind == "f"]
        return torch.from_numpy(np.asarray((scores or answers)[0]))
