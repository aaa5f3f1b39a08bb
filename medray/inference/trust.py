"""What a bundle says of its own answers: fitted on the validation cases, kept in the card, applied to every answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medray.config import ConfigError, nearest
from medray.metrics.operating import OperatingPoint, at_sensitivity, at_specificity
from medray.metrics.trust import (
    COLDEST,
    HOTTEST,
    Conformal,
    ConformalInterval,
    apply_temperature,
    conformal_set,
    fit_conformal,
    fit_conformal_interval,
    fit_temperature,
)
from medray.sections.trust import OperatingRule, TrustSection
from medray.tasks.task import Task
from medray.types import Array, Prediction

FEWEST_CASES = 20
"""Of a validation set that a temperature is fitted on: fewer say nothing."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What becomes of a model's probabilities before they are an answer; by default nothing."""

    classes: tuple[str, ...] = ()
    multilabel: bool = False
    temperature: float = 1.0
    conformal: Conformal | None = None
    interval: ConformalInterval | None = None
    """Of a regression: where the true number lies."""
    points: tuple[tuple[str, OperatingPoint], ...] = ()
    """(class that is called positive, its threshold), on calibrated probabilities."""

    @staticmethod
    def of(card: Mapping[str, Any]) -> Trust:
        """What a bundle's card says."""
        plain = card.get("trust") or {}
        conformal, interval = plain.get("conformal"), plain.get("interval")
        points = plain.get("operating_points", ())
        return Trust(
            tuple(card["classes"]),
            bool(card["multilabel"]),
            float(plain.get("temperature", 1.0)),
            None if conformal is None else Conformal.from_dict(conformal),
            None if interval is None else ConformalInterval.from_dict(interval),
            tuple((p["of"], OperatingPoint.from_dict({k: v for k, v in p.items() if k != "of"})) for p in points),
        )

    def as_dict(self) -> dict[str, Any]:
        """What the card keeps, as plain JSON."""
        points = [{"of": name, **point.as_dict()} for name, point in self.points]
        conformal = None if self.conformal is None else self.conformal.as_dict()
        interval = None if self.interval is None else self.interval.as_dict()
        plain = {"temperature": self.temperature, "conformal": conformal, "interval": interval}
        return {**plain, "operating_points": points}

    def calibrated(self, scores: Array) -> Array:
        """(N, K) honest probabilities of raw ones (N, K)."""
        if self.temperature == 1.0:
            return scores
        return np.asarray(apply_temperature(scores, self.temperature, self.multilabel), scores.dtype)

    def applied(self, task: Task, case_id: str, scores: Array, warnings: tuple[str, ...]) -> Prediction:
        """The answer for one case from the network's probabilities (K,)."""
        calibrated = self.calibrated(scores[None])
        answer = task.decode(case_id, calibrated[0], warnings)
        if self.temperature != 1.0:
            answer = replace(answer, uncalibrated=scores)
        if self.interval is not None:
            low, high = self.interval.around(answer.scores)
            ends = zip(self.classes, low.tolist(), high.tolist(), strict=True)
            return replace(answer, intervals={name: (one, other) for name, one, other in ends})
        if self.points:
            answer = replace(answer, labels=self._decided(calibrated[0], answer.labels))
        if self.conformal is not None:
            held = conformal_set(calibrated, self.conformal)[0]
            names = tuple(name for name, inside in zip(self.classes, held.tolist(), strict=True) if inside)
            answer = replace(answer, conformal_set=names)
        return answer

    def _decided(self, scores: Array, labels: tuple[str, ...]) -> tuple[str, ...]:
        """The classes that the first operating point of each picks; without one as the task decided.

        Of more than two exclusive classes the likeliest stays the answer: a threshold of one does not say which other.
        """
        first: dict[str, float] = {}
        for name, point in self.points:
            first.setdefault(name, point.threshold)
        by_name = dict(zip(self.classes, scores.tolist(), strict=True))
        if self.multilabel:
            said = {name: by_name[name] >= first[name] if name in first else name in labels for name in self.classes}
            return tuple(name for name, there in said.items() if there)
        if len(self.classes) == 2:
            name, threshold = next(iter(first.items()))
            (other,) = (one for one in self.classes if one != name)
            return (name,) if by_name[name] >= threshold else (other,)
        return labels


def fit(cfg: TrustSection, classes: Sequence[str], multilabel: bool, scores: Array, targets: Array) -> Trust:
    """What the validation cases say of the network's probabilities.

    Args:
        cfg: what is asked for.
        classes: in the order of the columns.
        multilabel: whether classes may come together.
        scores: (N, K) raw probabilities of the validation cases.
        targets: (N, K) 0 or 1.

    Raises:
        ConfigError: see `check_rules`.
    """
    check_rules(cfg, classes, targets)
    enough = len(scores) >= FEWEST_CASES and (multilabel or targets.any(0).sum() > 1)
    temperature = fit_temperature(scores, targets, multilabel) if cfg.temperature and enough else 1.0
    if not 1.1 * COLDEST < temperature < HOTTEST / 1.1:
        temperature = 1.0  # the cases do not say where to stop
    trust = Trust(tuple(classes), multilabel, temperature)
    honest = trust.calibrated(scores)
    conformal = None
    if cfg.conformal_alpha is not None and len(scores):
        per_class = cfg.per_class or multilabel
        conformal = fit_conformal(honest, targets, cfg.conformal_alpha, per_class, multilabel=multilabel)
    points = tuple((rule.of, _point(rule, honest, targets, classes)) for rule in cfg.operating_points)
    return replace(trust, conformal=conformal, points=points)


def fit_interval(cfg: TrustSection, names: Sequence[str], answers: Array, targets: Array) -> Trust:
    """What the validation cases say of the numbers (N, T) that a regression answered."""
    trust = Trust(tuple(names))
    if cfg.conformal_alpha is None or not len(answers):
        return trust
    interval = fit_conformal_interval(answers - targets, cfg.conformal_alpha)
    return replace(trust, interval=interval if np.isfinite(interval.half_widths).all() else None)


def check_rules(cfg: TrustSection, classes: Sequence[str], targets: Array) -> None:
    """Refuse operating points of classes that there are not, or that none or all of the validation cases have.

    Raises:
        ConfigError: naming them.
    """
    mistakes = []
    for rule in cfg.operating_points:
        if rule.of not in classes:
            mistakes.append(f"trust.operating_points: no class '{rule.of}'{nearest(rule.of, classes)}")
        elif not 0 < (count := np.count_nonzero(targets[:, list(classes).index(rule.of)])) < len(targets):
            fact = f"{count} of {len(targets)} validation cases are '{rule.of}'"
            mistakes.append(f"trust.operating_points: {fact}; a threshold needs some that are and some that are not")
    if mistakes:
        raise ConfigError(mistakes)


def _point(rule: OperatingRule, scores: Array, targets: Array, classes: Sequence[str]) -> OperatingPoint:
    column = list(classes).index(rule.of)
    if rule.sensitivity is not None:
        return at_sensitivity(scores[:, column], targets[:, column], rule.sensitivity)
    return at_specificity(scores[:, column], targets[:, column], float(rule.specificity or 0))
