"""Images in Parquet files: which are read, as what, and what is refused in one line."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from resident import pixels

from robbench.core.errors import RequestError
from robbench.core.registry import Registry
from robbench.data import lazy_images
from robbench.data.cache import load
from robbench.data.dataset import DecodedImages
from robbench.data.datasets.parquet import ParquetImages
from robbench.data.lazy_images import LazyImages
from robbench.data.splits import split
from robbench.planning.component_spec import choose

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

RNG = np.random.default_rng(3)


def picture(shape: tuple[int, ...] = (8, 8, 3)) -> NDArray[np.uint8]:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def png(array: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def stated(names: Sequence[str]) -> dict[bytes, bytes]:
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def write(
    path: Path,
    images: Sequence[Any],
    labels: Sequence[Any],
    names: Sequence[str] = (),
    image: str = "image",
    label: str = "label",
    **more: Any,
) -> None:
    """A Parquet file with a column of pictures, or of what else is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": png(one), "path": None} if isinstance(one, np.ndarray) else one for one in images]
    table = pa.table({image: cells, label: labels, **more})
    pq.write_table(table.replace_schema_metadata(stated(names)) if names else table, path, row_group_size=5)


def read(folder: Path, place: Path | None = None, **options: Any) -> DecodedImages:
    return load(ParquetImages(**options), place or folder / "in", folder / "cache")


def test_the_layout_of_hugging_face_with_names_and_splits(tmp_path: Path) -> None:
    root = tmp_path / "in"
    train, test = [picture() for _ in range(12)], [picture() for _ in range(4)]
    write(root / "data/train-00000-of-00002.parquet", train[:7], [0, 1] * 3 + [0], ("cat", "dog", "owl"))
    write(root / "data/train-00001-of-00002.parquet", train[7:], [1, 0, 1, 0, 1], ("cat", "dog", "owl"))
    write(root / "data/test-00000-of-00001.parquet", test, [1, 0, 1, 0], ("cat", "dog", "owl"))
    (root / "README.md").write_text("about")
    found = read(tmp_path)
    by_name = dict(zip(found.files.tolist(), pixels(found.images), strict=True))
    np.testing.assert_array_equal(by_name["data/train-00001-of-00002.parquet#1"], train[8].transpose(2, 0, 1))
    assert found.images.shape == (16, 3, 8, 8)
    assert found.class_names == ("cat", "dog")
    assert found.is_test.sum() == 4
    assert sorted(found.labels[found.is_test].tolist()) == [0, 0, 1, 1]
    said = " ".join(found.remarks)
    assert "1 files are not read, since their names are not those of splits (1 .md): README.md" in said
    assert "1 classes have no images and are left out: owl" in said
    parts = split(ParquetImages(), found)
    assert found.is_test[parts.test].all()


def test_names_and_numbers_bytes_and_structs_say_the_same(tmp_path: Path) -> None:
    images = [picture() for _ in range(6)]
    write(tmp_path / "a.parquet", images, ["b", "a"] * 3)
    write(tmp_path / "b.parquet", [png(one) for one in images], [1, 0] * 3, ("a", "b"))
    write(tmp_path / "c.parquet", images, pa.array(["b", "a"] * 3).dictionary_encode())
    write(tmp_path / "d.parquet", [png(one) for one in images], [True, False] * 3, image="x", label="odd")
    first, *others = (read(tmp_path, tmp_path / f"{name}.parquet") for name in "abcd")
    for found in others[:2]:
        assert found.fingerprint == first.fingerprint
    np.testing.assert_array_equal(others[2].images, first.images)
    np.testing.assert_array_equal(others[2].labels, first.labels)
    assert others[2].class_names == ("0", "1")


@pytest.mark.parametrize(
    ("shapes", "channels"),
    [([(8, 8)] * 6, 1), ([(8, 8)] * 3 + [(8, 8, 3)] * 3, 3), ([(8, 8, 4)] * 6, 3), ([(6, 10, 3)] * 6, 3)],
    ids=["gray", "some gray", "transparent", "wide"],
)
def test_channels_and_sizes_are_kept(shapes: Sequence[tuple[int, ...]], channels: int, tmp_path: Path) -> None:
    images = [picture(shape) for shape in shapes]
    write(tmp_path / "in/all.parquet", images, [0, 1] * 3)
    found = read(tmp_path)
    assert found.images.shape == (6, channels, *shapes[0][:2])
    for one, array in zip(pixels(found.images), images, strict=True):
        color = np.repeat(array[..., None], channels, axis=2) if array.ndim == 2 else array[..., :3]
        np.testing.assert_array_equal(one, color.transpose(2, 0, 1))
    scaled = read(tmp_path, size=5)
    assert scaled.images.shape == (6, channels, 5, 5)


@pytest.mark.parametrize(
    ("files", "tests", "says"),
    [
        (("train-0", "validation-0"), "validation-0", "there is no test"),
        (("train-0", "val", "test_0"), "test_0", "are drawn from both"),
        (("train", "test", "extra-0"), "test", "1 files are not read"),
        (("default/train/0000", "default/test/0000"), "default/test/0000", ""),
        (("part-0", "part-1"), "", ""),
    ],
)
def test_splits_by_name(files: Sequence[str], tests: str, says: str, tmp_path: Path) -> None:
    for name in files:
        write(tmp_path / "in" / f"{name}.parquet", [picture() for _ in range(4)], [0, 1, 0, 1])
    found = read(tmp_path)
    of_test = {name.partition("#")[0] for name in found.files[found.is_test]}
    assert of_test == ({f"{tests}.parquet"} if tests else set())
    assert says in " ".join(found.remarks)


def test_many_row_groups_and_links_are_followed(tmp_path: Path) -> None:
    images = [picture() for _ in range(150)]
    write(tmp_path / "blob", images, [number % 3 for number in range(150)])
    (tmp_path / "in").mkdir()
    os.symlink(tmp_path / "blob", tmp_path / "in" / "train-00000-of-00001.parquet")
    found = read(tmp_path)
    np.testing.assert_array_equal(found.images, np.stack(images).transpose(0, 3, 1, 2))
    assert found.labels.tolist() == [number % 3 for number in range(150)]


GOOD = [picture() for _ in range(4)]
FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize(
    ("columns", "options", "part"),
    [
        ({"image": [1, 2], "label": [0, 1]}, {}, "image_column: there is none among image, label"),
        ({"a": [b"1"], "b": [b"2"], "label": [0]}, {}, "image_column: it could be a, b; name it"),
        ({"image": [png(GOOD[0])], "text": [1.5]}, {}, "label_column: there is none among image, text"),
        (
            {"image": [png(GOOD[0])], "p": [1], "q": [2]},
            {},
            "label_column: it could be p, q; name it, as in parquet[label_column=NAME]",
        ),
        (
            {"image": [png(GOOD[0])], "label": [0]},
            {"label_column": "lable"},
            'no column "lable"; did you mean "label"?',
        ),
        ({"image": [png(GOOD[0])], "label": [0]}, {"image_column": "label"}, '"label" holds int64'),
        ({"image": [png(GOOD[0]), None], "label": [0, 1]}, {}, "x.parquet#1 holds no image"),
        ({"image": pa.array([{"bytes": None, "path": "/etc/passwd"}], FILE), "label": [0]}, {}, "which is not read"),
        ({"image": [png(GOOD[0]), b"no image"], "label": [0, 1]}, {}, "x.parquet#1 cannot be read as an image"),
        ({"image": [png(GOOD[0])[:60]], "label": [0]}, {}, "x.parquet#0 cannot be read as an image"),
        ({"image": [png(GOOD[0])], "label": pa.array([None], pa.int64())}, {}, "x.parquet#0 has no label"),
        ({"image": [png(GOOD[0]), png(picture((9, 9, 3)))], "label": [0, 1]}, {}, "differ in size; scale them"),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, {}, "there are no rows"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    columns: dict[str, Any], options: dict[str, Any], part: str, tmp_path: Path
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(RequestError) as caught:
        read(tmp_path, tmp_path / "x.parquet", **options)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "BytesIO" not in str(caught.value)


def test_files_that_do_not_fit_together_or_are_none_are_refused(tmp_path: Path) -> None:
    def refused(name: str, part: str) -> None:
        with pytest.raises(RequestError) as caught:
            read(tmp_path, tmp_path / name)
        assert part in str(caught.value)
        assert "\n" not in str(caught.value)

    write(tmp_path / "other/train-0.parquet", GOOD, [0, 1, 0, 1])
    write(tmp_path / "other/train-1.parquet", GOOD, ["a", "b", "a", "b"])
    refused("other", "train-1.parquet has other columns or other classes")
    write(tmp_path / "names/train-0.parquet", GOOD, [0, 1, 0, -1], ("a", "b"))
    refused("names", "there is a label -1, and names of 2 classes")
    write(tmp_path / "two/a/train-0.parquet", GOOD, [0, 1, 0, 1])
    write(tmp_path / "two/b/train-0.parquet", GOOD, [0, 1, 0, 1])
    refused("two", "holds files of splits in a, b; name one of these folders")
    write(tmp_path / "tests/test-0.parquet", GOOD, [0, 1, 0, 1])
    refused("tests", "holds test and no train")
    (tmp_path / "none").mkdir()
    (tmp_path / "none/cat.png").write_bytes(png(GOOD[0]))
    refused("none", "holds no .parquet file; it holds cat.png")
    refused("nowhere", "is not there")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing of it PAR1")
    refused("broken.parquet", "cannot be read")
    whole = (tmp_path / "names/train-0.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    refused("cut.parquet", "cannot be read")


def test_damaged_bytes_anywhere_are_one_line_or_other_images(tmp_path: Path) -> None:
    write(tmp_path / "whole.parquet", GOOD, [0, 1, 0, 1], ("a", "b"))
    whole = bytearray((tmp_path / "whole.parquet").read_bytes())
    for seed in range(40):
        rng = np.random.default_rng(seed)
        data = whole.copy()
        for at in rng.integers(4, len(data), 3):
            data[at] = rng.integers(256)
        path = tmp_path / f"{seed}.parquet"
        path.write_bytes(data)
        try:
            found = read(tmp_path, path)
        except RequestError as error:
            assert "\n" not in str(error)  # noqa: PT017 - most damage is seen, some is none
        else:
            assert found.images.shape[1:] == (3, 8, 8)


def test_it_is_asked_for_by_name_and_its_place_is_no_part_of_what_it_is(tmp_path: Path) -> None:
    choice = choose(Registry(), "dataset", f"parquet[path={tmp_path},size=16]", "here")
    assert choice.label == "parquet[size=16]"
    assert "path" not in choice.component.identity()


def test_the_extra_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in/all.parquet", GOOD, [0, 1, 0, 1])
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(RequestError, match=r"needs pyarrow; pip install 'robbench\[parquet\]'"):
        read(tmp_path)


# -------------------------------------------------- more than memory holds


@pytest.mark.parametrize(("gray", "size"), [(False, 0), (True, 0), (False, 6)])
def test_large_data_sets_are_indexed_and_hold_the_same(
    gray: bool, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = [(8, 8) if gray or at == 3 else (8, 8, 3) for at in range(23)]
    for part, name in enumerate(("train-0", "train-1", "test-0")):
        write(tmp_path / "in" / f"{name}.parquet", [picture(shape) for shape in shapes], [*range(part, 23 + part)])

    def read() -> DecodedImages:
        return load(ParquetImages(size=size, path=str(tmp_path / "in")), None, tmp_path / "cache")

    small = read()
    monkeypatch.setattr(lazy_images, "RESIDENT", 0)
    # The entry of a small data set is valid still; that of a large one is made where there is none.
    for entry in (tmp_path / "cache").iterdir():
        shutil.rmtree(entry)
    for _ in ("indexed", "read from the index"):
        found = read()
        assert isinstance(found.images, LazyImages)
        assert found.images.shape == small.images.shape
        order = np.random.default_rng(0).permutation(len(small.labels))
        for index in (np.arange(len(small.labels)), order[:20]):
            np.testing.assert_array_equal(found.images[index], small.images[index])
        np.testing.assert_array_equal(found.labels, small.labels)
        np.testing.assert_array_equal(found.is_test, small.is_test)
        assert found.files.tolist() == small.files.tolist()
    write(tmp_path / "in" / "train-1.parquet", [picture() for _ in range(23)], [*range(1, 24)])
    with pytest.raises(RequestError, match=r"train-1\.parquet#0 was changed"):
        found.images[found.files.tolist().index("train-1.parquet#0")]
    assert read().fingerprint != found.fingerprint
