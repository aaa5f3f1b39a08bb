"""How speed is claimed here: the median of interleaved A/B pairs with its 95 % interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

PAIRS = 12
RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Ratio:
    """Speed of ours over theirs."""

    ours: float
    """Median of our figure."""
    theirs: float
    ratio: float
    """Median over pairs of ours / theirs."""
    low: float
    high: float
    """95 % interval of that median, by bootstrap over pairs."""
    pairs: int


def compare(ours: Callable[[], float], theirs: Callable[[], float], pairs: int = PAIRS, warm: bool = True) -> Ratio:
    """Measure both in turn, the order of each pair reversed from the last; each call returns a speed.

    Args:
        ours: measures medray.
        theirs: measures the peer.
        pairs: how often.
        warm: measure each once before that, which does not count.
    """
    if warm:
        ours(), theirs()
    found = []
    for index in range(pairs):
        first, second = (ours, theirs) if index % 2 else (theirs, ours)
        one, other = first(), second()
        found.append((one, other) if index % 2 else (other, one))
    return ratio_of(found)


def ratio_of(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """The ratio of speeds that were measured in pairs (ours, theirs)."""
    speeds = np.array(pairs)
    ratios = speeds[:, 0] / speeds[:, 1]
    drawn = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    ours, theirs = np.median(speeds, axis=0)
    return Ratio(float(ours), float(theirs), float(np.median(ratios)), float(low), float(high), len(ratios))
