"""``robbench status``: how far the runs of a store are, and its boards."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from robbench.cli import _command
from robbench.core.errors import RequestError

if TYPE_CHECKING:
    from robbench.cli._display import Terminal
    from robbench.results.run_states import RunState
    from robbench.results.store import Store


def _options(parser: argparse.ArgumentParser) -> None:
    _command.add_store(parser)


def _action(options: argparse.Namespace) -> int:
    from robbench.cli._display import Terminal
    from robbench.results.run_states import run_states
    from robbench.results.store import Store

    store = Store(options.out)
    states = run_states(store.root)
    if not states and not store.board_names():
        raise RequestError(f'"{options.out}" holds no run yet; robbench run makes one', "--out")
    console = Terminal()
    for state in states.values():
        _show_run(console, state)
    if not states:
        console.print("No run is going on.")
    _show_boards(console, store)
    return 0


COMMAND = _command.Command(
    place=22,
    summary="show how far a run is, from another shell",
    about="Shows of each run that is going on its cells done, failed and to do, what its workers do and the time left; "
    "and the cells of each board. It only reads, and takes a moment.",
    examples=(
        ("robbench status", "the runs and boards of the store runs"),
        ("robbench status --out other", "those of another store"),
    ),
    options=_options,
    action=_action,
    failed="1 the store is damaged",
)


def _show_run(console: Terminal, state: RunState) -> None:
    from robbench.cli._display import duration, table
    from robbench.results.run_states import SILENCE

    now = time.time()
    place = f"process {state.pid} on {state.host}"
    if state.silent > SILENCE:
        console.say(f"{state.grid}: no sign of life for {duration(state.silent)}, {place}; run again to go on")
    else:
        left = "" if state.seconds_left is None else f", about {duration(state.seconds_left)} left"
        console.say(f"{state.grid}: running for {duration(now - state.began)}{left}, {place}")
    done = state.cells - state.to_do + state.finished - state.failed
    to_do = state.to_do - state.finished
    console.print(f"{state.cells} cells: {done} done, {state.failed} failed, {to_do} to do\n")
    if state.doing and state.silent <= SILENCE:
        made = table("model", "doing", numbers=("for",))
        for doing in state.doing:
            count = f" {doing.done}/{doing.of}" if doing.of else ""
            made.add_row(doing.model, f"{doing.activity}{count}", duration(now - doing.since))
        console.print(made)
        console.print()


def _show_boards(console: Terminal, store: Store) -> None:
    from robbench.cli._display import table
    from robbench.results.store_index import StoreIndex

    index = StoreIndex.of(store)
    made = table("board", numbers=("done", "failed", "to do"))
    for board in store.board_names():
        states = [index.status(key) for key in store.board(board)["cells"]]
        done, failed = sum(state in ("done", "unsupported") for state in states), states.count("failed")
        made.add_row(board, *map(str, (done, failed, len(states) - done - failed)))
    console.print(made)
