"""The ``robbench`` command: finds the commands of this package, runs one, and maps errors to exit statuses."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from typing import NoReturn

import robbench.cli
from robbench.cli._command import Command, Parser
from robbench.cli._output import lasting
from robbench.core.errors import RequestError, StoreError, did_you_mean, explain, plain_warnings

EPILOG = """\
start here:
  robbench run --grid smoke       a minute's run: train, attack, write a board
  robbench list attack            what models can be attacked with
  robbench COMMAND --help         options and examples of a command"""


def commands() -> dict[str, Command]:
    """The commands by name, in the order in which they are listed: one of each module without an underscore."""
    names = [module.name for module in pkgutil.iter_modules(robbench.cli.__path__)]
    found: dict[str, Command] = {
        name: importlib.import_module(f"robbench.cli.{name}").COMMAND
        for name in names
        if not name.startswith("_") and name != "main"
    }
    return dict(sorted(found.items(), key=lambda item: (item[1].place, item[0])))


def parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the command line and those of the commands by name."""
    top = Parser(
        prog="robbench",
        description="Benchmark the adversarial robustness of image classifiers.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("-V", "--version", action="store_true", help="print the version")
    slots = top.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=Parser)
    by_name: dict[str, Parser] = {}
    for name, command in commands().items():
        by_name[name] = slots.add_parser(name, help=command.summary)
        command.fill(by_name[name])
    return top, by_name


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 all done, 1 some cells failed or the store could not be written, 2 the request was wrong, 130 interrupted.
    """
    with (
        contextlib.redirect_stdout(lasting(sys.stdout)),
        contextlib.redirect_stderr(lasting(sys.stderr)),
        plain_warnings(),
    ):
        try:
            return _status(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            sys.stdout.flush()


def _status(words: list[str]) -> int:
    try:
        return _dispatch(words)
    except RequestError as error:
        print(f"robbench: {error}", file=sys.stderr)
        return 2
    except StoreError as error:
        print(f"robbench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("robbench: interrupted; finished work is kept, run again to go on", file=sys.stderr)
        return 130


def _dispatch(words: list[str]) -> int:
    top, by_name = parsers()
    if words and not words[0].startswith("-") and words[0] not in by_name:
        raise RequestError(f'there is no command "{words[0]}"; {did_you_mean(words[0], by_name)}')
    options, unknown = top.parse_known_args(words)
    if unknown:
        _refuse(unknown[0], by_name[options.command] if options.command else top)
    if options.version:
        from importlib.metadata import version

        print(version("robbench"))
        return 0
    if options.command is None:
        top.print_help()
        return 0
    try:
        status: int = options.action(options)
    except (SystemExit, GeneratorExit) as error:
        # Nothing here ends the command so; exit status 0 is for work that was done.
        raise RequestError(f"a plugin tried to end the command: {explain(error)}") from error
    return status


def _refuse(word: str, parser: argparse.ArgumentParser) -> NoReturn:
    known = [option for action in parser._actions for option in action.option_strings]
    hint = did_you_mean(word, known) if word.startswith("-") else f"see {parser.prog} --help"
    raise RequestError(f'{parser.prog} does not know "{word}"; {hint}')
