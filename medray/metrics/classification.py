"""What a classifier's scores are worth: pure functions on arrays, in numpy alone.

Letters: N cases, K classes. `scores` are probabilities (N, K), `targets` are 0 or 1 (N, K): one 1 per row where
classes are exclusive, any number where they are multi-label. A value that the cases do not define is NaN: AUROC of a
class that does not occur, or anything of no cases. Macro means leave undefined classes out and are NaN where no class
is left. Parity with scikit-learn, and for calibration with torchmetrics, is tested; neither is imported here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from medray.metrics.curves import Bools, Counts, Floats, calibration_bins, pr_area, roc_area, step_counts, top_label

SUMMARY = (
    "accuracy",
    "balanced_accuracy",
    "precision",
    "recall",
    "f1",
    "specificity",
    "auroc",
    "average_precision",
    "kappa",
    "kappa_quadratic",
    "mcc",
    "brier",
    "ece",
)
"""The keys of `summarise`."""


def summarise(
    scores: ArrayLike, targets: ArrayLike, multilabel: bool = False, thresholds: ArrayLike | None = None
) -> dict[str, float]:
    """The figures of one set of cases, by the names in SUMMARY.

    Exclusive classes: accuracy and balanced_accuracy (mean recall) are over all classes; precision, recall, f1,
    specificity, auroc, average_precision are macro means over classes (one against the rest), and of class 1 alone,
    the positive one, where K is 2. brier is the sum of squares over classes (Brier 1950,
    10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2), of class 1 alone where K is 2, as in scikit-learn.
    ece: expected calibration error of the picked class, 15 bins of equal width (Guo 2017, arXiv:1706.04599).
    kappa_quadratic (Cohen 1968, 10.1037/h0026256) takes the order of the classes as a scale; elsewhere ignore it.

    Multi-label: every figure is the mean over labels of the two-class figure (accuracy as in MedMNIST, Yang 2023,
    10.1038/s41597-022-01721-8; ece of the label's probability); a label is picked at `thresholds` (K,), default 0.5.
    """
    scores, truth = checked(scores, targets, multilabel)
    if not len(scores):
        return dict.fromkeys(SUMMARY, float("nan"))
    picked = decide(scores, multilabel, thresholds)
    rows = _rows(scores, truth, picked)
    figures = _of_labels(scores, truth, picked, rows) if multilabel else _of_classes(scores, truth, rows)
    averaged = rows[1:] if scores.shape[1] == 2 and not multilabel else rows
    for name in ("precision", "recall", "f1", "specificity", "auroc", "average_precision"):
        figures[name] = _mean(row[name] for row in averaged)
    return {name: figures[name] for name in SUMMARY}


def macro_auroc(scores: ArrayLike, targets: ArrayLike, multilabel: bool = False) -> float:
    """`summarise(...)["auroc"]` without the rest, for intervals."""
    scores, truth = checked(scores, targets, multilabel)
    first = 1 if scores.shape[1] == 2 and not multilabel else 0
    return _mean(roc_area(step_counts(scores[:, k], truth[:, k])) for k in range(first, scores.shape[1]))


def per_class(
    scores: ArrayLike,
    targets: ArrayLike,
    classes: Sequence[str],
    multilabel: bool = False,
    thresholds: ArrayLike | None = None,
) -> dict[str, dict[str, float]]:
    """Class -> precision, recall, f1, specificity, auroc, average_precision (one against the rest) and support.

    Of a class that does not occur only specificity and support (0) are defined; precision is 0 where a class that
    occurs is never picked (scikit-learn's zero_division=0).
    """
    scores, truth = checked(scores, targets, multilabel)
    if len(classes) != scores.shape[1]:
        raise ValueError(f"{len(classes)} classes were named for scores of {scores.shape[1]}")
    return dict(zip(classes, _rows(scores, truth, decide(scores, multilabel, thresholds)), strict=True))


def decide(scores: ArrayLike, multilabel: bool = False, thresholds: ArrayLike | None = None) -> Bools:
    """(N, K) the classes picked: the highest score (the first of equals), or all at or above `thresholds` (K,)."""
    scores = np.asarray(scores, np.float64)
    if thresholds is not None and not multilabel:
        raise ValueError("thresholds are for multi-label classes; exclusive ones are chosen by the highest score")
    picked: Bools
    if multilabel:
        picked = scores >= np.asarray(0.5 if thresholds is None else thresholds, np.float64)
    else:
        picked = np.arange(scores.shape[1]) == scores.argmax(1)[:, None]
    return picked


def confusion_matrix(scores: ArrayLike, targets: ArrayLike) -> Counts:
    """(K, K) counts of exclusive classes: the true class in rows, the picked one in columns."""
    scores, truth = checked(scores, targets, multilabel=False)
    k = scores.shape[1]
    pairs = truth.argmax(1) * k + scores.argmax(1)
    return np.bincount(pairs, minlength=k * k).reshape(k, k).astype(np.int64)


def checked(scores: ArrayLike, targets: ArrayLike, multilabel: bool) -> tuple[Floats, Bools]:
    """Scores (N, K) as float64 and targets (N, K) as bool. Raises ValueError where they are not what they should be."""
    scores, targets = np.asarray(scores, np.float64), np.asarray(targets)
    if scores.ndim != 2 or scores.shape != targets.shape or not scores.shape[1]:
        raise ValueError(f"scores and targets must both be (N, K), got {scores.shape} and {targets.shape}")
    broken = int((~np.isfinite(scores)).any(1).sum())
    if broken:
        raise ValueError(f"{broken} of {len(scores)} cases have scores that are not finite numbers")
    truth = targets.astype(bool)
    if not np.array_equal(truth, targets):
        raise ValueError("targets must be 0 or 1; blended targets (mixup) are for training only")
    odd = 0 if multilabel else int((truth.sum(1) != 1).sum())
    if odd:
        raise ValueError(f"{odd} of {len(scores)} cases do not have exactly one true class; are they multi-label?")
    return scores, truth


def _of_classes(scores: Floats, truth: Bools, rows: list[dict[str, float]]) -> dict[str, float]:
    table = confusion_matrix(scores, truth)
    error = (scores - truth) ** 2
    return {
        "accuracy": float(table.trace() / len(scores)),
        "balanced_accuracy": _mean(row["recall"] for row in rows),
        **_agreement([table]),
        "brier": float(np.mean(error[:, 1] if scores.shape[1] == 2 else error.sum(1))),
        "ece": _ece(*top_label(scores, truth)),
    }


def _of_labels(scores: Floats, truth: Bools, picked: Bools, rows: list[dict[str, float]]) -> dict[str, float]:
    pairs = truth * 2 + picked
    tables = [np.bincount(column, minlength=4).reshape(2, 2) for column in pairs.T]
    return {
        "accuracy": float(np.mean(truth == picked)),
        "balanced_accuracy": _mean(_mean((row["recall"], row["specificity"])) for row in rows),
        **_agreement(tables),
        "brier": float(np.mean((scores - truth) ** 2)),
        "ece": _mean(_ece(scores[:, k], truth[:, k]) for k in range(scores.shape[1])),
    }


def _rows(scores: Floats, truth: Bools, picked: Bools) -> list[dict[str, float]]:
    hits = (truth & picked).sum(0)
    support, chosen = truth.sum(0), picked.sum(0)
    rows = []
    for k in range(scores.shape[1]):
        tp, positive, negative = float(hits[k]), float(support[k]), float(len(truth) - support[k])
        fp = float(chosen[k]) - tp
        occurs = positive > 0
        counts = step_counts(scores[:, k], truth[:, k])
        rows.append(
            {
                "precision": _ratio(tp, tp + fp, 0.0) if occurs else float("nan"),
                "recall": _ratio(tp, positive),
                "f1": _ratio(2 * tp, positive + chosen[k]) if occurs else float("nan"),
                "specificity": _ratio(negative - fp, negative),
                "auroc": roc_area(counts),
                "average_precision": pr_area(counts),
                "support": positive,
            }
        )
    return rows


def _agreement(tables: Sequence[Counts]) -> dict[str, float]:
    """Agreement beyond chance, as the mean over tables."""
    return {
        "kappa": _mean(_kappa(table, 0) for table in tables),
        "kappa_quadratic": _mean(_kappa(table, 2) for table in tables),
        "mcc": _mean(_mcc(table) for table in tables),
    }


def _kappa(table: Counts, power: int) -> float:
    """Cohen 1960 (10.1177/001316446002000104), or weighted by distance to the `power`; NaN if all is one class."""
    k = len(table)
    distance = np.abs(np.subtract.outer(np.arange(k), np.arange(k)))
    weight = distance**power if power else (distance > 0).astype(np.int64)
    chance = np.outer(table.sum(1), table.sum(0)) / table.sum()
    expected = float((weight * chance).sum())
    return 1 - float((weight * table).sum()) / expected if expected else float("nan")


def _mcc(table: Counts) -> float:
    """R_K of Gorodkin 2004 (10.1016/j.compbiolchem.2004.09.006); 0 where all is, or is called, one class."""
    counts = table.astype(np.float64)
    true, picked, n = counts.sum(1), counts.sum(0), counts.sum()
    spread = (n**2 - picked @ picked) * (n**2 - true @ true)
    return float((counts.trace() * n - true @ picked) / np.sqrt(spread)) if spread else 0.0


def _ece(confidence: Floats, correct: Bools) -> float:
    mean_confidence, share_correct, count = calibration_bins(confidence, correct)
    filled = count > 0
    gap = np.abs(mean_confidence[filled] - share_correct[filled])
    return float(gap @ count[filled] / count.sum())


def _ratio(part: float, whole: float, otherwise: float = float("nan")) -> float:
    return float(part / whole) if whole else otherwise


def _mean(values: Iterable[float]) -> float:
    """The mean of the values that are defined."""
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")
