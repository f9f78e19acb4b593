"""``robbench completion``: a script by which a shell completes commands, options and names."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from robbench.cli import _command

SHELLS = ("bash", "zsh", "fish")


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))


def _action(options: argparse.Namespace) -> int:
    print(script(options.shell))
    return 0


COMMAND = _command.Command(
    place=95,
    summary="print a script that completes commands in a shell",
    about="Prints a script for bash, zsh or fish that completes commands, options, grids and components. Save it where "
    "the shell looks for such scripts, and again when plugins were installed.",
    examples=(
        ("robbench completion bash", "for ~/.local/share/bash-completion/completions/robbench"),
        ("robbench completion zsh", "for a file _robbench in a folder of $fpath"),
        ("robbench completion fish", "for ~/.config/fish/completions/robbench.fish"),
    ),
    options=_options,
    action=_action,
)


def script(shell: str) -> str:
    """The script for a shell, with the names of the components that are installed now.

    Args:
        shell: One of ``SHELLS``.
    """
    import shtab

    from robbench.cli.main import parsers
    from robbench.cli.new import KINDS as BEGUN
    from robbench.core.registry import KINDS, Registry
    from robbench.planning.grid import built_in_grids

    registry, grids = Registry(), tuple(built_in_grids())
    components = sorted({name for kind in KINDS for name in registry.entries(kind)})
    listed = (*KINDS, "grid", "toolbox")
    words: dict[str, Sequence[str]] = {
        "device": ("auto", "cpu", "cuda"),
        "dataset": tuple(registry.entries("dataset")),
        "kind": KINDS,
        "list kind": listed,
        "list name": (*components, *grids),
        "show kind": (*listed, "schema"),
        "show name": (*components, *grids),
        "check name": components,
        "new kind": BEGUN,
    }
    top, by_name = parsers()
    for command, parser in by_name.items():
        for action in parser._actions:
            meant = str(action.metavar)
            known = words.get(f"{command} {action.dest}", words.get(action.dest))
            if known is not None and not action.choices:
                action.choices = known
            elif meant == "GRID":
                action.complete = _names_or_files(grids)  # type: ignore[attr-defined]
            elif meant == "DIR" or "FILE" in meant:
                action.complete = shtab.DIRECTORY if meant == "DIR" else shtab.FILE  # type: ignore[attr-defined]
    made: str = shtab.complete(top, shell)
    return made


def _names_or_files(names: Sequence[str]) -> dict[str, object]:
    """What completes one of some names, or a TOML file."""
    import shtab

    joined = " ".join(names)
    files: Any = shtab.glob("*.toml")
    preamble = files["preamble"]
    function = "_robbench_grid_or_file"
    bash = f'compgen -W \'{joined}\' -- "$1"\n  {files["bash"]} "$1"'
    zsh = f"compadd -- {joined}\n  {files['zsh']}"
    return {
        "bash": function,
        "zsh": function,
        "fish": f"{joined} {files['fish']}",
        "preamble": {
            "bash": f"{preamble['bash']}\n{function}() {{\n  {bash}\n}}",
            "zsh": f"{function}() {{\n  {zsh}\n}}",
            "fish": preamble["fish"],
        },
    }
