"""Curves over thresholds and calibration, for one class against the rest. N cases, T distinct scores."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Bools = NDArray[np.bool_]


class StepCounts(NamedTuple):
    """How many cases are called positive at each distinct score, from the highest down."""

    false_positives: Counts
    """(T,)"""
    true_positives: Counts
    """(T,)"""
    thresholds: Floats
    """(T,) a case is called positive at or above it."""


def step_counts(scores: ArrayLike, positive: ArrayLike) -> StepCounts:
    """The counts behind every curve, from scores (N,) and 0/1 (N,); equal scores share one step, so ties are exact."""
    scores, positive = np.asarray(scores, np.float64), np.asarray(positive).astype(bool)
    order = np.argsort(scores)[::-1]
    ordered = scores[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) if len(order) else order
    hits = np.cumsum(positive[order], dtype=np.int64)[last]
    return StepCounts(1 + last - hits, hits, ordered[last])


def roc_curve(scores: ArrayLike, positive: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """(T + 1,) each: false positive rate, true positive rate, threshold; from (0, 0) at infinity to (1, 1).

    A rate is NaN where there is no negative, or no positive, case.
    """
    counts = step_counts(scores, positive)
    fps, tps = np.append(0, counts.false_positives), np.append(0, counts.true_positives)
    thresholds = np.append(np.inf, counts.thresholds)
    return _share(fps, fps[-1]), _share(tps, tps[-1]), thresholds


def pr_curve(scores: ArrayLike, positive: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Precision and recall (T + 1,), and thresholds (T,) rising, ending at precision 1 and recall 0 (a convention).

    Recall is NaN where there is no positive case. Between two points the curve is a step, never a line (Davis and
    Goadrich 2006, 10.1145/1143844.1143874).
    """
    counts = step_counts(scores, positive)
    tps = counts.true_positives[::-1]
    precision = tps / (tps + counts.false_positives[::-1])
    recall = _share(tps, tps[0] if len(tps) else 0)
    return np.append(precision, 1.0), np.append(recall, 0.0), counts.thresholds[::-1]


def roc_area(counts: StepCounts) -> float:
    """AUROC: the chance that a positive case scores above a negative one, ties counted half (Hanley 1982,
    10.1148/radiology.143.1.7063747); NaN without a positive or a negative case.
    """
    fps, tps = np.append(0, counts.false_positives), np.append(0, counts.true_positives)
    if not fps[-1] or not tps[-1]:
        return float("nan")
    return float(np.trapezoid(tps / tps[-1], fps / fps[-1]))


def pr_area(counts: StepCounts) -> float:
    """Average precision: precision at each step, weighted by the recall that the step gains; NaN without a positive."""
    fps, tps = counts.false_positives, counts.true_positives
    if not len(tps) or not tps[-1]:
        return float("nan")
    return float((np.diff(tps, prepend=0) / tps[-1]) @ (tps / (tps + fps)))


def top_label(scores: ArrayLike, targets: ArrayLike) -> tuple[Floats, Bools]:
    """The highest of the scores (N, K) and whether its class is the true one, (N,) each."""
    scores, targets = np.asarray(scores, np.float64), np.asarray(targets).astype(bool)
    picked = scores.argmax(1)
    return scores.max(1), np.take_along_axis(targets, picked[:, None], 1)[:, 0]


def calibration_bins(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> tuple[Floats, Floats, Counts]:
    """(bins,) each: mean confidence, share of correct cases, count; of cases in ](b - 1) / bins, b / bins].

    Guo 2017 (arXiv:1706.04599). An empty bin has NaN means; a confidence of 0 belongs to the first bin.
    """
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    edges = np.linspace(0, 1, bins + 1)
    at = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(at, minlength=bins)
    filled = np.where(count, count, 1)
    empty = np.where(count, 0.0, np.nan)
    mean_confidence = np.bincount(at, confidence, bins) / filled + empty
    return mean_confidence, np.bincount(at, correct, bins) / filled + empty, count


def _share(part: Counts, whole: int) -> Floats:
    return part / whole if whole else np.full(len(part), np.nan)
