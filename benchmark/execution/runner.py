"""A run, from a request to its boards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from robbench.core.errors import RequestError, unless_damaged
from robbench.core.extras import require
from robbench.planning.inputs import Finished, Inputs, finished, read_request
from robbench.results.board_cells import renamed
from robbench.results.schema import Training
from robbench.results.store import Store, check_sources
from robbench.results.store_index import StoreIndex

if TYPE_CHECKING:
    from robbench.execution.boards import Boards
    from robbench.execution.jobs import Progress, Tell
    from robbench.models._external.loading import External
    from robbench.planning.grid import Request
    from robbench.planning.plan import Cell, Job, Plan

Work: TypeAlias = "list[tuple[Job, list[Cell]]]"
Watch: TypeAlias = "Callable[[Plan, Work], AbstractContextManager[Tell]]"


@contextlib.contextmanager
def unwatched(plan: Plan, work: Work) -> Iterator[Tell]:
    """Nobody looks on."""
    yield lambda progress: None


def run(
    asked: Request | Inputs,
    workers: int | None = None,
    fresh: bool = False,
    watch: Watch = unwatched,
    timeout: float | None = None,
    live: Mapping[str, External] | None = None,
    check: Callable[[Plan], None] = lambda plan: None,
    executor: str = "local",
    address: str | None = None,
    sources: Sequence[Path] = (),
    boards_every: float | None = None,
) -> Boards | Finished:
    """Train, attack, score and write the boards of a request; what is in the store is not done again.

    Args:
        asked: The request, or what was read of it.
        workers: Number of worker processes; None for what suits the device.
        fresh: Whether to do everything again.
        watch: Shows the work; gives what is to be called as it goes on.
        timeout: Seconds that one cell, or one epoch of training with plugins, may take; None for a day.
        live: Models that were loaded already, by the ``source`` that the grid names them by. Those that were handed
            over, whose source is empty, are evaluated in this process.
        check: Called with the plan before anything is done; refuses it by raising ``RequestError``.
        executor: ``local`` for processes of this machine, ``ray`` for the machines of a ray cluster.
        address: Of that cluster; see ``robbench.execution.ray_cluster.connect``.
        sources: Other stores, whose finished work is copied and not done again; nothing is written to them.
        boards_every: Seconds after which boards are made again of what is finished; None for the end alone.

    Returns:
        The boards, or what is known of the request if it was carried out before; that needs no torch.

    Raises:
        RequestError: If the request is wrong; nothing is written then.
        StoreError: If results cannot be kept.
    """
    # A plugin may change the working directory when it is loaded.
    inputs = asked if isinstance(asked, Inputs) else read_request(asked.absolute())
    store = Store(inputs.request.out)
    store.check()
    if executor == "ray":
        require("ray", "ray", "--executor ray")
    sources = [place.absolute() for place in sources]
    if sources and fresh:
        raise RequestError("--fresh does everything again, and --store-from takes over what is done; leave one out")
    check_sources(store, sources)
    before = None if fresh else finished(inputs, store)
    if before is not None:
        return before

    from robbench.execution.boards import note_boards, write_boards
    from robbench.execution.interim_boards import interim_boards
    from robbench.execution.local import CELL_TIMEOUT, run_here, run_locally
    from robbench.execution.portion import check_plan
    from robbench.execution.processes import prepare
    from robbench.execution.ray_cluster import connect, run_on_ray
    from robbench.execution.tally import announcing
    from robbench.planning.plan import ExternalJob
    from robbench.planning.planner import make_plan
    from robbench.results.other_stores import take_over

    prepare()
    plan = make_plan(inputs, fresh, live)
    check(plan)
    here = any(isinstance(job, ExternalJob) and job.live is not None for job in plan.jobs)
    if not here:
        check_plan(plan)
    if executor == "ray":
        connect(address)
    if fresh:
        with store.lock(exclusive=True):
            forget(plan, store)
    with store.lock():
        store.forget_request(inputs.key)
        boards = note_boards(plan, store)
        index = StoreIndex.of(store)
        for taken in take_over(plan, index, sources):
            taken.tell()
        work = remaining(plan, store, index)
        refresh(plan, store, {cell.key for _, cells in work for cell in cells})
        with (
            watch(plan, work) as show,
            announcing(plan, work, store) as announce,
            interim_boards(plan, boards, boards_every if work else None),
        ):

            def tell(event: Progress) -> None:
                announce(event)
                show(event)

            if here:
                run_here(plan, work, tell)
            elif executor == "ray":
                run_on_ray(plan, work, workers, tell, timeout or CELL_TIMEOUT)
            else:
                run_locally(plan, work, workers, tell, timeout or CELL_TIMEOUT)
        left = sum(_left(store, index, job, cells) for job, cells in work)
        index.save()  # so that boards need not look at them again
        written = write_boards(store, boards, plan.registry)
        if not left and not written.refused:
            kept = ((cell.key, cell.condition.keeps) for _, cell in plan.cells if not cell.refusal)
            store.note_request(inputs.key, plan.name, boards, {key: keeps for key, keeps in kept if keeps})
    return replace(written, unfinished=left)


def _left(store: Store, index: StoreIndex, job: Job, cells: Sequence[Cell]) -> int:
    """How many of a job's cells the next run is to try again; without cells, whether that is its model."""
    if cells:
        return sum(not index.has_cell(cell.key, cell.condition.keeps) for cell in cells)
    external = job.spec.external is not None
    return 0 if external or index.has_model(job.key) or store.diverged(job.key) else 1


def remaining(plan: Plan, store: Store, index: StoreIndex | None = None) -> Work:
    """The jobs that have cells to be done, and those whose weights another of them needs; largest first.

    Cells that work through other models stand apart from their job's other cells, and come last, with those that rest
    on them; after them, those that cost their process when they were last tried. What is damaged is to be done again.
    """
    from robbench.execution.jobs import cost_its_process

    work: Work = []
    late: Work = []
    last: Work = []
    index = index or StoreIndex.of(store)
    by_key = {job.key: job for job in plan.jobs}
    trained: dict[str, bool | None] = {job.key: True for job in plan.jobs}
    figured = dict(trained)
    own = {job.key for job in plan.trained}
    for job in plan.jobs:
        if not index.has_model(job.key):
            figured[job.key] = _answer(store.check_embeddings, job.key, "it is to be made again")
            if job.key in own:
                trained[job.key] = _answer(store.check_model, job.key, "its model is to be trained again")
    damaged = {key for states in (trained, figured) for key, state in states.items() if state is None}
    for job in plan.jobs:
        cells = [cell for cell in job.cells if not _finished(index, cell)]
        feared: list[Cell] = []
        for cell in cells:
            if cost_its_process(store, cell) or {other.key for other in feared}.intersection(cell.needs):
                feared.append(cell)
        cells = [cell for cell in cells if cell not in feared]
        through_peers = {cell.key for cell in cells if cell.peers}
        alone = [cell for cell in cells if not through_peers.intersection((cell.key, *cell.needs))]
        if alone:
            work.append((job, alone))
        if len(alone) < len(cells):
            late.append((job, [cell for cell in cells if cell not in alone]))
        if feared:
            last.append((job, feared))
    needed = {key for job, cells in late for cell in cells for key in (job.key, *cell.peers)}
    needed |= {key for _, cells in last for cell in cells for key in cell.peers}
    begun = {job.key for job, _ in (*work, *last)}
    work += [(by_key[key], []) for key in sorted((needed | damaged) - begun) if key in damaged or not trained[key]]
    listed = {job.key for job, _ in (*work, *last)}
    for job, cells in (*work, *last):
        wanted = not cells or not job.unseen or any(not cell.refusal for cell in cells)
        for start in reversed(plan.starts(job)) if wanted and not trained[job.key] else ():
            if start.key in listed or trained[start.key]:
                break
            work.append((start, []))
            listed.add(start.key)
    return sorted(work, key=lambda item: -len(item[0].data.splits.train)) + late + last


def _answer(check: Callable[[str], bool], key: str, consequence: str) -> bool | None:
    """Whether something is there; None, with a warning, where it is damaged."""
    return unless_damaged(lambda: check(key), None, consequence)


def _finished(index: StoreIndex, cell: Cell) -> bool:
    keeps = cell.condition.keeps
    return unless_damaged(lambda: index.cell(cell.key, keeps), None, "its cell is to be done again") is not None


def forget(plan: Plan, store: Store) -> None:
    """Remove what the store holds of a plan."""
    for job in plan.jobs:
        store.remove("models", job.key)
        for cell in job.cells:
            store.remove("cells", cell.key)


def refresh(plan: Plan, store: Store, left: Collection[str] = ()) -> None:
    """Bring finished records up to date: what is known of their components by now, and the metrics registered now.

    What they call things stays, since other boards may rest on them.

    Args:
        plan: The plan whose records they are.
        store: Where they are kept.
        left: Keys of cells that are going to be done anyway; their records may be damaged.

    Raises:
        RequestError: If a metric fails.
        StoreError: If a record cannot be read or written.
    """
    from robbench.evaluation.scoring import metrics_digest
    from robbench.execution.jobs import reason
    from robbench.execution.local import CELL_TIMEOUT
    from robbench.execution.rescoring import rescored

    wanted = metrics_digest(plan.registry)
    for job, cell in plan.cells:
        record = None if cell.key in left else store.record(cell.key)
        if record is None:
            continue
        fresh = record.model_copy(update={"spec": renamed(cell.spec, cell.key, record.spec)})
        if record.status == "done" and record.training is None and store.has_model(job.key):
            fresh = fresh.model_copy(update={"training": Training.of(store.model_info(job.key))})
        if record.status == "done" and record.metrics_digest != wanted:
            outcome = store.outcome(record)
            assert outcome is not None
            try:
                fresh = rescored(fresh, outcome, plan.registry, CELL_TIMEOUT)
            except Exception as error:
                raise RequestError(f"a metric fails on finished cells: {reason(error)}") from error
        store.replace_record(record, fresh)
