from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import torch
from grid_files import tiny, write_grid

from robbench.cli.main import main
from robbench.results.store import Store

GRID = tiny(conditions=["clean", "rotation", "fgsm@ref"], seeds=[0])


@pytest.fixture(scope="module", autouse=True)
def one_core() -> Iterator[None]:
    """One thread for each worker, however many there are, so that results are the same to the last bit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("robbench.execution.local.cores", lambda: 1)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a grid that was run; not to be written to."""
    folder = tmp_path_factory.mktemp("finished")
    write_grid(folder / "grid.toml", GRID)
    assert main(["run", "--workers", "1", *words(folder)]) == 0
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return shutil.copytree(finished, tmp_path / "copy")


def words(folder: Path, out: str = "runs") -> list[str]:
    return ["--grid", str(folder / "grid.toml"), "--out", str(folder / out), "--limit", "20"]


def files(folder: Path) -> dict[str, bytes]:
    """The content of every file but the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def results(store: Path) -> dict[str, object]:
    """Everything that a store holds but times."""
    found: dict[str, object] = {}
    for name, data in files(store).items():
        if name.startswith(("data/", "requests/")) or name == "index.json" or name.endswith("timings.csv"):
            continue
        if name.endswith(".json") and not name.startswith("leaderboards/"):
            content = json.loads(data)
            varying = {key for key in content if key in ("timings", "seal") or key.endswith(("timings.csv", "/"))}
            content = {key: value for key, value in content.items() if key not in varying}
            content.get("provenance", {}).pop("commit", None)  # the checkout may be edited while the tests run
            found[name] = content
        else:
            found[name] = data
    return found


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert shown.err.startswith("robbench: ")
    return shown.err


# --- wrong requests


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["rum"], ['no command "rum"', 'did you mean "run"?']),
        (["runn", "--grid", "quick"], ['did you mean "run"?']),
        (["--versoin"], ['"--versoin"', 'did you mean "--version"?']),
        (["run", "--gird", "quick"], ['"--gird"', 'did you mean "--grid"?']),
        (["run", "quick"], ['"quick"', "--help"]),
        (["run", "--grid", "quik"], ['"quik"', 'did you mean "quick"?']),
        (["run", "--grid"], ["--grid"]),
        (["run", "--limit", "0"], ["--limit", "'0'", "positive"]),
        (["run", "--limit", "-3"], ["--limit"]),
        (["run", "--limit", "few"], ["--limit", "'few'"]),
        (["run", "--limit", "²"], ["--limit", "'²'"]),
        (["run", "--workers", "0"], ["--workers", "'0'"]),
        (["run", "--seeds", "a,b"], ["--seeds", "'a,b'", "0,1,2"]),
        (["run", "--seeds", ""], ["--seeds"]),
        (["run", "--seeds", "0,-1"], ["--seeds", "0,-1"]),
        (["run", "--seeds", str(2**31)], ["--seeds", str(2**31)]),
        (["run", "--seeds", "0", "1"], ['"1"']),
        (["run", "--device", "tpu"], ["--device", '"tpu"', "cpu"]),
        (["run", "--precision", "float16"], ["--precision", "bfloat16"]),
        (["plan", "--fresh"], ['"--fresh"']),
        (["plan", "--grid", "smoke", "--dataset", "digit"], ['no dataset "digit"; did you mean "digits"?']),
        (["list", "atack"], ['no kind "atack"', 'did you mean "attack"?']),
        (["list", "attack", "apgdd"], ['there is no attack "apgdd"; did you mean "apgd"?']),
        (["list", "attack", "art:Nothing"], ["Nothing"]),
        (["list", "attack", "--norm", "l3"], ["l3"]),
        (["list", "defense", "--norm", "l2"], ["filter attacks, not the kind defense"]),
        (["show", "atack", "fgm"], ['no kind "atack"; did you mean "attack"?']),
        (["show", "attack", "apgdd"], ['no attack "apgdd"; did you mean "apgd"?']),
        (["show", "attack"], ["NAME"]),
        (["show", "grid", "fll"], ['robbench: there is no grid "fll"; did you mean "full"?']),
        (["show", "grid", "gone.toml"], ["gone.toml"]),
        (["show", "schema", "gird"], ['no schema "gird"; did you mean "grid"?']),
        (["check", "fgmm"], ['there is no component "fgmm"; did you mean "fgm"?']),
        (["check", "compact-cn"], ['there is no component "compact-cn"; did you mean "compact-cnn"?']),
        (["check", "fgm", "--kind", "attak"], ['--kind: there is no attak "fgm"; did you mean "attack"?']),
        (["check", "pgd[step=3]"], ['attack "pgd": unknown parameter "step"; did you mean "steps"?']),
        (["check", "pgd[steps=0]"], ["steps = 0: Input should be greater than or equal to 1"]),
        (["check", "pgd", "--plugin", "nowhere.py"], ["is not a file"]),
        (["list", "grids", "fll"], ['no grid "fll"', 'did you mean "full"?']),
        (["report"], ["--out", '"runs"', "robbench run"]),
        (["report", "--out", "gone"], ['"gone"']),
        (["gc"], ["--out", '"runs"']),
    ],
)
def test_wrong_requests_are_answered_in_one_line_and_write_nothing(
    arguments: list[str],
    parts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    error = refused(arguments, capsys)
    for part in parts:
        assert part in error
    assert files(tmp_path) == {}


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("out", ["taken", "taken/below"])
def test_a_store_that_cannot_be_made_is_refused_before_anything_is_done(
    command: str, out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_grid(tmp_path / "grid.toml", GRID)
    (tmp_path / "taken").write_text("mine", encoding="utf-8")
    before = files(tmp_path)
    error = refused([command, *words(tmp_path, out)], capsys)
    assert "--out" in error
    assert str(tmp_path / out) in error
    assert files(tmp_path) == before


def test_cuda_is_refused_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--device" in refused(["plan", "--grid", "smoke", "--device", "cuda", "--out", str(tmp_path)], capsys)


# --- running


@pytest.mark.end_to_end
def test_what_is_done_is_not_done_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*") if path.is_file()}
    assert main(["run", "--workers", "1", *words(folder)]) == 0
    assert "Nothing to do: all 3 cells of grid are done" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.end_to_end
def test_what_was_removed_is_done_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = results(folder / "runs")
    store = Store(folder / "runs")
    store.remove("cells", store.keys("cells")[0])
    assert main(["run", "--workers", "1", *words(folder)]) == 0
    assert "2 done, 1 to do" in capsys.readouterr().out
    shutil.rmtree(folder / "runs" / "leaderboards")
    assert main(["run", "--workers", "1", *words(folder)]) == 0
    assert results(folder / "runs") == before


def test_fresh_does_everything_again_and_comes_to_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, times = results(folder / "runs"), Path.stat
    kept = [*(folder / "runs" / "cells").glob("*/record.json"), *(folder / "runs" / "models").glob("*/model.json")]
    old = [times(path).st_mtime_ns for path in kept]
    assert main(["run", "--workers", "1", "--fresh", *words(folder)]) == 0
    assert "0 done, 3 to do" in capsys.readouterr().out
    assert len(kept) == 4
    assert all(times(path).st_mtime_ns > when for path, when in zip(kept, old, strict=True))
    assert results(folder / "runs") == before


@pytest.mark.end_to_end
def test_two_workers_come_to_what_one_comes_to(tmp_path: Path) -> None:
    models = [{"name": "first"}, {"name": "second", "start": "first", "defense": "fgm"}, {"objective": "angular"}]
    write_grid(tmp_path / "grid.toml", tiny(conditions=["clean", "fgsm@ref"], models=models))
    for workers in ("1", "2"):
        assert main(["run", "--workers", workers, *words(tmp_path, workers)]) == 0
    one, two = results(tmp_path / "1"), results(tmp_path / "2")
    assert len([name for name in one if name.endswith("record.json")]) == 6
    assert one == two


def test_seeds_in_place_of_the_grids(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words(folder), "--seeds", "1,0 1"]) == 0
    assert "6 cells, 3 done" in capsys.readouterr().out


def test_keys_in_place_of_the_grids_make_a_board_of_their_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(folder / "runs" / "leaderboards")
    command = [
        "run",
        "--workers",
        "1",
        *words(folder),
        "--set",
        'conditions=["clean", "rotation"]',
        "--set",
        "title=Less",
    ]
    assert main(command) == 0
    assert "0 to do" in capsys.readouterr().out, "cells are shared with the grid as it is written"
    assert main(command) == 0
    assert "Nothing to do: all 2 cells of grid are done" in capsys.readouterr().out
    titles = {json.loads(path.read_text())["title"] for path in (folder / "runs").rglob("leaderboard.json")}
    assert titles == {"", "Less"}
    after = files(folder / "runs" / "leaderboards")
    assert {name for name in before if after[name] != before[name]} == {"index.html"}
    assert main(["run", "--workers", "1", *words(folder)]) == 0
    assert "Nothing to do: all 3 cells" in capsys.readouterr().out


def test_a_request_that_went_wrong_since_is_refused_as_a_new_one_is(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ROBBENCH_DATA", raising=False)
    before = files(folder / "runs")
    for wrong in ("digit", "image-folder"):
        write_grid(folder / "grid.toml", {**GRID, "datasets": [wrong]})
        error = refused(["run", *words(folder)], capsys)
        assert f'{folder / "grid.toml"}: key "datasets.0"' in error
    assert files(folder / "runs") == before


# --- planning


def test_a_plan_counts_what_is_done_and_what_is_left(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words(folder, "new")]) == 0
    assert "3 cells, 0 done" in capsys.readouterr().out
    assert main(["plan", *words(folder)]) == 0
    assert "3 cells, 3 done; nothing left" in " ".join(capsys.readouterr().out.split())
    store = Store(folder / "runs")
    records = {key: store.record(key) for key in store.keys("cells")}
    removed = next(key for key, record in records.items() if record and record.spec.condition.kind == "attack")
    store.remove("cells", removed)
    assert main(["plan", "--cells", *words(folder)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    # 20 images, a forward and a backward pass each.
    assert "3 cells, 2 done; at most 40 passes left" in shown
    for part in ("clean done", "rotation done", "fgsm@0.1 to do"):
        assert part in shown


# --- reports


@pytest.mark.end_to_end
def test_a_report_makes_the_same_boards_from_the_records_alone(folder: Path) -> None:
    before = files(folder / "runs" / "leaderboards")
    assert len(before) > 3
    for part in ("leaderboards", "data"):
        shutil.rmtree(folder / "runs" / part)
    for path in (folder / "runs" / "models").rglob("*.safetensors"):
        path.unlink()
    (folder / "grid.toml").unlink()
    assert main(["report", "--out", str(folder / "runs")]) == 0
    assert files(folder / "runs" / "leaderboards") == before
    assert main(["report", "--out", str(folder / "runs"), "--grid", "grid"]) == 0
    assert files(folder / "runs" / "leaderboards") == before


def test_a_run_leaves_a_page_that_leads_to_its_boards(folder: Path) -> None:
    boards = [path for path in (folder / "runs" / "leaderboards").iterdir() if path.is_dir()]
    text = (folder / "runs" / "leaderboards" / "index.html").read_text(encoding="utf-8")
    assert boards
    for board in boards:
        assert f'href="{quote(board.name)}/index.html"' in text
        assert (board / "index.html").is_file()


def test_a_report_of_an_unknown_grid_is_answered_with_the_nearest(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(["report", "--out", str(folder / "runs"), "--grid", "gird"], capsys)
    assert 'no grid "gird"' in error
    assert 'did you mean "grid"?' in error


def test_a_report_of_an_empty_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no run yet" in refused(["report", "--out", str(tmp_path)], capsys)
    assert files(tmp_path) == {}


def test_a_report_with_failed_cells_ends_as_the_run_did(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(folder / "runs")
    record = store.record(store.keys("cells")[0])
    assert record is not None
    failed: dict[str, object] = {"status": "failed", "reason": "it rained", "metrics": {}, "outcome_sha256": None}
    store.write_cell(record.model_copy(update=failed), None)
    assert main(["report", "--out", str(folder / "runs")]) == 1
    assert "it rained" in capsys.readouterr().out


# --- cleaning up


def test_gc_deletes_leftovers_and_a_board_that_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(folder / "runs")
    before, had = results(store.root), {kind: set(store.keys(kind)) for kind in ("cells", "models")}
    (first,) = store.boards()
    write_grid(folder / "grid.toml", {**GRID, "models": [{}, {"defense": "fgm"}]})
    assert main(["run", "--workers", "1", *words(folder)]) == 0
    assert len(store.keys("cells")) == 6
    assert len(store.keys("models")) == 2
    (second,) = store.boards().keys() - {first}
    leftover = store.root / "cells" / min(had["cells"]) / ".record.json.12345678.tmp"
    leftover.write_text("half a rec", encoding="utf-8")
    foreign = store.root / "notes" / ".mine.tmp"
    foreign.parent.mkdir()
    foreign.write_text("not the store's", encoding="utf-8")

    whole = files(store.root)
    capsys.readouterr()
    for dry in (["--dry-run"], ["--dry-run", "--board", second]):
        assert main(["gc", *dry, "--out", str(store.root)]) == 0
        assert f"would be deleted: {leftover}" in capsys.readouterr().out
        assert files(store.root) == whole

    assert main(["gc", "--out", str(store.root)]) == 0
    assert f"deleting: {leftover}" in capsys.readouterr().out
    del whole[str(leftover.relative_to(store.root))]
    assert files(store.root) == whole, "what a run has finished stays"
    shutil.rmtree(foreign.parent)

    assert f'no board "{second}x"' in refused(["gc", "--board", f"{second}x", "--out", str(store.root)], capsys)
    assert main(["gc", "--board", second, "--out", str(store.root)]) == 0
    assert second in capsys.readouterr().out
    write_grid(folder / "grid.toml", GRID)
    assert {kind: set(store.keys(kind)) for kind in had} == had
    assert results(store.root) == before
    assert main(["run", "--workers", "1", *words(folder)]) == 0
    assert "Nothing to do" in capsys.readouterr().out


def test_gc_waits_for_nobody(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(folder / "runs")
    with Store(folder / "runs").lock():
        assert "in use" in refused(["gc", "--out", str(folder / "runs")], capsys)
    assert files(folder / "runs") == before


# --- readers


def test_a_reader_that_goes_away_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "robbench", "list", "grid"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(300) == 0
