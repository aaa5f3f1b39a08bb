import json
import time
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from medray.metrics.classification import macro_auroc
from medray.metrics.comparison import Comparison, delong, mcnemar, paired_bootstrap, paired_bootstrap_many

quick = settings(max_examples=40, deadline=None)


def two_models(seed: int, n: int, levels: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of a better and a worse model that share the hard cases; few `levels` make many ties."""
    rng = np.random.default_rng(seed)
    positive = np.append([True, True, False, False], rng.random(n - 4) < 0.4)
    hard = rng.normal(size=n)
    better, worse = (k * positive + hard + rng.normal(size=n) for k in (1.6, 1.1))
    if levels:
        better, worse = np.round(better * levels / 4), np.round(worse * levels / 4)
    return better, worse, positive


def naive_delong(a: np.ndarray, b: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Difference and variance from all pairs, by the 2 x 2 covariance matrices of DeLong 1988."""
    both = np.stack([a, b])
    x, y = both[:, positive], both[:, ~positive]
    wins = (x[:, :, None] > y[:, None, :]) + 0.5 * (x[:, :, None] == y[:, None, :])
    of_positives, of_negatives = np.cov(wins.mean(2)), np.cov(wins.mean(1))
    cov = of_positives / x.shape[1] + of_negatives / y.shape[1]
    areas = wins.mean((1, 2))
    return float(areas[0] - areas[1]), float(cov[0, 0] + cov[1, 1] - 2 * cov[0, 1])


@given(seed=st.integers(0, 10**6), n=st.integers(4, 60), levels=st.sampled_from([0, 3, 8]))
@quick
def test_delong_is_the_naive_one(seed: int, n: int, levels: int) -> None:
    a, b, positive = two_models(seed, n, levels)
    got = delong(a, b, positive)
    difference, variance = naive_delong(a, b, positive)
    assert got.difference == pytest.approx(difference, abs=1e-12)
    assert got.difference == pytest.approx(roc_auc_score(positive, a) - roc_auc_score(positive, b), abs=1e-12)
    assert got.n == n
    if variance > 1e-12:
        z = difference / np.sqrt(variance)
        assert got.statistic == pytest.approx(z, rel=1e-6, abs=1e-9)
        assert got.p == pytest.approx(2 * stats.norm.sf(abs(z)), abs=1e-9)
        width = 2 * stats.norm.ppf(0.975) * np.sqrt(variance)
        assert got.high - got.low == pytest.approx(width, abs=1e-9) or 1 in (got.high, -got.low)
    mirrored = delong(b, a, positive)
    np.testing.assert_allclose(
        [mirrored.difference, mirrored.low, mirrored.high, mirrored.p],
        [-got.difference, -got.high, -got.low, got.p],
        atol=1e-12,
    )
    # AUROC knows order alone.
    assert delong(np.arctan(a), b, positive).p == pytest.approx(got.p, nan_ok=True)


def test_delong_agrees_with_the_bootstrap() -> None:
    a, b, positive = two_models(0, 400)
    targets = np.stack([~positive, positive], 1)
    exact = delong(a, b, positive)
    drawn = paired_bootstrap_many(*(auroc_of(scores, targets) for scores in (a, b)), range(400), 400)["auroc"]
    assert drawn.difference == pytest.approx(exact.difference, abs=1e-12)
    assert drawn.high - drawn.low == pytest.approx(exact.high - exact.low, rel=0.15)
    assert drawn.p == pytest.approx(exact.p, abs=0.03)


def auroc_of(scores: np.ndarray, targets: np.ndarray) -> Callable[[np.ndarray], Mapping[str, float]]:
    return lambda rows: {"auroc": macro_auroc(np.stack([-scores, scores], 1)[rows], targets[rows]), "extra": 0.0}


def test_delong_keeps_its_level() -> None:
    """Of two equal models 5 % of tests are below 0.05, within four standard errors."""
    found = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        positive = rng.random(120) < 0.4
        hard = positive + rng.normal(size=120)
        found.append(delong(hard + rng.normal(size=120), hard + rng.normal(size=120), positive).p)
    assert np.mean(np.array(found) < 0.05) == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 400))


def test_delong_of_degenerate_cases() -> None:
    same = delong([1, 2, 3, 4, 2], [1, 2, 3, 4, 2], [0, 0, 1, 1, 1])
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)
    parted = delong([1, 2, 3, 4], [0, 0, 0, 0], [0, 0, 1, 1])
    assert parted.difference == 0.5
    assert np.isnan([parted.low, parted.p]).all()
    assert np.isnan(delong([1, 2], [1, 2], [1, 1]).difference)
    single = delong([1, 2, 3], [3, 2, 1], [0, 0, 1])
    assert single.difference == 1
    assert np.isnan(single.p)
    with pytest.raises(ValueError, match="must all be"):
        delong([1, 2], [1, 2, 3], [1, 0])
    with pytest.raises(ValueError, match="finite"):
        delong([1, np.nan], [1, 2], [1, 0])


def test_delong_is_quick() -> None:
    a, b, positive = two_models(0, 200_000)
    start = time.perf_counter()
    delong(a, b, positive)
    # All pairs would be 10^10.
    assert time.perf_counter() - start < 5


def table(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = [both, only_a, only_b, neither]
    return np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts)


@given(both=st.integers(0, 30), only_a=st.integers(0, 40), only_b=st.integers(0, 40), neither=st.integers(1, 30))
@settings(max_examples=100, deadline=None)
def test_mcnemar(both: int, only_a: int, only_b: int, neither: int) -> None:
    got = mcnemar(*table(both, only_a, only_b, neither))
    n, discordant = both + only_a + only_b + neither, only_a + only_b
    assert got.difference == pytest.approx((only_a - only_b) / n)
    assert got.n == n
    if discordant > 25:
        chi2 = max(abs(only_a - only_b) - 1, 0) ** 2 / discordant
        assert (got.statistic, got.p) == pytest.approx((chi2, stats.chi2.sf(chi2, 1)))
        assert "chi-square" in got.test
        assert got.p == pytest.approx(stats.binomtest(only_a, discordant).pvalue, abs=0.02)
    else:
        assert got.p == pytest.approx(stats.binomtest(only_a, discordant).pvalue if discordant else 1, abs=1e-12)
        assert "exact" in got.test
    assert -1 <= got.low < got.high <= 1
    assert got.low <= got.difference <= got.high


def test_the_interval_of_mcnemar_holds_the_truth() -> None:
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(1500):
        got = mcnemar(*table(*rng.multinomial(60, [0.7, 0.15, 0.05, 0.1])))
        inside.append(got.low <= 0.1 <= got.high)
    assert 0.93 < np.mean(inside) < 0.985


def test_mcnemar_of_nothing() -> None:
    assert np.isnan([mcnemar([], []).difference, mcnemar([], []).p]).all()
    with pytest.raises(ValueError, match="must both be"):
        mcnemar([1], [1, 0])


def test_paired_bootstrap_is_the_paired_t_test_of_many_cases() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0.7, 0.1, 300)
    a, b = hard + rng.normal(0.005, 0.03, 300), hard + rng.normal(0, 0.03, 300)
    got = paired_bootstrap(a, b)
    wanted = stats.ttest_rel(a, b)
    low, high = wanted.confidence_interval()
    assert got.difference == pytest.approx((a - b).mean())
    assert (got.low, got.high) == pytest.approx((low, high), abs=0.0008)
    assert got.p == pytest.approx(wanted.pvalue, abs=0.02)
    assert got == paired_bootstrap(a, b)
    assert got != paired_bootstrap(a, b, seed=1)


def test_a_patient_with_many_cases_counts_once() -> None:
    rng = np.random.default_rng(0)
    difference = np.repeat(rng.normal(0.02, 0.1, 30), 10)
    groups = np.repeat(np.arange(30), 10).astype(str).tolist()
    alone, by_subject = (paired_bootstrap(difference, np.zeros(300), g) for g in (None, groups))
    assert by_subject.high - by_subject.low > 2.5 * (alone.high - alone.low)
    assert by_subject.p > alone.p


def test_the_general_form_gives_what_the_quick_one_does() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 40))
    groups = [f"subject{i // 3}" for i in range(40)]
    got = paired_bootstrap_many(
        lambda rows: {"mean": float(a[rows].mean()), "worst": float(a[rows].min())},
        lambda rows: {"mean": float(b[rows].mean()), "other": 0.0},
        groups,
        500,
    )
    assert set(got) == {"mean"}
    quick_one = paired_bootstrap(a, b, groups, 500)
    for name in ("difference", "low", "high", "p", "n"):
        assert getattr(got["mean"], name) == pytest.approx(getattr(quick_one, name), abs=1e-12)


def test_cases_without_a_value_are_left_out() -> None:
    a, b = np.array([0.5, np.nan, 0.7, 0.9, 0.8]), np.array([0.4, 0.3, np.nan, 0.6, 0.6])
    got = paired_bootstrap(a, b)
    assert got.n == 3
    assert got.difference == pytest.approx(0.2)
    # Every resample is above 0: the least p that so many can show.
    assert got.p == pytest.approx(2 / 2001)
    assert paired_bootstrap(a, a).p == 1
    lone = paired_bootstrap(a, b, ["one"] * 5)
    assert lone.difference == pytest.approx(0.2)
    assert np.isnan([lone.low, lone.high, lone.p]).all()
    assert np.isnan([paired_bootstrap([], []).difference, paired_bootstrap([np.nan], [1.0]).p]).all()
    with pytest.raises(ValueError, match="with as many groups"):
        paired_bootstrap([1.0], [1.0], ["a", "b"])


def test_a_comparison_survives_json() -> None:
    for found in (delong(*two_models(0, 20)), mcnemar([1, 0], [1, 1]), paired_bootstrap([1.0], [2.0])):
        plain = json.loads(json.dumps(found.as_dict(), allow_nan=False))
        assert repr(Comparison.from_dict(plain)) == repr(found)
