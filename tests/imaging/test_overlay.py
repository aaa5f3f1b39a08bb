import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medray.imaging.overlay import COLOURS, FILL, HEAT_ALPHA, colour_of, heat_colours, heat_overlay, overlay
from medray.imaging.sheet import GAP_PX, MARGIN_PX, ROW_PX
from medray.types import Case

LEGEND_PX = ROW_PX + 2 * MARGIN_PX
SHAPE = (40, 48, 20)
SPACING = (1.0, 1.0, 3.0)
"""RAS: 40 x 48 x 60 mm."""


def volume() -> Case:
    """Dark on the left and bright on the right of the patient."""
    image = np.broadcast_to(np.arange(40, dtype=np.int16)[:, None, None], SHAPE)[None].copy()
    return Case("v", image, np.diag([*SPACING, 1.0]), unit="mm")


def ball(centre: tuple[int, int, int], radius_mm: float = 6.0) -> np.ndarray:
    steps = (np.indices(SHAPE) - np.reshape(centre, (3, 1, 1, 1))) * np.reshape(SPACING, (3, 1, 1, 1))
    return np.asarray(np.square(steps).sum(axis=0) < radius_mm**2)


BALL = ball((10, 36, 14))
"""On the patient's left, anterior and superior."""


def panels(picture: np.ndarray) -> list[np.ndarray]:
    """The axial, coronal and sagittal panel of 40 x 48 x 60 mm at 6 pixels per mm."""
    widths, heights, left, found = (240, 240, 288), (288, 360, 360), 0, []
    for width, height in zip(widths, heights, strict=True):
        top = (360 - height) // 2
        found.append(picture[top : top + height, left : left + width].astype(int))
        left += width + GAP_PX
    return found


def coloured(panel: np.ndarray) -> np.ndarray:
    """The mean (row, column) of pixels that are not grey, as shares of the panel."""
    where = np.argwhere(np.ptp(panel, axis=2) > 20)
    return np.asarray(where.mean(axis=0) / panel.shape[:2])


def test_planes_are_seen_as_radiologists_look_at_them() -> None:
    picture = overlay(volume(), BALL, {1: "ball"})
    assert picture.shape == (360 + LEGEND_PX, 240 + 240 + 288 + 2 * GAP_PX, 3)
    axial, coronal, sagittal = panels(picture)
    # Voxel (10, 36, 14) of (40, 48, 20): 29.5 of 40 columns from the patient's right, 11.5 of 48 rows from anterior.
    np.testing.assert_allclose(coloured(axial), [11.5 / 48, 29.5 / 40], atol=0.01)
    np.testing.assert_allclose(coloured(coronal), [5.5 / 20, 29.5 / 40], atol=0.01)
    np.testing.assert_allclose(coloured(sagittal), [5.5 / 20, 11.5 / 48], atol=0.01)
    # The patient's right is bright, and on the left of the picture.
    assert axial[200, 20].sum() > 600 > 200 > axial[200, -20].sum()


@settings(max_examples=10, deadline=None)
@given(axes=st.permutations(range(3)), signs=st.tuples(*[st.booleans()] * 3))
def test_the_order_in_which_voxels_are_stored_does_not_show(axes: list[int], signs: tuple[bool, ...]) -> None:
    case, stored = volume(), BALL
    affine = case.affine[:, [*axes, 3]].copy()
    image, stored = case.image.transpose(0, *(axis + 1 for axis in axes)), stored.transpose(axes)
    for axis in itertools.compress(range(3), signs):
        affine[:, 3] += affine[:, axis] * (stored.shape[axis] - 1)
        affine[:, axis] *= -1
        image, stored = np.flip(image, axis + 1), np.flip(stored, axis)
    other = overlay(replace(case, image=image, affine=affine), stored, {1: "ball"})
    np.testing.assert_array_equal(other, overlay(case, BALL, {1: "ball"}))


def test_slices_are_spread_over_the_mask_from_below() -> None:
    case = volume()
    case = replace(case, image=np.broadcast_to(np.arange(20, dtype=np.int16), SHAPE)[None].copy())
    mask = np.zeros(SHAPE, np.uint8)
    mask[5:9, 5:9, 2:18] = 1
    picture = overlay(case, mask, slices=4, window=(0, 25.5))
    shown = [picture[60, 60 + column * (200 + GAP_PX)] for column in range(3)] + [picture[60 + 240 + GAP_PX, 60]]
    np.testing.assert_array_equal(shown, [[10 * slice_] * 3 for slice_ in (4, 8, 12, 16)])
    assert overlay(case, mask, slices=99).shape == overlay(case, mask, slices=16).shape
    assert overlay(case, np.zeros(SHAPE, np.uint8), slices=3).shape == (360, 3 * 300 + 2 * GAP_PX, 3)


def test_inside_is_a_light_fill_within_a_line_and_outside_is_the_image() -> None:
    image = np.full((1, 60, 80), 100, np.uint8)
    mask = np.zeros((60, 80), np.uint8)
    mask[20:40, 30:50] = 2
    picture = overlay(Case("flat", image, np.eye(4)), mask, window=(0, 255))[:-LEGEND_PX]
    assert picture.shape == (384, 512, 3)
    colour = np.array(colour_of(2))
    np.testing.assert_allclose(picture[192, 256], 100 + FILL * (colour - 100), atol=1)
    # The edge of the mask is at 128 of 384 rows, between two pixels.
    np.testing.assert_allclose(picture[127:129, 256], [colour, colour], atol=30)
    plain = np.delete(picture, slice(120, 264), axis=0)
    assert (plain == 100).all()


def test_regions_may_overlap_and_are_drawn_as_classes_are() -> None:
    case, mask = volume(), np.where(BALL, 2, ball((30, 10, 5)).astype(np.uint8))
    regions = np.stack([mask == 1, mask == 2])
    np.testing.assert_array_equal(overlay(case, regions), overlay(case, mask))
    assert not np.array_equal(overlay(case, np.stack([mask > 0, mask == 2])), overlay(case, mask))


def test_the_legend_names_what_is_there_and_its_volume() -> None:
    case = volume()
    empty = overlay(case, np.zeros(SHAPE, np.uint8), {1: "ball"})
    assert len(empty) == 360
    named, numbered = overlay(case, BALL, {1: "ball", 2: "absent"}), overlay(case, BALL)
    np.testing.assert_array_equal(named[:360], numbered[:360])
    square = named[360 + LEGEND_PX // 2, MARGIN_PX + 6]
    np.testing.assert_array_equal(square, colour_of(1))
    assert (named[360:] != numbered[360:]).any()
    # A long legend takes several rows.
    many = np.zeros(SHAPE, np.uint8)
    many[0, 0, :9] = range(1, 10)
    names = {value: f"a structure with a long name {value}" for value in range(1, 10)}
    assert len(overlay(case, many, names)) > 360 + LEGEND_PX
    # In pixels nobody knows what is right or how much it is.
    pixels = replace(case, unit="px")
    assert (overlay(pixels, BALL, {1: "ball"})[360:] != named[360:]).any()
    assert not np.array_equal(overlay(pixels, BALL)[:360], numbered[:360])


@pytest.mark.parametrize(
    ("shape", "size"), [((300, 700), (300, 700)), ((64, 64), (512, 512)), ((3000, 1500), (1024, 512))]
)
def test_a_flat_image_keeps_its_size_where_it_fits_a_screen(shape: tuple[int, int], size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 255, (3, *shape), np.uint8)
    picture = overlay(Case("flat", image, np.eye(4)), np.zeros(shape, bool))
    assert picture.shape[:2] == size
    if shape == size:
        np.testing.assert_array_equal(picture, np.moveaxis(image, 0, -1))


def test_pixels_that_are_higher_than_wide_are_shown_so() -> None:
    case = Case("flat", np.zeros((1, 100, 100), np.uint8), np.diag([0.4, 0.2, 1, 1]), unit="mm")
    assert overlay(case, np.zeros((100, 100), bool)).shape == (512, 256, 3)


def test_heat_glows_where_it_is_and_leaves_the_rest() -> None:
    case = volume()
    plain, hot = overlay(case, np.zeros(SHAPE, bool)), heat_overlay(case, ball((20, 24, 10)).astype(np.float32) * 3)
    assert hot.shape == (360 + LEGEND_PX, *plain.shape[1:])
    before, after = panels(plain)[0], panels(hot)[0]
    brightest = heat_colours(np.array(1.0))
    np.testing.assert_allclose(after[141, 117], (1 - HEAT_ALPHA) * before[141, 117] + HEAT_ALPHA * brightest, atol=2)
    np.testing.assert_array_equal(after[250:], before[250:])
    np.testing.assert_array_equal(heat_overlay(case, np.zeros(SHAPE))[:360], plain)
    np.testing.assert_array_equal(heat_overlay(case, np.full(SHAPE, -1.0))[:360], plain)
    flat = Case("flat", np.zeros((1, 512, 512), np.uint8), np.eye(4))
    half = heat_overlay(flat, np.full((512, 512), 0.5), limit=1.0)[0, 0]
    np.testing.assert_allclose(half, HEAT_ALPHA / 2 * heat_colours(np.array(0.5)), atol=1)


def test_heat_has_the_colours_of_inferno() -> None:
    from matplotlib import colormaps

    values = np.linspace(0, 1, 256)
    np.testing.assert_allclose(heat_colours(values), 255 * np.array(colormaps["inferno"].colors), atol=16)
    light = heat_colours(values) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) > 0).all()


def test_colours_of_classes_differ_and_begin_again() -> None:
    assert len({colour_of(value) for value in range(1, 8)}) == len(COLOURS) == 7
    assert colour_of(8) == colour_of(1) == (230, 159, 0)


@pytest.mark.parametrize("draw", [overlay, heat_overlay])
def test_what_does_not_fit_the_image_is_refused(draw: object) -> None:
    assert callable(draw)
    with pytest.raises(ValueError, match="what is to be drawn"):
        draw(volume(), np.zeros((40, 48, 21), np.uint8))
    with pytest.raises(ValueError, match=r"a mask holds|not finite"):
        draw(volume(), np.full(SHAPE, np.nan))
