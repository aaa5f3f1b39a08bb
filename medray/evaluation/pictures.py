"""The worst cases as pictures, with what is true and what was said; structures are drawn over the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np

from medray.evaluation.cases import Answered, Cases
from medray.evaluation.segmentation import class_map
from medray.evaluation.tables import Rename
from medray.evaluation.words import number
from medray.imaging.overlay import overlay
from medray.inference.predictor import Predictor
from medray.pipeline.pictures import Sitting, planes
from medray.reports.page import Picture, Sheet
from medray.reports.tiles import tile
from medray.tasks.segmentation import Segmentation
from medray.types import IGNORED, Array, CaseRef, Dataset

SHOWN, SHOWN_OVERLAYS = 12, 6
MOST_BYTES = 3_500_000
"""Of all pictures together: the page is opened on slow machines too."""


def worst(
    cases: Cases, refs: Mapping[str, CaseRef], dataset: Dataset, predictor: Predictor, rename: Rename
) -> tuple[Sheet, ...]:
    """The cases with the worst answers, the worst first; read again, since no pixel was kept.

    Args:
        cases: the table.
        refs: case id -> its reference.
        dataset: names and values of the classes.
        predictor: answers again where masks are drawn.
        rename: case id -> pseudonym.
    """
    dense = cases.task == "segmentation"
    pictures, room = [], MOST_BYTES
    for row in np.argsort(-cases.badness, kind="stable")[: SHOWN_OVERLAYS if dense else SHOWN].tolist():
        ref = refs[cases.ids[row]]
        png = _masks(ref, dataset, predictor) if dense else _plain(ref, dataset, predictor)
        room -= len(png)
        if room < 0:
            break
        pictures.append(Picture(png, rename(ref.case_id), caption(cases, row)))
    title = "Left what is true, right what was found" if dense else ""
    return (Sheet(title, tuple(pictures)),) if pictures else ()


def caption(cases: Cases, row: int) -> str:
    """What is true, what was said, and how far apart they are."""
    told = f"true {cases.truths[row]}, said {cases.answers[row]}"
    bad = float(cases.badness[row])
    if cases.task == "classification":
        return f"{told}; the truth was given {1 - bad:.1%}"
    if cases.task == "segmentation":
        return f"Dice {number(1 - bad)}: {told}"
    return f"{told}; off by {number(bad)} standard deviations"


def _plain(ref: CaseRef, dataset: Dataset, predictor: Predictor) -> bytes:
    """The image alone; of a volume three planes."""
    found = planes(Sitting(ref, dataset.legal_values, dataset.classes, predictor.read))
    return tile(found.images, found.outlines) if found else _nothing()


def _masks(ref: CaseRef, dataset: Dataset, predictor: Predictor) -> bytes:
    """The image with the true structures beside the image with those that were found."""
    task = cast(Segmentation, predictor.task)
    raw = predictor.read(ref.source)
    answer = predictor.predict(raw)
    truth = class_map(Answered(ref, answer), raw, dataset)
    true: Array = (
        np.where(truth == IGNORED, 0, truth).astype(np.uint8) if task.exclusive else task.membership[:, truth] > 0
    )
    names = dict(enumerate(task.structures, start=1))
    panels = [overlay(raw, cast(Array, mask), names) for mask in (true, answer.mask)]
    return tile(panels, [np.zeros(panel.shape[:2], np.uint8) for panel in panels])


def _nothing() -> bytes:
    """A black picture of an image that cannot be read a second time."""
    return tile([np.zeros((16, 16), np.uint8)], [np.zeros((16, 16), np.uint8)])
