"""What predicted numbers are worth: pure functions on arrays, in numpy alone.

Letters: N cases, T targets (the numbers that each case has), all (N, T). An error is predicted - true. A value that the
cases do not define is NaN: R2 and correlation where the truth is constant (scikit-learn says 0 or 1 there), limits of
agreement of fewer than two cases, anything of no cases. Macro means leave undefined targets out. Parity with
scikit-learn and scipy is tested; neither is imported here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from medray.metrics.curves import Bools, Floats

SUMMARY = (
    "mae",
    "mse",
    "rmse",
    "median_absolute_error",
    "r2",
    "pearson",
    "bias",
    "limit_low",
    "limit_high",
)
"""The keys of `summarise`."""


def summarise(predicted: ArrayLike, true: ArrayLike) -> dict[str, float]:
    """The figures of one set of cases, by the names in SUMMARY, each the mean over targets.

    mae, mse, rmse and median_absolute_error are of the error; r2 is the share of the truth's variance that is
    explained (below 0 where its mean would predict better), pearson the linear correlation. bias is the mean error, and
    limit_low and limit_high, bias -+ 1.96 standard deviations, hold about 95 % of errors that are normal (Bland and
    Altman 1986, 10.1016/S0140-6736(86)90837-8). A mean over targets in different units means little but for r2 and
    pearson: see `per_target`.
    """
    figures = _figures(*_checked(predicted, true))
    return {name: _mean(figures[name]) for name in SUMMARY}


def per_target(predicted: ArrayLike, true: ArrayLike, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Target -> the figures of `summarise` of that target alone."""
    predicted, true = _checked(predicted, true)
    if len(names) != true.shape[1]:
        raise ValueError(f"{len(names)} targets were named for {true.shape[1]} numbers a case")
    figures = _figures(predicted, true)
    return {target: {name: float(figures[name][t]) for name in SUMMARY} for t, target in enumerate(names)}


def interval_coverage(low: ArrayLike, high: ArrayLike, true: ArrayLike) -> dict[str, float]:
    """Of intervals [low, high] of any one shape, over all: coverage, the share that holds the truth; mean width."""
    low, high, true = (np.asarray(array, np.float64) for array in (low, high, true))
    if not low.shape == high.shape == true.shape:
        raise ValueError(f"low, high and true must have one shape, got {low.shape}, {high.shape} and {true.shape}")
    crossed = int((low > high).sum())
    if crossed:
        raise ValueError(f"{crossed} of {low.size} intervals have low above high; sort crossing quantiles first")
    return {"coverage": _mean((low <= true) & (true <= high)), "width": _mean(high - low)}


def pinball_loss(predicted: ArrayLike, true: ArrayLike, quantile: float) -> float:
    """The mean loss, over arrays of any one shape, that the `quantile` of the truth minimises (Koenker and Bassett
    1978, 10.2307/1913643): an error costs `quantile` per unit below the truth and 1 - `quantile` above it.
    """
    predicted, true = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    if predicted.shape != true.shape or not 0 <= quantile <= 1:
        raise ValueError(f"one shape and a quantile in [0, 1], got {predicted.shape}, {true.shape} and {quantile:g}")
    below = true - predicted
    return _mean(np.maximum(quantile * below, (quantile - 1) * below))


def _checked(predicted: ArrayLike, true: ArrayLike) -> tuple[Floats, Floats]:
    predicted, true = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    if predicted.ndim != 2 or predicted.shape != true.shape or not true.shape[1]:
        raise ValueError(f"predicted and true must both be (N, T), got {predicted.shape} and {true.shape}")
    for name, array in (("predicted", predicted), ("true", true)):
        broken = int((~np.isfinite(array)).any(1).sum())
        if broken:
            raise ValueError(f"{broken} of {len(array)} cases have {name} values that are not finite numbers")
    return predicted, true


def _figures(predicted: Floats, true: Floats) -> dict[str, Floats]:
    """Name -> (T,) figures."""
    n = len(true)
    if not n:
        return dict.fromkeys(SUMMARY, np.full(true.shape[1], np.nan))
    error = predicted - true
    mse, bias = (error**2).mean(0), error.mean(0)
    spread = 1.96 * (np.std(error, 0, ddof=1) if n > 1 else np.full_like(bias, np.nan))
    return {
        "mae": np.abs(error).mean(0),
        "mse": mse,
        "rmse": np.sqrt(mse),
        "median_absolute_error": np.median(np.abs(error), 0),
        "r2": 1 - _ratio(mse, true.var(0), _varies(true)),
        "pearson": _pearson(predicted, true),
        "bias": bias,
        "limit_low": bias - spread,
        "limit_high": bias + spread,
    }


def _pearson(predicted: Floats, true: Floats) -> Floats:
    ours, truth = predicted - predicted.mean(0), true - true.mean(0)
    # The length of each is taken apart, so that the product of their squares cannot underflow.
    lengths = np.linalg.norm(ours, axis=0) * np.linalg.norm(truth, axis=0)
    return np.clip(_ratio((ours * truth).sum(0), lengths, _varies(predicted) & _varies(true)), -1, 1)


def _varies(values: Floats) -> Bools:
    """(T,); exact, where the variance of equal values can be a rounding error above 0."""
    varies: Bools = values.min(0) < values.max(0)
    return varies


def _ratio(part: Floats, whole: Floats, defined: Bools) -> Floats:
    ratio: Floats = np.divide(part, whole, out=np.full(len(part), np.nan), where=defined & (whole > 0))
    return ratio


def _mean(values: Floats | Bools) -> float:
    """The mean of the values that are defined."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
