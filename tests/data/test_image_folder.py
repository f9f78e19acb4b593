"""Folders of images as people have them: what is read, what is refused, and what is said of the rest."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from resident import pixels

from robbench.cli.main import main
from robbench.core.errors import RequestError
from robbench.data.cache import load
from robbench.data.dataset import DecodedImages
from robbench.data.datasets._files import download_dir, roots
from robbench.data.datasets.image_folder import ImageFolder
from robbench.results.store import Store

SIZE = 8


def fill(folder: Path, count: int = 4, level: int = 50) -> None:
    """Images of one color."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (SIZE, SIZE), (level, number, 0)).save(folder / f"{number}.png")


def read(root: Path) -> DecodedImages:
    """What the folder is read as."""
    return load(ImageFolder(size=SIZE), root, root.parent / "cache")


def refusal(root: Path) -> str:
    """Why the folder is not read."""
    with pytest.raises(RequestError) as error:
        read(root)
    return str(error.value)


# -------------------------------------------------- what the decoder says


def test_warnings_of_the_decoder_do_not_reach_the_user(tmp_path: Path) -> None:
    fill(tmp_path / "in" / "a")
    fill(tmp_path / "in" / "b")
    Image.open(tmp_path / "in" / "a" / "0.png").convert("P").save(
        tmp_path / "in" / "a" / "p.png", transparency=bytes([0] * 10 + [255] * 246)
    )
    Image.new("1", (9600, 9600)).save(tmp_path / "in" / "b" / "big.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read(tmp_path / "in").labels) == 10


def test_all_damaged_images_are_named_at_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fill(tmp_path / "in" / name)
    for name in ("a/0", "a/3", "b/1", "b/2"):
        (tmp_path / "in" / f"{name}.png").write_bytes(b"\x89PNG")
    message = refusal(tmp_path / "in")
    assert all(f"{name}.png" in message for name in ("a/0", "a/3", "b/1"))
    assert "and 1 more" in message


# -------------------------------------------------- files and their names


def test_what_is_not_read_is_counted_and_named(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in ("a", "b"):
        fill(root / name)
    (root / "a" / "notes.txt").write_text("no image")
    (root / "b" / "x").write_bytes((root / "b" / "0.png").read_bytes())
    (root / "labels.csv").write_text("stray")
    (root / "a" / "Thumbs.db").write_text("clutter")
    (root / "a" / ".DS_Store").write_text("clutter")
    Image.open(root / "a" / "0.png").save(root / "a" / "y.jfif", "JPEG")
    found = read(root)
    assert len(found.labels) == 9
    (remark,) = found.remarks
    assert remark.startswith("3 files are not read")
    assert all(name in remark for name in ("a/notes.txt", "b/x", "labels.csv", "1 .txt", "1 no suffix"))
    (root / "b" / "x").unlink()
    assert read(root).remarks[0].startswith("2 files")


def test_what_is_no_file_is_not_read_and_named(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in ("a", "b"):
        fill(root / name)
    os.mkfifo(root / "a" / "pipe.png")
    (root / "b" / "gone.png").symlink_to("nowhere")
    (root / "b" / "itself.png").symlink_to("itself.png")
    (root / "itself").symlink_to("itself")
    found = read(root)
    assert len(found.labels) == 8
    (remark,) = found.remarks
    assert remark.startswith("4 files are not read, since their names are not those of images or they are no regular")
    assert remark.endswith("(4 no regular files): a/pipe.png, b/gone.png, b/itself.png and 1 more")


@pytest.mark.parametrize("name", ["pages.tif", "moving.gif", "moving.webp", "moving.png"])
def test_images_behind_the_first_of_a_file_are_told_of(name: str, tmp_path: Path) -> None:
    for folder in ("cat", "dog"):
        fill(tmp_path / "in" / folder)
    frames = [Image.new("RGB", (SIZE, SIZE), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "in" / "dog" / name, save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "in" / "cat" / name)
    found = read(tmp_path / "in")
    assert found.remarks == (f"1 files hold several images, of which the first is read: dog/{name}",)
    *_, last = pixels(found.images)
    assert last[0].mean() > 200 > 50 > last[2].mean()


def test_files_that_are_not_read_stand_on_the_board_and_in_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        fill(tmp_path / "in" / name, 12, level=30 if name == "a" else 220)
    (tmp_path / "in" / "a" / "notes.txt").write_text("no image")
    (tmp_path / "g.toml").write_text(
        'dataset = "image-folder"\nconditions = ["clean"]\n[[models]]\narchitecture = "compact-cnn"\n'
        "recipe = { epochs = 1, batch_size = 8 }\n"
    )
    out = tmp_path / "runs"
    words = ["run", "--grid", str(tmp_path / "g.toml"), "--data-dir", str(tmp_path / "in"), "--out", str(out)]
    assert main([*words, "--workers", "1"]) == 0
    assert "1 files are not read" in capsys.readouterr().out
    (page,) = out.glob("leaderboards/*/index.html")
    (board,) = Store(out).boards()
    assert "1 files are not read" in (out / "leaderboards" / board / "README.md").read_text(
        encoding="utf-8"
    ) + page.read_text(encoding="utf-8")


def test_names_of_any_bytes_and_spelling_are_classes(tmp_path: Path) -> None:
    root = tmp_path / "in"
    fill(root / "train" / "caf\u00e9", level=10)
    fill(root / "test" / "cafe\u0301", level=20)
    latin = os.fsdecode(b"ma\xeft")
    for part in ("train", "test"):
        try:
            fill(root / part / latin)
        except OSError:
            pytest.skip("the file system takes no such name")
    found = read(root)
    assert found.class_names == ("caf\u00e9", "ma\\xeft")
    assert found.is_test.sum() == 8
    assert found.files[0] == "train/caf\u00e9/0.png"


def test_two_folders_of_one_spelling_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "in" / "caf\u00e9")
    fill(tmp_path / "in" / "cafe\u0301")
    if len(list((tmp_path / "in").iterdir())) == 2:
        assert "two folders whose names are both written" in refusal(tmp_path / "in")


@settings(max_examples=20, deadline=None)
@given(names=st.lists(st.binary(min_size=1, max_size=12), min_size=2, max_size=4, unique=True))
def test_whatever_the_system_can_name_is_read_or_refused(
    names: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("names") / "in"
    made = 0
    for name in names:
        if b"/" in name or b"\0" in name or name.startswith(b"."):
            continue
        fill(root / os.fsdecode(name), 3)
        made += 1
    if made < 2:
        return
    try:
        found = read(root)
    except RequestError:
        return
    assert len(found.class_names) == made
    assert all(name.encode() for name in (*found.class_names, *found.files))


# -------------------------------------------------- splits and classes


@pytest.mark.parametrize(
    ("parts", "test", "said"),
    [
        (("train", "test"), 8, ""),
        (("Train", "Testing"), 8, ""),
        (("train", "val", "test"), 8, "images of val are added to those of train"),
        (("train",), 0, ""),
        (("train", "test", "labels"), 8, "not read: labels"),
    ],
)
def test_folders_of_splits_are_read_as_splits(parts: tuple[str, ...], test: int, said: str, tmp_path: Path) -> None:
    for part in parts:
        for name in ("cat", "dog"):
            fill(tmp_path / "in" / part / name)
    found = read(tmp_path / "in")
    assert found.class_names == ("cat", "dog")
    assert found.is_test.sum() == test
    assert said in " ".join(found.remarks)
    assert bool(said) == bool(found.remarks)


@pytest.mark.parametrize(
    "folders",
    [
        ("val/cat", "val/dog", "test/cat", "test/dog"),
        ("train/cat", "train/dog", "val/cat", "val/dog"),
        ("TRAINING/cat", "TRAINING/dog", "Validation/cat", "Validation/dog"),
        ("train/cat", "train/dog", "cat", "dog"),
        ("train/cat", "train/dog", "test"),
        ("train/cat", "train/dog", "training/cat", "training/dog", "test/cat", "test/dog"),
        ("train/cat", "train/dog", "test/cat"),
        ("trn/cat", "trn/dog", "tst/cat", "tst/dog"),
        ("training_set/cat", "training_set/dog", "test_set/cat", "test_set/dog", "test_set/bird"),
        ("cat/train", "cat/test", "dog/train", "dog/test"),
    ],
)
def test_what_could_be_splits_or_classes_is_refused(folders: tuple[str, ...], tmp_path: Path) -> None:
    for folder in folders:
        fill(tmp_path / "in" / folder)
    assert str(tmp_path / "in") in refusal(tmp_path / "in")


def test_classes_may_be_divided_each_in_its_own_way(tmp_path: Path) -> None:
    for folder in ("cat/black", "cat/white", "dog/large", "dog/white", "bird"):
        fill(tmp_path / "in" / folder)
    assert read(tmp_path / "in").class_names == ("bird", "cat", "dog")
    assert read(tmp_path / "in").remarks == ()


def test_images_for_validation_are_tested_on_only_where_somebody_says_so(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for folder in ("train/cat", "train/dog", "dev/cat", "dev/dog"):
        fill(root / folder)
    assert "to test on the images of dev, rename it to test" in refusal(root)
    (root / "dev").rename(root / "test")
    assert read(root).is_test.sum() == 8
    # The same images would be trained and tested on.
    (root / "val").symlink_to("test")
    assert '"test" and "val" are the same folder' in refusal(root)


@pytest.mark.parametrize("link", ["bird", "cat/self"])
@pytest.mark.parametrize("target", ["in", "in/cat"])
def test_links_that_lead_back_are_named_and_make_no_class(link: str, target: str, tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in ("cat", "dog"):
        fill(root / name)
    (root / link).symlink_to(tmp_path / target)
    if link == "bird" and target == "in":
        assert "bird is a link that leads back to where it lies" in refusal(root)
    elif link == "bird":
        assert '"bird" and "cat" are the same folder' in refusal(root)
    else:
        found = read(root)
        assert found.class_names == ("cat", "dog")
        assert len(found.labels) == 8
        assert "cat/self" in found.remarks[0]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("bus", "car", "train"):
        fill(tmp_path / "in" / name)
    assert read(tmp_path / "in").class_names == ("bus", "car", "train")


def test_a_store_in_the_folder_is_no_class(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fill(tmp_path / "in" / name)
    before = read(tmp_path / "in")
    load(ImageFolder(size=SIZE), tmp_path / "in", tmp_path / "in" / "runs" / "data")
    with Store(tmp_path / "in" / "other").lock():
        pass
    assert read(tmp_path / "in").fingerprint == before.fingerprint
    # At any depth: its figures are no images of a class.
    nested = Store(tmp_path / "in" / "a" / "results" / "runs")
    with nested.lock():
        fill(nested.root / "figures", level=200)
    assert read(tmp_path / "in").fingerprint == before.fingerprint
    with Store(tmp_path / "in").lock():
        pass
    assert "is a store of robbench" in refusal(tmp_path / "in")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
@pytest.mark.parametrize("what", ["in", "in/a", "in/a/more", "in/a/0.png"])
def test_what_must_not_be_read_is_named_as_such(what: str, tmp_path: Path) -> None:
    for name in ("a", "b", "a/more"):
        fill(tmp_path / "in" / name)
    (tmp_path / what).chmod(0)
    try:
        message = refusal(tmp_path / "in")
    finally:
        (tmp_path / what).chmod(0o700)
    assert str(tmp_path / what) in message
    assert "ermission denied" in message
    assert ".lock" not in message


# -------------------------------------------------- where data lies


def test_the_variable_and_the_home_directory_are_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        fill(tmp_path / "in" / name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ROBBENCH_DATA", "~/in")
    grid = tmp_path / "g.toml"
    grid.write_text('dataset = "image-folder"\nconditions = ["clean"]\n[[models]]\narchitecture = "compact-cnn"\n')
    plan = ["plan", "--grid", str(grid), "--out", str(tmp_path / "runs")]
    assert main(plan) == 0
    monkeypatch.delenv("ROBBENCH_DATA")
    assert main([*plan, "--data-dir=~/in"]) == 0
    capsys.readouterr()
    assert main(plan) == 2
    assert "ROBBENCH_DATA" in capsys.readouterr().err


def test_nobody_needs_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("ROBBENCH_DATA", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert roots(tmp_path) == (tmp_path,)
    assert roots(None) == ()
    assert download_dir(None) is None


# -------------------------------------------------- what is odd is said beforehand


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("pgd@l2:3000", "larger than"),
        ("fgsm@8/255", ""),
        ("fgsm@1.0", ""),
    ],
)
def test_a_size_that_no_change_can_have_is_questioned(
    condition: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = tmp_path / "g.toml"
    grid.write_text(f'conditions = ["clean", "{condition}"]\n[[models]]\narchitecture = "compact-cnn"\n')
    assert main(["plan", "--grid", str(grid), "--out", str(tmp_path / "runs")]) == 0
    printed = capsys.readouterr().out
    assert ("note:" in printed) == bool(said)
    assert said in printed


def test_images_that_are_too_small_for_a_network_are_refused_before_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        fill(tmp_path / "in" / name)
    grid = tmp_path / "g.toml"
    grid.write_text(
        'dataset = "image-folder[size=8]"\nconditions = ["clean"]\n[[models]]\narchitecture = "small-cnn"\n'
    )
    words = ["plan", "--grid", str(grid), "--data-dir", str(tmp_path / "in"), "--out", str(tmp_path / "runs")]
    assert main(words) == 2
    assert "small-cnn for images of 8 × 8: it needs images of at least 16 × 16" in capsys.readouterr().err


def test_a_narrow_terminal_loses_no_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    assert main(["plan", "--grid", "smoke", "--out", str(tmp_path / "runs")]) == 0
    printed = capsys.readouterr().out
    assert "cross-entropy" in printed
    assert "passes left" in printed
