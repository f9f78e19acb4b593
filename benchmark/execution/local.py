"""Carrying out a plan on this machine, in worker processes."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from robbench.core.errors import StoreError
from robbench.execution.jobs import Progress, Tell, carry_out
from robbench.planning.grid import Request
from robbench.planning.plan import Cell, Job, Plan
from robbench.planning.planner import make_plan

Work = Sequence[tuple[Job, Sequence[Cell]]]


def default_workers(device: str) -> int:
    """One on an accelerator; on a CPU one per core, four at the most."""
    return 1 if device != "cpu" else min(4, cores())


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_locally(plan: Plan, work: Work, workers: int, tell: Tell) -> None:
    """Carry out the jobs, each worker with its share of the cores.

    A job whose model starts from another's waits for it.

    Args:
        plan: The plan.
        work: Jobs with those of their cells that are to be done.
        workers: Number of worker processes; with one, the work is done in this process.
        tell: Called in this process as work goes on.

    Raises:
        StoreError: If results cannot be kept, or a worker dies.
    """
    threads = max(1, cores() // workers)
    if workers == 1:
        import torch

        torch.set_num_threads(threads)
        order = {job.key: position for position, job in enumerate(plan.jobs)}
        for job, cells in sorted(work, key=lambda item: (_is_late(item[1]), order[item[0].key])):
            carry_out(plan, job, cells, tell)
        return
    context = multiprocessing.get_context("spawn")
    messages: Any = context.Queue()
    pool = ProcessPoolExecutor(
        max_workers=min(workers, len(work)),
        mp_context=context,
        initializer=_begin,
        initargs=(plan.request, threads, messages, os.getpid()),
    )
    try:
        _dispatch(pool, work, lambda: _pass_on(messages, tell))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        _pass_on(messages, tell)
        for process in multiprocessing.active_children():
            process.terminate()


def _dispatch(pool: ProcessPoolExecutor, work: Work, drain: Callable[[], None]) -> None:
    # A job whose cells work through other models comes as two items, and only the first of them trains.
    unfinished = {job.key for job, cells in work if not _is_late(cells)}
    waiting = list(work)
    running: dict[Future[None], str] = {}
    while waiting or running:
        ready = [item for item in waiting if not unfinished.intersection(_awaited(*item))]
        for item in ready:
            waiting.remove(item)
            future = pool.submit(_do, item[0].key, tuple(cell.key for cell in item[1]))
            running[future] = item[0].key
        finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
        drain()
        for future in finished:
            unfinished.discard(running.pop(future))
            try:
                future.result()
            except BrokenProcessPool as error:
                raise StoreError(
                    "a worker process died (out of memory?); what was finished is kept; run again with fewer --workers"
                ) from error


def _is_late(cells: Sequence[Cell]) -> bool:
    return any(cell.peers for cell in cells)


def _awaited(job: Job, cells: Sequence[Cell]) -> set[str]:
    """Keys of the models that must be trained first."""
    own = {job.key} if _is_late(cells) else set()
    return own | ({job.start} if job.start else set()) | {key for cell in cells for key in cell.peers}


def _pass_on(messages: Any, tell: Tell) -> None:
    while True:
        try:
            message: Progress = messages.get_nowait()
        except (queue.Empty, OSError, ValueError):
            return
        tell(message)


_worker: dict[str, Any] = {}


def _begin(request: Request, threads: int, messages: Any, parent: int) -> None:
    import torch

    torch.set_num_threads(threads)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    plan = make_plan(request)
    jobs: Mapping[str, Job] = {job.key: job for job in plan.jobs}
    _worker.update(plan=plan, jobs=jobs, messages=messages)


def _end_with(parent: int) -> None:
    """A worker whose parent was killed must not go on writing beside the run that resumes."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _do(key: str, cells: Sequence[str]) -> None:
    plan, job = _worker["plan"], _worker["jobs"].get(key)
    if job is None:
        raise StoreError("a plugin or data set was changed while the run was going on; run again")
    wanted = [cell for cell in job.cells if cell.key in set(cells)]
    carry_out(plan, job, wanted, _worker["messages"].put)
