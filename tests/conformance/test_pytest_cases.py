"""The conformance suite as pytest cases of a plugin author."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from plugin_files import GRAY, write

from robbench.conformance import RULES, parametrize_with_checks
from robbench.core.errors import RequestError

TEST = """
from robbench.conformance import parametrize_with_checks

@parametrize_with_checks("gray", ["gray.py"]{rest})
def test_gray(check):
    check()
"""
UNANNOUNCED = GRAY.replace("    share: float", "    black_box = True\n    share: float").replace(
    "        return", "        model(images)\n        return"
)
PASSES = "passes as announced"


def outcomes(folder: Path, plugin: str, rest: str, *words: str) -> tuple[dict[str, str], str]:
    """What became of each case when a plugin author runs pytest, and what was shown."""
    write(folder / "gray.py", plugin)
    write(folder / "test_gray.py", TEST.format(rest=rest))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-v", *words, "test_gray.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    lines = (line for line in done.stdout.splitlines() if line.startswith("test_gray.py::"))
    found = (line.partition("[attack: ")[2].rpartition("] ") for line in lines)
    return {rule: end.split()[0] for rule, _, end in found}, done.stdout


@pytest.mark.end_to_end
def test_every_rule_is_a_case_and_what_breaks_one_fails_alone(tmp_path: Path) -> None:
    found, shown = outcomes(tmp_path, UNANNOUNCED, "")
    assert list(found) == [rule.name for rule in RULES["attack"]]
    assert {rule for rule, end in found.items() if end == "FAILED"} == {PASSES}
    assert {rule for rule, end in found.items() if end == "SKIPPED"} == {
        "targets are approached",
        "the scale of scores changes nothing",
    }
    assert "1 forward and 0 backward passes are spent" in shown


@pytest.mark.end_to_end
def test_an_expected_failure_is_none_and_needs_a_reason(tmp_path: Path) -> None:
    found, shown = outcomes(tmp_path, UNANNOUNCED, f", expected_failures={{'{PASSES}': 'a look at the scores'}}", "-rx")
    assert found[PASSES] == "XFAIL"
    assert "FAILED" not in found.values()
    assert "a look at the scores" in shown


def test_an_expected_failure_that_passes_is_an_error(tmp_path: Path) -> None:
    found, shown = outcomes(tmp_path, GRAY, f", expected_failures={{'{PASSES}': 'not any more'}}")
    assert found[PASSES] == "FAILED"
    assert "[XPASS(strict)] not any more" in shown


@pytest.mark.end_to_end
def test_a_rule_is_checked_on_its_own_as_well(tmp_path: Path) -> None:
    found, _ = outcomes(tmp_path, UNANNOUNCED, "", "-k", "announced")
    assert found == {PASSES: "FAILED", "gradients as announced": "PASSED"}


def cases(name: str, **options: Any) -> list[Any]:
    return list(parametrize_with_checks(name, **options).args[1])


def test_rules_of_every_kind_of_a_name_are_checked() -> None:
    ids = [case.id for case in cases("digits")]
    assert ids == [f"dataset: {rule.name}" for rule in RULES["dataset"]]
    for case in cases("passes"):
        (check,) = case.values
        check()


@pytest.mark.parametrize(
    ("expected", "reason"),
    [
        ({"figures are measured": "a slip"}, 'did you mean "figures are measures"?'),
        ({"figures are measures": " "}, "without a reason"),
    ],
)
def test_what_is_expected_must_make_sense(expected: dict[str, str], reason: str) -> None:
    with pytest.raises(RequestError, match="expected_failures") as caught:
        cases("passes", expected_failures=expected)
    assert reason in str(caught.value)
    with pytest.raises(RequestError, match="there is no component"):
        cases("gray")


def test_leaving_the_process_breaks_the_rule(tmp_path: Path) -> None:
    plugin = write(tmp_path / "leaves.py", GRAY.replace("return images + ", "raise SystemExit(0)  # "))
    check = next(case.values[0] for case in cases("gray", plugins=[plugin]) if "same again" in case.id)
    with pytest.raises(Exception, match="SystemExit: 0"):
        check()
