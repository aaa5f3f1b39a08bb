"""How far two segmentations cover the same voxels: counts of each case and class, and what follows from them.

Letters: N cases, K classes (exclusive, of a label map) or regions (masks that may overlap), S the spatial axes. A row
of counts is [intersection, predicted voxels, true voxels]; rows are integers, so tables of workers are stacked, and
counts of parts of a case are added, without loss.

Empty masks. Where class and prediction are both empty nothing is measured: with `empty="skip"` the figure is NaN and
left out of means, as in nnU-Net (Isensee 2021, 10.1038/s41592-020-01008-z), with `empty="one"` it is a perfect 1, as
in challenges (BraTS, ISLES). Where only one of the two is empty the figure is 0, but recall without a true voxel is
NaN under either. `summarise` says how many there were of each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from medray.metrics.curves import Bools, Counts, Floats
from medray.types import Array

Empty = Literal["skip", "one"]
"""What a figure is where neither the truth nor the prediction has a voxel: NaN, or 1."""

PART = 1 << 18
"""Voxels that are counted at once: what is made of them stays in the cache."""
FEW = 8
"""Up to so many classes, comparing with each is faster than a histogram of pairs (measured: 4 times with 3 classes)."""


def overlap_counts(predicted: Array, truth: Array, classes: int, ignore: int | None = None) -> Counts:
    """(K, 3) counts of two label maps (*S) with values 0 to K - 1; a voxel whose truth is `ignore` counts nowhere.

    Raises ValueError if the shapes differ or a voxel that counts holds another value.
    """
    check_maps(predicted, truth)
    counts = np.zeros((classes, 3), np.int64)
    for mine, real in _parts(predicted, truth):
        if ignore is not None and not (counted := real != ignore).all():
            mine, real = mine[counted], real[counted]
        for name, part in (("predicted", mine), ("truth", real)):
            if part.size and (part.min() < 0 or part.max() >= classes):
                raise ValueError(f"{name} holds values {part.min()} to {part.max()}; classes are 0 to {classes - 1}")
        if classes <= FEW:
            counts += [_overlap(mine == k, real == k) for k in range(classes)]
        else:
            pairs = np.bincount(mine.astype(np.intp) * classes + real, minlength=classes**2).reshape(classes, classes)
            counts += np.stack([pairs.diagonal(), pairs.sum(1), pairs.sum(0)], axis=1)
    return counts


def region_counts(predicted: Bools, truth: Bools, valid: Bools | None = None) -> Counts:
    """(R, 3) counts of masks (R, *S) that may overlap; voxels outside `valid` (*S) count nowhere."""
    if predicted.shape != truth.shape or (valid is not None and valid.shape != truth.shape[1:]):
        shapes = (predicted.shape, truth.shape, None if valid is None else valid.shape)
        raise ValueError(f"predicted and truth must be (R, *S) and valid (*S), got {', '.join(map(str, shapes))}")
    if not predicted.dtype == truth.dtype == bool or (valid is not None and valid.dtype != bool):
        raise ValueError(f"masks must be bool, got {predicted.dtype} and {truth.dtype}")
    rows = [
        _overlap(mine, real) if valid is None else _overlap(mine & valid, real & valid)
        for mine, real in zip(predicted, truth, strict=True)
    ]
    return np.array(rows, np.int64).reshape(-1, 3)


def check_maps(predicted: Array, truth: Array) -> None:
    """Raises ValueError unless both are label maps of one shape."""
    if predicted.shape != truth.shape:
        raise ValueError(f"predicted and truth must have one shape, got {predicted.shape} and {truth.shape}")
    if not (np.issubdtype(predicted.dtype, np.integer) and np.issubdtype(truth.dtype, np.integer)):
        raise ValueError(f"label maps must hold integers, got {predicted.dtype} and {truth.dtype}")


def dice(counts: ArrayLike, empty: Empty = "skip") -> Floats:
    """(..., K) 2 I / (P + T) of counts (..., K, 3) (Dice 1945, 10.2307/1932409).

    Of counts that were added over cases it is the pooled Dice, in which large structures weigh more.
    """
    hits, predicted, true = _columns(counts)
    return _ratio(2 * hits, predicted + true, predicted + true == 0, empty)


def iou(counts: ArrayLike, empty: Empty = "skip") -> Floats:
    """(..., K) I / (P + T - I), the index of Jaccard, of counts (..., K, 3)."""
    hits, predicted, true = _columns(counts)
    return _ratio(hits, predicted + true - hits, predicted + true == 0, empty)


def precision(counts: ArrayLike, empty: Empty = "skip") -> Floats:
    """(..., K) the share I / P of what was predicted that is true; 0 where nothing was predicted of what is there."""
    hits, predicted, true = _columns(counts)
    # Any divisor makes the hits of no prediction, which are none, a 0.
    return _ratio(hits, np.where(predicted, predicted, true), predicted + true == 0, empty)


def recall(counts: ArrayLike, empty: Empty = "skip") -> Floats:
    """(..., K) the share I / T of what is true that was predicted, also called sensitivity."""
    hits, predicted, true = _columns(counts)
    return _ratio(hits, true, predicted + true == 0, empty)


def volume_error(counts: ArrayLike, voxel_volume: ArrayLike = 1.0) -> Floats:
    """(..., K) signed error (P - T) x `voxel_volume` of counts (..., K, 3): above 0 where too much was predicted.

    `voxel_volume` (...) is the size of a voxel in the unit that is wanted: mL in 3D (mm3 / 1000), mm2 in 2D. Defined
    for empty masks too.
    """
    _, predicted, true = _columns(counts)
    error: Floats = (predicted - true) * np.asarray(voxel_volume, np.float64)[..., None]
    return error


def relative_volume_error(counts: ArrayLike) -> Floats:
    """(..., K) signed error (P - T) / T of counts (..., K, 3); NaN without a true voxel."""
    _, predicted, true = _columns(counts)
    return _ratio(predicted - true, true, true == 0, "skip")


def summarise(
    counts: ArrayLike,
    classes: Sequence[str],
    voxel_volumes: ArrayLike | None = None,
    empty: Empty = "skip",
    background: int | None = 0,
) -> dict[str, float]:
    """The figures of a table of cases (N, K, 3), that of one worker or of all: see `averages` for what is a mean.

    dice, iou, precision, recall; volume_error (absolute) and volume_bias (signed), in the unit of `voxel_volumes`
    (N,), where that is given; relative_volume_error (absolute, of cases with a true voxel). Each also as
    `name/<class>`. Counts, not means: `empty` (neither has a voxel), `missed` (only the truth has), `spurious` (only
    the prediction has), over the averaged classes and as `name/<class>`. `background` is the class that is left out
    of all but its own `name/<class>`; None for regions, of which each is a structure.
    """
    table = np.asarray(counts, np.int64).reshape(-1, len(classes), 3)
    figures = {
        "dice": dice(table, empty),
        "iou": iou(table, empty),
        "precision": precision(table, empty),
        "recall": recall(table, empty),
        "relative_volume_error": np.abs(relative_volume_error(table)),
    }
    if voxel_volumes is not None:
        bias = volume_error(table, voxel_volumes)
        figures |= {"volume_error": np.abs(bias), "volume_bias": bias}
    _, predicted, true = _columns(table)
    numbers = {
        "empty": (predicted == 0) & (true == 0),
        "missed": (predicted == 0) & (true > 0),
        "spurious": (predicted > 0) & (true == 0),
    }
    found: dict[str, float] = {}
    for name, values in figures.items():
        found |= averages(name, values, classes, background)
    for name, flags in numbers.items():
        found |= totals(name, flags, classes, background)
    return found


def averages(name: str, values: Floats, classes: Sequence[str], background: int | None = 0) -> dict[str, float]:
    """`name`: the mean over classes, but `background`, of the means over cases of `values` (N, K); `name/<class>`.

    NaN is left out: a case where a class is not defined, and a class that no case defines. Sums are exact (fsum), so
    the order of cases, and with it the number of workers, does not change a bit.
    """
    means = [_mean(column) for column in np.asarray(values, np.float64).T]
    found = {name: _mean(mean for k, mean in enumerate(means) if k != background)}
    return found | {f"{name}/{label}": mean for label, mean in zip(classes, means, strict=True)}


def totals(name: str, numbers: Bools | Counts, classes: Sequence[str], background: int | None = 0) -> dict[str, float]:
    """`name`: the sum of `numbers` (N, K) over all cases and all classes but `background`; `name/<class>`."""
    sums = [float(total) for total in numbers.sum(0)]
    found = {name: sum((total for k, total in enumerate(sums) if k != background), 0.0)}
    return found | {f"{name}/{label}": total for label, total in zip(classes, sums, strict=True)}


def _parts(predicted: Array, truth: Array) -> Iterator[tuple[Array, Array]]:
    """Both maps, flat, piece by piece; images of files are often in Fortran's order, which is not worth a copy."""
    order: Literal["F", "C"] = "F" if predicted.flags.f_contiguous and truth.flags.f_contiguous else "C"
    mine, real = predicted.ravel(order), truth.ravel(order)
    for start in range(0, mine.size, PART):
        yield mine[start : start + PART], real[start : start + PART]


def _overlap(mine: Bools, real: Bools) -> tuple[int, int, int]:
    return int(np.count_nonzero(mine & real)), int(np.count_nonzero(mine)), int(np.count_nonzero(real))


def _columns(counts: ArrayLike) -> tuple[Counts, Counts, Counts]:
    table = np.asarray(counts, np.int64)
    return table[..., 0], table[..., 1], table[..., 2]


def _ratio(part: Counts, whole: Counts, nothing: Bools, empty: Empty) -> Floats:
    """part / whole, NaN where that is not defined, and what `empty` says where there is `nothing` to measure."""
    ratio = np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole != 0)
    return np.where(nothing, 1.0, ratio) if empty == "one" else ratio


def _mean(values: Iterator[float] | Floats) -> float:
    defined = [float(value) for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan
