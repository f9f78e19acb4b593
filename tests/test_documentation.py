from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import robbench
from robbench.cli.main import commands, main, parsers
from robbench.core.registry import KINDS, Registry
from robbench.planning.grid import parse_grid

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md")


def blocks(name: str, language: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def plugin_files(name: str, folder: Path) -> list[Path]:
    """The worked examples of components in a document, a file each."""
    files = []
    for number, block in enumerate(block for block in blocks(name, "python") if "@register_" in block):
        files.append(folder / f"{Path(name).stem.lower()}{number}.py")
        files[-1].write_text(block, encoding="utf-8")
    return files


@pytest.mark.parametrize("name", DOCUMENTS)
def test_worked_examples_use_public_names_alone(name: str) -> None:
    for block in blocks(name, "python"):
        used: set[str] = set()
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("robbench"):
                assert node.module == "robbench"
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.Import):
                assert not any(alias.name.startswith("robbench.") for alias in node.names)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "robbench":
                used.add(node.attr)
        assert used
        assert used <= set(robbench.__all__)


def test_the_worked_examples_of_the_contributing_guide_are_components(tmp_path: Path) -> None:
    registry = Registry(tuple(plugin_files("CONTRIBUTING.md", tmp_path)), installed=False)
    names = {name for kind in KINDS for name, entry in registry.entries(kind).items() if entry.plugin}
    stripes = {"stripes", "stripes-imbalanced"}
    assert names == {"corner-search", "ascent-and-search", "noise-training", "cost-per-success", "clean-bars"} | stripes


def ran(folder: Path, document: str, grid: str, limit: int) -> Path:
    """Run a grid with the plugins of a document; returns the store."""
    files = plugin_files(document, folder)
    (folder / "mine.toml").write_text(grid, encoding="utf-8")
    words = ["run", "--grid", str(folder / "mine.toml"), "--out", str(folder / "runs"), "--limit", str(limit)]
    plugins = [word for file in files for word in ("--plugin", str(file))]
    assert main([*words, "--workers", "1", *plugins]) == 0
    return folder / "runs"


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize(
    ("datasets", "defense", "limit"),
    [
        (["stripes-imbalanced"], "noise-training", 9),
        pytest.param(["stripes", "stripes-imbalanced"], "noise-training+fgm", 20, marks=pytest.mark.end_to_end),
    ],
)
def test_the_worked_examples_of_the_contributing_guide_run_together(
    datasets: list[str], defense: str, limit: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = (
        f'datasets = {datasets}\nconditions = ["clean", "corner-search@ref"]\n'
        f'[[models]]\ndefense = ["none", "{defense}"]\nrecipe = {{ epochs = 1 }}\n'
    )
    out = ran(tmp_path, "CONTRIBUTING.md", grid, limit)
    assert defense in capsys.readouterr().out.replace("\n", "").replace(" ", "")
    for name in ("leaderboard.csv", "clean-bars.png"):
        assert len(list(out.rglob(name))) == len(datasets)
    assert any("forwards_per_success" in path.read_text() for path in out.rglob("record.json"))


@pytest.mark.usefixtures("one_core", "no_figures")
def test_the_plugins_of_the_readme_run(tmp_path: Path) -> None:
    ran(tmp_path, "README.md", 'conditions = ["gray@each"]\n[[models]]\nrecipe = { epochs = 1 }\n', 20)


def test_the_attacks_of_the_documents_keep_the_rules(tmp_path: Path) -> None:
    files = [*plugin_files("README.md", tmp_path), *plugin_files("CONTRIBUTING.md", tmp_path)]
    words = [word for file in files for word in ("--plugin", str(file))]
    for name in ("gray", "corner-search", "ascent-and-search"):
        assert main(["check", name, *words]) == 0


NET = """
from torch import nn

def make(classes=3):
    return nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, classes))
"""


def test_the_grid_of_the_readme_is_a_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = blocks("README.md", "toml")[0]
    assert len(parse_grid(text, "README").models) == 2
    grid = tmp_path / "mine.toml"
    grid.write_text(text, encoding="utf-8")
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    assert main(["plan", "--grid", str(grid), "--out", str(tmp_path / "runs")]) == 0
    assert "net.py:make" in capsys.readouterr().out


def given(classes: int = 3, count: int = 12) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images of 32×32 in [0, 1] and labels."""
    return np.random.default_rng(0).random((count, 3, 32, 32), dtype=np.float32), np.arange(count) % classes


@pytest.mark.usefixtures("one_core", "no_figures")
def test_the_python_of_the_readme_runs() -> None:
    (block,) = [block for block in blocks("README.md", "python") if "@register_" not in block]
    images, labels = given()
    names: dict[str, Any] = {"images": images, "labels": labels}
    exec(NET, names)
    names["net"] = names["make"]()
    exec(block, names)
    assert names["attacked"].shape == images.shape


def test_the_readme_is_short_and_shows_a_result_first() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 220
    assert any("robbench evaluate" in line for line in lines[:15])
    assert any("worst case Linf" in line for line in lines[:30])
    assert [line for line in lines if line.startswith("    python3 -m venv")] == [
        "    python3 -m venv .venv && . .venv/bin/activate && pip install . && robbench run --grid full",
        "    python3 -m venv .venv && . .venv/bin/activate && pip install -e '.[test]' && pytest",
    ]


def test_the_readme_shows_the_figures_of_its_board() -> None:
    """Its table is that of the published board, row by row, on the images of its ranking."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    board = json.loads((ROOT / "leaderboards/published/full-digits/leaderboard.json").read_text(encoding="utf-8"))
    rows = [
        [*(row["alongside"][0][name]["balanced"] for name in ("clean", "fgsm@0.1", "pgd[steps=20]@0.1")), worst]
        for row in board["rows"]
        for worst in [row["worst"][board["ranked_by"]]["balanced"]]
    ]
    lines = [
        re.findall(r"\d+\.\d", re.sub(r"\([^)]*\)", "", line)) for line in re.findall(r"^\| \d.*", readme, re.MULTILINE)
    ]
    lines = [line for line in lines if len(line) == 4]
    assert len(lines) == 4
    assert {tuple(line) for line in lines} <= {tuple(f"{100 * found[0]:.1f}" for found in row) for row in rows}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_linked_files_are_there(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (ROOT / target).exists(), f"{name} links to {target}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_command_lines_of_the_documents_parse(name: str) -> None:
    lines = re.findall(r"^    (robbench .*)$", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert lines
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        options, unknown = parsers()[0].parse_known_args(words)
        assert not unknown, line
        assert options.command in commands()


LIGHTER = {"full": "smoke", "cifar10": "test.npz", "imagenet": "none", "~/data": "nothing"}
"""What words of the README stand for where its commands are run: a small grid, images that are there."""


def prepared(folder: Path) -> None:
    """What the README's commands find in their folder: a network in several forms, images, and results of before."""
    import timm
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    images, labels = given()
    np.savez(folder / "test.npz", images=images, labels=labels)
    (folder / "net.py").write_text(NET, encoding="utf-8")
    for index, image in enumerate((255 * images[:6]).astype(np.uint8)):
        place = folder / "photos" / "ab"[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(place / f"{index}.png")
    save_file(timm.create_model("resnet18", num_classes=2).state_dict(), folder / "best.safetensors")
    names: dict[str, Any] = {}
    exec(NET, names)
    torch.onnx.export(names["make"]().eval(), (torch.from_numpy(images[:2]),), folder / "net.onnx", dynamo=False)
    for out in ("before", "after"):
        assert main(["evaluate", "net.py:make", "--dataset", "test.npz", "--preset", "quick", "--out", out]) == 0


@pytest.mark.end_to_end
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_commands_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROBBENCH_DATA", raising=False)
    prepared(tmp_path)
    for block in blocks("README.md", "toml"):
        (tmp_path / "mine.toml").write_text(block.replace("[0, 1, 2]", "[0]"), encoding="utf-8")
    (tmp_path / "gray.py").write_text(next(b for b in blocks("README.md", "python") if "gray" in b), encoding="utf-8")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^(?:    |- run: )(robbench .*)$", text, flags=re.MULTILINE)
    assert len(lines) > 20
    for line in lines:
        words = [LIGHTER.get(word, word) for word in shlex.split(line, comments=True)[1:]]
        if words[0] == "run" and ("test.npz" in words or "mine.toml" in words):
            continue  # the grid is planned by a test of its own; data that is not there cannot be
        if words[0] == "search":
            words += ["--trials", "1", "--set", "recipe.epochs=1"]
        assert main(words) in ((0, 1) if "--fail-below" in words else (0,)), line


def test_the_readme_names_every_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"robbench (\w+)", text)) >= set(commands())
