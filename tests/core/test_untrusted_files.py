from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robbench.core import untrusted_files
from robbench.core.untrusted_files import check_folder, open_untrusted, parse_json, read_json, read_untrusted


def bind(path: Path) -> None:
    """A socket, whose address may not be long."""
    folder = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


NO_PLAIN_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link to a file": (lambda path: path.symlink_to("/etc/passwd"), "is a link"),
    "a link within": (lambda path: path.symlink_to("plain.txt"), "is a link"),
    "a link to nothing": (lambda path: path.symlink_to("gone"), "is a link"),
    "a link to a device": (lambda path: path.symlink_to("/dev/zero"), "is a link"),
    "another name of a file": (lambda path: os.link(path.with_name("plain.txt"), path), "one of 2 names of one file"),
    "a pipe": (os.mkfifo, "no plain file"),
    "a socket": (bind, "no plain file"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "board" / "figures").mkdir(parents=True)
    (tmp_path / "board" / "plain.txt").write_text("text")
    return tmp_path / "board"


@pytest.mark.parametrize("place", ["x", "figures/x"])
@pytest.mark.parametrize("what", NO_PLAIN_FILES)
def test_what_is_no_plain_file_is_refused(what: str, place: str, folder: Path) -> None:
    make, part = NO_PLAIN_FILES[what]
    if what == "another name of a file":
        (folder / place).with_name("plain.txt").write_text("text")
    make(folder / place)
    with pytest.raises(ValueError, match=part):
        check_folder(folder)
    with pytest.raises((ValueError, OSError)):
        read_untrusted(folder / place, 100)


def test_a_folder_that_is_a_link_is_refused(folder: Path) -> None:
    (folder / "more").symlink_to("/etc", target_is_directory=True)
    with pytest.raises(ValueError, match='"more" in it is a link'):
        check_folder(folder)


@pytest.mark.parametrize(
    "name", ["a\x1b[31m", "a\u202eb", "a\nb", "a\u200bb", "a\\b", os.fsdecode(b"a\xff")], ids=ascii
)
def test_names_that_are_not_shown_as_they_are_are_refused_in_one_line(name: str, folder: Path) -> None:
    (folder / name).write_text("")
    with pytest.raises(ValueError, match="has characters that names cannot have") as error:
        check_folder(folder)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(("one", "other"), [("README.md", "readme.MD"), ("Straße", "STRASSE"), ("é", "e\u0301")])
def test_names_that_are_one_on_some_file_systems_are_refused(one: str, other: str, folder: Path) -> None:
    (folder / one).write_text("")
    (folder / other).write_text("")
    if len(list(folder.iterdir())) < 4:
        pytest.skip("this file system takes them for one")
    with pytest.raises(ValueError, match="are one name on some file systems"):
        check_folder(folder)


def test_plain_files_in_folders_are_fine(folder: Path) -> None:
    (folder / "figures" / "plain.txt").write_text("the same name elsewhere")
    (folder / "日本 é.txt").write_text("")
    check_folder(folder)


def test_so_many_files_and_levels_are_too_many(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted_files, "MOST_FILES", 5)
    for number in range(5):
        (folder / f"{number}").write_text("")
    with pytest.raises(ValueError, match="more than 5 files"):
        check_folder(folder)
    monkeypatch.undo()
    folder.joinpath(*"abcdefghij").mkdir(parents=True)
    with pytest.raises(ValueError, match="8 levels"):
        check_folder(folder)


def test_a_file_is_read_up_to_its_limit(folder: Path) -> None:
    assert read_untrusted(folder / "plain.txt", 4) == b"text"
    with pytest.raises(ValueError, match="it has 4 bytes, more than 3"):
        read_untrusted(folder / "plain.txt", 3)


def test_own_files_may_be_links(folder: Path) -> None:
    (folder / "link").symlink_to("plain.txt")
    with open_untrusted(folder / "link", 10, linked=True) as file:
        assert file.read() == b"text"


# --- JSON

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_json_is_read_as_it_is(value: object) -> None:
    assert parse_json(json.dumps(value)) == value


@given(st.text(st.sampled_from('[]{}"\\ab,:')), st.integers(0, 80))
def test_json_is_as_deep_as_its_brackets_outside_of_texts(inside: str, depth: int) -> None:
    text = "[" * depth + json.dumps([inside, f'"{inside}\\'] * 9) + "]" * depth
    if depth < untrusted_files._DEEPEST:
        parse_json(text)
    else:
        with pytest.raises(ValueError, match="nested more than 64 deep"):
            parse_json(text)


@pytest.mark.parametrize("text", ["[" * 10**6, '{"a":' * 10**5, "[" * 10**5 + "]" * 10**5, '"\\' * 10**5 + "[" * 100])
def test_deep_or_broken_json_is_refused_at_once(text: str, folder: Path) -> None:
    (folder / "deep.json").write_text(text)
    with pytest.raises(ValueError, match=r"nested more than 64 deep|delimiter|Expecting|Unterminated|escape"):
        read_json(folder / "deep.json", 10**7)
