"""How speed is claimed here: the median of interleaved A/B pairs with its 95 % interval."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version

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


def compare(ours: Callable[[], float], theirs: Callable[[], float], pairs: int = PAIRS) -> Ratio:
    """Measure both in turn, the order of each pair reversed from the last; each call returns a speed."""
    ours(), theirs()
    found = []
    for index in range(pairs):
        first, second = (ours, theirs) if index % 2 else (theirs, ours)
        one, other = first(), second()
        found.append((one, other) if index % 2 else (other, one))
    speeds = np.array(found)
    ratios = speeds[:, 0] / speeds[:, 1]
    drawn = np.random.default_rng(0).choice(ratios, (RESAMPLES, pairs))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    ours_median, theirs_median = np.median(speeds, axis=0)
    return Ratio(float(ours_median), float(theirs_median), float(np.median(ratios)), float(low), float(high), pairs)


def show(name: str, unit: str, found: Ratio) -> None:
    """One line for a person, one JSON line for a program."""
    machine = f"{os.cpu_count()} CPUs, torch {version('torch')}, Python {platform.python_version()}"
    sys.stderr.write(
        f"{name}: {found.ours:.4g} against {found.theirs:.4g} {unit}, ratio {found.ratio:.3f} "
        f"[{found.low:.3f}, {found.high:.3f}] over {found.pairs} pairs ({machine})\n"
    )
    sys.stdout.write(json.dumps({"benchmark": name, "unit": unit, **asdict(found)}) + "\n")
