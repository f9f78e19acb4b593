from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from archives import PUBLISHED
from board_cells import A_MODEL, CLEAN, FGSM, NEXT, PGD, Cell, cell, dataset, model, part, stage
from stores import BOARD, attacked, complaint, fill, publish

from robbench.core.errors import StoreError
from robbench.leaderboards.archive import RECORDS
from robbench.leaderboards.record_lines import read_lines
from robbench.planning.plan import PROTOCOL, cell_key, model_key
from robbench.results.record_keys import check_keys
from robbench.results.schema import ConditionSpec, ModelSpec

BOARDS = sorted(folder for folder in PUBLISHED.iterdir() if folder.is_dir()) if PUBLISHED.is_dir() else []
TRANSFER = stage("transfer").model_copy(update={"through_peers": True})
THROUGH = ConditionSpec(label="transfer", kind="attack", stages=(TRANSFER,))
LEFT = ConditionSpec(label="left", kind="attack", stages=(stage("square"),), check=True, survivors=True)


def keyed(row: ModelSpec, condition: ConditionSpec, **spec: Any) -> Cell:
    """A cell under the keys that its specification gives."""
    record, outcome = cell(row, condition, attacked(40 if condition.kind == "clean" else 30, condition.kind))
    found = record.spec.model_copy(update={"protocol": PROTOCOL, **spec})
    key = model_key(found.precision, found.device, found.dataset, found.model, found.seed, found.start_key)
    found = found.model_copy(update={"model_key": key})
    return record.model_copy(update={"spec": found, "key": cell_key(found, found.peers, found.needs)}), outcome


def checked(*cells: Cell) -> frozenset[str]:
    return check_keys(cells, lambda key: "records.jsonl")


def changed(made: Cell, **spec: Any) -> Cell:
    record, outcome = made
    return record.model_copy(update={"spec": record.spec.model_copy(update=spec)}), outcome


# --- published boards


@pytest.mark.parametrize("folder", BOARDS, ids=lambda folder: folder.name)
def test_every_key_of_a_published_board_follows_from_its_specification(folder: Path) -> None:
    lines = (folder / RECORDS).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert check_keys([(line.record, None) for line in read_lines(lines)], str) == frozenset()


# --- what is changed


def model_with(**update: Any) -> dict[str, Any]:
    return {"model": A_MODEL.model_copy(update=update)}


CHANGES: dict[str, dict[str, Any]] = {
    "another seed": {"seed": 7},
    "another precision": {"precision": "bfloat16"},
    "another device": {"device": "cuda"},
    "other images": {"dataset": dataset().model_copy(update={"fingerprint": "e" * 64})},
    "another version of the data set": {"dataset": dataset().model_copy(update={"version": 2})},
    "another architecture": model_with(architecture=part("resnet18")),
    "a defense": model_with(defenses=(part("fgm"),)),
    "a plugin": model_with(objective=part("cross-entropy").model_copy(update={"source": "0" * 20})),
    "another recipe": model_with(recipe={"epochs": 99}),
    "a start": {"start_key": "0" * 20},
    "more steps": {"condition": PGD.model_copy(update={"stages": (stage("pgd", steps=200),)})},
    "another limit": {"condition": PGD.model_copy(update={"stages": (stage("pgd", eps=0.3, steps=20),)})},
    "a target": {"condition": NEXT},
    "fewer samples": {"condition": PGD.model_copy(update={"sample": 10})},
    "as a check": {"condition": PGD.model_copy(update={"check": True})},
    "peers": {"peers": ("0" * 20,)},
    "needs": {"needs": ("0" * 20,)},
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_record_whose_key_is_not_what_its_specification_gives_is_refused(what: str) -> None:
    made = keyed(A_MODEL, PGD)
    assert checked(made) == frozenset()
    with pytest.raises(StoreError, match=r"records\.jsonl: cell .* follows from its specification"):
        checked(changed(made, **CHANGES[what]))


def test_what_things_are_called_is_no_part_of_a_key() -> None:
    record, outcome = keyed(A_MODEL, PGD)
    spec = record.spec
    other = changed(
        (record, outcome),
        model=spec.model.model_copy(update={"label": "my own"}),
        condition=spec.condition.model_copy(update={"label": "an attack"}),
        dataset=spec.dataset.model_copy(update={"label": "pets"}),
    )
    assert checked(other) == frozenset()


def test_a_record_under_the_key_of_another_cell_is_refused() -> None:
    made, other = keyed(A_MODEL, PGD), keyed(A_MODEL, FGSM)
    with pytest.raises(StoreError, match=f"its key is {other[0].key}, but {made[0].key} follows"):
        checked((made[0].model_copy(update={"key": other[0].key}), made[1]))


# --- starts, peers, needs


def test_a_start_is_the_row_of_that_name_where_records_do_not_tell_its_key() -> None:
    base = keyed(A_MODEL, CLEAN)
    tuned = keyed(model("tuned").model_copy(update={"start": "a"}), CLEAN, start_key=base[0].spec.model_key)
    assert checked(base, tuned) == checked(base, changed(tuned, start_key=None)) == frozenset()
    assert checked(tuned) == frozenset()
    assert checked(changed(tuned, start_key=None)) == {"of models that start from a row that is not there"}
    with pytest.raises(StoreError, match="the key of its model"):
        checked(base, changed(tuned, start_key=None, model=tuned[0].spec.model.model_copy(update={"start": None})))


def test_published_weights_to_start_from_are_known_by_their_name() -> None:
    made = keyed(model("tuned").model_copy(update={"start": "ImageNet (x)"}), CLEAN, start_key="ImageNet (x)")
    assert checked(made) == checked(changed(made, start_key=None)) == frozenset()


def test_peers_are_the_other_rows_where_records_do_not_tell_them() -> None:
    rows = [A_MODEL.model_copy(update={"label": name, "recipe": {"epochs": at}}) for at, name in enumerate("bc", 1)]
    others = [keyed(one, CLEAN) for one in rows]
    peers = tuple(sorted(record.spec.model_key for record, _ in others))
    made = keyed(A_MODEL, THROUGH, peers=peers)
    assert checked(made) == checked(made, *others) == checked(changed(made, peers=()), *others) == frozenset()
    assert checked(changed(made, peers=()), others[0]) == {"of cells that rest on others and do not name them"}
    with pytest.raises(StoreError, match="its key"):
        checked(changed(made, peers=peers[:1]), *others)


def test_images_that_others_left_rest_on_cells_that_newer_records_name() -> None:
    made = keyed(A_MODEL, LEFT, needs=("1" * 20, "0" * 20))
    assert checked(made) == frozenset()
    assert checked(changed(made, needs=())) == {"of cells that rest on others and do not name them"}


def test_keys_of_another_protocol_are_told_as_not_checked() -> None:
    assert checked(changed(keyed(A_MODEL, PGD), protocol=1)) == {"of protocol 1"}


# --- publishing


def test_a_board_of_others_under_wrong_keys_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = fill(tmp_path / "runs", [keyed(A_MODEL, CLEAN), keyed(A_MODEL, PGD)])
    assert publish(fill(tmp_path / "others", [keyed(A_MODEL, CLEAN), keyed(A_MODEL, PGD)]), tmp_path / "theirs") == 0
    path = tmp_path / "theirs" / BOARD / RECORDS
    text = path.read_text()
    assert '"steps":20' in text
    path.write_text(text.replace('"steps":20', '"steps":200'))
    capsys.readouterr()
    shown = complaint(publish(store, tmp_path / "site", "--from", str(path.parent)), capsys)
    assert str(path) in shown
    assert "follows from its specification" in shown


def test_what_could_not_be_checked_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [changed(keyed(A_MODEL, condition), protocol=1) for condition in (CLEAN, PGD)]
    assert publish(fill(tmp_path / "runs", cells), tmp_path / "site") == 0
    assert "some keys could not be checked, those of protocol 1" in " ".join(capsys.readouterr().out.split())
