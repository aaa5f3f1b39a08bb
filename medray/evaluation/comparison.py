"""Two bundles on the same cases, case by case: differences with intervals and tests."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from medray.evaluation.cases import Cases
from medray.evaluation.classification import shown_classes
from medray.evaluation.result import Comparison, Contrast, Model
from medray.evaluation.statistics import SAMPLES, task_module
from medray.metrics.comparison import delong, mcnemar, paired_bootstrap_many


def compare(ours: Cases, theirs: Cases, other: Model, samples: int = SAMPLES) -> Comparison:
    """The figures of `ours` against those of `theirs`, on the cases that both have.

    Where each case is a patient of its own, AUROC is tested by DeLong and accuracy by McNemar. They take cases for
    independent: where patients have several, and for every other figure, whole patients are drawn.
    """
    known = {case_id: row for row, case_id in enumerate(theirs.ids)}
    rows = [row for row, case_id in enumerate(ours.ids) if case_id in known]
    left_out = len(ours) + len(theirs) - 2 * len(rows)
    ours, theirs = ours.take(rows), theirs.take([known[ours.ids[row]] for row in rows])
    if not rows:
        return Comparison(other, 0, 0, left_out, ())
    found = {contrast.name: contrast for contrast in _drawn(ours, theirs, samples)}
    if ours.task == "classification" and ours.people == len(ours):
        found |= {contrast.name: contrast for contrast in _tested(ours, theirs, found)}
    return Comparison(other, len(ours), ours.people, left_out, tuple(found.values()))


def _drawn(ours: Cases, theirs: Cases, samples: int) -> Iterator[Contrast]:
    """Every figure that both have, both taken of the same resamples of patients."""
    task = task_module(ours)
    mine, other = task.statistic(ours, ()), task.statistic(theirs, ())
    everyone = np.arange(len(ours))
    one, two = mine(everyone), other(everyone)
    for name, test in paired_bootstrap_many(mine, other, ours.subjects, samples).items():
        yield Contrast(name, one[name], two[name], test)


def _tested(ours: Cases, theirs: Cases, found: dict[str, Contrast]) -> Iterator[Contrast]:
    """The same by tests that need no resampling, where there are such."""
    pair = len(ours.classes) == 2 and not ours.multilabel
    for k in shown_classes(ours):
        name = "auroc" if pair else f"auroc/{ours.classes[k]}"
        test = delong(ours.scores[:, k], theirs.scores[:, k], ours.targets[:, k])
        yield Contrast(name, found[name].ours, found[name].theirs, test)
    if not ours.multilabel:
        right = [(cases.picked == (cases.targets > 0)).all(1) for cases in (ours, theirs)]
        yield Contrast("accuracy", float(right[0].mean()), float(right[1].mean()), mcnemar(*right))
