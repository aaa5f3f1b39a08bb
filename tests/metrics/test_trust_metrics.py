import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from sklearn.metrics import log_loss

from medray.metrics.classification import summarise
from medray.metrics.trust import (
    Conformal,
    ConformalInterval,
    Method,
    apply_temperature,
    class_coverage,
    conformal_set,
    coverage,
    fit_conformal,
    fit_conformal_interval,
    fit_temperature,
    mean_set_size,
)

quick = settings(max_examples=80, deadline=None)
COMMONNESS = (0.8, 0.15, 0.05)
probability = st.sampled_from([0.0, 1e-300, 1e-9, 0.25, 0.5, 1 - 1e-9, 1.0]) | st.floats(0, 1)


def exclusive(rng: np.random.Generator, n: int, sureness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and true classes drawn from the probabilities that the scores are at sureness 1."""
    logits = np.log(COMMONNESS) + 1.5 * rng.normal(size=(n, 3))
    honest = softmax(logits, 1)
    truth = (rng.random((n, 1)) > np.cumsum(honest, 1)[:, :-1]).sum(1)
    return softmax(sureness * logits, 1), np.eye(3)[truth]


def multilabel(rng: np.random.Generator, n: int, sureness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    logits = np.array([0.0, -1.5, -3]) + 1.5 * rng.normal(size=(n, 3))
    return expit(sureness * logits), (rng.random((n, 3)) < expit(logits)).astype(float)


def mean_log_loss(scores: np.ndarray, targets: np.ndarray, many: bool) -> float:
    if many:
        return float(np.mean([log_loss(targets[:, k], scores[:, k], labels=[0, 1]) for k in range(scores.shape[1])]))
    return float(log_loss(targets, scores))


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("sureness", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_too_much_sureness(many: bool, sureness: float) -> None:
    make = multilabel if many else exclusive
    scores, targets = make(np.random.default_rng(0), 8000, sureness)
    temperature = fit_temperature(scores, targets, many)
    assert temperature == pytest.approx(sureness, rel=0.06)
    least = mean_log_loss(apply_temperature(scores, temperature, many), targets, many)
    for other in (0.97, 1.03):
        assert mean_log_loss(apply_temperature(scores, other * temperature, many), targets, many) > least


@pytest.mark.parametrize("many", [False, True])
def test_scaling_lowers_the_calibration_error_of_fresh_cases(many: bool) -> None:
    make = multilabel if many else exclusive
    before, after = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        temperature = fit_temperature(*make(rng, 500, 4.0), many)
        scores, targets = make(rng, 2000, 4.0)
        before.append(summarise(scores, targets, many)["ece"])
        after.append(summarise(apply_temperature(scores, temperature, many), targets, many)["ece"])
    assert min(before) > 0.07
    assert max(after) < 0.04
    assert (np.array(after) < 0.4 * np.array(before)).all()


@given(
    rows=st.lists(st.tuples(probability, probability, probability), min_size=1, max_size=6),
    temperature=st.floats(0.05, 20) | st.sampled_from([1.0, 20.0]),
    many=st.booleans(),
)
@quick
def test_scaling_is_safe(rows: list[tuple[float, ...]], temperature: float, many: bool) -> None:
    scores = np.array(rows)
    if not many:
        scores[scores.sum(1) == 0] = 1
        scores /= scores.sum(1, keepdims=True)
    scaled = apply_temperature(scores, temperature, many)
    assert ((scaled >= 0) & (scaled <= 1)).all()
    np.testing.assert_allclose(apply_temperature(scores, 1, many), scores, rtol=1e-12, atol=1e-15)
    if many:
        order = np.argsort(scores, 0)
        assert (np.diff(np.take_along_axis(scaled, order, 0), axis=0) >= -1e-12).all()
    else:
        np.testing.assert_array_equal(scaled.argmax(1), scores.argmax(1))
        np.testing.assert_allclose(scaled.sum(1), 1, rtol=1e-12)
        hotter = apply_temperature(scores, 1.5 * temperature, many)
        assert (hotter.max(1) <= scaled.max(1) + 1e-12).all()


def test_neighbours_keep_their_order_when_they_melt() -> None:
    low, high = 0.5, float(np.nextafter(0.5, 1))
    scaled = apply_temperature([[low, high], [high, low]], 20)
    assert scaled.argmax(1).tolist() == [1, 0]


def test_a_case_scored_zero_for_the_truth_does_not_break_the_fit() -> None:
    scores, targets = exclusive(np.random.default_rng(0), 500, 3.0)
    scores[0], targets[0] = [1, 0, 0], [0, 1, 0]
    assert 1 < fit_temperature(scores, targets) < 20
    assert fit_temperature([[0.9, 0.1], [0.2, 0.8]], [[1, 0], [0, 1]]) < 0.07
    assert fit_temperature([[1, 0], [0, 1]], [[0, 1], [1, 0]]) == pytest.approx(20, rel=0.01)
    assert fit_temperature([[1, 0], [0, 1]], [[0, 1], [1, 0]], True) == pytest.approx(20, rel=0.01)


def over_splits(
    method: Method, per_class: bool, many: bool = False, alpha: float = 0.1
) -> tuple[float, np.ndarray, float]:
    """Mean coverage, mean coverage of each class and mean set size over 100 splits into fresh cases."""
    make = multilabel if many else exclusive
    found = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        fitted = fit_conformal(*make(rng, 1000), alpha, per_class, method, many)
        scores, targets = make(rng, 1000)
        sets = conformal_set(scores, fitted, keep_top=False)
        found.append([coverage(sets, targets), *class_coverage(sets, targets), mean_set_size(sets)])
    mean = np.mean(found, 0)
    return float(mean[0]), mean[1:-1], float(mean[-1])


@pytest.mark.parametrize("method", ["lac", "aps"])
@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_coverage_is_as_promised(method: Method, alpha: float) -> None:
    whole, of_class, _ = over_splits(method, per_class=False, alpha=alpha)
    assert whole == pytest.approx(1 - alpha, abs=0.02)
    # Bought with the rare class, or that promise would need no sets of its own.
    assert of_class[2] < 1 - alpha - 0.05


@pytest.mark.parametrize(("method", "many"), [("lac", False), ("aps", False), ("lac", True)])
def test_coverage_of_each_class_is_as_promised(method: Method, many: bool) -> None:
    whole, of_class, _ = over_splits(method, per_class=True, many=many)
    np.testing.assert_allclose(of_class, 0.9, atol=0.02)
    assert whole == pytest.approx(0.9, abs=0.02)


def test_lac_sets_are_the_smaller_ones() -> None:
    assert over_splits("lac", per_class=False)[2] < over_splits("aps", per_class=False)[2]


@given(n=st.integers(1, 60), alpha=st.sampled_from([0.01, 0.05, 0.1, 0.3, 0.7]), seed=st.integers(0, 99))
@quick
def test_the_rank_of_a_threshold(n: int, alpha: float, seed: int) -> None:
    residuals = np.random.default_rng(seed).normal(size=(n, 2))
    fitted = fit_conformal_interval(residuals, alpha)
    # By hundredths, which are whole: ceil((n + 1)(1 - alpha)).
    rank = -(-(n + 1) * round(100 * (1 - alpha)) // 100)
    ordered = np.append(np.sort(np.abs(residuals), 0), [[math.inf] * 2], 0)
    assert fitted.half_widths == tuple(ordered[rank - 1])


def test_too_few_cases_hold_every_class() -> None:
    # Of the third class there is one case too few for 0.05.
    scores, targets = exclusive(np.random.default_rng(0), 1000)
    keep = np.concatenate([np.flatnonzero(targets[:, k])[:count] for k, count in enumerate((60, 19, 18))])
    fitted = fit_conformal(scores[keep], targets[keep], 0.05, per_class=True)
    assert fitted.thresholds[2] == math.inf
    assert np.isfinite(fitted.thresholds[:2]).all()
    assert conformal_set(scores, fitted)[:, 2].all()
    few = fit_conformal(scores[:18], targets[:18], 0.05)
    assert conformal_set(scores, few).all()
    assert not conformal_set(scores, fit_conformal(scores[:19], targets[:19], 0.05)).all()


@given(st.lists(st.lists(st.integers(0, 4), min_size=4, max_size=4).filter(any), min_size=1, max_size=5))
@quick
def test_aps_adds_all_that_are_likelier_and_half_of_its_own(counts: list[list[int]]) -> None:
    scores = np.array(counts) / np.sum(counts, 1, keepdims=True)
    for threshold in (0.3, 0.5, 0.9):
        sets = conformal_set(scores, Conformal(0.1, (threshold,) * 4, "aps"), keep_top=False)
        for row, held in zip(scores, sets, strict=True):
            total = np.array([row[row > score].sum() + row[row == score].sum() / 2 for score in row])
            clear = np.abs(total - threshold) > 1e-9
            np.testing.assert_array_equal(held[clear], (total <= threshold)[clear])


def test_an_empty_set_gets_its_likeliest_class() -> None:
    scores = np.array([[0.4, 0.35, 0.25], [0.9, 0.05, 0.05]])
    fitted = Conformal(0.1, (0.3,) * 3, "lac")
    assert conformal_set(scores, fitted, keep_top=False).tolist() == [[False] * 3, [True, False, False]]
    assert conformal_set(scores, fitted).tolist() == [[True, False, False]] * 2
    many = Conformal(0.1, (0.3,) * 3, "lac", per_class=True, multilabel=True)
    assert not conformal_set([[0.1, 0.2, 0.3]], many).any()


def test_measures_of_sets() -> None:
    sets, targets = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]], bool), np.eye(3)[[0, 0, 1]]
    assert coverage(sets, targets) == pytest.approx(1 / 3)
    np.testing.assert_array_equal(class_coverage(sets, targets), [0.5, 0, np.nan])
    assert mean_set_size(sets) == 1
    assert np.isnan([coverage(sets[:0], targets[:0]), mean_set_size(sets[:0])]).all()


def test_intervals_of_a_regression_hold_the_truth() -> None:
    found = []
    for seed in range(100):
        errors = np.random.default_rng(seed).standard_t(3, (400, 2)) * [1, 10]
        low, high = fit_conformal_interval(errors[:200], 0.1).around(np.zeros((200, 2)))
        found.append(((low <= errors[200:]) & (errors[200:] <= high)).mean(0))
    np.testing.assert_allclose(np.mean(found, 0), 0.9, atol=0.02)


def test_all_survives_json() -> None:
    scores, targets = exclusive(np.random.default_rng(0), 40)
    fitted = fit_conformal(scores, targets, 0.05, per_class=True, method="aps")
    assert math.inf in fitted.thresholds
    assert Conformal.from_dict(json.loads(json.dumps(fitted.as_dict(), allow_nan=False))) == fitted
    width = ConformalInterval(0.1, (1.5, math.inf))
    assert ConformalInterval.from_dict(json.loads(json.dumps(width.as_dict(), allow_nan=False))) == width


def test_scipy_waits_until_it_is_called() -> None:
    modules = ", ".join(f"medray.metrics.{name}" for name in ("regression", "comparison", "operating", "trust"))
    check = f"import sys, {modules}; assert not {{'scipy', 'sklearn', 'torch'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_misuse_is_refused() -> None:
    scores, targets = multilabel(np.random.default_rng(0), 40)
    with pytest.raises(ValueError, match="exactly one true class"):
        fit_conformal(scores, targets, 0.1)
    for per_class, method in ((False, "lac"), (True, "aps")):
        with pytest.raises(ValueError, match="multi-label sets"):
            fit_conformal(scores, targets, 0.1, per_class, method, multilabel=True)
    with pytest.raises(ValueError, match="alpha must be"):
        fit_conformal_interval([[1.0]], 5)
    with pytest.raises(ValueError, match="not logits"):
        apply_temperature([[-1.0, 2.0]], 2)
    with pytest.raises(ValueError, match="sum to 1"):
        apply_temperature([[0.9, 0.9]], 2)
    with pytest.raises(ValueError, match="above 0"):
        apply_temperature([[0.5, 0.5]], 0)
    with pytest.raises(ValueError, match="at least one case"):
        fit_temperature(np.ones((0, 2)), np.ones((0, 2)))
    with pytest.raises(ValueError, match="'lac' or 'aps'"):
        conformal_set([[0.5, 0.5]], Conformal(0.1, (0.5, 0.5), "raps"))
    with pytest.raises(ValueError, match="2 classes for sets of 3"):
        conformal_set([[0.5, 0.5]], Conformal(0.1, (0.5,) * 3, "lac"))
    with pytest.raises(ValueError, match="residuals must be"):
        fit_conformal_interval([1.0], 0.1)
