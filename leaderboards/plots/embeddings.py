"""Maps of embeddings by true class: training images, and test images clean, perturbed and attacked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robbench.core.registry import register_figure
from robbench.leaderboards.artifact_reader import Embeddings
from robbench.leaderboards.board import Row
from robbench.leaderboards.markdown import counted
from robbench.leaderboards.plots._rows import featured, which
from robbench.leaderboards.plots._scene import Figure, Scene, Sketch
from robbench.leaderboards.plots._style import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, sheet
from robbench.leaderboards.plots._words import short

ROWS = 4
FITTED = 2000
"""Training images that the map is fitted on at most, since it takes longer than all other figures together."""
LEAST = 10
COLORED = 10
_COLORS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK, "#B8A800", "#882255", "#8A8A8A")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")


@register_figure("embeddings")
@dataclass(frozen=True)
class EmbeddingMaps(Figure):
    """Two-dimensional maps of embeddings, fitted on training images alone."""

    section = "embeddings"
    position = 10

    def draw(self, scene: Scene) -> Iterator[Sketch]:
        """A map for each of a few rows, fitted on training images alone."""
        rows = [row for row in scene.board.rows if (row.label, scene.seed(row)) in scene.materials.train]
        shown = featured(rows, ROWS)
        for number, row in enumerate(shown, 1):
            train = _finite(scene.materials.train[row.label, scene.seed(row)])
            tests = _tests(scene, row)
            if len(train.labels) < LEAST:
                continue
            placed = project(train.embeddings, {heading: part.embeddings for heading, (_, part) in tests.items()})
            # A backbone that makes the same of all images has no map.
            if all(np.isfinite(points).all() for points in placed.values()):
                yield _draw(scene, row, train, tests, placed, f"embeddings-{number}", which(rows, shown))


def _finite(found: Embeddings) -> Embeddings:
    """Without images whose embedding is not a number, as many as the map takes, evenly over their order."""
    kept = np.flatnonzero(np.isfinite(found.embeddings).all(axis=1))
    if len(kept) > FITTED:
        kept = kept[np.linspace(0, len(kept) - 1, FITTED).astype(np.intp)]
    return Embeddings(found.ids[kept], found.labels[kept], found.embeddings[kept])


def _tests(scene: Scene, row: Row) -> dict[str, tuple[str, Embeddings]]:
    """Headings and embeddings of test images, clean, perturbed and attacked, as far as there are any."""
    board, seed = scene.board, scene.seed(row)
    attacks = [label for label in (row.hardest, *(board.threats[board.threat] if board.threat else ())) if label]
    attacks += [condition.label for condition in board.conditions if condition.kind in ("attack", "chain")]
    natural = [board.perturbed] if board.perturbed else []
    natural += [condition.label for condition in board.conditions if condition.kind == "natural"]
    found = {}
    for heading, labels in (("Test", [scene.clean]), ("Test, perturbed", natural), ("Test, attacked", attacks)):
        label = next((label for label in labels if label and (row.label, label, seed) in scene.materials.test), None)
        if label is not None:
            found[heading] = (label, _finite(scene.materials.test[row.label, label, seed]))
    return found


def project(train: NDArray[np.float32], others: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
    """Two-dimensional maps of embeddings: UMAP (McInnes et al., 2018), fitted on ``train`` without labels.

    Args:
        train: Shape ``(N, D)``.
        others: Shape ``(M, D)`` each; only applied to.

    Returns:
        Shape ``(N, 2)`` under ``train``, and ``(M, 2)`` each.
    """
    import warnings

    with warnings.catch_warnings():
        # It warns that a fixed random state means one thread, which is asked for, and of duplicates, which are allowed.
        warnings.simplefilter("ignore")
        import umap

        fitted = umap.UMAP(n_neighbors=min(15, len(train) - 1), init="pca", random_state=0, n_jobs=1).fit(train)
        placed = {name: fitted.transform(part) for name, part in others.items() if len(part)}
    return {"train": fitted.embedding_, **placed}


def _draw(
    scene: Scene,
    row: Row,
    train: Embeddings,
    tests: Mapping[str, tuple[str, Embeddings]],
    placed: Mapping[str, NDArray[Any]],
    name: str,
    shown: str,
) -> Sketch:
    panels = {"Train": (placed["train"], train.labels, "")}
    panels |= {head: (placed[head], part.labels, label) for head, (label, part) in tests.items() if head in placed}
    columns = min(2, len(panels))
    bands = -(-len(panels) // columns)
    made, grid = sheet(0.5 + 3.1 * bands, bands, columns, sharex=True, sharey=True)
    size = len(scene.board.dataset.class_names)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (heading, (points, labels, condition)) in zip(grid.flat, panels.items(), strict=False):
        dots = 3.5 if len(points) < 1000 else 2.5
        for label in reversed(range(size)):
            kept = labels == label
            if kept.any():
                named = label < COLORED
                axes.plot(
                    *points[kept].T,
                    _MARKERS[label] if named else ".",
                    color=_COLORS[label] if named else "#CFCFCF",
                    ms=dots,
                    mew=0,
                    alpha=0.75,
                    zorder=2 if named else 1,
                )
        text = f"{heading}: {condition}" if condition and condition != scene.clean else heading
        axes.set_title(f"{scene.condition(text, 40)} (n = {len(points):,})", loc="left", fontsize=9)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color="#BBBBBB")
    handles = _handles(scene, size)
    made.legend(handles=handles, loc="outside lower center", ncols=5, columnspacing=1.2, handletextpad=0.3)
    told = _told(panels)
    caption = (
        f"{told} Embeddings of {short(row.label)} by UMAP, fitted on {len(train.labels):,} training images without "
        "their labels. Colors are true classes; axes have no meaning of their own."
    ).strip()
    if size > COLORED:
        caption += f" Of {size} classes, the first {COLORED} are colored."
    alt = f"{counted(len(panels), 'scatter plot')} of embeddings by true class. {told}"
    return Sketch(name, f"Embeddings: {short(row.label)}", caption + shown, alt, made)


def _handles(scene: Scene, size: int) -> list[Any]:
    from matplotlib.lines import Line2D

    looks = [(scene.class_name(label, 18), _MARKERS[label], _COLORS[label]) for label in range(min(size, COLORED))]
    looks += [("others", ".", "#CFCFCF")] * (size > COLORED)
    return [Line2D([], [], marker=mark, color=color, ls="", ms=6, label=name) for name, mark, color in looks]


def _told(panels: Mapping[str, tuple[NDArray[Any], NDArray[Any], str]]) -> str:
    """How often the nearest training image on the map is of the same class, panel by panel."""
    from scipy.spatial import cKDTree

    points, labels, _ = panels["Train"]
    tree = cKDTree(points)
    told = []
    for heading, (others, true, _) in panels.items():
        if heading != "Train":
            nearest = labels[tree.query(others)[1]]
            share = f"{100 * np.mean([np.mean(nearest[true == label] == label) for label in np.unique(true)]):.0f} %"
            told.append(f"{share} of {heading.split(', ')[-1].lower().replace('test', 'clean')} images")
    return f"Nearest training image of the same class: {', '.join(told)} (mean over classes)." if told else ""
