"""Evaluation of a regression: from numbers to figures of cases and of all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medray.evaluation.cases import Answered, Cases
from medray.evaluation.comparison import compare
from medray.evaluation.regression import tabulate
from medray.evaluation.result import Model
from medray.evaluation.statistics import estimate
from medray.metrics.regression import per_target, summarise
from medray.types import CaseRef, Prediction

NAMES = ("age", "bmi")


def measured(noise: float, width: float | None = None) -> Cases:
    """40 cases whose numbers were said with some noise, in an interval of some width."""
    draw = np.random.default_rng(0)
    true = draw.normal((60, 25), (15, 4), (40, 2))
    said = true + draw.normal(0, noise, true.shape)
    items = []
    for row in range(40):
        ref = CaseRef(f"c{row}", Path("x"), subject_id=f"p{row // 2}", numbers=tuple(true[row].tolist()))
        around = {name: (v - width, v + width) for name, v in zip(NAMES, said[row], strict=True)} if width else {}
        # The bundle has the numbers in another order than the data.
        items.append(Answered(ref, Prediction(ref.case_id, NAMES[::-1], said[row, ::-1], (), intervals=around)))
    return tabulate(items, NAMES)


def test_figures_are_those_of_metrics() -> None:
    cases = measured(2.0)
    found = estimate(cases, samples=50)
    assert found["mae"].value == summarise(cases.scores, cases.targets)["mae"]
    assert found["r2/age"].value == per_target(cases.scores, cases.targets, NAMES)["age"]["r2"]
    assert found["mae"].low < found["mae"].value < found["mae"].high
    assert cases.people == 20


def test_what_is_exact_has_no_error_and_the_worst_is_the_furthest() -> None:
    assert estimate(measured(0.0), samples=5)["mae"].value == 0
    cases = measured(3.0)
    error = np.abs(cases.scores - cases.targets) / cases.targets.std(0)
    assert cases.badness.argmax() == error.max(1).argmax()


def test_intervals_are_judged_by_how_often_they_hold_the_truth() -> None:
    assert "interval_coverage/age" not in estimate(measured(2.0), samples=3)
    found = estimate(measured(2.0, width=100.0), samples=5)
    assert (found["interval_coverage/age"].value, found["interval_width/age"].value) == (1, pytest.approx(200))
    assert estimate(measured(2.0, width=0.5), samples=5)["interval_coverage/bmi"].value < 0.6


def test_two_models_are_compared() -> None:
    model = Model("m/1", "a", {}, "e", "plain", "regression")
    found = {item.name: item.test for item in compare(measured(1.0), measured(5.0), model, samples=50).contrasts}
    assert found["mae"].high < 0
    assert found["mae"].p < 0.05
