import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.spatial.distance import cdist

from medray.metrics import surface
from medray.metrics.surface import (
    ABSENT,
    APART,
    SurfaceDistances,
    diagonal_mm,
    foreground_box,
    summarise,
    surface_distances,
    surface_metrics,
)

quick = settings(max_examples=25, deadline=None)
shapes = st.one_of(st.tuples(*[st.integers(1, 14)] * 2), st.tuples(*[st.integers(1, 9)] * 3))
spacings = st.tuples(*[st.sampled_from([0.3, 0.7, 0.9765625, 1.0, 2.5, 5.0])] * 3)
pairs = {"seed": st.integers(0, 10**6), "shape": shapes, "spacing": spacings, "tolerance": st.sampled_from([0, 1.4, 3])}


def blobs(seed: int, shape: tuple[int, ...], classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Two label maps with smooth structures, or now and then noise; they often touch the image's border."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.standard_normal((2, *shape)), (0, *[rng.choice([0, 0.5, 1.5])] * len(shape)))
    field[1] += field[0]
    levels = np.quantile(field, np.linspace(0.3, 0.9, classes - 1))
    predicted, truth = np.digitize(field, levels).astype(np.uint8)
    return predicted, truth


def reference(predicted: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...], tolerance: float) -> list[float]:
    """All distances between all surface voxels, in float64."""
    ours, theirs = (np.argwhere(mask & ~binary_erosion(mask)) * np.array(spacing) for mask in (predicted, truth))
    if not len(ours) or not len(theirs):
        return list(APART if len(ours) or len(theirs) else ABSENT)
    table = cdist(ours, theirs)
    there, back = table.min(1), table.min(0)
    both = np.concatenate([there, back])
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    return [hd95, both.max(), both.mean(), np.mean(both <= tolerance + 1e-9)]


@given(**pairs, query=st.sampled_from([0, 8, 10**9]))
@quick
def test_figures_are_those_of_all_distances(
    seed: int, shape: tuple[int, ...], spacing: tuple[float, ...], tolerance: float, query: int
) -> None:
    predicted, truth = (labels > 0 for labels in blobs(seed, shape))
    spacing = spacing[: len(shape)]
    # By the tree alone, by the distance transform alone, and by what is quicker.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surface, "QUERY", query)
        found = surface_distances(predicted, truth, spacing, tolerance)
    np.testing.assert_allclose(found, reference(predicted, truth, spacing, tolerance), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@given(**pairs)
@quick
def test_figures_are_monais(seed: int, shape: tuple[int, ...], spacing: tuple[float, ...], tolerance: float) -> None:
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

    predicted, truth = blobs(seed, shape, 3)
    spacing = spacing[: len(shape)]
    found = surface_metrics(predicted, truth, 3, spacing, tolerance)
    ours, theirs = (
        torch.from_numpy(np.stack([labels == k for k in range(3)]))[None].float() for labels in (predicted, truth)
    )
    with warnings.catch_warnings():
        # MONAI notes empty masks.
        warnings.simplefilter("ignore")
        hd95 = compute_hausdorff_distance(ours, theirs, percentile=95, spacing=spacing)[0].numpy()
        hd = compute_hausdorff_distance(ours, theirs, spacing=spacing)[0].numpy()
        assd = compute_average_surface_distance(ours, theirs, symmetric=True, spacing=spacing)[0].numpy()
        nsd = compute_surface_dice(ours, theirs, [tolerance] * 2, spacing=spacing)[0].numpy()
    for k in (1, 2):
        wanted = [hd95[k - 1], hd[k - 1], assd[k - 1], nsd[k - 1]]
        if np.isfinite(found[k].hd):
            np.testing.assert_allclose(found[k][1:], wanted[1:], rtol=1e-6, atol=1e-6)
            # torch finds the place of the percentile in float32: among 700 distances it is off by up to 5e-5 of a gap.
            assert found[k].hd95 == pytest.approx(wanted[0], abs=5e-5 * found[k].hd)
        else:
            np.testing.assert_equal(found[k].nsd, wanted[3])


@given(**pairs, classes=st.integers(2, 6))
@quick
def test_label_maps_are_masks_of_each_class(
    seed: int, shape: tuple[int, ...], spacing: tuple[float, ...], tolerance: float, classes: int
) -> None:
    predicted, truth = blobs(seed, shape, classes)
    spacing = spacing[: len(shape)]
    tolerances = [tolerance + 0.5 * k for k in range(classes)]
    found = surface_metrics(predicted, truth, classes, spacing, tolerances)
    assert found[0] is ABSENT
    for k in range(1, classes):
        alone = surface_distances(predicted == k, truth == k, spacing, tolerances[k])
        np.testing.assert_allclose(found[k], alone, rtol=1e-12)


@given(**pairs)
@quick
def test_neither_flips_nor_turns_nor_margins_matter(
    seed: int, shape: tuple[int, ...], spacing: tuple[float, ...], tolerance: float
) -> None:
    predicted, truth = blobs(seed, shape, 3)
    spacing = spacing[: len(shape)]
    found = np.array(surface_metrics(predicted, truth, 3, spacing, tolerance))
    axes = np.random.default_rng(seed).permutation(len(shape))
    turned = [np.flip(labels, -1).transpose(axes) for labels in (predicted, truth)]
    others = [
        surface_metrics(*turned, 3, [spacing[axis] for axis in axes], tolerance),
        surface_metrics(np.pad(predicted, (3, 1)), np.pad(truth, (3, 1)), 3, spacing, tolerance),
        surface_metrics(truth, predicted, 3, spacing, tolerance),
        surface_metrics(np.asfortranarray(predicted), np.asfortranarray(truth).astype(np.int64), 3, spacing, tolerance),
    ]
    for other in others:
        np.testing.assert_allclose(np.array(other), found, rtol=1e-9, atol=1e-9)
    scaled = surface_metrics(predicted, truth, 3, [2 * edge for edge in spacing], 2 * tolerance)
    np.testing.assert_allclose(np.array(scaled), found * [2, 2, 2, 1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("query", [0, 10**9])
@pytest.mark.parametrize("edge", [0.3, 0.7, 1.0, 2.5])
@pytest.mark.parametrize("shift", [1, 2, 3])
def test_a_shifted_mask_is_as_far_as_the_shift(
    shift: int, edge: float, query: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surface, "QUERY", query)
    mask = np.zeros((20, 12, 12), bool)
    mask[3:13, 4:9, 4:9] = True
    # The tolerance is the distance itself: reached, whatever its rounding.
    found = surface_distances(np.roll(mask, shift, 0), mask, (edge, 5.0, 5.0), shift * edge)
    assert found.hd == pytest.approx(shift * edge)
    assert found.nsd == 1
    assert surface_distances(np.roll(mask, shift, 0), mask, (edge, 5.0, 5.0), 0).nsd < 1


def test_the_diagonal_is_the_largest_distance() -> None:
    corners = np.zeros((2, 5, 4, 3), bool)
    corners[0, 0, 0, 0] = corners[1, -1, -1, -1] = True
    found = surface_distances(*corners, (0.5, 1, 2), 1).hd
    assert found == pytest.approx(diagonal_mm((4, 3, 2), (0.5, 1, 2)))


def test_empty_masks_have_a_policy() -> None:
    nothing, square = np.zeros((6, 6), bool), np.pad(np.ones((2, 2), bool), 2)
    np.testing.assert_equal(surface_distances(nothing, nothing, (1, 1), 1), ABSENT)
    assert surface_distances(nothing, square, (1, 1), 1) == APART
    assert surface_distances(square, nothing, (1, 1), 1) == APART
    assert surface_distances(square, square, (1, 1), 0) == (0, 0, 0, 1)


def test_ignored_voxels_are_background_in_both() -> None:
    predicted, truth = blobs(5, (12, 12), 3)
    marked = truth.copy()
    marked[:4] = 255
    cleared = [np.where(marked == 255, 0, labels) for labels in (predicted, truth)]
    found = surface_metrics(predicted, marked, 3, (1, 2), 1, ignore=255)
    np.testing.assert_equal(found, surface_metrics(*cleared, 3, (1, 2), 1))


def test_summary_by_hand() -> None:
    close, far = SurfaceDistances(1, 2, 0.5, 0.9), SurfaceDistances(3, 4, 1.5, 0.5)
    table = np.array([[ABSENT, close, ABSENT], [ABSENT, far, APART], [ABSENT, APART, far]])
    names = ("background", "liver", "tumour")
    found = summarise(table, names, [10, 20, 30])
    assert found["hd95/liver"] == pytest.approx(34 / 3)
    assert found["hd95/tumour"] == pytest.approx(23 / 2)
    assert found["hd95"] == pytest.approx((34 / 3 + 23 / 2) / 2)
    assert found["nsd/tumour"] == 0.25
    assert np.isnan(found["nsd/background"])
    assert (found["unmatched"], found["unmatched/liver"]) == (2, 1)
    without = summarise(table, names)
    assert without["hd95"] == pytest.approx((2 + 3) / 2)
    assert without["nsd"] == found["nsd"]
    assert without["unmatched"] == 2
    shared = summarise(table[[2, 0, 1]], names, [30, 10, 20])
    np.testing.assert_equal(shared, found)


@given(st.integers(0, 10**6), shapes)
@quick
def test_foreground_box_is_tight(seed: int, shape: tuple[int, ...]) -> None:
    mask = np.random.default_rng(seed).random(shape) < 0.05
    box = foreground_box(mask)
    assert mask[box].sum() == mask.sum()
    where = np.argwhere(mask)
    if len(where):
        assert [(part.start, part.stop) for part in box] == list(zip(where.min(0), where.max(0) + 1, strict=True))
    else:
        assert mask[box].size == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spacing": (1.0,)}, "spacing must be 2 numbers"),
        ({"spacing": (1.0, 0.0)}, "above 0"),
        ({"tolerance_mm": -1.0}, "tolerance_mm"),
        ({"truth": np.zeros((4, 5), int)}, "one shape"),
        ({"predicted": np.full((4, 4), 3)}, "values 3 to 3; classes are 0 to 1"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, object], message: str) -> None:
    maps = {"predicted": np.ones((4, 4), int), "truth": np.ones((4, 4), int)}
    arguments = {**maps, "classes": 2, "spacing": (1.0, 1.0), "tolerance_mm": 1.0, **change}
    with pytest.raises(ValueError, match=message):
        surface_metrics(**arguments)


def test_masks_must_be_bool() -> None:
    with pytest.raises(ValueError, match="must be bool"):
        surface_distances(np.ones((2, 2)), np.ones((2, 2), bool), (1, 1), 1)
