"""Training a model in a process of its own, which a plugin can end without ending the search that asked for it."""

from __future__ import annotations

import contextlib
import multiprocessing.connection
from multiprocessing.connection import Connection

import torch

from robbench.core.errors import RequestError, StoreError, explain
from robbench.execution.portion import Portion, judge_sources, portion_to_judge
from robbench.execution.processes import Child
from robbench.planning.plan import Plan, TrainedJob
from robbench.results.store import Store
from robbench.training.hyperparameter_search import train_here
from robbench.training.trainer import Diverged


def train_apart(plan: Plan, job: TrainedJob, store: Store) -> None:
    """Train a model of a search unless it is trained.

    Args:
        plan: The plan.
        job: One of its jobs, or one with another recipe.
        store: The plan's store.

    Raises:
        Diverged: If its loss is no longer finite.
        RequestError: If it cannot be trained, as where the process ends.
        StoreError: If it cannot be kept.
    """
    if store.has_model(job.key):
        return
    portion = portion_to_judge(plan, job, ())
    apart = bool(judge_sources(plan, job, ()))
    child = Child.start(_train, portion, torch.get_num_threads(), device=plan.device, apart=apart)
    try:
        multiprocessing.connection.wait([child.connection, child.process.sentinel])
        with contextlib.suppress(EOFError, OSError):
            if child.connection.poll():
                raise child.connection.recv()
        end = child.death()
    finally:
        child.end()
    if not store.has_model(job.key):
        raise RequestError(f'"{job.row}" cannot be trained: {end}', "--row")


def _train(connection: Connection, portion: Portion, threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        plan = portion.open()
        train_here(plan, plan.trained[0], Store(plan.request.out))
    except (Diverged, RequestError, StoreError) as error:
        connection.send(error)
    except BaseException as error:  # SystemExit and the like
        connection.send(RequestError(f"training cannot end so: {explain(error)}", "--row"))
