"""Every figure of a table of cases with its interval, drawn by subject; pure functions, no network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

import numpy as np

from medray.evaluation import classification, regression, segmentation
from medray.evaluation.cases import Cases
from medray.evaluation.result import Figure, Figures
from medray.metrics.intervals import bootstrap_many, wilson
from medray.types import Array

SAMPLES = 1000
FEWER_SAMPLES = 300
"""For groups, whose intervals are wide and many."""

Statistic = Callable[[Array], Mapping[str, float]]
"""Rows of a table (n,) -> figures of those cases; a row may come several times."""


def task_module(cases: Cases) -> ModuleType:
    """The module of the task: SLICED, headline(figures), statistic(cases, names), proportions(cases)."""
    return {"classification": classification, "segmentation": segmentation, "regression": regression}[cases.task]


def estimate(cases: Cases, names: Sequence[str] = (), samples: int = SAMPLES) -> Figures:
    """The figures of `cases` (all, or those in `names`), each with its 95 % interval."""
    task = task_module(cases)
    figures = dict(intervals(task.statistic(cases, names), cases.subjects, samples))
    for name, members in task.proportions(cases).items():
        if name in figures:
            figures[name] = widened(figures[name], members, cases.subjects)
    return figures


def widened(figure: Figure, members: Array, subjects: Sequence[str]) -> Figure:
    """The figure, a share of the cases in `members` (N,) bool, with an interval that has a width.

    Where the share is 0 or 1 no resample differs: there the interval is Wilson's over the subjects behind it (Wilson
    1927, 10.1080/01621459.1927.10502953).
    """
    low, high = figure.low, figure.high
    if figure.value in (0.0, 1.0):
        people = len({subject for subject, member in zip(subjects, members.tolist(), strict=True) if member})
        low, high = wilson(round(figure.value * people), people)
    return Figure(figure.value, low, high, int(members.sum()))


def intervals(statistic: Statistic, subjects: Sequence[str], samples: int = SAMPLES) -> Figures:
    """The figures of `statistic` over all rows, each with its 95 % interval.

    Subjects are drawn with replacement, each with all of its cases (see metrics/intervals.py).
    """
    value = statistic(np.arange(len(subjects)))
    drawn = bootstrap_many(statistic, subjects, samples)
    return {name: Figure(float(value[name]), *drawn[name], len(subjects)) for name in value}
