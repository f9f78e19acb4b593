"""Defenses that change images in front of a model: the values they give, the gradients they let through."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from closed_forms import Linear, images_near, largest_gain, linear, margins, numbers, streams
from galleries import neighbors
from networks import SHAPE, Network
from scipy.fft import dctn, idctn
from torch import Tensor, nn

from robbench.attacks._gradients import input_gradient
from robbench.attacks.fgm import FGM
from robbench.attacks.pgd import PGD
from robbench.cli.main import main
from robbench.core.contracts import Classifier
from robbench.core.errors import RequestError
from robbench.core.registry import Registry
from robbench.core.threat_model import Threat
from robbench.defenses._preprocessing import Preprocessed, Preprocessing
from robbench.defenses.bit_depth import BitDepth
from robbench.defenses.jpeg import Jpeg
from robbench.defenses.smoothing import Smoothing
from robbench.defenses.toolbox import ToolboxPreprocessor
from robbench.evaluation.gradient_diagnostics import traits
from robbench.evaluation.query_counter import Oracle
from robbench.evaluation.referee import fair_play
from robbench.execution.jobs import carry_out
from robbench.models._external.classifier import ExternalClassifier
from robbench.models._external.normalization import NONE
from robbench.models._external.request import Answers
from robbench.results.store import Store
from robbench.training.model_loading import load_model

EVERY: list[Preprocessing] = [
    Jpeg(),
    Jpeg(quality=10),
    BitDepth(bits=1),
    BitDepth(),
    ToolboxPreprocessor(),
    ToolboxPreprocessor(preprocessor="JpegCompression"),
    ToolboxPreprocessor(preprocessor="FeatureSqueezing", parameter=2),
]


def photo(size: int = 32) -> Tensor:
    """Smooth color with some noise, 8-bit, as floats."""
    ramp = torch.linspace(0, 1, size, dtype=torch.float64)
    smooth = torch.stack([ramp[:, None].expand(size, size), ramp.expand(size, size), 1 - ramp[:, None] * ramp])
    noisy = smooth + 0.05 * numbers(0, 3, size, size)
    return (noisy.clamp(0, 1) * 255).round()[None] / 255


# Quantization of luminance as the standard suggests it (ITU-T T.81, table K.1).
LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)


def jpeg_by_hand(grey: Any, quality: int) -> Any:
    """What JPEG makes of a grey image of 8-bit levels, whose colors are all zero."""
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    table = np.clip(np.floor((LUMINANCE * scale + 50) / 100), 1, 255)
    height, width = grey.shape
    blocks = (grey - 128.0).reshape(height // 8, 8, width // 8, 8).swapaxes(1, 2)
    coefficients = np.round(dctn(blocks, axes=(2, 3), norm="ortho") / table) * table
    return np.clip(idctn(coefficients, axes=(2, 3), norm="ortho").swapaxes(1, 2).reshape(height, width) + 128, 0, 255)


# --- values


@pytest.mark.parametrize("quality", [1, 10, 30, 50, 75, 90])
def test_jpeg_of_a_grey_image_is_that_of_the_standard(quality: int) -> None:
    grey = photo(64)[:, :1]
    found = Jpeg(quality=quality).change(grey.expand(-1, 3, -1, -1))[0]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])

    def apart(other: Any) -> float:
        return float(np.sqrt(np.square(255 * found[0].numpy() - other).mean()))

    level = 255 * grey[0, 0].numpy()
    # Codecs compute in integers: now and then a coefficient near a half is rounded to its other side.
    assert apart(jpeg_by_hand(level, quality)) < 1 < 1.9 < apart(level)
    assert all(apart(jpeg_by_hand(level, other)) > 2 for other in (quality + 4, quality - 4) if 1 <= other <= 95)


def test_lower_quality_is_further_from_the_image() -> None:
    losses = [float((Jpeg(quality=quality).change(photo()) - photo()).norm()) for quality in (95, 75, 40, 10)]
    assert losses == sorted(losses)


@pytest.mark.parametrize("bits", range(1, 9))
def test_bit_depth_rounds_to_the_nearest_level(bits: int) -> None:
    images = images_near(0.5, 0.5, 20)
    found = BitDepth(bits=bits).change(images)
    levels = np.linspace(0, 1, 2**bits)
    nearest = levels[np.abs(images.numpy()[..., None] - levels).argmin(axis=-1)]
    np.testing.assert_allclose(found, nearest, atol=1e-12)
    assert len(found.unique()) == min(2**bits, len(found.unique()))
    assert torch.equal(BitDepth(bits=bits).change(found), found)
    eighths = torch.arange(256, dtype=torch.float32) / 255
    assert torch.equal(BitDepth(bits=8).change(eighths), eighths)


def test_the_toolboxs_median_filter_is_scipys() -> None:
    from scipy.ndimage import median_filter

    images = images_near(0.5, 0.5, 4)
    found = ToolboxPreprocessor(preprocessor="SpatialSmoothing", parameter=2).change(images)
    expected = [[median_filter(channel, size=2, mode="reflect") for channel in image] for image in images.numpy()]
    np.testing.assert_allclose(found, np.array(expected))


def test_the_toolboxs_other_preprocessors_come_close_to_ours() -> None:
    images = photo()
    squeezed = ToolboxPreprocessor(preprocessor="FeatureSqueezing", parameter=3).change(images)
    torch.testing.assert_close(squeezed, BitDepth(bits=3).change(images), rtol=0, atol=1e-12)
    compressed = ToolboxPreprocessor(preprocessor="JpegCompression", parameter=90).change(images)
    # The toolbox cuts to 8 bits where we round.
    torch.testing.assert_close(compressed, Jpeg(quality=90).change(images), rtol=0, atol=0.1)


@pytest.mark.parametrize("defense", EVERY, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_changes_keep_shape_type_range_and_the_images_themselves(defense: Preprocessing, dtype: torch.dtype) -> None:
    images = images_near(0.5, 0.5, 5).to(dtype).requires_grad_()
    before = images.detach().clone()
    found = defense.change(images)
    assert found.shape == images.shape
    assert found.dtype == dtype
    assert not found.requires_grad
    assert bool(((found >= 0) & (found <= 1)).all())
    assert not torch.equal(found, images)
    assert torch.equal(images, before)
    alone = torch.cat([defense.change(image[None]) for image in images.flip(0)]).flip(0)
    assert torch.equal(alone, found)
    assert defense.change(images[:0]).shape == images[:0].shape
    # Other defenses may have added noise.
    assert bool(((defense.change(3 * images - 1) >= 0) & (defense.change(3 * images - 1) <= 1)).all())


# --- gradients


@pytest.mark.parametrize("defense", EVERY, ids=str)
def test_scores_are_those_of_the_changed_images_and_gradients_pass_straight_through(defense: Preprocessing) -> None:
    model, images = Network().double().eval(), images_near(0.5, 0.5, 5).repeat(1, 1, 2, 2)[:, :, :5, :5]
    wrapped, changed = defense.wrap(model), defense.change(images)
    assert torch.equal(wrapped(images), model(changed))
    assert torch.equal(wrapped.predict(images), model.predict(changed))
    assert torch.equal(wrapped.embed(images), model.embed(changed))
    assert all(map(torch.equal, wrapped.decide(images), model.decide(changed)))
    gradient = input_gradient(lambda x: wrapped(x)[:, 0].sum(), images)
    assert torch.equal(gradient, input_gradient(lambda x: model(x)[:, 0].sum(), changed))
    assert bool(gradient.any())
    assert defense.gradients == "straight-through"


def test_without_straight_through_no_gradient_passes() -> None:
    defense = BitDepth(straight_through=False)
    model = linear(3, 2)
    images = images_near(0.5, 0.5, 5)
    wrapped = defense.wrap(model)
    assert defense.gradients == "none"
    assert not wrapped(images.clone().requires_grad_()).requires_grad
    assert torch.equal(wrapped(images), BitDepth().wrap(model)(images))
    # Weights that are trained behind the change would still learn.
    model.weight.requires_grad_()
    wrapped(images).sum().backward()
    assert model.weight.grad is not None
    assert bool(model.weight.grad.any())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_straight_through_recovers_the_best_attack_on_a_quantized_linear_model(bits: int) -> None:
    model, images, eps = linear(3, 2), images_near(0.5, 0.5, 32), 0.3
    labels = model.predict(images)
    slopes = model.weight[1 - labels] - model.weight[labels]
    best = largest_gain(slopes, images, "linf", eps)
    threat = Threat("linf", eps)
    stuck = BitDepth(bits=bits, straight_through=False).wrap(model)
    assert not input_gradient(lambda x: stuck(x)[:, 0].sum(), images).any()
    assert torch.equal(FGM().perturb(stuck, images, labels, threat, streams(32)), images)
    assert torch.equal(PGD(random_start=False).perturb(stuck, images, labels, threat, streams(32)), images)
    wrapped = BitDepth(bits=bits).wrap(model)
    attacked = FGM().perturb(wrapped, images, labels, threat, streams(32))
    gained = margins(wrapped, images, labels) - margins(wrapped, attacked, labels)
    # Each of the two roundings moves every value by half a step at the most.
    step = slopes.abs().sum(dim=1) / (2**bits - 1)
    assert bool(((gained - best).abs() <= step + 1e-9).all())
    assert torch.equal(attacked, FGM().perturb(model, images, labels, threat, streams(32)))


# --- as a model


def test_a_nearest_neighbor_model_behind_a_change_keeps_its_votes_and_its_scores() -> None:
    gallery = torch.rand(15, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model, images = neighbors(gallery, torch.arange(15) % 3), images_near(0.5, 0.5, 8)
    wrapped, changed = BitDepth(bits=2).wrap(model), BitDepth(bits=2).change(images)
    assert wrapped.surrogates == model.surrogates
    for name in (*model.surrogates, "votes", "metric-loss"):
        view = wrapped.surrogate(name)
        assert torch.equal(view(images), model.surrogate(name)(changed))
        assert torch.equal(view.predict(images), model.predict(changed))
    with pytest.raises(KeyError):
        wrapped.surrogate("nothing")
    with pytest.raises(KeyError):
        BitDepth().wrap(linear(0, 2)).surrogate("votes")


def test_the_wrapper_passes_on_what_the_model_is() -> None:
    model = Network().eval()
    model.draws = 7
    wrapped = Jpeg().wrap(model)
    assert isinstance(wrapped, Preprocessed)
    assert (wrapped.num_classes, wrapped.draws, wrapped.training) == (3, 7, False)
    assert not wrapped.subset(torch.tensor([0])).training

    class PerSample(Linear):
        chosen: Any = None

        def subset(self, index: Tensor) -> Classifier:
            self.chosen = index
            return self

    inner = PerSample(numbers(0, 2, 48), numbers(1, 2))
    Jpeg().wrap(inner).subset(torch.tensor([1]))
    assert inner.chosen.tolist() == [1]


def test_attacks_on_a_wrapped_model_leave_it_alone_and_are_counted() -> None:
    wrapped = Jpeg().wrap(Network().eval().requires_grad_(False))
    images, labels = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    oracle = Oracle(copy.deepcopy(wrapped), 4)
    with fair_play(wrapped, images, labels):
        attacked = FGM().perturb(oracle, images, labels, Threat("linf", 0.1), streams(4))
    assert oracle.spent.tolist() == [[1.0] * 4] * 2
    assert bool((attacked != images).any())


def test_parameters_out_of_range_are_refused() -> None:
    assert {"jpeg", "bit-depth", "toolbox-preprocessor"} <= set(Registry(installed=False).entries("defense"))
    for defense, options, message in (
        (Jpeg, {"quality": 0}, "quality"),
        (Jpeg, {"quality": 101}, "quality"),
        (BitDepth, {"bits": 9}, "bits"),
        (ToolboxPreprocessor, {"preprocessor": "LabelSmoothing"}, "preprocessor"),
        (ToolboxPreprocessor, {"preprocessor": "JpegCompression", "parameter": 101}, "parameter = 101"),
    ):
        with pytest.raises(RequestError, match=message):
            defense(**options)


# --- whole runs


def test_images_pass_defenses_first_to_last(tmp_path: Path) -> None:
    plan = tiny.make(tmp_path, ["defense = 'bit-depth[bits=1]+jpeg[quality=1]'"], recipe="epochs = 1")
    (job,) = plan.jobs
    carry_out(plan, job, [], lambda progress: None)
    model = load_model(job, Store(plan.request.out), "cpu")
    images = photo().float()
    inside = copy.deepcopy(model)
    while isinstance(inside, Preprocessed):
        inside = inside.model
    expected = Jpeg(quality=1).change(BitDepth(bits=1).change(images))
    assert torch.equal(model(images), inside(expected))
    assert not torch.equal(model(images), inside(BitDepth(bits=1).change(Jpeg(quality=1).change(images))))


def test_a_defense_at_inference_time_leaves_training_as_it_is_and_runs_whole(tmp_path: Path) -> None:
    grid = tmp_path / "grid.toml"
    models = ("defense = ['fgm', 'fgm+jpeg']", "objective = 'angular'\ndefense = 'fgm+jpeg'")
    grid.write_text(tiny.grid_text(models, ("fgsm@ref",), "epochs = 1"), encoding="utf-8")
    out = tmp_path / "runs"
    words = ["run", "--grid", str(grid), "--out", str(out), "--limit", "20", "--workers", "1", "--device", "cpu"]
    assert main(words) == 0
    weights = [path.read_bytes() for path in out.glob("models/*/weights.safetensors")]
    assert len(weights) == 3
    assert len(set(weights)) == 2, "cross-entropy was trained otherwise"
    written = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/*")}
    assert len({path.parent for path in written}) == 3
    assert main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("cells/*/*")} == written


@pytest.mark.parametrize("answers", ["gradients", "scores", "labels"])
def test_what_stands_in_front_of_a_model_answers_no_more_than_it(answers: Answers) -> None:
    class Ensemble(Classifier):
        """Somebody's own, two layers above the model."""

        def __init__(self, *models: Classifier) -> None:
            super().__init__()
            self.models, self.num_classes = nn.ModuleList(models), models[0].num_classes

        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([model(images) for model in self.models]).mean(dim=0)

        def embed(self, images: Tensor) -> Tensor:
            raise NotImplementedError

    model = ExternalClassifier(Network(), 10, NONE, answers=answers)
    inner = BitDepth().wrap(model)
    for front in (inner, Jpeg().wrap(inner), Smoothing().wrap(model), Oracle(inner, 1), Ensemble(linear(3, 10), inner)):
        assert front.answers == answers
        assert copy.deepcopy(front).answers == answers
        assert front.subset(torch.tensor([0])).answers == answers
        assert "answers" not in vars(front)  # which would tell a live model from itself
    front.answers = "labels"
    assert front.answers == "labels"
    assert linear(3, 10).answers == "gradients"


def test_labels_behind_a_defense_are_not_taken_for_probabilities() -> None:
    model = ExternalClassifier(Network(), 10, NONE, answers="labels")
    for front in (model, BitDepth().wrap(model)):
        assert "outputs-probabilities" not in traits(front, torch.rand(SHAPE))
