"""A model as attacks see it: the same answers, every pass counted and charged to the samples that spend it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from robbench.core.contracts import Classifier
from robbench.core.errors import Breach
from robbench.results.schema import Ints

RULE = "passes are counted"

T = TypeVar("T")


def put_under_test(model: Classifier) -> None:
    """Have the passes of a model's networks counted, and of whatever is copied from it.

    A network is a classifier that contains no other: what stands in front of it, or asks it several times, is no pass.
    """
    classifiers = [part for part in model.modules() if isinstance(part, Classifier)]
    for network in classifiers:
        if not any(part in classifiers for part in network.modules() if part is not network):
            for part in network.modules():
                # An attribute, since copies of every kind keep it, and it is no part of the state.
                vars(part)["_under_test"] = True


class _Here(threading.local):
    """What goes on in this thread.

    Attributes:
        rows: The samples that the model is asked about, None where an attack goes round the oracle.
        network: The network that is at work.
        seen: Passes that were seen so far.
    """

    rows: Ints | None = None
    network: nn.Module | None = None
    seen: int = 0


class PassCounter:
    """Counts passes where they happen: where images enter a network, whoever called it.

    Args:
        size: Number of samples N in the batch at hand.
    """

    def __init__(self, size: int) -> None:
        # An array, since a tensor would be caught in ``torch.func`` and in whatever else an attack does with torch.
        self._spent = np.zeros((2, size))
        # What was charged to the same samples is added up first, by the identity of their places, and spread later.
        self._due: dict[tuple[int, int], tuple[Ints | None, float]] = {}
        self.searched = np.zeros(size, dtype=np.bool_)
        self._here = _Here()

    @property
    def spent(self) -> Tensor:
        """Forward and backward passes per sample, float64, shape ``(2, N)``."""
        due, self._due = self._due, {}
        for (kind, _), (rows, images) in due.items():
            count = self._spent.shape[1] if rows is None else len(rows)
            self._spent[kind, slice(None) if rows is None else rows] += images / count
        return torch.from_numpy(self._spent.copy())

    def charge(self, kind: int, images: float, rows: Ints | None) -> None:
        """Spread passes evenly over some samples.

        Args:
            kind: 0 for forward passes, 1 for backward passes.
            images: Images that passed.
            rows: Places of the samples in the batch; None for all.
        """
        if self._spent.shape[1] if rows is None else len(rows):
            place = kind, id(rows)
            _, before = self._due.get(place, (rows, 0.0))
            self._due[place] = rows, before + images

    def asked(self, rows: Ints, question: Callable[[], T]) -> tuple[T, bool]:
        """Charge the passes that an answer takes to some samples.

        Returns:
            The answer, and whether a pass was seen.
        """
        here = self._here
        before, seen = here.rows, here.seen
        here.rows = rows
        try:
            return question(), here.seen > seen
        finally:
            here.rows = before

    @contextmanager
    def watching(self, channels: int) -> Iterator[None]:
        """Count the passes of all networks under test in this process.

        Args:
            channels: Channels of the images, by which their entry is told from what goes on inside a network.
        """

        def enter(module: nn.Module, given: tuple[Any, ...]) -> None:
            if self._here.network is None and getattr(module, "_under_test", False):
                images = _entering(given, channels)
                if images is not None:
                    self._here.network = module
                    self._here.seen += 1
                    self.charge(0, _passes(module, images), self._here.rows)

        def leave(module: nn.Module, given: tuple[Any, ...], found: Any) -> None:
            if self._here.network is module:
                self._here.network = None
                images, rows = _entering(given, channels), self._here.rows
                outputs = found if isinstance(found, tuple) else (found,)
                output = next((part for part in outputs if isinstance(part, Tensor) and part.requires_grad), None)
                if images is not None and output is not None:
                    each = _passes(module, images) / _hidden(images)
                    output.register_hook(lambda gradient: self.charge(1, each * _hidden(gradient), rows))

        # As ``torch.compiler.disable`` does, which would import the compiler.
        for hook in (enter, leave):
            vars(hook)["_torchdynamo_disable"] = True
        self._here.network = None
        registered = (
            register_module_forward_pre_hook(enter),
            register_module_forward_hook(leave, always_call=True),
        )
        try:
            yield
        finally:
            for handle in registered:
                handle.remove()

    def __copy__(self) -> PassCounter:
        """The same: a copied model goes on counting."""
        return self

    def __deepcopy__(self, memo: object) -> PassCounter:
        """The same: a copied model goes on counting."""
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """No copy that would count elsewhere."""
        raise Breach(RULE, "the model that an attack is given cannot be pickled")


def _entering(given: tuple[Any, ...], channels: int) -> Tensor | None:
    """The images that enter a module, or None where what enters is something else.

    Raises:
        Breach: If the model is about to be recorded, to be run where nobody counts.
    """
    images = next((value for value in given if isinstance(value, Tensor)), None)
    if images is None:
        return None
    recorded = torch._C._get_tracing_state() is not None or type(images) not in (Tensor, nn.Parameter)
    if recorded or (images.is_cuda and torch.cuda.is_current_stream_capturing()):
        raise Breach(RULE, f"the model was traced or captured, with {type(images).__name__} for images")
    return images if images.ndim in (3, 4) and images.shape[-3] == channels else None


def _passes(module: nn.Module, images: Tensor) -> int:
    """Passes that a call makes: one for each image, or for each draw of a network that averages by itself."""
    each = module.draws if isinstance(module, Classifier) else 1
    return each * _hidden(images) * (len(images) if images.ndim == 4 else 1)


def _hidden(values: Tensor) -> int:
    """The size of what ``torch.vmap`` hides."""
    size = 1
    while _functorch.is_functorch_wrapped_tensor(values):
        inner = _functorch.get_unwrapped(values)
        if _functorch.is_batchedtensor(values):
            size *= inner.shape[_functorch.maybe_get_bdim(values)]
        values = inner
    return size


class Oracle(Classifier):
    """A classifier that counts.

    A call with as many images as the view has samples, or a multiple, is charged to each sample alike; a call with
    another number of images cannot be told apart and is spread evenly. ``subset`` gives a view of some samples, which
    lets attacks that drop samples be charged exactly. Calls of the model behind it, of its parts and of copies of them
    are spread over all samples. Where no pass can be seen, as in a model that is no network, what it declares counts.

    Args:
        model: The model that answers.
        size: Number of samples in the batch at hand.
    """

    def __init__(self, model: Classifier, size: int) -> None:
        super().__init__()
        self.model = model
        self.num_classes = model.num_classes
        self.surrogates = model.surrogates
        self.draws, self.votes = model.draws, model.votes
        # Plain attributes: a buffer would be part of the model's state, which attacks must leave alone.
        self.counter = PassCounter(size)
        self.rows = np.arange(size)
        self.training = model.training

    @property
    def spent(self) -> Tensor:
        """Forward and backward passes per sample, float64, shape ``(2, N)``."""
        return self.counter.spent

    @property
    def forwards(self) -> Tensor:
        """Forward passes per sample, float64, shape ``(N,)``."""
        return self.spent[0]

    @property
    def backwards(self) -> Tensor:
        """Backward passes per sample, float64, shape ``(N,)``."""
        return self.spent[1]

    @contextmanager
    def watching(self, images: Tensor) -> Iterator[None]:
        """Count the passes that go round this view as well.

        Args:
            images: The batch at hand, shape ``(N, C, H, W)``.
        """
        put_under_test(self.model)
        with self.counter.watching(images.shape[1]):
            yield

    @property
    def searched(self) -> Tensor:
        """Which samples an attack says that search fooled where gradients had not, bool, shape ``(N,)``."""
        return torch.from_numpy(self.counter.searched.copy())

    def fooled_by_search(self) -> None:
        """Note it of the samples of this view."""
        self.counter.searched[self.rows] = True

    def subset(self, index: Tensor) -> Oracle:
        """A view of some samples that shares the count."""
        return self._view(self.model.subset(index), self.rows[index.cpu().numpy()])

    def surrogate(self, name: str) -> Oracle:
        """A view of the model with other scores that shares the count."""
        return self._view(self.model.surrogate(name), self.rows)

    def _view(self, model: Classifier, rows: Ints) -> Oracle:
        view = Oracle(model, 0)
        view.counter, view.rows = self.counter, rows
        return view

    def forward(self, images: Tensor) -> Tensor:
        """The model's scores, counted."""
        scores, seen = self.counter.asked(self.rows, lambda: self.model(images))
        return scores if seen else self._declared(images, scores)

    def embed(self, images: Tensor) -> Tensor:
        """The model's embedding, counted."""
        features, seen = self.counter.asked(self.rows, lambda: self.model.embed(images))
        return features if seen else self._declared(images, features)

    def predict(self, images: Tensor) -> Tensor:
        """The model's predictions, counted."""
        predicted, seen = self.counter.asked(self.rows, lambda: self.model.predict(images))
        if not seen:
            self.counter.charge(0, (self.model.votes or self.model.draws) * len(images), self.rows)
        return predicted

    def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The model's scores and predictions, counted as one pass."""
        (scores, predicted), seen = self.counter.asked(self.rows, lambda: self.model.decide(images))
        if not seen:
            self.counter.charge(0, self.model.votes * len(images), self.rows)
            self._declared(images, scores)
        return scores, predicted

    def _declared(self, images: Tensor, output: Tensor) -> Tensor:
        passes = self.model.draws * len(images)
        self.counter.charge(0, passes, self.rows)
        if output.requires_grad:
            output.register_hook(lambda gradient: self.counter.charge(1, passes, self.rows))
        return output
