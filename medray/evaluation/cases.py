"""What a bundle said of each labelled case, and what is true of it: the table that all statistics are made from.

Letters: N cases, K classes (of a regression: numbers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from medray.types import Array, Case, CaseRef, Prediction

TaskName = Literal["classification", "segmentation", "regression"]


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """A case with the bundle's answer."""

    ref: CaseRef
    prediction: Prediction
    attributes: Mapping[str, str] = field(default_factory=dict)
    """What the image's file says of site, sex, age band, scanner."""
    raw: Case | None = None
    """The image, while a case is measured."""


def attributes(answered: Sequence[Answered]) -> dict[str, tuple[str, ...]]:
    """Name -> a value per case of what the files say, '' where they do not."""
    names = dict.fromkeys(name for item in answered for name in item.attributes)
    return {name: tuple(item.attributes.get(name, "") for item in answered) for name in names}


@dataclass(frozen=True, slots=True)
class Refused:
    """A case that could not be evaluated, and why."""

    case_id: str
    subject: str
    code: str
    detail: str
    hint: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Cases:
    """The evaluated cases, one row each, in the order of the dataset."""

    task: TaskName
    classes: tuple[str, ...]
    """Of two that exclude each other the second is looked for; of a segmentation the structures; of a regression the
    names of the numbers."""
    ids: tuple[str, ...]
    """Case ids in clear: for this process and the local map alone."""
    subjects: tuple[str, ...]
    """Whose image it is, which resampling and splitting keep together; the case id where nobody says."""
    truths: tuple[str, ...]
    """What is true, in words."""
    answers: tuple[str, ...]
    """What the bundle said, in words."""
    scores: Array
    """(N, K) float64: probabilities, or the numbers of a regression; (N, 0) of a segmentation."""
    targets: Array
    """(N, K) float64: one-hot, multi-hot, or numbers; (N, 0) of a segmentation."""
    picked: Array
    """(N, K) bool: the classes that the bundle named, by its own decision rule; (N, 0) where there are none."""
    badness: Array
    """(N,) how wrong the answer is: higher is worse."""
    multilabel: bool = False
    figures: Mapping[str, Array] = field(default_factory=dict)
    """Name -> (N,) figures of each case alone, such as 'dice/liver'; NaN where a case does not define one."""
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Site, sex, age band, scanner, ...: name -> a value per case, '' where it is not known."""
    refused: tuple[Refused, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def people(self) -> int:
        """How many subjects there are."""
        return len(set(self.subjects))

    def take(self, rows: Sequence[int] | Array) -> Cases:
        """The table with these rows alone, in that order; what was refused stays with the whole."""
        chosen: list[int] = np.asarray(rows, np.int64).tolist()
        return replace(
            self,
            ids=tuple(self.ids[row] for row in chosen),
            subjects=tuple(self.subjects[row] for row in chosen),
            truths=tuple(self.truths[row] for row in chosen),
            answers=tuple(self.answers[row] for row in chosen),
            scores=self.scores[chosen],
            targets=self.targets[chosen],
            picked=self.picked[chosen],
            badness=self.badness[chosen],
            figures={name: values[chosen] for name, values in self.figures.items()},
            columns={name: tuple(cells[row] for row in chosen) for name, cells in self.columns.items()},
            refused=(),
        )

    def with_columns(self, columns: Mapping[str, tuple[str, ...]]) -> Cases:
        """The table with further columns; one of the same name is replaced."""
        return replace(self, columns={**self.columns, **columns})
