from __future__ import annotations

import warnings
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from board_cells import CHAIN, CLEAN, FGSM, PGD, PGD_2, ROTATION, Cell, cell, dataset, model, outcome, stage
from PIL import Image

from robbench.core.errors import StoreError
from robbench.leaderboards.artifact_reader import NOTHING, Examples, ExhibitedImages, History, Materials
from robbench.leaderboards.board_making import board_data
from robbench.leaderboards.figure_manifest import Picture, read_manifest
from robbench.leaderboards.plots import draw
from robbench.results.schema import MANY_CLASSES, ConditionSpec, DatasetSpec, ModelSpec

FGSM_2 = ConditionSpec(label="fgsm@0.2", kind="attack", stages=(stage("fgsm", eps=0.2),))
NAMES = ("car", "cat", "cow")
LABELS = np.arange(24) % 3
PLAIN, DEFENDED = model("plain", "none"), model("defended", "fgm")


def noise(target: str, c: float, start: str) -> ConditionSpec:
    parameters = {"c": c, "start": start, "steps": 5}
    stages = (stage("noise-optimization", "l1", None, **parameters),)
    return ConditionSpec(label=f"noise[c={c},start={start}]->{target}", kind="attack", stages=stages, target=target)


def attack(condition: ConditionSpec, broken: int, data: DatasetSpec, row: ModelSpec, seed: int = 0) -> Cell:
    """The first ``broken`` samples become the next class, or reach their target; half of these not when rounded."""
    hit = np.arange(len(LABELS)) < broken
    options: dict[str, Any] = {"linf": np.full(len(LABELS), condition.stages[-1].eps or 0.0)}
    wanted = (LABELS + 1) % 3
    if condition.target in data.class_names:
        wanted = np.full_like(LABELS, data.class_names.index(str(condition.target)))
        tried = wanted != LABELS
        hit &= tried
        options |= {"targets": np.where(tried, wanted, -1), "attempted": tried}
        options["l1"] = np.where(tried, 0.1 / float(condition.stages[0].parameters["c"]), 0.0)
    final = np.where(hit, wanted, LABELS)
    rounded = np.where(hit & (np.cumsum(hit) % 2 == 0), LABELS, final)
    kind = condition.kind
    made = outcome(kind, LABELS, LABELS, final, k=3, rounded=rounded, **options)
    return cell(row, condition, made, seed=seed, data=data)


def cells_of(
    data: DatasetSpec, rows: Sequence[ModelSpec] = (DEFENDED, PLAIN), seeds: Sequence[int] = (0,)
) -> list[Cell]:
    made = []
    for place, row in enumerate(rows):
        for seed in seeds:
            made.append(cell(row, CLEAN, outcome("clean", LABELS, k=3), seed=seed, data=data))
            made.append(cell(row, ROTATION, outcome("natural", LABELS, k=3), seed=seed, data=data))
            broken = [(FGSM, 4), (FGSM_2, 12), (PGD, 6), (PGD_2, 15), (CHAIN, 5)]
            for name in data.class_names[1:]:
                broken += [(noise(name, c, start), n) for c, n in ((0.01, 20), (0.1, 5)) for start in ("zero", "white")]
            for condition, count in broken:
                made.append(attack(condition, min(24, count + 6 * place), data, row, seed))
    return made


def materials_of(cells: Sequence[Cell]) -> Materials:
    images = np.random.default_rng(0).integers(0, 256, (24, 3, 8, 8)).astype(np.uint8)
    history = History(np.arange(1, 4), np.array([2.0, 1.0, 0.5]), np.array([2.0, 1.5, 1.0]), *np.full((2, 3), 0.75))
    examples = {}
    for record, made in cells:
        if made is not None and record.spec.condition.kind != "clean":
            at = np.flatnonzero(made.attempted)[:16]
            attacked = np.clip(images[at] / 255 + 0.1, 0, 1).astype(np.float32)
            place = (record.spec.model.label, record.spec.condition.label, record.spec.seed)
            scores = np.eye(3, dtype=np.float32)
            labels, final = made.labels[at], made.final[at]
            examples[place] = Examples(at, labels, images[at], attacked, labels, final, scores[labels], scores[final])
    places = {(record.spec.model.label, record.spec.seed): history for record, _ in cells}
    return Materials(ExhibitedImages(images, LABELS), places, examples, {}, {})


def drawn(folder: Path, cells: Sequence[Cell], materials: Materials = NOTHING) -> dict[str, Picture]:
    pictures = draw(folder, board_data("Toys", "small", cells), cells, materials)
    return {picture.name: picture for picture in pictures}


def files_of(pictures: Mapping[str, Picture]) -> set[str]:
    """An image of each figure, and a line drawing of each chart."""
    charts = {f"{name}.svg" for name, picture in pictures.items() if not picture.photograph}
    return {f"{name}.png" for name in pictures} | charts


@pytest.fixture(scope="module")
def toys() -> list[Cell]:
    return cells_of(dataset(NAMES, train=(90, 6, 3), test=(8, 8, 8)))


@pytest.fixture(scope="module")
def board(toys: list[Cell], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Picture]]:
    folder = tmp_path_factory.mktemp("board")
    return folder, drawn(folder, toys, materials_of(toys))


def test_everything_there_is_to_show_is_drawn_and_listed(board: tuple[Path, dict[str, Picture]]) -> None:
    folder, pictures = board
    assert list(pictures) == [
        *("clean-vs-robust", "ranking", "robust-accuracy-linf", "attacked-over-eps", "rounding"),
        *("classes", "confusion-1", "confusion-2", "attacked-1", "attacked-2", "noise-images-1", "noise-images-2"),
        *("noise-1", "noise-2", "class-counts", "sample-images", "training-curves"),
    ]
    assert read_manifest(folder) == tuple(pictures.values())
    assert {path.name for path in (folder / "figures").iterdir()} == {"figures.json", *files_of(pictures)}
    photographs = {name for name, picture in pictures.items() if picture.photograph}
    assert photographs == {
        *("attacked-over-eps", "attacked-1", "attacked-2", "noise-images-1", "noise-images-2", "sample-images"),
    }
    for picture in pictures.values():
        assert picture.title
        assert len(picture.caption) > 40
        assert len(picture.alt) > 20


def test_files_are_images_of_one_width_without_dates_or_programs(board: tuple[Path, dict[str, Picture]]) -> None:
    folder, pictures = board
    for name, picture in pictures.items():
        with Image.open(folder / "figures" / f"{name}.png") as image:
            image.load()
            assert image.mode == "P"
            assert image.width == 1080
            gray = np.asarray(image.convert("L"))
            assert (gray.min() < 60, gray.max()) == (True, 255), f"{name} is empty"
            assert not {"Software", "Creation Time"} & set(image.info)
        if picture.photograph:
            continue
        text = (folder / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        assert ET.fromstring(text).tag.endswith("svg")
        assert "<dc:date>" not in text
        assert "Matplotlib" not in text


def test_six_are_main_ones(board: tuple[Path, dict[str, Picture]]) -> None:
    main = [name for name, picture in board[1].items() if picture.main]
    assert main == ["clean-vs-robust", "ranking", "robust-accuracy-linf", "classes", "attacked-1", "class-counts"]


def test_the_same_input_gives_the_same_bytes_whatever_the_users_settings(
    board: tuple[Path, dict[str, Picture]], toys: list[Cell], tmp_path: Path
) -> None:
    with mpl.rc_context({"lines.linewidth": 9, "font.size": 30, "axes.facecolor": "black"}):
        before = dict(mpl.rcParams)
        drawn(tmp_path, toys, materials_of(toys))
        assert dict(mpl.rcParams) == before
    for path in sorted((tmp_path / "figures").iterdir()):
        assert path.read_bytes() == (board[0] / "figures" / path.name).read_bytes(), path.name


def test_captions_tell_numbers(board: tuple[Path, dict[str, Picture]]) -> None:
    pictures = board[1]
    assert "from 3 of cow to 90 of car in the training set" in pictures["class-counts"].caption
    # At 0.1, 6 and 12 of the 24 samples fall, the same number of each class, and 1 of 2 successes stands rounding.
    assert pictures["ranking"].caption.startswith("Best: defended, clean 100.0 %, worst case 75.0 %.")
    assert "Best undefended: plain, clean 100.0 %, worst case 50.0 %" in pictures["ranking"].caption
    assert "defended: car from 100 % clean to 75 % (worst case at Linf 0.1)" in pictures["classes"].caption
    assert "pgd@0.1: 50 % right" in pictures["confusion-2"].caption
    assert "car predicted as cat (4 of 8)" in pictures["confusion-2"].caption
    assert "defended: 75 % at 0.1, 38 % at 0.2." in pictures["robust-accuracy-linf"].caption
    assert pictures["rounding"].caption.startswith("Most undone: ")
    assert "48 % of 21 successful attacks" in pictures["rounding"].caption, "fewer successes tell no share"
    assert "75 % training and 75 % validation accuracy after 3 epochs" in pictures["training-curves"].caption
    assert "change (times 4, gray is none)" in pictures["attacked-1"].caption
    assert "car predicted as cat, cat predicted as cow, cow predicted as car" in pictures["attacked-1"].caption
    assert "pgd@0.1" in pictures["attacked-1"].caption
    # Of 16 samples tried on the target cat, which the 8 cats among 24 are not, those below 20 and below 5 reach it.
    success = [np.mean(np.arange(24)[LABELS != 1] < broken) for broken in (20, 5)]
    told = f"Towards cat from a zero start: {100 * success[0]:.0f} % at C = 0.01 with median size 10"
    assert f"{told}, {100 * success[1]:.0f} % at C = 0.1 with median size 1." in pictures["noise-1"].caption


def test_attacked_images_fall_over_rising_eps(board: tuple[Path, dict[str, Picture]]) -> None:
    # Of the plain row, whose examples are the first 16 samples, 10 fall at both and 6 at the larger: half of four each.
    assert "Wrong predictions among 4 images: 2 at 0.1, 4 at 0.2." in board[1]["attacked-over-eps"].caption


def test_figures_of_an_earlier_run_are_removed_and_other_files_stay(tmp_path: Path, toys: list[Cell]) -> None:
    folder = tmp_path / "figures"
    folder.mkdir()
    for name in ("ranking-old.png", "ranking-old.svg", "class-counts.png", "notes.txt"):
        (folder / name).write_bytes(b"old")
    clean = [item for item in toys if item[0].spec.condition == CLEAN]
    pictures = drawn(tmp_path, clean)
    assert list(pictures) == ["ranking", "classes", "confusion-1", "confusion-2", "class-counts"]
    assert {path.name for path in folder.iterdir()} == {"figures.json", "notes.txt", *files_of(pictures)}
    assert (folder / "class-counts.png").read_bytes() != b"old"


def test_of_rows_that_failed_there_is_nothing_to_show(tmp_path: Path) -> None:
    data = dataset(NAMES)
    cells = [cell(PLAIN, CLEAN, "out of memory", data=data), cell(PLAIN, FGSM, "!not for this", data=data)]
    assert list(drawn(tmp_path, cells)) == ["class-counts"]
    assert (
        read_manifest(tmp_path)[0].caption
        == "Images per class: 30 of each class in the training set and 4 of each class in the test set."
    )


def test_names_are_drawn_as_they_are_given(tmp_path: Path) -> None:
    names = ("$\\frac{1}{", "<b>&\x07" + "x" * 80, "\U000f1234 猫")
    data = dataset(names, test=(8, 8, 8))
    cells = cells_of(data, [model("$a$ & <i>$b " + "y" * 90, "none")], seeds=(0, 1, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pictures = drawn(tmp_path, cells, materials_of(cells))
    assert "noise-1" in pictures
    assert "class 2 is \U000f1234 猫" in pictures["sample-images"].caption
    assert "class 1 is" not in pictures["sample-images"].caption
    assert "class 0 is" not in pictures["sample-images"].caption
    for name, picture in pictures.items():
        if not picture.photograph:
            ET.fromstring((tmp_path / "figures" / f"{name}.svg").read_text(encoding="utf-8"))
        text = picture.title + picture.caption + picture.alt
        assert not any(part in text for part in ("x" * 60, "y" * 60, "\x07"))


@pytest.mark.parametrize("size", [2, 25, 100])
def test_any_number_of_classes_fits(tmp_path: Path, size: int) -> None:
    data = dataset([f"class of number {label}" for label in range(size)], test=[1] * size)
    labels = np.arange(size)
    cells = [
        cell(PLAIN, CLEAN, outcome("clean", labels, k=size), data=data),
        cell(PLAIN, FGSM, outcome("attack", labels, final=np.roll(labels, 1), k=size), data=data),
    ]
    images = np.zeros((size, 3, 8, 12), np.uint8)
    pictures = drawn(tmp_path, cells, replace(NOTHING, samples=ExhibitedImages(images, labels)))
    matrices = ["confusion-1"] if size <= MANY_CLASSES else []
    assert list(pictures) == ["ranking", "classes", *matrices, "class-counts", "sample-images"]
    assert pictures["classes"].caption.count(f"Of {size} classes, the 16") == (size > 16)
    assert "Images are 12 × 8 pixels" in pictures["sample-images"].caption
    for name in pictures:
        with Image.open(tmp_path / "figures" / f"{name}.png") as image:
            assert image.width == 1080
            assert image.height < 2 * 1080


def test_damaged_materials_are_an_error(tmp_path: Path, toys: list[Cell]) -> None:
    class Damaged(dict):  # type: ignore[type-arg]
        def __getitem__(self, key: object) -> object:
            raise StoreError("damaged")

    with pytest.raises(StoreError, match="damaged"):
        drawn(tmp_path, toys[:1], replace(NOTHING, histories=Damaged({("defended", 0): None})))
