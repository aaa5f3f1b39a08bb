"""Axial slices through a chest as CT shows it: body, lungs, heart, spine, ribs, branching vessels, sometimes a nodule.

Anatomy lives in coordinates (x, y) that span about [-1, 1]: x to the image's right (the patient's left), y down
(posterior). A slice sees it through a pose: rotation, zoom and shift.
"""

from __future__ import annotations

import numpy as np

from medray.datasets.drawing import ellipsoid, fork, grow, lesion, over, stamp
from medray.types import Array

BENIGN, MALIGNANT = 1, 2
EDGE = 64
"""The edge of a slice on which the radii below count pixels; they grow with the slice."""
BENIGN_PX, MALIGNANT_PX = (2.7, 4.3), (3.1, 5.4)
"""Radii overlap: size alone does not tell them apart, the rim does."""
SOFT, BLOOD, BONE, LUNG, AIR = 40.0, 60.0, 420.0, -850.0, -1000.0


def draw(rng: np.random.Generator, kind: Array, owner: Array, size: int) -> Array:
    """Slices of some subjects.

    Args:
        rng: draws everything.
        kind: (B subjects,) 0 without, 1 with a benign, 2 with a malignant nodule.
        owner: (N slices,) the subject of each slice: its slices share the anatomy, not the pose and the noise.
        size: edge in pixels.

    Returns:
        (N, size, size) uint8. Mean and deviation of a slice are drawn independently of its kind.
    """
    subjects, count = len(kind), len(owner)
    angle, zoom = rng.normal(0, 0.06, count), rng.uniform(0.95, 1.06, count) * size * 0.5
    shift = rng.uniform(-0.035, 0.035, (count, 2)) * size + (size - 1) / 2
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1).reshape(-1, 2, 2)
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="xy"), -1).reshape(1, -1, 2)
    # Rows of (x, y) times the rotation is the inverse rotation: from pixels back to the anatomy.
    place = ((grid - shift[:, None]) / zoom[:, None, None]) @ turn
    axes = tuple(place.astype(np.float32).reshape(count, size, size, 2)[..., d] for d in range(2))

    def paint(points: Array, subject: Array, radius: Array, value: Array | float = 1.0) -> Array:
        """Cover (N, size, size) of balls given in the anatomy, seen by each slice of their subject."""
        canvas = np.zeros((count, size, size), np.float32)
        value = np.broadcast_to(value, radius.shape)
        by_subject = np.argsort(subject, kind="stable")
        begin = np.searchsorted(subject[by_subject], np.arange(subjects + 1))
        chosen = np.concatenate([by_subject[begin[s] : begin[s + 1]] for s in owner])
        item = np.repeat(np.arange(count), np.diff(begin)[owner])
        seen = np.einsum("pij,pj->pi", turn[item], points[chosen]) * zoom[item, None] + shift[item]
        stamp(canvas, item, seen[:, ::-1], radius[chosen] * size / EDGE, value[chosen])
        return canvas

    image, lungs = _torso(rng, axes, subjects, owner, 2.08 / size)
    over(image, paint(*_bones(rng, subjects)), BONE)
    over(image, lungs * paint(*_vessels(rng, subjects)), BLOOD)
    over(image, lungs * paint(*_nodules(rng, kind)), SOFT)
    _level(rng, image, lungs)
    return _acquire(rng, image)


def _torso(
    rng: np.random.Generator, axes: tuple[Array, ...], subjects: int, owner: Array, px: float
) -> tuple[Array, Array]:
    """Hounsfield units without ribs and vessels, and the cover of the lungs, both (N, S, S)."""

    def vary(middle: float, by: float) -> Array:
        return np.asarray(rng.uniform(middle - by, middle + by, subjects)[owner])

    def blob(x: Array, y: Array, half_x: Array, half_y: Array) -> Array:
        return ellipsoid(axes, (x, y), (half_x, half_y), px)

    fat = vary(0.05, 0.03)
    body = (vary(0.93, 0.03), vary(0.72, 0.05))
    image = np.full(axes[0].shape, AIR, np.float32)
    zero = np.zeros(len(owner))
    over(image, blob(zero, zero, *body), -90.0)
    over(image, blob(zero, zero, body[0] - fat, body[1] - fat), SOFT)
    lungs = np.maximum(
        blob(-vary(0.45, 0.02), vary(-0.03, 0.03), vary(0.35, 0.03), vary(0.53, 0.04)),
        blob(vary(0.45, 0.02), vary(-0.03, 0.03), vary(0.35, 0.03), vary(0.52, 0.04)),
    )
    low = rng.random(subjects)[owner]
    for organ in (
        blob(zero, vary(-0.12, 0.03), vary(0.17, 0.03), vary(0.42, 0.03)),
        # Further down the heart is larger and lies to the patient's left.
        blob(0.05 + 0.1 * low, vary(-0.16, 0.04), 0.15 + 0.16 * low, 0.2 + 0.12 * low),
        blob(zero, vary(0.44, 0.02), vary(0.15, 0.02), vary(0.17, 0.02)),
        blob(vary(0.15, 0.03), vary(0.28, 0.03), vary(0.085, 0.01), vary(0.085, 0.01)),
    ):
        lungs *= 1 - organ
    upright = axes[1] * np.reshape(vary(90.0, 60.0), (-1, 1, 1))
    over(image, lungs, LUNG + upright)
    over(image, blob(zero, vary(0.44, 0.015), vary(0.11, 0.01), vary(0.1, 0.01)), BONE * 0.6)
    over(image, blob(zero, vary(0.575, 0.01), vary(0.045, 0.005), vary(0.04, 0.005)), SOFT)
    windpipe = blob(vary(0.0, 0.02), vary(0.0, 0.06), vary(0.06, 0.01), vary(0.06, 0.01))
    over(image, windpipe * np.reshape(low < 0.5, (-1, 1, 1)), AIR)
    return image, lungs


def _bones(rng: np.random.Generator, subjects: int) -> tuple[Array, Array, Array]:
    """Ribs as arcs around the lungs, the sternum and the spinous process: points, subject, radius in pixels."""
    ribs, steps = 5, 7
    middle = np.linspace(-1.15, 1.15, ribs) + rng.normal(0, 0.07, (subjects, 2, ribs))
    arc = middle[..., None] + np.linspace(-0.11, 0.11, steps)
    side = np.array([-1, 1])[None, :, None, None]
    wall = rng.uniform(-0.015, 0.015, (subjects, 1, 1, 1))
    rib = np.stack([side * (0.83 + wall) * np.cos(arc), (0.615 + wall) * np.sin(arc)], -1).reshape(subjects, -1, 2)
    bar = np.linspace(-1, 1, steps)
    sternum = np.stack([0.1 * bar, np.full(steps, -0.6)], -1)
    process = np.stack([0 * bar, 0.635 + 0.02 * bar], -1)
    fixed = np.broadcast_to(np.concatenate([sternum, process]), (subjects, 2 * steps, 2))
    points = np.concatenate([rib, fixed], axis=1)
    radius = rng.uniform(0.75, 1.15, (subjects, 1)) * np.ones(points.shape[1])
    return points.reshape(-1, 2), np.repeat(np.arange(subjects), points.shape[1]), radius.reshape(-1)


def _vessels(rng: np.random.Generator, subjects: int) -> tuple[Array, Array, Array]:
    """Trees from both hila, and vessels that cross the slice and look like small nodules."""
    stems, steps, dots = 5, 22, 6
    trees = subjects * 2 * stems
    subject = np.repeat(np.arange(subjects), 2 * stems)
    side = np.tile(np.repeat([-1.0, 1.0], stems), subjects)
    fan = np.tile(np.linspace(-1.25, 1.25, stems), 2 * subjects) + rng.normal(0, 0.2, trees)
    start = np.stack([side * 0.2, 0.03 + rng.normal(0, 0.06, trees)], -1)
    way = np.stack([side * np.cos(fan), np.sin(fan)], -1)
    thick = rng.uniform(0.5, 0.9, (subjects, 1)) * rng.uniform(0.7, 1.4, (subjects, 2 * stems))
    main = grow(rng, start, way, rng.uniform(0.3, 0.62, trees), thick.reshape(-1), steps, 0.09)
    twigs = [fork(rng, main, rng.uniform(0.15, 0.35, trees), steps // 2, 0.12) for _ in range(2)]
    branches = [main, *twigs]
    points = np.concatenate([branch[0].reshape(-1, 2) for branch in branches])
    radius = np.concatenate([branch[2].reshape(-1) for branch in branches])
    owner = np.concatenate([np.repeat(subject, branch[0].shape[1]) for branch in branches])
    crossing = _in_lung(rng, subjects * dots, 0.95)
    size = rng.uniform(0.4, 1.4, subjects * dots) * (rng.random(subjects * dots) < 0.7)
    return (
        np.concatenate([points, crossing]),
        np.concatenate([owner, np.repeat(np.arange(subjects), dots)]),
        np.concatenate([radius, size]),
    )


def _nodules(rng: np.random.Generator, kind: Array) -> tuple[Array, Array, Array, Array]:
    """The balls of each subject's nodule: points, subject, radius in pixels, brightness."""
    sick = np.flatnonzero(kind)
    rough = kind[sick] == MALIGNANT
    low, high = (np.where(rough, malignant, benign) for benign, malignant in zip(BENIGN_PX, MALIGNANT_PX, strict=True))
    owner, offset, radius = lesion(rng, rng.uniform(low, high), rough, dims=2)
    centre = _in_lung(rng, len(sick), 0.76)
    bright = rng.uniform(0.85, 1.0, len(sick))
    return centre[owner] + offset / (EDGE * 0.5), sick[owner], radius, bright[owner]


def _in_lung(rng: np.random.Generator, count: int, share: float) -> Array:
    """Points (count, 2) spread over the outer part of either lung, up to `share` of its semi-axes."""
    angle, far = rng.uniform(0, 2 * np.pi, count), share * np.sqrt(rng.random(count))
    side = np.where(rng.random(count) < 0.5, -1.0, 1.0)
    return np.stack([side * (0.51 + 0.27 * far * np.cos(angle)), -0.02 + 0.5 * far * np.sin(angle)], -1)


def _level(rng: np.random.Generator, image: Array, lungs: Array) -> None:
    """Shift the lungs in place so that their mean says nothing of what is in them: a sum of pixels finds no nodule."""
    mean = (image * lungs).sum((1, 2)) / lungs.sum((1, 2))
    image += lungs * np.reshape(rng.uniform(-790, -710, len(image)) - mean, (-1, 1, 1)).astype(np.float32)


def _acquire(rng: np.random.Generator, image: Array) -> Array:
    """Noise, a wide window, and the gain and offset of a scanner: Hounsfield units to uint8."""
    count = len(image)
    white = rng.standard_normal(image.shape, np.float32)
    # Neighbours share half of the noise, as after CT reconstruction.
    noise = white + 0.5 * (np.roll(white, 1, 1) + np.roll(white, 1, 2))
    image = image + noise * rng.uniform(20, 50, (count, 1, 1)).astype(np.float32)
    image = np.clip(image, -1050, 400)
    mean, std = image.mean((1, 2), keepdims=True), image.std((1, 2), keepdims=True)
    bright, contrast = rng.uniform(96, 122, (count, 1, 1)), rng.uniform(60, 76, (count, 1, 1))
    return np.asarray(np.clip(np.rint((image - mean) / std * contrast + bright), 0, 255), np.uint8)
