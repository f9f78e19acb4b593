"""What tells one network from another: hashes of its weights and of its structure, of no path and no name of a file."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import itertools
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_DEEPEST = 8


def weights_sha256(network: object) -> str | None:
    """Hash of all tensors and arrays that a network holds, or None where it holds none.

    Those that are no parameters or buffers count too: constants, and what the function of a callable refers to.
    """
    digest, empty = hashlib.sha256(), True
    for name, values in _arrays(network):
        empty = False
        digest.update(f"{name} {values.dtype} {list(values.shape)}\n".encode())
        digest.update(_bytes(values))
    return None if empty else digest.hexdigest()


def structure_sha256(network: object) -> str | None:
    """Hash of the layers of a module with their settings and of the plain values that they hold, or None."""
    if not isinstance(network, nn.Module):
        return None
    lines = []
    for name, module in network.named_modules():
        plain = {key: value for key, value in vars(module).items() if _is_plain(value) and key != "training"}
        lines.append(f"{name} {type(module).__qualname__} {module.extra_repr()} {sorted(plain.items())}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def code_sha256(network: object) -> str | None:
    """Hash of the source of a callable, or of the layers of a module that are not torch's own; None if unknown."""
    if isinstance(network, nn.Module):
        owners: set[object] = {type(module) for module in network.modules()}
    else:
        inner = getattr(network, "func", network)  # of a partial
        owners = {inner if inspect.isroutine(inner) else type(inner)}
    parts = {}
    for owner in owners:
        if str(getattr(owner, "__module__", "")).partition(".")[0] not in ("torch", "torchvision", "timm", "builtins"):
            with contextlib.suppress(OSError, TypeError):
                parts[getattr(owner, "__qualname__", "")] = inspect.getsource(owner).encode()  # type: ignore[arg-type]
    return bytes_sha256(parts) if parts else None


def bytes_sha256(parts: Mapping[str, bytes]) -> str:
    """Hash of named contents, in whatever order they come."""
    digest = hashlib.sha256()
    for name, content in sorted(parts.items()):
        digest.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


def argument_identity(value: Any, folder: Path) -> Any:
    """A factory's argument as it identifies: the name of a file is replaced by the hash of its content."""
    if isinstance(value, Mapping):
        return {str(key): argument_identity(one, folder) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [argument_identity(one, folder) for one in value]
    if isinstance(value, str) and value:
        file = folder / Path(value).expanduser()
        try:
            if file.is_file():
                return {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        except (OSError, ValueError):
            return value
    return value


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _arrays(network: object) -> Iterator[tuple[str, Tensor | np.ndarray[Any, Any]]]:
    """All tensors and arrays, by where they stand, each once."""
    seen: set[int] = set()

    def walk(name: str, value: object, depth: int) -> Iterator[tuple[str, Tensor | np.ndarray[Any, Any]]]:
        if depth > _DEEPEST or id(value) in seen or isinstance(value, type | types.ModuleType | str | bytes | int):
            return
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, np.ndarray):
            if value.dtype == object:
                yield from members(name, enumerate(value.flat), depth)
            else:
                yield name, value
        elif isinstance(value, torch.jit.ScriptModule):
            yield from value.state_dict().items()
        elif isinstance(value, nn.Module):
            held = {key: one for key, one in vars(value).items() if not key.startswith("_") or key == "__wrapped__"}
            inner = (value._parameters, value._buffers, value._modules, held)
            yield from members(name, itertools.chain(*(part.items() for part in inner)), depth - 1)
        elif isinstance(value, Mapping):
            yield from members(name, value.items(), depth)
        elif isinstance(value, list | tuple):
            yield from members(name, enumerate(value), depth)
        elif isinstance(value, types.FunctionType):
            cells = (cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell))
            named = (value.__globals__[one] for one in value.__code__.co_names if one in value.__globals__)
            yield from members(name, enumerate((*cells, *(value.__defaults__ or ()), *named)), depth)
        elif isinstance(value, types.MethodType):
            yield from members(name, enumerate((value.__self__, value.__func__)), depth)
        elif hasattr(value, "__dict__"):
            yield from members(name, vars(value).items(), depth)

    def members(name: str, values: Any, depth: int) -> Iterator[tuple[str, Tensor | np.ndarray[Any, Any]]]:
        for key, value in values:
            yield from walk(f"{name}.{key}" if name else str(key), value, depth + 1)

    yield from walk("", network, 0)


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is cell.cell_contents
    except ValueError:
        return False


def _bytes(values: Tensor | np.ndarray[Any, Any]) -> bytes:
    if isinstance(values, np.ndarray):
        return np.ascontiguousarray(values).tobytes()
    plain = values.detach().cpu().contiguous()
    return plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b""
