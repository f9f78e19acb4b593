"""Where boards rank: asked for by a grid, noted with the board, heeded by the audit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from grid_files import tiny, write_grid

from robbench.core.threat_model import Norm, Threat
from robbench.data.dataset import EpsList
from robbench.execution.boards import note_boards
from robbench.planning.audit_conditions import ranking_threat
from robbench.planning.conditions import ConditionRequest
from robbench.planning.grid import Request, built_in_grids, parse_grid, ranked_by
from robbench.planning.planner import make_plan
from robbench.results.schema import BoardNote
from robbench.results.store import Store

EPS: dict[Norm, EpsList] = {
    "linf": EpsList((2 / 255, 4 / 255, 8 / 255), 8 / 255),
    "l2": EpsList((0.5, 1.0), 0.5),
    "l0": EpsList((10.0,), 10.0),
}


@pytest.mark.parametrize(
    ("asked", "noted"),
    [
        ("", ""),
        ("linf@8/255", "linf@8/255"),
        ("linf@ref", "linf@8/255"),
        ("linf@0.03137254901960784", "linf@8/255"),
        ("l2@ref", "l2@0.5"),
        ("l2@1/2", "l2@0.5"),
        ("l1@12", "l1@12"),
        ("linf@middle", "linf@4/255"),
        ("l2@middle", "l2@1"),
        ("l0@middle", "l0@10"),
        ("clean", "clean"),
    ],
)
def test_one_size_is_noted_in_one_way(asked: str, noted: str) -> None:
    assert ranked_by(asked, EPS) == noted


@pytest.mark.parametrize(
    "asked",
    [
        "8/255",
        "@8/255",
        "linf@",
        "linf@inf",
        "l1@ref",
        "l1@middle",
        "linf@half",
        "Linf@0.1",
        "linf@0.1@0.2",
        "clean@ref",
    ],
)
def test_what_is_no_size_is_refused(asked: str) -> None:
    with pytest.raises(ValueError, match=r"norm|size|reference|clean"):
        ranked_by(asked, EPS)


def test_built_in_grids_say_nothing_or_something_valid() -> None:
    for name, text in built_in_grids().items():
        ranked_by(parse_grid(text, name).rank_by, EPS)


def test_the_board_notes_it_and_notes_without_it_rank_as_before(tmp_path: Path) -> None:
    write_grid(tmp_path / "grid.toml", tiny(conditions=["clean", "fgsm@0.1", "fgsm@0.2"], rank_by="linf@1/5"))
    store = Store(tmp_path / "runs")
    note_boards(make_plan(Request(grid=str(tmp_path / "grid.toml"), out=store.root, device="cpu")), store)
    (note,) = store.boards().values()
    assert note["rank_by"] == "linf@0.2"
    known = {name: note[name] for name in BoardNote.model_fields}
    assert BoardNote.model_validate(known).rank_by == "linf@0.2"
    older = {name: value for name, value in known.items() if name != "rank_by"}
    assert BoardNote.model_validate_json(json.dumps(older)).rank_by == ""


def test_the_audit_looks_where_the_board_ranks() -> None:
    from subjects import REGISTRY

    reference: dict[Norm, float] = {"linf": 0.1}
    conditions = [
        condition
        for chain in ("fgsm@0.1", "fgsm@0.2")
        for condition in ConditionRequest.read(chain, "test").resolve(
            REGISTRY, {"linf": EpsList((0.1, 0.2), 0.1)}, ("ant", "bee"), "test"
        )
    ]
    assert ranking_threat(conditions, reference) == Threat("linf", 0.1)
    assert ranking_threat(conditions, reference, "linf@0.2") == Threat("linf", 0.2)
