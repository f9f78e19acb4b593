"""A board as a Python object: figures with their intervals, tables, arrays, images, text and drawings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from robbench.api.attacked_images import AdversarialExamples, attacked_images
from robbench.api.board_results import BoardResults, MissingResult
from robbench.api.frames import ends
from robbench.core.errors import RequestError, did_you_mean
from robbench.leaderboards.aggregates import Rates
from robbench.leaderboards.artifact_reader import NOTHING, Materials, read_materials
from robbench.leaderboards.visible_cells import visible_cells
from robbench.results.schema import Measure, Outcome

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as Drawing

Average: TypeAlias = Literal["classes", "images"]
"""What a figure is averaged over: classes, each counting alike, as boards do; or images."""


@dataclass(frozen=True, eq=False, repr=False)
class Report(BoardResults):
    """The results of a board: one row per model, one column per condition.

    Figures are those of the board: shares with 95 % intervals, averaged over classes, over the seeds of a row. Where a
    board has a single row, ``row`` may be left out.

    Example:
        >>> report = robbench.load("runs", board="full-digits")
        >>> report.worst_case("linf", "8/255", row="cross-entropy · fgm")
        Measure(value=0.41, low=0.36, high=0.46, n=400)
    """

    # --- figures

    def accuracy(self, row: str | None = None, average: Average = "classes") -> Measure:
        """Clean accuracy, on the images of the worst case that ranks; ``robust_accuracy("clean")`` is on all images.

        Args:
            row: The model.
            average: ``classes`` as boards do, or ``images``.

        Raises:
            RequestError: If the row is unknown, or has no clean accuracy.

        Example:
            >>> report.accuracy()
            Measure(value=0.95, low=0.91, high=0.97, n=400)
        """
        found = self.row(row)
        clean = self.board.clean(found)
        if clean is None:
            self._demand(found, [spec for spec in self.table.conditions if spec.kind == "clean"])
            raise MissingResult("the board has no clean condition", "condition")
        return _measure(clean, average)

    def robust_accuracy(self, condition: str, row: str | None = None, average: Average = "classes") -> Measure:
        """Robust accuracy under an attack or a chain; after a natural perturbation or clean, accuracy.

        Args:
            condition: Label of the condition.
            row: The model.
            average: ``classes`` as boards do, or ``images``.

        Raises:
            RequestError: If the row or the condition is unknown or has no result, or the condition looks for the
                smallest change, whose success says nothing without its size: see ``curve``.

        Example:
            >>> report.robust_accuracy("strong@8/255")
            Measure(value=0.43, low=0.38, high=0.48, n=400)
        """
        return _measure(self._rates(self.condition(condition), self.row(row)), average)

    def worst_case(
        self,
        norm: str | None = None,
        eps: float | str | None = None,
        row: str | None = None,
        average: Average = "classes",
    ) -> Measure:
        """Worst-case robust accuracy: the share that is robust to every attack of a threat model.

        Args:
            norm: ``linf``, ``l2``, ``l1`` or ``l0``; that of the ranking where it is None.
            eps: Size of the change, as ``8/255``; where it is None, that of the ranking, or the one nearest to the data
                set's reference.
            row: The model.
            average: ``classes`` as boards do, or ``images``.

        Raises:
            RequestError: If no attack was run within that threat model, or the row is unknown or has no result.

        Example:
            >>> report.worst_case("linf", 8 / 255)
            Measure(value=0.41, low=0.36, high=0.46, n=400)
        """
        threat, found = self.threat(norm, eps), self.row(row)
        worst = found.worst[threat.label]
        if worst is None:
            self._demand(found, self._threats[threat])
            raise MissingResult(f'"{found.label}" has no images that the other rows have', f"worst case {threat.label}")
        return _measure(worst, average)

    def per_class(self, condition: str | None = None, row: str | None = None) -> pd.DataFrame:
        """Accuracy class by class.

        Args:
            condition: Label of the condition; where it is None, the worst case that ranks.
            row: The model.

        Returns:
            A line per class of the test set, with the columns ``class``, ``accuracy``, ``low``, ``high`` and ``n``.

        Raises:
            RequestError: As ``robust_accuracy`` and ``worst_case``.

        Example:
            >>> report.per_class("strong@8/255").sort_values("accuracy").head(3)
        """
        import pandas as pd

        if condition is None and self.board.threat is not None:
            self.worst_case(row=row)
            found = self.board.robust(self.row(row))
        else:
            spec = self.condition(condition or self.board.clean_label or "clean")
            found = self._rates(spec, self.row(row))
        assert found is not None
        classes = zip(self.board.dataset.class_names, found.per_class, strict=True)
        lines = [(name, *ends(figure)) for name, figure in classes if figure]
        return pd.DataFrame(lines, columns=["class", "accuracy", "low", "high", "n"])

    def curve(self, norm: str | None = None) -> pd.DataFrame:
        """Robust accuracy over the size of the change, successes carried forward, clean accuracy at 0.

        From the attacks that were run at several eps; where there are none, from those that look for the smallest
        change.

        Args:
            norm: That of the ranking where it is None.

        Returns:
            A line per row and size, with the columns ``row``, ``eps``, ``accuracy``, ``low``, ``high`` and ``n``.

        Raises:
            RequestError: If there is no curve in that norm.

        Example:
            >>> report.curve("linf").pivot(index="eps", columns="row", values="accuracy").plot()
        """
        from robbench.api.frames import curve

        return curve(self, norm)

    # --- audit

    def flags(self, row: str | None = None) -> Mapping[str, str]:
        """Why the row's robustness cannot be trusted: blocking audit flags, each with what was found.

        Example:
            >>> report.flags()
            {'zero-gradient': '38.2 % of samples have no gradient under cross-entropy'}
        """
        return dict(self.row(row).flags)

    def cautions(self, row: str | None = None) -> Mapping[str, str]:
        """Audit notes that do not block, each with its remedy."""
        return dict(self.row(row).cautions)

    def audited(self, row: str | None = None) -> bool:
        """Whether a white-box attack on margins of at least 20 steps was run within the threat model that ranks."""
        return self.row(row).audited

    # --- samples, images

    def outcome(self, condition: str, row: str | None = None, seed: int | None = None) -> Outcome:
        """What became of each sample, as arrays with an entry per sample.

        Args:
            condition: Label of the condition.
            row: The model.
            seed: May be left out where there is a single one.

        Raises:
            RequestError: If one of them is unknown, or the cell has no result.

        Example:
            >>> outcome = report.outcome("strong@8/255")
            >>> outcome.ids[outcome.robust], outcome.linf.max()
        """
        record, outcome = self._cell(condition, row, seed)
        if outcome is None:
            raise MissingResult(
                f'"{record.spec.model.label}" has no result: {record.status}: {record.reason or "no reason given"}',
                record.spec.condition.label,
            )
        return outcome

    def adversarial_examples(
        self, condition: str, row: str | None = None, seed: int | None = None, complete: bool = False
    ) -> AdversarialExamples:
        """Attacked images, float32 exactly as they were judged: nothing is rounded.

        All that the condition was applied to where the run was asked to keep them (``keep_images``), in rising order of
        their ids; otherwise the first 16 that every cell keeps, classes in turn.

        Args:
            condition: Label of the condition.
            row: The model.
            seed: May be left out where there is a single one.
            complete: Whether to refuse where not all are kept.

        Raises:
            RequestError: If there are none, or not all.
            StoreError: If they are damaged.

        Example:
            >>> images, labels, ids = report.adversarial_examples("strong@8/255")
        """
        record, _ = self._cell(condition, row, seed)
        self.outcome(condition, row, seed)
        return attacked_images(self.store, record, complete)

    # --- tables

    def to_frame(self) -> pd.DataFrame:
        """Every figure as a table: one line per row, condition, seed and figure.

        Figures are those of the records, as ``robust_accuracy`` and, of the class of index 3, ``robust_accuracy/3``.
        Worst cases stand under conditions of their own, as ``worst case Linf 8/255``. ``robust_accuracy`` is averaged
        over images, ``balanced_robust_accuracy`` over classes.

        Returns:
            A table with the columns ``dataset``, ``row``, ``condition``, ``seed``, ``figure``, ``value``, ``low``,
            ``high`` and ``n``.

        Example:
            >>> frame = report.to_frame()
            >>> frame[frame.figure == "balanced_robust_accuracy"].pivot(index="row", columns="condition")["value"]
        """
        from robbench.api.frames import figures

        return figures(self)

    def samples(self) -> pd.DataFrame:
        """Every outcome as a table: one line per row, condition, seed and sample.

        Example:
            >>> report.samples().groupby(["condition", "labels"])["robust"].mean()
        """
        from robbench.leaderboards.frames import samples

        return samples(visible_cells(self.cells))

    def costs(self) -> pd.DataFrame:
        """What was spent: forward and backward passes and seconds, one line per row, condition and seed.

        Passes of training stand under the condition ``training``; they are not known of models that others trained.

        Returns:
            A table with the columns ``row``, ``condition``, ``seed``, ``forwards``, ``backwards`` and ``seconds``.

        Example:
            >>> report.costs().groupby("condition")[["forwards", "backwards"]].sum()
        """
        from robbench.api.frames import costs

        return costs(self)

    # --- text and drawings

    def summary(self) -> str:
        """The report as plain text in lines of at most 80 columns.

        First clean and worst-case robust accuracy and whether the audit objects; then every condition, classes, the
        curve over eps, and what was spent.

        Example:
            >>> print(report.summary())
        """
        from robbench.api.summary import summary

        return summary(self)

    def to_markdown(self) -> str:
        """The result in a few lines of markdown: one sentence and one table, to paste into an issue or a paper's notes.

        ``save`` writes the whole board with its ``README.md``.

        Example:
            >>> Path("result.md").write_text(report.to_markdown())
        """
        from robbench.api.summary import markdown

        return markdown(self)

    def plot(self, path: str | Path | None = None) -> Drawing:
        """Draw the report: clean against robust accuracy of several rows, the curve over eps of one.

        Args:
            path: File to write it to, as ``.png``, ``.svg`` or ``.pdf``.

        Returns:
            A figure of matplotlib.

        Raises:
            RequestError: If the file's ending is that of no picture.
            StoreError: If the file cannot be written.

        Example:
            >>> report.plot("report.png")
        """
        from robbench.api.drawing import drawing

        return drawing(self, None if path is None else Path(path))

    def save(self, directory: str | Path) -> Path:
        """Write the board with what it rests on: ``README.md``, ``index.html``, CSV, JSON, figures, and all cells.

        What is written is a published board, which ``robbench.load`` reads. The directory is replaced as a whole or not
        at all.

        Args:
            directory: A new directory, or one that holds an earlier report.

        Returns:
            The directory.

        Raises:
            StoreError: If it holds anything else, or cannot be written.

        Example:
            >>> report.save("reports/mine")
        """
        from robbench.api.saving import save

        return save(self, Path(directory))

    def materials(self) -> Materials:
        """Images, embeddings and histories of training that the store keeps for figures; nothing without a store."""
        if self.store is None:
            return NOTHING
        exhibit = self.store.board(self.name).get("exhibit")
        return read_materials(self.store, exhibit, visible_cells(self.cells))

    def __repr__(self) -> str:
        """The first line of the summary."""
        from robbench.api.summary import headline

        return f"<Report {self.name}: {headline(self)}>"

    def _repr_markdown_(self) -> str:
        return self.to_markdown()

    def _repr_html_(self) -> str:
        from robbench.api.summary import html

        return html(self)


def _measure(found: Rates, average: Average) -> Measure:
    if average not in ("classes", "images"):
        raise RequestError(
            f'"{average}" is nothing to average over; {did_you_mean(str(average), ("classes", "images"))}'
        )
    return Measure(*ends(found.balanced if average == "classes" else found.share))
