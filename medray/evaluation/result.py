"""An evaluation: everything that is known of a bundle on a labelled set, as plain facts and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from medray.evaluation.cases import Cases
from medray.metrics.comparison import Comparison as Test


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with its 95 % interval; NaN where the cases do not define it."""

    value: float
    low: float
    high: float
    n: int
    """Cases that it is over."""


Figures = Mapping[str, Figure]
"""Name -> figure; 'recall' is over all classes, 'recall/malignant' of one."""


@dataclass(frozen=True, slots=True)
class Model:
    """The bundle that is evaluated."""

    name: str
    """name/version in the registry, or the folder's name."""
    digest: str
    card: Mapping[str, Any]
    experiment: str
    """Name of the experiment that made it."""
    network: str
    task: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """What the evaluated cases are to the bundle: the first question that a reader has."""

    relation: Literal["test", "val", "seen", "unverified", "other", "overlap"]
    """test: held out in its training, as fingerprints prove; val: its best epoch was chosen on them; seen: it was
    trained on some; unverified: it should be held out, but fingerprints differ; other: other data; overlap: other data
    with images that it was trained on."""
    statement: str
    """The same for a person, in a sentence or two."""

    @property
    def sound(self) -> bool:
        """Whether the figures may be read as those on unseen cases."""
        return self.relation in ("test", "other")


@dataclass(frozen=True, slots=True)
class Data:
    """The labelled set."""

    name: str
    part: str
    """test, val, train or all."""
    fingerprint: str
    method: str
    """How the part came about, in one line."""
    provenance: Provenance
    asked: int
    """Cases in the part, before any limit."""
    limit: int | None
    subjects_named: bool
    """Whether the dataset says whose image each is; else every image counts as a person."""


@dataclass(frozen=True, slots=True)
class Group:
    """The cases with one value in one column."""

    column: str
    value: str
    cases: int
    subjects: int
    few: bool
    """Fewer than 10 subjects: the figures say little."""
    figures: Figures


@dataclass(frozen=True, slots=True)
class Point:
    """A threshold of one class against the rest, and what it gives on this set."""

    target: str
    """The class that is looked for."""
    rule: str
    """How the threshold was chosen, in words."""
    threshold: float
    chosen: Mapping[str, float]
    """Sensitivity and specificity where it was chosen, as far as the card says."""
    counts: tuple[int, int, int, int]
    """True positives, false positives, false negatives, true negatives."""
    rates: Figures
    """sensitivity, specificity, ppv, npv."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """One figure of two bundles on the same cases."""

    name: str
    ours: float
    theirs: float
    test: Test
    """Its difference is ours minus theirs."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """This bundle against another one, case by case."""

    other: Model
    cases: int
    subjects: int
    left_out: int
    """Cases that one of the two refuses."""
    contrasts: tuple[Contrast, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The whole result."""

    model: Model
    data: Data
    cases: Cases
    figures: Figures
    headline: str
    """The figure that the verdict names."""
    groups: tuple[Group, ...]
    points: tuple[Point, ...]
    comparison: Comparison | None
    samples: int
    """Resamples behind every interval."""
    warnings: tuple[str, ...]
    """What a reader must know before believing a figure, the gravest first."""
