"""Dice of each case as a figure: any table of cases gives a picture, whatever is missing."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from medray.reports.structures import dice_per_case


def opened(content: bytes) -> Image.Image:
    return Image.open(BytesIO(content))


@pytest.mark.parametrize("cases", [0, 1, 40])
@pytest.mark.parametrize("structures", [1, 5])
def test_it_is_a_picture_that_grows_with_the_structures(cases: int, structures: int) -> None:
    dice = np.random.default_rng(0).random((cases, structures))
    names = [f"structure {number}" for number in range(structures)]
    picture = opened(dice_per_case(dice, names))
    assert picture.format == "PNG"
    assert picture.width > 100 * structures
    assert dice_per_case(dice, names) == dice_per_case(dice, names), "the same every time"


def test_what_is_not_defined_is_left_out() -> None:
    dice = np.array([[0.9, np.nan], [0.7, np.nan]])
    with_gap = dice_per_case(dice, ["one", "other"])
    assert opened(with_gap).width
    more = np.vstack([dice, [np.nan, np.nan]])
    assert dice_per_case(more, ["one", "other"]) == with_gap
    assert dice_per_case(dice[:1], ["one", "other"]) != with_gap
