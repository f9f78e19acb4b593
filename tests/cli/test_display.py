from __future__ import annotations

import io
import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny

from robbench.cli._display import Terminal
from robbench.cli.run import Display
from robbench.execution.boards import note_boards, write_boards
from robbench.execution.jobs import Progress
from robbench.execution.local import run_locally
from robbench.execution.runner import remaining
from robbench.results.garbage_collection import remove, survey
from robbench.results.store import Store


@pytest.mark.usefixtures("one_core")
def test_a_run_in_a_terminal_shows_bars_and_ends_without_them(tmp_path: Path) -> None:
    plan = tiny.make(tmp_path, ["", "defense = 'fgm'"], ["clean", "fgsm@ref"], limit=20)
    work = remaining(plan, Store(plan.request.out))
    text = io.StringIO()
    console = Terminal(file=text, force_terminal=True, width=80, color_system=None)
    with Display(plan, work, console) as display:
        bars = display._bars
        assert bars is not None

        def tell(event: Progress) -> None:
            display.tell(event)
            bars.refresh()  # otherwise a timer does, which fast training outruns

        run_locally(plan, work, 1, tell)
        assert not display._tasks
    shown = text.getvalue()
    assert "training 2/2" in shown
    assert "4 cells in" in shown
    assert "4 to do" in shown


@pytest.mark.usefixtures("one_core")
def test_what_an_interrupted_run_finished_survives_cleaning(tmp_path: Path) -> None:
    plan = tiny.make(tmp_path, ["", "defense = 'fgm'"], ["clean", "fgsm@ref"], limit=20)
    store = Store(plan.request.out)
    note_boards(plan, store)
    work = remaining(plan, store)
    run_locally(plan, work[:1], 1, lambda event: None)
    (store.model_dir(work[1][0].key)).mkdir(parents=True)
    (store.model_dir(work[1][0].key) / "checkpoint.pt").write_bytes(b"half way")
    remove(survey(store))
    assert len(store.keys("cells")) == 2
    assert len(store.keys("models")) == 2
    assert [count for count in write_boards(store).missing.values()] == [2]


@pytest.mark.parametrize("verbose", [False, True])
def test_outside_a_terminal_a_line_tells_now_and_then_how_far_a_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verbose: bool
) -> None:
    """Every ten seconds something happens for two minutes, in the midst of a long cell and between short ones."""
    plan = tiny.make(tmp_path, [""], ["clean", "fgsm@ref"], limit=20)
    work, text, now = remaining(plan, Store(plan.request.out)), io.StringIO(), itertools.count(0, 10)
    clock = SimpleNamespace(value=0.0)
    monkeypatch.setattr("robbench.cli.run.time.monotonic", lambda: clock.value)
    with Display(plan, work, Terminal(file=text, width=80), verbose, 0.0, 0.0) as display:
        for seconds, batch in zip(now, range(13), strict=False):
            clock.value = float(seconds)
            display.tell(Progress(plan.jobs[0].label, "strong@8/255", batch, 13))
    lines = [line for line in text.getvalue().splitlines() if line.startswith("[")]
    assert [line.split("]")[0].split(", ")[1] for line in lines] == ["0:30", "1:00", "1:30", "2:00"]
    assert all("strong@8/255" in line for line in lines)
