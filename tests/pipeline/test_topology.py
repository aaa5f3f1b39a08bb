"""Depth, kernels and strides: nnU-Net's published plans, and what holds for every spacing and patch."""

from __future__ import annotations

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medray.pipeline.recipe import SMALLEST_EDGE, START_VOXELS
from medray.pipeline.topology import first_patch, smaller, topology

EDGES = st.integers(1, 320)
SPACINGS = st.floats(0.2, 8.0)


def test_hippocampus_is_as_published() -> None:
    """nnU-Net's 3d_fullres plan of Task04: patch 40 x 56 x 40, three poolings of all axes."""
    found = topology((1, 1, 1), first_patch((1, 1, 1), (36, 50, 35)))
    assert found.patch == (40, 56, 40)
    assert found.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert set(found.kernels) == {(3, 3, 3)}


def test_prostate_is_as_published() -> None:
    """nnU-Net's 3d_fullres plan of Task05: spacing 3.6 x 0.62 x 0.62, patch 20 x 320 x 256 in its order of axes."""
    found = topology((3.6, 0.625, 0.625), (20, 320, 256))
    assert found.patch == (20, 320, 256)
    assert found.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2))
    assert found.kernels[:3] == ((1, 3, 3), (1, 3, 3), (3, 3, 3))


@given(st.lists(st.tuples(SPACINGS, EDGES), min_size=2, max_size=3))
def test_what_always_holds(axes: list[tuple[float, int]]) -> None:
    spacing, patch = zip(*axes, strict=True)
    found = topology(spacing, patch)
    assert len(found.kernels) == len(found.strides) == found.levels
    assert all(edge % factor == 0 for edge, factor in zip(found.patch, found.factor, strict=True))
    assert all(edge <= new < edge + factor for edge, new, factor in zip(patch, found.patch, found.factor, strict=True))
    assert found.strides[0] == (1,) * len(patch)
    assert all(
        edge // factor >= min(SMALLEST_EDGE, edge) for edge, factor in zip(found.patch, found.factor, strict=True)
    )
    # A kernel that has become 3 stays 3.
    assert all(
        a <= b
        for low, high in zip(found.kernels, found.kernels[1:], strict=False)
        for a, b in zip(low, high, strict=True)
    )


@given(st.lists(st.tuples(SPACINGS, st.integers(1, 160)), min_size=2, max_size=3))
def test_smaller_ends(axes: list[tuple[float, int]]) -> None:
    """Each step has fewer voxels, the axis that is largest beside the median first; it ends above the least edge."""
    spacing, median = zip(*axes, strict=True)
    now = topology(spacing, first_patch(spacing, median))
    for _ in range(2000):
        fewer = smaller(spacing, now, median, 32)
        if fewer is None:
            break
        assert prod(fewer.patch) < prod(now.patch)
        assert sum(new < min(32, old) for new, old in zip(fewer.patch, now.patch, strict=True)) == 0
        now = fewer
    else:
        pytest.fail("it never ends")


def test_the_first_patch_is_a_cube_in_mm_within_the_median_case() -> None:
    assert first_patch((1, 1, 1), (400, 400, 300)) == (256, 256, 256)
    thick = first_patch((1, 1, 4), (900, 900, 300))
    assert thick == (406, 406, 102)
    assert prod(thick) == pytest.approx(START_VOXELS[3], rel=0.01)
    assert first_patch((1, 1), (256, 3000)) == (256, 2048)


def test_what_cannot_be_halved_has_two_levels_all_the_same() -> None:
    found = topology((1, 1), (7, 5))
    assert (found.patch, found.strides, found.kernels) == ((7, 5), ((1, 1), (1, 1)), ((3, 3), (3, 3)))
