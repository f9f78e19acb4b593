"""One word, one meaning: no two public classes of the tree have one name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOP = ("benchmark", "attacks", "defenses", "models", "leaderboards")


def defined(file: Path) -> Iterator[str]:
    """Public classes and type aliases that a file defines; what it imports to hand on is not defined there."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.AnnAssign) and "TypeAlias" in ast.dump(node.annotation):
            name = ast.unparse(node.target)
        else:
            continue
        if not name.startswith("_"):
            yield name


def clashes(files: Iterator[Path]) -> dict[str, list[str]]:
    homes: dict[str, list[str]] = {}
    for file in files:
        for name in defined(file):
            homes.setdefault(name, []).append(str(file))
    return {name: found for name, found in homes.items() if len(found) > 1}


def test_no_two_public_classes_have_one_name() -> None:
    assert clashes(file for top in TOP for file in sorted((ROOT / top).rglob("*.py"))) == {}


def test_clashes_are_found(tmp_path: Path) -> None:
    texts = {
        "one.py": "class Cell: ...\nclass _Own: ...",
        "two.py": "from typing import TypeAlias\nCell: TypeAlias = int\nclass _Own: ...",
        "three.py": "from one import Cell\nclass Other: ...",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    found = clashes(iter(sorted(tmp_path.glob("*.py"))))
    assert found == {"Cell": [str(tmp_path / "one.py"), str(tmp_path / "two.py")]}
