from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medray.imaging.geometry import restore
from medray.imaging.preprocess import normalise, preprocess, scale_offset
from medray.sections.data import DenoiseSection, IntensitySection, PreprocessSection
from medray.types import Case, InputError

DRAW = np.random.default_rng(0)
GREY = Case("x", DRAW.integers(10, 250, (1, 12, 16), np.uint8), np.eye(4))
COLOUR = Case("x", DRAW.integers(0, 256, (3, 12, 16), np.uint8), np.eye(4))
LPS = np.array([[-1.0, 0, 0, 9], [0, -1, 0, 8], [0, 0, 2.5, 7], [0, 0, 0, 1]])
CT = Case("x", DRAW.integers(-1000, 2000, (1, 9, 8, 6)).astype(np.int16), LPS, "mm")


def section(method: str = "range", low: float | None = 0, high: float | None = 255, **keys: Any) -> PreprocessSection:
    return PreprocessSection(intensity=IntensitySection(method=method, low=low, high=high), **keys)  # type: ignore[arg-type]


def own(method: str, **keys: Any) -> PreprocessSection:
    return section(method, None, None, **keys)


def test_range_keeps_integers_and_normalise_finishes() -> None:
    cfg = section()
    seen = preprocess(GREY, cfg)
    assert seen.image.dtype == np.uint8
    np.testing.assert_array_equal(seen.image, GREY.image)
    assert scale_offset(cfg) == (2 / 255, -1.0)
    final = normalise(seen.image.astype(np.float32), cfg)
    np.testing.assert_allclose(final, GREY.image / 127.5 - 1, atol=1e-6)


def test_normalise_is_the_same_for_a_tensor() -> None:
    torch = pytest.importorskip("torch")
    cfg = section()
    image = GREY.image.astype(np.float32)
    np.testing.assert_allclose(normalise(torch.from_numpy(image), cfg).numpy(), normalise(image, cfg), atol=1e-7)
    other = own("zscore")
    assert normalise(image, other) is image
    assert scale_offset(other) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("low", "high", "stored", "kind"),
    [
        (0, 255, "u2", "u1"),
        (0, 4095, "u1", "u2"),
        (-1024, 3071, "i4", "i2"),
        (0, 65535, "i8", "u2"),
        (-5, 1e6, "i4", "f4"),
        (0.2, 0.8, "u1", "f4"),
        (0, 255, "f4", "f4"),
    ],
)
def test_range_stores_what_the_range_needs(low: float, high: float, stored: str, kind: str) -> None:
    image = DRAW.integers(0, 200, (1, 8, 8)).astype(stored)
    seen = preprocess(Case("x", image, np.eye(4)), section("range", low, high)).image
    assert seen.dtype == np.dtype(kind)
    np.testing.assert_allclose(seen, np.clip(image, low, high), rtol=1e-6)


def test_range_clips_and_says_so_above_one_percent() -> None:
    for dtype in (np.int16, np.uint8, np.float32, np.int64):
        image = np.full((1, 20, 20), 100, dtype)
        image[0, 0, :3] = 120
        assert preprocess(Case("x", image, np.eye(4)), section("range", 0, 110)).warnings == ()
        image[0, 1] = 120
        seen = preprocess(Case("x", image, np.eye(4)), section("range", 0, 110))
        assert (seen.warnings, seen.image.max()) == (("clipped",), 110)
    assert preprocess(GREY, section("range", 300, 4000)).image.min() == 300


def test_resampled_range_stays_integer() -> None:
    seen = preprocess(GREY, section(size=(7, 9), fit="stretch"))
    assert (seen.image.dtype, seen.image.shape) == (np.dtype(np.uint8), (1, 7, 9))


def test_window_and_percentile_end_at_one() -> None:
    window = preprocess(CT, section("window", -200, 300)).image
    np.testing.assert_allclose(window, (np.clip(CT.image[:, ::-1, ::-1], -200, 300) - 50) / 250.0, atol=1e-6)
    own_range = preprocess(GREY, own("percentile")).image
    low, high = np.percentile(GREY.image, [0.5, 99.5])
    expected = (np.clip(GREY.image, low, high) - low) / (high - low) * 2 - 1
    np.testing.assert_allclose(own_range, expected, atol=1e-5)
    assert window.dtype == own_range.dtype == np.float32


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.sampled_from(["u1", "i1", "u2", "i2", "i4", "f4"]),
    st.lists(st.integers(-128, 127), min_size=1, max_size=30),
    st.floats(0, 49),
    st.floats(51, 100),
)
def test_counted_percentiles_are_numpys(dtype: str, values: list[int], low: float, high: float) -> None:
    from medray.imaging.preprocess import _percentiles

    image = (np.array(values) * (1 if dtype[1] == "1" else 200)).astype(dtype)[None]
    np.testing.assert_allclose(
        _percentiles(image, (low, high)), np.percentile(image.astype(float), [low, high]), rtol=1e-6, atol=1e-6
    )


def test_zscore_and_its_nonzero_form() -> None:
    seen = preprocess(CT, own("zscore")).image
    assert abs(seen.mean()) < 1e-5
    assert seen.std() == pytest.approx(1, abs=1e-5)
    image = np.zeros((1, 10, 10), np.float32)
    image[0, 2:8, 2:8] = DRAW.normal(50, 7, (6, 6))
    seen = preprocess(Case("x", image, np.eye(4)), own("zscore_nonzero", size=(14, 14), fit="pad_crop")).image
    brain = seen[seen != 0]
    assert brain.size == 36
    assert abs(brain.mean()) < 1e-5
    assert brain.std() == pytest.approx(1, abs=1e-5)
    assert (seen[0, :4] == 0).all()


@pytest.mark.parametrize("method", ["percentile", "zscore", "zscore_nonzero"])
@pytest.mark.parametrize("value", [0, 7])
@pytest.mark.parametrize("dtype", ["u1", "f4"])
def test_a_constant_image_becomes_zero(method: str, value: int, dtype: str) -> None:
    case = Case("x", np.full((1, 5, 6), value, dtype), np.eye(4))
    seen = preprocess(case, own(method, size=(8, 8), crop_foreground=True)).image
    assert seen.dtype == np.float32
    assert (seen == 0).all()


@pytest.mark.parametrize("method", ["window", "percentile", "zscore", "zscore_nonzero"])
def test_padding_does_not_move_the_statistics(method: str) -> None:
    low, high = (20, 200) if method == "window" else (None, None)
    bare = preprocess(GREY, section(method, low, high)).image
    padded = preprocess(GREY, section(method, low, high, size=(16, 20), fit="pad_crop")).image
    np.testing.assert_array_equal(padded[:, 2:14, 2:18], bare)
    assert (padded[:, :2] == bare.min()).all()


def test_channels() -> None:
    grey = preprocess(COLOUR, section(channels="gray")).image
    red, green, blue = COLOUR.image.astype(float)
    np.testing.assert_allclose(grey[0], 0.299 * red + 0.587 * green + 0.114 * blue, atol=0.51)
    assert grey.dtype == np.uint8
    three = preprocess(GREY, section(channels="rgb", size=(6, 8))).image
    np.testing.assert_array_equal(three, np.repeat(preprocess(GREY, section(size=(6, 8))).image, 3, axis=0))
    assert three.flags.c_contiguous
    for channels, case, count in (("keep", GREY, 1), ("keep", COLOUR, 3), ("gray", GREY, 1), ("rgb", COLOUR, 3)):
        assert preprocess(case, section(channels=channels)).image.shape[0] == count
    for channels in ("gray", "rgb"):
        with pytest.raises(InputError, match="wrong_channels"):
            preprocess(Case("x", np.zeros((2, 4, 4), np.uint8), np.eye(4)), section(channels=channels))


def test_denoise() -> None:
    image = np.full((3, 9, 9), 50, np.uint8)
    image[:, 4, 4] = 250
    case = Case("x", image, np.eye(4))
    median = preprocess(case, section(denoise=DenoiseSection(method="median", size_px=3))).image
    assert (median == 50).all()
    smooth = preprocess(case, section(denoise=DenoiseSection(method="gaussian", size_px=1.0))).image
    assert smooth.dtype == np.uint8
    assert 50 < smooth[0, 4, 4] < 100
    assert (
        preprocess(CT, own("zscore", denoise=DenoiseSection(method="gaussian", size_px=0.5))).image.dtype == np.float32
    )
    for size in (2, 2.5):
        with pytest.raises(ValueError, match="odd"):
            preprocess(case, section(denoise=DenoiseSection(method="median", size_px=size)))


def test_the_whole_road_and_back() -> None:
    cfg = section("window", -1000, 2000, spacing_mm=(1, 1, 1), size=(16, 16, 16), fit="contain", crop_foreground=True)
    ramp = np.indices((9, 8, 6)).sum(0, keepdims=True) * 100 - 900
    raw = Case("x", ramp.astype(np.int16), LPS, "mm")
    seen = preprocess(raw, cfg)
    assert seen.image.shape == (1, 16, 16, 16)
    assert seen.image.flags.c_contiguous
    assert seen.image.dtype == np.float32
    assert (np.diag(seen.affine) > 0).all()
    back = restore(seen.image, seen.affine, raw, order=1)
    assert back.shape == ramp.shape
    np.testing.assert_allclose(back[:, 1:-1, 1:-1, 1:-1], (ramp[:, 1:-1, 1:-1, 1:-1] - 500) / 1500, atol=0.02)


def test_padding_is_background_even_where_the_crop_left_none() -> None:
    image = np.zeros((1, 8, 8), np.float32)
    image[0, 2:6, 2:6] = DRAW.uniform(50, 100, (4, 4))
    keys = {"crop_foreground": True, "size": (8, 8), "fit": "pad_crop"}
    case = Case("x", image, np.eye(4))
    assert preprocess(case, section("range", 0, 100, **keys)).image[0, 0, 0] == 0
    np.testing.assert_array_equal(preprocess(case, section("range", 0, 100, **keys)).image, image)
    inside = image[image > 0]
    seen = preprocess(case, own("zscore", **keys)).image
    assert seen[0, 0, 0] == pytest.approx(-inside.mean() / inside.std(), rel=1e-4)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.tuples(*[st.integers(1, 7)] * 3), st.permutations(range(3)), st.integers(0, 7), st.booleans())
def test_without_resampling_the_way_back_is_exact(
    shape: tuple[int, ...], axes: list[int], mirror: int, crop: bool
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[axes] * [2.0, 3.0, 1.5] * [-1 if mirror >> axis & 1 else 1 for axis in range(3)]
    image = np.random.default_rng(sum(shape)).integers(0, 3, (1, *shape)).astype(np.uint8)
    image.flat[0] = 0
    raw = Case("x", image, affine, "mm")
    seen = preprocess(raw, section(size=(8, 8, 8), fit="pad_crop", crop_foreground=crop))
    assert seen.image.dtype == np.uint8
    np.testing.assert_array_equal(restore(seen.image, seen.affine, raw, order=0), image)


def test_orientation_can_be_left_as_it_is() -> None:
    seen = preprocess(CT, section("range", -1024, 3071, orientation=None))
    np.testing.assert_array_equal(seen.image, CT.image)
    np.testing.assert_array_equal(seen.affine, CT.affine)


def test_what_does_not_fit_the_case_is_refused() -> None:
    for cfg, case, code in (
        (section(size=(8, 8, 8)), GREY, "wrong_rank"),
        (section(size=(8, 8)), CT, "wrong_rank"),
        (section(spacing_mm=(1, 1)), CT, "wrong_rank"),
        (section(spacing_mm=(1, 1)), GREY, "missing_geometry"),
    ):
        with pytest.raises(InputError) as caught:
            preprocess(case, cfg)
        assert caught.value.code == code


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_of_a_volume_is_an_image_with_its_neighbours_as_channels(axis: int) -> None:
    image = np.random.default_rng(0).integers(0, 255, (2, 6, 7, 8)).astype(np.uint8)
    raw = Case("case", image, np.diag([1.5, 2.0, 3.0, 1.0]), "mm")
    taken = {"axis": axis, "position": 1.0, "neighbours": 1}
    cfg = PreprocessSection.model_validate({"slice": taken, "intensity": {"method": "range", "low": 0, "high": 255}})
    found = preprocess(raw, cfg)
    last = image.shape[axis + 1] - 1
    expected = [image[channel].take(min(place, last), axis) for channel in (0, 1) for place in (last - 1, last, last)]
    np.testing.assert_array_equal(found.image, expected)
    assert found.spacing == tuple(edge for other, edge in enumerate((1.5, 2.0, 3.0)) if other != axis)


def test_a_slice_is_taken_of_volumes_alone_and_in_ras() -> None:
    cfg = PreprocessSection.model_validate({"slice": {"axis": 2, "position": 0.0}, "intensity": {"method": "zscore"}})
    with pytest.raises(InputError, match="wrong_rank"):
        preprocess(Case("case", np.zeros((1, 4, 4), np.uint8), np.eye(4)), cfg)
    image = np.random.default_rng(0).normal(size=(1, 4, 5, 6)).astype(np.float32)
    upside_down = np.diag([1.0, 1.0, -1.0, 1.0])
    found = preprocess(Case("case", image, upside_down, "mm"), cfg)
    assert np.corrcoef(found.image.ravel(), image[..., -1].ravel())[0, 1] > 0.999
    with pytest.raises(ValueError, match="would mix"):
        PreprocessSection.model_validate({"slice": {"neighbours": 1}, "channels": "gray"})
