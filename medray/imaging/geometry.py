"""Grids, orientation, cropping and fitting, and the way back: pure functions that keep image and affine together.

An affine maps the index of a voxel's centre to the world, so a voxel at index i covers [i - 1/2, i + 1/2]. A 2D
affine (4, 4) is used in its first two rows and columns and its shift.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np

from medray.imaging.resample import resample
from medray.types import Array, Case, InputError

Fit = Literal["stretch", "contain", "pad_crop"]


class Grid(NamedTuple):
    """Where voxels are: shape (*S) and the affine (4, 4) voxel -> world."""

    shape: tuple[int, ...]
    affine: Array


def grid_of(case: Case) -> Grid:
    """The grid that `case` is on."""
    return Grid(case.image.shape[1:], case.affine)


def spaced(grid: Grid, spacing: Sequence[float]) -> Grid:
    """The grid over the same box with voxel edges of exactly `spacing`, one per axis, in the unit of the affine.

    The number of voxels is rounded (at least 1) and the box keeps its centre, so that the outer faces move
    by up to a quarter of a voxel.
    """
    old = np.linalg.norm(grid.affine[:3, : len(grid.shape)], axis=0)
    shape = tuple(max(1, round(n * float(o) / s)) for n, o, s in zip(grid.shape, old, spacing, strict=True))
    return _placed(grid, shape, [s / float(o) for o, s in zip(old, spacing, strict=True)], start=None)


def fitted(grid: Grid, size: Sequence[int], mode: Fit) -> Grid:
    """The grid of shape `size` that shows `grid`.

    stretch: each axis scaled by its own factor, outer faces on outer faces; contain: one factor for all axes,
    such that the whole fits, centred to the voxel and the rest empty; pad_crop: no scaling, centred to the voxel.
    An odd remainder goes behind.
    """
    if mode == "stretch":
        return _placed(grid, tuple(size), [n / m for n, m in zip(grid.shape, size, strict=True)], start=None)
    step = 1.0 if mode == "pad_crop" else max(n / m for n, m in zip(grid.shape, size, strict=True))
    # Before the image lies a whole number of new voxels: where the factor is 1, nothing is interpolated.
    before = [(m - round(n / step)) // 2 for n, m in zip(grid.shape, size, strict=True)]
    return _placed(grid, tuple(size), [step] * len(size), [-b * step for b in before])


def onto(case: Case, grid: Grid, order: int, fill: float | None = None) -> Case:
    """`case` on another grid, by one resampling; `fill` (default: its minimum) is what lies outside of the image."""
    if fill is None:
        fill = float(case.image.min())
    image = resample(case.image, case.affine, grid.affine, grid.shape, order, fill)
    return replace(case, image=image, affine=grid.affine)


def onto_label(label: Case, grid: Grid) -> Array:
    """The class indices (1, *S) of `label` on another grid: (*shape of the grid), of the same dtype.

    Where voxels coincide they are copied. Elsewhere each voxel takes the class whose share of it, by linear
    interpolation, is largest (Isensee 2021, 10.1038/s41592-020-01008-z): nearest neighbours would leave steps.
    What lies outside of the label is class 0.
    """
    if grid.shape == label.image.shape[1:] and np.allclose(grid.affine, label.affine, atol=1e-6):
        return np.ascontiguousarray(label.image[0])
    best = np.zeros(grid.shape, np.float32)
    result = np.zeros(grid.shape, label.image.dtype)
    for value in np.unique(label.image).tolist():
        part = (label.image == value).astype(np.float32)
        share = resample(part, label.affine, grid.affine, grid.shape, 1, float(value == 0))[0]
        higher = share > best
        result[higher], best[higher] = value, share[higher]
    return result


def fit(case: Case, size: Sequence[int], mode: Fit, order: int = 1) -> Case:
    """`case` on a grid of shape `size`; see `fitted` for the modes. Padding is the image's minimum."""
    return onto(case, fitted(grid_of(case), size, mode), order)


def to_ras(case: Case) -> Case:
    """A 3D case with its axes permuted and flipped to the order closest to RAS+, without resampling; 2D as it is.

    Closest is the permutation whose axes point most to right, anterior and superior in sum. The image is
    a view of the given one.
    """
    if case.spatial_dims != 3:
        return case
    direction = case.affine[:3, :3] / np.linalg.norm(case.affine[:3, :3], axis=0)
    best = max(itertools.permutations(range(3)), key=lambda axes: abs(direction[range(3), axes]).sum())
    affine = case.affine[:, [*best, 3]]
    image = case.image.transpose(0, *(axis + 1 for axis in best))
    for world in range(3):
        if affine[world, world] < 0:
            affine[:, 3] += affine[:, world] * (image.shape[world + 1] - 1)
            affine[:, world] *= -1
            image = np.flip(image, world + 1)
    return replace(case, image=image, affine=affine)


def take_slice(case: Case, axis: int, position: float, neighbours: int) -> Case:
    """The slice across `axis` of a volume at `position` (0 first, 1 last) as a 2D image: (C * (2 n + 1), row, column).

    Channel c of neighbour i is c * (2 n + 1) + i, from the lowest on; the outermost slices are repeated. The affine is
    that of a 2D image, which carries the spacing alone. Raises wrong_rank where `case` is no volume.
    """
    if case.spatial_dims != 3:
        fact = f"the image has {case.spatial_dims} axes, preprocess.slice takes a slice of a volume"
        raise InputError("wrong_rank", fact, "give volumes")
    length = case.image.shape[axis + 1]
    at = np.rint(position * (length - 1)).astype(int) + np.arange(-neighbours, neighbours + 1)
    planes = np.moveaxis(case.image.take(np.clip(at, 0, length - 1), axis + 1), axis + 1, 1)
    spacing = [edge for other, edge in enumerate(case.spacing) if other != axis]
    return replace(case, image=planes.reshape(-1, *planes.shape[2:]), affine=np.diag([*spacing, 1.0, 1.0]))


def crop_foreground(case: Case) -> Case:
    """`case` cut to the box of voxels above the image's minimum in any channel; a constant image stays whole."""
    higher = case.image > case.image.min()
    above = higher[0] if len(higher) == 1 else higher.any(axis=0)
    box = []
    for axis in range(above.ndim):
        line = np.flatnonzero(above.any(axis=tuple(other for other in range(above.ndim) if other != axis)))
        if line.size == 0:
            return case
        box.append(slice(int(line[0]), int(line[-1]) + 1))
    return replace(case, image=case.image[:, *box], affine=_moved(case.affine, [edge.start for edge in box]))


def restore(image: Array, affine: Array, like: Case, order: int, fill: float = 0.0) -> Array:
    """`image` (K, *S) on the network's grid with its `affine`, back on the grid of the raw case: (K, *S of `like`).

    One resampling by geometry undoes orientation, spacing, crop and padding together. Where the network saw
    nothing, the result is `fill`. Use order 0 for label maps, 1 for probabilities.
    """
    return resample(image, affine, like.affine, like.image.shape[1:], order, fill)


def _placed(grid: Grid, shape: tuple[int, ...], step: Sequence[float], start: Sequence[float] | None) -> Grid:
    """Voxels of `step` old voxels, the first face at `start` old voxels (default: centred on the old box)."""
    dims = len(grid.shape)
    if start is None:
        start = [(n - m * s) / 2 for n, m, s in zip(grid.shape, shape, step, strict=True)]
    first_centre = [a + s / 2 - 0.5 for a, s in zip(start, step, strict=True)]
    affine = _moved(grid.affine, first_centre)
    affine[:, :dims] *= np.asarray(step)
    return Grid(shape, affine)


def _moved(affine: Array, index: Sequence[float]) -> Array:
    """`affine` with its origin at the old voxel `index`."""
    moved = affine.copy()
    moved[:, 3] += affine[:, : len(index)] @ np.asarray(index, np.float64)
    return moved
