from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from board_cells import ALL, CLEAN, FGSM, NEXT, cell, dataset, model, outcome, part
from hypothesis import given
from hypothesis import strategies as st
from maps import Axes

from robbench.evaluation.statistics import wilson
from robbench.leaderboards.aggregates import Estimate
from robbench.leaderboards.artifact_reader import Embeddings, History, Materials
from robbench.leaderboards.board import Row
from robbench.leaderboards.board_making import board_data
from robbench.leaderboards.markdown import counted, listed
from robbench.leaderboards.plots import draw
from robbench.leaderboards.plots._rows import featured, leading, which
from robbench.leaderboards.plots._scene import Figure, Scene, Sketch
from robbench.leaderboards.plots._style import Fonts, spans
from robbench.leaderboards.plots._words import pct, short
from robbench.leaderboards.plots.embeddings import EmbeddingMaps, project
from robbench.leaderboards.plots.learning_rates import LearningRates
from robbench.leaderboards.plots.rounding import undone
from robbench.leaderboards.table import Table
from robbench.results.schema import ModelSpec

FONTS = Fonts(("DejaVu Sans",), frozenset(map(ord, "abcdefghijklmno 0123456789.@$…□·-")))


def row(label: str, defense: str, balancer: str) -> Row:
    spec = model(label, defense).model_copy(update={"balancer": part(balancer)})
    return Row(spec, (0,), "1", "", False, {}, {}, (), {}, {}, {}, None)


rows_of_any_kind = st.lists(st.tuples(st.sampled_from(["none", "fgm", "pgd"]), st.sampled_from(["none", "smote"]))).map(
    lambda kinds: [row(f"row {place}", *kind) for place, kind in enumerate(kinds)]
)


# --- which rows


@given(rows_of_any_kind, st.integers(2, 8))
def test_a_few_rows_stand_for_all(rows: list[Row], limit: int) -> None:
    shown = featured(rows, limit)
    labels = [found.label for found in shown]
    assert len(shown) == min(limit, len(rows))
    assert labels == [found.label for found in rows if found.label in labels]
    assert {found.label for found in leading(rows)} <= set(labels)
    kinds, chosen = ({found.model.defenses[0].name for found in part} for part in (rows, shown))
    assert len(chosen) == min(len(kinds), limit)


@given(rows_of_any_kind)
def test_the_first_and_the_first_undefended_row_lead(rows: list[Row]) -> None:
    found = leading(rows)
    assert [item.label for item in found[:1]] == [item.label for item in rows[:1]]
    bare = [item.label for item in rows if item.undefended]
    assert len(found) == len({item.label for item in rows[:1]} | set(bare[:1]))
    assert not bare or bare[0] in {item.label for item in found}


def test_a_sentence_tells_which_rows_are_shown() -> None:
    rows = [row("a", "fgm", "none"), row("b", "none", "none"), row("c", "none", "smote"), row("d", "pgd", "none")]
    assert which(rows, rows) == ""
    assert which(rows, leading(rows)) == " Of 4 rows, the best and the best undefended one are shown."
    told = " Of 4 rows, the best, the best undefended one and the best of 1 other kind of training are shown."
    assert which(rows, featured(rows, 3)) == told
    assert [item.label for item in featured(rows, 3)] == ["a", "b", "d"]


# --- words and text


@given(st.text(), st.integers(1, 30))
def test_shortened_text_fits_on_one_line(text: str, limit: int) -> None:
    found = short(text, limit)
    assert len(found) <= limit
    assert "\n" not in found
    plain = short(text, 10**6)
    assert found == plain if len(plain) <= limit else "…" in found


@given(st.text("abc $猫", max_size=60), st.integers(1, 20), st.integers(1, 3))
def test_text_for_figures_has_no_formula_and_only_letters_of_the_fonts(text: str, width: int, limit: int) -> None:
    for line in FONTS.lines(text, width, limit).split("\n"):
        plain = line.replace(r"\$", "$")
        assert line.count("$") == line.count(r"\$")
        assert len(plain) <= width
        assert FONTS.has(plain)
    assert FONTS.lines(text, width, limit).count("\n") < limit


def test_long_names_end_a_line_between_their_parts() -> None:
    fonts = Fonts.installed()
    assert fonts.lines("hard_mnist_MadryCNN_no_maxpool_tiny", 34) == "hard_mnist_MadryCNN_no_\nmaxpool_tiny"
    assert fonts.lines("models/vit_small.pt", 12) == "models/vit_\nsmall.pt"
    assert fonts.lines("short_name of two_parts", 12) == "short_name\nof two_parts"


def test_words() -> None:
    assert [pct(value) for value in (0, 0.004, 0.47, 0.999, 1)] == ["0 %", "0.4 %", "47 %", "99.9 %", "100 %"]
    assert [listed(["a", "b", "c"][:count]) for count in range(4)] == ["", "a", "a and b", "a, b and c"]
    assert (counted(1, "class", "classes"), counted(2000, "class", "classes")) == ("1 class", "2,000 classes")


def test_intervals_reach_from_the_figure_and_missing_figures_are_gaps() -> None:
    values, reach = spans([Estimate(0.5, 0.4, 0.75, 10), None, Estimate(0.25, None, None, 10)])
    assert values.tolist()[::2] == [50, 25]
    assert np.isnan(values[1])
    assert np.allclose(reach.T, [[10, 25], [0, 0], [0, 0]])


# --- what rounding undoes


def test_rounding_undoes_successes_that_are_none_on_the_rounded_image() -> None:
    labels = np.zeros(8, np.int64)
    final = np.array([1, 1, 1, 1, 0, 0, 0, 0])
    made = outcome("attack", labels, labels, final, rounded=np.array([0, 1, 1, 1, 1, 0, 0, 0]))
    figure = undone([made])
    assert figure is not None
    # What only the rounded image is wrong on is no success that could be undone.
    assert (figure.value, figure.low, figure.high, figure.n) == wilson(1, 4)
    assert undone([outcome("attack", labels)]) is None
    assert undone([]) is None


def test_a_target_is_missed_when_the_rounded_image_is_another_wrong_class() -> None:
    labels = np.zeros(4, np.int64)
    final = np.array([1, 1, 2, 0])
    made = outcome("attack", labels, labels, final, k=3, targets=np.ones(4, np.int64), rounded=np.array([2, 1, 1, 0]))
    figure = undone([made])
    assert figure is not None
    assert (figure.value, figure.n) == (0.5, 2)


# --- learning rates


def history(*losses: float) -> History:
    values = np.array(losses)
    return History(np.arange(1, len(losses) + 1), values, values, *np.full((2, len(losses)), 0.5))


def with_recipe(label: str, **recipe: object) -> ModelSpec:
    return model(label).model_copy(update={"recipe": {"epochs": 3, **recipe}})


def sketched(
    figure: Figure,
    rows: Sequence[ModelSpec],
    histories: Sequence[History] = (),
    **embedded: Embeddings,
) -> dict[str, Sketch]:
    cells = [cell(spec, CLEAN, outcome("clean", [0, 1, 0, 1])) for spec in rows]
    cells += [cell(spec, FGSM, outcome("attack", [0, 1, 0, 1], final=[1, 1, 0, 1])) for spec in rows]
    by_row = {(spec.label, 0): found for spec, found in zip(rows, histories, strict=False)}
    train = {(rows[0].label, 0): embedded["train"]} if embedded else {}
    test = {(rows[0].label, label, 0): embedded["test"] for label in ("clean", "fgsm@0.1") if embedded}
    scene = Scene(board_data("Toys", "small", cells), Table.of(cells), Materials(None, by_row, {}, train, test), FONTS)
    return {sketch.name: sketch for sketch in figure.draw(scene)}


def test_rows_that_differ_in_the_learning_rate_alone_are_compared() -> None:
    nan, inf = float("nan"), float("inf")
    rows = [
        with_recipe("low", lr=1e-10),
        with_recipe("high", lr=0.1),
        with_recipe("middle", lr=0.001),
        with_recipe("worst", lr=10.0),
        with_recipe("longer", lr=0.01, batch_size=7),
    ]
    losses = [history(2.3, 2.3, 2.3), history(3.0, 500.0, nan), history(2.0, 1.0, 0.5), history(inf), history(1.0, 0.5)]
    pictures = sketched(LearningRates(), rows, losses)
    assert list(pictures) == ["learning-rates-1"]
    told = pictures["learning-rates-1"].caption
    assert "Loss per epoch of 4 rows like low that differ in the learning rate alone" in told
    assert told.startswith(
        "Learning rate 1e-10: training loss stays at 2.3. Learning rate 0.001: training loss 2 → 0.5."
    )
    assert "Learning rate 0.1: diverged in epoch 3. Learning rate 10: diverged in epoch 1." in told


def test_one_learning_rate_is_no_study() -> None:
    rows = [with_recipe("a", lr=0.1), with_recipe("b", lr=0.1, batch_size=7)]
    assert not sketched(LearningRates(), rows, [history(2.0, 1.0), history(1.0)])


# --- maps of embeddings


def embedded(n: int, swapped: int = 0) -> Embeddings:
    labels = np.arange(n) % 2
    places = np.where(np.arange(n) < swapped, 1 - labels, labels)
    noise = np.random.default_rng(0).normal(size=(n, 4))
    return Embeddings(np.arange(n), labels, (10 * places[:, None] + noise).astype(np.float32))


@pytest.mark.usefixtures("no_umap")
def test_maps_are_fitted_on_training_images_alone() -> None:
    pictures = sketched(EmbeddingMaps(), [model("a")], train=embedded(40), test=embedded(20, swapped=5))
    assert Axes.fitted == (40,)
    caption = pictures["embeddings-1"].caption
    assert "fitted on 40 training images without their labels" in caption
    assert "same class: 75 % of clean images, 75 % of attacked images (mean over classes)" in caption


@pytest.mark.parametrize("spoilt", [np.nan, np.inf])
@pytest.mark.usefixtures("no_umap")
def test_embeddings_that_are_no_numbers_are_left_out(spoilt: float) -> None:
    train = embedded(40)
    train.embeddings[3] = spoilt
    assert list(sketched(EmbeddingMaps(), [model("a")], train=train, test=embedded(20))) == ["embeddings-1"]
    assert Axes.fitted == (39,)
    train.embeddings[8:] = spoilt
    assert not sketched(EmbeddingMaps(), [model("a")], train=train, test=embedded(20))


@pytest.mark.end_to_end
def test_umap_is_fitted_on_training_images_alone_and_the_same_each_time() -> None:
    train, test = embedded(60), embedded(20)
    found = [project(train.embeddings, {"test": values}) for values in (test.embeddings, test.embeddings[:10])]
    assert np.array_equal(found[0]["train"], found[1]["train"])
    distances = np.linalg.norm(found[0]["test"][:, None] - found[0]["train"], axis=2)
    assert np.array_equal(train.labels[distances.argmin(axis=1)], test.labels)


def test_targets_and_several_ways_to_attack_do_not_get_in_each_others_way(tmp_path: Path) -> None:
    data = dataset(test=(2, 2))
    tried: dict[str, Any] = {
        "targets": np.array([1, 0, 1, 0]),
        "every_target": np.array([[-1, 1], [0, -1], [-1, 0], [1, -1]]),
    }
    cells = [
        cell(model("a"), CLEAN, outcome("clean", [0, 1, 0, 1]), data=data),
        cell(
            model("a"), NEXT, outcome("attack", [0, 1, 0, 1], final=[1, 1, 0, 1], targets=tried["targets"]), data=data
        ),
        cell(model("a"), ALL, outcome("attack", [0, 1, 0, 1], final=[1, 0, 0, 1], **tried), data=data),
    ]
    pictures = draw(tmp_path, board_data("Toys", "small", cells), cells, Materials(None, {}, {}, {}, {}))
    assert [picture.name for picture in pictures] == ["ranking", "classes", "confusion-1", "class-counts"]
