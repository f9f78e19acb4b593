"""Addresses for tests: in memory, and one at which things happen."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from board_cells import A_MODEL
from fsspec.implementations.memory import MemoryFileSystem
from stores import B_MODEL, complaint, files, fill, row

from robbench.cli.main import main
from robbench.results.store import Store


class Faulty(MemoryFileSystem):  # type: ignore[misc]
    """An address at which something happens whenever a method is called, as a test says."""

    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    happens: ClassVar[dict[str, Callable[..., Any]]] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace(f"{cls.protocol}://", "memory://")))

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return self.happening("open", path, super().open(path, mode, **options))

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        return self.happening("ls", path, super().ls(path, detail, **options))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> Any:
        self.happening("pipe_file", path, None)
        return super().pipe_file(path, value, mode, **options)

    def happening(self, name: str, path: str, result: object) -> object:
        return self.happens[name](path, result) if name in self.happens else result


def publish(store: Store, target: object, *words: object) -> int:
    return main(["publish", "--out", str(store.root), "--to", str(target), *map(str, words)])


def put(folder: Path, system: type[MemoryFileSystem] = Faulty, place: str = "/theirs") -> None:
    """Lay the published boards of somebody else at an address."""
    for name, content in files(folder / "theirs").items():
        system().pipe_file(f"{place}/{name}", content)


def lying(place: str, system: type[MemoryFileSystem] = Faulty) -> dict[str, bytes]:
    """The files below a path of an address."""
    return {
        path.removeprefix(f"{place}/"): file.getvalue()
        for path, file in sorted(system.store.items())
        if path.startswith(f"{place}/")
    }


Told = Callable[[int], str]


@pytest.fixture
def empty() -> Iterator[None]:
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    for system in (Faulty, MemoryFileSystem):
        system.store.clear()
        system.pseudo_dirs[:] = [""]
    Faulty.happens.clear()
    yield
    Faulty.happens.clear()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, a store of somebody else, and what is published of the latter."""
    folder = tmp_path_factory.mktemp("made")
    fill(folder / "runs", row(A_MODEL))
    assert publish(fill(folder / "others", row(B_MODEL, (20, 30))), folder / "theirs") == 0
    return folder


@pytest.fixture
def folder(made: Path, empty: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = Path(shutil.copytree(made, tmp_path / "copy"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return made


@pytest.fixture
def told(folder: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Told]:
    """What a command complained of, in one line that names no directory that is gone."""

    def tell(status: int) -> str:
        expected = 2 if status == 2 else 1
        line = complaint(status, capsys, expected)
        assert "temporary" not in line
        return line

    yield tell
    assert not list((folder.parent / "temporary").iterdir())
