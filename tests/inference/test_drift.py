"""Drift: chance does not alarm, a shift does, and of no case a value is kept."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from medray.bundle import BundleError
from medray.inference.contract import Facts
from medray.inference.drift import (
    FEWEST_PER_BIN,
    FEWEST_SUBJECTS,
    Check,
    DriftReference,
    build,
    chance,
    numbers_of,
    psi,
    scores_named,
    signals_of,
)
from medray.types import Array, Prediction


def check_of(values: Array, name: str = "noise", subjects: int | None = None) -> Check | None:
    made = build([([{name: value} for value in values.tolist()], subjects or len(values))])
    return None if made is None else made.checks[name]


def counts(check: Check, values: Array) -> list[int]:
    places = np.searchsorted(check.edges, values, "right")
    return [int(count) for count in np.bincount(places, minlength=len(check.shares))]


def test_bins_hold_about_equally_many_and_no_edge_is_a_case() -> None:
    draw = np.random.default_rng(0)
    for values in (draw.normal(100, 5, 333), draw.integers(0, 40, 333) / 8, draw.gamma(0.1, 1, 333)):
        check = check_of(values)
        assert check is not None
        found = counts(check, values)
        assert len(found) >= 6
        assert min(found) >= FEWEST_PER_BIN
        assert sum(found) == len(values)
        np.testing.assert_allclose(check.shares, np.array(found) / len(values), atol=1e-4)
        assert not set(check.edges) & {float(f"{value:.{digits}g}") for value in values for digits in (4, 17)}


@pytest.mark.parametrize(("cases", "bins"), [(20, 4), (27, 5), (50, 10), (5000, 10)])
def test_few_cases_have_few_bins(cases: int, bins: int) -> None:
    check = check_of(np.random.default_rng(cases).normal(size=cases))
    assert check is not None
    assert len(check.shares) == bins


def test_too_few_and_constant_numbers_are_not_compared() -> None:
    values = np.random.default_rng(0).normal(size=200)
    assert check_of(values[: FEWEST_SUBJECTS - 1]) is None
    assert check_of(values, subjects=FEWEST_SUBJECTS - 1) is None
    assert check_of(np.full(200, 0.7)) is None
    assert check_of(0.7 + values * 1e-9) is None
    assert check_of(np.where(np.arange(200) < FEWEST_PER_BIN - 1, 1.5, 0.7)) is None
    assert check_of(np.full(200, np.nan)) is None
    assert check_of(np.random.default_rng(0).uniform(0, 2e-5, 200), "scores/none") is None
    assert build([([], 0)]) is None


def test_a_number_that_few_values_share_is_cut_between_them() -> None:
    values = np.repeat([0.8, 1.0, 1.25], [100, 60, 40])
    check = check_of(values)
    assert check is not None
    assert check.shares == (0.5, 0.3, 0.2)
    # A header's single precision is no drift.
    assert counts(check, values.astype(np.float32) * (1 + 1e-7)) == [100, 60, 40]


def test_subjects_and_not_cases_say_what_is_chance() -> None:
    values = np.random.default_rng(0).normal(size=3000)
    many, few = check_of(values), check_of(values, subjects=30)
    assert many is not None
    assert few is not None
    assert (len(many.shares), len(few.shares), few.subjects) == (10, 6, 30)
    assert many.threshold(1000, 0.2) == 0.2
    assert few.threshold(1000, 0.2) == chance(6, 30, 1000) > 0.2


def test_index_is_that_of_the_books_and_finite_where_a_bin_is_empty() -> None:
    expected, found = (0.1, 0.2, 0.3, 0.4), np.array([0.2, 0.2, 0.2, 0.4])
    wanted = float(((found - expected) * np.log(found / expected)).sum())
    assert psi(expected, (found * 1e9).astype(int).tolist(), 1e9) == pytest.approx(wanted, rel=1e-6)
    assert psi(expected, [100, 200, 300, 400], 1000) == pytest.approx(0, abs=1e-12)
    assert 1 < psi(expected, [0, 0, 0, 1000], 1000) < 20
    assert np.isfinite(psi(expected, [0, 0, 0, 0], 20))


@pytest.mark.parametrize("cases", [20, 50, 100, 300, 1000])
@pytest.mark.parametrize("answers", [100, 1000])
def test_less_than_one_alarm_in_a_hundred_is_chance(cases: int, answers: int) -> None:
    draw = np.random.default_rng([cases, answers])
    alarms, ratios = [], []
    for _ in range(200):
        check = check_of(draw.normal(size=cases))
        assert check is not None
        for _ in range(5):
            index = psi(check.shares, counts(check, draw.normal(size=answers)), cases)
            alarms.append(index > check.threshold(answers, least=0))
            ratios.append(index / ((len(check.shares) - 1) * (1 / cases + 1 / answers)))
    assert np.mean(alarms) < 0.01
    # It is the chi-square that does it, and not an index that says nothing.
    assert 0.8 < np.mean(ratios) < 1.2


@pytest.mark.parametrize("shares", [2, 5])
def test_few_bins_alarm_no_more_often(shares: int) -> None:
    draw = np.random.default_rng(shares)
    even = np.full(shares, 1 / shares)
    known, found = draw.multinomial(200, even, 3000), draw.multinomial(300, even, 3000)
    alarms = [
        psi((one / 200).tolist(), other.tolist(), 200) > chance(shares, 200, 300)
        for one, other in zip(known, found, strict=True)
    ]
    assert np.mean(alarms) < 0.01


def test_a_shift_is_found() -> None:
    draw = np.random.default_rng(0)
    check = check_of(draw.normal(size=200))
    assert check is not None
    for moved in (draw.normal(0.8, 1, 200), draw.normal(0, 2.5, 200), np.full(200, 0.1)):
        assert psi(check.shares, counts(check, moved), 200) > check.threshold(200, 0.2)


def test_a_card_keeps_it() -> None:
    draw = np.random.default_rng(0)
    made = build([([{"scores/a": one, "distance": two} for one, two in draw.uniform(size=(60, 2)).tolist()], 60)])
    assert made is not None
    assert DriftReference.of({"drift": json.loads(json.dumps(made.as_dict()))}) == made
    assert DriftReference.of({}) is None
    assert DriftReference.of({"drift": None}) is None


GOOD = {"edges": [1.0, 2.0], "shares": [0.3, 0.3, 0.4], "subjects": 30}


@pytest.mark.parametrize(
    "plain",
    [
        *([], "drift", {}, {"checks": {}}, {"checks": []}, {"checks": {"noise": []}}, {"checks": {"noise": {}}}),
        {"checks": {f"noise{index}": GOOD for index in range(65)}},
        *({"checks": {"noise": {**GOOD, "subjects": value}}} for value in (19, 30.0, "30", True, None)),
        *({"checks": {"noise": {**GOOD, "edges": value}}} for value in ([], [1], [2, 1], [1, 1], [1, "b"], 1)),
        *({"checks": {"noise": {**GOOD, "edges": [1, value]}}} for value in (float("nan"), float("inf"), 10**400)),
        *({"checks": {"noise": {**GOOD, "shares": value}}} for value in ([1], [0, 0.5, 0.5], [0.3] * 3, [0.5, 0.5])),
    ],
)
def test_a_reference_that_makes_no_sense_is_refused(plain: Any) -> None:
    assert DriftReference.of({"drift": {"checks": {"noise": GOOD}}}) is not None
    with pytest.raises(BundleError, match="drift reference"):
        DriftReference.of({"drift": plain})


def test_signals_of_an_answer_are_plain_and_in_the_contracts_unit() -> None:
    quality = {"noise": 0.1, "sharpness": 0.2, "contrast": 0.3, "clipping": 0.0, "coverage": 1.0, "extent_mm_0": 9.0}
    facts = Facts("CT", "mm", 1, (0.7, 0.8), (70.0, 80.0), (-1000.0, 40.0, 300.0), quality)
    answer = Prediction("case", ("a", "b"), np.array([0.25, 0.75], np.float32), ("b",), ("unlike_training",))
    signals = signals_of(answer, 1.5, facts, "mm")
    assert json.loads(json.dumps(signals)) == signals
    assert signals["scores"] == {"a": 0.25, "b": 0.75}
    assert signals["facts"]["extent_1"] == 80
    assert signals["facts"]["p01"] == -1000
    assert "extent_mm_0" not in signals["facts"]
    assert scores_named(answer) == {"scores/a": 0.25, "scores/b": 0.75}
    assert not [name for name in numbers_of(facts, "px") if name.startswith(("spacing", "extent"))]
    mask = Prediction("case", ("a", "b"), np.zeros(0, np.float32), ("b",), mask=np.zeros((2, 2), np.uint8))
    assert signals_of(mask, None, None, "")["scores"] == scores_named(mask) == {}


def test_watching_needs_no_torch() -> None:
    code = "import sys, medray.serving.monitor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
