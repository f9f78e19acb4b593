r"""Text of whoever wrote it, made safe to show: in a terminal, in markdown, HTML, SVG and CSV, and in names of files.

Names of classes, rows and grids, titles, reasons, notes and labels of plugins can come from anywhere. Characters that a
terminal obeys, that turn the direction of text, or that nobody sees are shown as their code point in four or eight
hexadecimal digits: the right-to-left override is shown as ``\u202e``, the escape of a terminal as ``\u001b``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

_UNSAFE = re.compile(
    r"["
    r"\u0000-\u001f\u007f-\u009f"  # C0, DEL, C1
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # directions
    r"\u2028\u2029"  # separators of lines and paragraphs
    r"\u200b-\u200d\u2060-\u2065\u206a-\u206f\ufeff\u00ad\u034f\u180b-\u180f"  # without width
    r"\u115f\u1160\u17b4\u17b5\u3164\uffa0"  # letters that are blank
    r"\ufe00-\ufe0f\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"  # the same
    r"\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff"  # none: halves of a pair, and what is no character
    r"]"
)
# With anything behind a dot, too. The last ones count as digits there.
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE | re.DOTALL)
_FOREIGN = re.compile(r'[<>:"/\\|?*]|[. ]\Z')
_SPACES = re.compile(r"[\t\n\r]+")
_FORMULA = re.compile(r"[' ]*[=+\-@＝＋－＠]")
_NUMBER = r"-?\d+(\.\d+)?(e[+-]?\d+)?"
_NUMBERS = re.compile(rf"{_NUMBER}( {_NUMBER})*", re.ASCII)


def visible(text: object, keep: str = "") -> str:
    r"""Text in which every unsafe character is shown as its code point, as in ``\u202e``; see the module.

    Text without such characters stays as it is, so doing it twice changes nothing.

    Args:
        text: The text.
        keep: Characters to leave, such as a newline where the text may have lines.
    """
    return _UNSAFE.sub(lambda found: found[0] if found[0] in keep else _code_point(found[0]), str(text))


def _code_point(letter: str) -> str:
    number = ord(letter)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def file_text(name: str) -> str:
    """A file's name as text, the same in every locale; what is not UTF-8 in it becomes a question mark."""
    return os.fsencode(name).decode("utf-8", "surrogateescape").encode("utf-8", "replace").decode()


def portable(name: str) -> bool:
    """Whether every system can have a file of this name: to Windows ``nul.txt`` is a device, and a last dot nothing."""
    return bool(name) and not (_RESERVED.fullmatch(name) or _FOREIGN.search(name))


def visible_values(value: Any) -> Any:
    """Plain data with every text in it made visible and put on one line, keys too: tabs and line ends become spaces."""
    if isinstance(value, str):
        return visible(_SPACES.sub(" ", value))
    if isinstance(value, Mapping):
        return {visible_values(key): visible_values(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(visible_values(item) for item in value)
    return value


def visible_json(text: str) -> str:
    """JSON that means the same, with unsafe characters of its texts as escapes of JSON."""
    return _UNSAFE.sub(lambda found: found[0] if found[0] == "\n" else json.dumps(found[0])[1:-1], text)


def one_line(text: object, limit: int = 300) -> str:
    """Visible text on one line, with an ellipsis where it exceeds the limit."""
    line = visible(" ".join(str(text).split()))
    return line if len(line) <= limit else f"{line[:limit]}…"


def csv_value(value: object) -> object:
    """What a cell of a CSV file holds, so that no spreadsheet takes a text for a formula.

    Numbers stay as they are, and so do texts of nothing but numbers with spaces between them. Unsafe characters of
    texts are made visible, tabs and carriage returns among them. A text that begins with ``=``, ``+``, ``-`` or ``@``,
    or with these behind spaces or apostrophes, gets an apostrophe in front, which ``csv_text`` takes back.
    """
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBERS.fullmatch(text) else text


def csv_text(cell: str) -> str:
    """The text that ``csv_value`` made a cell of."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
