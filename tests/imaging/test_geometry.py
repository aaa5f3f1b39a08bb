import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medray.imaging.geometry import (
    Grid,
    crop_foreground,
    fit,
    fitted,
    grid_of,
    onto,
    onto_label,
    restore,
    spaced,
    to_ras,
)
from medray.imaging.resample import resample
from medray.types import Case

quick = settings(deadline=None, max_examples=40, derandomize=True)


def turned(angles: tuple[float, ...], spacing: tuple[float, ...], shift: tuple[float, ...] = (5, -7, 11)) -> np.ndarray:
    """Affine of a grid with `spacing`, turned about the three axes by `angles` in radians."""
    affine = np.eye(4)
    for axis, angle in enumerate(angles):
        a, b = [other for other in range(3) if other != axis]
        turn = np.eye(4)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        affine = affine @ turn
    affine = affine @ np.diag([*spacing, 1])
    affine[:3, 3] = shift
    return affine


def world(case: Case) -> np.ndarray:
    """(3, *S) world coordinate of every voxel."""
    dims = case.spatial_dims
    index = np.indices(case.image.shape[1:]).reshape(dims, -1)
    place = case.affine[:3, :dims] @ index + case.affine[:3, 3:]
    return place.reshape(3, *case.image.shape[1:])


def volume(shape: tuple[int, ...], affine: np.ndarray, seed: int = 0) -> Case:
    image = np.random.default_rng(seed).integers(-99, 99, (1, *shape)).astype(np.int16)
    return Case("x", image, affine, "mm" if len(shape) == 3 else "px")


angles = st.tuples(*[st.floats(-3.1, 3.1)] * 3)
spacings = st.tuples(*[st.floats(0.5, 4)] * 3)
shapes3 = st.tuples(*[st.integers(1, 7)] * 3)
shapes2 = st.tuples(*[st.integers(1, 12)] * 2)


@quick
@given(angles, spacings, shapes3, st.tuples(*[st.booleans()] * 3))
def test_to_ras_gives_ras_and_moves_no_voxel(angle, spacing, shape, mirror) -> None:  # type: ignore[no-untyped-def]
    case = volume(shape, turned(angle, spacing) @ np.diag([*(-1 if way else 1 for way in mirror), 1]))
    ras = to_ras(case)
    direction = ras.affine[:3, :3] / np.linalg.norm(ras.affine[:3, :3], axis=0)
    assert (np.diag(direction) > 0).all()
    if np.sort(np.abs(direction), axis=0)[-2].max() < 0.5:
        assert nibabel.aff2axcodes(ras.affine) == ("R", "A", "S")
    before = sorted(map(tuple, np.round(np.vstack([world(case).reshape(3, -1), case.image.reshape(1, -1)]).T, 3) + 0.0))
    after = sorted(map(tuple, np.round(np.vstack([world(ras).reshape(3, -1), ras.image.reshape(1, -1)]).T, 3) + 0.0))
    np.testing.assert_allclose(np.array(before), np.array(after), atol=2e-3)
    np.testing.assert_array_equal(restore(ras.image, ras.affine, case, order=1), case.image)


@quick
@given(angles, spacings, shapes3, shapes3, st.integers(0, 99))
def test_orientation_crop_and_padding_are_undone_to_the_bit(angle, spacing, shape, size, seed) -> None:  # type: ignore[no-untyped-def]
    raw = volume(shape, turned(angle, spacing), seed)
    labels = np.where(raw.image > 60, raw.image, 0)
    raw = Case("x", labels, raw.affine, "mm")
    cut = crop_foreground(to_ras(raw))
    seen = onto(cut, fitted(grid_of(cut), [edge + 7 for edge in size], "pad_crop"), order=0, fill=0)
    np.testing.assert_array_equal(restore(seen.image, seen.affine, raw, order=0), labels)


@quick
@given(shapes2, shapes2)
def test_pad_crop_keeps_what_both_grids_show(shape, size) -> None:  # type: ignore[no-untyped-def]
    raw = volume(shape, np.eye(4))
    seen = fit(raw, size, "pad_crop")
    assert seen.image.shape[1:] == size
    assert seen.image.dtype == raw.image.dtype
    back = restore(seen.image, seen.affine, raw, order=0, fill=99)
    kept = [min(a, b) for a, b in zip(shape, size, strict=True)]
    assert (back == raw.image).sum() >= kept[0] * kept[1]
    assert ((back == raw.image) | (back == 99)).all()


@quick
@given(shapes2, st.integers(2, 24), st.integers(2, 24), st.sampled_from(["stretch", "contain"]))
def test_a_ramp_keeps_its_world_coordinates(shape, rows, columns, mode) -> None:  # type: ignore[no-untyped-def]
    raw = Case("x", np.zeros((1, *shape), np.float32), np.diag([0.5, 2.0, 1, 1]))
    place = world(raw)
    for axis in (0, 1):
        ramp = Case("x", place[axis][None].astype(np.float32), raw.affine)
        seen = fit(ramp, (rows, columns), mode)
        assert seen.image.shape == (1, rows, columns)
        there = world(seen)[axis]
        # Beyond the outer centres the nearest value is taken, and a Gaussian reaches 4 of its deviations.
        step = [n / m for n, m in zip(grid_of(raw).shape, (rows, columns), strict=True)]
        step = [max(step)] * 2 if mode == "contain" else step
        margin = (1 + 4 * max(0, (step[axis] - 1) / 2)) * raw.spacing[axis]
        other = 1 - axis
        across = world(seen)[other]
        inside = (there >= place[axis].min() + margin) & (there <= place[axis].max() - margin)
        inside &= (across >= place[other].min()) & (across <= place[other].max())
        np.testing.assert_allclose(seen.image[0][inside], there[inside], atol=1e-3)


@quick
@given(shapes2, shapes2, st.sampled_from([1, 2]))
def test_flips_commute_with_stretch(shape, size, axis) -> None:  # type: ignore[no-untyped-def]
    raw = Case("x", np.random.default_rng(1).normal(size=(1, *shape)).astype(np.float32), np.eye(4))
    flipped = Case("x", np.flip(raw.image, axis), raw.affine)
    one, other = fit(flipped, size, "stretch").image, np.flip(fit(raw, size, "stretch").image, axis)
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_stretch_maps_edges_to_edges() -> None:
    raw = volume((8, 6), np.diag([2.0, 3, 1, 1]))
    grid = fitted(grid_of(raw), (4, 12), "stretch")
    np.testing.assert_allclose(np.diag(grid.affine), [4, 1.5, 1, 1])
    np.testing.assert_allclose(grid.affine[:2, 3], [1, -0.75])


def test_contain_pads_behind_and_interpolates_nothing_at_factor_one() -> None:
    raw = volume((4, 8), np.eye(4))
    seen = fit(raw, (9, 8), "contain")
    np.testing.assert_array_equal(seen.image[:, 2:6], raw.image)
    assert (seen.image[:, :2] == raw.image.min()).all()
    half = fit(raw, (4, 4), "contain")
    np.testing.assert_allclose(half.affine[:2], [[2, 0, 0, -1.5], [0, 2, 0, 0.5]])
    assert (half.image[:, [0, 3]] == raw.image.min()).all()


def test_spacing_is_exact_and_the_centre_stays() -> None:
    raw = volume((10, 9, 8), turned((0.3, 0.2, -0.4), (0.7, 0.7, 2.5)))
    seen = onto(raw, spaced(grid_of(raw), (1.5, 1.5, 1.5)), order=1)
    np.testing.assert_allclose(seen.spacing, 1.5)
    assert seen.image.shape == (1, 5, 4, 13)
    assert seen.image.dtype == np.int16
    centre = [raw.affine[:3, :3] @ ((np.array(raw.image.shape[1:]) - 1) / 2) + raw.affine[:3, 3]]
    centre += [seen.affine[:3, :3] @ ((np.array(seen.image.shape[1:]) - 1) / 2) + seen.affine[:3, 3]]
    np.testing.assert_allclose(*centre)
    assert spaced(grid_of(volume((1, 1, 1), np.eye(4))), (9, 9, 9)).shape == (1, 1, 1)


def test_a_label_survives_the_way_through_isotropic_voxels() -> None:
    affine = turned((0.3, -0.2, 0.5), (0.9, 0.9, 2.5)) @ np.diag([-1, 1, 1, 1])
    raw = Case("x", np.zeros((1, 44, 40, 16), np.float32), affine, "mm")
    centre = (world(raw).reshape(3, -1).mean(1))[:, None, None, None]
    distance = np.sqrt((((world(raw) - centre) / np.array([15, 12, 13])[:, None, None, None]) ** 2).sum(0))
    blob = Case("x", (distance < 1).astype(np.float32)[None], affine, "mm")
    upright = to_ras(blob)
    seen = fit(onto(upright, spaced(grid_of(upright), (1.5, 1.5, 1.5)), order=1), (32, 32, 32), "pad_crop")
    back = restore((seen.image > 0.5).astype(np.float32), seen.affine, blob, order=1) > 0.5
    dice = 2 * (back & (blob.image > 0)).sum() / (back.sum() + blob.image.sum())
    assert dice >= 0.97


def test_any_affine_is_resampled_as_its_separable_twin() -> None:
    raw = Case("x", np.random.default_rng(0).normal(size=(2, 9, 8, 7)).astype(np.float32), np.eye(4), "mm")
    to = np.diag([1.5, 0.8, 1.2, 1]) + 0.0
    to[:3, 3] = (-1.3, 0.2, 0.4)
    straight = resample(raw.image, raw.affine, to, (6, 9, 6), 1, fill=-5)
    # A turn that no voxel notices is enough to leave the separable road.
    bent = resample(raw.image, raw.affine, to @ turned((0, 0, 4e-4), (1, 1, 1), (0, 0, 0)), (6, 9, 6), 1, fill=-5)
    assert (straight[:, 0] == -5).all()
    assert np.abs(straight - bent).max() < 0.05
    constant = np.full((1, 5, 5, 5), 3, np.int16)
    for order in (0, 1, 3):
        turn = turned((0.2, 0.3, 0.4), (0.9, 1, 1.1), (1.5, 1.5, 1.5))
        result = resample(constant, np.eye(4), turn, (3, 3, 3), order, fill=0)
        assert result.dtype == np.int16
        assert set(np.unique(result)) <= {0, 3}
        assert result[0, 1, 1, 1] == 3


def test_cubic_is_sharper_than_linear_and_nearest_invents_nothing() -> None:
    line = np.sin(np.arange(24) / 2).astype(np.float32)
    raw = Case("x", np.tile(line, (5, 1))[None], np.eye(4))
    grid = fitted(grid_of(raw), (5, 96), "stretch")
    truth = np.sin((np.arange(96) / 4 - 0.375) / 2)
    error = {order: np.abs(onto(raw, grid, order).image[0, 2] - truth)[8:-8].max() for order in (0, 1, 3)}
    assert error[3] < error[1] < error[0]
    assert set(np.unique(onto(raw, grid, 0).image)) <= set(np.unique(line))


def test_shrinking_does_not_alias() -> None:
    stripes = np.tile(np.array([0, 1], np.float32), (1, 64, 32))
    seen = fit(Case("x", stripes, np.eye(4)), (20, 20), "stretch")
    assert np.ptp(seen.image[0, :, 4:-4]) < 0.15


def test_crop_foreground_finds_the_box() -> None:
    image = np.full((2, 6, 7), -3.0, np.float32)
    image[0, 2, 3], image[1, 4, 5] = 1, 2
    seen = crop_foreground(Case("x", image, np.diag([2.0, 2, 1, 1])))
    assert seen.image.shape == (2, 3, 3)
    np.testing.assert_allclose(seen.affine[:2, 3], [4, 6])
    flat = Case("x", np.ones((1, 4, 4)), np.eye(4))
    assert crop_foreground(flat) is flat


@pytest.mark.parametrize("mode", ["stretch", "contain", "pad_crop"])
def test_2d_is_not_touched_by_orientation_and_never_rotated(mode: str) -> None:
    raw = volume((5, 9), np.eye(4))
    assert to_ras(raw) is raw
    assert fit(raw, (5, 9), mode).image.tolist() == raw.image.tolist()  # type: ignore[arg-type]


def label_of(shape: tuple[int, ...], affine: np.ndarray, classes: int = 4, seed: int = 0) -> Case:
    """A label map of blobs."""
    draw = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(draw.normal(size=(classes, *shape)), (0, *[1.2] * len(shape)))
    return Case("x", fields.argmax(0)[None].astype(np.uint8), affine, "mm")


@pytest.mark.parametrize("shape", [(9, 11), (6, 7, 8)])
def test_a_label_on_its_own_grid_is_itself(shape: tuple[int, ...]) -> None:
    label = label_of(shape, turned((0.2, 0.3, 0.4), (1, 2, 3)) if len(shape) == 3 else np.eye(4))
    np.testing.assert_array_equal(onto_label(label, grid_of(label)), label.image[0])


def test_where_voxels_coincide_a_label_is_copied() -> None:
    """Turning, cropping and padding: as nearest neighbours, and background outside."""
    label = label_of((8, 9, 10), np.diag([-1.0, -2.0, 3.0, 1.0]))
    ras = to_ras(label)
    np.testing.assert_array_equal(onto_label(label, grid_of(ras)), ras.image[0])
    for size in ((5, 6, 7), (12, 11, 13), (8, 14, 3)):
        grid = fitted(grid_of(ras), size, "pad_crop")
        np.testing.assert_array_equal(onto_label(label, grid), onto(ras, grid, 0, 0).image[0])


@quick
@given(angles, spacings, st.integers(0, 99), st.sampled_from([0, 3, 250]))
def test_each_voxel_takes_the_class_with_the_largest_share(angle, spacing, seed, first) -> None:  # type: ignore[no-untyped-def]
    label = label_of((6, 7, 5), turned(angle, (1.0, 1.2, 2.0)), 3, seed)
    label = Case("x", label.image + np.uint8(first), label.affine, "mm")
    grid = spaced(grid_of(label), spacing)
    found = onto_label(label, grid)
    assert found.dtype == np.uint8
    assert found.shape == grid.shape
    values = np.unique(label.image)
    assert set(np.unique(found).tolist()) <= {0, *values.tolist()}, "no class is invented"
    planes = [(label.image == value).astype(np.float32) for value in values.tolist()]
    shares = np.concatenate(
        [
            resample(plane, label.affine, grid.affine, grid.shape, 1, float(value == 0))
            for plane, value in zip(planes, values.tolist(), strict=True)
        ]
    )
    ordered = np.sort(shares, 0)
    clear = (ordered[-1] - ordered[-2] > 1e-5) if len(values) > 1 else ordered[-1] > 0
    np.testing.assert_array_equal(found[clear], values[shares.argmax(0)][clear])


def test_a_finer_label_has_no_steps() -> None:
    """A straight slanted edge at four times the resolution: nearest neighbours are off by more voxels."""
    rows, columns = np.indices((12, 12))
    coarse = Case("x", (columns > 0.5 * rows + 3)[None].astype(np.uint8), np.eye(4))
    grid = spaced(Grid((12, 12), np.eye(4)), (0.25, 0.25))
    place = (np.indices(grid.shape) - 1.5) / 4
    truth = place[1] > 0.5 * place[0] + 3
    linear = (onto_label(coarse, grid) != truth).sum()
    nearest = (onto(coarse, grid, 0).image[0] != truth).sum()
    assert linear < 0.9 * nearest
