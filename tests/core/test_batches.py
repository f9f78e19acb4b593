"""Samples batch by batch: in order, read ahead, halved where memory runs out."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from robbench.core.batches import LazySamples, StoredSamples, fitting, in_batches, loaded
from robbench.core.contracts import Samples


class Source:
    """Images that hold their own position; counts what is asked for, and where."""

    def __init__(self, count: int) -> None:
        self.shape = (count, 1, 1, 2)
        self.asked: list[list[int]] = []
        self.threads: set[threading.Thread] = set()

    def __getitem__(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        self.asked.append(index.tolist())
        self.threads.add(threading.current_thread())
        return np.repeat(index.astype(np.uint8), 2).reshape(-1, 1, 1, 2)


def samples(count: int, lazy: bool) -> StoredSamples:
    found = LazySamples(Source(count), torch.arange(count) % 3, torch.arange(count))
    return found if lazy else loaded(found)


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(1, 12), st.integers(1, 12), st.booleans(), st.data())
def test_every_sample_is_worked_on_once_in_order_however_little_memory(
    count: int, size: int, most: int, lazy: bool, data: st.DataObject
) -> None:
    index = torch.tensor(data.draw(st.lists(st.integers(0, count - 1)) if count else st.just([])), dtype=torch.int64)
    sizes: list[int] = []
    notes: list[str] = []

    def work(at: Tensor, batch: Samples) -> Tensor:
        assert batch.images[:, 0, 0, 0].tolist() == at.tolist() == batch.ids.tolist()
        assert batch.labels.tolist() == (at % 3).tolist()
        if len(at) > most:
            raise MemoryError
        sizes.append(len(at))
        return at

    found = [*in_batches(samples(count, lazy), size, work, index, notes.append)]
    assert torch.cat([*found, torch.zeros(0, dtype=torch.int64)]).tolist() == index.tolist()
    assert max(sizes, default=0) <= min(size, most)
    assert all(note.endswith("MemoryError") for note in notes)
    assert bool(notes) == (min(size, len(index)) > most)


def test_the_next_batch_is_read_meanwhile_and_nothing_else() -> None:
    source = Source(20)
    given = LazySamples(source, torch.zeros(20, dtype=torch.int64), torch.arange(20))[torch.arange(0, 20, 2)]
    seen = []
    for part in in_batches(given, 4, lambda at, batch: batch.ids.tolist()):
        seen.append((part, len(source.asked)))
    assert [part for part, _ in seen] == [[0, 2, 4, 6], [8, 10, 12, 14], [16, 18]]
    assert sorted(number for asked in source.asked for number in asked) == list(range(0, 20, 2))
    assert threading.current_thread() not in source.threads


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("x"), RuntimeError("other"), ValueError("x")])
def test_what_halving_does_not_help_is_raised(error: Exception) -> None:
    calls = []

    def work(at: Tensor, batch: Samples) -> None:
        calls.append(len(at))
        raise error

    with pytest.raises(type(error)):
        list(in_batches(samples(9, False), 8, work, halved=lambda note: None))
    assert calls == ([8, 4, 2, 1] if isinstance(error, torch.OutOfMemoryError) else [8])


def test_an_error_in_reading_ahead_is_raised_where_its_batch_is_due() -> None:
    class Broken(Source):
        def __getitem__(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
            if 5 in index:
                raise OSError("gone")
            return super().__getitem__(index)

    given = LazySamples(Broken(9), torch.zeros(9, dtype=torch.int64), torch.arange(9))
    done: list[int] = []
    with pytest.raises(OSError, match="gone"):
        done.extend(len(part) for part in in_batches(given, 2, lambda at, batch: at))
    assert done == [2, 2]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 64, 64), (3, 69, 69)])
def test_batches_of_small_images_are_whole(shape: tuple[int, ...]) -> None:
    assert (fitting(128, shape), fitting(256, shape)) == (128, 256)


def test_batches_of_large_images_are_smaller() -> None:
    assert fitting(128, (3, 224, 224)) == 12
    assert fitting(256, (3, 224, 224), "cuda") == 256
    assert fitting(128, (3, 4000, 4000)) == 1
