from __future__ import annotations

import numpy as np
from board_cells import CLEAN, PGD, Cell, cell, dataset, model, outcome, part

from robbench.leaderboards import board_data
from robbench.leaderboards.findings import findings


def test_findings_compare_pairs_that_differ_in_one_thing() -> None:
    truth = np.array([0, 0, 1, 1])
    data = dataset(train=(30, 3))
    rows = [
        ("bare", "none", "none", [1, 1, 0, 0], [0, 0, 0, 0]),
        ("hardened", "fgm", "none", [1, 1, 0, 0], [1, 1, 0, 0]),
        ("sampled", "none", "sampler", [1, 1, 1, 1], [0, 0, 0, 0]),
        ("both", "fgm", "sampler", [1, 1, 1, 1], [1, 1, 1, 1]),
    ]
    cells: list[Cell] = []
    for label, defense, balancer, right, robust in rows:
        spec = model(label, defense).model_copy(update={"balancer": part(balancer)})
        decided = np.where(np.array(right) == 1, truth, 1 - truth)
        final = np.where(np.array(robust) == 1, truth, 1 - truth)
        cells.append(cell(spec, CLEAN, outcome("clean", truth, decided), data=data))
        cells.append(cell(spec, PGD, outcome("attack", truth, decided, final), data=data))
    text = " ".join(findings(board_data("Toys", "small", cells)))
    assert "with fgm instead of none moves the worst case from 0.0 to 75.0 % on average over 2 otherwise equal" in text
    assert "higher in 2 of 2" in text
    assert "cat with 3 of 33 training images, is recognised unchanged in 0.0 % on average" in text
    assert "in 100.0 % under the countermeasures (2 rows)" in text
    assert "(2 rows, the highest at place 2 of 4)" in text
