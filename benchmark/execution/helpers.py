"""The way from a worker to the processes in which plugins run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Literal

from robbench.execution.plugin_process import Lost, PluginFailure, RemoteAttacker, with_foreign_metrics
from robbench.execution.portion import attack_sources
from robbench.execution.tasks import Task
from robbench.planning.plan import Cell
from robbench.results.schema import Outcome, Record


@dataclass(frozen=True)
class Wanted:
    """Asks the parent for a process that runs the plugins of a cell, whose pipe is sent back."""

    what: Literal["attack", "measure"]


@dataclass(frozen=True)
class Gone:
    """Asks the parent what became of that process."""


@dataclass(frozen=True)
class Helpers:
    """The way from a job to processes that run plugins.

    Attributes:
        parent: The pipe to the process that starts them.
        task: What is being done.
    """

    parent: Connection
    task: Task

    @property
    def plugins(self) -> tuple[str, ...]:
        """Labels of all plugins of the run."""
        return self.task.facts.plugins

    def notes(self, cell: Cell) -> tuple[str, ...]:
        """What the record of a cell should say of where it was judged."""
        shared = attack_sources(cell) & self.task.loaded
        return ("judged in a process that had loaded the attack's plugin: the model is from it, too",) if shared else ()

    @contextmanager
    def attacker(self, cell: Cell) -> Iterator[RemoteAttacker | None]:
        """What attacks in place of the cell's own attacks; None where they are run here.

        Raises:
            PluginFailure: If the process that attacks is lost.
        """
        if not attack_sources(cell):
            yield None
            return
        with self._process("attack") as connection:
            yield RemoteAttacker(connection, len(cell.condition.stages))

    def measured(self, record: Record, outcome: Outcome) -> Record:
        """A record with the metrics of plugins beside those that it has.

        Raises:
            PluginFailure: If one fails.
        """
        facts = self.task.facts
        if not facts.foreign_metrics:
            return record
        with self._process("measure") as connection:
            return with_foreign_metrics(record, outcome, facts.metrics, connection)

    @contextmanager
    def _process(self, what: Literal["attack", "measure"]) -> Iterator[Connection]:
        self.parent.send(Wanted(what))
        # Windows has another class of pipes.
        with type(self.parent)(recv_handle(self.parent)) as connection:
            try:
                yield connection
            except Lost:
                self.parent.send(Gone())
                raise PluginFailure(self.parent.recv()) from None
