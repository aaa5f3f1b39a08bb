"""How sure a figure is, given who happened to be in the test set.

Letters: N cases, M columns of per-case values, R resamples. Every resample here comes from `resampled_rows`, or from
the same draws counted: the same groups, samples and seed are the same resamples, whatever is measured on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medray.metrics.curves import Counts, Floats

Array = NDArray[np.generic]
Interval = tuple[float, float]
Groups = Sequence[str] | Sequence[int]
"""The subject of each case (N,); `range(N)` where every case is a subject of its own."""

CHUNK = 1 << 20
"""How many draws `resampled_means` holds at once, 8 bytes each, several times over."""


def bootstrap(
    metric: Callable[[Array, Array], float],
    scores: Array,
    targets: Array,
    groups: Sequence[str] | None = None,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The percentile interval (low, high) of `metric(scores, targets)` at confidence `level`.

    Resamples subjects, `groups` (N,), with replacement and takes all cases of each (Field and Welsh 2007,
    10.1111/j.1467-9868.2007.00593.x), since cases of one patient are not independent; without groups every case is a
    subject. Resamples in which the metric is not defined (NaN) are left out; (NaN, NaN) if none is left. The
    percentile interval is of Efron 1979 (10.1214/aos/1176344552). The same arguments give the same interval.
    """
    n = len(scores)
    if len(targets) != n or (groups is not None and len(groups) != n):
        raise ValueError(f"{n} scores need as many targets and groups")
    drawn = resampled_rows(range(n) if groups is None else groups, samples, seed)
    return percentile_interval([metric(scores[rows], targets[rows]) for rows in drawn], level)


def bootstrap_many(
    statistic: Callable[[Counts], Mapping[str, float]],
    groups: Groups,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Name -> the interval of each figure that `statistic` gives of the cases in `rows`, all on the same resamples.

    `statistic` takes rows (n,), in which a case may come several times, and gives the same names each time. Else as
    `bootstrap`, whose interval each figure would have alone.
    """
    found = [statistic(rows) for rows in resampled_rows(groups, samples, seed)]
    names = found[0] if found else statistic(np.arange(0))
    return {name: percentile_interval([row[name] for row in found], level) for name in names}


def bootstrap_means(
    values: Mapping[str, ArrayLike], groups: Groups, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Interval]:
    """Name -> the interval of the mean of per-case values (N,), such as Dice; NaN cases are left out of their mean.

    Gives what `bootstrap_many` gives for those means, by one matrix product instead of a loop.
    """
    columns = [np.asarray(column, np.float64) for column in values.values()]
    if not columns:
        return {}
    means = resampled_means(np.stack(columns, 1), groups, samples, seed)
    return {name: percentile_interval(column, level) for name, column in zip(values, means.T, strict=True)}


def resampled_rows(groups: Groups, samples: int = 1000, seed: int = 0) -> Iterator[Counts]:
    """The rows of each of R = `samples` resamples: as many subjects as there are, drawn with replacement, each whole.

    Nothing where there is no case.
    """
    subjects = _subjects(groups, samples)
    generator = np.random.default_rng(seed)
    sizes, count = subjects.sizes, len(subjects.sizes)
    alone = count == len(groups)
    for _ in range(samples if count else 0):
        drawn = generator.integers(count, size=count)
        if alone:
            yield subjects.order[drawn]
            continue
        length = sizes[drawn]
        within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        yield subjects.order[np.repeat(subjects.starts[drawn], length) + within]


def resampled_means(values: ArrayLike, groups: Groups, samples: int = 1000, seed: int = 0) -> Floats:
    """(R, M) the means of values (N, M) over each of `resampled_rows`, NaN values left out; NaN where none is left.

    A subject's values enter by their sum, times how often the subject is drawn, so the time does not grow with the
    cases of a subject, and hardly with M.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or len(values) != len(groups):
        raise ValueError(f"values must be (N, M) with a group each, got {values.shape} and {len(groups)} groups")
    if np.isinf(values).any():
        raise ValueError("infinite values have no mean; make them NaN to leave them out, or give them a bound")
    subjects = _subjects(groups, samples)
    count, columns = len(subjects.sizes), values.shape[1]
    if not count:
        return np.full((samples, columns), np.nan)
    defined = ~np.isnan(values)
    both = np.concatenate([np.where(defined, values, 0.0), defined], 1)
    sums = np.add.reduceat(both[subjects.order], subjects.starts)
    generator = np.random.default_rng(seed)
    means = np.empty((samples, columns))
    step = max(1, CHUNK // count)
    for first in range(0, samples, step):
        size = min(step, samples - first)
        drawn = generator.integers(count, size=(size, count)) + np.arange(size)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        total = times.astype(np.float64) @ sums
        share = np.where(total[:, columns:] > 0, total[:, columns:], np.nan)
        means[first : first + size] = total[:, :columns] / share
    return means


def percentile_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """What lies between the tails of resampled values (R,), NaN ones left out; (NaN, NaN) if none is left."""
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level:g}")
    values = np.asarray(values, np.float64)
    defined = values[~np.isnan(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson(hits: int, n: int, level: float = 0.95) -> Interval:
    """The score interval of the share `hits` of `n` independent cases (Wilson 1927, 10.1080/01621459.1927.10502953).

    Never empty and never beyond 0 and 1, also where all or none are hits; (NaN, NaN) of no cases.
    """
    if not 0 <= hits <= n or not 0 < level < 1:
        raise ValueError(f"a share needs 0 <= hits <= n and a level between 0 and 1, got {hits}, {n}, {level:g}")
    if not n:
        return float("nan"), float("nan")
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = (hits + z * z / 2) / (n + z * z)
    half = z * math.sqrt(hits * (n - hits) / n + z * z / 4) / (n + z * z)
    return centre - half if hits else 0.0, centre + half if hits < n else 1.0


class _Subjects(NamedTuple):
    """Which rows are whose."""

    order: Counts
    """(N,) rows, those of one subject beside each other."""
    starts: Counts
    """Where each subject begins in `order`."""
    sizes: Counts
    """How many rows each has."""


def _subjects(groups: Groups, samples: int) -> _Subjects:
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    sizes = np.bincount(member)
    return _Subjects(np.argsort(member, kind="stable"), np.cumsum(sizes) - sizes, sizes)
