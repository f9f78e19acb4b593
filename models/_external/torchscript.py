r"""TorchScript archives (``torch.jit.save``), as far as they cannot touch anything but tensors.

No Python runs when one is loaded, but TorchScript does: ``__setstate__`` at loading, ``forward`` at every call. From
there ``torch.save`` writes files, ``torch.from_file`` reads and writes them, ``ops.image`` reads and writes images,
RPC reaches other machines, ``torch.classes`` makes objects of C++ libraries, and any library that is loaded may have
registered more. So an archive's code is searched before it is loaded: for words, wherever they stand, since TorchScript
lets functions be renamed. Only operators of torch and torchvision are allowed, without those that touch files,
processes or other machines. Names cannot hide in strings: ``getattr`` is allowed with one plain string alone. Operators
on memory (``as_strided`` and those called unsafe) are as safe as torch makes them.
"""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._fuser import optimized_execution

from robbench.core.errors import RequestError
from robbench.core.safe_text import one_line
from robbench.models._external.archive import Archive
from robbench.models._external.fingerprint import bytes_sha256
from robbench.models._external.found import Found, LoadRequest
from robbench.models._external.weights import REMEDY, read_weights

_NAMESPACES = frozenset({"aten", "prim", "prims", "quantized", "torchvision"})
_DENIED = re.compile(r"\b(from_file|save|rpc_\w+|\w*PythonOp)\b|\^|\.\s*[#\\]")
_OPERATORS = re.compile(r"(?<![\w.])ops\b(?:\s*\.\s*(\w+))?")
_CLASSES = re.compile(r"[.\s]classes\b(?:[.\s]+(\w+))?")
_GETATTR = re.compile(r'\bgetattr\b(?!\s*\(\s*[\w.()]+\s*,\s*"[^"\\]*"\s*\))')


def load(wanted: LoadRequest) -> Found:
    """A TorchScript module.

    Raises:
        RequestError: If there is none in the file, or its code could touch more than tensors.
    """
    path = wanted.path(wanted.request.source)
    if not path.is_file():
        raise RequestError(f'there is no file "{wanted.request.source}"')
    if not is_torchscript(path):
        read_weights(path)  # which says what to do about a pickle
        raise RequestError("holds weights alone; name the factory of the network, and this file as --weights (weights)")
    archive = Archive(path)
    check(archive)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated
            network = torch.jit.load(io.BytesIO(path.read_bytes()), map_location="cpu")
    except (RuntimeError, ValueError) as error:
        raise RequestError(f"{path.name} cannot be loaded: {one_line(str(error))}") from None
    code = {name.partition("/")[2]: archive.read(name) for name in archive.names if name.startswith("code/")}
    data = {
        name: archive.read(name)
        for name in archive.names
        if name.startswith(("data/", "constants/")) or name in ("data.pkl", "constants.pkl")
    }
    identity = {
        "weights_sha256": bytes_sha256(data),
        "structure": bytes_sha256({name: text for name, text in code.items() if name.endswith(".py")}),
    }
    return Found(_Script(network), "TorchScript", path.name, identity=identity)


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive of TorchScript, rather than one of weights."""
    try:
        names = torch._C.PyTorchFileReader(io.BytesIO(path.read_bytes())).get_all_records()
    except RuntimeError:
        return False
    return "constants.pkl" in names or any(name.startswith("code/") for name in names)


def check(archive: Archive) -> None:
    """See that the code in an archive can touch nothing but tensors.

    Raises:
        RequestError: At the first thing that could, by name.
    """
    if "data.pkl" not in archive.names or "constants.pkl" not in archive.names:
        raise RequestError("it is TorchScript of a format older than torch 1.4; save it again")
    for name in archive.names:
        if name.endswith(".py"):
            text = archive.text(name)
            _refuse(_DENIED.search(text), name)
            for found in _OPERATORS.finditer(text):
                if found[1] not in _NAMESPACES:
                    _refuse(found, name)
            for found in _CLASSES.finditer(text):
                if found[0].startswith(".") and found[1] != "quantized":
                    _refuse(found, name)
            _refuse(_GETATTR.search(text), name)
    for name in ("data.pkl", "constants.pkl"):
        for found in _CLASSES.finditer(archive.read(name).decode("latin-1")):
            if found[1] not in ("quantized", None):
                _refuse(found, name)


def _refuse(found: re.Match[str] | None, name: str) -> None:
    if found is not None:
        raise RequestError(
            f'"{one_line(found[0], 80)}" in its code ("{name}") could touch files, processes or other code, so that it '
            f"is not loaded: {REMEDY}"
        )


class _Script(nn.Module):
    """TorchScript run operator by operator, so that the first calls round as all others do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        with optimized_execution(False):
            return self.network(images)
