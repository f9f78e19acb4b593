from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import Tensor

from robbench.cli.main import main
from robbench.conformance import check
from robbench.core.contracts import Samples
from robbench.core.errors import RequestError
from robbench.core.global_rng import GlobalState
from robbench.core.registry import Registry
from robbench.core.safe_text import csv_text, visible
from robbench.data.balancing.suspects import Suspects, WithoutSuspects, suspects
from robbench.data.cache import load
from robbench.data.datasets.digits import Digits
from robbench.data.label_issues import examine, write
from robbench.data.splits import split
from robbench.leaderboards.plots._label_sheet import SHOWN, label_sheet
from robbench.planning.planner import load_data
from robbench.results.store import Store
from robbench.training.trainer import train

SHARE = 0.1


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """Some 300 digits as they are."""
    dataset = Digits(classes=("0", "1", "2", "3", "4"), train_fraction=0.6)
    decoded = load(dataset, None, tmp_path_factory.mktemp("digits"))
    splits = split(dataset, decoded)
    return splits.take(decoded, splits.train)


def planted(samples: Samples, num_classes: int, share: float = SHARE, seed: int = 0) -> tuple[Samples, Tensor]:
    """The samples with a share of the labels replaced by others; and the ids of these."""
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.randperm(len(samples), generator=generator)[: round(share * len(samples))]
    labels = samples.labels.clone()
    moves = torch.randint(1, num_classes, (len(wrong),), generator=generator)
    labels[wrong] = (labels[wrong] + moves) % num_classes
    return replace(samples, labels=labels), samples.ids[wrong]


def blocks(sizes: tuple[int, ...], seed: int = 0) -> Samples:
    """Classes that nobody can confuse: noise with a bright bar, whose place is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    images = torch.randint(0, 60, (len(labels), 3, 16, 16), generator=generator).to(torch.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, 4 * label : 4 * label + 3] += 180
    return Samples(images, labels, 7 * torch.arange(len(labels)) + 1)


@pytest.fixture(scope="module")
def flipped(digits: Samples) -> tuple[Samples, Tensor, Suspects]:
    samples, wrong = planted(digits, 5)
    return samples, wrong, suspects(samples, 5, 0)


# --- finding them


def test_planted_errors_are_found_and_little_else(flipped: tuple[Samples, Tensor, Suspects], digits: Samples) -> None:
    _, wrong, found = flipped
    hits = np.isin(found.ids, wrong.numpy())
    assert hits.sum() / len(wrong) > 0.6
    assert hits.mean() > 0.7
    truth = dict(zip(digits.ids.tolist(), digits.labels.tolist(), strict=True))
    righted = [
        truth[int(id_)] == suggested for id_, suggested in zip(found.ids[hits], found.suggested[hits], strict=True)
    ]
    assert np.mean(righted) > 0.8
    assert hits[: len(wrong) // 2].mean() > 0.9, "the worst come first"


def test_a_listing_says_what_it_is_about(flipped: tuple[Samples, Tensor, Suspects]) -> None:
    samples, _, found = flipped
    given = dict(zip(samples.ids.tolist(), samples.labels.tolist(), strict=True))
    assert [given[int(id_)] for id_ in found.ids] == found.given.tolist()
    assert (found.given != found.suggested).all()
    assert len(set(found.ids.tolist())) == len(found) > 0
    assert (np.diff(found.scores) >= 0).all()
    assert 0 <= found.scores.min() <= found.scores.max() < 0.5
    assert 0.75 < found.balanced_accuracy < 0.95


@pytest.mark.parametrize("sizes", [(40, 40), (60, 12, 6), (20, 20, 20, 20)])
def test_classes_that_nobody_can_confuse_have_no_suspects(sizes: tuple[int, ...]) -> None:
    assert len(suspects(blocks(sizes), len(sizes), 0)) <= 1
    samples, wrong = planted(blocks(sizes), len(sizes), 0.05)
    found = suspects(samples, len(sizes), 0)
    assert set(wrong.tolist()) <= set(found.ids.tolist())
    assert len(found) <= len(wrong) + 2


def test_the_order_of_the_samples_makes_no_difference(digits: Samples) -> None:
    samples, _ = planted(digits[digits.labels < 3][torch.arange(100)], 3)
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(1))
    before = GlobalState.now()
    one, other = suspects(samples, 3, 0), suspects(samples[order], 3, 0)
    assert GlobalState.now() == before
    for name in ("ids", "given", "suggested", "scores"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    again, another = suspects(samples, 3, 0), suspects(samples, 3, 1)
    np.testing.assert_array_equal(one.scores, again.scores)
    assert one.scores.tolist() != another.scores.tolist()


def test_an_image_is_judged_by_models_that_did_not_see_it() -> None:
    samples = blocks((30, 30))
    noise = torch.randint(0, 256, samples.images.shape, generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    assert suspects(replace(samples, images=noise), 2, 0).balanced_accuracy < 0.75


def test_a_class_with_one_image_is_refused() -> None:
    for sizes in ((9, 1), (9, 0, 4)):
        with pytest.raises(RequestError, match="at least two images of every class"):
            suspects(blocks(sizes), len(sizes), 0)
        assert WithoutSuspects().refusal(torch.tensor(sizes)) is not None
    assert len(suspects(blocks((9, 2)), 2, 0)) <= 1
    assert WithoutSuspects().refusal(torch.tensor((9, 2))) is None


# --- leaving them out


def test_what_is_left_out_are_suspects_and_mostly_planted_ones(flipped: tuple[Samples, Tensor, Suspects]) -> None:
    samples, wrong, found = flipped
    kept, (note,) = WithoutSuspects(share=0.5).resample(samples, Digits(), 0)
    left_out = np.setdiff1d(samples.ids.numpy(), kept.ids.numpy())
    assert sorted(left_out) == sorted(found.ids)
    assert np.isin(left_out, wrong.numpy()).mean() > 0.6
    counts = "/".join(map(str, np.bincount(found.given, minlength=5)))
    assert note == f"left out {counts} images per class, whose labels look wrong"
    where = torch.isin(samples.ids, kept.ids)
    for name in ("images", "labels", "ids"):
        assert torch.equal(getattr(kept, name), getattr(samples, name)[where])


@pytest.mark.parametrize("share", [0.01, 0.3, 0.99])
@pytest.mark.parametrize("sizes", [(40, 3, 2), (12, 12), (2, 2)])
def test_no_class_loses_more_than_its_share_or_all(sizes: tuple[int, ...], share: float) -> None:
    samples, _ = planted(blocks(sizes), len(sizes), 0.5)
    counts = samples.counts(len(sizes))
    if counts.min() < 2:
        samples, counts = blocks(sizes), torch.tensor(sizes)
    kept, _ = WithoutSuspects(share=share).resample(samples, Digits(), 0)
    left = kept.counts(len(sizes))
    assert (left >= 1).all()
    assert (counts - left <= share * counts).all()


def test_the_worst_of_a_class_go_first(flipped: tuple[Samples, Tensor, Suspects]) -> None:
    samples, _, found = flipped
    kept, _ = WithoutSuspects(share=0.05).resample(samples, Digits(), 0)
    left_out = np.setdiff1d(samples.ids.numpy(), kept.ids.numpy())
    for label in range(5):
        limit = int(0.05 * (samples.labels == label).sum())
        assert set(found.ids[found.given == label][:limit]) == set(left_out) & set(found.ids[found.given == label])
    assert 0 < len(left_out) < len(found)


def test_a_tiny_class_of_strangers_stays(digits: Samples) -> None:
    """Two images of another kind: nothing that was learned from one helps with the other."""
    few = digits[torch.cat([(digits.labels == 1).nonzero().flatten(), (digits.labels == 4).nonzero().flatten()[:2]])]
    kept, _ = WithoutSuspects(share=0.99).resample(replace(few, labels=(few.labels == 4).long()), Digits(), 0)
    assert (kept.labels == 1).sum() >= 1


def test_the_balancer_keeps_the_rules() -> None:
    findings = check(Registry(installed=False), "balancer", "without-suspects")
    assert findings
    assert [finding for finding in findings if finding.passed is False] == []


def test_it_is_a_row_like_any_other(tmp_path: Path) -> None:
    plan = tiny.make(tmp_path, ["", "balancer = 'without-suspects[share=0.1,folds=3]'"], recipe="epochs = 1")
    one, other = plan.trained
    store = Store(tmp_path / "runs")
    train(other, store, "cpu", "float32")
    info = store.model_info(other.key)
    assert one.key != other.key
    (note,) = info["notes"]
    left_out = [int(part) for part in note.removeprefix("left out ").split()[0].split("/")]
    assert info["training_images"] == len(other.data.splits.train) - sum(left_out)
    lonely = tiny.make(tmp_path, ["balancer = 'without-suspects'"], dataset="digits[classes=8|3,train_counts=40|1]")
    assert "at least two images" in str(lonely.jobs[0].refusal)


# --- the listing of a data set


NAMES = ("<b>a & b</b>", "=2+3,$x_1$", "plain\u0007\u4e2d" + "n" * 90)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """Images in folders of odd names, some in the wrong one; and the images that are."""
    root = tmp_path_factory.mktemp("images")
    samples, wrong = planted(blocks((20, 20, 20)), 3, 0.1)
    for image, label, id_ in zip(samples.images, samples.labels, samples.ids, strict=True):
        path = root / NAMES[label].replace("/", "∕") / f"{id_:04}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return root, {f"{id_:04}.png" for id_ in wrong.tolist()}


def listed(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_lists_what_was_found(
    folder: tuple[Path, set[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, wrong = folder
    words = ["labels", "--dataset", "image-folder", "--data-dir", str(root), "--out", str(tmp_path / "runs")]
    assert main(words) == 0
    shown = capsys.readouterr().out
    (where,) = (tmp_path / "runs" / "labels").iterdir()
    assert {path.name for path in where.iterdir()} == {"suspects.csv", "suspects.png", "suspects.svg"}
    data = load_data(Registry(), "image-folder", root, tmp_path / "runs", "")
    files = sorted(path for name in sorted(path.name for path in root.iterdir()) for path in (root / name).iterdir())
    lines = listed(where / "suspects.csv")
    names = {files[int(line["id"])].name for line in lines}
    assert len(names & wrong) >= len(wrong) - 1
    assert len(lines) <= len(wrong) + 3
    for line in lines:
        given = files[int(line["id"])].parent.name
        assert given == data.splits.class_names[data.decoded.labels[int(line["id"])]]
        assert csv_text(line["given"]) == visible(given)
        assert int(line["id"]) in getattr(data.splits, line["split"])
        assert csv_text(line["suggested"]) in map(visible, data.splits.class_names)
    assert [float(line["score"]) for line in lines] == sorted(float(line["score"]) for line in lines)
    for label, (name, images, doubted, _) in enumerate(examine(data.decoded, data.splits).counts()):
        assert images == sum(path.parent.name == name for path in files)
        assert doubted == sum(csv_text(line["given"]) == visible(data.splits.class_names[label]) for line in lines)
        assert re.search(rf"\b{images}\s+{doubted}\s+{100 * doubted / images:.1f} %", shown)
    assert "Suspects, not errors" in shown
    assert "<b>a & b" in shown
    assert str(where / "suspects.csv") in shown


def test_the_sheet_shows_the_worst_and_no_markup_of_theirs(folder: tuple[Path, set[str]], tmp_path: Path) -> None:
    import xml.etree.ElementTree as ElementTree

    data = load_data(Registry(), "image-folder", folder[0], tmp_path, "")
    listing = examine(data.decoded, data.splits)
    one, again = label_sheet(listing.worst(SHOWN)), label_sheet(listing.worst(SHOWN))
    assert one == again
    svg = ElementTree.fromstring(one[1])
    images = svg.findall(".//{http://www.w3.org/2000/svg}image")
    assert len(images) == min(SHOWN, len(listing.found)) > 3
    assert not [node.tag for node in svg.iter() if str(node.tag).rpartition("}")[2] in ("b", "script")]
    arrays: dict[str, Any] = {
        name: np.resize(getattr(listing.found, name), 40) for name in ("ids", "given", "suggested", "scores")
    }
    many = replace(listing.found, **arrays)
    svg = ElementTree.fromstring(label_sheet(replace(listing, found=many).worst(SHOWN))[1])
    assert len(svg.findall(".//{http://www.w3.org/2000/svg}image")) == SHOWN


def test_nothing_found_is_an_empty_listing_without_a_sheet(folder: tuple[Path, set[str]], tmp_path: Path) -> None:
    data = load_data(Registry(), "image-folder", folder[0], tmp_path, "")
    listing = examine(data.decoded, data.splits)
    empty = {name: getattr(listing.found, name)[:0] for name in ("ids", "given", "suggested", "scores")}
    nothing = replace(listing, found=replace(listing.found, **empty), parts=())
    write(listing, tmp_path / "none", (b"a sheet", b"a sheet"))
    assert write(nothing, tmp_path / "none", None) == [tmp_path / "none" / "suspects.csv"]
    assert [path.name for path in (tmp_path / "none").iterdir()] == ["suspects.csv"], "no sheet of an earlier listing"
    assert listed(tmp_path / "none" / "suspects.csv") == []
    assert [line[2:] for line in nothing.counts()] == [(0, "")] * 3
    assert sum(line[1] for line in nothing.counts()) == 60


def test_every_split_is_looked_at(tmp_path: Path) -> None:
    dataset = Digits(classes=("8", "3", "9"))
    decoded = load(dataset, None, tmp_path)
    splits = split(dataset, decoded)
    labels = splits.labels.copy()
    wrong = np.concatenate([part[::12] for part in (splits.train, splits.validation, splits.test)])
    labels[wrong] = (labels[wrong] + 1) % 3
    listing = examine(decoded, replace(splits, labels=labels))
    found = dict(zip(listing.found.ids.tolist(), listing.parts, strict=True))
    for part in ("train", "validation", "test"):
        mine = set(wrong.tolist()) & set(getattr(splits, part).tolist())
        hit = {id_ for id_ in mine if found.get(id_) == part}
        assert len(hit) > 0.6 * len(mine) > 1


def test_a_data_set_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["labels", "--dataset", "digit", "--out", str(tmp_path)]) == 2
    assert 'did you mean "digits"?' in capsys.readouterr().err
    assert main(["labels"]) == 2
