"""The figures of a finished training of a dense task, as PNG files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import torch

from medray.config import Experiment
from medray.imaging.overlay import overlay
from medray.imaging.preprocess import normalise
from medray.imaging.writer import write_png
from medray.inference.predictor import Predictor
from medray.pipeline.augment import augment_pair
from medray.pipeline.patches import Patches
from medray.pipeline.prepare import Prepared
from medray.reports import figures
from medray.reports.structures import dice_per_case
from medray.training.goal import monitor_of, monitor_sign, task_of
from medray.training.learner import patching
from medray.training.worker import Outcome
from medray.types import IGNORED, Array, Case, InputError

if TYPE_CHECKING:
    from medray.tasks.segmentation import Segmentation

PATCHES, WORST = 6, 4

Rename = Callable[[str], str]


def illustrate(
    folder: Path, experiment: Experiment, prepared: Prepared, outcome: Outcome, rename: Rename, bundle: Path
) -> None:
    """Write every figure into `folder`: curves, patches as trained on, Dice of each case, the worst cases.

    Args:
        folder: made if it does not exist.
        experiment: the run.
        prepared: its data.
        outcome: what came out.
        rename: case id -> what may be shown of it.
        bundle: the model, for the masks of the worst cases.
    """
    folder.mkdir(parents=True, exist_ok=True)
    task = cast("Segmentation", task_of(experiment, prepared))
    split = "test" if len(prepared.split.test) else "val"
    monitor = monitor_of(experiment, prepared)
    mode: Literal["max", "min"] = "max" if monitor_sign(monitor, experiment.train.mode) > 0 else "min"
    (folder / "curves.png").write_bytes(figures.curves(outcome.history, monitor, mode))
    names = dict(enumerate(task.classes))
    for number, (case, label) in enumerate(_augmented(experiment, prepared), start=1):
        write_png(folder / f"patch_{number}.png", overlay(case, label, names))
    if not len(prepared.rows(split)):
        return
    dice = task.case_dice(outcome.scores[split])
    (folder / "dice.png").write_bytes(dice_per_case(dice, task.structures))
    predictor = Predictor(bundle)
    defined = np.where(np.isnan(dice), 1.0, dice).mean(1)
    for row in prepared.rows(split)[np.argsort(defined, kind="stable")[:WORST]].tolist():
        ref = prepared.dataset.refs[row]
        try:
            raw = predictor.read(ref.source)
            mask = predictor.predict(raw).mask
        except InputError:
            continue
        shown = names if task.exclusive else dict(enumerate(task.structures, start=1))
        write_png(folder / f"worst_{rename(ref.case_id)}.png", overlay(raw, cast(Array, mask), shown))


def _augmented(experiment: Experiment, prepared: Prepared) -> list[tuple[Case, Array]]:
    """Some training patches with their labels as the network sees them in the first epoch."""
    store = prepared.open_cases(experiment)
    weights = torch.from_numpy(prepared.weights)
    feed = Patches(store, patching(experiment, prepared), torch.from_numpy(prepared.targets), weights)
    rows = np.sort(np.random.default_rng(experiment.seed).permutation(prepared.rows("train"))[:PATCHES])
    batch = feed.drawn(rows, rows, experiment.seed, 0)
    image = normalise(batch.image.float(), experiment.preprocess)
    image, label = augment_pair(image, batch.target, experiment.augment, experiment.seed, 0, rows)
    # Of neighbouring slices the one that is labelled.
    slices = image.shape[1] // store.channels
    image = image.reshape(len(image), store.channels, slices, *image.shape[2:])[:, :, slices // 2]
    shown = []
    for row, picture, mask in zip(rows.tolist(), image.numpy(), cast(torch.Tensor, label).numpy(), strict=True):
        affine = store.affines[row] if feed.spatial_dims == store.spatial_dims else np.eye(4)
        case = Case(f"patch {row}", picture[:1] if len(picture) != 3 else picture, affine)
        shown.append((case, np.where(mask[0] == IGNORED, 0, mask[0])))
    return shown
