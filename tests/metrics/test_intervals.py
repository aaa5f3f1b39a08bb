import numpy as np
import pytest

from medray.metrics.classification import summarise
from medray.metrics.intervals import bootstrap


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
