"""The random spatial transforms of one batch, composed to one affine map per case.

A map takes a voxel of the output to the place in the input that it is read from, both counted from the centre of
the grid in voxels, so that a rotation is rigid on any grid. d is the number of spatial axes, R the cases moved.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from medray.pipeline.draws import Floats, Key, Rows, Stream, pick, uniform
from medray.sections.augment import AugmentSection, Flip


class Motion(NamedTuple):
    """What happens to the grid of each case: first the exact flips, then one resampling."""

    flips: dict[int, Rows]
    """Spatial axis -> the cases to mirror along it."""
    rows: Rows
    """(R,) the cases to resample."""
    linear: Floats
    """(R, d, d)"""
    offset: Floats
    """(R, d) in voxels."""


def draw(cfg: AugmentSection, key: Key, size: tuple[int, ...]) -> Motion:
    """The motion of each case on a grid of shape `size` (*S)."""
    batch, d = len(key.rows), len(size)
    extent = np.asarray(size, np.float64)
    linear = np.broadcast_to(np.eye(d), (batch, d, d)).copy()
    offset = np.zeros((batch, d))
    moved = np.zeros(batch, bool)

    rows, u = pick(key, Stream.CROP, cfg.crop.p * (cfg.crop.fraction > 0), 2 * d)
    edge = 1 - cfg.crop.fraction * u[:, :d]
    linear[rows] = edge[:, :, None] * np.eye(d)
    offset[rows] = (u[:, d:] - 0.5) * (1 - edge) * extent
    moved[rows] = True

    for rows, matrix in _linear_maps(cfg, key, d):
        linear[rows] = matrix @ linear[rows]
        offset[rows] = (matrix @ offset[rows][:, :, None])[:, :, 0]
        moved[rows] = True

    rows, u = pick(key, Stream.SHIFT, cfg.shift.p * (cfg.shift.fraction > 0), d)
    offset[rows] += (2 * u - 1) * cfg.shift.fraction * extent
    moved[rows] = True

    chosen = np.flatnonzero(moved)
    return Motion(_flips(cfg.flip, key, d), chosen, linear[chosen], offset[chosen])


def theta(motion: Motion, size: tuple[int, ...]) -> Floats:
    """(R, d, d + 1) the maps as torch.nn.functional.grid_sample counts: (x, y, z) in [-1, 1], align_corners=False."""
    extent = np.asarray(size, np.float64)
    linear = motion.linear * extent[None, None, :] / extent[None, :, None]
    offset = 2 * motion.offset / extent
    return np.concatenate([linear[:, ::-1, ::-1], offset[:, ::-1, None]], axis=2)


def _linear_maps(cfg: AugmentSection, key: Key, d: int) -> list[tuple[Rows, Floats]]:
    """Shear, scale and rotation: the cases that each moves and its (R, d, d) maps, in the order of application."""
    rows, u = pick(key, Stream.SHEAR, cfg.shear.p * (cfg.shear.degrees > 0), d)
    shear = (rows, _shears(np.tan(np.deg2rad((2 * u - 1) * cfg.shear.degrees))))

    rows, u = pick(key, Stream.SCALE, cfg.scale.p * (cfg.scale.fraction > 0), 1)
    scale = (rows, np.eye(d) / (1 + (2 * u - 1) * cfg.scale.fraction)[:, :, None])

    rows, u = pick(key, Stream.ROTATE, cfg.rotate.p * (cfg.rotate.degrees > 0), 3)
    angle = np.deg2rad((2 * u[:, 0] - 1) * cfg.rotate.degrees)
    rotate = (rows, _rotations(angle) if d == 2 else _rotations_about(angle, _directions(u[:, 1:])))
    return [shear, scale, rotate]


def _flips(cfg: Flip, key: Key, d: int) -> dict[int, Rows]:
    if cfg.p == 0:
        return {}
    beyond = [axis for axis in cfg.axes if axis >= d]
    if beyond:
        raise ValueError(f"augment.flip.axes names axis {beyond[0]}, but the images have axes 0 to {d - 1}")
    heads = uniform(key, Stream.FLIP, d) < cfg.p
    return {axis: np.flatnonzero(heads[:, axis]) for axis in sorted(set(cfg.axes))}


def _shears(slopes: Floats) -> Floats:
    """(R, d) slopes -> (R, d, d): each axis sheared along the next, one after the other, so that volume is kept."""
    d = slopes.shape[1]
    total = np.broadcast_to(np.eye(d), (len(slopes), d, d))
    for axis in range(d):
        one = np.broadcast_to(np.eye(d), (len(slopes), d, d)).copy()
        one[:, axis, (axis + 1) % d] = slopes[:, axis]
        total = total @ one
    return total


def _rotations(angle: Floats) -> Floats:
    """(R,) radians -> (R, 2, 2); a positive angle turns the image from axis 1 towards axis 0 of the array."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], -2)


def _rotations_about(angle: Floats, axis: Floats) -> Floats:
    """(R,) radians about (R, 3) unit vectors -> (R, 3, 3) (Rodrigues 1840)."""
    x, y, z = axis.T
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)
    sin, cos = np.sin(angle)[:, None, None], np.cos(angle)[:, None, None]
    return np.asarray(np.eye(3) + sin * cross + (1 - cos) * cross @ cross, np.float64)


def _directions(u: Floats) -> Floats:
    """(R, 2) in [0, 1) -> (R, 3) unit vectors, uniform on the sphere (Archimedes: height is uniform)."""
    height, turn = 2 * u[:, 0] - 1, 2 * np.pi * u[:, 1]
    radius = np.sqrt(1 - height**2)
    return np.stack([radius * np.cos(turn), radius * np.sin(turn), height], -1)
