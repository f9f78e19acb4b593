"""Scripts that complete commands, tried in the shells themselves."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from robbench.cli.completion import SHELLS, script
from robbench.cli.main import commands, main, parsers
from robbench.core.registry import Registry
from robbench.planning.grid import built_in_grids


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("scripts")
    for shell in SHELLS:
        (folder / shell).write_text(script(shell), encoding="utf-8")
    return {shell: folder / shell for shell in SHELLS}


def run(shell: str, code: str, folder: Path) -> list[str]:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"no {shell} here")
    bare = {"bash": ["--norc", "--noprofile"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    environment = {"HOME": str(folder), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [path, *bare, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def completed(shell: str, line: str, file: Path, folder: Path) -> set[str]:
    """What a shell offers for the last word of a line."""
    if shell == "fish":
        return {
            found.partition("\t")[0] for found in run(shell, f"source {file}; complete -C {shlex.quote(line)}", folder)
        }
    words = line.split(" ")
    code = (
        f"source {file}; COMP_WORDS=({' '.join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}; "
        '_shtab_robbench; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    return set(run(shell, code, folder)) - {""}


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_a_shell_completes_commands_options_grids_and_names(
    shell: str, scripts: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text("", encoding="utf-8")
    (tmp_path / "mine.txt").write_text("", encoding="utf-8")
    file = scripts[shell]
    assert completed(shell, "robbench ", file, tmp_path) >= set(commands())
    assert completed(shell, "robbench pub", file, tmp_path) == {"publish"}
    options = {option for action in parsers()[1]["run"]._actions for option in action.option_strings}
    assert completed(shell, "robbench run --", file, tmp_path) == {name for name in options if name.startswith("--")}
    grids = completed(shell, "robbench run --grid ", file, tmp_path)
    assert grids >= {*built_in_grids(), "mine.toml"}
    assert "mine.txt" not in grids
    assert completed(shell, "robbench run --grid smo", file, tmp_path) == {"smoke"}
    datasets = set(Registry().entries("dataset"))
    assert completed(shell, "robbench plan --grid full --dataset ", file, tmp_path) == datasets
    assert completed(shell, "robbench run --device ", file, tmp_path) == {"auto", "cpu", "cuda"}
    assert completed(shell, "robbench list att", file, tmp_path) == {"attack"}
    assert completed(shell, "robbench show attack apgd-", file, tmp_path) >= {"apgd-t", "apgd-dlr"}
    assert completed(shell, "robbench show sch", file, tmp_path) == {"schema"}
    assert completed(shell, "robbench check autoat", file, tmp_path) == {"autoattack"}
    assert completed(shell, "robbench new mod", file, tmp_path) == {"model"}
    assert completed(shell, "robbench completion ", file, tmp_path) == set(SHELLS)


def test_zsh_takes_its_script(scripts: dict[str, Path], tmp_path: Path) -> None:
    code = (
        f'autoload -Uz compinit; compinit -u -d {tmp_path}/dump; eval "$(<{scripts["zsh"]})"; '
        "print -l ${_comps[robbench]}; print -l $_shtab_robbench_run_options; functions _robbench_grid_or_file"
    )
    shown = "\n".join(run("zsh", code, tmp_path))
    assert shown.startswith("_shtab_robbench\n")
    assert ":GRID:_robbench_grid_or_file" in shown
    assert "(auto cpu cuda)" in shown
    assert "compadd -- " + " ".join(built_in_grids()) in shown


@pytest.mark.parametrize("shell", SHELLS)
def test_the_command_prints_the_script(
    shell: str, scripts: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out.rstrip() == scripts[shell].read_text(encoding="utf-8").rstrip()


def test_other_shells_are_answered_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "cmd"]) == 2
    assert "'bash', 'zsh', 'fish'" in capsys.readouterr().err


def test_completing_changes_no_later_request(scripts: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Names that are offered are not the only ones that are allowed."""
    assert main(["check", "no-such-component"]) == 2
    assert "there is no component" in capsys.readouterr().err
