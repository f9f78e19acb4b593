"""Packages to begin with."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from robbench.cli.main import main
from robbench.cli.new import KINDS, RUNS, package
from robbench.core.registry import ENTRY_POINTS, Registry

NAMES = {
    "attack": "my-attack-2",
    "defense": "a",
    "dataset": "stripes-that-lie-or-stand-in-the-noise-2",
    "metric": "cost",
    "figure": "bars",
    "model": "net",
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package of each kind; not to be written to."""
    folder = tmp_path_factory.mktemp("packages")
    for kind, name in NAMES.items():
        assert main(["new", kind, name, "--to", str(folder / name)]) == 0
    return folder


@pytest.fixture
def installed(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder, its packages announced as pip announces them where it installs them."""
    modules = set(sys.modules)
    for kind in RUNS:
        folder = packages / NAMES[kind]
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        points = project["entry-points"][ENTRY_POINTS]
        told = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        told.mkdir()
        told.joinpath("METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
        lines = [f"[{ENTRY_POINTS}]", *(f"{name} = {module}" for name, module in points.items())]
        told.joinpath("entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
        monkeypatch.syspath_prepend(folder)
    monkeypatch.syspath_prepend(tmp_path)
    yield packages
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(packages)):
            del sys.modules[name]


@pytest.mark.parametrize(
    "kinds", [("defense", "metric", "model"), pytest.param(("attack", "dataset", "figure"), marks=pytest.mark.slow)]
)
@pytest.mark.end_to_end
def test_every_package_passes_its_own_test(kinds: tuple[str, ...], packages: Path) -> None:
    names = [NAMES[kind] for kind in kinds]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-v", "--rootdir=.", *names]
    done = subprocess.run(command, cwd=packages, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    for name in names:
        assert any(line.startswith(f"{name}/") and "PASSED" in line for line in done.stdout.splitlines()), done.stdout


def test_every_package_is_found_when_it_is_installed(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry = Registry()
    for kind in RUNS:
        entry = registry.entry(kind, NAMES[kind])  # type: ignore[arg-type]
        assert entry.plugin == f"{NAMES[kind]} 0.1.0"
        assert Path(entry.file).parent == installed / NAMES[kind]
    capsys.readouterr()
    for kind in RUNS:
        assert main(["check", NAMES[kind]]) == 0
        assert "\n0 of " in capsys.readouterr().out


def test_a_file_that_is_installed_may_be_named_as_well(installed: Path, tmp_path: Path) -> None:
    """As happens while a plugin is written; a copy of it is another one of its name."""
    name = NAMES["metric"]
    file = installed / name / f"{name}.py"
    assert Registry((file,)).entry("metric", name) == Registry().entry("metric", name)
    copy = tmp_path / "copy.py"
    copy.write_bytes(file.read_bytes())
    with pytest.raises(Exception, match="two components"):
        Registry((copy,)).entry("metric", name)


@pytest.mark.parametrize("name", ["a", "x-" + "y" * 38])
def test_every_package_is_clean_by_the_rules_that_ruff_has_by_itself(name: str, tmp_path: Path) -> None:
    pytest.importorskip("ruff")
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        for file, text in package(kind, name).items():
            (tmp_path / kind / file).write_text(text, encoding="utf-8")
        for words in (["check", "--select", "E,F,W,I,B,UP,SIM,RUF,RET"], ["format", "--check"]):
            command = [sys.executable, "-m", "ruff", *words, "--isolated", "--no-cache", "."]
            done = subprocess.run(command, cwd=tmp_path / kind, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_template_stays(kind: str) -> None:
    texts = package(kind, "fast")
    assert set(texts) >= {"README.md"}
    assert ("pyproject.toml" in texts) == (kind != "model")
    for file, text in texts.items():
        for word in ("my-", "my_", "KIND", "RUN", f"My{kind.capitalize()}"):
            assert word not in text, file
    assert len([line for line in texts["README.md"].splitlines() if line.strip()]) <= 6
    module = texts["net.py" if kind == "model" else "fast.py"]
    classes = [node.name for node in ast.parse(module).body if isinstance(node, ast.ClassDef)]
    assert classes == [f"Fast{kind.capitalize()}"]


@pytest.mark.parametrize(("name", "expected"), [("my-attack", "MyAttack"), ("my-attack-2", "MyAttack2Attack")])
def test_a_class_is_called_what_it_is(name: str, expected: str) -> None:
    assert f"class {expected}(Attack)" in package("attack", name)[f"{name.replace('-', '_')}.py"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["atack", "mine"], ['no kind "atack"', '"attack"']),
        (["balancer", "mine"], ['no kind "balancer"']),
        (["attack", "My_Attack"], ['"My_Attack"', '"my-attack"']),
        (["attack", "../mine"], ['"../mine"', '"mine"']),
        (["attack", ""], ['""', '"my-attack"']),
        (["attack", "2fast"], ['"2fast"', '"fast"']),
        (["attack", "two--lines"], ['"two-lines"']),
        (["attack", "angriff-ü"], ["letters"]),
        (["attack", "x" * 41], ["40"]),
        (["model", "net.py"], ['"net-py"']),
        (["attack", "attack"], ["the name of the kind"]),
        (["attack", "pgd"], ['attack "pgd" already']),
        (["dataset", "digits"], ['dataset "digits" already']),
        (["metric", "class"], ["class", "another name"]),
        (["metric", "random"], ["random", "another name"]),
        (["metric", "numpy"], ["numpy", "another name"]),
        (["metric", "conftest"], ["conftest", "another name"]),
        (["metric", "setup"], ["setup", "another name"]),
        (["metric", "mine", "--to", "taken"], ['"taken" is there already']),
        (["metric", "mine", "--to", "file"], ['"file" is there already']),
        (["metric", "mine", "--to", "file/below"], ["file/below", "--to"]),
        (["metric", "mine", "--to", "."], ["is there already"]),
        (["metric", "mine", "--to", "broken"], ['"broken" is there already']),
    ],
)
def test_wrong_names_and_folders_are_refused_and_nothing_is_written(
    words: list[str],
    parts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    (tmp_path / "broken").symlink_to("nowhere")
    before = sorted(path for path in tmp_path.rglob("*"))
    assert main(["new", *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    for part in parts:
        assert part in shown.err
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_a_full_disk_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, text: str, encoding: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert main(["new", "model", "mine", "--to", str(tmp_path / "mine")]) == 1
    assert "No space left" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
