from __future__ import annotations

import io
from pathlib import Path

import pytest
import tiny

from robbench.cli._display import Terminal
from robbench.cli.run import Display
from robbench.execution.boards import note_boards, write_boards
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
        run_locally(plan, work, 1, display.tell)
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
