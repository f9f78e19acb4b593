"""``file.py:factory`` and ``package.module:factory``: code that somebody names, and that only then is run.

A file is run under a name of its own, with its folder (and the folder of the package that it is part of) on the module
path while it is loaded; afterwards neither it nor the modules beside it are left among the loaded ones.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import operator
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from robbench.core.contracts import Classifier
from robbench.core.errors import RequestError, did_you_mean, explain
from robbench.models._external.fingerprint import argument_identity, bytes_sha256
from robbench.models._external.found import Found, LoadRequest
from robbench.models._external.weights import load_weights, read_weights

_KEPT = frozenset({*sys.stdlib_module_names, "torch", "torchvision", "numpy", "robbench"})


def load_from_file(wanted: LoadRequest) -> Found:
    """What the factory of a Python file gives.

    Raises:
        RequestError: If there is no such file or factory, or it fails.
    """
    name, _, factory = wanted.request.source.rpartition(":")
    path = wanted.path(name)
    if not path.is_file():
        raise RequestError(f'there is no file "{name}"')
    source, home = path.read_bytes(), _package_of(path)
    folders = [path.resolve().parent, home[0]] if home[1] else [home[0]]
    with _importable(folders) as loaded:
        module = _run(path, source, home[1])
        network = _made(module, factory, wanted, path.name)
        parts = {"": source} | loaded()
    return _found(network, f"{path.name}:{factory}", parts, factory, wanted)


def load_from_module(wanted: LoadRequest) -> Found:
    """What a factory in a module gives, which is installed or lies in the folder.

    Raises:
        RequestError: If there is no such module or factory, or it fails.
    """
    name, _, factory = wanted.request.source.rpartition(":")
    sys.path.append(str(wanted.folder))  # put back with the other settings of the process
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise RequestError(f'the module "{name}" cannot be imported: {explain(error)}') from None
    network = _made(module, factory, wanted, name)
    return _found(network, f"{name}:{factory}", _sources(module), factory, wanted)


def _found(network: Any, label: str, sources: dict[str, bytes], factory: str, wanted: LoadRequest) -> Found:
    weights = wanted.request.weights
    if weights:
        load_weights(network, read_weights(wanted.path(weights)), Path(weights).name)
    identity = {
        "code_sha256": bytes_sha256(sources),
        "factory": factory,
        "arguments": argument_identity(wanted.request.arguments, wanted.folder),
    }
    return Found(network, "Python", label, identity=identity)


def _made(module: ModuleType, factory: str, wanted: LoadRequest, where: str) -> Any:
    """The network: what the factory returns, or what is named where that is a module already."""
    try:
        made = operator.attrgetter(factory)(module)
    except AttributeError:
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise RequestError(f'there is no factory "{factory}" in {where}; {did_you_mean(factory, names)}') from None
    if isinstance(made, nn.Module):
        return made
    if not callable(made):
        raise RequestError(f'"{factory}" in {where} is no factory: it is {type(made).__name__}, and cannot be called')
    try:
        inspect.signature(made).bind(**wanted.request.arguments)
    except TypeError as error:
        remedy = "what a factory takes is given as --argument NAME=VALUE (arguments)"
        raise RequestError(f'"{factory}" in {where}: {error}; {remedy}') from None
    except ValueError:
        pass  # its signature is not known
    try:
        network = made(**wanted.request.arguments)
    except (Exception, SystemExit) as error:
        raise RequestError(f'"{factory}" in {where} fails: {explain(error)}') from None
    if not (callable(network) or isinstance(network, Classifier)):
        raise RequestError(f'"{factory}" in {where} returns {type(network).__name__}, not a network')
    return network


# --- running a file


def _package_of(path: Path) -> tuple[Path, str]:
    """The folder from which a file can be imported, and the package that it is then part of."""
    folder, names = path.resolve().parent, list[str]()
    while (folder / "__init__.py").is_file() and folder != folder.parent:
        names.insert(0, folder.name)
        folder = folder.parent
    return folder, ".".join(names)


def _run(path: Path, source: bytes, package: str) -> ModuleType:
    name = f"robbench_external_{hashlib.sha256(source).hexdigest()[:20]}"
    module = ModuleType(name)
    module.__file__, module.__package__ = str(path), package
    sys.modules[name] = module
    try:
        exec(compile(source, str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        raise RequestError(f"{path.name} cannot be loaded: {explain(error)}") from None
    return module


@contextmanager
def _importable(folders: list[Path]) -> Iterator[Any]:
    """Make the modules of folders importable, hide others of their names, and forget them afterwards.

    Yields:
        A function that gives the sources of those imported so far, by their place in the folder.
    """
    names = {
        entry.stem
        for folder in folders
        for entry in folder.iterdir()
        if entry.suffix == ".py" or (entry / "__init__.py").is_file()
    } - _KEPT
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in names}
    before, writes, path = set(sys.modules), sys.dont_write_bytecode, list(sys.path)
    sys.path[:0] = map(str, folders)
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()

    def new() -> dict[str, Path]:
        found = {name: getattr(sys.modules[name], "__file__", None) for name in set(sys.modules) - before}
        files = {name: Path(file).resolve() for name, file in found.items() if file}
        return {
            name: file
            for name, file in files.items()
            if name.startswith("robbench_external_") or any(folder in file.parents for folder in folders)
        }

    def sources() -> dict[str, bytes]:
        return {name: file.read_bytes() for name, file in new().items() if not name.startswith("robbench_external_")}

    try:
        yield sources
    finally:
        for name in new():
            del sys.modules[name]
        sys.modules.update(hidden)
        sys.path[:] = path
        sys.dont_write_bytecode = writes


# --- the code of an installed module


def _sources(module: ModuleType) -> dict[str, bytes]:
    """The source of a module and of those of its package that it imports, by name; imports are read, not followed."""
    top = importlib.import_module(module.__name__.partition(".")[0])
    waiting, found = [module.__name__], dict[str, bytes]()
    while waiting:
        name = waiting.pop()
        file = _file_of(name, top) if name not in found else None
        if file is not None:
            found[name] = file.read_bytes()
            package = name if file.name == "__init__.py" else name.rpartition(".")[0]
            waiting += [one for one in _imported(found[name], package) if one.partition(".")[0] == top.__name__]
    return found


def _file_of(name: str, top: ModuleType) -> Path | None:
    inner = name.split(".")[1:]
    places = [Path(place).joinpath(*inner) for place in getattr(top, "__path__", ())]
    files = [file for place in places for file in (place / "__init__.py", place.with_suffix(".py"))]
    if not places and not inner and top.__file__:
        files = [Path(top.__file__)]
    return next((file for file in files if file.is_file() and file.suffix == ".py"), None)


def _imported(source: bytes, package: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(part for part in (above, node.module or "") if part)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
