"""Small CT-like volumes of the outer lung: chest wall with ribs, vessels, sometimes a nodule, and its label map.

Axes are right, anterior, superior; the chest wall lies to the right. Slices are thicker than pixels, as in clinical CT.
"""

from __future__ import annotations

import numpy as np

from medray.datasets.drawing import ellipsoid, fork, grow, lesion, over, stamp
from medray.types import Array

MALIGNANT = 2
EDGE = 32
"""The edge on which the radii below count voxels of the plane."""
SPACING_MM = (1.5, 1.5, 2.0)
"""At EDGE voxels; the field of view stays 48 mm in all directions."""
BENIGN_VOXELS, MALIGNANT_VOXELS = (2.2, 4.0), (2.8, 5.4)
SOFT, BONE, LUNG = 40.0, 420.0, -850.0


def draw(rng: np.random.Generator, kind: int, visits: int, size: int) -> tuple[list[Array], list[Array]]:
    """The volumes of one subject and their label maps.

    Args:
        rng: draws everything.
        kind: 0 without, 1 with a benign, 2 with a malignant nodule.
        visits: volumes of the subject; they share the anatomy, not its place and the noise.
        size: edge in the plane, in voxels; 3/4 of it in slices.

    Returns:
        (size, size, 3 size / 4) int16 in Hounsfield units, and uint8 label maps: 0 background, 1 nodule.
    """
    vessels, ribs, nodule = _vessels(rng), _ribs(rng), _nodule(rng, kind)
    wall, bow, bright = rng.uniform(24.5, 27.5), rng.uniform(34, 60), rng.uniform(0.8, 1.0)
    images, labels = [], []
    for _ in range(visits):
        shift = rng.uniform(-2, 2, 3)
        axes = _axes(size, shift)
        lung = ellipsoid(axes, (wall - bow, EDGE / 2, EDGE / 2), (bow, bow, 3 * bow), 1.0)
        image = np.full(lung.shape, SOFT, np.float32)
        over(image, (1 - lung) * _paint(*ribs, size, shift), BONE)
        over(image, lung, LUNG + 2 * (axes[1] - EDGE / 2))
        over(image, lung * _paint(*vessels, size, shift), SOFT + 20)
        cover = lung * _paint(*nodule, size, shift)
        over(image, cover * bright, SOFT)
        noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(20, 50))
        images.append(np.rint(image + noise)[0].astype(np.int16))
        labels.append((cover[0] > 0.5).astype(np.uint8))
    return images, labels


def _grid(size: int) -> tuple[tuple[int, int, int], Array]:
    """Voxels along each axis, and voxels per unit of the anatomy, which is drawn on EDGE**3 of the plane's voxels."""
    return (size, size, size * 3 // 4), size / EDGE * np.array([1, 1, SPACING_MM[0] / SPACING_MM[2]])


def _axes(size: int, shift: Array) -> tuple[Array, ...]:
    """Coordinates of the voxels in the anatomy: three arrays that broadcast to (1, *S)."""
    shape, scale = _grid(size)
    lines = [np.arange(n, dtype=np.float32) / s - d for n, s, d in zip(shape, scale, shift, strict=True)]
    return tuple(np.expand_dims(grid, 0) for grid in np.meshgrid(*lines, indexing="ij", sparse=True))


def _paint(points: Array, radius: Array, size: int, shift: Array) -> Array:
    """Cover (1, *S) of balls given in the anatomy."""
    shape, scale = _grid(size)
    canvas = np.zeros((1, *shape), np.float32)
    edges = (1.0, 1.0, SPACING_MM[2] / SPACING_MM[0])
    stamp(canvas, np.zeros(len(points), int), (points + shift) * scale, radius * scale[0], edges=edges)
    return canvas


def _vessels(rng: np.random.Generator, stems: int = 7, dots: int = 5) -> tuple[Array, Array]:
    """Trees that come in from the hilum, and thick bends that look like small nodules: points, radii."""
    start = np.stack([np.full(stems, -2.0), *rng.uniform(4, EDGE - 4, (2, stems))], -1)
    way = np.stack([np.ones(stems), *rng.normal(0, 0.35, (2, stems))], -1)
    way /= np.linalg.norm(way, axis=-1, keepdims=True)
    main = grow(rng, start, way, rng.uniform(16, 28, stems), rng.uniform(0.7, 1.7, stems), 32, 0.08)
    twigs = [fork(rng, main, rng.uniform(6, 12, stems), 14, 0.1) for _ in range(2)]
    points = np.concatenate([branch[0].reshape(-1, 3) for branch in (main, *twigs)])
    radius = np.concatenate([branch[2].reshape(-1) for branch in (main, *twigs)])
    bends = rng.choice(len(points), dots, replace=False)
    return np.concatenate([points, points[bends]]), np.concatenate([radius, rng.uniform(1.0, 1.9, dots)])


def _ribs(rng: np.random.Generator, ribs: int = 2) -> tuple[Array, Array]:
    """Oblique ribs in the chest wall: points, radii."""
    along = np.linspace(-6, EDGE + 6, 36)
    up = rng.uniform(2, 12) + np.arange(ribs)[:, None] * 17 + along * rng.uniform(0.2, 0.45)
    right = 29.5 + rng.uniform(-0.5, 0.5) - ((along - EDGE / 2) / EDGE * 2) ** 2
    points = np.stack(np.broadcast_arrays(right, along, up), -1).reshape(-1, 3)
    return points, np.full(len(points), rng.uniform(1.8, 2.3))


def _nodule(rng: np.random.Generator, kind: int) -> tuple[Array, Array]:
    """The balls of the nodule, none for kind 0: points, radii."""
    if not kind:
        return np.zeros((0, 3)), np.zeros(0)
    radius = np.array([rng.uniform(*(MALIGNANT_VOXELS if kind == MALIGNANT else BENIGN_VOXELS))])
    _, offset, balls = lesion(rng, radius, np.array([kind == MALIGNANT]), dims=3, rays=16)
    return rng.uniform([8, 8, 8], [19, EDGE - 8, EDGE - 8]) + offset, balls
