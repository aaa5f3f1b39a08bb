"""Measures of an image: each answers to its own defect, and none to shift and scale of the intensities."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from medray.imaging.quality import QUALITIES, levels, measure
from medray.types import Array, Case


def scene(seed: int, shape: tuple[int, ...] = (96, 80), noise: float = 2.0) -> Array:
    """Bright boxes on a slope in a dark frame of nothing, with noise."""
    draw = np.random.default_rng(seed)
    image = 60.0 + 40.0 * np.linspace(0, 1, shape[-1]) + draw.normal(0, noise, shape)
    for _ in range(12):
        low = [int(draw.integers(8, edge - 24)) for edge in shape]
        image[tuple(slice(a, a + int(draw.integers(4, 16))) for a in low)] += draw.uniform(20, 90)
    return image


def of(image: Array, **more: object) -> dict[str, float]:
    return measure(Case("x", image[None], np.eye(4), **more))  # type: ignore[arg-type]


SHAPES = st.sampled_from([(96, 80), (300, 280), (40, 36, 34)])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), SHAPES, st.floats(0.01, 100), st.floats(-1e4, 1e4))
def test_shift_and_scale_change_nothing(seed: int, shape: tuple[int, ...], scale: float, shift: float) -> None:
    image = scene(seed, shape)
    assert of(image * scale + shift) == pytest.approx(of(image), rel=1e-4, abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), SHAPES)
def test_more_noise_is_more_noise(seed: int, shape: tuple[int, ...]) -> None:
    found = [of(scene(seed, shape, sigma))["noise"] for sigma in (0.5, 2.0, 5.0, 12.0)]
    assert all(a < b for a, b in pairwise(found))


def test_noise_is_the_deviation_of_the_noise_over_the_range() -> None:
    draw = np.random.default_rng(0)
    slope = np.add.outer(np.linspace(0, 100, 256), np.zeros(256))
    for sigma in (1.0, 4.0):
        noisy = slope + draw.normal(0, sigma, slope.shape)
        p05, p95 = np.percentile(noisy, [5, 95])
        assert of(noisy)["noise"] * (p95 - p05) == pytest.approx(sigma, rel=0.03)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), SHAPES, st.sampled_from([0.0, 2.0, 8.0]))
def test_more_blur_is_less_sharp(seed: int, shape: tuple[int, ...], noise: float) -> None:
    image = scene(seed, shape, noise)
    found = [of(gaussian_filter(image, sigma))["sharpness"] for sigma in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert all(a > b for a, b in pairwise(found))


def test_noise_is_no_sharpness() -> None:
    blurred = gaussian_filter(scene(3, noise=0.0), 2.5)
    noisy = blurred + np.random.default_rng(1).normal(0, 4.0, blurred.shape)
    assert of(noisy)["sharpness"] < 0.7 * of(scene(3, noise=0.0))["sharpness"]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000))
def test_clipping_is_the_share_that_was_cut(seed: int) -> None:
    image = scene(seed, (200, 200))
    assert of(image)["clipping"] < 1e-3
    for share in (2.0, 10.0, 25.0):
        clipped = np.minimum(image, np.percentile(image, 100 - share))
        assert of(clipped)["clipping"] == pytest.approx(share / 100, abs=1e-2)


def test_padding_is_no_clipping_and_changes_neither_noise_nor_sharpness() -> None:
    image = scene(5, (96, 96))
    padded = np.pad(image, 16, constant_values=-1000.0)
    inner, outer = of(image), of(padded)
    assert outer["coverage"] == pytest.approx(96**2 / 128**2, abs=1e-6)
    assert outer["clipping"] < 1e-3
    assert outer["noise"] == pytest.approx(inner["noise"], rel=0.1)
    assert outer["sharpness"] == pytest.approx(inner["sharpness"], rel=0.02)


def test_a_few_extreme_voxels_lower_the_contrast() -> None:
    image = scene(6)
    image[10, 10] = 5000.0
    assert of(image)["contrast"] < 0.1 < 0.4 < of(scene(6))["contrast"]


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (8, 8), (5, 5, 1), (64, 64, 3)])
def test_small_and_constant_images_have_finite_numbers(shape: tuple[int, ...]) -> None:
    draw = np.random.default_rng(0)
    for image in (np.full(shape, 7, np.uint8), draw.integers(0, 255, shape).astype(np.uint8)):
        found = of(image)
        assert tuple(found) == QUALITIES
        assert np.isfinite(list(found.values())).all()


def test_extent_and_levels() -> None:
    image = np.arange(20.0 * 30).reshape(20, 30)
    case = Case("x", image[None], np.diag([0.5, 2.0, 1.0, 1.0]), unit="mm")
    assert (measure(case)["extent_mm_0"], measure(case)["extent_mm_1"]) == (10.0, 60.0)
    assert levels(image[None]) == pytest.approx(np.percentile(image, [1, 50, 99]))


def test_colour_is_measured_by_the_mean_of_its_channels() -> None:
    image = scene(8)
    assert measure(Case("x", np.stack([image] * 3), np.eye(4))) == pytest.approx(of(image))


def test_slices_are_taken_across_the_longest_edge() -> None:
    """Noise along one axis only is structure in the slices that hold it, and nothing in those across it."""
    draw = np.random.default_rng(0)
    volume = np.stack([scene(0, (40, 40), 0.5)] * 30, 0) + draw.normal(0, 50, (30, 1, 1))
    across = measure(Case("x", volume[None], np.diag([5.0, 1, 1, 1]), unit="mm"))
    assert across["noise"] < 0.02


def test_it_is_quick() -> None:
    def best(image: Array) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            of(image)
            times.append(time.perf_counter() - began)
        return min(times)

    draw = np.random.default_rng(0)
    assert best(draw.integers(0, 255, (256, 256)).astype(np.uint8)) < 0.1
    assert best(draw.integers(0, 255, (3000, 2000)).astype(np.uint16)) < 0.2


def test_the_largest_and_smallest_numbers_are_measured_too() -> None:
    image = scene(9).astype(np.float32)
    expected = of(image)
    for exponent in (-110, 118):
        assert of(np.ldexp(image, exponent)) == pytest.approx(expected, rel=1e-4)
