"""Speed of our own attacks by pytest-benchmark: ``pytest -n 0 tests/benchmarks --benchmark-enable --benchmark-only``.

The table beside other libraries is written by ``python tests/benchmarks/speed.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from speed import TASKS, Case, Task, main
from speed_networks import Subject, robust_cnn
from speed_overhead import Recorder, bare, spread

from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat
from robbench.evaluation.query_counter import Oracle


@pytest.fixture(scope="module")
def subject() -> Subject:
    return robust_cnn(steps=20)


@pytest.mark.parametrize("task", TASKS[:3], ids=lambda task: task.name)
def test_attacks_keep_to_the_rules_while_they_are_timed(
    task: Task, subject: Subject, benchmark: BenchmarkFixture
) -> None:
    case = Case(task, subject, "linf", subject.images[:32], subject.labels[:32], {})
    (name,) = task.ours
    changed = benchmark(case.call, name, subject.model)
    assert (changed - case.images).abs().max() <= subject.eps["linf"] + 1e-6


def test_the_bare_passes_are_those_that_the_evaluation_counts(subject: Subject) -> None:
    images, labels = subject.images[:16], subject.labels[:16]
    recorder = Recorder(subject.model)
    oracle = Oracle(recorder, 16)
    with oracle.watching(images):
        TASKS[1].ours["pgd[steps=20]"].perturb(
            oracle, images, labels, Threat("linf", 0.1), Streams.of(torch.arange(16), 0)
        )
    again = Recorder(subject.model)
    bare(again, recorder.calls, images)
    assert again.calls == recorder.calls
    assert sum(count for count, _ in recorder.calls) == oracle.forwards.sum()
    assert sum(count for count, back in recorder.calls if back) == oracle.backwards.sum()


@pytest.mark.end_to_end
def test_a_page_names_the_machine_and_compares_with_what_is_installed(tmp_path: Path) -> None:
    page = tmp_path / "speed.md"
    words = ["--rounds", "2", "--images", "0.02", "--only", "robust CNN linf FGSM", "--training", tiny.THREE_DIGITS]
    assert main([*words, "--out", str(page)]) == 0
    text = page.read_text()
    assert f"torch {torch.__version__}" in text
    assert "| **fgsm** | 1 |" in text
    assert "| ART |" in text
    assert "| plain loop |" in text


def test_ratios_are_shown_by_their_median_and_their_ends() -> None:
    assert spread([3.0, 1.0, 2.0]) == "2.00 (1.00–3.00)"
    assert spread([]) == "–"
