"""``robbench run``: train, attack, score and write the boards of a grid."""

from __future__ import annotations

import argparse
import contextlib
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self

from robbench.cli import _command
from robbench.core.errors import RequestError, warn
from robbench.core.safe_text import visible

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from robbench.cli._display import Terminal
    from robbench.execution.jobs import Progress as Event
    from robbench.execution.jobs import Tell
    from robbench.execution.runner import Work
    from robbench.execution.tally import Tally
    from robbench.planning.plan import Plan
    from robbench.results.schema import Record


WATCHED = 30.0
"""Seconds after which boards are made again while they are watched."""


def _options(parser: argparse.ArgumentParser) -> None:
    _command.add_request(parser)
    _command.add_conditions(parser)
    running = parser.add_argument_group("how")
    running.add_argument(
        "--workers", type=_command.positive, metavar="N", help="worker processes (default: one per core, up to 4)"
    )
    running.add_argument(
        "--executor",
        choices=("local", "ray"),
        default="local",
        help="where it is done: in processes of this machine, or on those of a ray cluster, with the extra ray "
        "(default: local)",
    )
    running.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="of the cluster, as HOST:6379 (default: that of $RAY_ADDRESS or of this machine, or else a new one)",
    )
    running.add_argument(
        "--cell-timeout",
        type=_command.seconds,
        metavar="TIME",
        help="most time for a cell, or for an epoch of training with a plugin, as 90s, 30m or 6h; what takes longer "
        "is ended and fails (default: 24h)",
    )
    running.add_argument(
        "--keep-images",
        action="store_true",
        help="keep all attacked images as float32, exactly as they are judged (Report.adversarial_examples)",
    )
    running.add_argument(
        "--store-from",
        dest="sources",
        type=_command.path,
        action="append",
        default=[],
        metavar="DIR",
        help="a store of others, which is only read: what it has finished of this is taken over; repeatable",
    )
    running.add_argument(
        "--watch",
        type=_command.seconds,
        nargs="?",
        const=WATCHED,
        metavar="TIME",
        help="make the boards of what is finished again and again while the run goes on, after each TIME (default: "
        "30s); their pages load themselves again",
    )
    running.add_argument(
        "--fresh",
        action="store_true",
        help="delete what the store holds of this request and do it again; ask for pretrained weights again, too",
    )
    _command.add_loudness(parser, "the boards' files")


def _action(options: argparse.Namespace) -> int:
    from robbench.execution.runner import run
    from robbench.planning.inputs import Finished

    watch = functools.partial(watched, quiet=options.quiet, verbose=options.verbose)
    if options.ray_address and options.executor != "ray":
        raise RequestError("it says where --executor ray is to connect to; add that, or leave it out", "--ray-address")
    done = run(
        _command.request(options),
        options.workers,
        options.fresh,
        watch,
        options.cell_timeout,
        boards_every=options.watch,
        sources=options.sources,
        executor=options.executor,
        address=options.ray_address,
    )
    if isinstance(done, Finished):
        if not options.quiet:
            print(f"Nothing to do: all {done.cells} cells of {visible(done.grid)} are done.")
        for board in done.boards:
            print(f"Board: {visible(options.out / 'leaderboards' / board / 'index.html')}")
        return 0
    from robbench.cli._display import show_boards

    show_boards(done, options.out, tables=not options.quiet)
    return 1 if done.unfinished or done.failed() or any(done.missing.values()) or done.refused else 0


@contextlib.contextmanager
def watched(plan: Plan, work: Work, quiet: bool = False, verbose: bool = False) -> Iterator[Tell]:
    """Show a run in the terminal as it goes on."""
    from robbench.cli._display import Terminal

    if quiet:
        yield _tell_failures
        return
    with Display(plan, work, Terminal(), verbose) as display:
        yield display.tell


def _tell_failures(event: Event) -> None:
    """Say of cells that failed why; of others nothing."""
    if event.finished is not None and event.finished.status == "failed":
        warn(visible(_failure(event)))


def _failure(event: Event) -> str:
    assert event.finished is not None
    return f"failed: {event.job} · {event.activity}: {event.finished.reason}"


COMMAND = _command.Command(
    place=10,
    summary="train, attack, score and write the boards of a grid",
    about="Trains the models of a grid, runs its conditions on them and writes the boards. What the store holds is not "
    "done again, and an interrupted run goes on where it stopped.",
    examples=(
        ("robbench run --grid smoke", "a minute's run on digits"),
        ("robbench run --grid quick --limit 100 --audit", "100 test images a condition, with the audit"),
        ("robbench run --grid mine.toml --plugin gray.py --seeds 0,1,2", "a grid and an attack of your own"),
        ("robbench run --grid smoke --set models.epochs=5 --quiet", "every model trained for five epochs"),
    ),
    options=_options,
    action=_action,
    done="0 all cells done",
    failed="1 some cells failed (run again to retry), or the store cannot be written",
)


EVERY = 30.0
"""Seconds without a line after which one tells how far a run is, where there are no bars."""


@dataclass
class Display:
    """Live progress of a run: bars in a terminal; elsewhere a line per finished model, and one now and then.

    Attributes:
        plan: What is run.
        work: What of it is to be done.
        console: Where it is shown.
        verbose: Whether every cell has a line of its own, and failed ones their traceback.
    """

    plan: Plan
    work: Work
    console: Terminal
    verbose: bool = False
    _started: float = field(default_factory=time.monotonic)
    _said: float = field(default_factory=time.monotonic)
    _bars: Progress | None = None
    _overall: TaskID | None = None
    _tasks: dict[str, TaskID] = field(default_factory=dict)

    @functools.cached_property
    def _tally(self) -> Tally:
        from robbench.execution.tally import Tally
        from robbench.results.store import Store

        return Tally.of(self.work, Store(self.plan.request.out))

    def __enter__(self) -> Self:
        """Say what is going to be done."""
        to_do = self._tally.to_do
        total = sum(len(job.cells) for job in self.plan.jobs)
        self.console.print(
            f"{self.plan.name}: {total} cells of {len(self.plan.jobs)} model{'s' * (len(self.plan.jobs) != 1)}; "
            f"{total - to_do} done, {to_do} to do"
        )
        for remark in self.plan.remarks:
            self.console.say(f"note: {remark}")
        if self.console.is_terminal and self.work:
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=8),
                TextColumn("{task.fields[state]}", markup=False),
            )
            self._bars = Progress(*columns, console=self.console, transient=True)
            self._overall = self._bars.add_task("all cells", total=to_do, state="")
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bars away and say how long it took."""
        if self._bars is not None:
            self._bars.stop()
        if self.work:
            failed = f", {self._tally.failed} failed" if self._tally.failed else ""
            self.console.print(f"{self._tally.finished} cells in {self._elapsed()}{failed}")

    def _elapsed(self) -> str:
        from robbench.cli._display import duration

        return duration(time.monotonic() - self._started)

    def _state(self) -> str:
        from robbench.cli._display import duration

        seconds = self._tally.seconds_left(time.monotonic() - self._started)
        left = "time left unknown" if seconds is None else f"about {duration(seconds)} left"
        return f"{self._tally.finished}/{self._tally.to_do}, {self._elapsed()}, {left}"

    def tell(self, event: Event) -> None:
        """Show that something happened."""
        record = event.finished
        self._tally.count(event)
        if record is not None:
            if record.status == "failed":
                self.console.say(visible(_failure(event)))
            if self.verbose:
                self._say_cell(event, record)
        if self._bars is None:
            self._say_progress(event)
            return
        if event.job not in self._tally.doing:
            task = self._tasks.pop(event.job, None)
            if task is not None:
                self._bars.remove_task(task)
        elif record is None:
            task = self._tasks.get(event.job)
            if task is None:
                task = self._tasks[event.job] = self._bars.add_task(_short(visible(event.job)), total=1, state="")
            count = f" {event.done}/{event.of}" if event.of else ""
            state = f"{visible(event.activity)}{count}"
            self._bars.update(task, completed=event.done, total=event.of or 1, state=state)
        assert self._overall is not None
        self._bars.update(self._overall, completed=self._tally.finished, state=self._state())

    def _say_progress(self, event: Event) -> None:
        """A line for a model that is finished, or for what is being done where none was said for a while."""
        text = event.job
        if event.finished is None or self._tally.left[event.job] or self.verbose:
            if time.monotonic() < self._said + EVERY:
                return
            count = f" {event.done}/{event.of}" if event.of else ""
            text = f"{event.job} · {event.activity}{count}"
        self.console.say(f"[{self._state()}] {visible(text)}")
        self._said = time.monotonic()

    def _say_cell(self, event: Event, record: Record) -> None:
        """A line for a cell that is finished, after the traceback of one that failed."""
        if event.trace:
            self.console.say(event.trace)
        found = record.metrics.get("robust_accuracy", record.metrics.get("accuracy"))
        result = f"{100 * found.value:.1f} %" if found else record.status
        self.console.say(f"[{self._state()}] {visible(f'{event.job} · {event.activity}: {result}')}")
        self._said = time.monotonic()


def _short(label: str, width: int = 32) -> str:
    return label if len(label) <= width else f"{label[: width - 1]}…"
