"""Thresholds that were chosen on other cases, applied: what each gives on the evaluated ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medray.evaluation.cases import Cases
from medray.evaluation.classification import shown_classes
from medray.evaluation.result import Figures, Point
from medray.evaluation.statistics import SAMPLES, intervals, widened
from medray.types import Array

RATES = ("sensitivity", "specificity", "ppv", "npv")
OWN = "the model's answer"
KNOWN = frozenset({"of", "rule", "threshold"})


def points(cases: Cases, card: Mapping[str, Any], samples: int = SAMPLES) -> tuple[Point, ...]:
    """The bundle's own decision for each class against the rest, then the card's operating points.

    Those are in card["trust"]["operating_points"]: of (the class), rule, threshold, and what it gave on the validation
    cases on which it was chosen (see inference/trust.py). One of a class that the bundle does not have is left out.
    """
    if cases.task != "classification":
        return ()
    entries = [
        entry
        for entry in (card.get("trust") or {}).get("operating_points") or ()
        if entry.keys() >= KNOWN and entry["of"] in cases.classes
    ]
    own = [_own(cases, k, card, bool(entries), samples) for k in shown_classes(cases)]
    return (*own, *(_chosen(cases, entry, samples) for entry in entries))


def _own(cases: Cases, k: int, card: Mapping[str, Any], chosen: bool, samples: int) -> Point:
    """What the bundle answers, with its threshold where it is one of this class alone."""
    decision, threshold = card.get("decision"), float("nan")
    if cases.multilabel and isinstance(decision, Mapping) and not chosen:
        threshold = float(decision.get(cases.classes[k], threshold))
    elif len(cases.classes) == 2 and not cases.multilabel and not chosen:
        threshold = 0.5
    return _point(cases, k, cases.picked[:, k], OWN, threshold, {}, samples)


def _chosen(cases: Cases, entry: Mapping[str, Any], samples: int) -> Point:
    k, threshold = cases.classes.index(entry["of"]), float(entry["threshold"])
    chosen = {name: float(entry[name]) for name in ("sensitivity", "specificity") if entry.get(name) is not None}
    return _point(cases, k, cases.scores[:, k] >= threshold, str(entry["rule"]), threshold, chosen, samples)


def _point(
    cases: Cases, k: int, called: Array, rule: str, threshold: float, chosen: Mapping[str, float], samples: int
) -> Point:
    positive = cases.targets[:, k] > 0
    counts = (
        int((positive & called).sum()),
        int((~positive & called).sum()),
        int((positive & ~called).sum()),
        int((~positive & ~called).sum()),
    )
    return Point(cases.classes[k], rule, threshold, chosen, counts, rates(positive, called, cases.subjects, samples))


def rates(positive: Array, called: Array, subjects: Sequence[str], samples: int = SAMPLES) -> Figures:
    """Sensitivity, specificity, PPV and NPV of `called` (N,) bool against `positive` (N,) bool, with 95 % intervals.

    NaN where no case is behind a rate.
    """
    hit = positive == called
    of = {"sensitivity": positive, "specificity": ~positive, "ppv": called, "npv": ~called}

    def statistic(rows: Array) -> dict[str, float]:
        right = hit[rows]
        return {name: _share(right, members[rows]) for name, members in of.items()}

    found = intervals(statistic, subjects, samples)
    return {name: widened(found[name], members, subjects) for name, members in of.items()}


def _share(hit: Array, members: Array) -> float:
    count = int(members.sum())
    return float((hit & members).sum() / count) if count else float("nan")
