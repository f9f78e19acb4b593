"""What a board is called, and what its cells are called on it: other requests of the store leave both alone."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from board_cells import A_MODEL
from grid_files import tiny, write_grid
from PIL import Image
from plugin_files import GRAY, write
from stores import BOARD, complaint, fill, row

from robbench.cli.main import main
from robbench.core.errors import RequestError
from robbench.execution.boards import note_boards, write_boards
from robbench.execution.jobs import carry_out
from robbench.execution.runner import refresh, remaining
from robbench.planning.grid import Request
from robbench.planning.plan import Plan, cell_key, model_key
from robbench.planning.planner import make_plan
from robbench.results.schema import BoardNote
from robbench.results.store import Store

GRID = tiny(
    datasets=["digits[classes=1|7,train_fraction=0.1]"],
    models=[{"name": "small"}, {"name": "large", "recipe": {"epochs": 2}}],
)


def planned(folder: Path, content: Mapping[str, Any] = GRID, name: str = "grid", **options: Any) -> Plan:
    folder.mkdir(parents=True, exist_ok=True)
    grid = write_grid(folder / f"{name}.toml", content)
    return make_plan(Request(str(grid), folder / "runs", device="cpu", **options))


def board(plan: Plan, out: Path) -> str:
    """The name of a plan's only board, noted in a store."""
    (name,) = note_boards(plan, Store(out))
    return name


def pictures(root: Path, shade: int = 0, names: tuple[str, ...] = ("cat", "dog")) -> Path:
    """A folder of sixteen images a class, which differ."""
    for at, name in enumerate(names):
        for number in range(16):
            path = root / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (shade, 10 * number, 100 * at)).save(path)
    return root


FOLDERS = tiny(datasets=["{dataset}"], dataset="image-folder[size=8]", models=[{"architecture": "compact-cnn"}])


# --- the names of boards


def test_requests_that_differ_have_boards_of_their_own(tmp_path: Path) -> None:
    plugin = write(tmp_path / "gray.py", GRAY)
    gray: dict[str, Any] = {**GRID, "conditions": ["clean", "gray@ref"]}
    made = [
        planned(tmp_path),
        planned(tmp_path, limit=5),
        planned(tmp_path, limit=6),
        planned(tmp_path, seeds=(1,)),
        planned(tmp_path, seeds=(0, 1)),
        planned(tmp_path, audit=True),
        planned(tmp_path, precision="bfloat16"),
        planned(tmp_path, name="other"),
        planned(tmp_path, name="Grid"),
        *(
            planned(tmp_path, {**GRID, **changes})
            for changes in (
                {"title": "another"},
                {"about": "another"},
                {"conditions": ["clean", "fgsm@0.05"]},
                {"conditions": [{"chain": "clean", "embed": 20}, "fgsm@ref"]},
                {"conditions": ["fgsm@ref", "clean"]},
                {"conditions": ["clean", {"chain": "fgsm@ref", "check": True}]},
                {"datasets": ["digits[classes=7|1,train_fraction=0.1]"]},
                {"recipe": {"epochs": 3}},
                {"models": [{"name": "large"}, {"name": "small", "recipe": {"epochs": 2}}]},
            )
        ),
        planned(tmp_path, gray, plugins=(plugin,)),
        planned(tmp_path, gray, plugins=(write(tmp_path / "edited" / "gray.py", f"{GRAY}\n# edited"),)),
    ]
    names = [board(plan, tmp_path / "runs") for plan in made]
    assert len(set(names)) == len(names)
    assert len({name.lower() for name in names}) == len(names), "some file systems know no capitals"
    assert all(name.partition("-")[0] in ("grid", "Grid", "other") for name in names)


def test_the_same_request_has_the_same_board_wherever_its_files_lie(tmp_path: Path) -> None:
    names = set()
    for place in ("here", "there/deeper"):
        folder = tmp_path / place
        plugin = write(folder / "gray.py", GRAY)
        content = {**GRID, "conditions": ["gray@ref"], "plugins": [str(plugin)]}
        names.add(board(planned(folder, content), folder / "runs"))
        names.add(board(planned(folder, {**content, "plugins": []}, plugins=(plugin,)), folder / "runs"))
    assert len(names) == 1


def test_a_built_in_grid_as_it_is_written_has_a_plain_name(tmp_path: Path) -> None:
    out = tmp_path / "runs"

    def name(**options: Any) -> list[str]:
        return list(note_boards(make_plan(Request("smoke", out, device="cpu", **options)), Store(out)))

    assert name() == name(dataset="digits") == ["smoke-digits"]
    others = [name(limit=9), name(seeds=(0,)), name(seeds=(1,)), name(audit=True), name(dataset="digits-imbalanced")]
    assert not any("smoke-digits" in other for other in others)
    assert len({*map(tuple, others)}) == 5
    copy = tmp_path / "smoke.toml"
    write_grid(copy, tiny(datasets=["digits"]))
    assert list(note_boards(make_plan(Request(str(copy), out, device="cpu")), Store(out))) != ["smoke-digits"]


def test_a_grid_of_any_name_has_a_board(tmp_path: Path) -> None:
    for name in ("格" * 80, "a b\u202ec", "ä" * 100, "..", "-x"):
        made = board(planned(tmp_path, name=name), tmp_path / "runs")
        assert len(made.encode()) < 200
        assert (tmp_path / "runs" / "boards" / f"{made}.json").is_file()
    assert len(list((tmp_path / "runs" / "boards").iterdir())) == 5


# --- images that lie somewhere


def test_identical_pixels_have_the_same_keys_wherever_they_lie(tmp_path: Path) -> None:
    here, there = pictures(tmp_path / "home" / "jane" / "here"), pictures(tmp_path / "there")
    found = set()
    for wanted, data_dir in (
        (f"image-folder[path={here},size=8]", None),
        (f"image-folder[size=8,path={there}]", None),
        ("image-folder[size=8]", there),
    ):
        plan = planned(tmp_path, FOLDERS, dataset=wanted, data_dir=data_dir)
        (job,) = plan.jobs
        found.add((job.key, *(cell.key for cell in job.cells), board(plan, tmp_path / "runs")))
        spec = job.data.spec
        assert (spec.label, "path" in spec.parameters) == ("image-folder[size=8]", False)
        assert str(tmp_path) not in spec.model_dump_json() + job.spec.model_dump_json()
    assert len(found) == 1
    assert not any("jane" in path.name for path in (tmp_path / "runs").rglob("*"))


def test_keys_of_images_from_a_data_directory_are_what_they_were(tmp_path: Path) -> None:
    """The path, empty there, was part of them; keys can still be computed from what records hold."""
    plan = planned(tmp_path, FOLDERS, data_dir=pictures(tmp_path / "in"))
    (job,) = plan.jobs
    named = {"dataset": job.data.spec.model_copy(update={"parameters": {**job.data.spec.parameters, "path": ""}})}
    assert model_key("float32", "cpu", named["dataset"], job.spec, 0, None) == job.key
    for cell in job.cells:
        assert cell_key(cell.spec, cell.peers, cell.needs) == cell.key


def test_two_folders_of_one_grid_are_told_by_their_images(tmp_path: Path) -> None:
    folders = [pictures(tmp_path / "one"), pictures(tmp_path / "two", shade=200)]
    content = {
        **FOLDERS,
        "datasets": [f"image-folder[size=8,path={folder}]" for folder in folders],
        "models": [{"name": "plain", "architecture": "compact-cnn"}],
        "references": [{"row": "plain", "value": 0.5, "dataset": ""}],
    }
    for folder in folders:
        content["references"][0]["dataset"] = f"image-folder[size=8,path={folder}]"
        plan = planned(tmp_path, content)
        labels = [job.data.choice.label for job in plan.jobs]
        assert labels == [f"image-folder[size=8] {job.data.decoded.fingerprint[:8]}" for job in plan.jobs]
        names = list(note_boards(plan, Store(tmp_path / "runs")))
        notes = [Store(tmp_path / "runs").boards()[name] for name in names]
        assert [bool(note["references"]) for note in notes] == [folder == other for other in folders]
    pictures(tmp_path / "two")
    with pytest.raises(RequestError, match="two places hold the same images"):
        planned(tmp_path, content)
    content["datasets"] = [content["datasets"][0]] * 2
    with pytest.raises(RequestError, match="asked for twice"):
        planned(tmp_path, content)


# --- the names on boards


def written(out: Path) -> dict[str, bytes]:
    """The files of boards but for times, by path below the store."""
    found = {path: path.read_bytes() for path in sorted((out / "leaderboards").glob("*/**/*")) if path.is_file()}
    return {str(path.relative_to(out)): data for path, data in found.items() if path.name != "timings.csv"}


@pytest.fixture(autouse=True, scope="module")
def no_figures() -> Iterator[None]:
    """They take longer than all else, and are drawn of what the boards say."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("robbench.leaderboards.plots.draw", lambda *_: [])
        yield


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grid a in a store of its own; not to be written to."""
    folder = tmp_path_factory.mktemp("alone")
    run(planned(folder, GRID, "a", limit=20))
    return folder


def run(*plans: Plan) -> None:
    """Carry out plans of one store at the same time, a job of each in turn; their boards are written by each itself."""
    store = Store(plans[0].request.out)
    noted = [note_boards(plan, store) for plan in plans]
    for plan in plans:
        refresh(plan, store)
    work = [iter(remaining(plan, store)) for plan in plans]
    turns = ((plan, item) for plan, items in zip(plans, work, strict=True) for item in items)
    for plan, (job, cells) in turns:
        carry_out(plan, job, [cell for cell in cells if not store.finished(cell.key)], lambda progress: None)
    for plan, boards in zip(plans, noted, strict=True):
        refresh(plan, store)
        write_boards(store, boards)


OTHERS: dict[str, dict[str, Any]] = {
    "the other way round": {"models": [{"name": "large"}, {"name": "small", "recipe": {"epochs": 2}}]},
    "one under the name of the other": {"models": [{"name": "large"}]},
    "a row more, and columns of which one is a check": {
        "models": [{"name": "large"}, {"name": "x", "start": "large"}],
        "conditions": ["clean", {"chain": "fgsm@0.05", "check": True}, "fgsm@ref"],
    },
}


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("what", OTHERS)
def test_grids_leave_each_others_boards_alone(alone: Path, tmp_path: Path, what: str, at_once: bool) -> None:
    first, second = planned(tmp_path, GRID, "a", limit=20), planned(tmp_path, {**GRID, **OTHERS[what]}, "b", limit=20)
    out = tmp_path / "runs"
    if at_once:
        run(first, second)
    else:
        run(first)
        run(second)
    wanted = written(alone / "runs")
    (name,) = Store(alone / "runs").boards()
    assert {path: data for path, data in written(out).items() if f"/{name}/" in path} == wanted
    whole = written(out)
    shutil.rmtree(out / "leaderboards")
    assert main(["report", "--out", str(out)]) == 0
    assert written(out) == whole
    assert main(["publish", "--out", str(out), "--to", str(tmp_path / "site")]) == 0
    records = {path: path.read_bytes() for path in out.glob("cells/*/record.json")}
    assert main(["run", "--grid", str(tmp_path / "a.toml"), "--out", str(out), "--limit", "20", "--workers", "1"]) == 0
    assert {path: path.read_bytes() for path in records} == records, "records are not rewritten for names"


def test_columns_of_two_names_are_two_boards_own(tmp_path: Path) -> None:
    """The same corruption, once as one of all severities, which say all their parameters, and once by itself."""
    wanted = ("corruption@severities", "corruption[severity=1]")
    plans = [
        planned(tmp_path, {**GRID, "models": [{}], "conditions": ["clean", text]}, name, limit=9)
        for text, name in zip(wanted, "ab", strict=True)
    ]
    cells = [plan.jobs[0].cells[1] for plan in plans]
    assert cells[0].key == cells[1].key
    assert cells[0].spec.condition.label != cells[1].spec.condition.label
    run(*plans)
    store = Store(tmp_path / "runs")
    for found, cell in zip(write_boards(store).cells.values(), cells, strict=True):
        assert found[1][0].spec.condition == cell.spec.condition
    with pytest.raises(RequestError, match="is the same condition as"):
        planned(tmp_path, {**GRID, "conditions": list(wanted)})


def test_what_one_board_audits_is_no_part_of_the_others(tmp_path: Path) -> None:
    """A row is flagged for what an attack finds that only one of two boards has."""
    store = fill(tmp_path / "runs", row(A_MODEL, (10, 20)))
    keys = store.boards()[BOARD]["cells"]
    store.note_board("few", BoardNote(grid="few", title="Few"), keys[:2], store.keys("models"))
    before = {path: path.read_bytes() for path in store.root.glob("cells/*/record.json")}
    for _ in range(2):
        boards = write_boards(store).cells
        flags = {name: {flag for record, _ in cells for flag in record.flags} for name, cells in boards.items()}
        assert flags == {BOARD: {"single-step-wins"}, "few": set()}
    assert main(["publish", "--out", str(store.root), "--to", str(tmp_path / "site")]) == 0
    assert {path: path.read_bytes() for path in before} == before


def test_a_board_that_another_run_writes_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = fill(tmp_path / "runs", row(A_MODEL, (10, 20)))
    store.note_board("few", BoardNote(grid="few", title="Few"), store.boards()[BOARD]["cells"][:2], [])
    write_boards(store)
    listing = store.root / "leaderboards" / "index.html"
    whole, path = listing.read_bytes(), store.root / "leaderboards" / "few" / "leaderboard.json"
    with store.lease("leaderboards", "few"):
        path.write_bytes(path.read_bytes() + b"\n")
        lister = threading.Thread(target=write_boards, args=(store, [BOARD]))
        lister.start()
        lister.join(1)
        assert lister.is_alive()
        store.note_files(["few"])
    lister.join()
    assert listing.read_bytes() == whole
    path.write_bytes(path.read_bytes() + b"\n")
    assert not capsys.readouterr().err
    write_boards(store, [BOARD])
    assert "leaderboard.json" in capsys.readouterr().err, "what nobody is writing is damaged"


def test_a_written_board_is_whole_before_it_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fill(tmp_path / "runs", row(A_MODEL, (10, 20)))
    write_boards(store)
    note = store.boards()[BOARD]
    store.note_board(BOARD, BoardNote(grid=note["grid"], title="Another"), note["cells"], note["models"])
    monkeypatch.setattr("robbench.execution.boards.list_boards", lambda *_: None)
    write_boards(store)
    assert store.check_files(BOARD)


def test_a_note_without_names_shows_those_of_the_records(alone: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(alone / "runs", tmp_path / "runs"))
    store = Store(out)
    before = written(out)
    (name,) = store.boards()
    path = out / "boards" / f"{name}.json"
    note = store.boards()[name]
    del note["names"]
    path.write_text(json.dumps(note), encoding="utf-8")
    assert main(["report", "--out", str(out)]) == 0
    assert written(out) == before


@pytest.mark.parametrize("names", ["x", 3, ["x"], {"rows": {}}, {"dataset": 1, "rows": {}, "columns": {}}, "stages"])
def test_damaged_names_are_refused_in_one_line(
    alone: Path, tmp_path: Path, names: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(alone / "runs", tmp_path / "runs"))
    (path,) = (out / "boards").glob("*.json")
    note = json.loads(path.read_text(encoding="utf-8"))
    if names == "stages":
        names = {**note["names"], "columns": {key: {"label": "x", "stages": ["a"] * 3} for key in note["cells"]}}
    path.write_text(json.dumps({**note, "names": names}), encoding="utf-8")
    error = complaint(main(["report", "--out", str(out)]), capsys)
    assert str(path) in error


def test_a_run_says_where_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = write_grid(tmp_path / "grid.toml", GRID)
    words = ["run", "--grid", str(grid), "--out", str(tmp_path / "runs"), "--limit", "9", "--workers", "1"]
    for _ in range(2):
        assert main(words) == 0
        (name,) = Store(tmp_path / "runs").boards()
        assert str(tmp_path / "runs" / "leaderboards" / name / "index.html") in capsys.readouterr().out


def test_what_is_told_of_a_cell_has_no_names_of_a_grid(tmp_path: Path) -> None:
    """A start that is refused, one of another architecture, and one that stands in for weights from elsewhere."""
    models = [
        {"name": "mine", "balancer": "smote", "datasets": ["digits[classes=1|7,train_counts=40|1]"]},
        {"name": "refused", "start": "mine", "datasets": ["digits[classes=1|7,train_counts=40|1]"]},
        {"name": "yours", "datasets": GRID["datasets"]},
        {"name": "other", "architecture": "small-cnn", "start": ["imagenet", "yours"], "datasets": GRID["datasets"]},
    ]
    content = {**GRID, "datasets": ["digits[classes=1|7,train_counts=40|1]", *GRID["datasets"]], "models": models}
    plan = planned(tmp_path, {**content, "conditions": ["clean"]}, limit=9)
    run(plan)
    store = Store(tmp_path / "runs")
    told = {}
    for job, cell in plan.cells:
        record = store.record(cell.key)
        assert record is not None
        told[job.spec.label] = f"{record.reason} {record.notes} {job.notes}"
    for name, part in (("mine", "smote"), ("refused", "is refused: smote"), ("other", "another architecture")):
        assert part in told[name]
    assert "does not start from imagenet" in told["other"]
    assert not any(name in text for name in ("mine", "yours") for text in told.values())
