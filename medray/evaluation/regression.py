"""Evaluation of a regression: the table of cases and its figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from medray.evaluation.cases import Answered, Cases, attributes
from medray.metrics.regression import interval_coverage, per_target, summarise
from medray.types import Array

SLICED = ("mae", "bias")
LOW, HIGH = "interval low", "interval high"
"""Columns of the interval that the bundle gives with each number."""


def tabulate(answered: Sequence[Answered], names: tuple[str, ...]) -> Cases:
    """The table of cases that the bundle answered; `names` are those of the numbers, in their order."""
    answers = [item.prediction for item in answered]
    places = [answers[0].classes.index(name) for name in names] if answers else []
    said = np.array([answer.scores[places] for answer in answers], np.float64).reshape(len(answers), len(names))
    true = np.array([item.ref.numbers for item in answered], np.float64).reshape(said.shape)
    spread = true.std(0) if len(true) else np.ones(len(names))
    figures = {}
    for place, name in enumerate(names):
        if answers and all(name in answer.intervals for answer in answers):
            figures[f"{LOW}/{name}"] = np.array([answer.intervals[name][0] for answer in answers])
            figures[f"{HIGH}/{name}"] = np.array([answer.intervals[name][1] for answer in answers])
        figures[f"error/{name}"] = said[:, place] - true[:, place]
    return Cases(
        task="regression",
        classes=names,
        ids=tuple(item.ref.case_id for item in answered),
        subjects=tuple(item.ref.subject for item in answered),
        truths=tuple(_numbers(names, row) for row in true.tolist()),
        answers=tuple(_numbers(names, row) for row in said.tolist()),
        scores=said,
        targets=true,
        picked=np.zeros((len(answers), 0), bool),
        # In units of how much the truth varies, so that several numbers count alike.
        badness=(np.abs(said - true) / np.where(spread > 0, spread, 1)).max(1, initial=0),
        figures=figures,
        columns=attributes(answered),
    )


def _numbers(names: Sequence[str], row: Sequence[float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in zip(names, row, strict=True))


def statistic(cases: Cases, names: Sequence[str] = ()) -> Callable[[Array], dict[str, float]]:
    """rows -> figures of those cases: of all numbers, and 'name/number' of each where there are several."""

    def figures(rows: Array) -> dict[str, float]:
        said, true = cases.scores[rows], cases.targets[rows]
        found = summarise(said, true)
        if names:
            return {name: found[name] for name in names}
        if len(cases.classes) > 1:
            for target, row in per_target(said, true, cases.classes).items():
                found |= {f"{name}/{target}": value for name, value in row.items()}
        for place, target in enumerate(cases.classes):
            if f"{LOW}/{target}" in cases.figures:
                low, high = (cases.figures[f"{end}/{target}"][rows] for end in (LOW, HIGH))
                told = interval_coverage(low, high, true[:, place])
                end = f"/{target}" if len(cases.classes) > 1 else ""
                found |= {f"interval_{name}{end}": value for name, value in told.items()}
        return found

    return figures


def headline(_: object) -> str:
    """The figure that stands for all."""
    return "mae"


def proportions(_: Cases) -> dict[str, Array]:
    """Of intervals the share that holds the truth is drawn, not counted."""
    return {}
