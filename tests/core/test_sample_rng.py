from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from robbench.core.sample_rng import Streams, digest64

MASK = (1 << 64) - 1
ALPHA = 1e-4
"""Of the tests of distributions; seeds are fixed, so that they either always pass or never."""


def mix(value: int) -> int:
    """The finalizer of SplitMix64 in plain integers."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def splitmix64(state: int, count: int) -> list[int]:
    """The generator as published (Steele, Lea and Flood, 2014)."""
    numbers = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        numbers.append(mix(state))
    return numbers


def unsigned(values: torch.Tensor) -> list[int]:
    return [value & MASK for value in values.flatten().tolist()]


def streams(count: int, *names: str | int) -> Streams:
    return Streams.of(torch.arange(count), *(names or (0, "test")))


def draws(of: Streams) -> dict[str, torch.Tensor]:
    return {
        "bits": of.bits("a", (2, 3)),
        "uniform": of.uniform("a", (5,)),
        "between": of.uniform("a", (5,), -0.3, 0.7, dtype=torch.float64),
        "normal": of.normal("a", (3,)),
        "integers": of.integers(("a", 1), (4,), 17),
        "signs": of.signs("a", (7,)),
        "subsets": of.subsets("a", 20, 6),
        "fork": of.fork("x", 1).bits("a", (2,)),
    }


def test_the_reference_generator_gives_the_published_numbers() -> None:
    # For state 1234567, as in the test vectors that come with the generator in several languages.
    assert splitmix64(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@settings(deadline=None)
@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**40), st.text(max_size=5))
def test_bits_are_those_of_splitmix64(seed: int, sample: int, name: str) -> None:
    made = Streams.of(torch.tensor([sample]), seed, name)
    key = mix(mix((sample * 0x9E3779B97F4A7C15) & MASK) ^ (digest64(seed, name) & MASK))
    assert unsigned(made.keys) == [key]
    state = mix(key ^ (digest64("draw", "noise", 3) & MASK))
    assert unsigned(made.bits(("noise", 3), (2, 4))) == splitmix64(state, 8)


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_draws_belong_to_samples_whatever_the_batch(ids: list[int], random: object) -> None:
    whole = draws(Streams.of(torch.tensor(ids), 7, "attack"))
    order = list(range(len(ids)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = draws(Streams.of(torch.tensor(ids)[order], 7, "attack"))
    mask = torch.tensor(ids) % 2 == 0
    masked = draws(Streams.of(torch.tensor(ids), 7, "attack")[mask])
    sliced = draws(Streams.of(torch.tensor(ids), 7, "attack")[1:3])
    single = [draws(Streams.of(torch.tensor([i]), 7, "attack")) for i in ids]
    for name, value in whole.items():
        assert torch.equal(shuffled[name], value[order])
        assert torch.equal(masked[name], value[mask])
        assert torch.equal(sliced[name], value[1:3])
        assert torch.equal(torch.cat([one[name] for one in single]), value)


def test_calls_have_no_memory_and_touch_no_global_state() -> None:
    before = torch.get_rng_state()
    first = draws(streams(4))
    torch.manual_seed(5)
    second = draws(streams(4))
    torch.set_rng_state(before)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_process_draws_the_same() -> None:
    code = (
        "import torch; from robbench.core.sample_rng import Streams; "
        "print(Streams.of(torch.arange(3), 1, 'a').bits('d', (2,)).tolist())"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert answer.stdout.strip() == str(Streams.of(torch.arange(3), 1, "a").bits("d", (2,)).tolist())


@settings(deadline=None)
@given(st.integers(0, 2**31))
def test_float32_and_float64_are_the_same_draws(seed: int) -> None:
    of = streams(3, seed)
    assert torch.equal(of.uniform("u", (9,)).double(), of.uniform("u", (9,), dtype=torch.float64))
    assert torch.equal(of.signs("s", (9,)).double(), of.signs("s", (9,), dtype=torch.float64))
    assert torch.equal(of.normal("n", (9,)), of.normal("n", (9,), dtype=torch.float64).float())
    torch.testing.assert_close(
        of.uniform("u", (9,), -2, 5).double(), of.uniform("u", (9,), -2, 5, dtype=torch.float64), rtol=0, atol=1e-6
    )


@settings(deadline=None)
@given(st.floats(-10, 10), st.floats(0.001, 10), st.integers(0, 1000))
def test_uniform_numbers_stay_between_their_ends(low: float, width: float, seed: int) -> None:
    values = streams(4, seed).uniform("u", (50,), low, low + width, dtype=torch.float64)
    assert bool(((values >= low) & (values < low + width)).all())


def test_shapes_and_types() -> None:
    of = streams(4)
    assert of.bits("a", ()).shape == (4,)
    assert of.uniform("a", (2, 3)).shape == (4, 2, 3)
    assert of.normal("a", (2, 3)).shape == (4, 2, 3)
    assert of.integers("a", (), 9).dtype == of.subsets("a", 5, 2).dtype == of.bits("a", (1,)).dtype == torch.int64
    assert of.uniform("a", (1,)).dtype == of.normal("a", (1,)).dtype == of.signs("a", (1,)).dtype == torch.float32
    assert of.normal("a", (2,), dtype=torch.float64).dtype == torch.float64
    assert len(of) == 4
    assert streams(0).normal("a", (3,)).shape == (0, 3)


# --- independence of what carries another name


def pairs() -> dict[str, tuple[Streams, str | int | tuple[str | int, ...], Streams, str | int | tuple[str | int, ...]]]:
    of = streams(2000)
    return {
        "draw": (of, "a", of, "b"),
        "number": (of, ("a", 1), of, ("a", 2)),
        "seed": (streams(2000, 0), "a", streams(2000, 1), "a"),
        "sample": (of, "a", Streams.of(torch.arange(2000) + 1, 0, "test"), "a"),
        "fork": (of, "a", of.fork("a"), "a"),
        "forks": (of.fork(1), "a", of.fork(2), "a"),
        "depth": (of.fork(1), "a", of.fork(1).fork(1), "a"),
        "order": (of.fork(1, 2), "a", of.fork(2, 1), "a"),
        "type": (of, 1, of, "1"),
    }


@pytest.mark.parametrize("kind", pairs())
def test_other_names_give_independent_numbers(kind: str) -> None:
    first, name, second, other = pairs()[kind]
    a, b = first.uniform(name, (4,)).flatten().numpy(), second.uniform(other, (4,)).flatten().numpy()
    assert not np.array_equal(a, b)
    correlation = np.corrcoef(a, b)[0, 1] * math.sqrt(len(a))
    assert 2 * stats.norm.sf(abs(correlation)) > ALPHA
    table, _, _ = np.histogram2d(a, b, bins=8, range=[[0, 1], [0, 1]])
    assert stats.chisquare(table.ravel()).pvalue > ALPHA


def test_parts_of_a_digest_do_not_run_together() -> None:
    assert len({digest64("ab", "c"), digest64("a", "bc"), digest64("abc"), digest64("a", "b", "c")}) == 4
    assert digest64(1) != digest64("1")
    assert -(2**63) <= digest64("x") < 2**63


def test_keys_of_many_samples_differ() -> None:
    keys = Streams.of(torch.arange(100_000), 0, "test").keys
    assert len(torch.unique(keys)) == 100_000


# --- distributions


def test_uniform_numbers_are_uniform() -> None:
    values = streams(200).uniform("u", (100,)).numpy().astype(np.float64)
    assert stats.kstest(values.ravel(), "uniform").pvalue > ALPHA
    assert stats.kstest(values.mean(axis=1) * math.sqrt(1200) - math.sqrt(300), "norm").pvalue > ALPHA
    assert stats.kstest(values[:, 0], "uniform").pvalue > ALPHA  # across samples as well
    shifted = streams(200).uniform("u", (100,), -2, 6, dtype=torch.float64).numpy()
    assert stats.kstest(shifted.ravel(), "uniform", args=(-2, 8)).pvalue > ALPHA


def test_normal_numbers_are_normal() -> None:
    values = streams(200).normal("n", (100,), dtype=torch.float64).numpy()
    assert stats.kstest(values.ravel(), "norm").pvalue > ALPHA
    assert stats.kstest((values**2).sum(axis=1), "chi2", args=(100,)).pvalue > ALPHA
    assert bool(np.isfinite(values).all())


def test_integers_and_signs_are_even() -> None:
    counts = np.bincount(streams(200).integers("i", (100,), 7).flatten().numpy(), minlength=7)
    assert len(counts) == 7
    assert stats.chisquare(counts).pvalue > ALPHA
    ups = int((streams(200).signs("s", (100,)) == 1).sum())
    assert bool((streams(200).signs("s", (100,)).abs() == 1).all())
    assert stats.binomtest(ups, 20_000).pvalue > ALPHA


@settings(deadline=None)
@given(st.integers(1, 60), st.data())
def test_subsets_have_no_repetition(population: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(0, population))
    chosen = streams(5, data.draw(st.integers(0, 100))).subsets("s", population, size)
    assert chosen.shape == (5, size)
    for row in chosen.tolist():
        assert len(set(row)) == size
        assert all(0 <= value < population for value in row)


def test_every_subset_is_as_likely() -> None:
    chosen = streams(6000).subsets("s", 4, 2)
    ordered = (chosen[:, 0] * 4 + chosen[:, 1]).numpy()
    found, counts = np.unique(ordered, return_counts=True)
    assert len(found) == 12
    assert stats.chisquare(counts).pvalue > ALPHA
