"""The figures of an evaluation's page, chosen by its task."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from medray.evaluation.cases import Cases
from medray.evaluation.classification import shown_classes
from medray.evaluation.result import Evaluation
from medray.evaluation.words import title
from medray.reports import discrimination, figures
from medray.reports.discrimination import Line, Mark
from medray.reports.page import Picture

MOST_CLASSES = 30
"""Above this a confusion matrix cannot be read."""

DISTRIBUTIONS = ("dice", "nsd", "hd95", "volume_bias")
"""Figures of single cases that are drawn, of a segmentation."""


def plots(evaluation: Evaluation) -> Iterator[Picture]:
    """PNGs with their captions."""
    cases = evaluation.cases
    if cases.task == "classification":
        yield from _classification(evaluation)
    elif cases.task == "segmentation":
        yield from _segmentation(cases)
    else:
        yield from _regression(cases)


def _classification(evaluation: Evaluation) -> Iterator[Picture]:
    cases = evaluation.cases
    shown = list(shown_classes(cases))
    lines = [Line(cases.classes[k], cases.scores[:, k], cases.targets[:, k] > 0) for k in shown]
    marks = [
        Mark(place, f"{point.target}: {point.rule}" if len(shown) > 1 else point.rule, *point.counts)
        for point in evaluation.points
        if (place := _place(cases, shown, point.target)) is not None
    ]
    yield Picture(discrimination.roc(lines, marks), "ROC", "Marks: the decisions of the table above.")
    pr = discrimination.precision_recall(lines, marks)
    yield Picture(pr, "Precision and recall", "Dotted: the share of the class, which chance reaches.")
    if not cases.multilabel and len(cases.classes) <= MOST_CLASSES:
        matrix = (cases.targets.T @ cases.picked).astype(np.int64)
        yield Picture(figures.confusion(matrix, cases.classes), "Confusion", "What the model answers.")
    note = "Points below the line: more confident than right."
    yield Picture(figures.calibration(cases.scores, cases.targets, cases.multilabel), "Calibration", note)


def _place(cases: Cases, shown: list[int], target: str) -> int | None:
    """Which line a class has; a point of the first of two exclusive classes has none."""
    k = cases.classes.index(target)
    return shown.index(k) if k in shown else None


def _segmentation(cases: Cases) -> Iterator[Picture]:
    for figure in DISTRIBUTIONS:
        found = [
            (name.partition("/")[2], values) for name, values in cases.figures.items() if name.startswith(f"{figure}/")
        ]
        if found and any(np.isfinite(values).any() for _, values in found):
            limits = (0.0, 1.0) if figure in ("dice", "nsd") else None
            yield Picture(discrimination.distribution(found, title(figure), limits), title(figure))


def _regression(cases: Cases) -> Iterator[Picture]:
    for k, name in enumerate(cases.classes):
        truth, said = cases.targets[:, k], cases.scores[:, k]
        difference = said - truth
        bias, spread = float(difference.mean()), float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
        limits = (bias, bias - 1.96 * spread, bias + 1.96 * spread)
        note = "Right: bias and 95 % limits of agreement."
        yield Picture(discrimination.agreement(truth, said, name, limits), f"Agreement, {name}", note)
