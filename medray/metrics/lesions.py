"""Whether lesions are found, each as a whole: a large one does not outweigh the small, as it does in Dice.

A lesion is a connected component. Counts are those of the ISLES challenge (Hernandez Petzsche 2022,
10.1038/s41597-022-01875-5; de la Rosa 2024, arXiv:2403.19425): a true lesion is found (tp) if the prediction covers
any of it, or at least the share `overlap`, and else missed (fn); a predicted lesion that touches no true voxel is a
false positive (fp). So one predicted lesion may find several, and one that touches a lesion without finding it counts
nowhere. This is not the one-to-one matching of panoptica (Kofler 2023, arXiv:2312.02608) or of BraTS 2023, which
dilates and merges lesions first. A row of counts is [tp, fp, fn]; rows of cases add up.

Empty masks, as in metrics/overlap.py: without true and predicted lesions a figure is NaN and left out of means
(`empty="skip"`), or 1 (`empty="one"`); with only one of the two it is 0, but recall without a true lesion is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import generate_binary_structure, label

from medray.metrics import overlap as voxels
from medray.metrics.curves import Bools, Counts, Floats
from medray.metrics.overlap import Empty, averages, check_maps, totals
from medray.metrics.surface import foreground_box
from medray.types import Array


class LesionCounts(NamedTuple):
    """The lesions of one case, or of several together."""

    tp: int
    """True lesions that were found."""
    fp: int
    """Predicted lesions where there is none."""
    fn: int
    """True lesions that were missed."""


def lesion_counts(
    predicted: Bools, truth: Bools, connectivity: int | None = None, min_voxels: int = 1, overlap: float = 0.0
) -> LesionCounts:
    """The lesions of two masks (*S).

    `connectivity`: how many axes neighbours may differ in, 1 to d; None is d (26 neighbours in 3D, 8 in 2D), as in
    ISLES. Predicted lesions below `min_voxels` are taken out of the prediction; true ones are not asked for, but a
    prediction that touches one is no false positive.
    """
    if predicted.shape != truth.shape or not predicted.dtype == truth.dtype == bool:
        raise ValueError(
            f"masks must be bool and of one shape, got {predicted.dtype} {predicted.shape}, {truth.dtype} {truth.shape}"
        )
    reach = truth.ndim if connectivity is None else connectivity
    if not (1 <= reach <= truth.ndim and 0 <= overlap <= 1):
        raise ValueError(f"connectivity must be 1 to {truth.ndim} and overlap 0 to 1, got {reach} and {overlap:g}")
    box = foreground_box(predicted | truth)
    mine, mine_sizes = _components(predicted[box], reach)
    real, real_sizes = _components(truth[box], reach)
    kept, asked = mine_sizes >= min_voxels, real_sizes >= min_voxels
    covering = kept[mine]
    covered = np.bincount(real[covering], minlength=len(real_sizes))
    touching = np.bincount(mine[truth[box]], minlength=len(mine_sizes)) > 0
    found = int(np.count_nonzero(asked & (covered > 0) & (covered >= overlap * real_sizes)))
    return LesionCounts(found, int(np.count_nonzero(kept & ~touching)), int(np.count_nonzero(asked)) - found)


def label_lesion_counts(
    predicted: Array,
    truth: Array,
    classes: int,
    ignore: int | None = None,
    connectivity: int | None = None,
    min_voxels: int = 1,
    overlap: float = 0.0,
) -> Counts:
    """(K, 3) the lesions of each class of two label maps (*S); the row of the background, class 0, is 0.

    Voxels whose truth is `ignore` are background in both maps.
    """
    check_maps(predicted, truth)
    if ignore is not None:
        counted = truth != ignore
        predicted, truth = predicted * counted, truth * counted
    box = foreground_box((predicted != 0) | (truth != 0))
    mine, real = predicted[box], truth[box]
    rows = [lesion_counts(mine == k, real == k, connectivity, min_voxels, overlap) for k in range(1, classes)]
    return np.array([(0, 0, 0), *rows], np.int64)


def precision(counts: ArrayLike, empty: Empty = "skip") -> Floats:
    """(...) tp / (tp + fp) of counts (..., 3); 0 where nothing was predicted of what is there."""
    return voxels.precision(_as_overlap(counts), empty)


def recall(counts: ArrayLike, empty: Empty = "skip") -> Floats:
    """(...) tp / (tp + fn) of counts (..., 3), the lesion-wise sensitivity."""
    return voxels.recall(_as_overlap(counts), empty)


def f1(counts: ArrayLike, empty: Empty = "skip") -> Floats:
    """(...) 2 tp / (2 tp + fp + fn) of counts (..., 3)."""
    return voxels.dice(_as_overlap(counts), empty)


def summarise(
    counts: ArrayLike, classes: Sequence[str], empty: Empty = "skip", background: int | None = 0
) -> dict[str, float]:
    """The figures of a table of cases (N, K, 3), that of one worker or of all.

    lesion_precision, lesion_recall and lesion_f1 are means of cases (see `overlap.averages`), `..._pooled` of the
    lesions of all cases together; lesion_fp_per_case is the mean number of false positives, lesion_tp, lesion_fp and
    lesion_fn are sums. Each also as `name/<class>`; `background` is the class that is left out, None where none is.
    """
    table = np.asarray(counts, np.int64).reshape(-1, len(classes), 3)
    pooled = table.sum(0, keepdims=True)
    found: dict[str, float] = {}
    for figure in (precision, recall, f1):
        name = f"lesion_{figure.__name__}"
        found |= averages(name, figure(table, empty), classes, background)
        found |= averages(f"{name}_pooled", figure(pooled, empty), classes, background)
    for column, name in enumerate(LesionCounts._fields):
        found |= totals(f"lesion_{name}", table[..., column], classes, background)
    return found | averages("lesion_fp_per_case", table[..., 1].astype(np.float64), classes, background)


def _components(mask: Bools, connectivity: int) -> tuple[Counts, Counts]:
    """The components of a mask, numbered from 1, and their sizes; number 0, what is no component, has size 0."""
    numbers, _ = label(mask, generate_binary_structure(mask.ndim, connectivity))
    sizes = np.bincount(numbers.ravel(), minlength=1)
    sizes[0] = 0
    return numbers, sizes


def _as_overlap(counts: ArrayLike) -> Counts:
    """[tp, fp, fn] as [both, predicted, true], which have the same ratios."""
    tp, fp, fn = np.moveaxis(np.asarray(counts, np.int64), -1, 0)
    return np.stack([tp, tp + fp, tp + fn], axis=-1)
