"""Whether two models differ on the same cases: paired tests, so that hard cases count for both. N cases.

Every difference is of a minus b. A test that the cases do not carry (no positive case, one subject) is NaN.
`delong` and `mcnemar` take cases as independent, one of each patient; where patients have several, use the bootstrap,
which draws whole patients. One test answers one question: of many figures some are below 0.05 by chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from medray.metrics.curves import Counts, Floats
from medray.metrics.intervals import Groups, percentile_interval, resampled_means, resampled_rows

Z = NormalDist().inv_cdf(0.975)
EXACT = 25
"""Up to how many discordant pairs McNemar's test is exact."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a paired test says of model a against model b."""

    test: str
    """Its name, in words for a report."""
    difference: float
    """a minus b."""
    low: float
    high: float
    """95 % interval of the difference."""
    p: float
    """Two-sided, of no difference."""
    n: int
    """How many cases were compared."""
    statistic: float = float("nan")
    """z of DeLong, chi-square of McNemar; NaN where the test has none."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; what is not defined is None."""
        return {name: None if value != value else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Comparison:
        """The inverse of `as_dict`."""
        fields: dict[str, Any] = {name: float("nan") if value is None else value for name, value in plain.items()}
        return cls(**fields)


def delong(scores_a: ArrayLike, scores_b: ArrayLike, positive: ArrayLike) -> Comparison:
    """The difference in AUROC, from scores (N,) each and 0/1 (N,): DeLong 1988 (10.2307/2531595), normal interval.

    In O(N log N) by midranks (Sun and Xu 2014, 10.1109/LSP.2014.2337313). The variance needs two cases of each kind;
    where it is 0 and the difference is not (all cases are parted), only the difference is defined.
    """
    a, b = np.asarray(scores_a, np.float64), np.asarray(scores_b, np.float64)
    truth = np.asarray(positive).astype(bool)
    if a.ndim != 1 or not a.shape == b.shape == truth.shape:
        raise ValueError(f"scores and positive must all be (N,), got {a.shape}, {b.shape} and {truth.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("scores must be finite numbers")
    name, n = "DeLong", len(truth)
    positives = int(truth.sum())
    negatives = n - positives
    if not positives or not negatives:
        return _undefined(name, float("nan"), n)
    # Halves of whole numbers, so that equal models differ by 0 exactly.
    wins, losses = (x - y for x, y in zip(_placements(a, truth), _placements(b, truth), strict=True))
    difference = float(wins.mean() / negatives)
    if min(positives, negatives) < 2:
        return _undefined(name, difference, n)
    variance = wins.var(ddof=1) / negatives**2 / positives + losses.var(ddof=1) / positives**2 / negatives
    if not variance:
        return Comparison(name, 0.0, 0.0, 0.0, 1.0, n, 0.0) if not difference else _undefined(name, difference, n)
    error = math.sqrt(variance)
    z = difference / error
    low, high = max(difference - Z * error, -1.0), min(difference + Z * error, 1.0)
    return Comparison(name, difference, low, high, math.erfc(abs(z) / math.sqrt(2)), n, z)


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> Comparison:
    """The difference in the share of correct cases, from 0/1 (N,) each: McNemar 1947 (10.1007/BF02295996).

    Only cases on which the models disagree count. Up to EXACT of them p is the exact binomial one; above, that of
    chi-square with continuity correction (Edwards 1948, 10.1007/BF02289261). The interval is that of Agresti and Min
    2005 (10.1002/sim.1781), who add half a case to each of the four cells; it need not agree with p at the border.
    """
    a, b = np.asarray(correct_a).astype(bool), np.asarray(correct_b).astype(bool)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"correct_a and correct_b must both be (N,), got {a.shape} and {b.shape}")
    n, only_a, only_b = len(a), int((a & ~b).sum()), int((b & ~a).sum())
    discordant, gap = only_a + only_b, only_a - only_b
    if not n:
        return _undefined("McNemar, exact", float("nan"), 0)
    centre = gap / (n + 2)
    half = Z * math.sqrt(discordant + 1 - gap**2 / (n + 2)) / (n + 2)
    low, high = max(centre - half, -1.0), min(centre + half, 1.0)
    if discordant > EXACT:
        chi2 = max(abs(gap) - 1, 0) ** 2 / discordant
        p = math.erfc(math.sqrt(chi2 / 2))
        return Comparison("McNemar, chi-square with continuity correction", gap / n, low, high, p, n, chi2)
    tail = sum(math.comb(discordant, k) for k in range(min(only_a, only_b) + 1))
    return Comparison("McNemar, exact", gap / n, low, high, min(1.0, 2 * tail / 2**discordant), n)


def paired_bootstrap(
    values_a: ArrayLike, values_b: ArrayLike, groups: Groups | None = None, samples: int = 2000, seed: int = 0
) -> Comparison:
    """The mean difference of per-case values (N,), such as Dice, over cases where both are defined (not NaN).

    Subjects, `groups` (N,), are drawn with replacement, each with all of its cases (see intervals.bootstrap); without
    groups every case is a subject. The interval is the percentile one; p is twice the share of resamples on the rarer
    side of 0, the cases themselves counted as one on that side (Davison and Hinkley 1997, 10.1017/CBO9780511802843), so
    never below 2 / (samples + 1).
    """
    a, b = np.asarray(values_a, np.float64), np.asarray(values_b, np.float64)
    if a.ndim != 1 or a.shape != b.shape or (groups is not None and len(groups) != len(a)):
        raise ValueError(f"values must both be (N,), with as many groups, got {a.shape} and {b.shape}")
    difference = a - b
    defined = np.flatnonzero(~np.isnan(difference))
    difference = difference[defined]
    whose = np.asarray(range(len(a)) if groups is None else groups)[defined].tolist()
    observed = float(difference.mean()) if len(difference) else float("nan")
    drawn = resampled_means(difference[:, None], whose, samples, seed)[:, 0]
    return _of_draws(observed, drawn, whose)


def paired_bootstrap_many(
    statistic_a: Callable[[Counts], Mapping[str, float]],
    statistic_b: Callable[[Counts], Mapping[str, float]],
    groups: Groups,
    samples: int = 2000,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Name -> the difference of any figures, such as AUROC, that both models have, all on the same resamples.

    Each statistic takes rows (n,), in which a case may come several times, and gives the figures of its model on those
    cases (see intervals.bootstrap_many). Resamples in which either is not defined (NaN) are left out.
    """

    def difference(rows: Counts) -> dict[str, float]:
        a, b = statistic_a(rows), statistic_b(rows)
        return {name: a[name] - b[name] for name in a if name in b}

    observed = difference(np.arange(len(groups)))
    drawn = [difference(rows) for rows in resampled_rows(groups, samples, seed)]
    return {name: _of_draws(observed[name], np.array([row[name] for row in drawn]), groups) for name in observed}


def _placements(scores: Floats, truth: np.ndarray) -> tuple[Floats, Floats]:
    """How many negatives each positive case is above, and how many positives each negative is below, ties as halves."""
    midranks = _midranks(scores)
    own, rivals = scores[truth], scores[~truth]
    return midranks[truth] - _midranks(own), len(own) - (midranks[~truth] - _midranks(rivals))


def _midranks(values: Floats) -> Floats:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    midranks: Floats = (np.cumsum(count) - (count - 1) / 2)[inverse]
    return midranks


def _of_draws(observed: float, drawn: Floats, groups: Groups) -> Comparison:
    name, n = "paired bootstrap", len(groups)
    defined = drawn[~np.isnan(drawn)]
    if len(set(groups)) < 2 or not len(defined) or math.isnan(observed):
        return _undefined(name, observed, n)
    low, high = percentile_interval(defined)
    rarer = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return Comparison(name, observed, low, high, min(1.0, 2 * (1 + rarer) / (1 + len(defined))), n)


def _undefined(test: str, difference: float, n: int) -> Comparison:
    nan = float("nan")
    return Comparison(test, difference, nan, nan, nan, n)
