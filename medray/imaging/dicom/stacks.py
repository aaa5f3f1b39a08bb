"""Which of the planes of a series make a volume: parallel slices on one grid, parted by time, echo or diffusion."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from medray.imaging.dicom.slices import Plane, Volume, normal_of
from medray.types import Array, InputError

SAME_PLACE_MM = 0.005
"""Half of the smallest step that is plausible: positions closer than this are one."""
FARTHEST_MM = 1e5
"""No position in a scanner and no pixel is that far."""
SAME_DIRECTION = 1e-3
"""Direction cosines that differ by less are one direction, written with few digits."""
TIMES = (
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "AcquisitionNumber",
    "EchoNumbers",
    "EchoTime",
    "DiffusionBValue",
    "DiffusionDirection",
    "DimensionIndexValues",
)
"""Attributes that say by their value to which volume of a 4D series a slice belongs; the first that does is taken."""
ONE_VALUE = ("EchoTime", "SliceThickness")
"""Attributes with one value in a plain series."""
CLOCKS = ("TriggerTime", "AcquisitionTime", "ContentTime")
"""Attributes that put the slices of one position in the order of time, but differ between positions."""


def volumes(planes: Sequence[Plane]) -> tuple[Volume, ...]:
    """The complete stacks that `planes` are, in the order of time; one for a plain series.

    Raises missing_geometry, bad_affine, mixed_orientation, inconsistent_size, non_uniform_spacing (of pixels),
    mixed_series (several kernels, kinds of image, echo times, ...), duplicate_slices, missing_slices (of one
    time point).
    """
    _check_alike(planes)
    depth = _depths(planes)
    order = np.argsort(depth, kind="stable")
    place = np.empty(len(planes), int)
    place[order] = np.cumsum(np.diff(depth[order], prepend=depth[order[0]]) > SAME_PLACE_MM)
    stacks: list[list[int]] = [[] for _ in range(place.max() + 1)]
    for index in order:
        stacks[place[index]].append(int(index))
    if len(stacks) == len(planes):
        volume = tuple(planes[index] for index in order)
        _check_one_kind(volume)
        return (volume,)
    _check_counts(planes, stacks, depth - depth.min())
    # What was never measured is often written as 0; then only an attribute of nothing but time makes it a cine.
    placed = any(value for plane in planes for value in plane.position)
    for split in _splits(planes, stacks, placed):
        return tuple(tuple(planes[index] for index in sorted(group, key=lambda i: depth[i])) for group in split)
    if not placed:
        raise InputError("missing_geometry", f"all {len(planes)} slices say that they are at position 0, 0, 0")
    raise InputError(
        "duplicate_slices",
        f"{len(stacks[0])} slices at each of {len(stacks)} positions, and no attribute tells them apart as volumes",
        "they may be copies, or volumes that only a private tag divides: keep or export one volume at a time",
    )


def _depths(planes: Sequence[Plane]) -> Array:
    return np.asarray(np.array([plane.position for plane in planes]) @ normal_of(planes[0]))


def _check_alike(planes: Sequence[Plane]) -> None:
    """Raise where the planes could not be parallel slices of one grid."""
    first = planes[0]
    for name in ("orientation", "position", "spacing"):
        without = sum(not getattr(plane, name) for plane in planes)
        if without:
            raise InputError(
                "missing_geometry",
                f"{without} of {len(planes)} images have no {name}, without which they make no volume",
                "images that are no volume are given one by one",
            )
    spacing = np.array([plane.spacing for plane in planes])
    if spacing.min() <= 0 or max(spacing.max(), np.abs([plane.position for plane in planes]).max()) > FARTHEST_MM:
        raise InputError("bad_affine", f"a pixel spacing is not positive, or a length is over {FARTHEST_MM:g} mm")
    cosines = np.array([plane.orientation for plane in planes])
    row, column = cosines[:, :3], cosines[:, 3:]
    with np.errstate(over="ignore", invalid="ignore"):
        skew = [(row * row).sum(axis=1) - 1, (column * column).sum(axis=1) - 1, (row * column).sum(axis=1)]
    if not np.abs(skew).max() <= SAME_DIRECTION:
        raise InputError("bad_affine", "the direction cosines of a slice are not two orthogonal unit vectors")
    other = np.abs(cosines - cosines[0]).max(axis=1) > SAME_DIRECTION
    if other.any():
        raise InputError(
            "mixed_orientation",
            f"{_fewer(other)} of {len(planes)} slices have another orientation than the rest",
            "take the localizer out, or give one orientation at a time",
        )
    other = np.array([plane.size != first.size for plane in planes])
    if other.any():
        sizes = " and ".join(f"{rows} x {columns}" for rows, columns in sorted({plane.size for plane in planes})[:4])
        raise InputError("inconsistent_size", f"slices of {sizes} pixels in one series")
    if len({plane.setup for plane in planes}) > 1:
        raise InputError(
            "mixed_series",
            "one SeriesInstanceUID holds slices of several modalities, frames of reference or reconstruction kernels",
            "give one reconstruction at a time",
        )
    if (np.abs(spacing - spacing[0]) > SAME_DIRECTION * spacing[0]).any():
        raise InputError("non_uniform_spacing", "the distance of pixels is not the same in all slices")


def _fewer(other: Array) -> int:
    count = int(np.count_nonzero(other))
    return min(count, len(other) - count)


def _check_counts(planes: Sequence[Plane], stacks: list[list[int]], depth: Array) -> None:
    """Raise where a position holds two kinds of image, or more or fewer slices than most positions do."""
    if any(len({planes[index].kind for index in stack}) > 1 for stack in stacks):
        raise InputError(
            "mixed_series",
            "one SeriesInstanceUID holds images of several types at the same positions",
            "give one reconstruction at a time",
        )
    usual = Counter(map(len, stacks)).most_common(1)[0][0]
    for stack in stacks:
        if len(stack) != usual:
            code = "missing_slices" if len(stack) < usual else "duplicate_slices"
            raise InputError(
                code, f"{len(stack)} slices at {depth[stack[0]]:.2f} mm from the first, {usual} at most positions"
            )


def _check_one_kind(volume: Volume) -> None:
    """Raise where two series of one name lie between each other, slice by slice, and look like one of half the step."""
    for name in ONE_VALUE:
        values = {round(value, 2) for plane in volume if isinstance(value := plane.labels.get(name), float)}
        if len(values) > 1:
            raise InputError(
                "mixed_series",
                f"one SeriesInstanceUID holds slices with {len(values)} values of {name} at different positions",
                "give one stack of slices at a time",
            )
    kinds = [plane.kind for plane in volume]
    changes = sum(one != other for one, other in itertools.pairwise(kinds))
    if changes >= len(set(kinds)) > 1:
        raise InputError(
            "mixed_series",
            f"one SeriesInstanceUID holds images of {len(set(kinds))} types that lie between each other",
            "give one reconstruction at a time",
        )


def _splits(planes: Sequence[Plane], stacks: list[list[int]], placed: bool) -> list[list[list[int]]]:
    """Ways to part the planes into complete volumes, the most explicit first; `stacks` are equally long."""

    def label(name: str) -> Callable[[int], Any]:
        return lambda index: planes[index].labels.get(name)

    found = [_by_value(stacks, label(name)) for name in (TIMES if placed else TIMES[:2])]
    found += [_by_rank(stacks, label(name)) for name in (CLOCKS if placed else CLOCKS[:1])]
    if len(stacks) > 1:
        # GE writes fMRI without any attribute of time; its numbers run volume by volume.
        found += [_by_value(stacks, label("InstanceNumber")), _by_run(stacks, label("InstanceNumber"))]
    return [split for split in found if split]


def _by_value(stacks: list[list[int]], key: Callable[[int], Any]) -> list[list[int]]:
    """Groups of one value each, if every value occurs once at every position."""
    values = sorted({key(index) for index in stacks[0]} - {None})
    rank = {value: number for number, value in enumerate(values)}
    if any(sorted(rank.get(key(index), -1) for index in stack) != list(range(len(stack))) for stack in stacks):
        return []
    return [[next(i for i in stack if rank[key(i)] == number) for stack in stacks] for number in range(len(values))]


def _by_rank(stacks: list[list[int]], key: Callable[[int], Any]) -> list[list[int]]:
    """The n-th of each position, if each position has as many values as slices."""
    for stack in stacks:
        values = {key(index) for index in stack}
        if None in values or len(values) != len(stack):
            return []
    return [list(group) for group in zip(*(sorted(stack, key=key) for stack in stacks), strict=True)]


def _by_run(stacks: list[list[int]], key: Callable[[int], Any]) -> list[list[int]]:
    """Runs of consecutive numbers, if each run visits every position once."""
    place = {index: number for number, stack in enumerate(stacks) for index in stack}
    values = {key(index) for index in place}
    if None in values or len(values) != len(place):
        return []
    numbered = sorted(place, key=key)
    runs = [numbered[start : start + len(stacks)] for start in range(0, len(numbered), len(stacks))]
    return runs if all(len({place[index] for index in run}) == len(stacks) for run in runs) else []
