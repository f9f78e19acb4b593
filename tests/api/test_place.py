from __future__ import annotations

from dataclasses import replace

import numpy as np
from board_cells import A_MODEL, CLEAN, FGSM, TOYS, Cell, cell, model, outcome
from stores import B_MODEL, LABELS, attacked, under_pgd

from robbench import Report
from robbench.api.place import place_on
from robbench.results.schema import ModelSpec

MODEL = model("own")


def report(name: str, *cells: Cell) -> Report:
    return Report(name, TOYS, cells)


def rows(left: int, *, flags: dict[str, str] | None = None) -> list[Cell]:
    """A model of whose 40 images some are robust."""
    clean, (record, found) = under_pgd(MODEL, left)
    return [clean, (record.model_copy(update={"flags": flags or {}}), found)]


def board(*left: int) -> Report:
    pairs = zip((A_MODEL, B_MODEL), left, strict=False)
    return report("theirs", *(one for model, n in pairs for one in under_pgd(model, n)))


def test_a_place_counts_the_rows_that_are_more_robust() -> None:
    theirs = board(30, 20)
    for left, place in ((35, 1), (25, 2), (10, 3)):
        line = place_on(report("own", *rows(left)), theirs)
        assert line is not None
        assert line.startswith(f"theirs: place {place} of 3 at Linf 0.1, where the first has 75.0 ")
        assert "other" not in line


def test_what_the_audit_objects_to_has_no_place() -> None:
    line = place_on(report("own", *rows(40, flags={"zero-gradient": "masked"})), board(30, 20))
    assert line == "theirs: no place at Linf 0.1, since the audit objects"


def test_other_attacks_and_other_images_are_told() -> None:
    clean, (record, found) = rows(25)
    assert found is not None
    some = replace(found, **{name: value[:20] for name, value in vars(found).items() if np.shape(value)[:1] == (40,)})
    line = place_on(report("own", clean, (record, some)), board(30))
    assert line is not None
    assert line.endswith("; other images were attacked there")
    line = place_on(report("own", *rows(25), cell(MODEL, FGSM, attacked(30))), board(30))
    assert line is not None
    assert line.endswith("; other attacks were run there")


def test_other_data_and_other_threat_models_give_no_place() -> None:
    clean, (record, found) = rows(25)
    assert found is not None
    dataset = record.spec.dataset.model_copy(update={"fingerprint": "other"})
    moved = [
        (one.model_copy(update={"spec": one.spec.model_copy(update={"dataset": dataset})}), made)
        for one, made in (clean, (record, found))
    ]
    assert place_on(report("own", *moved), board(30)) is None
    assert place_on(report("own", clean), board(30)) is None


def test_a_model_has_no_second_place_on_a_board_that_it_is_on() -> None:
    theirs = board(30, 20)
    assert place_on(report("own", *theirs.cells[:2]), theirs) is None


def test_a_board_that_ranks_by_clean_accuracy_gives_a_place_by_that() -> None:
    def clean(spec: ModelSpec, right: int) -> Cell:
        return cell(spec, CLEAN, outcome("clean", LABELS, np.where(np.arange(40) < right, LABELS, 1 - LABELS)))

    theirs = report("theirs", clean(A_MODEL, 30), clean(B_MODEL, 20))
    for right, place in ((35, 1), (25, 2), (10, 3)):
        line = place_on(report("own", clean(MODEL, right)), theirs)
        assert line is not None
        assert line.startswith(f"theirs: place {place} of 3 by clean accuracy, where the first has 75.0 ")
        assert "other" not in line
