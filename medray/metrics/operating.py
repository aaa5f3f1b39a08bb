"""Where to call a case positive: thresholds chosen on validation cases, and what they give on others. N cases.

A case is called positive at `score >= threshold`. A threshold lies halfway between the lowest score that is called and
the next one below, so that it does not hang on the last digit of one score; where all are called it is the lowest
score itself, and where none is, the next number above the highest. It is always finite. What a chosen point promises
holds on the cases that it was chosen on, and is too rosy elsewhere: measure it with `evaluate_at` on test cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from medray.metrics.curves import Bools, Floats, StepCounts, step_counts
from medray.metrics.intervals import wilson


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A threshold and what it gives; a rate of no cases is NaN."""

    rule: str
    """How the threshold was chosen, in words for a report."""
    threshold: float
    sensitivity: float
    specificity: float
    ppv: float
    """Share of the called cases that are positive; it moves with how common these are."""
    npv: float
    f1: float
    sensitivity_low: float
    sensitivity_high: float
    """95 % interval, Wilson's, which takes cases as independent."""
    specificity_low: float
    specificity_high: float

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; what is not defined is None."""
        return {name: None if value != value else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> OperatingPoint:
        """The inverse of `as_dict`."""
        fields: dict[str, Any] = {name: float("nan") if value is None else value for name, value in plain.items()}
        return cls(**fields)


def at_sensitivity(scores: ArrayLike, positive: ArrayLike, minimum: float) -> OperatingPoint:
    """The point of highest specificity with sensitivity >= `minimum` on these cases; of equals the most sensitive.

    Like its neighbours it takes scores (N,) and 0/1 (N,), among which both kinds of case must be (ValueError).
    """
    steps = _steps(scores, positive, minimum)
    false, true = steps.false_positives, steps.true_positives
    # Whole numbers are ordered, not rates, so that ties are exact; lexsort's last key comes first.
    best = np.lexsort((-true, false, true / true[-1] < minimum))[0]
    return evaluate_at(scores, positive, _between(steps.thresholds, int(best)), f"sensitivity >= {minimum:g}")


def at_specificity(scores: ArrayLike, positive: ArrayLike, minimum: float) -> OperatingPoint:
    """The point of highest sensitivity with specificity >= `minimum` on these cases; of equals the most specific."""
    steps = _steps(scores, positive, minimum)
    false, true = steps.false_positives, steps.true_positives
    best = np.lexsort((false, -true, (false[-1] - false) / false[-1] < minimum))[0]
    return evaluate_at(scores, positive, _between(steps.thresholds, int(best)), f"specificity >= {minimum:g}")


def at_youden(scores: ArrayLike, positive: ArrayLike) -> OperatingPoint:
    """The point of the highest sensitivity + specificity; of equals the most sensitive, since a miss weighs more.

    Youden 1950, 10.1002/1097-0142(1950)3:1<32::AID-CNCR2820030106>3.0.CO;2-3.
    """
    steps = _steps(scores, positive, 0)
    false, true = steps.false_positives, steps.true_positives
    best = np.lexsort((-true, false * true[-1] - true * false[-1]))[0]
    return evaluate_at(scores, positive, _between(steps.thresholds, int(best)), "Youden")


def evaluate_at(scores: ArrayLike, positive: ArrayLike, threshold: float, rule: str = "given") -> OperatingPoint:
    """What calling positive at `score >= threshold` gives on these cases, by scores (N,) and 0/1 (N,)."""
    scores, truth = _checked(scores, positive)
    if not np.isfinite(threshold):
        raise ValueError(f"a threshold must be a finite number, got {threshold}")
    called = scores >= threshold
    tp, fp = int((called & truth).sum()), int((called & ~truth).sum())
    fn, tn = int((~called & truth).sum()), int((~called & ~truth).sum())
    sensitivity, specificity = wilson(tp, tp + fn), wilson(tn, tn + fp)
    return OperatingPoint(
        rule,
        float(threshold),
        sensitivity=_share(tp, tp + fn),
        specificity=_share(tn, tn + fp),
        ppv=_share(tp, tp + fp),
        npv=_share(tn, tn + fn),
        f1=_share(2 * tp, 2 * tp + fp + fn) if tp + fn else float("nan"),
        sensitivity_low=sensitivity[0],
        sensitivity_high=sensitivity[1],
        specificity_low=specificity[0],
        specificity_high=specificity[1],
    )


def _checked(scores: ArrayLike, positive: ArrayLike) -> tuple[Floats, Bools]:
    scores, truth = np.asarray(scores, np.float64), np.asarray(positive).astype(bool)
    if scores.ndim != 1 or scores.shape != truth.shape:
        raise ValueError(f"scores and positive must both be (N,), got {scores.shape} and {truth.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite numbers")
    return scores, truth


def _steps(scores: ArrayLike, positive: ArrayLike, minimum: float) -> StepCounts:
    """The counts at each step, before them the one at which no case is called, with a threshold of infinity."""
    scores, truth = _checked(scores, positive)
    if not 0 <= minimum <= 1:
        raise ValueError(f"a minimum must be between 0 and 1, got {minimum:g}")
    if truth.all() or not truth.any():
        raise ValueError(f"a threshold needs positive and negative cases, got {truth.sum()} of {len(truth)} positive")
    steps = step_counts(scores, truth)
    return StepCounts(
        np.append(0, steps.false_positives),
        np.append(0, steps.true_positives),
        np.append(np.inf, steps.thresholds),
    )


def _between(scores: Floats, step: int) -> float:
    """A threshold that calls scores[: step + 1], which fall, the first from infinity, and no other."""
    if step == 0:
        return float(np.nextafter(scores[1], np.inf))
    if step == len(scores) - 1:
        return float(scores[step])
    high, low = float(scores[step]), float(scores[step + 1])
    middle = high / 2 + low / 2
    # Between neighbouring numbers there is none: half of them rounds to either.
    return middle if low < middle <= high else high


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
