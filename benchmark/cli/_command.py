"""What a command is made of, and the options that several commands share. Imports nothing that takes long."""

from __future__ import annotations

import argparse
import math
import re
import shlex
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from robbench.core.errors import Damaged, RequestError, did_you_mean

if TYPE_CHECKING:
    from robbench.planning.grid import Request
    from robbench.results.store import Store

WIDTH = 78
STATUSES = "Exit status: {done}; {failed}; 2 wrong request; 130 interrupted."


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        """Refuse the request.

        Raises:
            RequestError: Always.
        """
        raise RequestError(f"{message}; see {self.prog} --help")


@dataclass(frozen=True)
class Command:
    """A command: its help, its options, and what it does.

    A module of ``robbench.cli`` whose name has no leading underscore is the command of that name and defines one as
    ``COMMAND``.

    Attributes:
        place: Position in the list of commands; ties are ordered by name.
        summary: What it does, in one line of at most 60 characters.
        about: What it does and when one wants it, in a sentence or two.
        examples: Command lines, each with what it does.
        options: Adds the options to a parser.
        action: Carries the command out; returns the exit status.
        done: What exit status 0 means.
        failed: What exit status 1 means.
    """

    place: int
    summary: str
    about: str
    examples: tuple[tuple[str, str], ...]
    options: Callable[[argparse.ArgumentParser], None]
    action: Callable[[argparse.Namespace], int]
    done: str = "0 done"
    failed: str = "1 the store is damaged or cannot be written"

    def fill(self, parser: argparse.ArgumentParser) -> None:
        """Give a parser the command's description, options, examples and action."""
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.description = textwrap.fill(self.about, WIDTH)
        statuses = textwrap.fill(STATUSES.format(done=self.done, failed=self.failed), WIDTH)
        examples = "\n".join(f"  {line}\n      {meaning}" for line, meaning in self.examples)
        parser.epilog = f"examples:\n{examples}\n\n{statuses}"
        self.options(parser)
        parser.set_defaults(action=self.action)

    def words(self) -> list[list[str]]:
        """The words of each example, without the name of the program."""
        return [shlex.split(line)[1:] for line, _ in self.examples]


# --- values


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def seconds(text: str) -> float:
    """A time above zero, in seconds or with a unit: 90, 90s, 30m, 6h."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    value = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]] if found else 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time, as in 90s, 30m or 6h")
    return value


def points(text: str) -> float:
    """Percentage points, from 0 to 100."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of percentage points from 0 to 100")
    return value


def positives(text: str) -> tuple[int, ...]:
    """Positive whole numbers, each once, separated by commas or spaces."""
    return tuple(dict.fromkeys(positive(part) for part in text.replace(",", " ").split()))


def seeds(text: str) -> tuple[int, ...]:
    """Seeds below 2**31, each once, separated by commas or spaces."""
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isdecimal() and int(part) < 2**31 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of seeds, as in 0,1,2")
    return tuple(dict.fromkeys(int(part) for part in parts))


def path(text: str) -> Path:
    """A path; ``~`` is the home directory also where a shell leaves it alone, as in ``--data-dir=~/data``."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def place(text: str) -> Path | str:
    """A path, or an address as ``s3://bucket/boards``."""
    return text.rstrip("/") if "://" in text else path(text)


# --- options


def add_store(parser: argparse._ActionsContainer) -> None:
    """Add ``--out``."""
    parser.add_argument("--out", type=path, default=Path("runs"), metavar="DIR", help="the store (default: runs)")


def add_plugins(parser: argparse._ActionsContainer) -> None:
    """Add ``--plugin``."""
    parser.add_argument(
        "--plugin", type=path, action="append", default=[], metavar="FILE.py", help="a file of components; repeatable"
    )


def add_data(parser: argparse._ActionsContainer) -> None:
    """Add ``--data-dir``."""
    parser.add_argument("--data-dir", type=path, metavar="DIR", help="where data lies (default: $ROBBENCH_DATA)")


def add_boards(parser: argparse._ActionsContainer) -> None:
    """Add ``--grid`` and ``--board`` for boards that are in the store."""
    parser.add_argument("--grid", action="append", default=[], metavar="GRID", help="only this grid; repeatable")
    parser.add_argument("--board", action="append", default=[], metavar="NAME", help="only this board; repeatable")
    add_store(parser)


def add_request(parser: argparse.ArgumentParser) -> None:
    """Add what a grid is, what is swept, and where it is computed."""
    swept = parser.add_argument_group("what to run")
    swept.add_argument("--grid", default="quick", metavar="GRID", help="built-in grid or TOML file (default: quick)")
    swept.add_argument("--dataset", metavar="NAME", help="data set in place of the grid's own")
    swept.add_argument("--seeds", type=seeds, default=(), metavar="LIST", help="seeds in place of the grid's, as 0,1,2")
    swept.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of the grid, as seeds=[0,1], recipe.epochs=5, models.0.defense=fgm, or models.epochs=5 for every "
        "model; repeatable",
    )
    add_plugins(swept)
    places = parser.add_argument_group("where")
    add_store(places)
    add_data(places)
    add_device(places)
    places.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of training; attacks and predictions are always float32",
    )


def add_device(group: argparse._ActionsContainer) -> None:
    """Add ``--device`` and ``--deterministic``."""
    group.add_argument(
        "--device",
        default="auto",
        metavar="DEVICE",
        help="auto, cpu, cuda, or cuda:0,cuda:1 for a worker process on each (default: auto)",
    )
    group.add_argument(
        "--deterministic",
        action="store_true",
        help="the same to the last bit on a GPU, too: slower, and a condition that needs an operation without a "
        "deterministic algorithm fails",
    )


def add_conditions(parser: argparse.ArgumentParser) -> None:
    """Add what changes a grid's conditions."""
    conditions = parser.add_argument_group("conditions")
    conditions.add_argument("--limit", type=positive, metavar="N", help="at most N test images each, stratified")
    conditions.add_argument(
        "--audit", action="store_true", help="add checks for gradient masking and flag rows (README: Audit)"
    )


def request(options: argparse.Namespace) -> Request:
    """The request that the options of ``add_request`` make, with those of ``add_conditions`` where there are any."""
    from robbench.planning.grid import Request

    return Request(
        grid=options.grid,
        out=options.out,
        dataset=options.dataset,
        data_dir=options.data_dir,
        limit=getattr(options, "limit", None),
        seeds=options.seeds,
        device=options.device,
        precision=options.precision,
        plugins=tuple(options.plugin),
        audit=getattr(options, "audit", False),
        overrides=tuple(options.overrides),
        keep_images=getattr(options, "keep_images", False),
        deterministic=options.deterministic,
    )


def add_loudness(parser: argparse.ArgumentParser, last: str) -> None:
    """Add ``--quiet`` and ``--verbose``.

    Args:
        parser: The command's.
        last: What a quiet command says in the end.
    """
    shown = parser.add_argument_group("what to show").add_mutually_exclusive_group()
    shown.add_argument("-q", "--quiet", action="store_true", help=f"only errors and {last}")
    shown.add_argument(
        "-v", "--verbose", action="store_true", help="each cell as it finishes, and tracebacks of those that fail"
    )


def noted_boards(store: Store, grids: list[str], boards: list[str]) -> list[str]:
    """The boards of a store, or those of some grids and some others.

    One whose note is damaged may be of any grid, and is for whoever reads it to name.

    Raises:
        RequestError: If the store holds none, none of a grid, or none of a name.
    """
    known: dict[str, list[str]] = {}
    names = store.board_names()
    damaged = []
    for board in names:
        try:
            known.setdefault(str(store.board(board)["grid"]), []).append(board)
        except Damaged:
            damaged.append(board)
    if not names:
        raise RequestError(f'"{store.root}" holds no run yet; robbench run makes one', "--out")
    for grid in grids:
        if grid not in known and not damaged:
            raise RequestError(f'no grid "{grid}" was run into {store.root}; {did_you_mean(grid, known)}', "--grid")
    for board in boards:
        if board not in names:
            raise RequestError(f'no board "{board}" is in {store.root}; {did_you_mean(board, names)}', "--board")
    if boards and not grids:
        return list(dict.fromkeys(boards))
    found = [board for grid in grids or known for board in known.get(grid, ())]
    return list(dict.fromkeys([*found, *damaged, *boards]))
