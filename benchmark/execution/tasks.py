"""What is handed to whoever carries out a part of a plan, and what comes back: plain data, no store.

Whoever carries out a task reads what it needs of the store, or of a copy of those files, and writes nothing: results
travel to the process that drives the run, which is the only one that writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from robbench.evaluation.model_size import ModelSize
from robbench.execution.portion import Portion
from robbench.results.schema import Ints, Outcome, Record

Step: TypeAlias = Literal["train", "predict", "judge"]
Way: TypeAlias = tuple[bool, int | None]
"""A way in which cells ask a model: whether with its inference-time defenses, and of how many test images; None for
all."""


@dataclass(frozen=True)
class Needs:
    """What a task needs where it is done.

    Attributes:
        cpus: Cores, and threads that it computes with.
        gpus: Accelerators.
    """

    cpus: int = 1
    gpus: int = 0


@dataclass(frozen=True)
class Facts:
    """What is true of the whole run.

    Attributes:
        plugins: Labels of all plugins, for records.
        metrics: Digest of all metrics.
        foreign_metrics: Whether plugins have metrics.
    """

    plugins: tuple[str, ...]
    metrics: str
    foreign_metrics: bool


@dataclass(frozen=True)
class Predicted:
    """What the cells of a model share.

    Attributes:
        clean: Predictions on the test images by the way of asking, int64, shape ``(N,)``.
        size: How large the model is.
        embeddings: An archive of embeddings of training images; None where the store holds enough of them.
    """

    clean: Mapping[Way, Ints]
    size: ModelSize
    embeddings: bytes | None = None


@dataclass(frozen=True)
class Task:
    """A part of a plan to be carried out.

    Attributes:
        step: ``train`` a model, ``predict`` its clean images, or ``judge`` one of its cells.
        key: Of the model, or of the cell that is judged.
        portion: The part of the plan; None where whoever carries it out has it open.
        digest: Identifies the portion.
        needs: What it needs.
        facts: What is true of the whole run.
        loaded: Hashes of the plugins that are loaded where it is carried out.
        asked: The ways in which predictions are asked for.
        predicted: What came of the model's ``predict``.
        attack: What a process needs that runs the cell's attacks, where they are a plugin's.
        reads: What it reads of the store: directories and files, by path within it.
    """

    step: Step
    key: str
    portion: Portion | None
    digest: str
    needs: Needs
    facts: Facts
    loaded: frozenset[str] = frozenset()
    asked: tuple[Way, ...] = ()
    predicted: Predicted | None = None
    attack: Portion | None = None
    reads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Written:
    """Something of a training that is to be written.

    Attributes:
        method: The method of ``Store`` that writes it.
        content: Its arguments after the model's key.
    """

    method: Literal["write_checkpoint", "write_model", "write_diverged"]
    content: tuple[Any, ...]


@dataclass(frozen=True)
class Judged:
    """What came of a cell.

    Attributes:
        record: Its record.
        outcome: What the record rests on, or None where nothing came of it.
        extras: Contents of archives by name.
        trace: The traceback of what failed it, where it is known; it is shown and kept nowhere.
    """

    record: Record
    outcome: Outcome | None = None
    extras: Mapping[str, bytes] = field(default_factory=dict)
    trace: str = ""


@dataclass(frozen=True)
class Failure:
    """Why there is no model, or none that predicts.

    Attributes:
        status: What its cells are: ``failed`` or ``unsupported``.
        reason: In one line.
        trace: The traceback, where it is known.
    """

    status: str
    reason: str
    trace: str = ""


@dataclass(frozen=True)
class Died:
    """Says that a task cost the process that carried it out.

    Attributes:
        reason: How the process ended.
        loading: Whether that was in training, or before the cell was begun.
    """

    reason: str
    loading: bool


@dataclass(frozen=True)
class Vanished:
    """Says that the machine is gone that carried out a task, which is no fault of the task.

    Attributes:
        reason: What is known of it.
    """

    reason: str


@dataclass(frozen=True)
class Over:
    """Says that a task is over.

    Attributes:
        error: Why the run cannot go on, or empty.
    """

    error: str = ""


Hear: TypeAlias = Callable[[Task, object], None]
"""Takes what comes of a task: ``Progress``, ``Written``, ``Predicted``, ``Judged``, ``Failure``; in the end ``Over``,
``Died`` or ``Vanished``."""


class Executor(Protocol):
    """Carries out tasks somewhere."""

    def width(self) -> tuple[int, int]:
        """How many tasks it carries out at once, and how many cores they share."""
        ...

    def takes(self, needs: Needs) -> bool:
        """Whether it would begin another task with such needs now."""
        ...

    def submit(self, task: Task) -> None:
        """Begin a task."""
        ...

    def listen(self, hear: Hear) -> None:
        """Hand on what came of the tasks; waits for a moment where nothing did."""
        ...

    def close(self) -> None:
        """End what is going on, and all processes."""
        ...
