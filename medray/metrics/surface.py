"""How far apart the surfaces of two segmentations lie: Hausdorff distance, mean distance, normalised surface Dice.

The surface of a mask is its voxels with a neighbour across a face that is not in the mask; beyond the image nothing
is. That, and every figure here, is MONAI's definition (`compute_hausdorff_distance`, `compute_surface_dice` without
subvoxels, after Seidlitz 2022, arXiv:2111.05408); Nikolov 2018, arXiv:1809.04430, weighs each place of the surface
with its area, which here counts one per voxel.

Empty masks. Both empty: every figure is NaN and left out of means. Only one empty: the distances are `inf` and nsd is
0. `summarise` puts a penalty in the place of `inf` or leaves it out, and says how many there were.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import distance_transform_edt
from scipy.spatial import KDTree

from medray.metrics.curves import Bools, Counts, Floats
from medray.metrics.overlap import averages, check_maps, totals
from medray.types import Array

SLACK = 1e-6
"""A distance that equals the tolerance but for this share is within it: sums of 0.7 mm are not exact."""
QUERY = 8
"""What finding one point's nearest in a tree costs, in voxels of a distance transform (measured: 3 to 14)."""


class SurfaceDistances(NamedTuple):
    """What is between the surfaces of a predicted and a true mask, in the unit of the spacing (mm)."""

    hd95: float
    """The larger of the two 95th percentiles of distance, from the prediction to the truth and back."""
    hd: float
    """The Hausdorff distance, the largest of all."""
    assd: float
    """Average symmetric surface distance: the mean over the voxels of both surfaces."""
    nsd: float
    """Normalised surface Dice: the share of both surfaces that is within the tolerance of the other, 0 to 1."""


ABSENT = SurfaceDistances(math.nan, math.nan, math.nan, math.nan)
"""Of two empty masks."""
APART = SurfaceDistances(math.inf, math.inf, math.inf, 0.0)
"""Where only one mask is empty."""


def surface_distances(
    predicted: Bools, truth: Bools, spacing: Sequence[float], tolerance_mm: float
) -> SurfaceDistances:
    """All figures of one pair of masks (*S), voxels of which have edges of `spacing` mm."""
    if not predicted.dtype == truth.dtype == bool:
        raise ValueError(f"masks must be bool, got {predicted.dtype} and {truth.dtype}")
    return surface_metrics(predicted.view(np.uint8), truth.view(np.uint8), 2, spacing, tolerance_mm)[1]


def surface_metrics(
    predicted: Array,
    truth: Array,
    classes: int,
    spacing: Sequence[float],
    tolerance_mm: float | Sequence[float],
    ignore: int | None = None,
) -> list[SurfaceDistances]:
    """The figures of each class of two label maps (*S); `np.array` of them is (K, 4).

    Class 0 is the background, whose surface is that of the others: its row is ABSENT. `tolerance_mm` is of all
    classes, or one of each (K,). Voxels whose truth is `ignore` are background in both maps, as in MONAI.
    """
    check_maps(predicted, truth)
    edges = np.asarray(spacing, np.float64)
    tolerances = np.broadcast_to(np.asarray(tolerance_mm, np.float64), (classes,))
    if edges.shape != (truth.ndim,) or not (np.isfinite(edges) & (edges > 0)).all():
        raise ValueError(f"spacing must be {truth.ndim} numbers above 0, got {spacing}")
    if not (np.isfinite(tolerances) & (tolerances >= 0)).all():
        raise ValueError(f"tolerance_mm must be 0 or more, got {tolerance_mm}")
    if ignore is not None:
        counted = truth != ignore
        predicted, truth = predicted * counted, truth * counted
    if predicted.flags.f_contiguous and truth.flags.f_contiguous:
        # Images of files often are; turned, the last axis is the one without gaps.
        predicted, truth, edges = predicted.T, truth.T, edges[::-1]
    box = foreground_box((predicted != 0) | (truth != 0))
    outlines = [_outline(labels[box]) for labels in (predicted, truth)]
    mine, real = (_points(outline, classes) for outline in outlines)
    found = [ABSENT]
    for k in range(1, classes):
        if not len(mine[k]) or not len(real[k]):
            found.append(APART if len(mine[k]) or len(real[k]) else ABSENT)
            continue
        to_truth = _distances(mine[k], real[k], outlines[1], k, edges)
        to_prediction = _distances(real[k], mine[k], outlines[0], k, edges)
        found.append(_figures(to_truth, to_prediction, float(tolerances[k])))
    return found


def summarise(
    table: ArrayLike, classes: Sequence[str], penalties_mm: ArrayLike | None = None, background: int | None = 0
) -> dict[str, float]:
    """The figures of a table of cases (N, K, 4), that of one worker or of all: hd95, hd, assd, nsd, `name/<class>`.

    Means are those of `overlap.averages`. Where only one mask is empty nsd is 0, and a distance is the case's
    `penalties_mm` (N,), for instance its `diagonal_mm`; without penalties such distances are left out, which flatters
    a network that misses structures. `unmatched` and `unmatched/<class>` say how many there were.
    """
    values = np.array(table, np.float64).reshape(-1, len(classes), len(SurfaceDistances._fields))
    unmatched = np.isinf(values[..., 0])
    penalty = np.full(len(values), np.nan) if penalties_mm is None else np.asarray(penalties_mm, np.float64)
    values = np.where(np.isinf(values), penalty[:, None, None], values)
    found: dict[str, float] = {}
    for column, name in enumerate(SurfaceDistances._fields):
        found |= averages(name, values[..., column], classes, background)
    return found | totals("unmatched", unmatched, classes, background)


def diagonal_mm(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """The length of an image's diagonal: no distance in it is larger."""
    return math.hypot(*(size * edge for size, edge in zip(shape, spacing, strict=True)))


def foreground_box(mask: Bools) -> tuple[slice, ...]:
    """The smallest box that holds all of a mask (*S); of an empty mask, an empty box."""
    box: list[slice] = []
    for axis in range(mask.ndim):
        # What is known of the box makes the next axis cheaper.
        within = mask[tuple(box)]
        filled = np.flatnonzero(within.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1) if len(filled) else slice(0, 0))
    return tuple(box)


def _outline(labels: Array) -> Array:
    """The label map with only the surface of each class: all else, and the background, is 0.

    One pass for all classes. `labels` fill their box: what is beyond it, image or not, is background.
    """
    surface = np.zeros(labels.shape, bool)
    for axis in range(labels.ndim):
        along, edge = np.moveaxis(labels, axis, 0), np.moveaxis(surface, axis, 0)
        differs = along[:-1] != along[1:]
        edge[:-1] |= differs
        edge[1:] |= differs
        edge[:1], edge[-1:] = True, True
    return labels * surface


def _points(outline: Array, classes: int) -> list[Counts]:
    """(n, d) the voxels of each class, all K in one pass."""
    flat = np.flatnonzero(outline)
    labels = outline.ravel()[flat]
    order = np.argsort(labels, kind="stable")
    if len(labels) and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(f"a label map holds values {labels.min()} to {labels.max()}; classes are 0 to {classes - 1}")
    bounds = np.searchsorted(labels[order], np.arange(classes + 1))
    indices = np.stack(np.unravel_index(flat[order], outline.shape), axis=1)
    return np.split(indices, bounds)[1:-1]


def _distances(points: Counts, surface: Counts, outline: Array, label: int, spacing: Floats) -> Floats:
    """(n,) from each of `points` to the nearest of `surface`, the voxels of `label` in `outline`."""
    distances = np.zeros(len(points))
    apart = outline[tuple(points.T)] != label
    if not apart.any():
        return distances
    asked = points[apart]
    low = np.minimum(asked.min(0), surface.min(0))
    extent = np.maximum(asked.max(0), surface.max(0)) - low + 1
    if QUERY * len(asked) + len(surface) <= extent.prod():
        tree = KDTree(surface * spacing, leafsize=32, balanced_tree=False)
        distances[apart] = tree.query(asked * spacing)[0]
    else:
        # A prediction like noise has nearly as many surface voxels as voxels.
        box = tuple(slice(start, start + size) for start, size in zip(low, extent, strict=True))
        transform = distance_transform_edt(outline[box] != label, sampling=spacing)
        distances[apart] = transform[tuple((asked - low).T)]
    return distances


def _figures(to_truth: Floats, to_prediction: Floats, tolerance_mm: float) -> SurfaceDistances:
    both = np.concatenate([to_truth, to_prediction])
    return SurfaceDistances(
        hd95=float(max(np.quantile(to_truth, 0.95), np.quantile(to_prediction, 0.95))),
        hd=float(both.max()),
        assd=float(both.mean()),
        nsd=float(np.mean(both <= tolerance_mm * (1 + SLACK))),
    )
