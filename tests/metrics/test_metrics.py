import time
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from medray.metrics.classification import SUMMARY, confusion_matrix, decide, macro_auroc, per_class, summarise
from medray.metrics.curves import calibration_bins, pr_curve, roc_curve, top_label

TOLERANCE = 1e-9
quick = settings(max_examples=25, deadline=None)


def exclusive(seed: int, n: int, k: int, levels: int, missing: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with many ties where `levels` is small, and one-hot targets, in which a class may be missing."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(1, levels + 1, (n, k)).astype(float)
    scores /= scores.sum(1, keepdims=True)
    truth = np.append(np.arange(k - missing), rng.integers(k - missing, size=n - k + missing))
    return scores, np.eye(k)[truth]


def multilabel(seed: int, n: int, k: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, k)) < 0.4).astype(float)
    targets[:2] = [[0.0] * k, [1.0] * k]
    return rng.integers(0, levels + 1, (n, k)) / levels, targets


shapes = {"seed": st.integers(0, 10**6), "n": st.integers(12, 60), "levels": st.sampled_from([2, 5, 1000])}


@given(k=st.integers(3, 6), missing=st.booleans(), **shapes)
@quick
def test_exclusive_parity(seed: int, n: int, k: int, levels: int, missing: bool) -> None:
    scores, targets = exclusive(seed, n, k, levels, missing)
    got = summarise(scores, targets)
    true, picked = targets.argmax(1), scores.argmax(1)
    present = list(range(k - missing))
    macro = {"labels": present, "average": "macro", "zero_division": 0}
    with warnings.catch_warnings():
        # scikit-learn notes that classes were predicted that do not occur.
        warnings.simplefilter("ignore")
        wanted = {
            "accuracy": sk.accuracy_score(true, picked),
            "balanced_accuracy": sk.balanced_accuracy_score(true, picked),
            "precision": sk.precision_score(true, picked, **macro),
            "recall": sk.recall_score(true, picked, **macro),
            "f1": sk.f1_score(true, picked, **macro),
            "specificity": np.mean([sk.recall_score(true != c, picked != c, zero_division=0) for c in range(k)]),
            "auroc": np.mean([sk.roc_auc_score(targets[:, c], scores[:, c]) for c in present]),
            "average_precision": np.mean([sk.average_precision_score(targets[:, c], scores[:, c]) for c in present]),
            "kappa": sk.cohen_kappa_score(true, picked, labels=range(k)),
            "kappa_quadratic": sk.cohen_kappa_score(true, picked, labels=range(k), weights="quadratic"),
            "mcc": sk.matthews_corrcoef(true, picked),
            "brier": sk.brier_score_loss(true, scores, labels=range(k)),
        }
    assert {name: got[name] for name in wanted} == pytest.approx(wanted, abs=TOLERANCE)
    if not missing:
        assert got["auroc"] == pytest.approx(sk.roc_auc_score(true, scores, multi_class="ovr"), abs=TOLERANCE)
    np.testing.assert_array_equal(confusion_matrix(scores, targets), sk.confusion_matrix(true, picked, labels=range(k)))


@given(**shapes)
@quick
def test_binary_parity_is_of_class_one(seed: int, n: int, levels: int) -> None:
    scores, targets = exclusive(seed, n, 2, levels)
    got = summarise(scores, targets)
    true, picked, score = targets.argmax(1), scores.argmax(1), scores[:, 1]
    wanted = {
        "precision": sk.precision_score(true, picked, zero_division=0),
        "recall": sk.recall_score(true, picked),
        "f1": sk.f1_score(true, picked),
        "specificity": sk.recall_score(1 - true, 1 - picked),
        "auroc": sk.roc_auc_score(true, score),
        "average_precision": sk.average_precision_score(true, score),
        "balanced_accuracy": sk.balanced_accuracy_score(true, picked),
        "mcc": sk.matthews_corrcoef(true, picked),
        "brier": sk.brier_score_loss(true, score),
    }
    assert {name: got[name] for name in wanted} == pytest.approx(wanted, abs=TOLERANCE)
    rows = per_class(scores, targets, ["benign", "malignant"])
    assert rows["malignant"]["recall"] == got["recall"]
    assert rows["benign"]["recall"] == got["specificity"]


@given(k=st.integers(1, 5), **shapes)
@quick
def test_multilabel_parity(seed: int, n: int, k: int, levels: int) -> None:
    scores, targets = multilabel(seed, n, k, levels)
    got = summarise(scores, targets, multilabel=True)
    picked = (scores >= 0.5).astype(int)
    labels = [(targets[:, c], picked[:, c]) for c in range(k)]
    macro = {"average": "macro", "zero_division": 0} if k > 1 else {"zero_division": 0}
    wanted = {
        "accuracy": np.mean([sk.accuracy_score(*pair) for pair in labels]),
        "balanced_accuracy": np.mean([sk.balanced_accuracy_score(*pair) for pair in labels]),
        "precision": sk.precision_score(targets, picked, **macro),
        "recall": sk.recall_score(targets, picked, **macro),
        "f1": sk.f1_score(targets, picked, **macro),
        "auroc": sk.roc_auc_score(targets, scores),
        "average_precision": sk.average_precision_score(targets, scores),
        "kappa": np.mean([sk.cohen_kappa_score(*pair) for pair in labels]),
        "mcc": np.mean([sk.matthews_corrcoef(*pair) for pair in labels]),
        "brier": np.mean([sk.brier_score_loss(targets[:, c], scores[:, c]) for c in range(k)]),
    }
    assert {name: got[name] for name in wanted} == pytest.approx(wanted, abs=TOLERANCE)
    assert got["kappa_quadratic"] == pytest.approx(got["kappa"], abs=TOLERANCE)


@given(**shapes)
@quick
def test_curves_are_scikit_learns(seed: int, n: int, levels: int) -> None:
    scores, targets = multilabel(seed, n, 1, levels)
    for ours, theirs in (
        (roc_curve, sk.roc_curve(targets[:, 0], scores[:, 0], drop_intermediate=False)),
        (pr_curve, sk.precision_recall_curve(targets[:, 0], scores[:, 0])),
    ):
        for got, wanted in zip(ours(scores[:, 0], targets[:, 0]), theirs, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-12)


def test_macro_auroc_is_that_of_the_summary() -> None:
    for k in (2, 3):
        scores, targets = exclusive(0, 30, k, 5)
        assert macro_auroc(scores, targets) == summarise(scores, targets)["auroc"]
        assert macro_auroc(scores, targets, multilabel=True) == summarise(scores, targets, multilabel=True)["auroc"]


def test_calibration_by_hand() -> None:
    scores = np.asarray([[0.9, 0.1], [0.9, 0.1], [0.35, 0.65], [0.5, 0.5]])
    targets = np.eye(2)[[0, 1, 1, 1]]
    # Bins of 1/15: both 0.9 share one (half correct), 0.65 is correct, 0.5 is class 0 and wrong.
    assert summarise(scores, targets)["ece"] == pytest.approx((2 * 0.4 + 0.35 + 0.5) / 4)
    mean_confidence, share, count = calibration_bins(*top_label(scores, targets))
    assert count.sum() == 4
    assert np.isnan(share[count == 0]).all()
    assert np.nanmax(mean_confidence) == pytest.approx(0.9)
    # An edge belongs to the bin below it, and 0 to the first.
    assert calibration_bins([0.0, 0.2, 0.21, 1.0], [0, 0, 0, 0], 5)[2].tolist() == [2, 1, 0, 0, 1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ece_is_torchmetrics() -> None:
    import torch
    from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

    rng = np.random.default_rng(0)
    for k in (2, 3, 7):
        scores, true = rng.dirichlet([0.7] * k, 400), rng.integers(k, size=400)
        wanted = multiclass_calibration_error(torch.from_numpy(scores), torch.from_numpy(true), k, n_bins=15)
        assert summarise(scores, np.eye(k)[true])["ece"] == pytest.approx(float(wanted), abs=1e-6)
    scores, targets = rng.random((400, 3)), rng.integers(2, size=(400, 3))
    columns = zip(torch.from_numpy(scores).T, torch.from_numpy(targets).T, strict=True)
    wanted = np.mean([float(binary_calibration_error(*column, n_bins=15)) for column in columns])
    assert summarise(scores, targets, multilabel=True)["ece"] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("many", [False, True])
def test_no_cases_are_all_nan(many: bool) -> None:
    empty = np.zeros((0, 3))
    got = summarise(empty, empty, multilabel=many)
    assert tuple(got) == SUMMARY
    assert np.isnan(list(got.values())).all()
    rows = per_class(empty, empty, "abc", multilabel=many)
    assert all(row.pop("support") == 0 and np.isnan(list(row.values())).all() for row in rows.values())


def test_a_class_that_does_not_occur_is_left_out() -> None:
    scores = np.asarray([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]])
    targets = np.eye(3)[[0, 1, 1]]
    absent = per_class(scores, targets, "abc")["c"]
    assert absent.pop("support") == 0
    assert absent.pop("specificity") == pytest.approx(2 / 3)
    assert np.isnan(list(absent.values())).all()
    got = summarise(scores, targets)
    assert got["auroc"] == 1
    assert got["recall"] == pytest.approx(0.75)


def test_one_class_alone_has_no_auroc_but_an_accuracy() -> None:
    got = summarise([[0.3, 0.7], [0.6, 0.4]], [[0, 1], [0, 1]])
    assert got["accuracy"] == 0.5
    assert np.isnan(got["auroc"])
    assert np.isnan(got["specificity"])
    assert got["mcc"] == 0
    assert np.isnan(summarise([[0.3, 0.7]], [[0, 1]])["kappa"])


def test_thresholds_decide_labels() -> None:
    scores, targets = np.asarray([[0.3, 0.6], [0.2, 0.9]]), np.asarray([[1, 0], [0, 1]])
    assert decide(scores, True, [0.3, 0.7]).tolist() == [[True, False], [False, True]]
    assert summarise(scores, targets, True, [0.3, 0.7])["accuracy"] == 1
    assert per_class(scores, targets, "ab", True, [0.3, 0.7])["b"]["precision"] == 1
    assert decide([[0.4, 0.4, 0.2]]).tolist() == [[True, False, False]]


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        ([[0.5, 0.5]], [[1, 0, 0]], "both be"),
        ([0.5, 0.5], [1, 0], "both be"),
        ([[np.nan, 0.5], [0.5, 0.5]], [[1, 0], [1, 0]], "1 of 2 cases have scores that are not finite"),
        ([[0.5, 0.5]], [[0.7, 0.3]], "must be 0 or 1"),
        ([[0.5, 0.5]], [[1, 1]], "exactly one true class"),
    ],
)
def test_bad_arrays_are_refused(scores: list[object], targets: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summarise(scores, targets)


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="3 classes were named"):
        per_class([[0.5, 0.5]], [[1, 0]], "abc")
    with pytest.raises(ValueError, match="thresholds are for multi-label"):
        decide([[0.5, 0.5]], thresholds=[0.5, 0.5])


def test_a_hundred_thousand_cases_are_quick() -> None:
    rng = np.random.default_rng(0)
    scores, targets = rng.dirichlet([1] * 3, 100_000), np.eye(3)[rng.integers(3, size=100_000)]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        summarise(scores, targets)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1  # about 0.1 s on an idle core; the bound only catches a change of complexity
