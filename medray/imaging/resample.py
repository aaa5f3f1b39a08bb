"""One resampling from grid to grid: exact where voxels coincide, separable where axes do, general elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from medray.types import Array

SAME_VOXEL = 1e-3
"""Voxels whose centres are closer than this (in voxels) are the same voxel."""
TRUNCATE = 4.0
"""Reach of the Gaussian in standard deviations (scipy's default)."""


def resample(
    image: Array, affine_from: Array, affine_to: Array, shape_to: Sequence[int], order: int, fill: float
) -> Array:
    """`image` (C, *S) from its own grid to another: (C, *shape_to), of the same dtype (integers are rounded).

    Affines (4, 4) map voxel centres to one world; of a 2D image's the first two axes count. `order` is that of the
    spline: 0 nearest, 1 linear, 3 cubic. Points within the image's outer faces but outside of its outer
    centres take the nearest value; points outside of the faces become `fill`. With order 1 or more an axis
    that gets coarser by a factor f is first smoothed by a Gaussian of (f - 1) / 2 voxels
    (skimage.transform.resize's anti-aliasing), so fine structure does not turn into false structure.
    """
    dims = image.ndim - 1
    matrix, offset = _index_map(affine_from, affine_to, dims)
    shape = tuple(int(length) for length in shape_to)
    axes = np.abs(matrix).argmax(axis=1)
    straight = np.zeros_like(matrix)
    straight[range(dims), axes] = matrix[range(dims), axes]
    reach = np.asarray(shape) - 1
    if sorted(axes) != list(range(dims)) or (np.abs(matrix - straight) @ reach > SAME_VOXEL).any():
        return _general(image, matrix, offset, shape, order, fill)
    # One axis of the one grid runs along one axis of the other: put them in the same order, then axis by axis.
    order_in = np.argsort(axes)
    image = image.transpose(0, *(order_in + 1))
    step, start = straight[order_in, range(dims)], offset[order_in]
    whole = np.rint(start)
    if (np.abs(np.abs(step) - 1) * reach + np.abs(start - whole) <= SAME_VOXEL).all():
        return _shifted(image, np.sign(step).astype(int), whole.astype(int), shape, fill)
    if order > 1:
        return _general(image, np.diag(step), start, shape, order, fill)
    return _separable(image, step, start, shape, order, fill)


def _index_map(affine_from: Array, affine_to: Array, dims: int) -> tuple[Array, Array]:
    """Index on the new grid -> index on the old: matrix (dims, dims) and offset (dims,)."""
    keep = [*range(dims), 3]
    if dims == 2:
        affine_from, affine_to = affine_from[np.ix_(keep, keep)], affine_to[np.ix_(keep, keep)]
    both = np.linalg.solve(affine_from, affine_to)
    return both[:dims, :dims], both[:dims, dims]


def _shifted(image: Array, sign: Array, start: Array, shape: tuple[int, ...], fill: float) -> Array:
    """Voxels that coincide are copied: cropping, padding and flipping are exact at any order."""
    result = np.full((image.shape[0], *shape), fill, image.dtype)
    source: list[slice] = [slice(None)]
    target: list[slice] = [slice(None)]
    for length, old, first, way in zip(shape, image.shape[1:], start.tolist(), sign.tolist(), strict=True):
        if way < 0:
            first = old - 1 - first
        begin, end = max(0, -first), min(length, old - first)
        if end <= begin:
            return result
        target.append(slice(begin, end))
        inside = slice(begin + first, end + first)
        if way < 0:
            last = old - 1 - inside.stop
            inside = slice(old - 1 - inside.start, last if last >= 0 else None, -1)
        source.append(inside)
    result[tuple(target)] = image[tuple(source)]
    return result


def _separable(image: Array, step: Array, start: Array, shape: tuple[int, ...], order: int, fill: float) -> Array:
    """Axis by axis: a gather (order 0) or a product with the axis's interpolation matrix (order 1)."""
    dtype, outside = image.dtype, []
    # Axes that shrink most come first: the others then have less to do.
    for axis in np.argsort([length / old for length, old in zip(shape, image.shape[1:], strict=True)]).tolist():
        old, new, a, b = image.shape[axis + 1], shape[axis], float(step[axis]), float(start[axis])
        at = a * np.arange(new) + b
        outside.append((axis, (at < -0.5 - SAME_VOXEL) | (at > old - 0.5 + SAME_VOXEL)))
        if order == 0:
            image = image.take(np.clip(np.floor(at + 0.5), 0, old - 1).astype(np.intp), axis=axis + 1)
        elif new != old or abs(a - 1) * new + abs(b) > SAME_VOXEL:
            image = _along(image.astype(np.float32, copy=False), _linear_weights(old, new, a, b), axis + 1)
    image = _as_dtype(image, dtype)
    if any(mask.any() for _, mask in outside):
        image = np.array(image, order="C")
        for axis, mask in outside:
            image[(slice(None),) * (axis + 1) + (mask,)] = fill
    return np.ascontiguousarray(image)


@lru_cache(maxsize=64)
def _linear_weights(old: int, new: int, step: float, start: float) -> Any:
    """(new, old) sparse float32 matrix: linear interpolation at step * i + start, smoothed first where |step| > 1.

    A sparse product and not BLAS: whose threads spin against each other when several processes prepare cases,
    and whose last bit depends on the processor.
    """
    from scipy import sparse

    at = np.clip(step * np.arange(new) + start, 0, old - 1)
    low = np.minimum(np.floor(at).astype(np.intp), max(old - 2, 0))
    part = at - low
    sigma = max(0.0, (abs(step) - 1) / 2)
    reach = int(TRUNCATE * sigma + 0.5)
    taps = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (taps / sigma) ** 2) if reach else np.ones(1)
    kernel /= kernel.sum()
    columns = np.stack([low[:, None] + taps, low[:, None] + 1 + taps], axis=1)
    shares = np.stack([1 - part, part], axis=1)[:, :, None] * kernel
    rows = np.broadcast_to(np.arange(new)[:, None, None], columns.shape)
    # Taps beyond the outer faces fall on the outer voxel; a tap of weight 0 would only cost time.
    used = shares != 0
    where = (rows[used], np.clip(columns, 0, old - 1)[used])
    return sparse.coo_array((shares[used], where), shape=(new, old)).tocsr().astype(np.float32)


def _along(image: Array, weights: Any, axis: int) -> Array:
    """`weights` (new, old) applied to one axis of a float32 image; the result may be a view in another memory order."""
    first = np.moveaxis(image, axis, 0)
    result = weights @ np.ascontiguousarray(first).reshape(len(first), -1)
    return np.moveaxis(result.reshape(-1, *first.shape[1:]), 0, axis)


def _general(image: Array, matrix: Array, offset: Array, shape: tuple[int, ...], order: int, fill: float) -> Array:
    """Any affine: one spline interpolation (scipy.ndimage), channel by channel."""
    from scipy import ndimage

    exact = image.dtype if order == 0 else np.dtype(np.float32)
    result = np.empty((image.shape[0], *shape), exact)
    sigma = np.maximum(0, (np.linalg.norm(matrix, axis=1) - 1) / 2)
    for channel, target in zip(image, result, strict=True):
        source = channel.astype(exact, copy=False)
        if order > 0 and sigma.any():
            source = ndimage.gaussian_filter(source, sigma, mode="nearest", truncate=TRUNCATE)
        ndimage.affine_transform(source, matrix, offset, shape, target, order, mode="nearest")
    # A sum of one term per axis says where each point lies, without a grid of coordinates.
    lines = np.ogrid[tuple(slice(length) for length in shape)]
    for axis, old in enumerate(image.shape[1:]):
        at = offset[axis] + sum(matrix[axis, other] * line for other, line in enumerate(lines))
        result[:, (at < -0.5 - SAME_VOXEL) | (at > old - 0.5 + SAME_VOXEL)] = fill
    return _as_dtype(result, image.dtype)


def _as_dtype(image: Array, dtype: np.dtype[Any]) -> Array:
    if image.dtype == dtype or dtype.kind not in "iu":
        return image.astype(dtype, copy=False)
    ends = np.iinfo(dtype)
    rounded: Array = np.clip(np.rint(image), ends.min, ends.max).astype(dtype)
    return rounded
