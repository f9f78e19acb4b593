"""Boards of others that are small on disk and would be large in memory, or that never end."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import write_format_1
from board_cells import A_MODEL
from stores import BOARD, fill, publish, row

from robbench.leaderboards.archive import NOTE, OUTCOMES, RECORDS, read_archive

Bomb = Callable[[Path], object]

MEMORY = 300 * 2**20
SIZE = 110_000
READ = """
import json, sys
from pathlib import Path
from robbench.core.errors import StoreError
from robbench.leaderboards.archive import read_archive, read_note, read_pictures

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

told = {}
for board in sys.argv[1:]:
    message = ""
    try:
        for read in (read_note, read_pictures, read_archive):
            read(Path(board))
    except StoreError as error:
        message = str(error)
    told[board] = [message, peak()]
print(json.dumps(told))
"""


def columns(**changed: np.ndarray) -> Bomb:
    """Other columns, well packed."""

    def plant(board: Path) -> None:
        with np.load(board / OUTCOMES) as arrays:
            found = dict(arrays) | changed
        with zipfile.ZipFile(board / OUTCOMES, "w", zipfile.ZIP_LZMA) as file:
            for name, array in found.items():
                with file.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, array)

    return plant


def member(name: str, data: bytes, compression: int = zipfile.ZIP_DEFLATED) -> Bomb:
    """Another content of one array's file."""

    def plant(board: Path) -> None:
        with zipfile.ZipFile(board / OUTCOMES) as file:
            found = {info.filename: file.read(info) for info in file.infolist()}
        with zipfile.ZipFile(board / OUTCOMES, "w") as file:
            for known, content in (found | {f"{name}.npy": data}).items():
                file.writestr(known, content, compression)

    return plant


def header(shape: tuple[int, ...], dtype: str = "<i8") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def longer_than_it_says(board: Path) -> None:
    """An array of 64 MiB that the list of contents gives 128 bytes."""
    member("ids", header((2**23,)) + bytes(2**26))(board)
    data = (board / OUTCOMES).read_bytes()
    at = data.index(b"PK\x01\x02")
    while b"ids.npy" not in data[at : at + 60]:
        at = data.index(b"PK\x01\x02", at + 1)
    (board / OUTCOMES).write_bytes(data[: at + 24] + (128).to_bytes(4, "little") + data[at + 28 :])


def many_members(board: Path) -> None:
    with zipfile.ZipFile(board / OUTCOMES, "w") as file:
        for number in range(900):
            file.writestr(f"{number}", b"")


def one_twice(board: Path) -> None:
    with zipfile.ZipFile(board / OUTCOMES, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("ids.npy", header((0,)))


def far_back(board: Path) -> None:
    """LZMA with a dictionary of 3 GiB, which is allocated before the first byte is unpacked."""
    settings = [{"id": lzma.FILTER_LZMA1, "dict_size": 2**16}]
    packed = lzma.compress(header((0,)), lzma.FORMAT_RAW, filters=settings)
    properties = bytes([93]) + (3 * 2**30).to_bytes(4, "little")
    body = bytes([9, 4]) + len(properties).to_bytes(2, "little") + properties + packed
    with zipfile.ZipFile(board / OUTCOMES, "w") as file:
        file.writestr("ids.npy", body)
    data = bytearray((board / OUTCOMES).read_bytes())
    for sign, method in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = data.index(sign) + method
        data[at : at + 2] = zipfile.ZIP_LZMA.to_bytes(2, "little")
    (board / OUTCOMES).write_bytes(data)


def long_contents(board: Path) -> None:
    """A list of contents of 64 MiB, as far as the end of the file says, in a file with holes."""
    with (board / OUTCOMES).open("wb") as file:
        file.truncate(2**26)
        file.seek(0, 2)
        end = b"PK\x05\x06" + bytes(8) + (2**26).to_bytes(4, "little") + bytes(6)
        file.write(end)


def lines(change: Callable[[list[Any]], object]) -> Bomb:
    def plant(board: Path) -> None:
        found = [json.loads(line) for line in (board / RECORDS).read_text().splitlines()]
        change(found)
        (board / RECORDS).write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in found))

    return plant


def shared_by_many(found: list[Any]) -> None:
    """One large part that hundreds of records name."""
    place = next(at for at, line in enumerate(found) if "provenance 0" in line)
    found[place] = {"provenance 0": {"versions": [[] for _ in range(10_000)]}}
    last = found[-1] | {"status": "failed", "metrics": {}}
    del last["outcome"], last["metrics"]
    last.pop("confusion", None)
    found += [last | {"key": f"{number:020x}"} for number in range(120)]


def classes(found: list[Any]) -> None:
    place = next(at for at, line in enumerate(found) if "dataset 0" in line)
    found[place]["dataset 0"]["class_names"] = ["x"] * 20_000


def label_far_out(board: Path) -> None:
    columns(labels=np.array([2**40] * 120))(board)


def without_end(name: str, target: str) -> Bomb:
    def plant(board: Path) -> None:
        (board / name).unlink(missing_ok=True)
        (board / name).symlink_to(target)

    return plant


def pipe(name: str) -> Bomb:
    def plant(board: Path) -> None:
        (board / name).unlink(missing_ok=True)
        os.mkfifo(board / name)

    return plant


def holes(name: str, size: int) -> Bomb:
    """A file that is large and takes no room."""

    def plant(board: Path) -> None:
        (board / name).parent.mkdir(exist_ok=True)
        with (board / name).open("wb") as file:
            file.truncate(size)

    return plant


def within_an_outcome(board: Path) -> None:
    """Format 1, in which outcomes are files within the file."""
    write_format_1(board, read_archive(board))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, ids=np.zeros(2**22, np.int64))
    key = json.loads((board / RECORDS).read_text().splitlines()[0])["key"]
    data = buffer.getvalue()
    with zipfile.ZipFile(board / OUTCOMES, "w", zipfile.ZIP_DEFLATED) as file, file.open(f"{key}.npy", "w") as inner:
        np.lib.format.write_array(inner, np.frombuffer(data, np.uint8))
    change = [json.loads(line) for line in (board / RECORDS).read_text().splitlines()]
    change[0]["outcome_sha256"] = hashlib.sha256(data).hexdigest()
    (board / RECORDS).write_text("".join(json.dumps(line) + "\n" for line in change[:1]))


ZEROS = np.zeros(2**24, np.uint8)
BOMBS: dict[str, tuple[Bomb, str]] = {
    "zeros": (columns(final=np.zeros(2**26, np.uint8)), "unfolds to 67,"),
    "zeros that get wider": (columns(samples=np.array([2**24, 0, 0]), ids=ZEROS, labels=ZEROS, clean=ZEROS), "unfolds"),
    "a few zeros that get wider": (columns(ids=np.zeros(2**23, np.uint8)), "outcomes take up to 67,"),
    "longer than it says": (longer_than_it_says, "Bad CRC-32"),
    "petabytes": (member("ids", header((10**15,))), "it says that it has the shape (1000000000000000,)"),
    "a product that overflows": (member("ids", header((2**32, 2**32))), "it says that it has the shape"),
    "a side below 0": (member("ids", header((-1,))), "it says that it has the shape"),
    "code": (member("ids", header((1,), "|O") + b"\x80\x04N."), "no plain number or text"),
    "dates": (member("ids", header((1,), "<M8[D]") + bytes(8)), "no plain number or text"),
    "many members": (many_members, "the array 0"),
    "a member twice": (one_twice, "it has the array ids twice"),
    "a long way back": (far_back, "a dictionary of more than"),
    "long contents": (long_contents, "list of contents"),
    "another compression": (member("ids", header((0,)), zipfile.ZIP_BZIP2), "compressed in an unknown way"),
    "wide without samples": (columns(**{"draws.width": np.array([10**9] * 3)}), "the column draws"),
    "a part that many share": (lines(shared_by_many), ""),
    "many classes": (lines(classes), "the figures of 20,000 classes in 3 cells"),
    "a class far out": (label_far_out, "is not what its record was made from"),
    "a long line": (holes(RECORDS, 2**27), "line 1: it has more than 16,777,216 bytes"),
    "long records": (holes(RECORDS, 2**40), "1,099,511,627,776 bytes, more than 268,435,456"),
    "deep records": (lambda board: (board / RECORDS).write_text("[" * 80_000), "nested more than 64 deep"),
    "deep records with quotes": (
        lambda board: (board / RECORDS).write_text('"\\"' * 20_000 + "[" * 100),
        "line 1",
    ),
    "long outcomes": (holes(OUTCOMES, 2**40), "more than 2,147,483,648"),
    "outcomes of holes": (holes(OUTCOMES, 2**30), "it is no npz"),
    "a long note": (holes(NOTE, 2**30), "more than 1,048,576"),
    "a deep note": (lambda board: (board / NOTE).write_text("[" * 40_000 + "]" * 40_000), "nested more than 64 deep"),
    "a long list of figures": (holes("figures/figures.json", 2**40), "more than 4,194,304"),
    "outcomes in an outcome": (within_an_outcome, "unfolds to 33,"),
    "records without end": (without_end(RECORDS, "/dev/zero"), "link"),
    "outcomes without end": (without_end(OUTCOMES, "/dev/zero"), "link"),
    "a note without end": (without_end(NOTE, "/dev/urandom"), "link"),
    "records through a pipe": (pipe(RECORDS), "no plain file"),
    "outcomes through a pipe": (pipe(OUTCOMES), "no plain file"),
}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs")
    assert publish(fill(folder / "others", row(A_MODEL)), folder / "site") == 0
    shutil.rmtree(folder / "others")
    return folder / "site"


@pytest.fixture(scope="module")
def told(theirs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str, int]]:
    """Of each bomb its board, what reading it in another process says, and the most memory that this took till then."""
    boards = {}
    for what, (plant, _) in BOMBS.items():
        boards[what] = Path(shutil.copytree(theirs, tmp_path_factory.mktemp("bomb") / "site")) / BOARD
        plant(boards[what])
    words = [sys.executable, "-c", READ, *map(str, boards.values())]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True)
    found = json.loads(done.stdout)
    return {what: (board, *found[str(board)]) for what, board in boards.items()}


def on_disk(folder: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if path.name in (RECORDS, OUTCOMES, NOTE))


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("what", BOMBS)
def test_a_bomb_is_refused_in_one_line_before_it_takes_memory(
    what: str, told: dict[str, tuple[Path, str, int]]
) -> None:
    board, message, memory = told[what]
    part = BOMBS[what][1]
    assert on_disk(board) < SIZE
    assert memory < MEMORY
    assert bool(message) == bool(part)
    assert part in message
    if part:
        assert str(board) in message
        assert len(message.splitlines()) == 1
