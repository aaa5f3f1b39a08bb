import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from medray.metrics.intervals import wilson
from medray.metrics.operating import OperatingPoint, at_sensitivity, at_specificity, at_youden, evaluate_at

quick = settings(max_examples=80, deadline=None)
# Few distinct scores make ties; neighbouring floats leave no room between them.
levels = st.sampled_from([0.0, 0.25, 0.5, float(np.nextafter(0.5, 1)), float(np.nextafter(0.5, 0)), 0.75, 1.0])
cases = st.lists(st.tuples(levels | st.floats(0, 1), st.booleans()), min_size=2, max_size=25).filter(
    lambda rows: len({truth for _, truth in rows}) == 2
)


def apart(rows: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([score for score, _ in rows]), np.array([truth for _, truth in rows])


def every_point(scores: np.ndarray, positive: np.ndarray) -> list[tuple[float, float]]:
    """(sensitivity, specificity) of every decision that a threshold can make."""
    decisions = [scores >= threshold for threshold in (*np.unique(scores), np.inf)]
    return [(float(called[positive].mean()), float((~called[~positive]).mean())) for called in decisions]


@given(rows=cases, minimum=st.sampled_from([0, 0.1, 0.5, 0.9, 0.95, 1]) | st.floats(0, 1))
@quick
def test_no_other_threshold_is_better(rows: list[tuple[float, bool]], minimum: float) -> None:
    scores, positive = apart(rows)
    points = every_point(scores, positive)
    got = at_sensitivity(scores, positive, minimum)
    assert (got.specificity, got.sensitivity) == max((tnr, tpr) for tpr, tnr in points if tpr >= minimum)
    got = at_specificity(scores, positive, minimum)
    assert (got.sensitivity, got.specificity) == max((tpr, tnr) for tpr, tnr in points if tnr >= minimum)
    got = at_youden(scores, positive)
    best = max(sum(point) for point in points)
    assert got.sensitivity + got.specificity == pytest.approx(best)
    assert got.sensitivity == max(tpr for tpr, tnr in points if tpr + tnr > best - 1e-9)


@given(rows=cases, minimum=st.floats(0, 1))
@quick
def test_a_threshold_lies_in_the_middle(rows: list[tuple[float, bool]], minimum: float) -> None:
    scores, positive = apart(rows)
    for got in (
        at_sensitivity(scores, positive, minimum),
        at_specificity(scores, positive, minimum),
        at_youden(scores, positive),
    ):
        assert math.isfinite(got.threshold)
        called, not_called = scores[scores >= got.threshold], scores[scores < got.threshold]
        if len(called) and len(not_called):
            middle = (called.min() + not_called.max()) / 2
            assert got.threshold == pytest.approx(middle, abs=1e-15)
        assert repr(got) == repr(evaluate_at(scores, positive, got.threshold, got.rule))


def test_19_of_20_is_95_percent() -> None:
    scores = np.arange(40) / 40
    positive = (scores == 0) | (scores > 20 / 40)
    got = at_sensitivity(scores, positive, 0.95)
    assert (got.rule, got.sensitivity, got.specificity) == ("sensitivity >= 0.95", 0.95, 1)
    assert got.threshold == pytest.approx(20.5 / 40)
    assert at_sensitivity(scores, positive, 0.951).threshold == 0
    got = at_specificity(1 - scores, ~positive, 0.95)
    assert (got.rule, got.sensitivity, got.specificity) == ("specificity >= 0.95", 1, 0.95)
    # The likeliest case is negative: nothing is called, by a threshold that JSON can hold.
    nothing = at_specificity([0.1, 0.9], [1, 0], 1)
    assert (nothing.sensitivity, nothing.specificity) == (0, 1)
    assert 0.9 < nothing.threshold < 0.9 + 1e-12


@given(rows=st.lists(st.tuples(levels, st.booleans()), max_size=25), threshold=st.floats(0, 1))
@quick
def test_rates_are_those_of_sklearn(rows: list[tuple[float, bool]], threshold: float) -> None:
    scores, positive = apart(rows)
    positive = positive.astype(bool)
    got = evaluate_at(scores, positive, threshold)
    called = scores >= threshold
    tp, n = int((called & positive).sum()), int(positive.sum())
    if n:
        assert got.sensitivity == pytest.approx(sk.recall_score(positive, called))
        assert got.f1 == pytest.approx(sk.f1_score(positive, called))
    if called.any():
        assert got.ppv == pytest.approx(sk.precision_score(positive, called))
    if not positive.all():
        assert got.specificity == pytest.approx(sk.recall_score(~positive, ~called))
    if not called.all():
        assert got.npv == pytest.approx(sk.precision_score(~positive, ~called))
    wanted = {"sensitivity": n, "specificity": len(rows) - n, "ppv": called.sum(), "npv": (~called).sum(), "f1": n}
    assert {name: math.isnan(getattr(got, name)) for name in wanted} == {name: not c for name, c in wanted.items()}
    np.testing.assert_array_equal((got.sensitivity_low, got.sensitivity_high), wilson(tp, n))


def test_a_point_survives_json() -> None:
    for found in (evaluate_at([0.2, 0.7], [0, 1], 0.5), evaluate_at([0.2], [0], 0.5)):
        plain = json.loads(json.dumps(found.as_dict(), allow_nan=False))
        assert repr(OperatingPoint.from_dict(plain)) == repr(found)


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="positive and negative cases, got 2 of 2"):
        at_youden([0.1, 0.2], [1, 1])
    with pytest.raises(ValueError, match="between 0 and 1, got 95"):
        at_sensitivity([0.1, 0.2], [0, 1], 95)
    with pytest.raises(ValueError, match="must both be"):
        evaluate_at([[0.1, 0.2]], [0, 1], 0.5)
    with pytest.raises(ValueError, match="finite"):
        evaluate_at([0.1, np.nan], [0, 1], 0.5)
    with pytest.raises(ValueError, match="finite number, got inf"):
        evaluate_at([0.1, 0.2], [0, 1], np.inf)
