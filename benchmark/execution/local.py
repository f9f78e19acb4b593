"""Carrying out a plan on this machine, in worker processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from robbench.core.errors import RequestError, StoreError
from robbench.core.registry import Registry
from robbench.execution.jobs import Progress, Tell, carry_out
from robbench.planning.plan import Cell, Job, Plan

Work = Sequence[tuple[Job, Sequence[Cell]]]


def default_workers(device: str) -> int:
    """One on an accelerator; on a CPU one per core, four at the most."""
    return 1 if device != "cpu" else min(4, cores())


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_locally(plan: Plan, work: Work, workers: int | None, tell: Tell) -> None:
    """Carry out the jobs, each worker with its share of the cores.

    A job whose model starts from another's waits for it.

    Args:
        plan: The plan.
        work: Jobs with those of their cells that are to be done.
        workers: Number of worker processes, None for what suits the device; with one, the work is done in this process.
        tell: Called in this process as work goes on.

    Raises:
        RequestError: If a plugin's component cannot be handed to a worker.
        StoreError: If results cannot be kept, or a worker dies.
    """
    if not work:
        return
    workers = workers or default_workers(plan.device)
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
        initargs=(plan.registry, _packed(plan), threads, messages, os.getpid()),
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


def _packed(plan: Plan) -> bytes:
    try:
        return pickle.dumps(plan)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise RequestError(
            f"worker processes cannot be handed the plan: {error}; define a plugin's classes at the top level of their "
            "file, or run with --workers 1"
        ) from None


def _begin(registry: Registry, plan: bytes, threads: int, messages: Any, parent: int) -> None:
    import torch

    torch.set_num_threads(threads)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _worker.update(registry=registry, plan=plan, messages=messages)


def _plan() -> Plan:
    """The plan that this worker was handed."""
    if isinstance(_worker["plan"], bytes):
        try:
            # The plan's components are pickled by the names of their modules, and those of plugins are made by loading.
            _worker["registry"].plugins()
            _worker["plan"] = pickle.loads(_worker["plan"])
        except (RequestError, ImportError, AttributeError, OSError) as error:
            raise StoreError("a plugin or data set was changed while the run was going on; run again") from error
    plan: Plan = _worker["plan"]
    return plan


def _end_with(parent: int) -> None:
    """A worker whose parent was killed must not go on writing beside the run that resumes."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _do(key: str, cells: Sequence[str]) -> None:
    plan = _plan()
    job = next(job for job in plan.jobs if job.key == key)
    carry_out(plan, job, [cell for cell in job.cells if cell.key in set(cells)], _worker["messages"].put)
