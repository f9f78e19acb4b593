"""Arrays as people keep them, and what is kept of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from resident import pixels

from robbench.attacks._random_transform import RandomTransform
from robbench.cli.main import main
from robbench.core.contracts import Samples, as_stored, to_float
from robbench.core.errors import RequestError
from robbench.core.registry import Registry
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat
from robbench.data.balancing.augmentation import Augmentation
from robbench.data.balancing.smote import SMOTE
from robbench.data.cache import load
from robbench.data.dataset import DecodedImages
from robbench.data.datasets.arrays import Arrays
from robbench.planning.component_spec import choose
from robbench.planning.inputs import find_dataset
from robbench.training.network import pixel_statistics

RNG = np.random.default_rng(0)
GRAY: np.ndarray[Any, Any] = RNG.integers(0, 256, (12, 9, 7), dtype=np.uint8)
LABELS: np.ndarray[Any, Any] = np.arange(12) % 3


def read(folder: Path, options: dict[str, Any] | None = None, **arrays: Any) -> DecodedImages:
    """What an npz file of these arrays is read as."""
    folder.mkdir(exist_ok=True)
    np.savez(folder / "x.npz", **arrays)
    return load(Arrays(**(options or {})), folder / "x.npz", folder / "cache")


def refusal(folder: Path, options: dict[str, Any] | None = None, **arrays: Any) -> str:
    """Why they are not read."""
    with pytest.raises(RequestError) as error:
        read(folder, options, **arrays)
    return str(error.value)


@pytest.mark.parametrize(
    ("images", "shape"),
    [
        (GRAY, (1, 9, 7)),
        (GRAY[..., None], (1, 9, 7)),
        (GRAY[:, None], (1, 9, 7)),
        (np.stack([GRAY] * 3, axis=-1), (3, 9, 7)),
        (np.stack([GRAY] * 3, axis=1), (3, 9, 7)),
        (np.stack([GRAY] * 2, axis=1), (2, 9, 7)),
    ],
)
def test_channels_and_sizes_are_kept(images: np.ndarray[Any, Any], shape: tuple[int, ...], tmp_path: Path) -> None:
    found = read(tmp_path, images=images, labels=LABELS)
    assert found.images.shape == (12, *shape)
    assert found.images.dtype == np.uint8
    np.testing.assert_array_equal(pixels(found.images)[:, 0], GRAY)
    assert found.class_names == ("0", "1", "2")


@settings(max_examples=15, deadline=None)
@given(
    images=hnp.arrays(
        np.float32, (6, 1, 5, 5), elements=st.floats(0, 1, width=32, allow_nan=False, allow_subnormal=False)
    )
)
def test_floats_are_kept_to_the_last_bit(
    images: np.ndarray[Any, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = read(tmp_path_factory.mktemp("arrays"), images=images, labels=np.arange(6) % 2)
    assert found.images.dtype == np.float32
    np.testing.assert_array_equal(found.images, images)
    np.testing.assert_array_equal(to_float(torch.from_numpy(np.array(found.images))).numpy(), images)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (GRAY.astype(np.int64), GRAY),
        (GRAY.astype(np.float64) / 255, (GRAY.astype(np.float64) / 255).astype(np.float32)),
        (GRAY.astype(np.uint16) * 257, (GRAY / np.float32(255)).astype(np.float32)),
        (GRAY > 100, np.where(GRAY > 100, 255, 0).astype(np.uint8)),
    ],
)
def test_other_types_become_what_they_mean(
    images: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    found = pixels(read(tmp_path, images=images, labels=LABELS).images)[:, 0]
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("names", [("x", "y"), ("images", "labels"), ("data", "targets")])
@pytest.mark.parametrize("spelling", ["{0}_{1}", "{1}_{0}"])
def test_parts_are_known_by_their_usual_names(names: tuple[str, str], spelling: str, tmp_path: Path) -> None:
    parts = {"train": slice(0, 6), "val": slice(6, 9), "test": slice(9, 12)}
    arrays: dict[str, Any] = {
        spelling.format(name, part): values[rows]
        for part, rows in parts.items()
        for name, values in zip(names, (GRAY, LABELS), strict=True)
    }
    found = read(tmp_path, **arrays)
    assert found.is_test.tolist() == [False] * 9 + [True] * 3
    np.testing.assert_array_equal(pixels(found.images)[:, 0], GRAY)
    only: dict[str, Any] = {spelling.format(names[0], "test"): GRAY, spelling.format(names[1], "test"): LABELS}
    alone = read(tmp_path / "alone", **only)
    assert not alone.is_test.any()


def test_labels_and_names(tmp_path: Path) -> None:
    found = read(tmp_path, images=GRAY, labels=np.array([7, 7, 9] * 4).reshape(-1, 1))
    assert found.class_names == ("7", "9")
    assert found.labels.tolist() == [0, 0, 1] * 4
    named = read(
        tmp_path / "named", images=GRAY, labels=LABELS.astype(float), class_names=np.array(["a", "b", "c", "d"])
    )
    assert named.class_names == ("a", "b", "c", "d")
    few: dict[str, Any] = {"images": GRAY, "class_names": np.array(["a", "b"])}
    assert "those of 2 classes go from 0 to 1" in refusal(tmp_path, labels=LABELS, **few)
    assert refusal(tmp_path, labels=LABELS % 2 + 1, **few).endswith("from 0 to 1, so subtract 1")


def test_npy_files_of_a_folder(tmp_path: Path) -> None:
    for name, values in (("x_train", GRAY[:9]), ("y_train", LABELS[:9]), ("x_test", GRAY[9:]), ("y_test", LABELS[9:])):
        np.save(tmp_path / f"{name}.npy", values)
    found = load(Arrays(), tmp_path, tmp_path / "cache")
    assert found.is_test.sum() == 3
    again = load(Arrays(path=str(tmp_path)), None, tmp_path / "cache")
    assert (
        again.fingerprint
        == found.fingerprint
        == read(tmp_path / "one", x_train=GRAY[:9], y_train=LABELS[:9], x_test=GRAY[9:], y_test=LABELS[9:]).fingerprint
    )


def test_one_npy_file_has_no_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", GRAY)
    with pytest.raises(RequestError, match=r"images\.npy is one array; name an npz file, or the folder"):
        load(Arrays(path=str(tmp_path / "images.npy")), None, tmp_path / "cache")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": GRAY.astype(float), "labels": LABELS}, "from 0 to 255; bytes from 0 to 255 or floats in"),
        ({"images": GRAY / 255 - 0.5, "labels": LABELS}, "floats in [0, 1] are needed"),
        ({"images": GRAY / 255 * np.nan, "labels": LABELS}, "values that are no finite numbers"),
        ({"images": GRAY.astype(np.int16) - 1, "labels": LABELS}, "are needed"),
        ({"images": GRAY.reshape(12, -1), "labels": LABELS}, "has the shape (12, 63)"),
        ({"images": np.zeros((12, 3, 8, 3), np.uint8), "labels": LABELS}, "layout=nchw or nhwc"),
        ({"images": np.zeros((12, 8, 8, 8), np.uint8), "labels": LABELS}, "layout=nchw or nhwc"),
        ({"images": GRAY, "labels": LABELS[:5]}, "12 images and 5 labels"),
        ({"images": GRAY, "labels": np.eye(3)[LABELS]}, "one whole number per image"),
        ({"images": GRAY, "labels": LABELS + 0.5}, "one whole number per image"),
        ({"pictures": GRAY, "labels": LABELS}, 'holds labels, pictures; name the arrays "images" and "labels"'),
        (
            {"x_train": GRAY, "y_train": LABELS, "x_test": GRAY[:, :8], "y_test": LABELS},
            "the parts differ: x_train uint8 (12, 1, 9, 7), x_test uint8 (12, 1, 8, 7)",
        ),
        ({"images": np.array([{}] * 12), "labels": LABELS}, "cannot be read"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(arrays: dict[str, Any], said: str, tmp_path: Path) -> None:
    message = refusal(tmp_path, **arrays)
    assert said in message
    assert "x.npz" in message


def test_a_layout_can_be_given(tmp_path: Path) -> None:
    images = np.zeros((12, 3, 8, 3), np.uint8)
    assert read(tmp_path / "a", {"layout": "nchw"}, images=images, labels=LABELS).images.shape == (12, 3, 8, 3)
    assert read(tmp_path / "b", {"layout": "nhwc"}, images=images, labels=LABELS).images.shape == (12, 3, 3, 8)


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut"])
def test_damaged_files_are_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, images=GRAY, labels=LABELS)
    data = path.read_bytes()
    path.write_bytes({"missing": b"", "empty": b"", "text": b"no array", "cut": data[: len(data) // 2]}[damage])
    if damage == "missing":
        path.unlink()
    with pytest.raises(RequestError, match=r"x\.npz"):
        load(Arrays(), path, tmp_path / "cache")


# ------------------------------------------------------------------------------------- what follows keeps channels, too


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_natural_perturbation_takes_any_number_of_channels(channels: int) -> None:
    images = torch.rand(3, channels, 32, 32, generator=torch.Generator().manual_seed(channels))
    labels = torch.zeros(3, dtype=torch.long)
    rng = Streams.of(torch.arange(3), 0, "channels")
    registry = Registry()
    unasked: Any = None  # no natural perturbation looks at the model
    for name, entry in registry.entries("attack").items():
        if entry.mark.norms != ("none",):
            continue
        component = choose(registry, "attack", name, "here").component
        if not isinstance(component, RandomTransform):
            continue
        for attack in component.variants("all") or (component,):
            changed = attack.perturb(unasked, images, labels, Threat("none"), rng)
            assert changed.shape == images.shape, attack
            assert changed.isfinite().all(), attack
            assert changed.min() >= 0, attack
            assert changed.max() <= 1, attack


def test_gray_in_color_is_what_gray_alone_is() -> None:
    gray = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    rng = Streams.of(torch.arange(4), 0, "gray")
    registry = Registry()
    for name in (
        "color-jitter[hue=0,saturation=0]",
        "rotation",
        "corruption[kind=jpeg-compression]",
        "corruption[kind=contrast]",
    ):
        attack = choose(registry, "attack", name, "here").component
        alone = attack.perturb(None, gray, torch.zeros(4), Threat("none"), rng)
        color = attack.perturb(None, gray.expand(-1, 3, -1, -1), torch.zeros(4), Threat("none"), rng)
        torch.testing.assert_close(color.mean(dim=1, keepdim=True), alone, atol=2e-4, rtol=0)


@settings(max_examples=30, deadline=None)
@given(values=hnp.arrays(np.uint8, st.tuples(st.integers(2, 30), st.integers(1, 3), st.just(2), st.just(2))))
def test_statistics_of_floats_are_those_of_the_bytes_they_stand_for(values: np.ndarray[Any, Any]) -> None:
    images = torch.from_numpy(values)
    for counted, summed in zip(pixel_statistics(images), pixel_statistics(to_float(images)), strict=True):
        torch.testing.assert_close(summed, counted, atol=1e-6, rtol=0)


def test_made_up_images_are_stored_as_the_others_are() -> None:
    images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([0] * 14 + [1] * 6)
    for stored in (images, as_stored(images, torch.zeros(1, dtype=torch.uint8))):
        samples = Samples(stored, labels, torch.arange(20))
        for balancer in (SMOTE(), Augmentation()):
            made, _ = balancer.resample(samples, Arrays(), 0)
            assert made.images.dtype == stored.dtype
            assert len(made) > 20
            assert 0 <= float(to_float(made.images).min()) <= float(to_float(made.images).max()) <= 1


@pytest.mark.parametrize(("dtype", "channels"), [("uint8", 4), ("float32", 1)])
@pytest.mark.end_to_end
def test_a_grid_on_arrays_from_training_to_the_board(dtype: str, channels: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    labels = np.arange(60) % 2
    images = (rng.uniform(0, 0.4, (60, channels, 12, 12)) + 0.4 * labels[:, None, None, None]).astype(np.float32)
    stored = (images * 255).astype(np.uint8) if dtype == "uint8" else images
    np.savez(tmp_path / "x.npz", images=stored, labels=labels)
    (tmp_path / "g.toml").write_text(
        'dataset = "arrays"\nconditions = ["clean", "perturbation", "fgsm@ref", "pgd[steps=20]@l2:0.5"]\n'
        '[[models]]\n[[models]]\nobjective = "angular"\ndefense = "perturbation+fgm+jpeg"\n'
        "recipe = { epochs = 2, batch_size = 16 }\n"
    )
    words = ["run", "--grid", str(tmp_path / "g.toml"), "--data-dir", str(tmp_path / "x.npz")]
    assert main([*words, "--out", str(tmp_path / "runs"), "--workers", "1"]) == 0
    (page,) = (tmp_path / "runs").glob("leaderboards/*/index.html")
    assert page.stat().st_size > 10_000


def test_a_data_set_that_names_itself_is_not_named_twice(tmp_path: Path) -> None:
    for name in ("arrays", "image-folder", "parquet"):
        with pytest.raises(RequestError, match=rf"^data: {name}: {tmp_path}/none is not"):
            find_dataset(Registry(installed=False), {"name": name, "path": f"{tmp_path}/none"}, None, "data")
