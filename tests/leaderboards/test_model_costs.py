from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from board_cells import CLEAN, TOYS, Cell, cell, model, outcome
from sheets import heads, lines

from robbench.leaderboards import board_data, tables, write_board
from robbench.leaderboards.html.model_cards import model_cards
from robbench.leaderboards.markdown import abbreviated
from robbench.leaderboards.readme import readme
from robbench.leaderboards.sheet import Detail
from robbench.results.schema import ExternalSpec, Record, Training

SPENT = Training.model_validate(dict.fromkeys(Training.model_fields, 1))


def made(label: str, parameters: int = 0, multiply_adds: int = 0, trained: bool = True) -> Cell:
    record, found = cell(model(label, "none"), CLEAN, outcome("clean", [0, 1]))
    spec = record.spec
    if not trained:
        own = spec.model.model_copy(update={"external": ExternalSpec(identity={})})
        spec = spec.model_copy(update={"model": own})
    known = {"parameters": parameters, "multiply_adds": multiply_adds, "training": SPENT if trained else None}
    return record.model_copy(update={"spec": spec, **known}), found


LARGE = made("large", 36_479_194, 5_245_000_000)
SMALL = made("small", 166_406, 1_100_000)
THEIRS = made("theirs", 11_173_962, 0, trained=False)
OLD = made("old")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "–"),
        (7, "7"),
        (999, "999"),
        (1000, "1.0 K"),
        (9_949, "9.9 K"),
        (9_950, "10 K"),
        (166_406, "166 K"),
        (999_499, "999 K"),
        (999_500, "1.0 M"),
        (1_188_906, "1.2 M"),
        (29_000_000, "29 M"),
        (36_479_194, "36 M"),
        (5_245_000_000, "5.2 G"),
        (999_600_000_000, "1.0 T"),
        (12e15, "12000 T"),
    ],
)
def test_counts_are_shown_short(value: float, text: str) -> None:
    assert abbreviated(value) == text


def test_costs_stand_where_training_passes_do() -> None:
    board = board_data("Toys", "small", [LARGE, SMALL, THEIRS, OLD])
    table = tables.making.training(board)
    assert heads(table)[:3] == ["Model", "Parameters", "Multiply-adds"]
    found = {line[0]: line[1:5] for line in lines(table)}
    assert found["large"] == ["36 M", "5.2 G", "1", "1"]
    assert found["small"] == ["166 K", "1.1 M", "1", "1"]
    assert found["theirs"] == ["11 M", "–", "unknown", "unknown"]
    assert found["old"] == ["–", "–", "1", "1"]
    models = {line[0]: line[2:4] for line in lines(tables.method.models(board))}
    assert models["large"] == ["36 M", "5.2 G"]
    assert "Parameters" not in heads(table.upto(Detail.README)), "the readme tells it beside the architecture"


def test_files_hold_whole_numbers(tmp_path: Path) -> None:
    write_board(tmp_path, TOYS, [LARGE, SMALL, THEIRS])
    found = {line["Model"]: line for line in csv.DictReader(io.StringIO((tmp_path / "training.csv").read_text()))}
    assert (found["large"]["Parameters"], found["large"]["Multiply-adds"]) == ("36479194", "5245000000")
    assert (found["theirs"]["Multiply-adds"], found["theirs"]["Epochs"]) == ("", "")
    rows = {row["model"]["label"]: row for row in json.loads((tmp_path / "leaderboard.json").read_text())["rows"]}
    assert rows["small"]["multiply_adds"] == 1_100_000
    assert "multiply_adds" not in rows["theirs"]
    text, page = ((tmp_path / name).read_text(encoding="utf-8") for name in ("README.md", "index.html"))
    assert "Multiply-adds: of one prediction" in text
    assert "36,479,194 parameters, 5,245,000,000 multiply-adds of one prediction" in page.replace("<wbr>", "")
    assert ">36 M<" in page


def test_boards_of_older_records_show_nothing(tmp_path: Path) -> None:
    cells = [OLD, made("other"), made("theirs", trained=False)]
    text = json.dumps([record.model_dump(mode="json", exclude={"parameters", "multiply_adds"}) for record, _ in cells])
    read = [(Record.from_data(data), found) for data, (_, found) in zip(json.loads(text), cells, strict=True)]
    assert [record for record, _ in read] == [record for record, _ in cells]
    write_board(tmp_path, TOYS, read)
    for file in tmp_path.iterdir():
        if file.is_file():
            found = file.read_text(encoding="utf-8")
            assert "Multiply-adds" not in found, file
            assert "multiply_adds" not in found, file
            assert "Parameters<" not in found or "Component" in found, file
    (card, *_) = model_cards(board_data("", "", read), [record for record, _ in read])
    assert "Size" not in card.facts


def test_a_board_of_models_of_others_alone_tells_sizes_alone(tmp_path: Path) -> None:
    cells = [THEIRS, made("others", 5, 3, trained=False)]
    board = board_data("Toys", "small", cells)
    assert heads(tables.making.training(board)) == ["Model", "Parameters", "Multiply-adds"]
    text = readme(board)
    assert "| 11 M | – |" in text
    assert "Training cost" not in text
    write_board(tmp_path, TOYS, cells)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<h3>Size</h3>" in page
    assert "Cost of training" not in page
