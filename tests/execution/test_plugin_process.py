"""What the process of a metric sends is checked again where it is kept."""

from __future__ import annotations

import json
import threading
from multiprocessing import Pipe
from typing import Any

import pytest
from board_cells import A_MODEL
from stores import finished, row

from robbench.core.errors import Breach
from robbench.execution.plugin_process import Lost, PluginFailure, receive, send, with_foreign_metrics
from robbench.results.schema import Measure, Record


def measured(figures: Any) -> Record:
    """A record with figures that came so from a metric's process."""
    record, outcome = finished(row(A_MODEL)[1])
    assert outcome is not None
    ours, theirs = Pipe()

    def answer() -> None:
        receive(theirs, 1 << 30)
        send(theirs, figures if "error" in figures else {"figures": figures})

    thread = threading.Thread(target=answer)
    thread.start()
    with ours, theirs:
        try:
            return with_foreign_metrics(record, outcome, "digest", ours)
        finally:
            thread.join()


def test_figures_of_plugins_stand_beside_the_others() -> None:
    known = finished(row(A_MODEL)[1])[0].metrics
    found = measured({"mine": {"seen": [0.5, None, None, 40], "seen/1": [1, 0.5, 1.0, 20]}, "other": {}})
    own = {"seen": Measure(0.5, None, None, 40), "seen/1": Measure(1.0, 0.5, 1.0, 20)}
    assert found.metrics == {**known, **own}
    assert found.metrics_digest == "digest"


@pytest.mark.parametrize(
    ("figures", "error"),
    [
        ({"mine": {"robust_accuracy": [1.0, None, None, 40]}}, Breach),
        ({"mine": {"worst_of_10": [1.0, None, None, 40]}}, Breach),
        ({"a": {"seen": [1, None, None, 1]}, "b": {"seen": [1, None, None, 1]}}, Breach),
        ({"mine": {"\u202eseen": [1, None, None, 1]}}, Breach),
        ({"mine": {"seen/9": [1, None, None, 1]}}, Breach),
        ({"mine": {f"f{number}": [1, None, None, 1] for number in range(101)}}, Breach),
        ({"mine": {"seen": [json.loads("NaN"), None, None, 1]}}, Breach),
        ({"mine": {"seen": [10**400, None, None, 1]}}, Breach),
        ({"mine": {"seen": [2, 0, 1, 1]}}, Breach),
        ({"mine": {"seen": [1, None, None, "many"]}}, Breach),
        ({"mine": {"seen": [1, 2, 3, 4, 5]}}, Lost),
        ({"mine": {"seen": 1}}, Lost),
        ({"mine": [1]}, Lost),
        ([], Lost),
        ({"error": "no\x1b[2J"}, PluginFailure),
    ],
)
def test_what_is_no_figure_of_its_own_is_refused(figures: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        measured(figures)
