"""What a reader must know before believing a figure, from the numbers themselves."""

from __future__ import annotations

from collections import Counter

import numpy as np

from medray.evaluation.cases import Cases
from medray.evaluation.classification import shown_classes
from medray.evaluation.result import Data, Figures
from medray.evaluation.words import count, title

FEW_OF_A_CLASS = 10
"""Subjects of a class below which its figures move by tens of percents with one of them."""


def warnings(cases: Cases, figures: Figures, data: Data) -> tuple[str, ...]:
    """Sentences, the gravest first; of the provenance only where it is not sound."""
    found = [] if data.provenance.sound else [data.provenance.statement]
    if cases.refused:
        codes = ", ".join(
            f"{code} {times}" for code, times in Counter(item.code for item in cases.refused).most_common()
        )
        found.append(
            f"{count(len(cases.refused), 'case')} of {len(cases) + len(cases.refused)} could not be evaluated "
            f"({codes}). "
            "If they are the hard ones, the figures are too good."
        )
    if data.limit is not None and data.limit < data.asked:
        found.append(f"Only {data.limit} of {data.asked} cases were evaluated (--limit), drawn by chance.")
    if not data.subjects_named:
        found.append(
            "The data do not say whose image each is, so every image counts as one patient. Where patients have "
            "several images, the intervals are too narrow."
        )
    if cases.task == "classification":
        found += _of_classes(cases, figures)
    flat = [title(name) for name, figure in figures.items() if figure.value == figure.low == figure.high == 1]
    if flat:
        found.append(
            f"A 1 whose interval has no width ({', '.join(flat[:3])}) is not certain: where none of "
            f"{cases.people} patients is wrong, up to {min(1.0, 3 / cases.people):.1%} may be (rule of three, Hanley "
            "1983, 10.1001/jama.1983.03330370053031)."
        )
    return tuple(found)


def _of_classes(cases: Cases, figures: Figures) -> list[str]:
    found = []
    people = np.asarray(cases.subjects)
    sizes = {name: len(set(people[cases.targets[:, k] > 0].tolist())) for k, name in enumerate(cases.classes)}
    if absent := [name for name, size in sizes.items() if size == 0]:
        found.append(f"No case is of {', '.join(absent)}: nothing is known of how it is recognised.")
    if few := [f"{name} ({size})" for name, size in sizes.items() if 0 < size < FEW_OF_A_CLASS]:
        found.append(f"Very few subjects are of {', '.join(few)}: figures of it move much with each of them.")
    silent = [name for k, name in enumerate(cases.classes) if sizes[name] and not cases.picked[:, k].any()]
    if silent:
        found.append(f"The model never answers {', '.join(silent)}: none of these is found.")
    area = figures.get("auroc")
    if area is not None and area.low <= 0.5 <= area.high and len(shown_classes(cases)):
        found.append(
            "The interval of the AUROC holds 0.5: these cases do not show that the model is better than chance."
        )
    return found
