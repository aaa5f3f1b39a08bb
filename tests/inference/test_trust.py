"""What a bundle says of its answers: fitted on validation cases, kept as plain JSON, and applied to every answer."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from medray.config import ConfigError
from medray.inference import trust as trusts
from medray.inference.trust import Trust, fit, fit_interval
from medray.metrics.trust import apply_temperature, conformal_set, fit_temperature
from medray.sections.trust import TrustSection
from medray.tasks.classification import Classification, Config, build

NAMES = ("healthy", "ill", "other")


def task(classes: int, multilabel: bool = False) -> Classification:
    return build(Config(), NAMES[:classes], multilabel, np.eye(classes, dtype=np.float32))


def cfg(**settings: Any) -> TrustSection:
    return TrustSection.model_validate(settings)


def sure(count: int, classes: int, hot: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are `hot` times as sure as they should be, and the truth."""
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(count, classes)) * 1.5
    honest = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    label = (honest.cumsum(1) > draw.random((count, 1))).argmax(1)
    scaled = np.exp(hot * logits)
    return (scaled / scaled.sum(1, keepdims=True)).astype(np.float32), np.eye(classes, dtype=np.float32)[label]


def multi(count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Scores and truth of three labels that may come together."""
    draw = np.random.default_rng(1)
    truth = (draw.random((count, 3)) < 0.4).astype(np.float32)
    return np.clip(0.25 + 0.5 * truth + draw.normal(0, 0.15, truth.shape), 0.01, 0.99).astype(np.float32), truth


def round_trip(trust: Trust) -> Trust:
    """Through a card."""
    plain = json.loads(json.dumps(trust.as_dict(), allow_nan=False))
    return Trust.of({"classes": list(trust.classes), "multilabel": trust.multilabel, "trust": plain})


@pytest.mark.parametrize("card", [{}, {"trust": None}, {"trust": {}}])
def test_a_card_that_says_nothing_changes_nothing(card: dict[str, Any]) -> None:
    trust = Trust.of({"classes": list(NAMES), "multilabel": False, **card})
    scores = np.array([0.2, 0.5, 0.3], np.float32)
    answer, plain = trust.applied(task(3), "x", scores, ("odd",)), task(3).decode("x", scores, ("odd",))
    assert (answer.labels, answer.warnings, answer.conformal_set) == (plain.labels, ("odd",), None)
    np.testing.assert_array_equal(answer.scores, scores)


def test_the_temperature_is_that_of_the_validation_cases_and_is_applied() -> None:
    scores, targets = sure(400, 3)
    trust = fit(cfg(conformal_alpha=None), NAMES, False, scores, targets)
    assert trust.temperature == pytest.approx(fit_temperature(scores, targets))
    assert trust.temperature == pytest.approx(3.0, rel=0.25)
    answer = trust.applied(task(3), "x", scores[0], ())
    np.testing.assert_allclose(answer.scores, apply_temperature(scores[:1], trust.temperature)[0], rtol=1e-5)
    assert answer.scores.dtype == np.float32
    assert answer.labels == task(3).decode("x", scores[0]).labels
    assert fit(cfg(temperature=False), NAMES, False, scores, targets).temperature == 1


@pytest.mark.parametrize(("count", "fitted"), [(trusts.FEWEST_CASES - 1, False), (trusts.FEWEST_CASES, True)])
def test_fewer_cases_say_nothing_of_a_temperature(count: int, fitted: bool) -> None:
    scores, targets = sure(count, 3)
    assert (fit(cfg(), NAMES, False, scores, targets).temperature != 1) == fitted


def test_a_temperature_without_a_stop_is_none() -> None:
    targets = np.eye(3, dtype=np.float32)[np.arange(60) % 3]
    right = np.clip(targets, 0.1, 0.8)
    assert fit(cfg(), NAMES, False, right, targets).temperature == 1, "all are right"
    wrong = np.roll(right, 1, 1)
    assert fit(cfg(), NAMES, False, wrong, targets).temperature == 1, "none is"
    one = np.tile(targets[:1], (60, 1))
    assert fit(cfg(), NAMES, False, sure(60, 3)[0], one).temperature == 1, "one class alone"


def test_nobody_in_validation() -> None:
    trust = fit(cfg(), NAMES, False, np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32))
    assert trust == Trust(NAMES)


def test_sets_are_those_of_the_calibrated_scores() -> None:
    scores, targets = sure(400, 3)
    trust = fit(cfg(conformal_alpha=0.2), NAMES, False, scores[:200], targets[:200])
    assert trust.conformal is not None
    held = conformal_set(trust.calibrated(scores[200:]), trust.conformal)
    for row in (0, 5, 9):
        found = trust.applied(task(3), "x", scores[200 + row], ()).conformal_set
        assert found == tuple(name for name, there in zip(NAMES, held[row], strict=True) if there)
    assert held[targets[200:] == 1].mean() > 0.75
    few = fit(cfg(), NAMES, False, scores[:5], targets[:5])
    assert few.applied(task(3), "x", scores[0], ()).conformal_set == NAMES, "too few cases rule nothing out"
    assert round_trip(few) == few
    assert fit(cfg(conformal_alpha=None), NAMES, False, scores, targets).conformal is None


def test_a_promise_for_each_class() -> None:
    scores, targets = sure(400, 3)
    trust = fit(cfg(per_class=True), NAMES, False, scores, targets)
    assert trust.conformal is not None
    assert len(set(trust.conformal.thresholds)) == 3
    labels = fit(cfg(), NAMES, True, *multi())
    assert labels.conformal is not None
    assert labels.conformal.multilabel


def test_an_operating_point_decides_between_two_classes() -> None:
    scores, targets = sure(400, 2, hot=2.0)
    rules = [{"of": "ill", "sensitivity": 0.97}, {"of": "ill", "specificity": 0.99}]
    trust = fit(cfg(operating_points=rules), NAMES[:2], False, scores, targets)
    answers = [trust.applied(task(2), "x", row, ()) for row in scores]
    called = np.array([answer.labels == ("ill",) for answer in answers])
    assert called[targets[:, 1] == 1].mean() >= 0.97
    assert called.sum() > (scores[:, 1] >= 0.5).sum(), "it is called more often than by the likeliest"
    assert {answer.labels for answer in answers} == {("ill",), ("healthy",)}
    threshold = trust.points[0][1].threshold
    np.testing.assert_array_equal(called, trust.calibrated(scores)[:, 1] >= threshold)
    healthy = fit(cfg(operating_points=[{"of": "healthy", "specificity": 0.9}]), NAMES[:2], False, scores, targets)
    said = np.array([healthy.applied(task(2), "x", row, ()).labels[0] for row in scores])
    assert (said[targets[:, 1] == 1] == "ill").mean() >= 0.9


def test_an_operating_point_decides_of_each_label_alone() -> None:
    scores, targets = multi()
    rules = [{"of": "ill", "sensitivity": 0.99}]
    trust = fit(cfg(operating_points=rules, temperature=False), NAMES, True, scores, targets)
    threshold = trust.points[0][1].threshold
    for row in scores[:50]:
        expected = [row[0] >= 0.5, row[1] >= threshold, row[2] >= 0.5]
        found = trust.applied(task(3, multilabel=True), "x", row, ()).labels
        assert found == tuple(name for name, there in zip(NAMES, expected, strict=True) if there)


def test_of_three_exclusive_classes_the_likeliest_stays() -> None:
    scores, targets = sure(300, 3)
    trust = fit(cfg(operating_points=[{"of": "ill", "sensitivity": 0.99}]), NAMES, False, scores, targets)
    for row in scores[:20]:
        assert trust.applied(task(3), "x", row, ()).labels == (NAMES[int(row.argmax())],)


@pytest.mark.parametrize("multilabel", [False, True])
def test_a_card_keeps_all_of_it(multilabel: bool) -> None:
    rules = [{"of": "ill", "sensitivity": 0.9}, {"of": "other", "specificity": 0.8}]
    scores, targets = multi() if multilabel else sure(300, 3)
    trust = fit(cfg(operating_points=rules), NAMES, multilabel, scores, targets)
    assert [name for name, _ in trust.points] == ["ill", "other"]
    assert round_trip(trust) == trust


def test_operating_points_that_cannot_be_are_refused() -> None:
    scores, targets = sure(60, 3)
    with pytest.raises(ConfigError, match="no class 'Ill'; did you mean 'ill'"):
        fit(cfg(operating_points=[{"of": "Ill", "sensitivity": 0.9}]), NAMES, False, scores, targets)
    targets[:, 1] = 0
    with pytest.raises(ConfigError, match="0 of 60 validation cases are 'ill'; a threshold needs some that are"):
        fit(cfg(operating_points=[{"of": "ill", "sensitivity": 0.9}]), NAMES, False, scores, targets)
    for rule in ({"of": "ill"}, {"of": "ill", "sensitivity": 0.9, "specificity": 0.9}):
        with pytest.raises(ValidationError, match="needs one of sensitivity and specificity"):
            cfg(operating_points=[rule])


def test_a_number_comes_with_its_interval() -> None:
    draw = np.random.default_rng(0)
    targets = draw.normal(size=(200, 2))
    answers = targets + draw.normal(size=(200, 2)) * [0.1, 2.0]
    trust = fit_interval(cfg(), ("age", "weight"), answers, targets)
    assert trust.interval is not None
    narrow, wide = trust.interval.half_widths
    assert narrow < 0.25 < 2 < wide
    assert round_trip(trust) == trust
    assert fit_interval(cfg(), ("age", "weight"), answers[:5], targets[:5]).interval is None, "too few cases"
    assert fit_interval(cfg(conformal_alpha=None), ("age", "weight"), answers, targets).interval is None
