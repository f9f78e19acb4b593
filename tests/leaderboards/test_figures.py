from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from board_cells import CLEAN, PGD, Cell, cell, model, outcome
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure as Sheet
from matplotlib.text import Text
from matplotlib.transforms import Bbox

import robbench
from robbench.conformance import check
from robbench.conformance.figures import FIGURES, small_board
from robbench.conformance.rules import judge
from robbench.core.errors import RequestError
from robbench.core.registry import Registry
from robbench.leaderboards import board_data, write_board
from robbench.leaderboards.artifact_reader import NOTHING
from robbench.leaderboards.figure_manifest import Picture, read_manifest
from robbench.leaderboards.plots import draw, figures
from robbench.leaderboards.plots._labels import PointLabel, mark_box, write_labels
from robbench.leaderboards.plots._scene import Figure, Scene, Sketch
from robbench.leaderboards.plots._style import sheet, with_palette
from robbench.leaderboards.plots.clean_vs_robust import BARE, DEFENDED, _marks
from robbench.leaderboards.plots.clean_vs_robust import OTHERS as OF_OTHERS
from robbench.results.schema import BoardNote, ExternalSpec, ModelSpec, Outcome, Record, Training

PLUGIN = '''
from dataclasses import dataclass
from matplotlib.figure import Figure as Sheet
from robbench import Figure, Sketch, register_figure

@register_figure("row-count")
@dataclass(frozen=True)
class RowCount(Figure):
    """How many rows the board has."""

    section = "{section}"
    position = 15

    def draw(self, scene):
        sheet = Sheet(figsize=(4, 1))
        sheet.text(0.5, 0.5, str(len(scene.board.rows)))
        yield Sketch("{name}", "Rows", f"{{len(scene.board.rows)}} rows.", "A number.", sheet, main=True)
'''


def plugin(folder: Path, section: str = "ranking", name: str = "row-count") -> Registry:
    path = folder / "counts.py"
    path.write_text(PLUGIN.format(section=section, name=name))
    return Registry((path,), installed=False)


def drawn(folder: Path, registry: Registry | None = None) -> dict[str, Picture]:
    cells, _ = small_board()
    pictures = draw(folder, board_data("Toys", "small", cells), cells, NOTHING, registry)
    return {picture.name: picture for picture in pictures}


# --- as components


def test_a_figure_of_a_plugin_stands_on_the_board(tmp_path: Path) -> None:
    pictures = drawn(tmp_path / "board", plugin(tmp_path))
    assert list(pictures)[:3] == ["clean-vs-robust", "row-count", "ranking"]
    cells, _ = small_board()
    write_board(tmp_path / "board", BoardNote(grid="small", title="Toys"), cells, read_manifest(tmp_path / "board"))
    assert "3 rows." in (tmp_path / "board" / "index.html").read_text()


def test_figures_are_in_the_order_of_their_sections_and_positions() -> None:
    found = figures(Registry(installed=False))
    assert list(found) == [
        *("clean-vs-robust", "ranking", "robust-accuracy", "certified-accuracy", "change-needed", "distance-curves"),
        *("attacked-over-eps", "rounding"),
        *("classes", "confusion", "attacked-images", "noise-images", "noise", "embeddings"),
        *("class-counts", "sample-images", "training-curves", "learning-rates"),
    ]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"section": "elsewhere"}, "RowCount.section is 'elsewhere': Input should be 'ranking'"),
        ({"name": "ranking"}, "a name that is taken"),
        ({"name": "../up"}, "no file name"),
    ],
)
def test_figures_that_have_no_place_are_refused(tmp_path: Path, options: dict[str, str], part: str) -> None:
    with pytest.raises(RequestError, match=part):
        drawn(tmp_path / "board", plugin(tmp_path, **options))


def test_the_contract_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from robbench import Figure, Scene, Sketch, register_figure"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert issubclass(robbench.Figure, Figure)


# --- the conformance suite


@pytest.mark.end_to_end
def test_maps_by_umap_keep_the_rules() -> None:
    found = check(Registry(installed=False), "figure", "embeddings")
    assert [result.passed for result in found] == [True] * 3, found


@dataclass(frozen=True)
class Well(Figure):
    def draw(self, scene: Scene) -> Iterator[Sketch]:
        made = Sheet(figsize=(2, 1))
        made.text(0.5, 0.5, "text")
        yield Sketch("name", "Title", "Caption.", "Alternative.", made)


@dataclass(frozen=True)
class Mute(Well):
    def draw(self, scene: Scene) -> Iterator[Sketch]:
        yield from (sketch._replace(caption=" ") for sketch in super().draw(scene))


@dataclass(frozen=True)
class Random(Well):
    def draw(self, scene: Scene) -> Iterator[Sketch]:
        for sketch in super().draw(scene):
            sketch.sheet.text(0.1, 0.1, str(np.random.default_rng().random()))
            yield sketch


@dataclass(frozen=True)
class Writes(Well):
    def draw(self, scene: Scene) -> Iterator[Sketch]:
        Path("mine.png").write_bytes(b"")
        yield from super().draw(scene)


@dataclass(frozen=True)
class Sets(Well):
    def draw(self, scene: Scene) -> Iterator[Sketch]:
        mpl.rcParams["lines.linewidth"] = 99
        yield from super().draw(scene)


@pytest.mark.parametrize(
    ("figure", "rule", "part"),
    [
        (Mute(), 0, "has no caption"),
        (Random(), 1, "other bytes"),
        (Writes(), 2, "mine.png"),
        (Sets(), 2, "lines.linewidth"),
    ],
)
def test_a_broken_rule_is_found(
    figure: Figure, rule: int, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = dict(mpl.rcParams)
    found = judge(FIGURES, figure)
    assert [place for place, result in enumerate(found) if not result.passed] == [rule]
    assert part in found[rule].detail
    assert dict(mpl.rcParams) == before


def test_what_they_are_spoiled_from_breaks_none() -> None:
    assert all(result.passed for result in judge(FIGURES, Well()))


# --- what robustness costs


def trained(row: ModelSpec, broken: int, wrong: int = 0, passes: float = 100.0) -> list[Cell]:
    labels = np.arange(40) % 2
    clean = np.where(np.arange(40) < wrong, 1 - labels, labels)
    final = np.where(np.arange(40) < wrong + broken, 1 - labels, clean)
    training = Training.model_validate(
        {name: 1 for name in Training.model_fields} | {"forwards": passes, "backwards": 0}
    )
    made: list[tuple[Any, Outcome]] = [
        (CLEAN, outcome("clean", labels, clean)),
        (PGD, outcome("attack", labels, clean, final)),
    ]
    cells = [cell(row, condition, result) for condition, result in made]
    return [(record.model_copy(update={"training": training}), found) for record, found in cells]


def cost(folder: Path, cells: Sequence[Cell]) -> Picture | None:
    pictures = draw(folder, board_data("Toys", "small", cells), cells, NOTHING)
    return next((picture for picture in pictures if picture.name == "clean-vs-robust"), None)


def test_the_cost_of_robustness_is_told_in_points_and_passes(tmp_path: Path) -> None:
    cells = [*trained(model("robust", "pgd"), 10, 4, 700.0), *trained(model("plain", "none"), 30)]
    picture = cost(tmp_path, cells)
    assert picture is not None
    assert (picture.section, picture.main, picture.photograph) == ("ranking", True, False)
    # Of 40 images, 26 and 10 are robust, 36 and 40 are right clean.
    assert picture.caption.startswith(
        "Best: robust, worst case 65.0 %, clean 90.0 %. Over the best row without defense (plain, worst case 25.0 %, "
        "clean 100.0 %): +40.0 points worst case, -10.0 clean, 7.0 × the training passes."
    )


def test_where_no_defense_is_best_there_is_no_gain_to_tell(tmp_path: Path) -> None:
    cells = [*trained(model("robust", "pgd"), 30), *trained(model("plain", "none"), 10)]
    picture = cost(tmp_path, cells)
    assert picture is not None
    assert "It has no defense." in picture.caption
    assert "points" not in picture.caption


def test_one_row_or_no_attack_costs_nothing(tmp_path: Path) -> None:
    cells = [*trained(model("robust", "pgd"), 10), *trained(model("plain", "none"), 30)]
    assert cost(tmp_path, cells[:2]) is None
    assert cost(tmp_path, [found for found in cells if found[0].spec.condition == CLEAN]) is None


# --- labels


points = st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10), st.text("abc", min_size=1, max_size=30)), max_size=8)


@settings(deadline=None, max_examples=30)
@given(points)
def test_labels_hide_neither_one_another_nor_a_point(found: list[tuple[float, float, str]]) -> None:
    made, panels = sheet(4.0)
    axes = panels[0, 0]
    axes.set(xlim=(-1, 11), ylim=(-1, 11))
    made.set_layout_engine(None)
    labels = [PointLabel(text, x, y, "black") for x, y, text in found]
    room = [mark_box(axes, x, y) for x, y, _ in found]
    written = write_labels(axes, labels, room, far=True)
    made.draw_without_rendering()
    # Of the letters alone, without the line to their point.
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    marks = [Bbox.from_extents(*np.divide(box, 72)).transformed(made.dpi_scale_trans) for box in room]
    assert len(boxes) == len(written)
    for place, box in enumerate(boxes):
        # Half a point, since letters are of different widths.
        assert not any(box.padded(-1).overlaps(other.padded(-1)) for other in [*boxes[:place], *marks])


# --- lists and files


def test_lists_of_earlier_versions_get_their_sections(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    entries = {"ranking": "accuracy", "classes": "accuracy", "attacked-1": "examples", "sample-images": "data"}
    for name in entries:
        (tmp_path / "figures" / f"{name}.png").write_bytes(b"")
    text = ", ".join(
        f'{{"name": "{name}", "section": "{section}", "title": "", "caption": "", "alt": "", "main": false}}'
        for name, section in entries.items()
    )
    (tmp_path / "figures" / "figures.json").write_text(f"[{text}]")
    found = read_manifest(tmp_path)
    assert [(picture.section, picture.photograph) for picture in found] == [
        *(("ranking", False), ("classes", False), ("images", True), ("data", True)),
    ]
    assert replace(found[0], section="ranking") == Picture("ranking", "ranking", title="", caption="", alt="")


def test_a_palette_keeps_charts_as_they_are() -> None:
    import io

    from PIL import Image

    flat = np.zeros((50, 60, 3), np.uint8)
    flat[:20, :30] = (0, 114, 178)
    flat[30:] = (213, 94, 0)
    buffer = io.BytesIO()
    Image.fromarray(flat).save(buffer, "PNG")
    with Image.open(io.BytesIO(with_palette(buffer.getvalue()))) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), flat)


def test_a_figure_that_fails_is_left_out_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        PLUGIN.format(section="ranking", name="mine").replace(
            "def draw(self, scene):", "def draw(self, scene):\n        1 / 0", 1
        )
    )
    cells = [cell(model("a"), CLEAN, outcome("clean", [0, 1]))]
    with pytest.warns(UserWarning, match="left out: ZeroDivisionError"):
        pictures = draw(
            tmp_path, board_data("Toys", "small", cells), cells, NOTHING, Registry((path,), installed=False)
        )
    assert "mine" not in {picture.name for picture in pictures}


OTHERS = model("foreign").model_copy(update={"external": ExternalSpec(identity={"weights_sha256": "ab"})})


def test_models_of_others_are_neither_defended_nor_bare(tmp_path: Path) -> None:
    """The best row being one of them leaves the passes of the others known."""
    foreign = [(record.model_copy(update={"training": None}), found) for record, found in trained(OTHERS, 1)]
    cells = [*foreign, *trained(model("robust", "pgd"), 10, 4, 700.0), *trained(model("plain", "none"), 30)]
    marks = {mark.row.label: mark for mark in _marks(board_data("Toys", "small", cells))}
    assert {label: (mark.look, mark.passes) for label, mark in marks.items()} == {
        "foreign": (OF_OTHERS, None),
        "robust": (DEFENDED, 7.0),
        "plain": (BARE, 1.0),
    }
    assert len({(look.color, look.marker) for look in (OF_OTHERS, DEFENDED, BARE)}) == 3
    picture = cost(tmp_path, cells)
    assert picture is not None
    assert picture.caption.endswith("Of models that others trained, neither defense nor passes are known.")
    alone = [*foreign, *((replace_label(record, "second"), found) for record, found in foreign)]
    picture = cost(tmp_path, alone)
    assert picture is not None
    assert "Area" not in picture.caption


def replace_label(record: Record, label: str) -> Record:
    spec = record.spec.model_copy(update={"model": OTHERS.model_copy(update={"label": label}), "model_key": label})
    return record.model_copy(update={"spec": spec, "key": label + record.key[len(label) :]})
