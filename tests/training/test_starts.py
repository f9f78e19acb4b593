from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from grid_files import toml
from safetensors.torch import load_file
from torchvision.models import resnet18 as torchvision_resnet18
from trainings import history

from robbench.core.errors import RequestError
from robbench.evaluation.artifacts import EXAMPLED, in_turn
from robbench.evaluation.evaluator import evaluate
from robbench.evaluation.subject import Subject
from robbench.execution.jobs import carry_out
from robbench.execution.runner import remaining
from robbench.models import resnet18
from robbench.planning.grid import Request
from robbench.planning.inputs import read_request
from robbench.planning.planner import make_plan
from robbench.results.store import EMBEDDINGS, EXAMPLES, Store
from robbench.training.model_loading import load_model
from robbench.training.trainer import train

FIRST = "name = 'first'"
SHIPPED = "name = 'to ship'\nrecipe = { train_on = 'train+test' }"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nothing in torch's cache, and an address where nobody answers."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(resnet18, "IMAGENET_WEIGHTS", "http://127.0.0.1:9/resnet18-00000000.pth")
    return tmp_path / "hub" / "checkpoints"


def published(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """A file of weights in torch's cache whose name tells its hash."""
    buffer = io.BytesIO()
    weights = torchvision_resnet18(weights=None).state_dict()
    torch.save(weights, buffer)
    name = f"resnet18-{hashlib.sha256(buffer.getvalue()).hexdigest()[:8]}.pth"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(buffer.getvalue())
    monkeypatch.setattr(resnet18, "IMAGENET_WEIGHTS", f"http://127.0.0.1:9/{name}")
    return dict(weights)


# --- where training starts from


def test_the_first_start_that_can_be_had_is_taken_and_told(tmp_path: Path, offline: Path) -> None:
    second = "name = 'second'\narchitecture = 'resnet18'\nstart = ['imagenet', 'first']"
    plan = tiny.make(tmp_path, ["name = 'first'\narchitecture = 'resnet18'", second])
    first, other = plan.trained
    assert (other.spec.start, other.start, other.pretrained) == ("first", first.key, False)
    assert "weights from ImageNet cannot be had" in other.notes[0]


def test_weights_from_imagenet_are_the_start_where_they_are(
    tmp_path: Path, offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = published(offline, monkeypatch)
    text = "architecture = 'resnet18'\nstart = ['imagenet', 'first']\nrecipe = { lr = 1e-12, epochs = 1 }"
    plan = tiny.make(tmp_path, ["name = 'first'\narchitecture = 'resnet18'", f"name = 'second'\n{text}"])
    job = plan.trained[1]
    assert job.pretrained
    assert job.start is None
    assert str(job.spec.start).startswith("ImageNet (torchvision, resnet18-")
    assert job.key != plan.jobs[0].key
    store = Store(plan.request.out)
    train(job, store, "cpu", "float32")
    trained = load_file(store.model_dir(job.key) / "weights.safetensors")
    for name in ("conv1.weight", "layer4.1.conv2.weight"):
        torch.testing.assert_close(trained[f"backbone.network.network.{name}"], weights[name], atol=1e-6, rtol=0)
    assert float(trained["backbone.mean"].abs().sum()) > 0, "the normalisation is of the data that are trained on"


def test_weights_that_are_not_the_published_ones_are_refused(
    tmp_path: Path, offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(offline, monkeypatch)
    (file,) = offline.iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    job = tiny.job(tmp_path, "architecture = 'resnet18'\nstart = 'imagenet'")
    with pytest.raises(RequestError, match="is not what torchvision published"):
        train(job, Store(tmp_path / "runs"), "cpu", "float32")


def cached(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The published file in torch's cache, under a name that stays while the file comes and goes."""
    published(folder, monkeypatch)
    (file,) = folder.iterdir()
    return file


CHOOSY = ["name = 'first'\narchitecture = 'resnet18'", "architecture = 'resnet18'\nstart = ['imagenet', 'first']"]


@pytest.mark.parametrize("up_at_first", [False, True])
def test_the_network_is_asked_once(
    tmp_path: Path, offline: Path, monkeypatch: pytest.MonkeyPatch, up_at_first: bool
) -> None:
    file = cached(offline, monkeypatch)
    away = file.rename(tmp_path / "away")

    def keys(folder: str = "one", limit: int | None = None, fresh: bool = False) -> list[str]:
        grid = tmp_path / folder / "tiny.toml"
        grid.parent.mkdir(exist_ok=True)
        grid.write_text(tiny.grid_text(CHOOSY), encoding="utf-8")
        request = Request(grid=str(grid), out=tmp_path / folder / "runs", device="cpu", limit=limit)
        plan = make_plan(read_request(request), fresh)
        return [job.key for job in plan.jobs]

    def turn(up: bool) -> None:
        if file.exists() is not up:
            (away if up else file).rename(file if up else away)

    turn(up_at_first)
    before = keys()
    turn(not up_at_first)
    assert keys() == keys(limit=9) == before, "neither the network nor another option changes what was resolved"
    other = keys("two")
    assert other[0] == before[0]
    assert other[1] != before[1], "another store asks for itself"
    assert keys(fresh=True) == other, "unless it is asked for again"
    turn(up_at_first)
    assert keys() == other


def test_weights_that_were_resolved_and_cannot_be_had_fail_their_row_and_no_other(
    tmp_path: Path, offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = cached(offline, monkeypatch)
    plan = tiny.make(tmp_path, CHOOSY, recipe="epochs = 1")
    file.unlink()
    again = tiny.make(tmp_path, CHOOSY, recipe="epochs = 1")
    assert [job.key for job in again.jobs] == [job.key for job in plan.jobs]
    store, job = Store(again.request.out), again.jobs[1]
    carry_out(again, job, job.cells, lambda progress: None)
    record = store.record(job.cells[0].key)
    assert record is not None
    assert record.status == "failed"
    for part in ("weights from ImageNet cannot be downloaded", "run again when it answers", f"put {file.name} into"):
        assert part in str(record.reason)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"a": ["x"]}'])
def test_a_damaged_answer_is_named_and_asked_for_again(
    tmp_path: Path, offline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    cached(offline, monkeypatch)
    keys = [job.key for job in tiny.make(tmp_path, CHOOSY).jobs]
    (path,) = (tmp_path / "runs" / "starts").iterdir()
    whole = path.read_text()
    path.write_text(text)
    assert [job.key for job in tiny.make(tmp_path, CHOOSY).jobs] == keys
    assert f"{path} is damaged: " in capsys.readouterr().err
    assert path.read_text() == whole


def test_a_grid_that_asks_for_nothing_leaves_no_answers(tmp_path: Path) -> None:
    tiny.make(tmp_path)
    assert not (tmp_path / "runs" / "starts").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("start = 'imagenet'", "CompactCNN has no weights from ImageNet; name a model of the grid behind it"),
        ("architecture = 'resnet18[stem=3x3]'\nstart = 'imagenet'", "fit torchvision's stem"),
        ("start = ['imagenet', 'frist']", 'start" = "frist": no model of that name .* did you mean "first"'),
    ],
)
def test_a_start_that_cannot_be_had_is_refused(tmp_path: Path, offline: Path, model: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        tiny.make(tmp_path, [FIRST, f"name = 'second'\n{model}"])


# --- a model to ship


def test_a_model_that_saw_the_test_images_is_trained_and_never_scored(tmp_path: Path) -> None:
    plan = tiny.make(tmp_path, [FIRST, SHIPPED], conditions=["clean", "fgsm@ref"])
    store = Store(plan.request.out)
    plain, shipped = plan.jobs
    assert shipped.key != plain.key
    for job, cells in remaining(plan, store):
        carry_out(plan, job, cells, lambda progress: None)
    assert store.has_model(shipped.key)
    for cell in shipped.cells:
        record = store.record(cell.key)
        assert record is not None
        assert record.status == "unsupported"
        assert "no unseen data" in str(record.reason)
        assert not (store.cell_dir(cell.key) / "outcome.npz").exists()
    images = [store.model_info(job.key)["training_images"] for job in (plain, shipped)]
    assert images[1] == images[0] + len(plain.data.splits.test)
    assert not remaining(plan, store)


def test_the_field_that_recipes_did_not_have_leaves_old_keys_alone(tmp_path: Path) -> None:
    named = tiny.make(tmp_path, ["recipe = { train_on = 'train' }"]).jobs[0]
    assert named.key == tiny.make(tmp_path, [""]).jobs[0].key


def test_a_row_may_have_fewer_seeds(tmp_path: Path) -> None:
    plan = tiny.make(tmp_path, [FIRST, "name = 'second'\nobjective = 'angular'\nseeds = [1]"], seeds=[0, 1, 2])
    assert [(job.spec.label, job.seed) for job in plan.jobs] == [
        ("first", 0),
        ("first", 1),
        ("second", 1),
        ("first", 2),
    ]
    with pytest.raises(RequestError, match=r"models.0.seeds\": 7 is none of the grid's seeds"):
        tiny.make(tmp_path, ["seeds = [7]"], seeds=[0, 1])


# --- what figures need


def test_embeddings_and_scores_are_kept_where_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(
        tiny.grid_text(conditions=[]).replace(
            "conditions = []",
            "conditions = [{ chain = 'clean', embed = 20 }, { chain = 'fgsm@ref', embed = 1000 }, 'fgsm@0.05']",
        ),
        encoding="utf-8",
    )
    plan = make_plan(Request(grid=str(path), out=tmp_path / "runs", device="cpu"))
    store = Store(plan.request.out)
    (job,) = plan.jobs
    carry_out(plan, job, job.cells, lambda progress: None)
    model = load_model(job, store, "cpu")
    clean, attacked, other = (store.cell_dir(cell.key) for cell in job.cells)
    assert not (other / EMBEDDINGS).exists()
    with np.load(clean / EMBEDDINGS) as found:
        assert found["embeddings"].shape == (20, 128)
        images = torch.from_numpy(job.data.decoded.images[found["ids"]]).float() / 255
        np.testing.assert_allclose(found["embeddings"], model.embed(images).numpy(), atol=1e-5)
        np.testing.assert_array_equal(found["labels"], job.data.splits.labels[found["ids"]])
    with np.load(attacked / EMBEDDINGS) as found, np.load(attacked / EXAMPLES) as shown:
        record = store.record(job.cells[1].key)
        assert record is not None
        outcome = store.outcome(record)
        assert outcome is not None
        assert set(found["ids"]) == set(outcome.ids[outcome.attempted])
        np.testing.assert_allclose(shown["final_scores"].sum(axis=1), 1, atol=1e-5)
        np.testing.assert_array_equal(shown["final_scores"].argmax(axis=1), shown["final"])
        np.testing.assert_array_equal(shown["clean_scores"].argmax(axis=1), shown["clean"])
        at = [int(np.flatnonzero(found["ids"] == number)[0]) for number in shown["ids"]]
        again = model.embed(torch.from_numpy(shown["attacked"])).numpy()
        np.testing.assert_allclose(found["embeddings"][at], again, atol=1e-5)
    with np.load(store.model_dir(job.key) / EMBEDDINGS) as found:
        assert set(found["ids"]) == set(job.data.splits.train), "of at most as many training images"
    (clean / EMBEDDINGS).unlink()
    ((_, left),) = remaining(plan, store)
    assert [cell.key for cell in left] == [job.cells[0].key]
    carry_out(plan, job, left, lambda progress: None)
    with np.load(store.model_dir(job.key) / EMBEDDINGS) as found:
        assert set(found["ids"]) == set(job.data.splits.train), "however many cells were left to do"


def test_training_images_are_embedded_as_often_as_any_grid_asks_whichever_cells_are_left(tmp_path: Path) -> None:
    grid = tmp_path / "tiny.toml"

    def carry(embed: int, last: bool = False) -> int:
        conditions = [{"chain": "clean", "embed": embed}, "fgsm@ref"]
        text = tiny.grid_text(["defense = 'jpeg'"], conditions=[])
        grid.write_text(text.replace("conditions = []", f"conditions = {toml(conditions)}\naudit = true"))
        plan = make_plan(Request(grid=str(grid), out=tmp_path / "runs", device="cpu"))
        (job,) = plan.jobs
        left = [cell for cell in job.cells if cell.condition.undefended] if last else job.cells[:1]
        carry_out(plan, job, left, lambda progress: None)
        store = Store(plan.request.out)
        assert {record.status for cell in left if (record := store.record(cell.key))} == {"done"}
        with np.load(store.model_dir(job.key) / EMBEDDINGS) as found:
            return len(found["ids"])

    assert carry(20, last=True) == 20, "only cells without the defense are left"
    assert carry(30) == 30
    assert carry(10) == 30, "another grid asked for more"


@pytest.mark.parametrize("labels", [[0, 1] * 20, [0] * 40 + [1] * 2 + [2], [0] * 3, []])
def test_examples_are_of_all_classes_in_turn(labels: list[int]) -> None:
    chosen = in_turn(np.array(labels, dtype=np.int64))
    shown, ids = [labels[at] for at in chosen], chosen.tolist()
    assert len(shown) == len(set(ids)) == min(EXAMPLED, len(labels))
    assert set(shown[: len(set(labels))]) == set(labels)
    assert [labels[number] for number in ids] == shown


def test_embeddings_of_no_image_are_none(tmp_path: Path) -> None:
    job = tiny.job(tmp_path)
    store = Store(tmp_path / "runs")
    train(job, store, "cpu", "float32")
    test = job.data.splits.take(job.data.decoded, job.data.splits.test)
    wrong = replace(test, labels=(test.labels + 1) % 3)
    subject = Subject(
        load_model(job, store, "cpu"),
        wrong,
        test.labels,
        num_classes=3,
        class_names=("8", "3", "9"),
        seed=0,
        split_seed=0,
    )
    condition = tiny.make(tmp_path, conditions=["fgsm@ref"]).jobs[0].cells[0].condition
    result = evaluate(subject, replace(condition, embed=5))
    with np.load(io.BytesIO(result.extras[EMBEDDINGS])) as found:
        assert len(found["ids"]) == 0


# --- conditions


@pytest.mark.parametrize(("wanted", "target"), [("pgd@ref->#1", "3"), ("pgd@ref->#0", "8")])
def test_a_target_may_be_named_by_its_index(tmp_path: Path, wanted: str, target: str) -> None:
    condition = tiny.make(tmp_path, conditions=[wanted]).jobs[0].cells[0].condition
    assert condition.target == target
    assert condition.label.endswith(f"->{target}")


@pytest.mark.parametrize("wanted", ["pgd@ref->#3", "pgd@ref->#-1", "pgd@ref->#²", "pgd@ref->#"])
def test_an_index_beyond_the_classes_is_refused(tmp_path: Path, wanted: str) -> None:
    with pytest.raises(RequestError, match="they are numbered #0 to #2"):
        tiny.make(tmp_path, conditions=[wanted])


def test_history_is_kept_with_what_each_epoch_found(tmp_path: Path) -> None:
    job = tiny.job(tmp_path, recipe="epochs = 3, keep = 'best'")
    store = Store(tmp_path / "runs")
    train(job, store, "cpu", "float32")
    lines = history(job, store)
    kept = store.model_info(job.key)["kept"]
    best = max(line["validation_balanced_accuracy"] for line in lines)
    assert kept["validation_balanced_accuracy"] == pytest.approx(best)
