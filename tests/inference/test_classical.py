"""Classical heads: scikit-learn's probabilities without scikit-learn, out of files that cannot do harm."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medray.bundle import BundleError
from medray.config import ConfigError
from medray.inference import fitting
from medray.inference.classical import HEAD_FILES, KINDS, Head, Kind, head_from_bytes, head_to_bytes, scores
from medray.inference.fitting import GRIDS, Examples, check_kinds, fit
from medray.metrics.classification import macro_auroc
from medray.types import Array

CASES = [(kind, number) for kind in KINDS for number in range(len(GRIDS[kind]))]


def examples(seed: int, classes: int, cases: int = 60, features: int = 5, offset: float = 1.5) -> Examples:
    """Clouds of float32 features around a centre for each class; the features have very different sizes."""
    draw = np.random.default_rng(seed)
    labels = np.arange(cases) % classes
    centres = draw.normal(0, offset, (classes, features))
    x = (centres[labels] + draw.normal(0, 1, (cases, features))) * 10.0 ** draw.uniform(-3, 3, features)
    x[:, -1] = 7.0  # a dead unit
    return Examples(x.astype(np.float32), np.eye(classes)[labels], tuple(str(row // 2) for row in range(cases)))


def reference(kind: Kind, wanted: dict[str, Any], train: Examples, labels: Array, seed: int) -> Any:
    """scikit-learn's own classifier, with its own scaling: features (N, F) -> probabilities (N, K)."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.tree import DecisionTreeClassifier

    made: Any
    if kind in ("tree", "forest"):
        made = DecisionTreeClassifier if kind == "tree" else RandomForestClassifier
        return made(**wanted, random_state=seed).fit(train.features, labels).predict_proba
    scaler = StandardScaler().fit(train.features.astype(np.float64))
    x = scaler.transform(train.features.astype(np.float64))
    if kind == "softmax":
        made = fitting._softmax(wanted)
    elif kind == "svm":
        made = fitting._svm(wanted, x, labels, train.subjects, seed)
    else:
        made = KNeighborsClassifier(**wanted, algorithm="brute")
    return make_pipeline(scaler, made.fit(x, labels)).predict_proba


@pytest.mark.parametrize(("kind", "number"), CASES)
@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 4))
def test_probabilities_are_those_of_scikit_learn(kind: Kind, number: int, seed: int, classes: int) -> None:
    train, other = examples(seed, classes), examples(seed + 1, classes, cases=30)
    wanted = dict(GRIDS[kind][number])
    if kind == "forest":
        wanted["n_estimators"] = 20
    labels = train.targets.argmax(1)
    part = fitting._fit_part(kind, wanted, train, labels, seed=3)
    head = Head(kind, train.features.shape[1], classes, (part,))
    predict = reference(kind, wanted, train, labels, seed=3)
    for x in (other.features, train.features):
        found = scores(head, x)
        np.testing.assert_allclose(found, predict(x.astype(np.float64)), atol=1e-6)
        np.testing.assert_allclose(found.sum(1), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_files_give_the_same_head_and_the_same_bytes(kind: Kind) -> None:
    train = examples(0, 3)
    fitted = fit(kind, train, examples(0, 3, cases=20), macro_auroc)
    files = head_to_bytes(fitted.head)
    again = head_from_bytes(files)
    assert tuple(files) == HEAD_FILES
    assert head_to_bytes(again) == files
    np.testing.assert_array_equal(scores(again, train.features), scores(fitted.head, train.features))
    assert again.settings in [dict(wanted) for wanted in GRIDS[kind]]
    assert json.loads(files["head.json"])["kind"] == kind


@pytest.mark.parametrize("kind", KINDS)
def test_multilabel_is_one_classifier_a_label(kind: Kind) -> None:
    train = examples(2, 2, cases=80)
    flipped = train.targets[:, ::-1]
    both = Examples(train.features, np.concatenate([train.targets[:, 1:], flipped[:, 1:]], 1), train.subjects)
    head = fit(kind, both, both, lambda s, t: macro_auroc(s, t, multilabel=True), multilabel=True).head
    found = scores(head, train.features)
    assert found.shape == (80, 2)
    assert macro_auroc(found, both.targets, multilabel=True) > 0.9
    np.testing.assert_array_equal(scores(head_from_bytes(head_to_bytes(head)), train.features), found)


def test_settings_are_chosen_on_val_and_not_on_train() -> None:
    """One neighbour is perfect on train; where labels of val are those of the cloud, more are better."""
    train = examples(1, 2, cases=200, offset=0.7)
    val = examples(1, 2, cases=200, offset=0.7)
    draw = np.random.default_rng(5)
    noisy = np.where(draw.random(200) < 0.3, 1 - train.targets[:, 1], train.targets[:, 1])
    train = Examples(train.features, np.stack([1 - noisy, noisy], 1), train.subjects)
    x = val.features + (draw.normal(0, 0.5, val.features.shape) * val.features.std(0)).astype(np.float32)
    best = fit("knn", train, Examples(x, val.targets, val.subjects), macro_auroc)
    assert best.head.settings["n_neighbors"] > 1
    assert best.score == pytest.approx(macro_auroc(scores(best.head, x), val.targets))


@pytest.mark.parametrize("kind", KINDS)
def test_only_heads_with_cases_in_them_say_so(kind: Kind) -> None:
    train = examples(0, 3)
    for wanted in GRIDS[kind]:
        head = Head(kind, 5, 3, (fitting._fit_part(kind, wanted, train, train.targets.argmax(1), 0),))
        assert head.keeps_cases == (kind == "knn" or wanted.get("kernel") == "rbf")


def broken(kind: Kind, name: str, value: Array) -> dict[str, bytes]:
    """Files of a head with one array replaced."""
    train = examples(0, 3)
    files = head_to_bytes(fit(kind, train, train, macro_auroc).head)
    with np.load(io.BytesIO(files["head.npz"]), allow_pickle=False) as arrays:
        named = {key: arrays[key] for key in arrays.files}
    named[f"0.{name}"] = value
    target = io.BytesIO()
    np.savez(target, **named)
    return {**files, "head.npz": target.getvalue()}


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("softmax", "coef", np.zeros((4, 3))),
        ("softmax", "coef", np.full((5, 3), np.nan)),
        ("softmax", "coef", np.zeros((5, 3), np.float32)),
        ("softmax", "other", np.zeros(3)),
        ("tree", "roots", np.array([10**6], np.int32)),
        ("tree", "roots", np.zeros(0, np.int32)),
        ("knn", "neighbours", np.array(0, np.int32)),
        ("knn", "neighbours", np.array(61, np.int32)),
        ("knn", "targets", np.array([object()])),
    ],
)
def test_a_broken_head_is_refused(kind: Kind, name: str, value: Array) -> None:
    with pytest.raises(BundleError, match=r"head\.npz cannot be used"):
        head_from_bytes(broken(kind, name, value))


@pytest.mark.parametrize(("name", "value"), [("left", 0), ("right", 10**6), ("feature", 5)])
def test_a_tree_that_never_ends_or_leaves_its_arrays_is_refused(name: str, value: int) -> None:
    train = examples(0, 3)
    part = fitting._fit_part("tree", {"max_depth": 3}, train, train.targets.argmax(1), 0)
    array = part[name].copy()
    array[0] = value
    with pytest.raises(ValueError, match="tree"):
        Head("tree", 5, 3, ({**part, name: array},))


def test_files_that_are_no_head() -> None:
    files = head_to_bytes(fit("softmax", examples(0, 2), examples(0, 2), macro_auroc).head)
    for wrong in ({}, {**files, "head.json": b"{}"}, {**files, "head.json": b"\xff"}, {**files, "head.npz": b"PK"}):
        with pytest.raises(BundleError):
            head_from_bytes(wrong)
    with pytest.raises(ValueError, match="takes"):
        scores(head_from_bytes(files), np.zeros((2, 4), np.float32))


def test_what_cannot_be_fitted_is_said() -> None:
    train = examples(0, 3)
    lonely = Examples(train.features, np.pad(train.targets, ((0, 0), (0, 1))), train.subjects)
    with pytest.raises(ConfigError, match="no case"):
        fit("softmax", lonely, lonely, macro_auroc)
    together = Examples(train.features, train.targets, ("same",) * 60)
    with pytest.raises(ConfigError, match="--fit svm"):
        fit("svm", together, together, macro_auroc)
    with pytest.raises(ConfigError, match="did you mean 'forest'"):
        check_kinds(["forrest"])
    assert check_kinds(["knn", "softmax"]) == ("softmax", "knn")


def test_answering_imports_neither_scikit_learn_nor_pickle_readers() -> None:
    code = "import sys, medray.inference.classical; sys.exit('sklearn' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
