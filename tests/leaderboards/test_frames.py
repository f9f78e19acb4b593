from __future__ import annotations

import numpy as np
from board_cells import A_MODEL, CLEAN, PGD, cell, outcome

from robbench.leaderboards.frames import samples


def test_one_line_per_cell_and_sample() -> None:
    labels = np.array([0, 1, 1])
    cells = [
        cell(A_MODEL, CLEAN, outcome("clean", labels)),
        cell(A_MODEL, PGD, outcome("attack", labels, labels, [0, 1, 0])),
        cell(A_MODEL, PGD, "it broke", seed=1),
    ]
    table = samples(cells)
    assert len(table) == 6
    shares = table.groupby(["condition", "labels"])["robust"].mean()
    assert shares["clean", 1] == 1.0
    assert shares["pgd@0.1", 0] == 1.0
    assert shares["pgd@0.1", 1] == 0.5
    assert set(table["seed"]) == {0}
    assert samples([]).empty
