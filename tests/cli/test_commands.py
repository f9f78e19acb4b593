from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

import robbench.cli
from robbench.cli._command import Command
from robbench.cli.main import commands, main, parsers
from robbench.core.errors import RequestError, StoreError

COMMANDS = commands()
SLOW = ("torch", "numpy", "pandas", "rich", "pydantic", "matplotlib", "sklearn")


def help_of(*words: str) -> str:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit, match="0"):
        main([*words, "--help"])
    return shown.getvalue()


def test_commands_are_the_modules_of_the_package_in_their_order() -> None:
    folder = Path(robbench.cli.__path__[0])
    modules = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}
    assert set(COMMANDS) == modules - {"main"}
    places = [command.place for command in COMMANDS.values()]
    assert places == sorted(set(places))
    lines = re.findall(r"^    (\w+) ", help_of(), flags=re.MULTILINE)
    assert lines == list(COMMANDS)


def test_a_new_command_is_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "greet.py").write_text(
        "from robbench.cli._command import Command\n"
        "def _options(parser):\n"
        "    parser.add_argument('name')\n"
        "def _action(options):\n"
        "    print('hello', options.name)\n"
        "    return 1\n"
        "COMMAND = Command(15, 'greet', 'Greets.', (('robbench greet you', 'hello'),), _options, _action)\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(robbench.cli, "__path__", [*robbench.cli.__path__, str(tmp_path)])
    try:
        assert main(["greet", "you"]) == 1
        assert capsys.readouterr().out == "hello you\n"
        assert list(commands())[:4] == ["evaluate", "run", "greet", "plan"]
    finally:
        sys.modules.pop("robbench.cli.greet", None)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_a_command_does_and_fits_a_terminal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    command = COMMANDS[name]
    shown = help_of(name)
    flat = " ".join(shown.split())
    assert command.about in flat
    assert 1 <= command.about.count(".") <= 4
    assert len(command.summary) <= 60
    assert command.summary in help_of()
    assert "Exit status: 0 " in flat
    assert command.done in flat
    assert command.failed in flat
    assert max(map(len, shown.splitlines())) <= 80
    assert max(map(len, help_of().splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_that_parse(name: str) -> None:
    command, shown = COMMANDS[name], help_of(name)
    assert command.examples
    for (line, _), words in zip(command.examples, command.words(), strict=True):
        assert f"  {line}\n" in shown
        assert line.startswith(f"robbench {name}")
        options, unknown = parsers()[0].parse_known_args(words)
        assert not unknown
        assert options.action is command.action


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is_for_by_one_name_everywhere(name: str) -> None:
    metavars = {"out": "DIR", "data_dir": "DIR", "grid": "GRID", "plugin": "FILE.py", "dataset": "NAME", "limit": "N"}
    for action in parsers()[1][name]._actions:
        assert action.help, action.dest
        if action.dest in metavars:
            assert action.metavar == metavars[action.dest]


def test_help_loads_nothing_that_takes_long() -> None:
    code = (
        "import sys\n"
        "from robbench.cli.main import main\n"
        "for words in ([], ['run', '--help'], ['list', '--help']):\n"
        "    try:\n"
        "        main(words)\n"
        "    except SystemExit:\n"
        "        pass\n"
        f"print([name for name in {SLOW!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_it_runs_as_a_module() -> None:
    asked = subprocess.run([sys.executable, "-m", "robbench", "--help"], capture_output=True, text=True, check=True)
    assert asked.stdout == help_of()
    wrong = subprocess.run([sys.executable, "-m", "robbench", "rum"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (RequestError("no such thing", "--grid"), 2, "robbench: --grid: no such thing\n"),
        (StoreError("disk full"), 1, "robbench: disk full\n"),
        (KeyboardInterrupt(), 130, "robbench: interrupted; finished work is kept, run again to go on\n"),
    ],
)
def test_errors_become_exit_statuses(
    error: BaseException,
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(options: object) -> int:
        raise error

    failing = Command(0, "fail", "Fails.", (("robbench fail", ""),), lambda parser: None, fail)
    monkeypatch.setattr("robbench.cli.main.commands", lambda: {"fail": failing})
    assert main(["fail"]) == status
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", message)
