"""Where the 2D images of a series are, as pure geometry: the planes of a volume, and its affine from their positions.

Positions are in mm in the patient's system of DICOM, LPS+ (left, posterior, superior); affines are RAS+. Source:
DICOM PS3.3 C.7.6.2, equation C.7.6.2.1-1. Nothing here reads SliceThickness, SliceLocation or a file's name.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import numpy as np

from medray.imaging.dicom.elements import LPS_TO_RAS
from medray.types import Array, InputError

STEP_SHARE = 0.01
STEP_MM = 0.05
"""Slice steps are equal, and positions on the normal, within 1 % or 0.05 mm, whichever is more."""


@dataclass(frozen=True, slots=True)
class Plane:
    """One 2D image of a series: where its pixels are stored and where they are in the patient."""

    file: int
    """Which of the files, from 0."""
    size: tuple[int, int]
    """Rows and columns."""
    frame: int = 0
    corner: tuple[int, int] = (0, 0)
    """Row and column of its first pixel within the frame: a tile of a mosaic."""
    spacing: tuple[float, ...] = ()
    """Between rows and between columns in mm; empty, as the next two, where the file does not say."""
    orientation: tuple[float, ...] = ()
    """Direction cosines along a row (of the column index) and along a column."""
    position: tuple[float, ...] = ()
    """Centre of the first pixel."""
    labels: Mapping[str, Hashable] = field(default_factory=dict)
    """What may tell the volumes of a 4D series apart, as far as the file says it (see stacks.TIMES)."""
    kind: tuple[str, ...] = ()
    """ImageType: may not differ between the images of one position, which are no volumes of one kind then."""
    setup: tuple[str, ...] = ()
    """Modality, frame of reference and kernel: may not differ between the slices of a series."""


Volume = tuple[Plane, ...]
"""Planes in the order of their positions along the normal."""


def affine(volume: Volume) -> Array:
    """The affine (4, 4) of the voxels (i, j, k) = (column, row, slice) of `volume` to RAS+ in mm, from positions alone.

    The slice axis runs along the normal (row cross column), as positions do, so the determinant is positive.
    Raises missing_slices, non_uniform_spacing, gantry_tilt.
    """
    first = volume[0]
    positions = np.array([plane.position for plane in volume])
    depth = (positions - positions[0]) @ normal_of(first)
    _check_steps(depth)
    _check_tilt(positions - positions[0], depth, normal_of(first))
    matrix = np.eye(4)
    matrix[:3, 0] = np.multiply(first.orientation[:3], first.spacing[1])
    matrix[:3, 1] = np.multiply(first.orientation[3:], first.spacing[0])
    matrix[:3, 2] = (positions[-1] - positions[0]) / (len(volume) - 1)
    matrix[:3, 3] = positions[0]
    return np.diag([*LPS_TO_RAS, 1.0]) @ matrix


def normal_of(plane: Plane) -> Array:
    """The unit vector (3,) that row and column directions span, to the side of row cross column."""
    normal = np.cross(plane.orientation[:3], plane.orientation[3:])
    return np.asarray(normal / np.linalg.norm(normal))


def _check_steps(depth: Array) -> None:
    """Raise missing_slices where a step is a multiple of the usual one, non_uniform_spacing for any other."""
    steps = np.diff(depth)
    # Of an even number of steps the lower of the middle two: one slice missing among four leaves steps of 1 and 2.
    step = float(np.sort(steps)[(len(steps) - 1) // 2])
    within = np.maximum(STEP_SHARE * np.maximum(steps, step), STEP_MM).clip(max=step / 4)
    times = np.rint(steps / step)
    uneven = np.abs(steps - times * step) > within
    if (uneven | (times < 1)).any():
        raise InputError(
            "non_uniform_spacing", f"slices are {steps.min():.3f} to {steps.max():.3f} mm apart", "resample it first"
        )
    gaps = np.flatnonzero(times > 1)
    if gaps.size:
        where = ", ".join(f"{int(times[gap]) - 1} after {depth[gap]:.2f} mm" for gap in gaps[:5])
        total = int((times[gaps] - 1).sum())
        raise InputError(
            "missing_slices",
            f"{total} of {total + len(depth)} slices are missing at steps of {step:.3f} mm ({where} from the first)",
            "copy or export the series again",
        )
    drift = np.abs(depth - np.linspace(0, depth[-1], len(depth))).max()
    if drift > step / 2:
        raise InputError("non_uniform_spacing", f"positions leave an even grid by {drift:.2f} mm, half a step or more")


def _check_tilt(offset: Array, depth: Array, normal: Array) -> None:
    aside = np.linalg.norm(offset - depth[:, None] * normal, axis=1)
    far = aside > np.maximum(STEP_SHARE * depth, STEP_MM)
    if far.any():
        worst = int(np.argmax(np.where(far, aside, 0)))
        raise InputError(
            "gantry_tilt",
            f"slices move {aside[worst]:.2f} mm sideways over {depth[worst]:.2f} mm: the volume is sheared",
            "resample it to a straight grid first",
        )
