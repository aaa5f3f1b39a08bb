"""Rules from a fingerprint to preprocessing and augmentation, each with its reason.

Of nnU-Net (Isensee 2021, 10.1038/s41592-020-01008-z) unless the reason says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medray.config import ConfigError
from medray.pipeline.fingerprint import Fingerprint
from medray.pipeline.recipe import (
    ANISOTROPIC,
    COARSE_PERCENT,
    CROP_FROM,
    MASK_FROM,
    OBLONG,
    ROTATION,
    ROTATION_OBLONG,
)

SIDES = {"left", "right", "l", "r", "lt", "rt", "lh", "rh"}
UINT8_RANGE = (0, 255)
HOUNSFIELD_AIR = -900


@dataclass(frozen=True, slots=True)
class Because:
    """A setting, and why it is so."""

    value: Any
    why: str


Tree = dict[str, Any]
"""Settings as an experiment has them: values, `Because`, and further trees."""


def plain(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without their reasons."""
    return {
        key: plain(value) if isinstance(value, Mapping) else value.value if isinstance(value, Because) else value
        for key, value in tree.items()
    }


def crops(found: Fingerprint) -> Because | None:
    """Whether to cut to what is not background."""
    removed = float(np.median([case.removed for case in found.cases]))
    if removed < CROP_FROM:
        return None
    return Because(True, f"the box of voxels above the minimum leaves out {removed:.0%} of the median case")


def spacing(found: Fingerprint) -> tuple[float, ...]:
    """What images are resampled to: the median along each axis, of a coarse axis a low percentile."""
    spacings, shapes = found.spacings, found.shapes(crops(found) is not None)
    target, size = np.median(spacings, axis=0), np.median(shapes, axis=0)
    if (axis := coarse_axis(target, size)) is not None:
        others = np.delete(target, axis)
        # Not finer than the other axes.
        target[axis] = max(np.percentile(spacings[:, axis], COARSE_PERCENT), others.max())
    return tuple(float(f"{edge:.5g}") for edge in target)


def coarse_axis(target: Sequence[float], size: Sequence[float]) -> int | None:
    """The axis along which slices are far apart and few; None where there is none."""
    axis = int(np.argmax(target))
    others, lengths = np.delete(target, axis), np.delete(size, axis)
    far = target[axis] > ANISOTROPIC * others.max()
    return axis if far and size[axis] * ANISOTROPIC < lengths.min() else None


def spacing_reason(found: Fingerprint, target: Sequence[float]) -> str:
    """Why that spacing."""
    median = np.median(found.spacings, axis=0)
    said = f"median spacing of {len(found.cases)} cases is {by(median)} mm"
    axis = coarse_axis(median, np.median(found.shapes(crops(found) is not None), axis=0))
    if axis is None:
        return said
    percent = f"percentile {COARSE_PERCENT:g} of its spacings"
    return f"{said}; axis {axis} is coarse, so it takes {percent}, {target[axis]:g} mm"


def median_shape(found: Fingerprint, target: Sequence[float] | None) -> tuple[int, ...]:
    """(*S) of the median case after crop and resampling."""
    shapes = found.shapes(crops(found) is not None).astype(float)
    if target is not None:
        shapes = shapes * found.spacings / np.asarray(target)
    return tuple(max(1, round(edge)) for edge in np.median(shapes, axis=0).tolist())


def channels(found: Fingerprint) -> tuple[Because | None, int]:
    """What to do with channels, and how many the network sees."""
    counts = found.common("channels")
    if len(counts) == 1:
        return None, next(iter(counts))
    listed = ", ".join(f"{number} cases with {count}" for count, number in sorted(counts.items()))
    if set(counts) == {1, 3}:
        return Because("rgb", f"there are {listed} channels: grey ones are repeated"), 3
    raise ConfigError([f"preprocess.channels: there are {listed} channels; a network takes one number of channels"])


def intensity(found: Fingerprint, modality: str) -> Because:
    """How intensities become numbers around zero; `modality` is what is known of all cases, or ''."""
    highest = max(case.high for case in found.cases)
    if modality == "CT":
        within = found.foreground or found.whole
        of = "of foreground voxels" if found.foreground else "of all voxels"
        why = f"CT has absolute values: percentiles 0.5 and 99.5 {of} of all cases"
        low, high = (float(f"{edge:.5g}") for edge in (within.low, within.high))
        if high > low:
            return Because({"method": "window", "low": low, "high": high}, why)
    if set(found.common("dtype")) == {"uint8"} and highest > 0:
        top = UINT8_RANGE[1] if highest > UINT8_RANGE[1] / 2 else highest
        why = f"every image holds bytes, up to {highest:g}: kept as they are, and scaled on the device"
        return Because({"method": "range", "low": UINT8_RANGE[0], "high": int(top)}, why)
    removed = float(np.median([case.removed for case in found.cases]))
    if removed >= MASK_FROM and all(case.low == 0 for case in found.cases):
        why = f"the crop removes {removed:.0%}, so what is 0 was not measured, and does not count in mean and deviation"
        return Because({"method": "zscore_nonzero"}, why)
    kind = modality or "the modality is not known; its"
    return Because({"method": "zscore"}, f"{kind} intensities mean nothing across images: each has its own scale")


def looks_like_ct(found: Fingerprint) -> bool:
    """Whether values reach down to air in Hounsfield units in most cases."""
    return sum(case.low <= HOUNSFIELD_AIR for case in found.cases) * 2 > len(found.cases)


def flips(classes: Sequence[str], axes: int, sideways: int | None) -> Because:
    """The axes of the network's grid along which mirror images are as likely; `sideways` is left to right, if any."""
    sided = [name for name in classes if _words(name) & SIDES]
    if axes == 3 and sideways is not None:
        if sided:
            return Because([], f"off: class '{sided[0]}' names a side, which a mirror image would swap")
        why = "left and right mirror each other; nnU-Net mirrors all axes, but nobody is upside down or back to front"
        return Because([sideways], why)
    if not sided or sideways is None:
        return Because(list(range(axes)), "a mirror image is as likely along every axis: no class names a side")
    free = [axis for axis in range(axes) if axis != sideways]
    return Because(free, f"class '{sided[0]}' names a side, which a mirror image along axis {sideways} would swap")


def _words(name: str) -> set[str]:
    """Words of a name, 'LeftLung' and 'lung_L' too, in lower case."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def rotation(target: Sequence[float], median: Sequence[int], axes: Sequence[int], sided: bool) -> Because:
    """How far patches are turned: up to so many degrees along the `axes` of the network's grid."""
    if len(axes) == 3:
        if coarse_axis(target, median) is not None:
            return Because(0.0, "off: a rotation is rigid in voxels alone, and these are far from cubes")
        return Because(ROTATION[3], "as nnU-Net in space")
    edges = [median[axis] for axis in axes]
    if sided:
        return Because(ROTATION_OBLONG, "a half turn would swap the sides that classes name")
    if max(edges) > OBLONG * min(edges):
        return Because(ROTATION_OBLONG, "as nnU-Net for oblong images")
    return Because(ROTATION[2], "as nnU-Net in the plane")


def dense_augmentation(flip: Because, turn: Because) -> Tree:
    """nnU-Net's changes of images and their probabilities, without the simulated low resolution."""
    return {
        "flip": {"p": 0.5, "axes": flip},
        "rotate": Because({"p": 0.2 if turn.value else 0.0, "degrees": turn.value}, turn.why),
        "scale": Because({"p": 0.2, "fraction": 0.3}, "nnU-Net: 0.7 to 1.4"),
        "noise": {"p": 0.1, "std": 0.1},
        "blur": {"p": 0.2, "sigma_px": 1.0},
        "brightness": Because({"p": 0.15, "shift": 0.25}, "nnU-Net multiplies by 0.75 to 1.25; here it is added"),
        "contrast": {"p": 0.15, "fraction": 0.25},
        "gamma": Because({"p": 0.3, "strength": 0.35}, "nnU-Net: exponents of 0.7 to 1.5"),
    }


def case_augmentation(flip: Because, masks: bool) -> Tree:
    """Mild changes for a classification: what a second picture of the same patient might look like."""
    tree: Tree = {"flip": {"p": 0.5, "axes": flip}}
    if masks:
        return tree
    tree["rotate"] = {"p": 0.5, "degrees": 15}
    tree["scale"] = {"p": 0.5, "fraction": 0.1}
    tree["shift"] = {"p": 0.5, "fraction": 0.1}
    tree["brightness"] = {"p": 0.3, "shift": 0.1}
    tree["contrast"] = {"p": 0.3, "fraction": 0.2}
    return tree


def by(edges: Sequence[float]) -> str:
    """'1 x 1 x 5'"""
    return " x ".join(f"{edge:.5g}" for edge in edges)
