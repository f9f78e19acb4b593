"""Carrying out tasks on the machines of a ray cluster, which need no disk in common.

A task is handed on to worker processes of its machine, as on this one, so that what is kept apart here is kept apart
there. What it reads of the store travels through ray's object store, once to each machine, into a copy of those files;
what comes of it travels back to the process that drives the run. What a lost machine was at is done again.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import pickle
import platform
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from robbench.core.atomic_io import write_atomically
from robbench.core.errors import RequestError, StoreError, explain
from robbench.core.extras import require
from robbench.core.lease import leased
from robbench.core.registry import Registry
from robbench.core.sealed import hash_of
from robbench.execution.driver import drive
from robbench.execution.graph import ToDo
from robbench.execution.jobs import Progress, Tell
from robbench.execution.local import CELL_TIMEOUT, Local
from robbench.execution.processes import prepare
from robbench.execution.tasks import Died, Hear, Needs, Over, Task, Vanished
from robbench.planning.plan import Plan
from robbench.results.provenance import source_digest

_MOMENT = 0.5
_LOOK = 2.0
"""Seconds after which the machines of the cluster are counted again."""
_SPARSE = 0.5
"""Seconds between two reports of how far a task is."""
_PER_MACHINE = 4
"""Most tasks that a machine is at, where it has no accelerator."""


_EXTRA = ("ray", "--executor ray")


def connect(address: str | None) -> None:
    """Connect to a ray cluster.

    Args:
        address: Of the cluster; None for that of ``RAY_ADDRESS`` or of this machine, and for a new one where there is
            none.

    Raises:
        RequestError: If ray is not installed, or the cluster cannot be reached.
    """
    try:
        _ray().init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        where = address or "this machine"
        raise RequestError(f"no ray cluster at {where}: {explain(error)}", "--ray-address") from None


def run_on_ray(plan: Plan, work: ToDo, workers: int | None, tell: Tell, timeout: float = CELL_TIMEOUT) -> None:
    """Carry out the jobs on the ray cluster that this process is connected to, and disconnect; see ``drive``.

    Args:
        plan: The plan.
        work: Jobs with those of their cells that are to be done.
        workers: Most tasks at once, None for what suits the machines.
        tell: Called in this process as work goes on.
        timeout: Seconds that one cell, or one epoch of training with plugins, may take.

    Raises:
        StoreError: If results cannot be kept.
    """
    ray = _ray()
    try:
        if work:
            drive(plan, work, Cluster.of(ray, plan, workers, timeout), tell)
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Agreed:
    """What the processes of ray that work for a run know of it.

    Attributes:
        run: Identifies the run.
        source: Hash of robbench's source, which is the same everywhere.
        device: Device type.
        timeout: Seconds that a cell may take.
        registry: The metrics, and those of plugins among them.
        store: The store, where the run is driven.
    """

    run: str
    source: str
    device: str
    timeout: float
    registry: Registry
    store: Path

    @property
    def copy(self) -> Path:
        """Where the files of the store are copied to that tasks read."""
        return Path(tempfile.gettempdir()) / f"robbench-{self.run}"


@dataclass(frozen=True)
class Shipped:
    """A file that travels through ray's object store.

    Attributes:
        sha256: Hash of its content.
        content: Reference to it.
    """

    sha256: str
    content: Any


def _ray() -> Any:
    return require("ray", *_EXTRA)


# --- in a process of ray


def _carry_out(agreed: bytes, task: Task, portions: list[Any], files: Mapping[str, Shipped]) -> Iterator[object]:
    """Carry out a task in worker processes of this machine; yields what comes of it."""
    agent = _agent(agreed)
    if agent.agreed.source != source_digest():
        yield Over(f"another robbench is installed on {platform.node()}; install the same one on every machine")
        return
    agent.fetch(files)
    portion, attack = agent.portions(portions)
    local = agent.local(task.needs)
    local.submit(replace(task, portion=portion, attack=attack))
    heard: list[object] = []
    said, about = 0.0, ""
    while not any(isinstance(message, Over | Died) for message in heard):
        heard.clear()
        local.listen(lambda _, message: heard.append(message))
        for message in heard:
            if isinstance(message, Progress):
                now = time.monotonic()
                if message.activity == about and message.done < message.of and now < said + _SPARSE:
                    continue
                said, about = now, message.activity
            yield message


@functools.lru_cache(maxsize=1)
def _agent(agreed: bytes) -> _Agent:
    prepare()
    return _Agent(pickle.loads(agreed))


def _remove(copy: Path) -> None:
    shutil.rmtree(copy, ignore_errors=True)


@dataclass
class _Agent:
    """What a process of ray keeps between the tasks of a run."""

    agreed: Agreed
    have: set[tuple[str, str]] = field(default_factory=set)
    opened: dict[Any, Any] = field(default_factory=dict)
    executor: Local | None = None

    def fetch(self, files: Mapping[str, Shipped]) -> None:
        """Have the files of the store here that a task reads; another process of this machine may have brought them."""
        ray = _ray()
        for name, shipped in files.items():
            if (name, shipped.sha256) in self.have:
                continue
            path = self.agreed.copy / name
            with leased(path.with_name(f".{path.name}.lock")):
                if not path.is_file() or hash_of(path.read_bytes()) != shipped.sha256:
                    write_atomically(path, ray.get(shipped.content))
            self.have.add((name, shipped.sha256))

    def portions(self, references: list[Any]) -> list[Any]:
        """The parts of the plan that a task needs, their paths those of the copy."""
        ray = _ray()
        self.opened = {key: self.opened[key] for key in references if key in self.opened}
        for key in references:
            if key is not None and key not in self.opened:
                self.opened[key] = ray.get(key).moved(self.agreed.store, self.agreed.copy)
        return [None if key is None else self.opened[key] for key in references]

    def local(self, needs: Needs) -> Local:
        """Worker processes of this machine, one at work at once."""
        if self.executor is None:
            agreed = self.agreed
            self.executor = Local(agreed.device, 1, needs.cpus, agreed.timeout, agreed.registry)
        return self.executor


# --- in the process that drives the run


@dataclass
class Cluster:
    """Carries out tasks on the machines of a ray cluster.

    Attributes:
        ray: The library.
        agreed: What its processes know of the run.
        workers: Most tasks at once; None for as many as there are resources.
        start: The remote function.
        shipped: Files that travel, by path within the store and state.
        packed: Parts of the plan that travel.
        going: What is being done, by what yields what comes of it.
    """

    ray: Any
    agreed: Agreed
    workers: int | None
    start: Any
    known: Any
    shipped: dict[tuple[str, int, int], Shipped] = field(default_factory=dict)
    packed: dict[str, Any] = field(default_factory=dict)
    going: dict[Any, Task] = field(default_factory=dict)
    resources: dict[str, float] = field(default_factory=dict)
    looked: float = -_LOOK

    @classmethod
    def of(cls, ray: Any, plan: Plan, workers: int | None, timeout: float) -> Cluster:
        """The cluster that ray is connected to."""
        agreed = Agreed(uuid.uuid4().hex[:12], source_digest(), plan.device, timeout, plan.registry, plan.request.out)
        return cls(ray, agreed, workers, ray.remote(_carry_out), ray.put(pickle.dumps(agreed)))

    def width(self) -> tuple[int, int]:
        """How many tasks are carried out at once, and how many cores they share, by the machines that there are now."""
        machines = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        cpus = max(1, int(min((machine.get("CPU", 1) for machine in machines), default=1)))
        each = min(_PER_MACHINE, cpus)
        if self.agreed.device == "cuda":
            each = max(1, int(min((machine.get("GPU", 1) for machine in machines), default=1)))
        count = self.workers or max(1, len(machines)) * each
        return count, count * max(1, cpus // each)

    def takes(self, needs: Needs) -> bool:
        """Whether the machines have room for another task with such needs."""
        now = time.monotonic()
        if now > self.looked + _LOOK:
            self.resources, self.looked = self.ray.cluster_resources(), now
        if self.workers is not None and len(self.going) >= self.workers:
            return False
        busy = [task.needs for task in self.going.values()]
        free = self.resources.get("CPU", 0) - sum(other.cpus for other in busy)
        gpus = self.resources.get("GPU", 0) - sum(other.gpus for other in busy)
        return needs.cpus <= free and needs.gpus <= gpus

    def submit(self, task: Task) -> None:
        """Begin a task."""
        files = {name: self._ship(name) for name in task.reads for name in self._files(name)}
        portions = [self._pack(portion) for portion in (task.portion, task.attack)]
        remote = self.start.options(
            num_returns="streaming",
            max_retries=0,
            num_cpus=task.needs.cpus,
            num_gpus=task.needs.gpus,
            name=f"{task.step} {task.key}",
        )
        bare = replace(task, portion=None, attack=None)
        self.going[remote.remote(self.known, bare, portions, files)] = task

    def _files(self, entry: str) -> Iterator[str]:
        place = self.agreed.store / entry
        for path in sorted(place.iterdir()) if place.is_dir() else [place] if place.is_file() else []:
            if not path.name.startswith("."):
                yield path.relative_to(self.agreed.store).as_posix()

    def _ship(self, name: str) -> Shipped:
        path = self.agreed.store / name
        state = path.stat()
        key = (name, state.st_mtime_ns, state.st_size)
        if key not in self.shipped:
            data = path.read_bytes()
            self.shipped[key] = Shipped(hash_of(data), self.ray.put(data))
        return self.shipped[key]

    def _pack(self, portion: Any) -> Any:
        if portion is None:
            return None
        if portion.digest not in self.packed:
            self.packed[portion.digest] = self.ray.put(portion)
        return self.packed[portion.digest]

    def listen(self, hear: Hear) -> None:
        """Hand on what came of tasks, and what was lost with a machine."""
        if not self.going:
            time.sleep(_MOMENT)
            return
        waiting = list(self.going)
        ready, _ = self.ray.wait(waiting, num_returns=1, timeout=_MOMENT)
        if ready:
            more, _ = self.ray.wait(waiting, num_returns=len(waiting), timeout=0)
            for stream in more:
                self._take(stream, hear)

    def _take(self, stream: Any, hear: Hear) -> None:
        task = self.going[stream]
        message: object
        try:
            message = self.ray.get(next(stream))
        except StopIteration:
            message = Vanished("its machine said nothing more")
        except self.ray.exceptions.RayTaskError as error:
            raise StoreError(f"a machine of the cluster carries out no tasks: {explain(error)}") from None
        except self.ray.exceptions.RayError as error:
            message = Vanished(type(error).__name__)
        if isinstance(message, Over | Died | Vanished):
            del self.going[stream]
        hear(task, message)

    def close(self) -> None:
        """End what is going on, and remove the copies of files."""
        on = require("ray.util.scheduling_strategies", *_EXTRA).NodeAffinitySchedulingStrategy
        with contextlib.suppress(Exception):
            for stream in self.going:
                self.ray.cancel(stream, force=True)
            removed = [
                self.ray.remote(_remove)
                .options(num_cpus=0, scheduling_strategy=on(node["NodeID"], soft=False))
                .remote(self.agreed.copy)
                for node in self.ray.nodes()
                if node["Alive"]
            ]
            self.ray.wait(removed, num_returns=len(removed), timeout=10)
        self.going.clear()
