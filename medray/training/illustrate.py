"""The figures of a finished training, as PNG files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import torch

from medray.config import Experiment
from medray.imaging.preprocess import normalise
from medray.metrics.classification import confusion_matrix
from medray.pipeline.augment import augment
from medray.pipeline.prepare import Prepared, kind_of
from medray.reports import figures
from medray.reports.agreement import agreement
from medray.training.goal import monitor_of, monitor_sign, task_of
from medray.training.worker import Outcome
from medray.types import Array

if TYPE_CHECKING:
    from medray.tasks.regression import Regression

GRID = 16
"""Images on a page."""

Rename = Callable[[str], str]


def illustrate(folder: Path, experiment: Experiment, prepared: Prepared, outcome: Outcome, rename: Rename) -> None:
    """Write every figure into `folder`.

    Args:
        folder: made if it does not exist.
        experiment: the run.
        prepared: its data.
        outcome: what came out.
        rename: case id -> what may be shown of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    split = "test" if len(prepared.split.test) else "val"
    pages: dict[str, bytes] = {}
    measured = len(prepared.rows(split)) > 0
    if measured and kind_of(experiment) == "numeric":
        pages = _numeric(experiment, prepared, outcome, split)
    elif measured:
        pages = _classes(experiment, prepared, outcome, split, rename)
    pages["curves"] = _curves(experiment, prepared, outcome)
    pages["augmented"] = _augmented(experiment, prepared)
    for name, png in pages.items():
        (folder / f"{name}.png").write_bytes(png)


def _curves(experiment: Experiment, prepared: Prepared, outcome: Outcome) -> bytes:
    """Loss and the monitored metric over the epochs."""
    monitor = monitor_of(experiment, prepared)
    mode: Literal["max", "min"] = "max" if monitor_sign(monitor, experiment.train.mode) > 0 else "min"
    return figures.curves(outcome.history, monitor, mode)


def _numeric(experiment: Experiment, prepared: Prepared, outcome: Outcome, split: str) -> dict[str, bytes]:
    """How well predicted and true numbers agree."""
    task = cast("Regression", task_of(experiment, prepared))
    rows = outcome.scores[split]
    return {"agreement": agreement(task.point(rows), prepared.targets[prepared.rows(split)], task.names)}


def _classes(
    experiment: Experiment, prepared: Prepared, outcome: Outcome, split: str, rename: Rename
) -> dict[str, bytes]:
    """How well classes are told apart, and the cases that are not."""
    scores, targets = outcome.scores[split], prepared.targets[prepared.rows(split)]
    classes, multilabel = prepared.dataset.classes, prepared.dataset.multilabel
    pages = {
        "roc": figures.roc(scores, targets, classes, multilabel),
        "precision_recall": figures.precision_recall(scores, targets, classes, multilabel),
        "calibration": figures.calibration(scores, targets, multilabel),
        "worst": _worst(experiment, prepared, split, scores, rename),
    }
    if not multilabel:
        pages["confusion"] = figures.confusion(confusion_matrix(scores, targets), classes)
    return pages


def _images(experiment: Experiment, prepared: Prepared, rows: Array) -> torch.Tensor:
    """(n, C, *S) network inputs of some rows, before augmentation."""
    stored = np.ascontiguousarray(prepared.open(experiment).images[rows])
    return torch.from_numpy(normalise(stored.astype(np.float32), experiment.preprocess))


def _names(prepared: Prepared, row: int) -> str:
    """Class names of a case, or its numbers."""
    ref = prepared.dataset.refs[row]
    if ref.numbers:
        return ", ".join(f"{value:g}" for value in ref.numbers)
    return "|".join(prepared.dataset.classes[index] for index in prepared.dataset.refs[row].target) or "none"


def _augmented(experiment: Experiment, prepared: Prepared) -> bytes:
    """A page of training images as the network sees them in the first epoch."""
    rows = np.sort(np.random.default_rng(experiment.seed).permutation(prepared.rows("train"))[:GRID])
    images = augment(_images(experiment, prepared, rows), experiment.augment, experiment.seed, 0, rows)
    return figures.image_grid(images.numpy(), [_names(prepared, row) for row in rows.tolist()], columns=4)


def _worst(experiment: Experiment, prepared: Prepared, split: str, scores: Array, rename: Rename) -> bytes:
    """The cases whose classes the model holds least likely, with what it says instead."""
    rows = prepared.rows(split)
    targets = prepared.targets[rows]
    likelihood = (
        np.where(targets > 0, scores, 1 - scores).min(1) if prepared.dataset.multilabel else ((scores * targets).sum(1))
    )
    worst = np.argsort(likelihood, kind="stable")[:GRID]
    titles = []
    for place in worst.tolist():
        said = prepared.dataset.classes[int(scores[place].argmax())]
        ref = prepared.dataset.refs[int(rows[place])]
        titles.append(f"{rename(ref.case_id)}\n{_names(prepared, int(rows[place]))}, said {said}")
    return figures.image_grid(_images(experiment, prepared, rows[worst]).numpy(), titles, columns=4)
