"""Drift: whether the answers of a service, and the images that it gets, are spread as those of the training.

A bundle keeps in card["drift"] how a number was spread, as shares of at most MOST_BINS bins of about equally many
cases. The calibrated scores (of a regression the numbers) and the distance to training are those of the validation
cases, the facts of inference/contract.py those of the training cases that the contract was made of. Volumes of
structures are not compared: the training counts voxels on the network's grid, not on the patient's.

What a service finds is held against it by the population stability index sum((q - p) ln(q / p)). Of two samples of n
and m from one distribution it is (1 / n + 1 / m) times a chi-square of bins - 1 degrees of freedom (Yurdakul 2020,
10.21314/JRMV.2020.227), which says from when on it is more than chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from medray.types import Array, Prediction

if TYPE_CHECKING:  # torch is imported there, which the process that watches for drift does without
    from medray.inference.contract import Facts

FEWEST_SUBJECTS = 20
"""Of fewer nothing is kept."""
MOST_BINS = 10
FEWEST_PER_BIN = 5
"""Cases of every bin; of subjects there are at least so many per bin on average."""
MOST_SCORES = 32
"""Of more classes the first ones are compared."""
MOST_CHECKS = 64
SMOOTHING = 0.5
"""Is added to the count of every bin, of which none is empty then (Krichevsky 1981, 10.1109/TIT.1981.1056331)."""
CHANCE_DEVIATIONS = 3.09
"""Of a normal number: one check in a thousand is beyond by chance, so that of twenty checks at once few are."""
DISTANCE, SCORES = "distance", "scores/"


@dataclass(frozen=True, slots=True)
class Check:
    """How one number is spread."""

    edges: tuple[float, ...]
    """Between the bins: the first and the last one are open. No edge is the number of a case."""
    shares: tuple[float, ...]
    subjects: int
    """Who the cases are of: those of one subject are alike."""

    def threshold(self, found: int, least: float) -> float:
        """The index from which on `found` answers have drifted: `least`, or more where that can be chance."""
        return max(least, chance(len(self.shares), self.subjects, found))


@dataclass(frozen=True, slots=True)
class DriftReference:
    """What a bundle's answers are held against."""

    checks: Mapping[str, Check]
    """scores/CLASS, distance, p01, ..., spacing_0, ..., extent_0, ... and imaging/quality.py's QUALITIES."""

    @staticmethod
    def of(card: Mapping[str, Any]) -> DriftReference | None:
        """The reference in a bundle's card; None where it has none.

        Raises:
            BundleError: it cannot be used.
        """
        plain = card.get("drift")
        if plain is None:
            return None
        try:
            checks = {str(name): _check_of(entry) for name, entry in plain["checks"].items()}
            if not 0 < len(checks) <= MOST_CHECKS:
                raise ValueError(f"{len(checks)} checks, 1 to {MOST_CHECKS} are taken")
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            from medray.bundle import BundleError

            raise BundleError(f"the drift reference in the card cannot be used: {error!r}") from None
        return DriftReference(checks)

    def as_dict(self) -> dict[str, Any]:
        """What the card keeps, as plain JSON."""
        return {
            "checks": {
                name: {"edges": list(check.edges), "shares": list(check.shares), "subjects": check.subjects}
                for name, check in self.checks.items()
            }
        }


def _check_of(plain: Mapping[str, Any]) -> Check:
    edges, shares = (tuple(float(value) for value in plain[name]) for name in ("edges", "shares"))
    subjects = plain["subjects"]
    if type(subjects) is not int or subjects < FEWEST_SUBJECTS:
        raise ValueError(f"subjects must be an integer of at least {FEWEST_SUBJECTS}, is {subjects!r}")
    if not 0 < len(edges) < MOST_BINS or len(shares) != len(edges) + 1:
        raise ValueError(f"{len(edges)} edges and {len(shares)} shares")
    if not all(map(math.isfinite, edges)) or any(low >= high for low, high in pairwise(edges)):
        raise ValueError("edges must be finite and increase")
    if not all(0 < share < 1 for share in shares) or abs(sum(shares) - 1) > 0.01:
        raise ValueError("shares must be above 0 and sum to 1")
    return Check(edges, shares, subjects)


def build(groups: Iterable[tuple[Sequence[Mapping[str, float]], int]]) -> DriftReference | None:
    """The reference of cases.

    Args:
        groups: (numbers of each case by the check's name, how many subjects the cases are of).

    Returns:
        None where nothing can be compared: too few cases, or all alike.
    """
    checks: dict[str, Check] = {}
    for rows, subjects in groups:
        for name in dict.fromkeys(name for row in rows for name in row):
            values = np.array([row[name] for row in rows if name in row], np.float64)
            if len(checks) < MOST_CHECKS and (made := _spread(name, values, subjects)) is not None:
                checks[name] = made
    return DriftReference(checks) if checks else None


def _spread(name: str, values: Array, subjects: int) -> Check | None:
    values = values[np.isfinite(values)]
    subjects = min(subjects, len(values))
    if subjects < FEWEST_SUBJECTS:
        return None
    if name.startswith(SCORES):
        values = values.round(4)  # 1e-9 and 1e-7 are the same probability
    ordered = np.sort([float(f"{value:.4g}") for value in values])
    kept = [0]
    for cut in _cuts(ordered, min(MOST_BINS, subjects // FEWEST_PER_BIN)):
        if cut - kept[-1] >= FEWEST_PER_BIN and len(ordered) - cut >= FEWEST_PER_BIN:
            kept.append(cut)
    if len(kept) == 1:
        return None
    # Halfway between two values of four digits, each of which other cases may have with an error of rounding.
    edges = tuple(float(f"{(ordered[cut - 1] + ordered[cut]) / 2:.5g}") for cut in kept[1:])
    counts = np.diff([*kept, len(ordered)])
    return Check(edges, tuple(round(share, 4) for share in (counts / len(ordered)).tolist()), subjects)


def _cuts(ordered: Array, bins: int) -> Iterator[int]:
    """Where to cut ordered values into bins of about equally many, never between equal ones."""
    for part in range(1, bins):
        near = round(part * len(ordered) / bins)
        value = ordered[near - 1]
        ends = [int(np.searchsorted(ordered, value, side)) for side in ("right", "left")]
        yield min(ends, key=lambda end: abs(end - near))


def chance(bins: int, n: float, m: float) -> float:
    """The index that samples of n and m cases of one distribution reach once in a thousand times.

    The quantile of the chi-square is Wilson's and Hilferty's (1931, 10.1073/pnas.17.12.684).
    """
    free = bins - 1
    width = 2 / (9 * free)
    return float((1 / n + 1 / m) * free * (1 - width + CHANCE_DEVIATIONS * math.sqrt(width)) ** 3)


def psi(expected: Sequence[float], found_counts: Sequence[int], n_reference: float) -> float:
    """The population stability index.

    Args:
        expected: share of the reference in each bin.
        found_counts: what was found in each.
        n_reference: cases, or subjects, that `expected` is of.
    """
    bins = len(expected)
    known = (np.asarray(expected, np.float64) * n_reference + SMOOTHING) / (n_reference + SMOOTHING * bins)
    counts = np.asarray(found_counts, np.float64) + SMOOTHING
    found = counts / counts.sum()
    return float(((found - known) * np.log(found / known)).sum())


def numbers_of(facts: Facts, unit: str) -> dict[str, float]:
    """The facts of an image by the names of their checks; spacing and extent only in `unit`, the contract's."""
    found = dict(zip(("p01", "p50", "p99"), facts.levels, strict=True))
    found |= {name: value for name, value in facts.quality.items() if not name.startswith("extent_mm")}
    if facts.unit == unit:
        for axis, (edge, length) in enumerate(zip(facts.spacing, facts.extent, strict=True)):
            found |= {f"spacing_{axis}": edge, f"extent_{axis}": length}
    return {name: float(value) for name, value in found.items()}


def scores_of(answer: Prediction) -> dict[str, float]:
    """The calibrated probabilities of an answer, of a regression its numbers; none of a segmentation."""
    if not len(answer.scores):
        return {}
    return dict(zip(answer.classes, map(float, answer.scores.tolist()), strict=True))


def signals_of(answer: Prediction, distance: float | None, facts: Facts | None, unit: str) -> dict[str, Any]:
    """What a service tells its monitor of an answer, as plain JSON; nothing of it is to be kept.

    Args:
        answer: the model's.
        distance: predictor.DISTANCE of its quality.
        facts: of the image, where the bundle has an input contract.
        unit: the contract's.
    """
    return {
        "scores": scores_of(answer),
        "labels": list(answer.labels),
        "distance": distance,
        "facts": {} if facts is None else numbers_of(facts, unit),
        "warnings": list(answer.warnings),
    }


def scores_named(answer: Prediction) -> dict[str, float]:
    """The scores of an answer by the names of their checks."""
    return {f"{SCORES}{name}": value for name, value in list(scores_of(answer).items())[:MOST_SCORES]}
