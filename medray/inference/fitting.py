"""Classical classifiers fitted to features with scikit-learn, and turned into heads that need none of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from medray.config import ConfigError, nearest
from medray.inference.classical import KINDS, Head, Kind, scores
from medray.types import Array

Settings = Mapping[str, Any]
Metric = Callable[[Array, Array], float]
"""Scores (N, K) and targets (N, K) -> a number, more is better."""


def _grid(**values: Sequence[Any]) -> tuple[Settings, ...]:
    """Every combination."""
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in product(*values.values()))


GRIDS: Mapping[Kind, tuple[Settings, ...]] = {
    "softmax": _grid(C=(0.001, 0.01, 0.1, 1.0)),
    "svm": (*_grid(kernel=("linear",), C=(0.001, 0.01, 0.1)), *_grid(kernel=("rbf",), C=(1.0, 10.0))),
    "tree": _grid(max_depth=(3, 5, 10), min_samples_leaf=(1, 10)),
    "forest": _grid(n_estimators=(200,), min_samples_leaf=(1, 5)),
    "knn": _grid(n_neighbors=(1, 5, 15, 31), weights=("uniform", "distance")),
}
"""What is tried on the validation cases; names and meaning are scikit-learn's. Of equals the first is taken."""
CALIBRATION_FOLDS = 3
ITERATIONS = 2000


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Cases to fit to, or to choose on."""

    features: Array
    """(N, F) float32."""
    targets: Array
    """(N, K), 0 or 1."""
    subjects: tuple[str, ...]
    """Whose each case is: no one is on both sides of a fold."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """The best of a grid."""

    head: Head
    score: float
    """The metric on the cases that it was chosen on."""


def check_kinds(names: Sequence[str]) -> tuple[Kind, ...]:
    """The classifiers of these names.

    Raises:
        ConfigError: naming what there is.
    """
    wrong = [name for name in names if name not in KINDS]
    if wrong or not names:
        near = nearest(wrong[0], KINDS) if wrong else ""
        raise ConfigError([f"--fit: no classifier '{', '.join(wrong)}'{near}; there are: {', '.join(KINDS)}"])
    return tuple(kind for kind in KINDS if kind in names)


def fit(kind: Kind, train: Examples, val: Examples, metric: Metric, multilabel: bool = False, seed: int = 0) -> Fitted:
    """The classifier of `kind` whose settings, of GRIDS, have the best metric on `val`; it sees no targets of `val`.

    Raises:
        ConfigError: a class without a case in train, or too few subjects of one.
    """
    _check_classes(train, multilabel)
    best: Fitted | None = None
    for settings in GRIDS[kind]:
        if settings.get("n_neighbors", 1) > len(train.features):
            continue
        columns = [np.stack([1 - t, t], 1) for t in train.targets.T] if multilabel else [train.targets]
        parts = tuple(_fit_part(kind, settings, train, targets.argmax(1), seed) for targets in columns)
        head = Head(kind, train.features.shape[1], train.targets.shape[1], parts, multilabel, settings)
        score = metric(scores(head, val.features), val.targets)
        if best is None or score > best.score:
            best = Fitted(head, score)
    if best is None:
        raise ValueError(f"no settings of {kind} fit {len(train.features)} cases")
    return best


def _check_classes(train: Examples, multilabel: bool) -> None:
    held = train.targets.sum(0)
    absent = [index for index, count in enumerate(held) if count == 0 or (multilabel and count == len(train.targets))]
    if absent:
        raise ConfigError(
            [f"--fit: in train, {len(absent)} of {len(held)} classes have no case or no other; nothing is learnt"]
        )


def _fit_part(kind: Kind, settings: Settings, train: Examples, labels: Array, seed: int) -> dict[str, Array]:
    """Arrays of one classifier of classes that exclude each other."""
    if kind in ("tree", "forest"):
        return _fit_trees(kind, settings, train.features, labels, seed)
    x = train.features.astype(np.float64)
    deviation = x.std(0)
    scaling = {"mean": x.mean(0), "scale": np.where(deviation > 0, deviation, 1.0)}
    x = (x - scaling["mean"]) / scaling["scale"]
    if kind == "softmax":
        return scaling | softmax_arrays(_softmax(settings).fit(x, labels))
    if kind == "svm":
        return scaling | svm_arrays(_svm(settings, x, labels, train.subjects, seed).fit(x, labels))
    return scaling | knn_arrays(x, labels, settings)


def _softmax(settings: Settings) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(**settings, max_iter=ITERATIONS)


def softmax_arrays(fitted: Any) -> dict[str, Array]:
    """Of a fitted LogisticRegression; with two classes it holds the second one's alone."""
    coef, intercept = fitted.coef_.T, fitted.intercept_
    if coef.shape[1] == 1:
        coef, intercept = np.pad(coef, ((0, 0), (1, 0))), np.pad(intercept, (1, 0))
    return {"coef": np.ascontiguousarray(coef, np.float64), "intercept": np.asarray(intercept, np.float64)}


def _svm(settings: Settings, x: Array, labels: Array, subjects: Sequence[str], seed: int) -> Any:
    """An SVC on all cases; its sigmoids are fitted to decisions on folds that it had not seen."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.svm import SVC

    classes = np.unique(labels)
    owners = np.array(subjects)
    parts: list[tuple[Array, Array]] = []
    if min(len(np.unique(owners[labels == label])) for label in classes) >= CALIBRATION_FOLDS:
        folds = StratifiedGroupKFold(CALIBRATION_FOLDS, shuffle=True, random_state=seed)
        parts = list(folds.split(x, labels, owners))
    if not parts or any(len(np.unique(labels[inside])) < len(classes) for inside, _ in parts):
        fact = f"a class has too few subjects in train for {CALIBRATION_FOLDS} folds"
        raise ConfigError([f"--fit svm: {fact}; leave svm out"])
    svc = SVC(**settings, gamma=1 / x.shape[1])
    return CalibratedClassifierCV(svc, cv=parts, ensemble=False)


def svm_arrays(fitted: Any) -> dict[str, Array]:
    """Of a CalibratedClassifierCV, not an ensemble, around an SVC with a linear or an RBF kernel."""
    (calibrated,) = fitted.calibrated_classifiers_
    svc = calibrated.estimator
    arrays = {
        "intercept": svc.intercept_,
        # scikit-learn's sigmoid is 1 / (1 + exp(a * decision + b)).
        "slope": -np.array([sigmoid.a_ for sigmoid in calibrated.calibrators]),
        "offset": -np.array([sigmoid.b_ for sigmoid in calibrated.calibrators]),
    }
    if svc.kernel == "linear":
        arrays["coef"] = svc.coef_.T
    else:
        arrays |= {"vectors": svc.support_vectors_, "pairs": _by_pairs(svc), "gamma": np.array(svc.gamma)}
    return {name: np.array(array, np.float64, order="C") for name, array in arrays.items()}


def _by_pairs(svc: Any) -> Array:
    """(M, P) weight of each support vector in the decision between each two classes, from libsvm's packed rows."""
    classes = len(svc.n_support_)
    of = np.repeat(np.arange(classes), svc.n_support_)
    pairs = np.zeros((len(of), classes * (classes - 1) // 2))
    for column, (first, second) in enumerate(zip(*np.triu_indices(classes, 1), strict=True)):
        pairs[of == first, column] = svc.dual_coef_[second - 1, of == first]
        pairs[of == second, column] = svc.dual_coef_[first, of == second]
    return pairs


def _fit_trees(kind: Kind, settings: Settings, features: Array, labels: Array, seed: int) -> dict[str, Array]:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.tree import DecisionTreeClassifier

    if kind == "tree":
        return tree_arrays([DecisionTreeClassifier(**settings, random_state=seed).fit(features, labels)])
    return tree_arrays(RandomForestClassifier(**settings, random_state=seed).fit(features, labels).estimators_)


def tree_arrays(fitted: Sequence[Any]) -> dict[str, Array]:
    """Of fitted DecisionTreeClassifiers, their nodes behind each other; a leaf's child is -1."""
    trees = [tree.tree_ for tree in fitted]
    roots = np.cumsum([0, *(tree.node_count for tree in trees[:-1])])
    joined: dict[str, Array] = {"roots": roots.astype(np.int32)}
    for name, side in (("left", "children_left"), ("right", "children_right")):
        moved = [
            np.where(getattr(tree, side) < 0, -1, getattr(tree, side) + root)
            for tree, root in zip(trees, roots, strict=True)
        ]
        joined[name] = np.concatenate(moved).astype(np.int32)
    value = np.concatenate([tree.value[:, 0] for tree in trees])
    joined["feature"] = np.concatenate([tree.feature for tree in trees]).astype(np.int32)
    joined["threshold"] = np.concatenate([tree.threshold for tree in trees]).astype(np.float64)
    joined["value"] = np.ascontiguousarray(value / value.sum(1, keepdims=True), np.float64)
    return joined


def knn_arrays(x: Array, labels: Array, settings: Settings) -> dict[str, Array]:
    """Of all cases: there is nothing to fit."""
    return {
        "reference": np.ascontiguousarray(x, np.float64),
        "targets": np.eye(int(labels.max()) + 1)[labels],
        "neighbours": np.array(settings["n_neighbors"], np.int32),
        "by_distance": np.array(settings["weights"] == "distance", np.int32),
    }
