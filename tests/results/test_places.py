"""No path, and no home directory, reaches a board or what is published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from board_cells import A_MODEL
from grid_files import tiny, write_grid
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from plugin_files import write
from stores import BOARD, complaint, fill, publish, row
from stores import write as write_store

from robbench.cli.main import main
from robbench.core.errors import explain
from robbench.results.board_cells import without_places
from robbench.results.schema import Record
from robbench.results.store import Store

TALKATIVE = '''
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from robbench import Attack, NoIdentity, register_attack

@register_attack("patch", norms=("linf",))
@dataclass(frozen=True)
class Patch(Attack):
    """Adds a patch from a file."""

    file: Annotated[str, NoIdentity] = ""

    def perturb(self, model, images, labels, threat, rng):
        if self.file.endswith(".png"):
            return images
        raise FileNotFoundError(f"no patch in {self.file!r} (looked in {Path.home()}/.cache/patches and /opt/jane/p)")
'''


def test_what_is_published_from_a_home_directory_does_not_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home" / "jane doe"
    for name in ("cat", "dog"):
        for number in range(16):
            path = home / "pictures" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (0, 10 * number, 100 * (name == "dog"))).save(path)
    write(home / "plugins" / "patch.py", TALKATIVE)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    grid = tiny(
        datasets=[{"name": "image-folder", "path": "~/pictures", "size": 8}],
        conditions=["clean", f"patch[file={home}/x.png]@ref", f"patch[file={home}/x.npy]@0.05"],
        models=[{"architecture": "compact-cnn"}],
        plugins=["plugins/patch.py"],
    )
    write_grid(home / "mine.toml", grid)
    assert main(["run", "--grid", "mine.toml", "--workers", "1", "--device", "cpu"]) == 1
    assert "FileNotFoundError" in capsys.readouterr().out
    store = Store(home / "runs")
    records = [record for key in store.keys("cells") if (record := store.record(key))]
    assert sorted(record.status for record in records) == ["done", "done", "failed"]
    assert main(["publish", "--to", "site", "--incomplete"]) == 0
    assert main(["report"]) == 1
    published = [path for folder in ("site", "runs/leaderboards") for path in (home / folder).rglob("*")]
    assert any(path.name == "records.jsonl" for path in published)
    for path in published:
        text = path.read_bytes() if path.is_file() else b""
        for part in (b"jane", str(tmp_path).encode(), b"pictures"):
            assert part not in str(path.relative_to(home)).encode() + text, path
    assert "(looked in …/patches and …/p)" in (
        next((home / "site").glob("*/README.md")).read_text(encoding="utf-8").replace("\\", "")
    )


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("cannot open /home/jane/data/x.png", "cannot open …/x.png"),
        ("'/home/jane'", "'~'"),
        ("/Users/jane: denied", "~: denied"),
        (r"C:\Users\jane\data\x.png is gone", "…/x.png is gone"),
        ("D:/work/jane/x.png", "…/x.png"),
        ("~/jane/x.png", "…/x.png"),
        ("path=/data/jane/x", "path=…/x"),
        ("file:///home/jane/x.png", "file://~/x.png"),
        ("file:///data/jane/x.png", "…/x.png"),
        (r"'C:\\Users\\jane\\x.png'", r"'~\\x.png'"),
        ("/usr/jane:/opt/jane/lib", "…/jane:…/lib"),
        ("(/srv/jane/a.py:12)", "(…/a.py:12)"),
        (r"\\host\share\x.png", "…/x.png"),
        ("see https://download.pytorch.org/models/x.pth", "see https://download.pytorch.org/models/x.pth"),
        ("8/255 and/or 1/2/3, a/b/c", "8/255 and/or 1/2/3, a/b/c"),
        ("shape (3, 8)/2 at / of 1", "shape (3, 8)/2 at / of 1"),
        ("…/x.png", "…/x.png"),
        ("", ""),
    ],
)
def test_of_a_path_the_last_name_is_left(text: str, left: str) -> None:
    assert without_places(text) == left
    assert without_places(left) == left


@given(st.lists(st.text("abcxyz019-_.", min_size=1, max_size=8), min_size=2, max_size=6), st.sampled_from("'\" (=:"))
def test_no_directory_of_any_path_is_left(names: list[str], before: str) -> None:
    secret = [f"secret{name}" for name in names]
    text = without_places(f"cannot read{before}/{'/'.join(secret)}")
    assert text.count("secret") <= 1


def test_an_error_calls_the_home_directory_by_its_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/jane doe")
    assert explain(ValueError("no /home/jane doe/x/y.png")) == "ValueError: no ~/x/y.png"
    monkeypatch.setenv("HOME", "/")
    assert explain(ValueError("no /x/y")) == "ValueError: no /x/y"


# --- what the version before left


def test_a_board_whose_name_says_where_images_lie_is_not_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = fill(tmp_path / "runs", row(A_MODEL))
    name = "mine-image-folder_path__home_jane_pictures_size_8_-66a61a"
    store.write(store.root / "boards" / f"{name}.json", store.board(BOARD))
    store.forget_board(BOARD)
    write_store(store)
    assert "its name says where images lie; run its grid again" in complaint(publish(store, tmp_path / "site"), capsys)
    assert not (tmp_path / "site").exists()


def test_records_of_schema_3_lose_the_place_of_their_images(tmp_path: Path) -> None:
    write_grid(tmp_path / "grid.toml", tiny(conditions=["clean"], datasets=["digits[train_fraction=0.1]"]))
    words = ["--grid", str(tmp_path / "grid.toml"), "--out", str(tmp_path / "runs"), "--limit", "9"]
    assert main(["run", *words, "--workers", "1", "--device", "cpu"]) == 0
    (path,) = (tmp_path / "runs").glob("cells/*/record.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    del data["seal"]
    for label, left in (
        ("image-folder[path=/home/jane/a]", "image-folder"),
        ("image-folder[path=/home/jane/a,size=64]", "image-folder[size=64]"),
        ("image-folder-imbalanced[classes=a|b,path=/home/jane/a]", "image-folder-imbalanced[classes=a|b]"),
        ("image-folder[gallery=9,path=/home/jane/a,size=64]", "image-folder[gallery=9,size=64]"),
        ("image-folder[size=64]", "image-folder[size=64]"),
    ):
        place = "/home/jane/a" if "path" in label else ""
        dataset = data["spec"]["dataset"] | {
            "name": label.partition("[")[0],
            "label": label,
            "parameters": {"size": 64, "path": place},
        }
        old = {**data, "schema_version": 3, "spec": {**data["spec"], "dataset": dataset}}
        found = Record.from_json(json.dumps(old)).spec.dataset
        assert (found.label, found.parameters) == (left, {"size": 64})
