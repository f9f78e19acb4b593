"""``robbench new``: a package to begin with, for a component or a network of one's own."""

from __future__ import annotations

import argparse
import importlib.resources
import importlib.util
import keyword
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from robbench.cli import _command
from robbench.core.errors import RequestError, StoreError, did_you_mean

RUNS: Mapping[str, str] = {
    "attack": """robbench run --grid smoke --set 'conditions=["clean", "my-component@ref"]'""",
    "defense": """robbench run --grid smoke --set 'models=[{ defense = "my-component" }]'""",
    "dataset": "robbench run --grid smoke --dataset my-component",
    "metric": "robbench run --grid smoke  # it is a column of leaderboard.csv",
    "figure": "robbench run --grid smoke  # it is on the page of the board",
}
"""How each kind of component is tried."""
KINDS = (*RUNS, "model")
_LONGEST = 40
_SPECIAL = ("conftest", "setup")
"""Files that pytest and setuptools take for their own."""


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", metavar="KIND", help=f"{', '.join(KINDS[:-1])}, or model for a network")
    parser.add_argument("name", metavar="NAME", help="its name: small letters, digits and -")
    parser.add_argument("--to", type=_command.path, metavar="DIR", help="the folder to make (default: NAME)")


def _action(options: argparse.Namespace) -> int:
    kind, name, folder = options.kind, options.name, options.to or Path(options.name)
    if kind not in KINDS:
        raise RequestError(f'there is no kind "{kind}" to begin; {did_you_mean(kind, KINDS)}')
    _check(kind, name)
    _write(folder, package(kind, name))

    from robbench.cli._display import Terminal

    install = "" if kind == "model" else "pip install -e '.[test]' && "
    Terminal().say(f"The {kind} {name} is in {folder}; next: cd {folder} && {install}pytest (README.md says more)")
    return 0


COMMAND = _command.Command(
    place=35,
    summary="begin a component or a network of your own",
    about="Makes a folder with a package that works: a component that keeps the rules, its test, and the entry point "
    "by which robbench finds it. For a model: a network with its factory. Change it from there.",
    examples=(
        ("robbench new attack my-attack", "one gradient step, in my-attack/my_attack.py"),
        ("robbench new model my-net", "a network for robbench evaluate, in my-net/net.py"),
        ("robbench new dataset stripes --to plugins/stripes", "in a folder of another name"),
    ),
    options=_options,
    action=_action,
    failed="1 the folder cannot be written",
)


def package(kind: str, name: str) -> dict[str, str]:
    """The texts of a new package by file name.

    Args:
        kind: One of ``KINDS``.
        name: A name that was checked.
    """
    module = "net" if kind == "model" else _module(name)
    used = {
        f"{module}.py": f"{kind}.py",
        f"test_{module}.py": "test_model.py.in" if kind == "model" else "test_component.py.in",
        "README.md": "README-model.md.in" if kind == "model" else "README.md.in",
    }
    if kind != "model":
        used["pyproject.toml"] = "pyproject.toml.in"
    camel = "".join(part.capitalize() for part in name.split("-"))
    words = {
        "KIND": "data set" if kind == "dataset" else kind,
        f"My{kind.capitalize()}": camel if camel.endswith(kind.capitalize()) else camel + kind.capitalize(),
        **{f"my-{placeholder}": name for placeholder in ("component", kind)},
        **{f"my_{placeholder}": module for placeholder in ("component", kind)},
    }
    # All at once, since a name may contain a placeholder.
    placeholders = re.compile(rf"\b({'|'.join(words)})\b")
    folder = importlib.resources.files("robbench.cli._templates")
    texts = {file: folder.joinpath(template).read_text(encoding="utf-8") for file, template in used.items()}
    return {
        file: placeholders.sub(lambda found: words[found[1]], text.replace("RUN", RUNS.get(kind, "")))
        for file, text in texts.items()
    }


def _module(name: str) -> str:
    return name.replace("-", "_")


def _check(kind: str, name: str) -> None:
    """Whether a name can be that of a component, of a module and of a folder.

    Raises:
        RequestError: If it cannot, or something has it already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or len(name) > _LONGEST:
        near = re.sub(r"[^a-z0-9]+", "-", name.lower()).lstrip("-0123456789")[:_LONGEST].strip("-")
        raise RequestError(
            f'"{name}" cannot be a name: up to {_LONGEST} small letters, digits and single -, a letter first, as in '
            f'"{near or f"my-{kind}"}"'
        )
    if kind == "model":
        return
    if name == kind:
        raise RequestError(f'"{name}" is the name of the kind; say which {kind}, as in "my-{kind}"')
    from robbench.core.registry import Registry

    if name in Registry().entries(kind):  # type: ignore[arg-type]
        raise RequestError(f'there is a {kind} "{name}" already; choose another name')
    module = _module(name)
    if keyword.iskeyword(module) or module in _SPECIAL or importlib.util.find_spec(module):
        raise RequestError(f'"{name}" would be the module {module}, which Python has already; choose another name')


def _write(folder: Path, texts: Mapping[str, str]) -> None:
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise RequestError(f'"{folder}" is there already; name another folder with --to') from None
    except OSError as error:
        raise RequestError(f'"{folder}" cannot be made: {error.strerror}', "--to") from None
    try:
        for file, text in texts.items():
            (folder / file).write_text(text, encoding="utf-8")
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise StoreError(f'"{folder}" cannot be written: {error.strerror}') from error
