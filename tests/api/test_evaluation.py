from __future__ import annotations

import json
import math
import os
import shutil
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from robbench.api.evaluation import evaluate
from robbench.api.report import Report
from robbench.cli.main import main
from robbench.core.errors import RequestError
from robbench.results.store import Store

ATTACKS = ("fgsm@8/255", "pgd[steps=5]@8/255", "square[queries=20]@8/255", "gaussian-noise")
NET = textwrap.dedent(
    """
    import torch
    from torch import nn

    def make(classes=3, channels=1, size=8):
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(channels, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(size * size, classes))
    """
)
GRID = """
datasets = [{ name = "arrays", path = "FILE", label = "images", num_classes = 3, split = [0, 0, 1] }]
conditions = CONDITIONS
[[models]]
external = "net.py:make"
"""


def images(count: int = 40, classes: int = 3, shape: tuple[int, ...] = (1, 8, 8)) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(0)
    return rng.random((count, *shape), dtype=np.float32), rng.integers(0, classes, count)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a network and images, where nobody says that data lies elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROBBENCH_DATA", raising=False)
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    x, y = images()
    np.savez(tmp_path / "images.npz", images=x, labels=y)
    return tmp_path


def network(folder: Path) -> nn.Module:
    found: dict[str, Any] = {}
    exec((folder / "net.py").read_text(encoding="utf-8"), found)
    made: nn.Module = found["make"]()
    return made


def outcomes(report: Report) -> dict[str, str]:
    return {label: report.outcome(label).sha256() for label in report.conditions}


@pytest.mark.end_to_end
def test_shell_python_and_a_grid_give_the_same_arrays(folder: Path) -> None:
    named = evaluate("net.py:make", "images.npz", attacks=ATTACKS, out="named")
    live = evaluate(network(folder), images(), attacks=ATTACKS)
    words = [word for attack in ATTACKS for word in ("--attack", attack)]
    assert main(["evaluate", "net.py:make", "--dataset", "images.npz", "--out", "shell", *words]) == 0
    text = GRID.replace("FILE", str(folder / "images.npz")).replace("CONDITIONS", json.dumps(["clean", *ATTACKS]))
    (folder / "grid.toml").write_text(text, encoding="utf-8")
    assert main(["run", "--grid", "grid.toml", "--out", "grid"]) == 0
    import robbench

    found = outcomes(named)
    assert set(found) == {"clean", *ATTACKS}
    assert outcomes(live) == outcomes(robbench.load("shell")) == outcomes(robbench.load("grid")) == found
    fooled = named.outcome("pgd[steps=5]@8/255")
    assert fooled.attempted.any()
    assert not fooled.robust.all()


def test_a_folder_is_told_from_a_data_set(folder: Path) -> None:
    """``./name`` is the folder where a data set has that name."""
    (folder / "mine").mkdir()
    (folder / "digits").mkdir()
    for place in ("mine", "digits"):
        x, y = images()
        np.savez(folder / place / "images.npz", images=x, labels=y)
    for data in ("mine", "./digits", Path("digits")):
        assert evaluate("net.py:make", data, attacks=["fgsm@ref"], limit=6).accuracy().n == 6, data
    with pytest.raises(RequestError, match="3×32×32"):
        evaluate("net.py:make", "digits", attacks=["fgsm@ref"], limit=6)


def test_a_model_is_told_by_its_content_and_not_by_its_path(folder: Path) -> None:
    first = evaluate("net.py:make", "images.npz", attacks=ATTACKS[:1], out="runs")
    (folder / "elsewhere").mkdir()
    shutil.move("net.py", "elsewhere/net.py")
    shutil.move("images.npz", "elsewhere/images.npz")
    again = evaluate("elsewhere/net.py:make", "elsewhere/images.npz", attacks=ATTACKS[:1], out="runs")
    keys = {record.key for record, _ in first.cells}
    assert {record.key for record, _ in again.cells} == keys == set(Store(folder / "runs").keys("cells"))
    assert str(folder) not in "".join(record.to_json() for record, _ in again.cells)
    other = (folder / "elsewhere" / "net.py").read_text(encoding="utf-8").replace("manual_seed(1)", "manual_seed(2)")
    (folder / "elsewhere" / "net.py").write_text(other, encoding="utf-8")
    changed = evaluate("elsewhere/net.py:make", "elsewhere/images.npz", attacks=ATTACKS[:1], out="runs")
    assert keys.isdisjoint(record.key for record, _ in changed.cells)


def test_what_a_command_line_names_may_be_no_utf_8(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def odd(text: str) -> str:
        return os.fsdecode(text.encode() + b"\xe9")

    source = (folder / "net.py").read_text(encoding="utf-8") + "\ndef said(word):\n    return make()\n"
    (folder / f"{odd('net')}.py").write_text(source, encoding="utf-8")
    shutil.copy("images.npz", f"{odd('images')}.npz")
    model, data = f"{odd('net')}.py:said", ["--dataset", f"{odd('images')}.npz", "--argument", f"word={odd('w')}"]
    command = ["evaluate", model, *data, "--out", odd("runs"), "--name", odd("mine"), "--attack", "fgsm@8/255"]
    assert main([*command, "--save", odd("saved")]) == 0
    assert capsys.readouterr().out.startswith("mine?")
    assert main(["report", "--out", odd("runs")]) == 0
    import robbench

    (record, _), *_ = robbench.load(odd("runs")).cells
    assert record.spec.model.label == "mine?"
    assert record.spec.model.external is not None
    assert record.spec.model.external.identity["arguments"] == {"word": "w\\udce9"}


@pytest.mark.end_to_end
def test_a_model_that_answers_scores_or_labels_is_attacked_without_gradients(folder: Path) -> None:
    net = network(folder).eval()

    def scores(batch: NDArray[Any]) -> NDArray[Any]:
        with torch.no_grad():
            found: NDArray[Any] = net(torch.from_numpy(batch)).numpy()
        return found

    def labels(batch: NDArray[Any]) -> NDArray[Any]:
        found: NDArray[Any] = scores(batch).argmax(axis=1)
        return found

    x, y = images()
    for model, needs in ((scores, {"scores", "decisions", "nothing"}), (labels, {"decisions", "nothing"})):
        data: Any = (
            (x, y) if model is scores else {"name": "arrays", "path": str(folder / "images.npz"), "num_classes": 3}
        )
        report = evaluate(model, data, preset="quick")
        attacked = [record for record, _ in report.cells if record.spec.condition.kind == "attack"]
        assert attacked
        assert all(record.status == "done" for record, _ in report.cells)
        assert not any(stage.white_box for record in attacked for stage in record.spec.condition.stages)
        answers = report.cells[0][0].spec.model.external
        assert answers is not None
        assert answers.identity["answers"] == model.__name__
        assert "scores" in needs or model is labels
    asked = evaluate(scores, (x, y), attacks=["pgd@8/255", "square[queries=5]@8/255"])
    (refused,) = [record for record, _ in asked.cells if record.status == "unsupported"]
    assert refused.reason == "needs gradients; the model answers scores alone"


def test_all_images_of_ones_own_are_test_images_and_classes_may_be_empty(folder: Path) -> None:
    x, _ = images(12)
    report = evaluate(network(folder), (x, np.zeros(12, dtype=int)), attacks=["fgsm@8/255"])
    assert report.board.dataset.counts["test"] == (12, 0, 0)
    assert report.outcome("clean").ids.tolist() == list(range(12))


def test_sizes_of_the_users_own_take_the_place_of_the_data_sets(folder: Path) -> None:
    report = evaluate(
        network(folder), images(), preset="quick", eps={"linf": ["1/255", "3/255"], "l2": [0.5]}, name="mine"
    )
    assert "apgd-margin[steps=20]@1/255" in report.conditions
    assert report.rows == ("mine",)
    assert report.board.ranked_by == "Linf 3/255"


def test_a_data_set_of_torch_and_pictures_are_images(folder: Path) -> None:
    from PIL import Image

    x, y = images(9)
    pairs = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    first = evaluate(network(folder), pairs, attacks=["fgsm@8/255"])
    assert first.outcome("clean").labels.tolist() == y.tolist()
    pictures = [(Image.fromarray((255 * one[0]).astype(np.uint8)), int(label)) for one, label in zip(x, y, strict=True)]
    second = evaluate(network(folder), pictures, attacks=["fgsm@8/255"])
    assert second.outcome("clean").labels.tolist() == y.tolist()


def test_images_of_any_number_of_channels_come_as_tensors(folder: Path) -> None:
    for shape in ((5, 6, 6), (3, 6, 3)):
        net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 3))
        x, y = (torch.from_numpy(part) for part in images(9, shape=shape))
        whole = evaluate(net, (x, y), attacks="fgsm@8/255")
        pairs = evaluate(net, [*zip(x.bfloat16(), y.tolist(), strict=True)], attacks="fgsm@8/255")
        for report in (whole, pairs):
            wanted = net(x if report is whole else x.bfloat16().float()).argmax(1)
            assert report.outcome("clean").clean.tolist() == wanted.tolist()


def test_a_function_must_not_change_the_network_that_it_calls(folder: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(RequestError, match=r"in training mode.*\.eval\(\)"):
        evaluate(lambda batch: net(batch), images(9), attacks="fgsm@8/255")
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    net.eval()
    report = evaluate(lambda batch: net(batch), images(9), attacks="fgsm@8/255")
    assert report.rows == ("<lambda>",)
    loose = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 3))
    report = evaluate(lambda batch: loose(batch), images(9), attacks="fgsm@8/255")
    assert "calls a network in training mode: its dropout is random" in report.cells[0][0].notes


def test_two_pairs_are_a_data_set(folder: Path) -> None:
    x, y = images(2)
    report = evaluate(network(folder), [(x[0], int(y[0])), (x[1], int(y[1]))], attacks="fgsm@8/255")
    assert report.outcome("clean").labels.tolist() == y.tolist()


def test_a_single_value_needs_no_list_around_it(folder: Path) -> None:
    options: dict[str, Any] = {"preset": "quick", "limit": 5}
    one = evaluate(network(folder), images(), eps="3/255", mean=0.5, std=0.25, input_size=8, **options)
    lists: dict[str, Any] = {"eps": {"linf": np.array([3 / 255])}, "mean": torch.tensor([0.5]), "std": np.array([0.25])}
    many = evaluate(
        network(folder),
        images(),
        input_size=(8, 8),
        **lists,
        **options,
    )
    assert outcomes(one) == outcomes(many)


def test_a_model_of_labels_alone_is_told_how_many_classes_there_are(folder: Path) -> None:
    x, y = images(12)
    report = evaluate(
        lambda batch: batch[:, 0, 0, 0].gt(0.5).long(),
        (x, y.clip(max=1)),
        attacks="noise-search[draws=3]@8/255",
        num_classes=4,
    )
    assert len(report.board.dataset.class_names) == 4
    assert "outputs-probabilities" not in report.flags()


def test_a_model_whose_metadata_depend_on_the_number_of_classes_is_itself_in_the_workers(folder: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez("big.npz", images=rng.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8), labels=[0, 7, 43, 999])
    report = evaluate("torchvision:squeezenet1_1", "big.npz", attacks="fgsm@2/255", input_size=32)
    assert [record.status for record, _ in report.cells] == ["done", "done"]
    external = report.cells[0][0].spec.model.external
    assert external is not None
    assert external.identity["mean"] == [0.485, 0.456, 0.406]
    assert len(report.board.dataset.class_names) == 1000


@pytest.mark.parametrize(
    ("model", "data", "options", "told"),
    [
        ("nt.py:make", "images.npz", {}, "nt.py"),
        ("net.py:mak", "images.npz", {}, "make"),
        ("net.py:make", "imagse.npz", {}, "imagse.npz"),
        ("net.py:make", "digits", {}, "3×32×32"),
        ("net.py:make", "images.npz", {"preset": "quik"}, "quick"),
        ("net.py:make", "images.npz", {"attacks": ["pgdd@8/255"]}, "pgd"),
        ("net.py:make", "images.npz", {"eps": ["-1"]}, "positive sizes"),
        ("net.py:make", "images.npz", {"eps": 8}, "did you mean 8/255?"),
        ("net.py:make", "images.npz", {"attacks": ["clean", "fgsm@8"]}, "did you mean 8/255?"),
        ("net.py:make", "images.npz", {"arguments": {"classes": 1}}, "1"),
        ("net.py:make", "named.npz", {"arguments": {"classes": 4}}, "knows 4 classes, named has 3"),
        ("net.py:make", "signed.npz", {}, "labels go from -1 to 1"),
        ("net.py:make", [(np.zeros((1, 8, 8)), 0), (np.zeros((1, 8, 9)), 1)], {}, "several shapes"),
        ("net.py:make", [], {}, "no image"),
        ("net.py:make", "images.npz", {"limit": 0}, "write 1 or more"),
        ("net.py:make", "images.npz", {"seed": -1}, "-1"),
        ("net.py:make", "images.npz", {"device": "gpu"}, "cpu"),
        (3, "images.npz", {}, "no model"),
        ("net.py:make", 3, {}, "no data"),
    ],
)
def test_what_cannot_be_had_is_said_in_a_line(
    folder: Path, model: Any, data: Any, options: dict[str, Any], told: str
) -> None:
    x, y = images()
    np.savez(folder / "named.npz", images=x, labels=y, class_names=np.array(["0", "1", "2"]))
    np.savez(folder / "signed.npz", images=x, labels=y - 1)
    with pytest.raises(RequestError, match=r"^[^\n]*$") as caught:
        evaluate(model, data, out="runs", **options)
    assert told in str(caught.value)
    assert not (folder / "runs" / "cells").exists()


def test_the_command_exits_with_1_where_a_threshold_is_missed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "net.py:make", "--dataset", "images.npz", "--attack", "fgsm@8/255"]
    assert main([*words, "--fail-below", "linf:8/255=100"]) == 1
    assert main([*words, "--fail-below", "linf:8/255=0"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clean"]["n"] == 40


@pytest.mark.parametrize(
    ("threshold", "told"),
    [
        ("linf:2/255=40", "no attack was run within linf 2/255; there are linf 8/255"),
        ("l2:0.5=40", "there are linf 8/255"),
        ("linf:1=40", "there are linf 8/255"),
        ("fgsm@4/255=40", 'did you mean "fgsm@8/255"'),
        ("ddn=40", "smallest change"),
    ],
)
def test_a_threshold_of_what_is_not_attacked_is_refused_before_anything_is(
    folder: Path, capsys: pytest.CaptureFixture[str], threshold: str, told: str
) -> None:
    words = ["evaluate", "net.py:make", "--dataset", "images.npz", "--attack", "fgsm@8/255", "--attack", "ddn"]
    assert main([*words, "--audit", "--fail-below", "clean=1", "--fail-below", threshold]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("robbench: --fail-below: ")
    assert told in line
    assert not list((folder / "runs").glob("cells/*"))
    assert not list((folder / "runs").glob("leaderboards/*"))


def test_nor_of_a_condition_that_the_model_does_not_bear(folder: Path) -> None:
    attacks = ["fgsm@8/255", "noise-search[draws=2]@8/255"]
    asked: dict[str, Any] = {"attacks": attacks, "answers": "labels", "out": "runs"}
    with pytest.raises(RequestError, match=r"fgsm@8/255 is not run: .*gradients"):
        evaluate("net.py:make", images(), thresholds=["fgsm@8/255=40"], **asked)
    with pytest.raises(RequestError, match="there are linf 8/255"):
        evaluate("net.py:make", images(), thresholds=["linf:4/255=40"], **asked)
    assert not (folder / "runs" / "cells").exists()
    report = evaluate("net.py:make", images(), thresholds=["noise-search[draws=2]@8/255=40"], **asked)
    assert report.board.threats


def test_a_limit_keeps_that_many_images(folder: Path) -> None:
    report = evaluate(network(folder), images(), attacks=["fgsm@8/255"], limit=10)
    assert len(report.outcome("clean").ids) == 10


@pytest.mark.end_to_end
def test_a_model_of_a_store_gives_what_its_own_grid_found(folder: Path) -> None:
    import tiny

    text = tiny.grid_text(["defense = 'jpeg'", "objective = 'angular'"], ["clean", "fgsm@8/255"], "epochs = 1")
    (folder / "tiny.toml").write_text(text, encoding="utf-8")
    assert main(["run", "--grid", "tiny.toml", "--out", "runs"]) == 0
    for record, outcome in evaluated_cells(folder / "runs"):
        key = record.spec.model_key
        again = evaluate(f"store:{key[:12]}", tiny.THREE_DIGITS, attacks=["fgsm@8/255"], out="runs")
        assert outcome is not None
        assert again.outcome(record.spec.condition.label).sha256() == outcome.sha256()
        assert again.rows == (f"{record.spec.model.label}, seed 0",)
    with pytest.raises(RequestError, match="trained on the classes 8, 3, 9, the images are of 3, 8, 9"):
        evaluate(f"store:{key}", "digits[classes=3|8|9]", attacks="fgsm@8/255", out="runs")


def test_a_model_of_a_store_that_is_damaged_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import tiny

    text = tiny.grid_text([""], ["clean"], "epochs = 1")
    (folder / "tiny.toml").write_text(text, encoding="utf-8")
    assert main(["run", "--grid", "tiny.toml", "--out", "runs"]) == 0
    (weights,) = (folder / "runs" / "models").glob("*/weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    words = ["--dataset", "digits[classes=3|8|9]", "--attack", "fgsm@8/255", "--out", "runs"]
    assert main(["evaluate", f"store:{weights.parent.name[:9]}", *words]) == 1
    shown = capsys.readouterr().err
    assert f"{weights} is damaged" in shown
    assert "robbench run" in shown


def evaluated_cells(store: Path) -> list[Any]:
    import robbench

    return [cell for cell in robbench.load(store).cells if cell[0].spec.condition.label == "fgsm@8/255"]


def test_paths_are_texts_and_tuples_lists_in_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import robbench

    monkeypatch.setenv("HOME", str(folder))
    text = GRID.replace("FILE", str(folder / "images.npz")).replace("CONDITIONS", '["clean"]')
    (folder / "grid.toml").write_text(text, encoding="utf-8")
    (report,) = robbench.run("grid.toml", out="~/runs", data_dir="~", seeds=[3], overrides=["title='mine'"]).values()
    assert report.note.title == "mine"
    assert report.cells[0][0].spec.seed == 3
    assert (folder / "runs" / "cells").is_dir()
    named = evaluate("net.py:make", "arrays[num_classes=3]", data_dir="~/images.npz", attacks="fgsm@8/255", out="~/own")
    assert named.outcome("clean").ids.tolist() == list(range(40))
    assert (folder / "own" / "cells").is_dir()
