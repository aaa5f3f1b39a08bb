"""The figures of a finished training, as PNG files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from medray.config import Experiment
from medray.imaging.preprocess import normalise
from medray.metrics.classification import confusion_matrix
from medray.pipeline.augment import augment
from medray.pipeline.prepare import Prepared
from medray.reports import figures
from medray.training.goal import monitor_of, monitor_sign
from medray.training.worker import Outcome
from medray.types import Array

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
    scores, targets = outcome.scores[split], prepared.targets[prepared.rows(split)]
    classes, multilabel = prepared.dataset.classes, prepared.dataset.multilabel
    monitor = monitor_of(experiment, prepared)
    mode: Literal["max", "min"] = "max" if monitor_sign(monitor, experiment.train.mode) > 0 else "min"
    pages = {
        "curves": figures.curves(outcome.history, monitor, mode),
        "roc": figures.roc(scores, targets, classes, multilabel),
        "precision_recall": figures.precision_recall(scores, targets, classes, multilabel),
        "calibration": figures.calibration(scores, targets, multilabel),
        "augmented": _augmented(experiment, prepared),
        "worst": _worst(experiment, prepared, split, scores, rename),
    }
    if not multilabel:
        pages["confusion"] = figures.confusion(confusion_matrix(scores, targets), classes)
    for name, png in pages.items():
        (folder / f"{name}.png").write_bytes(png)


def _images(experiment: Experiment, prepared: Prepared, rows: Array) -> torch.Tensor:
    """(n, C, *S) network inputs of some rows, before augmentation."""
    stored = np.ascontiguousarray(prepared.open(experiment).images[rows])
    return torch.from_numpy(normalise(stored.astype(np.float32), experiment.preprocess))


def _names(prepared: Prepared, row: int) -> str:
    """Class names of a case."""
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
