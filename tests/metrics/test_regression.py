import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from medray.metrics.regression import SUMMARY, interval_coverage, per_target, pinball_loss, summarise

quick = settings(max_examples=40, deadline=None)


def numbers(seed: int, n: int, targets: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = scale * rng.normal(5, 2, (n, targets))
    return true + scale * rng.normal(0.3, 1, (n, targets)), true


@given(
    seed=st.integers(0, 10**6), n=st.integers(3, 50), targets=st.integers(1, 4), scale=st.sampled_from([1e-6, 1.0, 1e6])
)
@quick
def test_parity(seed: int, n: int, targets: int, scale: float) -> None:
    predicted, true = numbers(seed, n, targets, scale)
    error = predicted - true
    spread = 1.96 * error.std(0, ddof=1)
    wanted = {
        "mae": sk.mean_absolute_error(true, predicted),
        "mse": sk.mean_squared_error(true, predicted),
        "rmse": sk.root_mean_squared_error(true, predicted),
        "median_absolute_error": sk.median_absolute_error(true, predicted),
        "r2": sk.r2_score(true, predicted),
        "pearson": np.mean([stats.pearsonr(predicted[:, t], true[:, t])[0] for t in range(targets)]),
        "bias": error.mean(),
        "limit_low": np.mean(error.mean(0) - spread),
        "limit_high": np.mean(error.mean(0) + spread),
    }
    got = summarise(predicted, true)
    assert tuple(got) == SUMMARY
    assert got == pytest.approx(wanted, rel=1e-9, abs=1e-9 * scale)
    names = [f"target{t}" for t in range(targets)]
    rows = per_target(predicted, true, names)
    assert list(rows) == names
    for t, row in enumerate(rows.values()):
        assert row == pytest.approx(summarise(predicted[:, [t]], true[:, [t]]), rel=1e-12)
    for name in SUMMARY:
        assert got[name] == pytest.approx(np.mean([row[name] for row in rows.values()]), rel=1e-9, abs=1e-12 * scale)


def test_limits_of_agreement_hold_95_of_100_errors() -> None:
    predicted, true = numbers(0, 20000, 1)
    got = summarise(predicted, true)
    error = predicted - true
    assert ((got["limit_low"] <= error) & (error <= got["limit_high"])).mean() == pytest.approx(0.95, abs=0.005)
    assert got["bias"] == pytest.approx(0.3, abs=0.03)


def test_what_is_not_defined_is_nan_and_left_out_of_the_mean() -> None:
    predicted, true = numbers(0, 7, 2)
    # 0.1 is no binary fraction: its mean is off by a rounding error, and its variance above 0.
    true[:, 0] = 0.1
    got = per_target(predicted, true, ["constant", "other"])
    assert np.isnan([got["constant"]["r2"], got["constant"]["pearson"]]).all()
    assert np.isfinite([got["constant"]["mae"], got["constant"]["limit_low"]]).all()
    assert summarise(predicted, true)["r2"] == got["other"]["r2"]
    predicted[:, 1] = 0.1
    got = per_target(predicted, true, ["constant", "other"])
    assert np.isnan(got["other"]["pearson"])
    assert got["other"]["r2"] < 0
    one = summarise([[2.0]], [[1.0]])
    assert {name for name in SUMMARY if np.isnan(one[name])} == {"r2", "pearson", "limit_low", "limit_high"}
    assert np.isnan(list(summarise(np.ones((0, 2)), np.ones((0, 2))).values())).all()


@given(seed=st.integers(0, 10**6), quantile=st.floats(0, 1), targets=st.integers(1, 3))
@quick
def test_pinball_parity(seed: int, quantile: float, targets: int) -> None:
    predicted, true = numbers(seed, 20, targets)
    wanted = sk.mean_pinball_loss(true, predicted, alpha=quantile)
    assert pinball_loss(predicted, true, quantile) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_the_quantile_minimises_its_loss() -> None:
    true = np.random.default_rng(0).gamma(2, size=2000)
    best = np.quantile(true, 0.9)
    losses = [pinball_loss(np.full(2000, best + off), true, 0.9) for off in (-0.3, 0, 0.3)]
    assert losses[1] == min(losses)


def test_coverage_and_width() -> None:
    low, high, true = np.array([[0.0, 0], [1, 1]]), np.array([[1.0, 2], [1, 3]]), np.array([[0.5, 2], [1.1, 0]])
    assert interval_coverage(low, high, true) == {"coverage": 0.5, "width": 1.25}
    assert np.isnan(list(interval_coverage([], [], []).values())).all()


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="must both be"):
        summarise(np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match="1 of 2 cases have true values"):
        summarise(np.ones((2, 1)), [[1], [np.nan]])
    with pytest.raises(ValueError, match="2 targets were named for 1"):
        per_target(np.ones((2, 1)), np.ones((2, 1)), ["a", "b"])
    with pytest.raises(ValueError, match="1 of 2 intervals have low above high"):
        interval_coverage([0, 2], [1, 1], [0, 0])
    with pytest.raises(ValueError, match="one shape"):
        interval_coverage([0, 2], [1, 1], [0])
    with pytest.raises(ValueError, match="quantile in"):
        pinball_loss([0], [0], 95)
