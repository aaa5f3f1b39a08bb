"""Brushes for phantoms, in any number of dimensions: soft ellipsoids, strings of soft balls, branching vessels.

Letters in shapes: B canvases, P balls, T trees, D axes, S the grid of one canvas.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medray.types import Array


def stamp(
    canvas: Array,
    item: Array,
    centre: Array,
    radius: Array,
    value: Array | float = 1.0,
    edges: tuple[float, ...] | None = None,
) -> None:
    """Paint soft balls into `canvas` (B, *S) in place; where balls meet, the brightest stays.

    Args:
        canvas: float32, changed.
        item: (P,) the canvas of each ball.
        centre: (P, D) in voxels.
        radius: (P,) in edges of the first axis; the rim is one wide, so a radius below 0.5 gives a partial volume.
        value: (P,) what a wholly covered voxel gets.
        edges: of a voxel along each axis, where they differ, the first being 1 and the others no shorter.
    """
    value = np.broadcast_to(np.asarray(value, np.float32), radius.shape)
    reach = np.ceil(radius + 0.5).astype(int)
    for edge in np.unique(reach):
        chosen = reach == edge
        balls = item[chosen], centre[chosen], radius[chosen], value[chosen]
        _stamp_alike(canvas, *balls, int(edge), edges or (1.0,) * centre.shape[1])


def _stamp_alike(
    canvas: Array, item: Array, centre: Array, radius: Array, value: Array, reach: int, edges: tuple[float, ...]
) -> None:
    """Paint balls that all fit in a window of 2 `reach` + 1 voxels."""
    shape = canvas.shape[1:]
    nearest = np.rint(centre).astype(np.int32)
    axis = np.arange(-reach, reach + 1, dtype=np.int32)
    square = np.zeros((len(item),) + (1,) * len(shape), np.float32)
    flat = np.asarray(item, np.int64).reshape(-1, *(1,) * len(shape))
    inside = np.ones_like(square, bool)
    for d, (size, edge) in enumerate(zip(shape, edges, strict=True)):
        voxel = nearest[:, d, None] + axis
        place = [len(item)] + [1] * len(shape)
        place[d + 1] = len(axis)
        square = square + (((voxel - centre[:, d, None]) * edge).astype(np.float32) ** 2).reshape(place)
        inside = inside & ((voxel >= 0) & (voxel < size)).reshape(place)
        flat = flat * size + voxel.reshape(place)
    trailing = (-1,) + (1,) * len(shape)
    cover = np.clip(radius.reshape(trailing) + 0.5 - np.sqrt(square), 0, 1) * value.reshape(trailing)
    keep = inside & (cover > 0)
    np.maximum.at(canvas.reshape(-1), flat[keep], cover[keep].astype(np.float32))


def ellipsoid(
    axes: tuple[Array, ...], centre: Sequence[Array | float], half: Sequence[Array | float], voxel: float
) -> Array:
    """Share of each voxel that an ellipsoid covers.

    Args:
        axes: coordinates of the voxels, D arrays that broadcast to (B, *S).
        centre: D arrays (B,) or numbers.
        half: semi-axes, likewise.
        voxel: edge of a voxel in the same units; the soft rim is about as wide.
    """
    batch = (-1,) + (1,) * (axes[0].ndim - 1)
    spread = [np.reshape(np.asarray(h, np.float32), batch) for h in half]
    middle = [np.reshape(np.asarray(c, np.float32), batch) for c in centre]
    radius = np.sqrt(sum(((axis - c) / h) ** 2 for axis, c, h in zip(axes, middle, spread, strict=True)))
    return np.asarray(np.clip((1 - radius) * (np.minimum.reduce(spread) / voxel) + 0.5, 0, 1), np.float32)


def over(image: Array, cover: Array, value: Array | float) -> None:
    """Lay a tissue of `value` over `image` in place, where `cover` is 1 entirely, where 0 not at all."""
    image += cover * (value - image)


def grow(
    rng: np.random.Generator, start: Array, direction: Array, length: Array, radius: Array, steps: int, wander: float
) -> tuple[Array, Array, Array]:
    """Tapering, winding branches.

    Args:
        rng: draws the winding.
        start: (T, D) where each branch begins.
        direction: (T, D) unit vectors.
        length: (T,) of each branch.
        radius: (T,) at the beginning; it ends at a quarter of it.
        steps: balls per branch.
        wander: how far a step turns, as a share of its length.

    Returns:
        Points (T, steps, D), their directions (T, steps, D) and radii (T, steps).
    """
    turns = np.cumsum(rng.normal(0, wander, (len(start), steps, start.shape[1])), axis=1)
    heading = direction[:, None, :] + turns
    heading /= np.linalg.norm(heading, axis=-1, keepdims=True)
    points = start[:, None, :] + np.cumsum(heading * (length / steps)[:, None, None], axis=1)
    return points, heading, radius[:, None] * np.linspace(1, 0.25, steps)


def fork(
    rng: np.random.Generator, branches: tuple[Array, Array, Array], length: Array, steps: int, wander: float
) -> tuple[Array, Array, Array]:
    """One side branch for each branch of `grow`, leaving it somewhere in its middle; same returns."""
    points, heading, radius = branches
    trees = np.arange(len(points))
    at = rng.integers(points.shape[1] // 5, points.shape[1] * 4 // 5, len(points))
    side = heading[trees, at] + rng.normal(0, 0.6, heading[trees, at].shape)
    side /= np.linalg.norm(side, axis=-1, keepdims=True)
    return grow(rng, points[trees, at], side, length, radius[trees, at] * 0.8, steps, wander)


def lesion(
    rng: np.random.Generator, radius: Array, spiculated: Array, dims: int, rays: int = 11, steps: int = 8
) -> tuple[Array, Array, Array]:
    """Balls that make up one lesion each: a smooth ball, or one with lobes and with spicules that radiate from its rim.

    Args:
        rng: draws the shapes.
        radius: (P,) of the core, in voxels.
        spiculated: (P,) bool.
        dims: number of axes D.
        rays: spicules of a spiculated lesion.
        steps: balls per spicule.

    Returns:
        Lesion (Q,), offset from its centre (Q, D) in voxels, radius (Q,) in voxels of each ball.
    """
    count, which = len(radius), np.arange(len(radius))
    rough = np.flatnonzero(spiculated)
    way = rng.normal(size=(len(rough), rays + 3, dims))
    way /= np.linalg.norm(way, axis=-1, keepdims=True)
    core = radius[rough, None]
    lobes = (way[:, rays:] * (core * 0.55)[..., None]).reshape(-1, dims)
    lobe_radius = (core * rng.uniform(0.5, 0.75, (len(rough), 3))).reshape(-1)
    reach = 1 + rng.uniform(0.45, 1.0, (len(rough), rays, 1)) * np.linspace(0, 1, steps)
    spikes = (way[:, :rays, None, :] * (core[..., None] * reach)[..., None]).reshape(-1, dims)
    width = np.maximum(0.22 * core[..., None], 0.55) * np.linspace(1, 0.35, steps)
    spike_radius = np.broadcast_to(width, reach.shape).reshape(-1)
    owner = np.concatenate([which, np.repeat(rough, 3), np.repeat(rough, rays * steps)])
    offset = np.concatenate([np.zeros((count, dims)), lobes, spikes])
    return owner, offset, np.concatenate([radius, lobe_radius, spike_radius])
