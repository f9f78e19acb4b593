"""What ``leaderboards/README.md`` answers stands on the boards that it names."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "leaderboards"
NUMBER = re.compile(r"\d+(?:\.\d+)?")
ANSWERS = [
    line
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and "](published/" in line
]


def numbers(folder: Path) -> set[str]:
    """Every number of a board's README, and those of its CSV files, in percent or as p values are written."""
    found = set(NUMBER.findall((folder / "README.md").read_text(encoding="utf-8")))
    for path in (folder / "leaderboard.csv", folder / "changes.csv"):
        if not path.exists():
            continue  # a board of one row has no changes
        with path.open(encoding="utf-8", newline="") as file:
            for line in csv.reader(file):
                for text in line:
                    if re.fullmatch(r"-?\d+(\.\d+)?(e-\d+)?", text):
                        found |= {f"{abs(100 * float(text)):.1f}", f"{abs(float(text)):.2g}"}
    return found


@pytest.mark.parametrize("line", ANSWERS, ids=lambda line: line.split(" | ")[0].strip("| "))
def test_every_number_of_an_answer_is_on_its_boards(line: str) -> None:
    _, _, answer, evidence, seeds, _ = (part.strip() for part in line.split("|"))
    folders = [(ROOT / target).parent for target in re.findall(r"\]\((published/[^)]+)\)", evidence)]
    known = set().union(*map(numbers, folders))
    assert folders
    assert set(NUMBER.findall(answer)) <= known
    assert seeds in {"1", "3"}


def test_there_are_answers() -> None:
    assert len(ANSWERS) >= 10
