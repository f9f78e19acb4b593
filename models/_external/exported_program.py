"""Programs of ``torch.export`` (``.pt2``), of which only plain tensors and a checked graph reach torch's loader.

``torch.export.load`` unpickles without restriction: tensors and constants that are marked as pickled, opaque and
TorchScript objects, sample inputs that are no plain tensors, and all weights of the format before torch 2.8. It
evaluates text: shapes go through ``sympify``, guards and names of nodes into Python source. It takes any attribute of
``torch`` for an operator (``torch.os.system`` is one), and runs the native libraries of AOTInductor. So a copy is
loaded, made here: raw tensors, as they are; the graph, with operators of torch and torchvision alone, names that are
names, shapes that are sums and products of symbols; and none of the rest.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import re
import zipfile
from typing import Any

import torch
from torch import nn

from robbench.core.errors import RequestError, explain
from robbench.core.safe_text import one_line
from robbench.core.untrusted_files import parse_json
from robbench.models._external.archive import Archive
from robbench.models._external.classifier import Unswitched
from robbench.models._external.fingerprint import bytes_sha256
from robbench.models._external.found import Found, LoadRequest, Metadata
from robbench.models._external.layout import Layout, arranged

_GRAPH = "models/model.json"
_CONFIGS = {
    "data/weights/": "data/weights/model_weights_config.json",
    "data/constants/": "data/constants/model_constants_config.json",
}
_DROPPED: dict[str, Any] = {"metadata": {}, "guards_code": [], "treespec_namedtuple_fields": {}}
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|torchvision)\.(?!(?:save|from_file)\b)\w+\.\w+"
    r"|torch\.ops\.higher_order\.(cond|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pos|ge|gt|le|lt|eq|ne|getitem|and_|or_|not_)"
    r"|math\.(trunc|ceil|floor|sqrt)|torch\.sym_(int|float|max|min|not|ite|sum|sqrt)",
    re.ASCII,
)
_NAME = re.compile(r"[\w.+<=]*", re.ASCII)
_STRING = re.compile(r"[\w.,> +=:-]*", re.ASCII)
_FUNCTIONS = re.compile(
    "Symbol|Integer|Float|Rational|Add|Mul|Max|Min|Abs|Mod|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|FloorDiv|ModularIndexing|Where|"
    "PythonMod|CleanDiv|CeilToInt|FloorToInt|CeilDiv|FloatTrueDiv|IntTrueDiv|TruncToInt|RoundToInt|ToFloat|Identity"
)
_SYMBOL = re.compile(r"[a-z]{1,8}\d+", re.ASCII)
_TYPES = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"})


def load(wanted: LoadRequest) -> Found:
    """A program of ``torch.export``.

    Raises:
        RequestError: If there is none in the file, or it holds more than tensors and a graph of their operators.
    """
    path = wanted.path(wanted.request.source)
    if not path.is_file():
        raise RequestError(f'there is no file "{wanted.request.source}"')
    archive = Archive(path)
    parts, graph = plain_parts(archive)
    try:
        program = torch.export.load(_packed(parts))
        network = module_of(program)
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(f"{path.name} cannot be loaded: {explain(error)}; export it again with this torch") from None
    layout = Layout.of(_input_sizes(graph), wanted.image_shape)
    weights = {name: content for name, content in parts.items() if name.startswith("data/")}
    return Found(
        arranged(Unswitched(network), layout),
        "torch.export",
        path.name,
        Metadata(input_size=layout.input_size),
        {"weights_sha256": bytes_sha256(weights), "structure": bytes_sha256({"graph": parts[_GRAPH]})},
        layout.batch,
    )


def module_of(program: torch.export.ExportedProgram) -> nn.Module:
    """The program as a module, without the guards that newer versions of torch put before it."""
    given = {"check_guards": False} if "check_guards" in inspect.signature(program.module).parameters else {}
    return program.module(**given)


def plain_parts(archive: Archive) -> tuple[dict[str, bytes], dict[str, Any]]:
    """What is loaded of an archive: records by name, and the graph.

    Raises:
        RequestError: If it holds anything that would be unpickled or run.
    """
    names = set(archive.names)
    if _GRAPH not in names or not names.issuperset(_CONFIGS.values()):
        raise RequestError("it holds no program as torch 2.8 or newer writes it; export it again")
    parts: dict[str, bytes] = {
        name: archive.read(name) for name in ("archive_format", "archive_version", "byteorder") if name in names
    }
    for folder, config in _CONFIGS.items():
        content = _json(archive, config)
        for name, entry in content["config"].items():
            file = entry["path_name"]
            if entry["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", file) or folder + file not in names:
                raise RequestError(f'it holds "{one_line(name, 80)}" as a pickled object, which is not loaded')
            parts[folder + file] = archive.read(folder + file)
        _check(content)
        parts[config] = _dumped(content)
    graph = _without_comments(_json(archive, _GRAPH))
    _check(graph)
    parts[_GRAPH] = _dumped(graph)
    parts["data/sample_inputs/model.pt"] = b""
    return parts, graph


def _json(archive: Archive, name: str) -> Any:
    try:
        return json.loads(archive.text(name))
    except (ValueError, RecursionError) as error:
        raise RequestError(f'"{name}" in it cannot be read: {one_line(str(error), 200)}') from None


def _dumped(content: object) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _without_comments(value: Any) -> Any:
    """Without what says where nodes come from, which holds paths, and without what would be compiled."""
    if isinstance(value, dict):
        return {key: _DROPPED[key] if key in _DROPPED else _without_comments(one) for key, one in value.items()}
    return [_without_comments(one) for one in value] if isinstance(value, list) else value


def _packed(parts: dict[str, bytes]) -> io.BytesIO:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, content in {**parts, "version": b"3"}.items():
            archive.writestr(f"model/{name}", content)
    packed.seek(0)
    return packed


def _check(value: Any, key: str = "") -> None:
    """See that no text would do more than name something."""
    if isinstance(value, dict):
        for name, one in value.items():
            if not _NAME.fullmatch(name):
                raise RequestError(f'it has "{one_line(name, 80)}" for a name')
            _check(one, name)
    elif isinstance(value, list):
        for one in value:
            _check(one, key)
    elif isinstance(value, str):
        if key in ("target", "as_operator") and not _OPERATOR.fullmatch(value):
            raise RequestError(f'it calls "{one_line(value, 80)}", which is no operator of torch on tensors alone')
        if key == "expr_str":
            _check_shape(value)
        elif key in ("in_spec", "out_spec"):
            _check_spec(parse_json(value))
        elif not (_STRING if key in ("as_string", "as_strings") else _NAME).fullmatch(value):
            raise RequestError(f'it has "{one_line(value, 80)}" for "{key}"')


def _check_shape(text: str) -> None:
    """See that an expression of a shape has symbols, numbers and the functions of shapes alone."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval"))) if len(text) < 10_000 else [None]
    except (SyntaxError, ValueError, RecursionError):
        nodes = [None]
    for node in nodes:
        good = isinstance(
            node,
            ast.Expression
            | ast.Call
            | ast.Load
            | ast.keyword
            | ast.BinOp
            | ast.UnaryOp
            | ast.Add
            | ast.Sub
            | ast.Mult
            | ast.FloorDiv
            | ast.Div
            | ast.USub
            | ast.Compare
            | ast.cmpop,
        )
        good = good or (isinstance(node, ast.Name) and any(one.fullmatch(node.id) for one in (_FUNCTIONS, _SYMBOL)))
        if isinstance(node, ast.Constant):
            good = not isinstance(node.value, str | bytes) or bool(_SYMBOL.fullmatch(str(node.value)))
        if not good:
            raise RequestError(f'it has a shape "{one_line(text, 80)}", which is more than a sum of products')


def _check_spec(spec: Any) -> None:
    """See that inputs and outputs are tuples, lists and dictionaries of tensors."""
    if isinstance(spec, list):
        for one in spec:
            _check_spec(one)
    elif isinstance(spec, dict):
        names = parse_json(spec["context"] or "null") if isinstance(spec["context"], str) else spec["context"]
        if spec["type"] not in _TYPES or not (names is None or isinstance(names, list)):
            raise RequestError(f'it takes or returns a "{one_line(spec["type"], 80)}"; let it return tensors')
        if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names or ()):
            raise RequestError("it takes or returns a dictionary with other keys than names")
        _check_spec(spec["children_spec"])


def _input_sizes(graph: dict[str, Any]) -> list[int | None]:
    """The shape of its only input, None for what is left open."""
    inner = graph["graph_module"]
    specs = [spec["user_input"]["arg"] for spec in inner["signature"]["input_specs"] if "user_input" in spec]
    if len(specs) != 1 or "as_tensor" not in specs[0]:
        raise RequestError(f"it takes {len(specs)} inputs; export it with images as its only one")
    values = inner["graph"]["tensor_values"][specs[0]["as_tensor"]["name"]]
    return [size.get("as_int") for size in values["sizes"]]
