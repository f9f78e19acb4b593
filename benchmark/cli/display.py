"""What people see in the terminal: progress, plans, lists and summaries."""

from __future__ import annotations

import inspect
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from robbench.results.store import Store

if TYPE_CHECKING:
    from robbench.conformance.rules import RuleResult
    from robbench.core.registry import Registration
    from robbench.data.label_issues import Listing
    from robbench.execution.jobs import Progress as Event
    from robbench.execution.runner import Boards, Work
    from robbench.planning.cost_estimate import Cost
    from robbench.planning.plan import Cell, Plan
    from robbench.results.garbage_collection import Holding
    from robbench.results.publishing import Published


class Terminal(Console):
    """A console whose reader may go away; what to do about that is the command's to say."""

    def on_broken_pipe(self) -> None:
        """Let the error through, in place of leaving with status 1."""
        raise BrokenPipeError


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _bytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def _table(title: str | None = None, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column)
    return table


@dataclass
class Display:
    """Live progress of a run: bars in a terminal, a line per finished model elsewhere."""

    plan: Plan
    work: Work
    console: Console = field(default_factory=Terminal)
    _started: float = field(default_factory=time.monotonic)
    _bars: Progress | None = None
    _overall: TaskID | None = None
    _tasks: dict[str, TaskID] = field(default_factory=dict)
    _left: dict[str, int] = field(default_factory=dict)
    _finished: int = 0
    _failed: int = 0

    def __enter__(self) -> Self:
        """Say what is going to be done."""
        self._left = {
            f"{job.data.choice.label} · {job.spec.label} · seed {job.seed}": len(cells) for job, cells in self.work
        }
        total = sum(len(job.cells) for job in self.plan.jobs)
        self.console.print(
            f"{self.plan.name}: {total} cells of {len(self.plan.jobs)} models; "
            f"{total - self._to_do} done, {self._to_do} to do",
            highlight=False,
        )
        if self.console.is_terminal and self.work:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=16), TextColumn("{task.fields[state]}"))
            self._bars = Progress(*columns, console=self.console, transient=True)
            self._overall = self._bars.add_task("all cells", total=self._to_do, state="")
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bars away and say how long it took."""
        if self._bars is not None:
            self._bars.stop()
        if self.work:
            failed = f", {self._failed} failed" if self._failed else ""
            self.console.print(f"{self._finished} cells in {_duration(self._elapsed)}{failed}", highlight=False)

    @property
    def _to_do(self) -> int:
        return sum(len(cells) for _, cells in self.work)

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _time_left(self) -> str:
        if not self._finished:
            return "time left unknown"
        return f"about {_duration(self._elapsed / self._finished * (self._to_do - self._finished))} left"

    def tell(self, event: Event) -> None:
        """Show that something happened."""
        record = event.finished
        if record is not None:
            self._finished += 1
            self._left[event.job] -= 1
            if record.status == "failed":
                self._failed += 1
                self._say(f"failed: {event.job} · {event.activity}: {record.reason}")
        if self._bars is None:
            if record is not None and not self._left[event.job]:
                state = f"{self._finished}/{self._to_do} cells, {_duration(self._elapsed)}, {self._time_left()}"
                self._say(f"[{state}] {event.job}")
            return
        if record is not None and not self._left[event.job]:
            task = self._tasks.pop(event.job, None)
            if task is not None:
                self._bars.remove_task(task)
        elif record is None:
            task = self._tasks.get(event.job)
            if task is None:
                task = self._tasks[event.job] = self._bars.add_task(_short(event.job), total=1, state="")
            self._bars.update(
                task, completed=event.done, total=event.of, state=f"{event.activity} {event.done}/{event.of}"
            )
        assert self._overall is not None
        state = f"{self._finished}/{self._to_do}, {_duration(self._elapsed)}, {self._time_left()}"
        self._bars.update(self._overall, completed=self._finished, state=state)

    def _say(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)


def _short(label: str, width: int = 34) -> str:
    return label if len(label) <= width else f"{label[: width - 1]}…"


def show_boards(boards: Boards, root: Path) -> None:
    """The top of every board, and the files that were written."""
    from robbench.leaderboards.summary import summary_rows

    console = Terminal()
    for board, cells in boards.cells.items():
        rows = summary_rows(cells)
        table = _table(f"\n{board}", *(rows[0] if rows else ()))
        for row in rows[:10]:
            table.add_row(*(Text(value) for value in row.values()))
        console.print(table)
        if len(rows) > 10:
            console.print(f"… and {len(rows) - 10} more rows in the board", highlight=False)
        console.print(Text("Files: " + str(root / "leaderboards" / board)), soft_wrap=True)
        console.print(Text("  " + ", ".join(path.name for path in boards.files[board])), soft_wrap=True)
    for board, count in boards.missing.items():
        if count:
            console.print(f"{board}: {count} cells were not run yet", highlight=False)
    for record in boards.failed():
        line = f"failed: {record.spec.model.label} · {record.spec.condition.label}: {record.reason}"
        console.print(Text(line), soft_wrap=True)


def show_plan(plan: Plan, store: Store, every_cell: bool) -> None:
    """The jobs of a plan, what is done and what the rest will cost."""
    from robbench.execution.runner import remaining
    from robbench.planning.cost_estimate import NOTHING, Rates, cost

    console = Terminal()
    rates = Rates.of(store, plan.jobs)
    left: dict[str, list[Cell]] = {}
    for job, cells in remaining(plan, store):
        left.setdefault(job.key, []).extend(cells)
    total, done, count = NOTHING, 0, 0
    console.print(Text(f"{plan.name}: {plan.grid.title}" if plan.grid.title else plan.name))
    for name, jobs in itertools.groupby(plan.jobs, key=lambda job: job.data.choice.label):
        table = _table(f"\n{name}", "model")
        for heading in ("seed", "done", "passes left", "time left"):
            table.add_column(heading, justify="right", no_wrap=True)
        for job in jobs:
            cells = left.get(job.key, [])
            expected = cost(job, cells, store, rates) if job.key in left else NOTHING
            finished = len(job.cells) - len(cells)
            total, done, count = total + expected, done + finished, count + len(job.cells)
            table.add_row(Text(job.spec.label), str(job.seed), f"{finished}/{len(job.cells)}", *_forecast(expected))
            for cell in job.cells if every_cell else ():
                record = store.record(cell.key)
                state = "to do" if record is None else record.status
                table.add_row(Text(f"  {cell.condition.label}", style="dim"), "", state, cell.key[:8], "")
        console.print(table)
    passes, seconds = _forecast(total)
    time_left = f"{seconds} of one worker" if seconds else "a time that is not known before something has run"
    console.print(f"{count} cells, {done} done; left: at most about {passes} passes, {time_left}", highlight=False)


def _forecast(expected: Cost) -> tuple[str, str]:
    passes = expected.forwards + expected.backwards
    return f"{passes:,.0f}", "" if expected.seconds is None else _duration(expected.seconds)


def show_labels(dataset: str, listing: Listing, files: Sequence[Path]) -> None:
    """The suspected label errors per class, and what to think of them."""
    console = Terminal()
    table = _table(None, "class")
    table.title = Text(f"\n{dataset}")
    for heading in ("images", "suspects", "share"):
        table.add_column(heading, justify="right")
    table.add_column("mostly suggested")
    for name, images, suspects, suggested in listing.counts():
        share = f"{100 * suspects / images:.1f} %"
        table.add_row(Text(name), f"{images:,}", f"{suspects:,}", share, Text(suggested))
    console.print(table)
    console.print(
        f"Suspects, not errors: a simple model that agrees with {100 * listing.found.balanced_accuracy:.1f} % of the "
        "labels (balanced) doubts these. The less it agrees, the more of them are merely hard: look before you judge.",
        highlight=False,
    )
    console.print(Text("Files: " + ", ".join(str(path) for path in files)), soft_wrap=True)


def show_components(kind: str | None, plugins: Sequence[Path]) -> None:
    """What is registered, with parameters, norms and one line each."""
    from robbench.core.registry import KINDS, Registry
    from robbench.planning.grid import built_in_grids, parse_grid

    console = Terminal()
    if kind == "toolbox":
        from robbench.attacks.toolbox import toolbox_names

        for name in toolbox_names():
            console.print(Text(name))
        return
    registry = Registry(tuple(plugins))
    for wanted in KINDS:
        if kind not in (None, wanted):
            continue
        table = _table(f"\n{wanted}", "name", *(["norms"] if wanted == "attack" else []), "what it is; parameters")
        for name, entry in registry.entries(wanted).items():
            signature = ", ".join(_parameters(entry))
            origin = f"\n(plugin {entry.plugin}: {entry.file})" if entry.plugin else ""
            text = (
                Text(entry.summary.replace("``", ""))
                .append(f"\n{signature}" if signature else "", style="dim")
                .append(origin)
            )
            table.add_row(name, *([" ".join(entry.mark.norms)] if wanted == "attack" else []), text)
        if wanted == "attack":
            table.add_row("art:NAME", "", Text("Any evasion attack of the toolbox; robbench list toolbox names them."))
        console.print(table)
    if kind in (None, "grid"):
        table = _table("\ngrid", "name", "what it is")
        for name, content in built_in_grids().items():
            table.add_row(name, Text(parse_grid(content, f"grid {name}").title))
        console.print(table)


def _parameters(entry: Registration) -> list[str]:
    """What can be set, less what every component of the kind has and this one leaves as it is."""
    kind = next(cls for cls in entry.cls.__mro__ if cls.__name__ == entry.mark.kind.capitalize())
    shared = {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}
    found = []
    for name, parameter in inspect.signature(entry.cls).parameters.items():
        default = entry.mark.preset.get(name, parameter.default)
        if name not in shared or shared[name] != default:
            found.append(name if default is parameter.empty else f"{name}={_value(default)}")
    return found


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return "|".join(_value(item) for item in value) or "()"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show_findings(kind: str, name: str, findings: Sequence[RuleResult]) -> bool:
    """What a component keeps to and what it breaks. Returns whether it breaks nothing."""
    words = {True: Text("pass", style="green"), False: Text("broken", style="red"), None: Text("n/a", style="dim")}
    table = _table(None, "", "rule", "what was found")
    table.title = Text(f"\n{kind} {name}")  # as it is: the brackets of parameters are no markup
    for finding in findings:
        table.add_row(words[finding.passed], Text(finding.rule), Text(finding.detail))
    console = Terminal()
    console.print(table)
    broken = sum(finding.passed is False for finding in findings)
    console.print(f"{broken} of {len(findings)} rules broken", highlight=False)
    return not broken


def show_published(published: Published, target: Path) -> None:
    """What was published, and what is to be said of it; what was refused is the command's to say."""
    console = Terminal()
    for board, count in published.cells.items():
        console.print(Text(f"{board}: {count} cells checked and published in {target / board}"), soft_wrap=True)
        for remark in published.remarks[board]:
            console.print(Text(f"  {remark}"), soft_wrap=True)
    for where in published.unused:
        console.print(Text(f"{where}: not used; none of the boards is of its grid and data set"), soft_wrap=True)


def show_cleaning(holdings: Sequence[Holding], dry_run: bool) -> None:
    """What the store holds and what was removed from it."""
    table = _table(None, "what")
    for name in ("kept", "size", "would be removed" if dry_run else "removed", "size"):
        table.add_column(name, justify="right")
    for holding in holdings:
        (kept, size), (removed, freed) = holding.kept, holding.removed
        table.add_row(holding.name, str(kept), _bytes(size), str(removed), _bytes(freed))
    Terminal().print(table)
