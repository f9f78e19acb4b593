from __future__ import annotations

import ast
import fnmatch
import graphlib
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import robbench
from robbench.core.registry import KINDS, Registry
from robbench.core.threat_model import NORMS

ROOT = Path(__file__).resolve().parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
TOP = {"benchmark": "robbench"} | {
    name: f"robbench.{name}" for name in ("attacks", "defenses", "models", "leaderboards")
}

# The stages in the order of the data, a line each; a module imports from its own stage and from those above it here.
# What a longer name says goes before what a shorter one says.
STAGES = [
    line.split()
    for line in (
        "results.schema results.migration results.outcome results.npz results.canonical_json",
        "core",
        "results.store results.store_index results.notes results.provenance",
        "data",
        "attacks defenses models certificates training.recipe",
        "planning",
        "training",
        "evaluation",
        "leaderboards conformance",
        "results",
        "execution",
        "api",
        "cli",
        "__main__",
    )
]
# Boards are made from records and outcomes alone.
OPEN_TO_BOARDS = """
core.component core.registry core.errors core.atomic_io core.threat_model core.corruption_kinds
core.safe_text core.untrusted_files
results.schema results.migration results.outcome results.npz results.canonical_json
 evaluation.macro_f1 evaluation.statistics evaluation.audit evaluation.audit_flags evaluation.audited_cells
 evaluation.contradictions evaluation.corruption_error evaluation.verdicts evaluation.worst_class
evaluation.metrics.agreement evaluation.metrics.change evaluation.metrics.decisions evaluation.metrics.draws
evaluation.metrics.passes evaluation.metrics.robustness evaluation.metrics.success evaluation.metrics._built_in
"""


def directories() -> Iterator[tuple[str, Path]]:
    """Every directory that holds Python files, with the name of the package that it has to be."""
    for folder, package in TOP.items():
        for path in sorted({file.parent for file in (ROOT / folder).rglob("*.py")}):
            yield ".".join([package, *path.relative_to(ROOT / folder).parts]), path


def modules() -> Iterator[tuple[str, Path]]:
    for package, folder in directories():
        for file in sorted(folder.glob("*.py")):
            yield package if file.name == "__init__.py" else f"{package}.{file.stem}", file


MODULES = dict(modules())


def imports(file: Path, deferred: bool) -> set[str]:
    """Modules of the package that a file imports, those inside functions included where ``deferred``."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else str(node.module))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        elif deferred or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting.extend(ast.iter_child_nodes(node))
    return {name for name in found if name in MODULES and name != "robbench"}


def stage(module: str) -> int:
    name = module.removeprefix("robbench.")
    while name:
        for position, names in enumerate(STAGES):
            if name in names:
                return position
        name = name.rpartition(".")[0]
    raise AssertionError(f"{module} is of no stage: see STAGES")


def python(code: str, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, timeout=300
    )


# --- packaging


def test_every_package_is_listed_and_every_listed_one_is_there() -> None:
    found = dict(directories())
    assert sorted(SETUPTOOLS["packages"]) == sorted(found)
    assert all((folder / "__init__.py").is_file() for folder in found.values())


def test_packages_lie_where_setuptools_looks_for_them() -> None:
    places = SETUPTOOLS["package-dir"]
    for package, folder in directories():
        above = package
        while above not in places:
            above = above.rpartition(".")[0]
        inside = package.removeprefix(above).strip(".").replace(".", "/")
        assert ROOT / places[above] / inside == folder


def test_files_that_are_no_python_are_package_data() -> None:
    """But for documents, which are read in the repository."""
    patterns = SETUPTOOLS["package-data"]
    checked = 0
    for package, folder in directories():
        for file in folder.iterdir():
            if file.is_file() and file.suffix not in (".py", ".pyc", ".md"):
                assert any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns.get(package, ())), file
                checked += 1
    assert checked > 2
    folders = {folder for _, folder in directories()} | {ROOT / "leaderboards" / "published"}
    for top in TOP:
        for file in (ROOT / top).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                assert any(folder in file.parents for folder in folders)
                assert file.parent in folders or ROOT / "leaderboards" / "published" in file.parents, file


# --- imports


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"robbench"}))
def test_imports_point_one_way(module: str) -> None:
    upward = {name for name in imports(MODULES[module], deferred=True) if stage(name) > stage(module)}
    assert not upward, f"{module} imports from a later stage: {', '.join(sorted(upward))}"


def test_every_module_belongs_to_a_stage() -> None:
    """A newcomer looks for the stage first: nothing lies beside the stages but the public names and the entry point."""
    assert {file.name for file in (ROOT / "benchmark").glob("*.py")} == {"__init__.py", "__main__.py"}
    assert all(stage(module) >= 0 for module in MODULES if module != "robbench")


@pytest.mark.parametrize("package", sorted(folder.name for folder in (ROOT / "benchmark").iterdir() if folder.is_dir()))
def test_every_stage_says_what_enters_and_what_leaves(package: str) -> None:
    if package != "__pycache__":
        text = ast.get_docstring(ast.parse((ROOT / "benchmark" / package / "__init__.py").read_text(encoding="utf-8")))
        assert text is not None
        assert re.search(r"\benters?\b", text), package
        assert re.search(r"\bleaves?\b|\bimports from here\b", text), package


def test_the_package_itself_imports_nothing() -> None:
    assert imports(MODULES["robbench"], deferred=True) == set()


def test_boards_import_nothing_but_records_and_pure_functions() -> None:
    for module in MODULES:
        if module.startswith("robbench.leaderboards"):
            outside = {name.removeprefix("robbench.") for name in imports(MODULES[module], deferred=True)}
            outside = {name for name in outside if not name.startswith("leaderboards")}
            assert outside <= set(OPEN_TO_BOARDS.split()), module


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {module: imports(file, deferred=False) for module, file in MODULES.items()}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(MODULES)


# --- what comes without torch


def test_the_package_and_its_help_need_no_torch() -> None:
    code = """
import sys
sys.modules["torch"] = sys.modules["numpy"] = None  # importing them raises from here on
import robbench
from robbench.cli.main import main
for words in (["--help"], ["run", "--help"], ["list", "--help"]):
    try:
        main(words)
    except SystemExit as exit:
        assert exit.code == 0
assert main(["--version"]) == 0
assert main([]) == 0
assert main(["rum"]) == 2
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert "usage: robbench" in done.stdout
    assert done.stderr == 'robbench: there is no command "rum"; did you mean "run"?\n'


def test_help_answers_at_once() -> None:
    def seconds() -> float:
        # Of the processor, which other processes on the machine do not lengthen.
        before = os.times()
        subprocess.run([sys.executable, "-m", "robbench", "--help"], check=True, capture_output=True)
        after = os.times()
        return sum(after[2:4]) - sum(before[2:4])

    assert min(seconds() for _ in range(5)) < 0.5


def test_reading_records_and_writing_boards_need_no_torch(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path

class NoTorch:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "torch":
            raise ImportError(name)

sys.meta_path.insert(0, NoTorch())
import board_cells as b
from robbench.leaderboards import write_board
from robbench.results.schema import BoardNote, Outcome, Record
from robbench.results.store import Store

store = Store(Path(sys.argv[1]))
cells = [
    b.cell(b.model("plain"), b.CLEAN, b.outcome("clean", [0, 1, 0, 1])),
    b.cell(b.model("plain"), b.FGSM, b.outcome("attack", [0, 1, 0, 1], final=[0, 1, 1, 1])),
]
records = [store.write_cell(record, outcome) for record, outcome in cells]
again = [store.record(record.key) for record in records]
assert again == records
cells = [(record, store.outcome(record)) for record in again]
files = write_board(store.root / "board", BoardNote(grid="grid", title="A title"), cells)
assert "plain" in (store.root / "board" / "README.md").read_text()
"""
    done = python(code, str(tmp_path), path=str(ROOT / "tests"))
    assert done.returncode == 0, done.stderr


# --- public names


def test_every_public_name_resolves_and_is_documented() -> None:
    assert robbench.__all__ == sorted(robbench.__all__)
    for name in robbench.__all__:
        assert getattr(robbench, name).__doc__, name
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        robbench.nothing_of_that_name  # noqa: B018


def test_every_module_says_what_it_is_for() -> None:
    for module, file in MODULES.items():
        assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))), module


@pytest.mark.parametrize("kind", KINDS)
def test_built_in_components_say_what_they_are(kind: str) -> None:
    entries = Registry(installed=False).entries(kind)  # type: ignore[arg-type]
    assert entries
    for name, entry in entries.items():
        assert not entry.summary.startswith(f"{entry.cls.__name__}("), f"{name} has no docstring of its own"
        assert len(entry.summary) > 15, name
        assert entry.summary.endswith("."), name
        assert entry.cls.version >= 1
        assert entry.source is None
        assert entry.plugin is None
        if kind == "attack":
            assert entry.mark.norms
            assert set(entry.mark.norms) <= set(NORMS)


def test_components_are_made_with_what_their_names_preset() -> None:
    registry = Registry(installed=False)
    made = 0
    for kind in KINDS:
        for name, entry in registry.entries(kind).items():
            component = entry.cls.make(entry.mark.preset, name)
            assert not component.changed(entry.mark.preset)
            assert hash(component) == hash(entry.cls.make(entry.mark.preset, name))
            made += 1
    assert made > 20


def test_every_built_in_module_of_a_kind_registers_something_or_serves_others() -> None:
    used = set().union(*(imports(file, deferred=True) for file in MODULES.values()))
    registered = {entry.cls.__module__ for kind in KINDS for entry in Registry(installed=False).entries(kind).values()}
    for package in ("attacks", "certificates", "defenses", "models", "datasets", "balancing", "metrics"):
        inside = {
            name
            for name, file in MODULES.items()
            if name.startswith(f"robbench.{package}.") and file.name != "__init__.py"
        }
        assert inside <= used | registered


@pytest.mark.parametrize("package", ["attacks", "certificates", "defenses", "models"])
def test_a_bare_file_name_is_a_component_and_machinery_has_an_underscore(package: str) -> None:
    """Toolbox attacks are named after the toolbox's classes, so that nothing in their adapter has a name of its own."""
    inside = {name for name in MODULES if name.startswith(f"robbench.{package}.")}
    bare = {name for name in inside if "._" not in name} - {"robbench.attacks.toolbox"}
    registered = {
        value.__module__
        for name in inside
        for value in vars(importlib.import_module(name)).values()
        if isinstance(value, type) and "__robbench__" in vars(value)
    }
    assert bare == registered & inside


def test_importing_every_module_registers_nothing_twice() -> None:
    before = {kind: list(Registry(installed=False).entries(kind)) for kind in KINDS}
    for module in MODULES:
        importlib.import_module(module)
    assert {kind: list(Registry(installed=False).entries(kind)) for kind in KINDS} == before
