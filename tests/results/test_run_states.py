from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import stores
from board_cells import A_MODEL, PGD, cell

from robbench.cli.main import main
from robbench.results import run_states
from robbench.results.run_states import Doing, RunState, announced

STATE = RunState(
    grid="toys", host="there", pid=7, began=time.time() - 90, cells=10, to_do=8, finished=3, failed=1, seconds_left=60.0
)


def known(root: Path) -> list[RunState]:
    return list(run_states.run_states(root).values())


def test_a_run_is_seen_while_it_goes_on_and_never_after(tmp_path: Path) -> None:
    with announced(tmp_path, lambda: STATE), announced(tmp_path, lambda: STATE):
        assert [state.model_copy(update={"silent": 0.0}) for state in known(tmp_path)] == [STATE, STATE]
    assert not known(tmp_path)
    with pytest.raises(KeyboardInterrupt), announced(tmp_path, lambda: STATE):
        raise KeyboardInterrupt
    assert not known(tmp_path)


def test_it_is_written_now_and_then_and_not_for_every_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    def state() -> RunState:
        nonlocal asked
        asked += 1
        return STATE.model_copy(update={"finished": asked})

    with announced(tmp_path, state) as tell:
        for _ in range(1000):
            tell()
        assert asked == 1
        monkeypatch.setattr(run_states, "_OFTEN", 0.0)
        tell()
        assert known(tmp_path)[0].finished == asked == 2


def test_a_run_that_was_killed_falls_silent_and_is_forgotten_by_the_next(tmp_path: Path) -> None:
    code = f"""
import os, signal
from robbench.results.run_states import RunState, announced
from pathlib import Path
with announced(Path({str(tmp_path)!r}), lambda: RunState.model_validate_json({STATE.model_dump_json()!r})):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    (path,) = run_states.run_states(tmp_path)
    assert known(tmp_path)[0].silent < 60
    os.utime(path, (time.time() - 300,) * 2)
    assert known(tmp_path)[0].silent == pytest.approx(300, abs=60)
    with announced(tmp_path, lambda: STATE):
        assert len(known(tmp_path)) == 1
        assert not path.exists()


def test_what_is_no_state_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "running").mkdir()
    (tmp_path / "running" / "1.json").write_text('{"grid": 1}', encoding="utf-8")
    assert not known(tmp_path)


def test_status_shows_runs_and_boards_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = stores.fill(tmp_path, [*stores.whole(), cell(A_MODEL, PGD, "no luck", seed=1)], missing=["none"])
    doing = (Doing(model="a · seed 0", activity="training", done=2, of=15, since=time.time() - 61),)
    with announced(tmp_path, lambda: STATE.model_copy(update={"doing": doing})):
        before = stores.files(tmp_path)
        assert main(["status", "--out", str(store.root)]) == 0
        assert stores.files(tmp_path) == before
        shown = capsys.readouterr().out
        assert re.search(r"toys: running for \d+:\d\d, about 1:00 left, process 7 on there", shown)
        assert "about 1:00 left" in shown
        assert "10 cells: 4 done, 1 failed, 5 to do" in shown
        assert "training 2/15" in shown
        (path,) = run_states.run_states(tmp_path)
        os.utime(path, (time.time() - 300,) * 2)
        assert main(["status", "--out", str(store.root)]) == 0
        assert re.search(r"no sign of life for [5-9]:\d\d, process 7 on there; run again", capsys.readouterr().out)
    assert main(["status", "--out", str(store.root)]) == 0
    shown = capsys.readouterr().out
    assert "No run is going on." in shown
    assert shown.splitlines()[-1].split() == [stores.BOARD, "6", "1", "1"]


def test_status_of_no_store_is_a_wrong_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--out", str(tmp_path / "none")]) == 2
    assert "holds no run yet" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
