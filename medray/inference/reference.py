"""How far an embedding lies from those of the training: a Gaussian of few numbers, and the distance that is far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from medray.types import Array

COMPONENTS = 32
CASES_PER_COMPONENT = 5
"""A principal component of fewer cases is chance."""
QUANTILE = 0.99
ENOUGH_VALIDATION = 100
"""Of fewer new cases the 99 % quantile is the largest distance: training cases that were held out count too."""
FOLDS = 10
"""Training cases are held out in tenths."""


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Mean and covariance of embeddings: components with a variance each, and one variance for the rest."""

    mean: Array
    """(F,)"""
    components: Array
    """(k, F) orthonormal."""
    variances: Array
    """(k,)"""
    rest: float
    threshold: float
    """Distances above this are farther than QUANTILE of new cases."""
    cases: int
    validation_cases: int

    def distances(self, embeddings: Array) -> Array:
        """(N,) Mahalanobis distances of embeddings (N, F)."""
        away = embeddings - self.mean
        along = away @ self.components.T
        beside = np.maximum((away**2).sum(1) - (along**2).sum(1), 0)
        return np.asarray(np.sqrt((along**2 / self.variances).sum(1) + beside / self.rest))

    def as_dict(self) -> dict[str, Any]:
        """What is no array, as plain JSON."""
        return {
            "threshold": self.threshold,
            "rest": self.rest,
            "features": len(self.mean),
            "components": len(self.variances),
            "cases": self.cases,
            "validation_cases": self.validation_cases,
        }

    def arrays(self) -> dict[str, Array]:
        """The arrays."""
        return {"mean": self.mean, "components": self.components, "variances": self.variances}

    @staticmethod
    def from_parts(plain: Mapping[str, Any], arrays: Mapping[str, Array]) -> Reference:
        """The reference of what `as_dict` and `arrays` gave.

        Raises:
            KeyError, ValueError: they do not fit together.
        """
        kept, features = plain["components"], plain["features"]
        shapes: dict[str, tuple[int, ...]]
        shapes = {"mean": (features,), "components": (kept, features), "variances": (kept,)}
        for name, shape in shapes.items():
            if arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
                raise ValueError(f"{name} must be finite and of shape {shape}, is {arrays[name].shape}")
        numbers = (float(plain["rest"]), float(plain["threshold"]))
        if min(*numbers, *arrays["variances"].tolist()) <= 0:
            raise ValueError("variances and threshold must be above 0")
        held = (arrays["mean"], arrays["components"], arrays["variances"])
        return Reference(*held, *numbers, plain["cases"], plain["validation_cases"])


def fit_reference(train: Array, val: Array | None = None) -> Reference | None:
    """The reference of embeddings (N, F); None where they are all alike, or not finite.

    The threshold is the 99 % quantile of the distances of `val` (M, F); of fewer than ENOUGH_VALIDATION the larger
    one of theirs and of training cases' own, each tenth measured by the other nine.
    """
    val = np.empty((0, train.shape[1])) if val is None else val
    # A feature that is 0 in every case has a variance of rounding errors; so has a network that has collapsed.
    if not (np.isfinite(train).all() and np.isfinite(val).all()) or train.var(0).sum() < 1e-12:
        return None
    train, val = train.astype(np.float64), val.astype(np.float64)
    fitted = _gaussian(train, 1.0, len(val))
    far = [np.quantile(fitted.distances(val), QUANTILE)] if len(val) else []
    if len(val) < ENOUGH_VALIDATION:
        fold = np.arange(len(train)) % FOLDS
        held = [_gaussian(train[fold != part], 1.0, 0).distances(train[fold == part]) for part in range(FOLDS)]
        far.append(np.quantile(np.concatenate(held), QUANTILE))
    return _gaussian(train, float(max(far)), len(val))


def _gaussian(train: Array, threshold: float, validation_cases: int) -> Reference:
    from sklearn.covariance import ledoit_wolf_shrinkage

    cases, features = train.shape
    mean = train.mean(0)
    away = train - mean
    shrinkage = float(ledoit_wolf_shrinkage(away, assume_centered=True))
    total = float((away**2).sum()) / cases
    kept = min(COMPONENTS, features, cases // CASES_PER_COMPONENT)
    _, singular, axes = np.linalg.svd(away, full_matrices=False)
    found = singular[:kept] ** 2 / cases
    alike = shrinkage * total / features
    left = max(total - float(found.sum()), 0.0) / max(features - kept, 1)
    floor = 1e-9 * total  # a direction in which no case differs must not make a rounding error far
    return Reference(
        mean=mean.astype(np.float32),
        components=axes[:kept].astype(np.float32),
        variances=np.maximum((1 - shrinkage) * found + alike, floor).astype(np.float32),
        rest=max((1 - shrinkage) * left + alike, floor),
        threshold=threshold,
        cases=cases,
        validation_cases=validation_cases,
    )
