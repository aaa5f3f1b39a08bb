"""Thresholds of the card, applied as they are; the model's own decision beside them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tables import CARD, classified

from medray.evaluation.points import OWN, points, rates
from medray.metrics.intervals import wilson
from medray.metrics.operating import evaluate_at


def card(*entries: dict[str, Any]) -> dict[str, Any]:
    return {**CARD, "trust": {"operating_points": list(entries)}}


def test_a_point_gives_what_its_threshold_gives_on_these_cases() -> None:
    cases = classified(80)
    entry = {"of": "ill", "rule": "sensitivity >= 0.9", "threshold": 0.31, "sensitivity": 0.93, "specificity": None}
    own, point = points(cases, card(entry), samples=30)
    expected = evaluate_at(cases.scores[:, 1], cases.targets[:, 1], 0.31)
    assert (own.rule, own.threshold, point.rule) == (OWN, pytest.approx(float("nan"), nan_ok=True), entry["rule"])
    assert point.chosen == {"sensitivity": 0.93}
    for name in ("sensitivity", "specificity", "ppv", "npv"):
        figure = point.rates[name]
        assert figure.value == getattr(expected, name)
        assert figure.low < figure.value < figure.high
    assert sum(point.counts) == 80


def test_a_point_of_either_class() -> None:
    cases = classified(50)
    (_, point) = points(cases, card({"of": "well", "rule": "x", "threshold": 0.5}), samples=3)
    hits, _, misses, _ = point.counts
    assert hits + misses == int(cases.targets[:, 0].sum())


@pytest.mark.parametrize("plain", [None, {}, {"operating_points": None}, {"operating_points": [{"of": "fish"}]}])
def test_without_points_the_decision_is_told(plain: Any) -> None:
    (own,) = points(classified(50), {**CARD, "trust": plain}, samples=3)
    assert (own.target, own.threshold) == ("ill", 0.5)


def test_each_class_of_several_and_of_labels() -> None:
    assert [p.target for p in points(classified(40, ("a", "b", "c")), CARD, 2)] == ["a", "b", "c"]
    labels = points(classified(40, ("a", "b"), multilabel=True), {"decision": {"a": 0.2, "b": 0.6}}, 2)
    assert [(p.target, p.threshold) for p in labels] == [("a", 0.2), ("b", 0.6)]


def test_figures_of_decisions_are_by_what_the_model_answers() -> None:
    """An operating point decides, not the likeliest class."""
    from medray.evaluation.statistics import estimate

    cases = classified(60)
    called = cases.scores[:, 1] >= 0.2
    eager = replace(cases, picked=np.stack([~called, called], 1))
    found = estimate(eager, samples=3)
    (own,) = points(eager, CARD, samples=3)
    assert found["recall"].value == own.rates["sensitivity"].value > estimate(cases, samples=3)["recall"].value
    assert found["precision"].value == own.rates["ppv"].value
    assert found["auroc"].value == estimate(cases, samples=3)["auroc"].value


def test_all_found_is_not_certainty() -> None:
    positive = np.arange(30) < 12
    found = rates(positive, positive, [str(row) for row in range(30)], samples=20)
    assert (found["sensitivity"].low, found["sensitivity"].high) == wilson(12, 12)
    assert found["specificity"].low == wilson(18, 18)[0]
    nothing = rates(positive, np.zeros(30, bool), ["a"] * 30, samples=3)
    assert np.isnan(nothing["ppv"].value)
    assert nothing["sensitivity"].value == 0
