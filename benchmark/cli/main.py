"""The ``robbench`` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from robbench.core.errors import RequestError, StoreError, did_you_mean

if TYPE_CHECKING:
    from robbench.planning.grid import Request
    from robbench.results.publishing import Published
    from robbench.results.store import Store

KIND_NAMES = ("attack", "defense", "dataset", "balancer", "architecture", "objective", "metric", "grid")


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message}; see {self.prog} --help")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_positive(part) for part in text.replace(",", " ").split()))


def _seeds(text: str) -> tuple[int, ...]:
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isdigit() and int(part) < 2**31 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of seeds, as in 0,1,2")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _add_common(parser: argparse.ArgumentParser) -> None:
    _add_grid(parser)
    parser.add_argument("--limit", type=_positive, metavar="N", help="at most N test images per condition, stratified")


def _add_grid(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--grid", default="quick", metavar="GRID", help="a built-in grid or a TOML file (default: quick)")
    add("--dataset", metavar="NAME", help="data set in place of the grid's own")
    add("--data-dir", type=Path, metavar="DIR", help="where data lies (else $ROBBENCH_DATA)")
    add("--out", type=Path, default=Path("runs"), metavar="DIR", help="the store (default: runs)")
    add("--seeds", type=_seeds, default=(), metavar="LIST", help="seeds in place of the grid's, as in 0,1,2")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute (default: auto)")
    add(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of training; attacks and decisions are always in float32",
    )
    _add_plugin(parser)


def _add_plugin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plugin", type=Path, action="append", default=[], metavar="FILE.py", help="a file of components; repeatable"
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = _Parser(prog="robbench", description="Benchmark the adversarial robustness of image classifiers.")
    top.add_argument("--version", action="store_true", help="print the version")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    run = commands.add_parser("run", help="train, attack, score and write the boards of a grid")
    _add_common(run)
    run.add_argument("--workers", type=_positive, metavar="N", help="worker processes (default: one per core, up to 4)")
    run.add_argument("--fresh", action="store_true", help="do everything again, whatever the store holds")
    run.add_argument("--audit", action="store_true", help="look for what the grid's attacks missed, and flag rows")
    run.set_defaults(do=_run)

    plan = commands.add_parser("plan", help="show the cells of a grid, which are done, what the rest will cost")
    _add_common(plan)
    plan.add_argument("--cells", action="store_true", help="list every cell")
    plan.add_argument("--audit", action="store_true", help="with the audit's checks")
    plan.set_defaults(do=_plan)

    search = commands.add_parser("search", help="search a recipe for one row of a grid, on validation images")
    _add_grid(search)
    search.add_argument("--row", metavar="LABEL", help="the row (default: the grid's first)")
    search.add_argument("--trials", type=_positive, default=20, metavar="N", help="recipes to try in all (default: 20)")
    search.add_argument(
        "--batch-sizes", type=_sizes, default=(), metavar="LIST", help="batch sizes to choose from, as in 16,64,256"
    )
    search.set_defaults(do=_search, limit=None, audit=False)

    labels = commands.add_parser("labels", help="list the images of a data set whose label looks wrong")
    labels.add_argument("--dataset", required=True, metavar="NAME", help="the data set")
    labels.add_argument("--data-dir", type=Path, metavar="DIR", help="where data lies (else $ROBBENCH_DATA)")
    labels.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="the store (default: runs)")
    _add_plugin(labels)
    labels.set_defaults(do=_labels)

    listing = commands.add_parser("list", help="show what is registered")
    listing.add_argument("kind", nargs="?", metavar="KIND", help=f"one of {', '.join(KIND_NAMES)}")
    _add_plugin(listing)
    listing.set_defaults(do=_list)

    report = commands.add_parser("report", help="make the boards again from the records alone")
    report.add_argument("--grid", action="append", default=[], metavar="GRID", help="only this grid's; repeatable")
    report.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="the store (default: runs)")
    report.add_argument("--published", type=Path, metavar="DIR", help="published boards, made again from their records")
    report.set_defaults(do=_report)

    publish = commands.add_parser("publish", help="check boards and put them with their records where they are read")
    publish.add_argument("--to", type=Path, required=True, metavar="DIR", help="the directory to publish into")
    publish.add_argument("--grid", action="append", default=[], metavar="GRID", help="only this grid's; repeatable")
    publish.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="the store (default: runs)")
    publish.add_argument(
        "--from",
        dest="others",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="published boards of others to merge with, of the same grid and data set; repeatable",
    )
    publish.add_argument("--incomplete", action="store_true", help="even where cells failed or were not run")
    _add_plugin(publish)
    publish.set_defaults(do=_publish)

    check = commands.add_parser("check", help="check one component against what is asked of its kind")
    check.add_argument("name", metavar="NAME", help="a component, as in pgd or pgd[steps=20]")
    check.add_argument("--kind", metavar="KIND", help="only the component of this kind, where several share the name")
    _add_plugin(check)
    check.set_defaults(do=_check)

    clean = commands.add_parser("gc", help="show what the store holds, remove what no record needs")
    clean.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="the store (default: runs)")
    clean.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    clean.set_defaults(do=_gc)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 all done, 1 some cells failed or the store could not be written, 2 the request was wrong, 130 interrupted.
    """
    top = parser()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        commands = next(action.choices for action in top._actions if isinstance(action, argparse._SubParsersAction))
        if words and not words[0].startswith("-") and words[0] not in commands:
            raise RequestError(f'there is no command "{words[0]}"; {did_you_mean(words[0], commands)}')
        options, unknown = top.parse_known_args(words)
        if unknown:
            _refuse_option(unknown[0], commands[options.command] if options.command else top)
        if options.version:
            from importlib.metadata import version

            print(version("robbench"))
            return 0
        if options.command is None:
            top.print_help()
            return 0
        do: Callable[[argparse.Namespace], int] = options.do
        return do(options)
    except RequestError as error:
        print(f"robbench: {error}", file=sys.stderr)
        return 2
    except StoreError as error:
        print(f"robbench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("robbench: interrupted; what was finished is kept, run again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _refuse_option(word: str, command: argparse.ArgumentParser) -> NoReturn:
    known = [option for action in command._actions for option in action.option_strings]
    hint = did_you_mean(word, known) if word.startswith("-") else f"see {command.prog} --help"
    raise RequestError(f'{command.prog} does not know "{word}"; {hint}')


def _run(options: argparse.Namespace) -> int:
    from robbench.planning.finished_requests import carried_out, standing
    from robbench.planning.grid import read_grid
    from robbench.results.store import Store

    request = _request(options)
    store = Store(options.out)
    read_grid(request.grid)
    store.check()
    rests_on = standing(request)
    before = None if options.fresh else carried_out(rests_on, store)
    if before is not None:
        print(f"Nothing to do: all {before[1]} cells of {before[0]} are done. Boards: {store.root / 'leaderboards'}")
        return 0

    from robbench.cli.display import Display, show_boards
    from robbench.execution.local import default_workers
    from robbench.execution.runner import execute, forget, note_boards, refresh, remaining, write_boards
    from robbench.planning.planner import make_plan

    plan = make_plan(request)
    if options.fresh:
        with store.lock(exclusive=True):
            forget(plan, store)
    with store.lock():
        store.forget_request(rests_on)
        noted = note_boards(plan, store)
        work = remaining(plan, store)
        refresh(plan, store)
        with Display(plan, work) as display:
            execute(plan, work, options.workers or default_workers(plan.device), display.tell)
        boards = write_boards(store, noted)
        store.note_request(rests_on, plan.name, noted)
    show_boards(boards, store.root)
    return 1 if boards.failed() else 0


def _plan(options: argparse.Namespace) -> int:
    from robbench.cli.display import show_plan
    from robbench.planning.grid import read_grid
    from robbench.planning.planner import make_plan
    from robbench.results.store import Store

    store = Store(options.out)
    read_grid(options.grid)
    store.check()
    show_plan(make_plan(_request(options)), store, every_cell=options.cells)
    return 0


def _search(options: argparse.Namespace) -> int:
    from robbench.planning.grid import read_grid
    from robbench.results.store import Store

    read_grid(options.grid)
    Store(options.out).check()
    from robbench.cli.display_search import show_search, show_trial
    from robbench.planning.planner import make_plan
    from robbench.training.hyperparameter_search import prepare, search

    wanted = prepare(make_plan(_request(options)), options.row, options.batch_sizes)
    trials = search(wanted, options.trials, lambda trial: show_trial(trial, options.trials))
    return 0 if show_search(wanted, trials) else 1


def _labels(options: argparse.Namespace) -> int:
    from robbench.cli.display import show_labels
    from robbench.core.atomic_io import file_name
    from robbench.core.registry import Registry
    from robbench.data.label_issues import examine, write
    from robbench.leaderboards.plots.label_sheet import SHOWN, label_sheet
    from robbench.planning.planner import load_data
    from robbench.results.store import Store

    store = Store(options.out)
    store.check()
    data = load_data(Registry(tuple(options.plugin)), options.dataset, options.data_dir, options.out, "--dataset")
    listing = examine(data.source, data.splits)
    sheet = label_sheet(listing.worst(SHOWN)) if len(listing.found) else None
    with store.lock():
        files = write(listing, store.root / "labels" / file_name(data.choice.label), sheet)
    show_labels(data.choice.label, listing, files)
    return 0


def _list(options: argparse.Namespace) -> int:
    from robbench.cli.display import show_components

    kind = options.kind
    if kind is not None and kind not in KIND_NAMES and kind.removesuffix("s") in KIND_NAMES:
        kind = kind.removesuffix("s")
    if kind is not None and kind not in (*KIND_NAMES, "toolbox"):
        raise RequestError(f'there is no kind "{kind}"; {did_you_mean(kind, (*KIND_NAMES, "toolbox"))}')
    show_components(kind, tuple(options.plugin))
    return 0


def _check(options: argparse.Namespace) -> int:
    from robbench.cli.display import show_findings
    from robbench.conformance import check, kinds_of
    from robbench.core.registry import Registry

    registry = Registry(tuple(options.plugin))
    kinds, kind = kinds_of(registry, options.name), options.kind
    if kind is not None and kind not in kinds:
        raise RequestError(f'there is no {kind} "{options.name}"; {did_you_mean(kind, kinds)}', "--kind")
    checked = [kind] if kind else kinds
    kept = [show_findings(kind, options.name, check(registry, kind, options.name)) for kind in checked]
    return 0 if all(kept) else 1


def _report(options: argparse.Namespace) -> int:
    if options.published:
        from robbench.results.publishing import rewrite

        return _shown(rewrite(options.published), options.published)
    from robbench.cli.display import show_boards
    from robbench.execution.runner import write_boards
    from robbench.results.store import Store

    store = Store(options.out)
    boards = write_boards(store, _noted_boards(store, options.grid))
    show_boards(boards, store.root)
    return 1 if boards.failed() else 0


def _publish(options: argparse.Namespace) -> int:
    from robbench.core.registry import Registry
    from robbench.results.publishing import publish
    from robbench.results.store import Store

    store = Store(options.out)
    boards = _noted_boards(store, options.grid)
    registry = Registry(tuple(options.plugin))
    published = publish(store, boards, options.to, options.others, registry, options.incomplete)
    return _shown(published, options.to)


def _shown(published: Published, target: Path) -> int:
    from robbench.cli.display import show_published

    show_published(published, target)
    for board, reason in published.refused.items():
        print(f"robbench: {board}: {reason}", file=sys.stderr)
    return 1 if published.refused else 0


def _noted_boards(store: Store, grids: Sequence[str]) -> list[str]:
    """The boards of a store, or of some of its grids."""
    known: dict[str, list[str]] = {}
    for board, note in store.boards().items():
        known.setdefault(str(note["grid"]), []).append(board)
    if not known:
        raise RequestError(f'"{store.root}" holds no run yet; robbench run makes one', "--out")
    for grid in grids:
        if grid not in known:
            raise RequestError(f'no grid "{grid}" was run into {store.root}; {did_you_mean(grid, known)}', "--grid")
    return [board for grid in dict.fromkeys(grids or known) for board in known[grid]]


def _gc(options: argparse.Namespace) -> int:
    from robbench.cli.display import show_cleaning
    from robbench.results.garbage_collection import clean
    from robbench.results.store import Store

    store = Store(options.out)
    if not store.root.is_dir():
        raise RequestError(f'"{options.out}" is not there', "--out")
    show_cleaning(clean(store, dry_run=options.dry_run), dry_run=options.dry_run)
    return 0


def _request(options: argparse.Namespace) -> Request:
    from robbench.planning.grid import Request

    return Request(
        grid=options.grid,
        out=options.out,
        dataset=options.dataset,
        data_dir=options.data_dir,
        limit=options.limit,
        seeds=options.seeds,
        device=options.device,
        precision=options.precision,
        plugins=tuple(options.plugin),
        audit=options.audit,
    )
