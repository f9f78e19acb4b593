from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from board_cells import A_MODEL, CLEAN, cell

from robbench.execution.jobs import Progress
from robbench.execution.runner import remaining
from robbench.execution.tally import Tally, announcing
from robbench.results.run_states import run_states
from robbench.results.store import Store

DONE, _ = cell(A_MODEL, CLEAN, "!")
FAILED, _ = cell(A_MODEL, CLEAN, "no luck")


def test_a_tally_counts_cells_passes_and_what_is_done(tmp_path: Path) -> None:
    plan = tiny.make(tmp_path, ["", "defense = 'fgm'"], ["clean", "fgsm@ref"], limit=20)
    store = Store(plan.request.out)
    work = remaining(plan, store)
    tally = Tally.of(work, store)
    assert tally.to_do == 4
    assert tally.seconds_left(10.0) is None
    (first, _), (second, _) = work
    tally.count(Progress(first.label, "training", 1, 2))
    half = tally.behind
    tally.count(Progress(first.label, "training", 2, 2))
    assert tally.behind == pytest.approx(2 * half)
    for job in (first, second):
        for one in job.cells:
            tally.count(Progress(job.label, one.condition.label, cell=one.key))
            assert tally.doing[job.label].activity == one.condition.label
            record = FAILED if one is first.cells[0] else DONE
            tally.count(Progress(job.label, one.condition.label, finished=record, cell=one.key))
    assert not tally.doing
    assert (tally.finished, tally.failed) == (4, 1)
    assert tally.behind == pytest.approx(sum(tally.weights.values()))
    assert tally.seconds_left(10.0) == pytest.approx(0.0, abs=1e-6)
    with announcing(plan, work, store) as tell:
        tell(Progress(first.label, "training", 1, 2))
        (state,) = run_states(store.root).values()
        assert (state.cells, state.to_do, state.grid) == (4, 4, "tiny")
