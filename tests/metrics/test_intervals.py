from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from medray.metrics import intervals
from medray.metrics.classification import macro_auroc, summarise
from medray.metrics.intervals import (
    bootstrap,
    bootstrap_many,
    bootstrap_means,
    resampled_means,
    resampled_rows,
    wilson,
)


def accuracy(scores: np.ndarray, targets: np.ndarray) -> float:
    return float((scores == targets).mean())


def test_the_interval_of_a_share_is_the_binomial_one() -> None:
    scores = np.repeat([1, 0], [80, 20])
    low, high = bootstrap(accuracy, scores, np.ones(100), samples=2000)
    # 0.8 +- 1.96 sqrt(0.8 * 0.2 / 100)
    assert (low, high) == pytest.approx((0.8 - 0.0784, 0.8 + 0.0784), abs=0.015)
    assert bootstrap(accuracy, scores, np.ones(100), samples=2000) == (low, high)
    assert bootstrap(accuracy, scores, np.ones(100), samples=2000, seed=1) != (low, high)
    narrow = bootstrap(accuracy, scores, np.ones(100), level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_subjects_are_drawn_whole() -> None:
    scores = np.arange(12)
    groups = [f"subject{i % 4}" for i in range(12)]
    seen: list[np.ndarray] = []

    def spy(rows: np.ndarray, targets: np.ndarray) -> float:
        np.testing.assert_array_equal(rows, targets)
        seen.append(rows)
        return float(rows.mean())

    bootstrap(spy, scores, scores, groups, samples=50)
    for rows in seen:
        assert len(rows) == 12
        drawn = np.bincount(rows, minlength=12).reshape(3, 4)
        assert (drawn == drawn[0]).all()
    assert len({tuple(rows) for rows in seen}) > 30


def test_cases_of_one_subject_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    right = np.repeat(rng.random(40) < 0.7, 10).astype(float)
    groups = np.repeat(np.arange(40), 10).astype(str).tolist()
    alone = bootstrap(accuracy, right, np.ones(400))
    by_subject = bootstrap(accuracy, right, np.ones(400), groups)
    assert by_subject[1] - by_subject[0] > 2 * (alone[1] - alone[0])


def test_unequal_subjects() -> None:
    groups = ["a", "b", "b", "c", "c", "c"]
    sizes = set()

    def size(rows: np.ndarray, _: np.ndarray) -> float:
        sizes.add(len(rows))
        return float(len(rows))

    assert bootstrap(size, np.arange(6), np.arange(6), groups, level=0.999) == (3, 9)
    assert sizes == {3, 4, 5, 6, 7, 8, 9}


def test_undefined_resamples_are_left_out() -> None:
    scores, targets = np.asarray([[0.2, 0.8], [0.7, 0.3], [0.6, 0.4]]), np.eye(2)[[1, 0, 0]]

    def auroc(some_scores: np.ndarray, some_targets: np.ndarray) -> float:
        return summarise(some_scores, some_targets)["auroc"]

    assert bootstrap(auroc, scores, targets, samples=40) == (1, 1)
    assert np.isnan(bootstrap(auroc, scores[1:], targets[1:], samples=10)).all()
    assert np.isnan(bootstrap(auroc, scores[:0], targets[:0])).all()


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="as many targets and groups"):
        bootstrap(accuracy, np.ones(3), np.ones(3), ["a"])
    with pytest.raises(ValueError, match="level must be between"):
        bootstrap(accuracy, np.ones(3), np.ones(3), level=95)


def naive_rows(groups: Sequence[str] | Sequence[int], samples: int, seed: int) -> list[np.ndarray]:
    """What the resamples are, in the plainest words."""
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    generator = np.random.default_rng(seed)
    draws = [generator.integers(len(names), size=len(names)) for _ in range(samples)]
    return [np.concatenate([np.flatnonzero(member == subject) for subject in drawn]) for drawn in draws]


@given(
    groups=st.one_of(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=20), st.integers(1, 20).map(range)),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_resamples_and_their_means_are_the_naive_ones(groups: Sequence[str], seed: int) -> None:
    wanted = naive_rows(groups, 20, seed)
    for rows, naive in zip(resampled_rows(groups, 20, seed), wanted, strict=True):
        np.testing.assert_array_equal(rows, naive)
    values = np.random.default_rng(seed).normal(size=(len(groups), 3))
    values[:: 2 + seed % 3, 1] = np.nan
    values[:, 2] = np.nan
    means = resampled_means(values, groups, 20, seed)
    for mean, rows in zip(means, wanted, strict=True):
        left = values[rows, 1][~np.isnan(values[rows, 1])]
        assert mean[0] == pytest.approx(values[rows, 0].mean(), abs=1e-12)
        assert mean[1] == pytest.approx(left.mean() if len(left) else np.nan, abs=1e-12, nan_ok=True)
    assert np.isnan(means[:, 2]).all()


def test_many_draws_come_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(50, 2))
    whole = resampled_means(values, range(50), 100)
    monkeypatch.setattr(intervals, "CHUNK", 333)
    np.testing.assert_allclose(resampled_means(values, range(50), 100), whole, atol=1e-15)


def test_many_figures_have_the_intervals_they_have_alone() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(2, size=80)
    scores = 1 / (1 + np.exp(-(truth + rng.normal(size=80))))
    scores, targets = np.stack([1 - scores, scores], 1), np.eye(2)[truth]
    groups = [f"subject{i // 3}" for i in range(80)]
    right = scores.argmax(1) == truth

    def statistic(rows: np.ndarray) -> dict[str, float]:
        return {"auroc": macro_auroc(scores[rows], targets[rows]), "accuracy": float(right[rows].mean())}

    found = bootstrap_many(statistic, groups, samples=200, seed=3)
    assert found["auroc"] == bootstrap(macro_auroc, scores, targets, groups, samples=200, seed=3)
    means = bootstrap_means({"accuracy": right, "other": scores[:, 1]}, groups, samples=200, seed=3)
    assert means["accuracy"] == pytest.approx(found["accuracy"], abs=1e-12)
    assert list(means) == ["accuracy", "other"]
    assert np.isnan(bootstrap_many(lambda rows: {"n": float(len(rows))}, [])["n"]).all()
    assert np.isnan(bootstrap_means({"dice": []}, [])["dice"]).all()
    assert bootstrap_means({}, groups) == {}


@given(n=st.integers(1, 200), share=st.floats(0, 1), level=st.sampled_from([0.8, 0.95, 0.99]))
@settings(max_examples=50, deadline=None)
def test_wilson_is_that_of_scipy(n: int, share: float, level: float) -> None:
    hits = round(share * n)
    low, high = wilson(hits, n, level)
    wanted = binomtest(hits, n).proportion_ci(level, "wilson")
    assert (low, high) == pytest.approx((wanted.low, wanted.high), abs=1e-9)
    assert 0 <= low <= hits / n <= high <= 1
    assert low < high


def test_misuse_of_resamples_is_refused() -> None:
    with pytest.raises(ValueError, match="samples must be"):
        resampled_means(np.ones((2, 1)), range(2), 0)
    with pytest.raises(ValueError, match="group each"):
        resampled_means(np.ones((2, 1)), range(3))
    with pytest.raises(ValueError, match="no mean"):
        bootstrap_means({"distance": [1, np.inf]}, range(2))
    with pytest.raises(ValueError, match="0 <= hits <= n"):
        wilson(3, 2)
    assert np.isnan(wilson(0, 0)).all()
