"""A worker process: trains and judges what it is handed, and has plugins of others run elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from robbench.core.errors import StoreError
from robbench.execution.helpers import Helpers, Task
from robbench.execution.jobs import carry_out


@dataclass(frozen=True)
class Begun:
    """Says that a task is begun: the process has started."""


@dataclass(frozen=True)
class Over:
    """Says that a task is over.

    Attributes:
        error: Why the run cannot go on, or empty.
    """

    error: str = ""


def work(parent: Connection, threads: int) -> None:
    """Carry out tasks until no more come."""
    torch.set_num_threads(threads)
    while True:
        try:
            task: Task = parent.recv()
        except EOFError:
            return
        parent.send(Begun())
        parent.send(Over(_error(parent, task)))


def _error(parent: Connection, task: Task) -> str:
    try:
        plan = task.portion.open()
        job, wanted = plan.jobs[0], set(task.cells)
        cells = [cell for cell in job.cells if cell.key in wanted]
        carry_out(plan, job, cells, parent.send, Helpers(parent, task))
    except StoreError as error:
        return str(error) or "the store cannot be written"
    return ""
