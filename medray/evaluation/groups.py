"""The same figures for parts of the cases: each site, sex, age band, scanner."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np

from medray.evaluation.cases import Cases
from medray.evaluation.columns import Columns
from medray.evaluation.result import Group
from medray.evaluation.statistics import FEWER_SAMPLES, estimate, task_module

FEW_SUBJECTS = 10
"""Below this the figures of a group say little; they are shown with a mark."""
PRIVATE_SUBJECTS = 5
"""Below this a group may tell of a person (k-anonymity, see metrics/anonymity.py)."""
UNKNOWN = "not known"
BAND = re.compile(r"(<|≥)? ?(-?\d+(?:\.\d+)?)(?: |$)")
MOST_GROUPS = 40
"""Of a column; the largest are shown, since one with more is a name or a number rather than a group."""


def groups(cases: Cases, columns: Columns, private: bool = False, samples: int = FEWER_SAMPLES) -> tuple[Group, ...]:
    """Figures of each value of each column, the largest group first, bands of numbers in their order.

    Args:
        cases: all cases.
        columns: name -> a value per case.
        private: pool groups of fewer than 5 subjects, and leave the pool away where it is as small.
        samples: resamples per interval.
    """
    names = task_module(cases).SLICED
    found = []
    for column, cells in columns.items():
        for value, rows in _members(cases, cells, private).items():
            part = cases.take(rows)
            figures = estimate(part, names, samples)
            found.append(Group(column, value, len(part), part.people, part.people < FEW_SUBJECTS, figures))
    return tuple(found)


def _members(cases: Cases, cells: tuple[str, ...], private: bool) -> Mapping[str, list[int]]:
    """Value -> rows."""
    rows: dict[str, list[int]] = {}
    for row, cell in enumerate(cells):
        rows.setdefault(cell or UNKNOWN, []).append(row)
    people = np.asarray(cases.subjects)
    sizes = {value: len(set(people[members].tolist())) for value, members in rows.items()}
    if private:
        small = [value for value, size in sizes.items() if size < PRIVATE_SUBJECTS]
        pool = sorted(row for value in small for row in rows.pop(value))
        if len(set(people[pool].tolist())) >= PRIVATE_SUBJECTS:
            title = f"{len(small)} small groups together"
            rows[title] = pool
            sizes[title] = len(set(people[pool].tolist()))
    largest = sorted(rows, key=lambda value: (-sizes[value], value))[:MOST_GROUPS]
    numbers = {value: BAND.match(value) for value in largest if value != UNKNOWN}
    if all(numbers.values()):
        # Bands stand in the order of their numbers, what lies below all in front.
        order = {value: (float(found[2]), found[1] != "<") for value, found in numbers.items() if found}
        largest.sort(key=lambda value: order.get(value, (math.inf, True)))
    return {value: rows[value] for value in largest}
