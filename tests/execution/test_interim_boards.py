from __future__ import annotations

import time
from pathlib import Path

import pytest
import tiny

from robbench.execution.boards import note_boards, write_boards
from robbench.execution.interim_boards import interim_boards
from robbench.execution.jobs import carry_out
from robbench.results.store import Store


@pytest.mark.end_to_end
def test_while_a_run_goes_on_its_boards_show_what_is_finished(tmp_path: Path) -> None:
    plan = tiny.make(tmp_path, ["", "defense = 'fgm'"], ["clean", "fgsm@ref"], limit=20)
    store, (first, second) = Store(plan.request.out), plan.jobs
    (board,) = note_boards(plan, store)
    page = store.root / "leaderboards" / board / "index.html"
    with store.lock(), interim_boards(plan, [board], 0.1):
        carry_out(plan, first, first.cells, lambda event: None)
        until = time.monotonic() + 300
        while not page.is_file():
            assert time.monotonic() < until
            time.sleep(0.1)
        assert b'http-equiv="refresh"' in page.read_bytes()
        carry_out(plan, second, second.cells, lambda event: None)
    write_boards(store, [board])
    assert b'http-equiv="refresh"' not in page.read_bytes()
    assert second.spec.label.encode() in page.read_bytes()
