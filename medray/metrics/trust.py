"""What to believe of a classifier's or a regression's answer, learnt on cases that it was not trained on.

Temperature scaling makes probabilities honest, conformal prediction turns them into sets of classes that hold the true
one as often as promised. Letters: N cases, K classes, T targets of a regression. `scores` are probabilities (N, K), not
logits; `targets` are 0 or 1 (N, K), as in classification.py. The promise of conformal sets is for new cases like those
fitted on, on average over them; cases of one patient are not new to each other: fit on one of each, or take the promise
as approximate. Fit the temperature first, then the sets on scaled scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from medray.metrics.classification import checked
from medray.metrics.curves import Bools, Floats

COLDEST, HOTTEST = 0.05, 20.0
"""The temperatures that are looked at; at either end the cases do not say where to stop."""
TINY = float(np.finfo(np.float32).tiny)
"""The least probability whose logarithm is taken: below it a float32 softmax says 0."""

Method = Literal["lac", "aps"]


@dataclass(frozen=True, slots=True)
class Conformal:
    """When a class belongs to the set of a case: where its strangeness is at most the threshold."""

    alpha: float
    """The share of cases whose set may miss the true class."""
    thresholds: tuple[float, ...]
    """(K,), equal unless `per_class`; infinite, so that the class is in every set, where there were too few cases."""
    method: Method
    per_class: bool = False
    """Whether the promise holds for the cases of each class, not only over all."""
    multilabel: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; an infinite threshold is None."""
        return asdict(self) | {"thresholds": _plain(self.thresholds)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Conformal:
        """The inverse of `as_dict`."""
        return cls(**{**plain, "thresholds": _unplain(plain["thresholds"])})


@dataclass(frozen=True, slots=True)
class ConformalInterval:
    """How far around a predicted number the true one is looked for."""

    alpha: float
    """The share of cases that may lie outside, of each target by itself."""
    half_widths: tuple[float, ...]
    """(T,); infinite where there were too few cases."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; an infinite half width is None."""
        return {"alpha": self.alpha, "half_widths": _plain(self.half_widths)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> ConformalInterval:
        """The inverse of `as_dict`."""
        return cls(plain["alpha"], _unplain(plain["half_widths"]))

    def around(self, predicted: ArrayLike) -> tuple[Floats, Floats]:
        """(low, high), (..., T) each, of predicted (..., T)."""
        predicted, half = np.asarray(predicted, np.float64), np.array(self.half_widths)
        return predicted - half, predicted + half


def fit_temperature(scores: ArrayLike, targets: ArrayLike, multilabel: bool = False) -> float:
    """The temperature that makes the true classes likeliest on these cases (Guo 2017, arXiv:1706.04599).

    Above 1 where the scores are too sure. A case that is scored 0 for what is true counts as TINY, and still weighs
    heavily. Near COLDEST (all cases right) or HOTTEST (no better than chance) do not use it.
    """
    from scipy.optimize import minimize_scalar

    scores, truth = _probabilities(scores, targets, multilabel)
    if not len(scores):
        raise ValueError("a temperature needs at least one case")
    if multilabel:
        margin = np.where(truth, 1.0, -1.0) * _logit(scores)
    else:
        logits = _log(scores)
        margin = logits[truth][:, None] - logits

    def loss(log_temperature: float) -> float:
        scaled = margin * math.exp(-log_temperature)
        if multilabel:
            return float(np.logaddexp(0, -scaled).mean())
        least = scaled.min(1)
        return float((np.log(np.exp(least[:, None] - scaled).sum(1)) - least).mean())

    found = minimize_scalar(loss, bounds=(math.log(COLDEST), math.log(HOTTEST)), method="bounded")
    return float(math.exp(found.x))


def apply_temperature(scores: ArrayLike, temperature: float, multilabel: bool = False) -> Floats:
    """(N, K) scaled probabilities: softmax(log p / T), or sigmoid(logit(p) / T) of multi-label classes.

    1 changes nothing. The likeliest class stays the likeliest.
    """
    scores = _of_unit(scores, multilabel)
    if not 0 < temperature < math.inf:
        raise ValueError(f"a temperature must be above 0 and finite, got {temperature:g}")
    scaled: Floats
    if multilabel:
        scaled = np.exp(-np.logaddexp(0, -_logit(scores) / temperature))
        return scaled
    logits = _log(scores)
    scaled = np.exp((logits - logits.max(1, keepdims=True)) / temperature)
    scaled /= scaled.sum(1, keepdims=True)
    # A high temperature can round the second likeliest up to the likeliest, and the first of equals would be picked.
    rows, top = np.arange(len(scores)), scores.argmax(1)
    tied = scaled.argmax(1) != top
    scaled[rows[tied], top[tied]] = np.nextafter(scaled[tied].max(1), 2)
    return scaled


def fit_conformal(
    scores: ArrayLike,
    targets: ArrayLike,
    alpha: float,
    per_class: bool = False,
    method: Method = "lac",
    multilabel: bool = False,
) -> Conformal:
    """Thresholds such that the set of a new case misses its true class with a chance of at most `alpha`.

    Args:
        scores: (N, K) of cases that neither the network nor its temperature saw.
        targets: (N, K), one true class each; any number where `multilabel`.
        alpha: the share that may be missed; a finite sample's quantile is taken (Vovk 2005, 10.1007/b106715), so
            that the promise holds for any N. It needs at least 1 / alpha - 1 cases; with fewer the threshold is
            infinite and the set holds all classes.
        per_class: keep the promise for the cases of each class (Mondrian), which counts for a rare one. Each class
            needs so many cases, or is in every set.
        method: 'lac', by 1 - p, whose sets are the smallest (Sadinle 2019, 10.1080/01621459.2017.1395341); 'aps', by
            the sum of p over all likelier classes and half of its own, whose sets grow with the difficulty of the case
            (Romano 2020, arXiv:2006.02544; the half stands for their random share, so that a case has one answer).
        multilabel: each label for itself, of the cases that have it: a label that is present is missed with a chance of
            at most alpha. Sets are then always per class and 'lac'; the rest is refused (ValueError).
    """
    _check_alpha(alpha)
    if multilabel and not (per_class and method == "lac"):
        raise ValueError("multi-label sets promise something of each label only: use per_class=True and method='lac'")
    scores, truth = _probabilities(scores, targets, multilabel)
    strangeness = _strangeness(scores, method)
    if per_class:
        thresholds = [_quantile(strangeness[truth[:, k], k], alpha) for k in range(scores.shape[1])]
    else:
        thresholds = [_quantile(strangeness[truth], alpha)] * scores.shape[1]
    return Conformal(alpha, tuple(thresholds), method, per_class, multilabel)


def conformal_set(scores: ArrayLike, conformal: Conformal, keep_top: bool = True) -> Bools:
    """(N, K) the classes that cannot be ruled out.

    A case of exclusive classes that is like none of them has an empty set by the letter; `keep_top` puts its likeliest
    class there, which can only raise coverage. A multi-label set may be empty: no label is an answer there.
    """
    scores = _of_unit(scores, conformal.multilabel)
    if scores.shape[1] != len(conformal.thresholds):
        raise ValueError(f"scores of {scores.shape[1]} classes for sets of {len(conformal.thresholds)}")
    held: Bools = _strangeness(scores, conformal.method) <= np.array(conformal.thresholds)
    if keep_top and not conformal.multilabel:
        held[np.arange(len(scores)), scores.argmax(1)] = True
    return held


def coverage(sets: ArrayLike, targets: ArrayLike) -> float:
    """The share of true classes that are in their case's set: of cases, where classes are exclusive; NaN of none."""
    truth = np.asarray(targets).astype(bool)
    return float(np.asarray(sets)[truth].mean()) if truth.any() else float("nan")


def class_coverage(sets: ArrayLike, targets: ArrayLike) -> Floats:
    """(K,) of the cases of each class, the share whose set holds it; NaN where there is none."""
    truth = np.asarray(targets).astype(bool)
    count = truth.sum(0)
    share: Floats = (truth & np.asarray(sets)).sum(0) / np.where(count, count, np.nan)
    return share


def mean_set_size(sets: ArrayLike) -> float:
    """How many classes a set holds on average; NaN of no cases."""
    sets = np.asarray(sets)
    return float(sets.sum(1).mean()) if len(sets) else float("nan")


def fit_conformal_interval(residuals: ArrayLike, alpha: float) -> ConformalInterval:
    """Half widths that a new case's error exceeds with a chance of at most `alpha`, for each target by itself.

    From errors (N, T) on cases that the network did not see (Lei 2018, 10.1080/01621459.2017.1307116); infinite with
    fewer than 1 / alpha - 1 cases.
    """
    _check_alpha(alpha)
    residuals = np.asarray(residuals, np.float64)
    if residuals.ndim != 2 or not np.isfinite(residuals).all():
        raise ValueError(f"residuals must be finite numbers (N, T), got {residuals.shape}")
    return ConformalInterval(alpha, tuple(_quantile(column, alpha) for column in np.abs(residuals).T))


def _quantile(strangeness: Floats, alpha: float) -> float:
    """The smallest value that all but `alpha` of these and one more would not exceed; infinite if there is none."""
    n = len(strangeness)
    # The product is a hair above a whole number at times, which would cost a whole rank.
    rank = math.ceil((n + 1) * (1 - alpha) - 1e-9)
    return float(np.partition(strangeness, rank - 1)[rank - 1]) if rank <= n else math.inf


def _strangeness(scores: Floats, method: Method) -> Floats:
    """(N, K) how little each class suits a case."""
    if method == "lac":
        return 1 - scores
    if method != "aps":
        raise ValueError(f"method must be 'lac' or 'aps', got {method!r}")
    order = np.argsort(-scores, 1, kind="stable")
    ordered = np.take_along_axis(scores, order, 1)
    after = np.cumsum(ordered, 1)
    before = after - ordered
    # Equal classes share the sums before the first and after the last of them, so that their order does not count.
    changes = ordered[:, 1:] != ordered[:, :-1]
    before[:, 1:][~changes] = 0
    after[:, :-1][~changes] = np.inf
    before = np.maximum.accumulate(before, 1)
    after = np.minimum.accumulate(after[:, ::-1], 1)[:, ::-1]
    strangeness = np.empty_like(scores)
    np.put_along_axis(strangeness, order, (before + after) / 2, 1)
    return strangeness


def _probabilities(scores: ArrayLike, targets: ArrayLike, multilabel: bool) -> tuple[Floats, Bools]:
    scores, truth = checked(scores, targets, multilabel)
    return _of_unit(scores, multilabel), truth


def _of_unit(scores: ArrayLike, multilabel: bool) -> Floats:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError(f"scores must be probabilities (N, K), not logits; got {scores.shape}")
    if not multilabel and not np.allclose(scores.sum(1), 1, rtol=0, atol=1e-3):
        raise ValueError("probabilities of exclusive classes must sum to 1; are they multi-label?")
    return scores


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha:g}")


def _log(scores: Floats) -> Floats:
    logarithm: Floats = np.log(np.maximum(scores, TINY))
    return logarithm


def _logit(scores: Floats) -> Floats:
    return _log(scores) - _log(1 - scores)


def _plain(values: tuple[float, ...]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def _unplain(values: list[float | None]) -> tuple[float, ...]:
    return tuple(math.inf if value is None else float(value) for value in values)
