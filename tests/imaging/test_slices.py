"""The affine of ordered planes, by numbers alone."""

from __future__ import annotations

import numpy as np
import pytest

from medray.imaging.dicom.slices import Plane, affine, normal_of
from medray.types import InputError


def planes(*positions: tuple[float, float, float]) -> tuple[Plane, ...]:
    return tuple(
        Plane(k, (4, 5), spacing=(2.0, 3.0), orientation=(0, 1, 0, 0, 0, -1), position=position)
        for k, position in enumerate(positions)
    )


def test_the_affine_maps_column_row_and_slice() -> None:
    # Rows run to posterior and columns to inferior, so the normal points to the right of the patient, -x in LPS.
    volume = planes((10, 0, 0), (6, 0, 0), (2, 0, 0))
    np.testing.assert_array_equal(normal_of(volume[0]), [-1, 0, 0])
    expected = [[0, 0, 4, -10], [-3, 0, 0, 0], [0, -2, 0, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(affine(volume), expected)


@pytest.mark.parametrize(
    ("depths", "code"),
    [
        ((0, 1, 3), "missing_slices"),
        ((0, 1, 2, 3, 10, 11), "missing_slices"),
        ((0, 1, 2, 4, 5, 8, 9), "missing_slices"),
        ((0, 1, 2, 4, 6), "missing_slices"),
        ((0, 1, 3, 5), "non_uniform_spacing"),
        ((0, 1, 2.5, 3.5), "non_uniform_spacing"),
        ((0, 1, 2, 2.3, 3.3), "non_uniform_spacing"),
        ((0, 0.04, 0.08, 0.16), "missing_slices"),
    ],
)
def test_a_step_that_is_a_multiple_is_a_gap_and_any_other_is_uneven(depths: tuple[float, ...], code: str) -> None:
    with pytest.raises(InputError) as caught:
        affine(planes(*((-depth, 0, 0) for depth in depths)))
    assert caught.value.code == code


def test_gaps_are_named_by_position_and_count() -> None:
    with pytest.raises(InputError) as caught:
        affine(planes(*((-2.5 * k, 0, 0) for k in (0, 1, 2, 5, 6, 8, 9))))
    assert "3 of 10 slices" in caught.value.detail
    assert "2 after 5.00 mm, 1 after 15.00 mm" in caught.value.detail


def test_planes_beside_the_normal_are_sheared() -> None:
    assert affine(planes((0, 0, 0), (-5, 0.049, 0)))[1, 2] == pytest.approx(-0.049)
    with pytest.raises(InputError, match=r"0\.30 mm sideways over 20\.00 mm") as caught:
        affine(planes((0, 0, 0), (-10, 0.1, 0), (-20, 0.3, 0)))
    assert caught.value.code == "gantry_tilt"
