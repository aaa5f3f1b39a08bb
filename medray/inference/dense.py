"""From a case on the network's grid to a mask on the patient's own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from medray.imaging.geometry import restore
from medray.sections.inference import WindowSection
from medray.types import Array, Case, Prediction

if TYPE_CHECKING:
    from medray.tasks.segmentation import Segmentation

MM2_UNIT, ML_PER_MM3 = 1.0, 1e-3


def on_patient_grid(
    task: Segmentation, probabilities: torch.Tensor, case: Case, raw: Case, cfg: WindowSection, keep: bool
) -> Prediction:
    """The answer for `raw`, from probabilities (K, *S) on the grid of the processed `case`.

    With `cfg.restore` 'probabilities' these are resampled and then decided, else the mask is, to the nearest voxel.
    What the network did not see (a crop) is background. `keep` leaves the probabilities in the answer.
    """
    found: Array = probabilities.float().cpu().numpy()
    same = _same_grid(case, raw)
    if cfg.restore == "labels" and not same:
        answer = _restored_mask(task, found, case, raw)
        found = _restored(task, found, case, raw) if keep else found
    else:
        found = found if same else _restored(task, found, case, raw)
        answer = task.decode(case.case_id, found, case.warnings)
    volumes = {} if answer.mask is None else measured(task.voxels(answer.mask), raw)
    return replace(answer, volumes=volumes, probabilities=found if keep else None)


def measured(voxels: dict[str, int], raw: Case) -> dict[str, float]:
    """Structure -> mL of a volume in mm, mm2 of a picture in mm, voxels where the image has no unit."""
    size = raw.voxel_size if raw.unit == "mm" else 1.0
    factor = ML_PER_MM3 if raw.unit == "mm" and raw.spatial_dims == 3 else MM2_UNIT
    return {name: count * size * factor for name, count in voxels.items()}


def _restored(task: Segmentation, found: Array, case: Case, raw: Case) -> Array:
    """Probabilities (K, *S of `raw`); the background's is 1 where the network saw nothing."""
    result = np.empty((len(found), *raw.image.shape[1:]), np.float32)
    for position, share in enumerate(found):
        outside = float(task.exclusive and position == 0)
        result[position] = restore(share[None], case.affine, raw, 1, outside)[0]
    return result


def _restored_mask(task: Segmentation, found: Array, case: Case, raw: Case) -> Prediction:
    """The mask decided on the network's grid, to the nearest voxel."""
    mask = task.decode(case.case_id, found).mask
    assert mask is not None  # noqa: S101  # a segmentation always has one
    layers = mask[None] if task.exclusive else mask
    back = restore(layers.astype(np.uint8), case.affine, raw, 0)
    return task.answer(case.case_id, back[0] if task.exclusive else back.astype(bool), case.warnings)


def _same_grid(case: Case, raw: Case) -> bool:
    return case.image.shape[1:] == raw.image.shape[1:] and np.allclose(case.affine, raw.affine, atol=1e-6)
