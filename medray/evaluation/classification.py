"""Evaluation of a classification: the table of cases and its figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from medray.evaluation.cases import Answered, Cases, attributes
from medray.metrics.classification import decide, per_class, summarise
from medray.types import Array, CaseRef, Prediction

SLICED = ("auroc", "balanced_accuracy", "recall", "specificity")
"""What is shown of groups: figures that do not move with how common a class is."""
UNORDERED = ("kappa_quadratic",)
"""Figures that take the order of the classes as a scale."""
UNDECIDED = ("auroc", "average_precision", "brier", "ece")
"""Figures of the scores themselves, whatever is decided by them."""


def targets_of(refs: Sequence[CaseRef], classes: int) -> Array:
    """(N, K) float64, one-hot or multi-hot."""
    targets = np.zeros((len(refs), classes))
    for row, ref in enumerate(refs):
        targets[row, list(ref.target)] = 1
    return targets


def tabulate(answered: Sequence[Answered], classes: tuple[str, ...], multilabel: bool) -> Cases:
    """The table of cases that the bundle answered, whose targets are in the order of `classes`."""
    refs, answers = [item.ref for item in answered], [item.prediction for item in answered]
    targets = targets_of(refs, len(classes))
    # By name: bundles may have the classes in another order.
    places = [answers[0].classes.index(name) for name in classes] if answers else []
    scores = np.array([answer.scores[places] for answer in answers], np.float64).reshape(targets.shape)
    picked = np.array([[name in answer.labels for name in classes] for answer in answers], bool).reshape(targets.shape)
    # The least likely of the true answers: its class, or each label's presence or absence.
    likelihood = np.where(targets > 0, scores, 1 - scores).min(1) if multilabel else (scores * targets).sum(1)
    truths = [tuple(classes[k] for k in ref.target) for ref in refs]
    return Cases(
        task="classification",
        classes=classes,
        ids=tuple(ref.case_id for ref in refs),
        subjects=tuple(ref.subject for ref in refs),
        truths=tuple("|".join(names) or "none" for names in truths),
        answers=tuple("|".join(answer.labels) or "none" for answer in answers),
        scores=scores,
        targets=targets,
        picked=picked,
        badness=1 - likelihood,
        multilabel=multilabel,
        figures=_sets(answers, truths),
        columns=attributes(answered),
    )


def _sets(answers: Sequence[Prediction], truths: Sequence[tuple[str, ...]]) -> dict[str, Array]:
    """Of each case the share of its true classes that its conformal set holds, and the size of the set."""
    sets = [answer.conformal_set for answer in answers]
    if not sets or any(names is None for names in sets):
        return {}
    held = [
        sum(name in (names or ()) for name in true) / len(true) if true else np.nan
        for names, true in zip(sets, truths, strict=True)
    ]
    return {"set_coverage": np.array(held), "set_size": np.array([float(len(names or ())) for names in sets])}


def statistic(cases: Cases, names: Sequence[str] = ()) -> Callable[[Array], dict[str, float]]:
    """rows -> figures of those cases: of all classes, and 'name/class' of each class against the rest.

    `names` picks some of the former, and leaves the latter away. What hangs on a decision is by the bundle's own.
    """
    scores, targets, multilabel = cases.scores, cases.targets, cases.multilabel
    plain = bool((decide(scores, multilabel) == cases.picked).all())
    decisions = cases.picked.astype(np.float64)
    # Two exclusive classes mirror each other; the summary is of the second one.
    several = (len(cases.classes) > 2 or multilabel) and not names

    def figures(rows: Array) -> dict[str, float]:
        found = summarise(scores[rows], targets[rows], multilabel)
        table = per_class(scores[rows], targets[rows], cases.classes, multilabel) if several else {}
        if not plain:
            # Of decisions as scores, 0 and 1, the highest is what was decided.
            found = _decided(found, summarise(decisions[rows], targets[rows], multilabel))
            hard = per_class(decisions[rows], targets[rows], cases.classes, multilabel) if several else {}
            table = {label: _decided(row, hard[label]) for label, row in table.items()}
        if names:
            return {name: found[name] for name in names}
        found = {name: value for name, value in found.items() if name not in UNORDERED}
        for label, row in table.items():
            found |= {f"{name}/{label}": value for name, value in row.items() if name != "support"}
        return found | {name: _mean(values[rows]) for name, values in cases.figures.items()}

    return figures


def _decided(of_scores: Mapping[str, float], of_decisions: Mapping[str, float]) -> dict[str, float]:
    return {name: of_scores[name] if name in UNDECIDED else value for name, value in of_decisions.items()}


def _mean(values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def shown_classes(cases: Cases) -> range:
    """Indices of the classes that are looked at against the rest: of two exclusive ones the second alone."""
    return range(1 if len(cases.classes) == 2 and not cases.multilabel else 0, len(cases.classes))


def headline(_: object) -> str:
    """The figure that stands for all: it does not move with a threshold or with how common a class is."""
    return "auroc"


def proportions(cases: Cases) -> dict[str, Array]:
    """Name of each figure that is a share of cases -> (N,) which cases it is a share of."""
    everyone = np.ones(len(cases), bool)
    found = {} if cases.multilabel else {"accuracy": everyone}
    exclusive_pair = len(cases.classes) == 2 and not cases.multilabel
    for k in shown_classes(cases):
        name = "" if exclusive_pair else f"/{cases.classes[k]}"
        positive = cases.targets[:, k] > 0
        found |= {f"recall{name}": positive, f"specificity{name}": ~positive, f"precision{name}": cases.picked[:, k]}
    return found
