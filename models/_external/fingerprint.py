"""What tells one network from another: hashes of its weights and of its structure, of no path and no name of a file."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robbench.core.errors import RequestError

_DEEPEST = 16


def weights_sha256(network: object) -> str | None:
    """Hash of all tensors and arrays that a network holds, or None where it holds none.

    Those that are no parameters or buffers count too: constants, and what the function of a callable refers to.
    """
    digest, empty = hashlib.sha256(), True
    for name, value in _held(network):
        if isinstance(value, Tensor | np.ndarray):
            empty = False
            digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
            digest.update(_bytes(value))
        elif isinstance(value, bytes):
            empty = False
            digest.update(f"{name} {len(value)}\n".encode() + value)
    return None if empty else digest.hexdigest()


def structure_sha256(network: object) -> str | None:
    """Hash of the layers of a module with their settings, and of the plain values that a network holds, or None."""
    lines = [f"{name} {value!r}" for name, value in _held(network) if _is_plain(value)]
    if isinstance(network, nn.Module):
        for name, module in network.named_modules():
            lines.append(f"{name} {type(module).__qualname__} {module.extra_repr()}")
            if isinstance(module, torch.jit.ScriptModule | torch.fx.GraphModule):
                with contextlib.suppress(RuntimeError, AttributeError):  # a part that has no forward of its own
                    lines.append(str(module.code))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else None


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


def modules_of(network: object) -> Iterator[nn.Module]:
    """The modules that a callable refers to, and all of their parts."""
    return (value for _, value in _held(network) if isinstance(value, nn.Module))


def bytes_sha256(parts: Mapping[str, bytes]) -> str:
    """Hash of named contents, in whatever order they come."""
    digest = hashlib.sha256()
    for name, content in sorted(parts.items()):
        digest.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


def argument_identity(value: Any, folder: Path) -> Any:
    """A factory's argument as it identifies: the name of a file is replaced by the hash of its content.

    Other places count for nothing; what a factory reads there shows in the weights.
    """
    if isinstance(value, Mapping):
        return {str(key): argument_identity(one, folder) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [argument_identity(one, folder) for one in value]
    if not isinstance(value, str):
        return value if _is_plain(value) else str(getattr(value, "__qualname__", type(value).__qualname__))
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # text that is no path
        place = folder / Path(value).expanduser()
        if value and place.is_file():
            return {"sha256": hashlib.sha256(place.read_bytes()).hexdigest()}
        if value and (place.is_dir() or place == Path(value) or value.startswith("~")):
            return {"place": True}
    return value.encode(errors="backslashreplace").decode()  # a command line may hold what is not UTF-8


def _is_plain(value: object) -> bool:
    """Whether a value is a setting; text that may be a path is none."""
    return (
        value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and not set("/\\") & {*value})
    )


def _held(network: object) -> Iterator[tuple[str, Any]]:
    """All tensors, arrays, bytes, modules and plain values in an object, by where they stand, each object once."""
    seen: dict[int, object] = {}  # with the objects, whose numbers would be given to others

    def walk(name: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
        if _is_plain(value):
            yield name, value
            return
        if depth > _DEEPEST or id(value) in seen or isinstance(value, type | types.ModuleType | str):
            return
        seen[id(value)] = value
        if isinstance(value, Tensor | bytes):
            yield name, value
        elif isinstance(value, np.ndarray):
            if value.dtype == object:
                yield from members(name, enumerate(value.flat), depth)
            elif value.dtype.names:
                yield from members(name, ((field, value[field]) for field in value.dtype.names), depth)
            else:
                yield name, value
        elif isinstance(value, nn.Module):
            yield name, value
            yield from members(name, _of_module(value), depth - 1)
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
        else:
            with contextlib.suppress(Exception):  # what cannot be copied tells nothing
                yield from members(name, enumerate(value.__reduce_ex__(2)[1:]), depth)

    def members(name: str, values: Iterable[tuple[object, Any]], depth: int) -> Iterator[tuple[str, Any]]:
        for key, value in values:
            yield from walk(f"{name}.{key}" if name else str(key), value, depth + 1)

    yield from walk("", network, 0)


def _of_module(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a module holds of its own and in its parts, without what torch notes of every module."""
    if isinstance(module, torch.jit.ScriptModule):
        yield from module.state_dict().items()
        return
    for part in (module._parameters, module._buffers, module._modules):
        yield from part.items()
    for key, value in vars(module).items():
        if key != "training" and (not key.startswith("_") or key == "__wrapped__"):
            yield key, value


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is cell.cell_contents
    except ValueError:
        return False


def _bytes(values: Tensor | np.ndarray[Any, Any]) -> bytes:
    if isinstance(values, np.ndarray):
        return np.ascontiguousarray(values).tobytes()
    if values.is_meta:
        raise RequestError("it has weights on the device meta, which holds no values: build it on the cpu, with values")
    plain = values.detach().cpu()
    plain = plain.int_repr() if plain.is_quantized else plain.to_dense() if plain.layout != torch.strided else plain
    return plain.contiguous().flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b""
