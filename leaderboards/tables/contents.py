"""All tables of a board, by the part of it that they stand in."""

from __future__ import annotations

from robbench.leaderboards.ablations import PARTS
from robbench.leaderboards.board import Board
from robbench.leaderboards.sheet import Detail, Sheet, by_samples
from robbench.leaderboards.tables import bounds, certified, classes, making, method, minimal_norms, ranks, robustness
from robbench.leaderboards.tables.parts import balanced, share
from robbench.results.schema import BoardNote

_CHANGES = ("changes", "effects")
"""Parts whose columns may be of other images, as clean accuracy is of all."""


def sheets(board: Board, note: BoardNote | None = None, detail: Detail = Detail.PAGE) -> dict[str, list[Sheet]]:
    """The tables of a board by part; those without a line are left out.

    Args:
        board: The board.
        note: What the board says that does not follow from its cells; nothing where there is none.
        detail: The columns to keep.
    """
    note = note or BoardNote(grid=board.grid, title=board.title)
    found = {
        "ranking": [ranks.ranking(board)],
        "others": list(ranks.others(board)),
        "unranked": [ranks.unranked(board)],
        "seeds": [ranks.by_seed(board)],
        "beside": [robustness.references(board, note.references)],
        "bounds": [bounds.proved(board, note.bounds)],
        "certified": certified.gaps(board),
        "changes": [making.changes(board, part) for part in PARTS],
        "effects": [making.effects(board)],
        "conditions": [
            robustness.conditions(board, labels, choose, caption)
            for labels in board.same_images
            for choose, caption in ((share, "Share of all images"), (balanced, "Averaged over classes"))
        ],
        "strength": [robustness.curve(board, drawn, median=False) for drawn in board.strength],
        "sizes": [robustness.curve(board, drawn, median=True) for drawn in board.sizes],
        "nearest": [minimal_norms.best_by_budget(board)] if minimal_norms.about_norms(board) else [],
        "minimal_norms": [minimal_norms.attacks(board, compared) for compared in board.minimal_norms],
        "reaches": [minimal_norms.reaches(board, compared) for compared in board.minimal_norms],
        "draws": [robustness.draws(board)],
        "aimed": [robustness.aimed(board)],
        "further": [robustness.further(board)],
        "rounding": [robustness.rounding(board)],
        "corruptions": [robustness.corruptions(board)],
        "classes": list(classes.per_class(board)),
        "checks": [method.checks(board, compared=detail is Detail.README)],
        "data": [method.data(board)],
        "specifications": [robustness.specifications(board).without_empty()],
        "models": [method.models(board)],
        "components": [method.components(board)],
        "training": [making.training(board)],
        "remarks": [method.remarks(board)],
        "troubles": [method.troubles(board)],
    }
    kept = {part: [sheet.upto(detail) for sheet in made if sheet.lines] for part, made in found.items()}
    # In CSV, tables of one kind stand below one heading, and each number beside its samples.
    if detail is Detail.DATA:
        return kept
    apart = {part: [one for sheet in kept[part] for one in by_samples(sheet.without_empty())] for part in _CHANGES}
    return kept | apart
