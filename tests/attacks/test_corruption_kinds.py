"""Each corruption against other libraries, formulas and the statistics of its noise."""

from __future__ import annotations

import colorsys
import io
import math

import numpy as np
import pytest
import torch
from closed_forms import streams
from PIL import Image
from scenes import scenes
from scipy import ndimage, stats
from torch import Tensor

from robbench.attacks._corruption_blur import defocus_blur, gaussian_blur, shuffled, zoom_blur
from robbench.attacks._corruption_digital import elastic_transform, pixelate, saturate
from robbench.attacks._corruption_filters import smeared, smooth
from robbench.attacks._corruption_noise import poisson
from robbench.attacks._corruption_weather import ice, plasma
from robbench.attacks._warp import enlarged, sample
from robbench.attacks.corruption import Corruption
from robbench.core.corruption_kinds import SEVERITIES, CorruptionKind


def corrupted(kind: CorruptionKind, severity: int, images: Tensor, seed: int = 0) -> Tensor:
    return Corruption(kind, severity).apply(images, streams(len(images), seed))


def flat(*values: float, side: int = 32, count: int = 8) -> Tensor:
    """Images of one color."""
    color = torch.tensor(values if len(values) == 3 else values * 3, dtype=torch.float64)
    return color[:, None, None].expand(count, 3, side, side)


def each_color(images: Tensor, change) -> Tensor:  # type: ignore[no-untyped-def]
    pixels = images.permute(0, 2, 3, 1).reshape(-1, 3).tolist()
    changed = torch.tensor([change(*colorsys.rgb_to_hsv(*pixel)) for pixel in pixels], dtype=images.dtype)
    return changed.reshape(len(images), *images.shape[2:], 3).permute(0, 3, 1, 2)


# ---------------------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize(("severity", "std"), list(zip(SEVERITIES, (0.04, 0.06, 0.08, 0.09, 0.10), strict=True)))
def test_gaussian_noise_has_the_standard_deviation_of_its_severity(severity: int, std: float) -> None:
    noise = corrupted("gaussian-noise", severity, flat(0.5, count=16)) - 0.5
    assert float(noise.std()) == pytest.approx(std, rel=0.015)
    assert float(noise.mean()) == pytest.approx(0, abs=4 * std / math.sqrt(noise.numel()))
    assert stats.kstest(noise.flatten().numpy()[:5000] / std, "norm").pvalue > 1e-3


@pytest.mark.parametrize(("severity", "std"), list(zip(SEVERITIES, (0.06, 0.1, 0.12, 0.16, 0.2), strict=True)))
def test_speckle_noise_grows_with_the_value(severity: int, std: float) -> None:
    for value in (0.1, 0.4):
        noise = corrupted("speckle-noise", severity, flat(value, count=16)) - value
        assert float(noise.std()) == pytest.approx(std * value, rel=0.015)
    assert torch.equal(corrupted("speckle-noise", severity, flat(0.0)), flat(0.0))


@pytest.mark.parametrize(("severity", "photons"), list(zip(SEVERITIES, (500, 250, 100, 75, 50), strict=True)))
def test_shot_noise_counts_photons(severity: int, photons: int) -> None:
    for value in (0.05, 0.3, 0.6):
        counts = photons * corrupted("shot-noise", severity, flat(value))
        torch.testing.assert_close(counts, counts.round())
        rate, many = photons * value, counts.numel()
        assert float(counts.mean()) == pytest.approx(rate, abs=4.5 * math.sqrt(rate / many))
        assert float(counts.var()) == pytest.approx(rate, rel=4.5 * math.sqrt((2 + 1 / rate) / many))
    assert torch.equal(corrupted("shot-noise", severity, flat(0.0)), flat(0.0))


def test_poisson_numbers_are_quantiles() -> None:
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(20_000, generator=generator, dtype=torch.float64)
    uniform[:4] = torch.tensor([2.0**-25, 1 - 2.0**-25, 2.0**-25, 1 - 2.0**-25], dtype=torch.float64)
    for largest in (0.01, 1.0, 30.0, 500.0):
        rates = largest * torch.rand(20_000, generator=generator, dtype=torch.float64)
        rates[2:6] = largest
        rates[6:9] = 0
        expected = stats.poisson.ppf(uniform.numpy(), rates.numpy())
        assert np.array_equal(poisson(rates, uniform).numpy(), expected)


@pytest.mark.parametrize(("severity", "share"), list(zip(SEVERITIES, (0.01, 0.02, 0.03, 0.05, 0.07), strict=True)))
def test_impulse_noise_blackens_and_whitens_a_share_of_the_values(severity: int, share: float) -> None:
    images = 0.2 + 0.6 * scenes(32)
    found = corrupted("impulse-noise", severity, images)
    hit = found != images
    spread = 4.5 * math.sqrt(share / hit.numel())
    assert float((found == 0).double().mean()) == pytest.approx(share / 2, abs=spread)
    assert float((found == 1).double().mean()) == pytest.approx(share / 2, abs=spread)
    assert set(found[hit].tolist()) == {0.0, 1.0}
    # Channels are hit one by one, not pixel by pixel.
    assert float(hit.all(dim=1).double().mean()) < share / 10


# ----------------------------------------------------------------------------------------------------------------- blur


@pytest.mark.parametrize("side", [8, 32, 64])
@pytest.mark.parametrize("sigma", [0.4, 1.0])
def test_gaussian_blur_agrees_with_scipy(sigma: float, side: int) -> None:
    images = scenes(3, side, side, torch.float64)
    width = sigma * max(1, side / 32)
    expected = ndimage.gaussian_filter(images.numpy(), (0, 0, width, width), mode="nearest")
    np.testing.assert_allclose(gaussian_blur(images, sigma).numpy(), expected, atol=1e-12)


def test_defocus_blur_is_a_disk() -> None:
    images = scenes(3, dtype=torch.float64)
    # A disk of radius 1.5 holds a pixel and its eight neighbors, and a Gaussian of 0.1 leaves it as it is.
    expected = ndimage.uniform_filter(images.numpy(), (1, 1, 3, 3), mode="nearest")
    np.testing.assert_allclose(corrupted("defocus-blur", 5, images).numpy(), expected, atol=1e-12)
    # One of radius 0.3 holds the pixel alone, so that only the Gaussian is left.
    expected = ndimage.gaussian_filter(images.numpy(), (0, 0, 0.4, 0.4), mode="nearest", radius=(0, 0, 1, 1))
    np.testing.assert_allclose(corrupted("defocus-blur", 1, images).numpy(), expected, atol=1e-12)
    point = torch.zeros(1, 1, 128, 128, dtype=torch.float64)
    point[..., 64, 64] = 1
    spot = defocus_blur(point, 1.5, 0.01)[0, 0] > 1e-6
    rows, columns = spot.nonzero().T - 64
    assert int((rows.square() + columns.square()).max()) == 36
    assert int(spot.sum()) == sum(x * x + y * y <= 36 for x in range(-6, 7) for y in range(-6, 7))


def test_smearing_is_half_a_gaussian_along_a_line() -> None:
    images = scenes(2, dtype=torch.float64)
    weights = np.exp(-0.5 * (np.arange(13) / 2.5) ** 2)
    for angle, axis in ((0.0, 3), (90.0, 2)):
        found = smeared(images, 6, 2.5, torch.full((2,), angle))
        # Correlation reads ahead, from the pixel itself on.
        expected = ndimage.correlate1d(
            images.numpy(), np.pad(weights / weights.sum(), (12, 0)), axis=axis, mode="nearest"
        )
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_motion_blur_keeps_within_45_degrees_of_the_horizontal() -> None:
    points = torch.zeros(200, 3, 33, 33, dtype=torch.float64)
    points[:, :, 16, 16] = 1
    trail = corrupted("motion-blur", 5, points)[:, 0]
    steps = torch.arange(33, dtype=torch.float64) - 16
    total = trail.sum(dim=(1, 2))
    down, across = (trail.sum(dim=2) @ steps) / total, (trail.sum(dim=1) @ steps) / total
    angles = torch.rad2deg(torch.atan2(-down, -across))
    assert 40 < float(angles.max()) < 46
    assert -46 < float(angles.min()) < -40
    assert bool((across < -1).all())


def test_zoom_blur_is_the_mean_of_enlargements() -> None:
    images = scenes(2, 32, 20, torch.float64)

    def zoomed(factor: float) -> np.ndarray:
        middle = (np.array(images.shape) - 1) / 2
        shrink = np.array([1, 1, 1 / factor, 1 / factor])
        offset = middle * (1 - shrink)
        result: np.ndarray = ndimage.affine_transform(images.numpy(), shrink, offset, order=1, mode="nearest")
        return result

    np.testing.assert_allclose(enlarged(images, 1.3).numpy(), zoomed(1.3), atol=1e-9)
    for severity, largest in zip(SEVERITIES, (1.06, 1.11, 1.16, 1.21, 1.26), strict=True):
        zooms = [1.0, *(1 + step / 100 for step in range(round(100 * largest) - 99))]
        expected = np.mean([zoomed(zoom) for zoom in zooms], axis=0)
        np.testing.assert_allclose(corrupted("zoom-blur", severity, images).numpy(), expected, atol=1e-6)
        assert torch.equal(corrupted("zoom-blur", severity, images), zoom_blur(images, largest))


@pytest.mark.parametrize(
    ("height", "width", "reach"), [(7, 6, 1), (13, 17, 2), (16, 11, 3), (9, 30, 4), (5, 5, 2), (40, 3, 1)]
)
def test_shuffling_lets_near_pixels_change_places_in_turn(height: int, width: int, reach: int) -> None:
    rng, count = streams(5), (height - 2 * reach) * (width - 2 * reach)
    found = shuffled(5, height, width, rng, reach, 2)
    for number, order in enumerate(found.tolist()):
        wanted = [(row, column) for row in range(height) for column in range(width)]
        for turn in range(2):
            moves = rng.integers(("steps", turn), (count, 2), 2 * reach + 1) - reach
            steps = iter(moves[number].tolist())
            for row in reversed(range(reach, height - reach)):
                for column in reversed(range(reach, width - reach)):
                    down, right = next(steps)
                    here, there = row * width + column, (row + down) * width + column + right
                    wanted[here], wanted[there] = wanted[there], wanted[here]
        assert [(place // width, place % width) for place in order] == wanted
    assert sorted(found[0].tolist()) == list(range(height * width))
    assert found[0].tolist() != found[1].tolist()


def test_glass_blur_moves_pixels_and_keeps_flat_images() -> None:
    torch.testing.assert_close(corrupted("glass-blur", 3, flat(0.3, 0.5, 0.9)), flat(0.3, 0.5, 0.9))
    images = scenes(4, dtype=torch.float64)
    # At severity 1 the Gaussian is too narrow to reach a neighbor: every pixel is one of the image's.
    found = corrupted("glass-blur", 1, images)
    ours, theirs = (part.flatten(2).sort(dim=2).values for part in (found, images))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert float((found != images).double().mean()) > 0.7


# -------------------------------------------------------------------------------------------------------------- weather


def test_plasma_is_rougher_the_slower_its_noise_fades() -> None:
    def roughness(decay: float) -> float:
        clouds = plasma(streams(60), "clouds", 32, 32, decay)
        assert float(clouds.min()) == 0
        assert float(clouds.max()) == 1
        return float(clouds.diff(dim=3).square().mean() / clouds.var(dim=(2, 3)).mean())

    found = [roughness(decay) for decay in (1.1, 1.5, 2.0, 3.0)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 5 * found[-1]
    # On a torus no place is special: rows and columns vary alike, and everywhere.
    clouds = plasma(streams(400), "clouds", 16, 16, 2.0)[:, 0]
    means = clouds.mean(dim=0)
    assert float(means.max() - means.min()) < 0.15


@pytest.mark.parametrize(("severity", "density"), list(zip(SEVERITIES, (0.2, 0.5, 0.75, 1, 1.5), strict=True)))
def test_fog_adds_clouds_and_dims_to_the_old_brightness(severity: int, density: float) -> None:
    found = corrupted("fog", severity, flat(0.6))
    clouds = (found / 0.6 * (0.6 + density) - 0.6) / density
    torch.testing.assert_close(clouds.amin(dim=(1, 2, 3)), torch.zeros(8).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(clouds.amax(dim=(1, 2, 3)), torch.ones(8).double())
    assert torch.equal(corrupted("fog", severity, flat(0.0)), flat(0.0))


def test_frost_is_ice_over_a_faded_image() -> None:
    layer = ice(streams(8).fork("frost"), 32, 32)
    assert bool(((layer >= 0) & (layer <= 1)).all())
    assert bool((layer.diff(dim=1) >= 0).all())  # it is bluish
    assert float(layer.std(dim=(2, 3)).min()) > 0.1
    parts = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))
    for severity, (share, amount) in zip(SEVERITIES, parts, strict=True):
        images = scenes(8, dtype=torch.float64)
        expected = (share * images + amount * layer).clamp(0, 1)
        torch.testing.assert_close(corrupted("frost", severity, images), expected)


def test_snow_falls_in_two_layers_one_turned() -> None:
    for severity, share in zip(SEVERITIES, (0.95, 0.9, 0.9, 0.85, 0.8), strict=True):
        for level in (0.1, 0.4):
            found = corrupted("snow", severity, flat(level))
            torch.testing.assert_close(found, found.rot90(2, dims=(2, 3)))
            ground = share * level + (1 - share) * (1.5 * 0.9999 * level + 0.5)
            assert float(found.min()) >= ground - 1e-9
            assert float(found.mean()) > ground + 0.005
            torch.testing.assert_close(found[:, 0], found[:, 2])
    # Flakes fall: what they leave is longer down than across.
    found = corrupted("snow", 2, flat(0.1, count=40))[:, 0]
    assert float(found.diff(dim=1).square().mean()) < 0.7 * float(found.diff(dim=2).square().mean())


def test_spatter_is_pale_water_or_brown_mud() -> None:
    images = flat(0.3, 0.3, 0.3)
    for severity in (1, 2, 3):
        added = corrupted("spatter", severity, images) - images
        assert float(added.min()) >= 0
        wet = added[:, 2] > 0
        assert 0.005 < float(wet.double().mean()) < 0.5
        torch.testing.assert_close(
            added[:, 0][wet] / added[:, 2][wet], torch.full((int(wet.sum()),), 175 / 238).double()
        )
        torch.testing.assert_close(added[:, 2].amax(dim=(1, 2)), torch.full((8,), 0.5 * 238 / 255).double())
    for severity in (4, 5):
        found = corrupted("spatter", severity, images)
        torch.testing.assert_close(found[:, :, :, :].amax(), torch.tensor(0.3).double())
        mud = torch.tensor([63.0, 42.0, 20.0]).double() / 255
        deepest = found.flatten(2).amin(dim=2)
        torch.testing.assert_close(deepest, mud.expand(8, 3), rtol=0, atol=0.02)


# -------------------------------------------------------------------------------------------------------------- digital


@pytest.mark.parametrize(("severity", "amount"), list(zip(SEVERITIES, (0.05, 0.1, 0.15, 0.2, 0.3), strict=True)))
def test_brightness_raises_the_value_in_hsv(severity: int, amount: float) -> None:
    images = scenes(2, 12, 12, torch.float64)
    images[:, :, 0, 0] = 0
    expected = each_color(images, lambda h, s, v: colorsys.hsv_to_rgb(h, s, min(1, v + amount)))
    torch.testing.assert_close(corrupted("brightness", severity, images), expected)


@pytest.mark.parametrize(
    ("severity", "factor", "amount"), [(1, 0.3, 0), (2, 0.1, 0), (3, 1.5, 0), (4, 2, 0.1), (5, 2.5, 0.2)]
)
def test_saturate_changes_the_saturation_in_hsv(severity: int, factor: float, amount: float) -> None:
    images = scenes(2, 12, 12, torch.float64)
    images[:, :, 0, 0], images[:, :, 0, 1], images[:, :, 0, 2] = 0, 0.5, 1
    images[:, :, 0, 3:6] = torch.eye(3).double()
    expected = each_color(images, lambda h, s, v: colorsys.hsv_to_rgb(h, min(1, s * factor + amount), v))
    torch.testing.assert_close(corrupted("saturate", severity, images), expected)
    torch.testing.assert_close(saturate(images, 1, 0), images)


@pytest.mark.parametrize(("severity", "factor"), list(zip(SEVERITIES, (0.75, 0.5, 0.4, 0.3, 0.15), strict=True)))
def test_contrast_shrinks_towards_the_mean_of_each_channel(severity: int, factor: float) -> None:
    images = scenes(4, dtype=torch.float64)
    found = corrupted("contrast", severity, images)
    torch.testing.assert_close(found.mean(dim=(2, 3)), images.mean(dim=(2, 3)))
    torch.testing.assert_close(found.std(dim=(2, 3)), factor * images.std(dim=(2, 3)))


@pytest.mark.parametrize(("severity", "share"), list(zip(SEVERITIES, (0.95, 0.9, 0.85, 0.75, 0.65), strict=True)))
@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 45)])
def test_pixelation_is_that_of_pillow(height: int, width: int, severity: int, share: float) -> None:
    images = scenes(3, height, width)
    for image, found in zip(images[:, 0], corrupted("pixelate", severity, images)[:, 0], strict=True):
        gray = Image.fromarray(image.numpy())
        small = gray.resize((int(width * share), int(height * share)), Image.Resampling.BOX)
        expected = np.asarray(small.resize((width, height), Image.Resampling.BOX))
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    assert torch.equal(pixelate(images, 1.0), images)


@pytest.mark.parametrize(("severity", "quality"), list(zip(SEVERITIES, (80, 65, 58, 50, 40), strict=True)))
def test_jpeg_is_that_of_pillow(severity: int, quality: int) -> None:
    levels = (255 * scenes(3, 24, 30)).round().to(torch.uint8)
    found = corrupted("jpeg-compression", severity, levels.double() / 255)
    for image, result in zip(levels, found, strict=True):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy(), "RGB").save(file, format="jpeg", quality=quality)
        expected = np.asarray(Image.open(file), dtype=np.float64) / 255
        np.testing.assert_array_equal(result.permute(1, 2, 0).numpy(), expected)


def test_elastic_transforms_without_smooth_displacements_are_affine() -> None:
    rows = torch.arange(32, dtype=torch.float64)[:, None].expand(32, 32)
    ramps = (0.2 + torch.stack([rows, rows.T, rows + rows.T]) / 120).expand(6, 3, 32, 32)
    found = elastic_transform(ramps, streams(6), 0, 0, 0.05)[:, :, 8:24, 8:24]
    for axis in (2, 3):
        torch.testing.assert_close(
            found.diff(2, dim=axis), torch.zeros_like(found.diff(2, dim=axis)), rtol=0, atol=1e-9
        )
    assert float((found - ramps[:, :, 8:24, 8:24]).abs().min(dim=0).values.max()) > 0.001
    # Three points ten pixels from the middle move by at most 0.05 of the side along either axis.
    shift = 120 * (elastic_transform(ramps, streams(6), 0, 0, 0.05) - ramps)
    for row, column in ((26, 26), (26, 6), (6, 6)):
        assert float(shift[:, :2, row, column].abs().max()) <= 0.05 * 32 + 1e-9
    assert float(shift[:, :2, 6, 6].abs().max()) > 0.7


def test_smooth_displacements_are_those_of_scipy() -> None:
    images, rng = scenes(2, 28, 40, torch.float64), streams(2)
    side, amount, sigma = 28, 0.08, 0.06
    found = elastic_transform(images, rng, amount, sigma, 0)
    field = rng.uniform("field", (2, 28, 40), -1.0, 1.0, dtype=torch.float64)
    reach = math.ceil(3 * sigma * side)
    for image, result, (down, right) in zip(images, found, field.numpy(), strict=True):
        moves = [
            amount * side * ndimage.gaussian_filter(part, sigma * side, mode="nearest", radius=reach)
            for part in (down, right)
        ]
        places = np.indices((28, 40)) + np.stack(moves)
        expected = np.stack(
            [ndimage.map_coordinates(channel.numpy(), places, order=1, mode="reflect") for channel in image]
        )
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-9)


# -------------------------------------------------------------------------------------------------------------- filters


@pytest.mark.parametrize(
    ("ours", "theirs"), [("border", "nearest"), ("reflection", "reflect"), ("zeros", "grid-constant")]
)
def test_reading_between_pixels_agrees_with_scipy(ours: str, theirs: str) -> None:
    images = scenes(1, 9, 14, torch.float64)
    generator = torch.Generator().manual_seed(0)
    rows = 14 * torch.rand(1, 50, 20, generator=generator, dtype=torch.float64) - 3
    columns = 20 * torch.rand(1, 50, 20, generator=generator, dtype=torch.float64) - 3
    found = sample(images, rows, columns, ours)[0]  # type: ignore[arg-type]
    places = np.stack([rows[0].numpy(), columns[0].numpy()])
    expected = [ndimage.map_coordinates(channel.numpy(), places, order=1, mode=theirs) for channel in images[0]]
    np.testing.assert_allclose(found.numpy(), np.stack(expected), atol=1e-9)


def test_smoothing_keeps_the_mean_of_a_flat_image() -> None:
    torch.testing.assert_close(smooth(flat(0.2, 0.5, 0.8, side=5), 3.0), flat(0.2, 0.5, 0.8, side=5))
