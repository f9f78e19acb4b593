"""Which components there are. Decorators mark classes; a ``Registry`` finds the marked ones when it is asked.

Built-in components are found by scanning the package of their kind, so that adding one means adding a file. Those of a
plugin are found in its file or package. Nothing is filled in by importing, and there is no registry but those made by
``Registry(...)``.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Literal, TypeVar, get_args

from robbench.core.atomic_io import digest_files
from robbench.core.component import Component
from robbench.core.contract_check import contract_faults, contract_of
from robbench.core.errors import RequestError, did_you_mean
from robbench.core.safe_text import file_text
from robbench.core.threat_model import LP_NORMS, NORMS, Norm

Kind = Literal[
    "dataset", "balancer", "architecture", "objective", "defense", "attack", "certificate", "metric", "figure"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
ENTRY_POINTS = "robbench.plugins"

_PACKAGES: Mapping[Kind, str] = {
    "dataset": "robbench.data.datasets",
    "balancer": "robbench.data.balancing",
    "architecture": "robbench.models",
    "objective": "robbench.models",
    "defense": "robbench.defenses",
    "attack": "robbench.attacks",
    "certificate": "robbench.certificates",
    "metric": "robbench.evaluation.metrics",
    "figure": "robbench.leaderboards.plots",
}
_MARK = "__robbench__"
_CITATION = re.compile(r" \([^()]*\d{4}[^()]*\)")

C = TypeVar("C", bound=type[Component])


@dataclass(frozen=True)
class Mark:
    """What a decorator notes on a class.

    Attributes:
        kind: Kind of the component.
        name: Name it is asked for by.
        preset: Hyperparameters that this name sets.
        norms: For attacks and certificates, the norms it works in.
        brief: What tells this name from others, in a few words; the class's docstring says it where it is empty.
    """

    kind: Kind
    name: str
    preset: Mapping[str, object]
    norms: tuple[Norm, ...] = ()
    brief: str = ""


def _register(mark: Mark) -> Callable[[C], C]:
    if not mark.name or any(character in mark.name for character in "[]@+>=,| \t\n"):
        raise RequestError(f'"{mark.name}" cannot be the name of a component: names hold none of []@+>=,| and no space')

    base = mark.kind.capitalize()

    def decorate(cls: C) -> C:
        # By name, since what the kinds are stands above this module.
        contract = contract_of(cls)
        if contract is None or contract.__name__ != base:
            raise RequestError(f'{mark.kind} "{mark.name}": class {cls.__name__} is not derived from robbench.{base}')
        setattr(cls, _MARK, (*cls.__dict__.get(_MARK, ()), mark))
        return cls

    return decorate


def register_dataset(name: str, *, brief: str = "", **preset: object) -> Callable[[C], C]:
    """Register a data set under a name, with some options preset; may be repeated with other names."""
    return _register(Mark("dataset", name, preset, brief=brief))


def register_balancer(name: str, *, brief: str = "", **preset: object) -> Callable[[C], C]:
    """Register a balancer."""
    return _register(Mark("balancer", name, preset, brief=brief))


def register_architecture(name: str, *, brief: str = "", **preset: object) -> Callable[[C], C]:
    """Register an architecture."""
    return _register(Mark("architecture", name, preset, brief=brief))


def register_objective(name: str, *, brief: str = "", **preset: object) -> Callable[[C], C]:
    """Register an objective."""
    return _register(Mark("objective", name, preset, brief=brief))


def register_defense(name: str, *, brief: str = "", **preset: object) -> Callable[[C], C]:
    """Register a defense."""
    return _register(Mark("defense", name, preset, brief=brief))


def register_attack(name: str, *, norms: Sequence[Norm], brief: str = "", **preset: object) -> Callable[[C], C]:
    """Register an attack.

    Args:
        name: Name it is asked for by.
        norms: Norms it works in; the first is meant where a condition names none.
        brief: What tells this name from others, in a few words; lists show it.
        preset: Hyperparameters that this name sets.

    Raises:
        RequestError: If a norm is unknown or none is given.
    """
    return _register(Mark("attack", name, preset, _known(norms, NORMS, f'attack "{name}"'), brief))


def register_certificate(name: str, *, norms: Sequence[Norm], brief: str = "", **preset: object) -> Callable[[C], C]:
    """Register a certificate.

    Args:
        name: Method that a condition asks for it by, as in ``certify[method=name]@8/255``.
        norms: Norms that it is sound for; the first is meant where a condition names none.
        brief: What tells this name from others, in a few words; lists show it.
        preset: Hyperparameters that this name sets.

    Raises:
        RequestError: If a norm is unknown or none is given.
    """
    return _register(Mark("certificate", name, preset, _known(norms, LP_NORMS, f'certificate "{name}"'), brief))


def _known(norms: Sequence[Norm], known: tuple[Norm, ...], what: str) -> tuple[Norm, ...]:
    for norm in norms:
        if norm not in known:
            raise RequestError(f'{what}: unknown norm "{norm}"; {did_you_mean(norm, known)}')
    if not norms:
        raise RequestError(f"{what} names no norm; known: {', '.join(known)}")
    return tuple(norms)


def register_metric(name: str, *, brief: str = "", **preset: object) -> Callable[[C], C]:
    """Register a metric."""
    return _register(Mark("metric", name, preset, brief=brief))


def register_figure(name: str, *, brief: str = "", **preset: object) -> Callable[[C], C]:
    """Register a figure of boards."""
    return _register(Mark("figure", name, preset, brief=brief))


@dataclass(frozen=True)
class Registration:
    """A registered component.

    Attributes:
        mark: What its decorator noted.
        cls: Its class.
        file: Where it is defined.
        source: Hash of its source where it comes from outside the package, otherwise None.
        plugin: Name and version of the plugin that it comes from, otherwise None.
    """

    mark: Mark
    cls: type[Component]
    file: str
    source: str | None
    plugin: str | None

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.cls) or "").split("\n")[0]

    @property
    def brief(self) -> str:
        """What it is in a few words: those of its decorator, or the summary without its citation."""
        return self.mark.brief or _CITATION.sub("", self.summary).removesuffix(".")


@dataclass(frozen=True)
class Plugin:
    """A module in which to look for components.

    Attributes:
        label: Its name and version.
        module: The module.
        source: Hash of its source.
        file: Where it was loaded from by path; None for an installed package.
    """

    label: str
    module: ModuleType
    source: str
    file: Path | None = None


@dataclass(frozen=True)
class Registry:
    """The built-in components and those of some plugins.

    Args:
        files: Plugin files, loaded by path.
        installed: Whether to load plugins that installed packages announce as entry points.
        expected: Hashes of the plugins' sources, which must be found; None for whatever there is.
    """

    files: tuple[Path, ...] = ()
    installed: bool = True
    expected: tuple[str, ...] | None = field(default=None, repr=False, compare=False)
    _found: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what to look for; another process looks for itself, and refuses what was edited meanwhile."""
        loaded = tuple(plugin.source for plugin in self._found["plugins"]) if "plugins" in self._found else None
        return Registry, (self.files, self.installed, loaded or self.expected)

    def plugins(self) -> tuple[Plugin, ...]:
        """The plugins, loaded and compared with the contracts once.

        Raises:
            RequestError: If one cannot be loaded, or a component in it does not fulfill the contract of its kind.
        """
        if "plugins" not in self._found:
            installed = _installed_plugins() if self.installed else []
            # A file that is an installed plugin's own, as while one is written, is that plugin.
            known = {inspect.getfile(plugin.module) for plugin in installed}
            files = [path for path in dict.fromkeys(self.files) if str(path.resolve()) not in known]
            plugins = (*installed, *map(_file_plugin, files))
            if self.expected is not None and tuple(plugin.source for plugin in plugins) != self.expected:
                raise RequestError("a plugin was edited, installed or removed since the run began; run again")
            for plugin, kind in itertools.product(plugins, KINDS):
                for entry in _marked(plugin.module, kind, plugin):
                    for fault in contract_faults(entry.cls):
                        raise RequestError(fault, f'{entry.file}: {kind} "{entry.mark.name}"')
            self._found["plugins"] = plugins
        found: tuple[Plugin, ...] = self._found["plugins"]
        return found

    def entries(self, kind: Kind) -> Mapping[str, Registration]:
        """The components of a kind by name.

        Raises:
            RequestError: If two have one name, naming both files.
        """
        if kind not in self._found:
            found: dict[str, Registration] = {}
            for entry in self._scan(kind):
                other = found.get(entry.mark.name)
                if other is not None and other.cls is not entry.cls:
                    raise RequestError(
                        f'two components of kind {kind} are named "{entry.mark.name}": {other.file} and {entry.file}; '
                        "rename one of them"
                    )
                found[entry.mark.name] = entry
            self._found[kind] = MappingProxyType(dict(sorted(found.items())))
        entries: Mapping[str, Registration] = self._found[kind]
        return entries

    def entry(self, kind: Kind, name: str, where: str = "") -> Registration:
        """One component.

        Raises:
            RequestError: If there is none of that name, with the nearest that there is.
        """
        entries = self.entries(kind)
        if name not in entries:
            raise RequestError(f'there is no {kind} "{name}"; {did_you_mean(name, entries)}', where)
        return entries[name]

    def _scan(self, kind: Kind) -> Iterator[Registration]:
        package = importlib.import_module(_PACKAGES[kind])
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            # Machinery beside the components has an underscore.
            if not info.name.rpartition(".")[2].startswith("_"):
                yield from _marked(importlib.import_module(info.name), kind, None)
        for plugin in self.plugins():
            yield from _marked(plugin.module, kind, plugin)


def _marked(module: ModuleType, kind: Kind, plugin: Plugin | None) -> Iterator[Registration]:
    source, label = (plugin.source, plugin.label) if plugin else (None, None)
    for value in vars(module).values():
        if not (isinstance(value, type) and issubclass(value, Component)):
            continue
        defined_here = value.__module__ == module.__name__
        if defined_here or (plugin and not value.__module__.startswith("robbench.")):
            for mark in value.__dict__.get(_MARK, ()):
                if mark.kind == kind:
                    yield Registration(mark, value, inspect.getfile(value), source, label)


def _file_plugin(path: Path) -> Plugin:
    path = path.resolve()
    if not path.is_file():
        raise RequestError(f"plugin {path} is not a file")
    source = digest_files([path])
    name = f"robbench_plugin_{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}_{source}"
    module = sys.modules.get(name)
    if module is None:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise RequestError(f"plugin {path} is not a Python file (its name must end in .py)")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise RequestError(f"plugin {path} cannot be loaded: {type(error).__name__}: {error}") from error
    return Plugin(f"{file_text(path.name)} {source}", module, source, path)


def _installed_plugins() -> list[Plugin]:
    plugins = []
    for point in sorted(importlib.metadata.entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        try:
            module = importlib.import_module(point.module)
        except (Exception, SystemExit) as error:
            raise RequestError(
                f'installed plugin "{point.name}" ({point.value}) cannot be loaded: {type(error).__name__}: {error}; '
                "mend or uninstall it"
            ) from error
        version = point.dist.version if point.dist else "?"
        plugins.append(Plugin(f"{point.name} {version}", module, digest_files(_package_files(module))))
    return plugins


def installed_source(name: str) -> str:
    """Hash of the source of an installed plugin's module, which is imported."""
    return digest_files(_package_files(importlib.import_module(name)))


def _package_files(module: ModuleType) -> list[Path]:
    top = sys.modules[module.__name__.partition(".")[0]]
    if top.__file__ is None:
        return [Path(inspect.getfile(module))]
    path = Path(top.__file__)
    return sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
