"""Boards of a run that goes on: made now and then of what is finished, in a process beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from robbench.core.errors import StoreError
from robbench.execution.boards import write_boards
from robbench.execution.processes import Child
from robbench.results.store import Store

if TYPE_CHECKING:
    from robbench.core.registry import Registry
    from robbench.planning.plan import Plan


@contextlib.contextmanager
def interim_boards(plan: Plan, boards: Collection[str], every: float | None) -> Iterator[None]:
    """Make boards of what is finished while a plan is carried out; their pages load themselves again.

    Args:
        plan: The plan.
        boards: Names of its boards.
        every: Seconds between one time and the next; None to leave boards for the end.
    """
    if every is None:
        yield
        return
    apart = bool(plan.registry.plugins())
    given = (plan.request.out, tuple(boards), plan.registry, every)
    child = Child.start(_make_now_and_then, *given, device="cpu", apart=apart)
    try:
        yield
    finally:
        child.end()


def _make_now_and_then(
    parent: Connection, out: Path, boards: Collection[str], registry: Registry, every: float
) -> None:
    while not parent.poll(every):
        with contextlib.suppress(StoreError):  # the run will say so
            write_boards(Store(out), boards, registry, again=False, reload=every)
