"""How sure a figure is, given who happened to be in the test set."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


def bootstrap(
    metric: Callable[[Array, Array], float],
    scores: Array,
    targets: Array,
    groups: Sequence[str] | None = None,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """The percentile interval (low, high) of `metric(scores, targets)` at confidence `level`.

    Resamples subjects, `groups` (N,), with replacement and takes all cases of each (Field and Welsh 2007,
    10.1111/j.1467-9868.2007.00593.x), since cases of one patient are not independent; without groups every case is a
    subject. Resamples in which the metric is not defined (NaN) are left out; (NaN, NaN) if none is left. The
    percentile interval is of Efron 1979 (10.1214/aos/1176344552). The same arguments give the same interval.
    """
    n = len(scores)
    if len(targets) != n or (groups is not None and len(groups) != n):
        raise ValueError(f"{n} scores need as many targets and groups")
    if not 0 < level < 1 or samples < 1:
        raise ValueError(f"level must be between 0 and 1 and samples at least 1, got {level:g} and {samples}")
    if n == 0:
        return float("nan"), float("nan")
    _, member = np.unique(np.arange(n) if groups is None else np.asarray(groups), return_inverse=True)
    order = np.argsort(member, kind="stable")
    sizes = np.bincount(member)
    starts = np.cumsum(sizes) - sizes
    generator = np.random.default_rng(seed)
    values = np.empty(samples)
    for sample in range(samples):
        drawn = generator.integers(len(sizes), size=len(sizes))
        length = sizes[drawn]
        within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        rows = order[np.repeat(starts[drawn], length) + within]
        values[sample] = metric(scores[rows], targets[rows])
    defined = values[~np.isnan(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
