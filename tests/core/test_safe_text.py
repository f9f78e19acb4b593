from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robbench.core.atomic_io import file_name
from robbench.core.errors import RequestError, StoreError, explain
from robbench.core.safe_text import csv_text, csv_value, file_text, one_line, visible, visible_json, visible_values

ANY = st.text(st.characters() | st.characters(categories=["Cc", "Cf", "Zl", "Zp", "Cs", "Mn"]))
SHOWN = {"\x1b": "\\u001b", "\x9b": "\\u009b", "\x7f": "\\u007f", "\n": "\\u000a", "\u202e": "\\u202e"} | {
    "\u200b": "\\u200b",
    "\u2028": "\\u2028",
    "\ufeff": "\\ufeff",
    "\u3164": "\\u3164",
    "\udc80": "\\udc80",
    "\U000e0041": "\\U000e0041",
}


@pytest.mark.parametrize("letter", SHOWN, ids=ascii)
def test_unsafe_characters_are_shown_as_their_code_points(letter: str) -> None:
    assert visible(f"a{letter}b") == f"a{SHOWN[letter]}b"


def test_every_control_separator_half_and_invisible_format_character_is_unsafe() -> None:
    # Signs of Arabic, Syriac, Kaithi and of hieroglyphs are format characters that are seen.
    seen = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD, *range(0x13430, 0x13440)}
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code)) in ("Cc", "Cf", "Zl", "Zp", "Cs") and code not in seen:
            assert visible(chr(code)) != chr(code), hex(code)


@pytest.mark.parametrize("text", ["", "a b", "é ß 日本 עברית ❤ 𝛼", "50 % <b> | `x` \\u202e [red]"])
def test_other_text_stays_as_it_is(text: str) -> None:
    assert visible(text) == text == one_line(text)


@given(ANY)
def test_what_is_visible_stays_so_and_can_be_written(text: str) -> None:
    shown = visible(text)
    assert visible(shown) == shown
    shown.encode()
    assert not any(unicodedata.category(letter) in ("Cc", "Zl", "Zp", "Cs") for letter in shown)
    assert len(one_line(text).splitlines()) <= 1


@given(ANY)
def test_json_means_the_same_when_it_is_made_visible(text: str) -> None:
    made = visible_json(json.dumps([text], ensure_ascii=False, indent=1))
    assert json.loads(made) == [text]
    assert visible(made, keep="\n") == made


def test_plain_data_is_made_visible_as_deep_as_it_goes() -> None:
    assert visible_values({"\x1b": ["a\r\nb", ("\x07", 1, None)]}) == {"\\u001b": ["a b", ("\\u0007", 1, None)]}


# --- CSV


def is_number(text: str) -> bool:
    return re.fullmatch(r"-\d+(\.\d+)?", text) is not None


@given(st.lists(st.text(), min_size=1) | st.lists(st.text(st.sampled_from("'=+-@\t\r \n,;\"1a")), min_size=1))
def test_no_text_in_csv_is_a_formula_and_each_can_be_had_back(texts: list[str]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(map(csv_value, texts))
    ((*cells,),) = csv.reader(io.StringIO(buffer.getvalue()))
    assert not any(
        cell.lstrip(" ")[:1] in tuple("=+-@\t\r") and not is_number(cell) for cell in cells if cell.strip(" ")
    )
    assert [csv_text(cell) for cell in cells] == [visible(text) for text in texts]


@pytest.mark.parametrize("value", [-1, -0.5, 0, None, True, float("-inf")])
def test_numbers_in_csv_stay_numbers(value: object) -> None:
    assert csv_value(value) is value


def test_what_begins_like_a_formula_gets_an_apostrophe() -> None:
    assert [csv_value(text) for text in ("-1", "-0.5 1e-05 -3", "-1+2", "-1 =2")] == [
        "-1",
        "-0.5 1e-05 -3",
        "'-1+2",
        "'-1 =2",
    ]
    assert csv_value('=HYPERLINK("x")') == '\'=HYPERLINK("x")'
    assert [csv_value(text) for text in ("-x", " @x", "'+1", "'", "it's", "a=b")] == [
        "'-x",
        "' @x",
        "''+1",
        "'",
        "it's",
        "a=b",
    ]


# --- messages and names of files


@given(ANY)
def test_messages_are_one_line_of_visible_text(text: str) -> None:
    for message in (str(RequestError(text, "w")), str(StoreError(text)), explain(ValueError(text))):
        assert len(message.splitlines()) <= 1
        assert visible(message) == message


@given(ANY)
def test_names_of_files_are_visible_and_lead_nowhere(text: str) -> None:
    name = file_name(f"grid-{text}")
    assert visible(name) == name
    assert not {"/", "\\", "\0", " "} & set(name)
    assert name.startswith("grid-")


@pytest.mark.parametrize(
    ("message", "where", "shown"),
    [
        ("net.onnx cannot be read", "net.onnx", "net.onnx cannot be read"),
        ("net.onnx: it fails", "net.onnx", "net.onnx: it fails"),
        ("net.onnx.bak is there", "net.onnx", "net.onnx: net.onnx.bak is there"),
        ("it fails", "net.onnx", "net.onnx: it fails"),
        ("it fails", "", "it fails"),
    ],
)
def test_a_message_names_its_place_once(message: str, where: str, shown: str) -> None:
    assert str(RequestError(message, where)) == shown


@pytest.mark.parametrize(("name", "text"), [(b"caf\xc3\xa9", "café"), (b"caf\xe9", "caf?"), (b"plain-1", "plain-1")])
def test_names_of_files_become_text_that_can_be_written(name: bytes, text: str) -> None:
    assert file_text(os.fsdecode(name)) == text
    assert file_text(text) == text
