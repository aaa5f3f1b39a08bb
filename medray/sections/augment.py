"""Random changes of training images; each has a probability `p` and a strength."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from medray.sections.base import Fraction, NonNegative, Positive, Section


class Flip(Section):
    """Mirror along each of `axes` with probability `p` each."""

    p: Fraction = 0.0
    axes: tuple[Annotated[int, Field(ge=0, le=2)], ...] = (1,)


class Rotate(Section):
    """Rotation by a uniform angle up to `degrees` (3D: about a uniformly drawn axis)."""

    p: Fraction = 0.0
    degrees: NonNegative = 15.0


class Scale(Section):
    """Zoom by a uniform factor in [1 - fraction, 1 + fraction]."""

    p: Fraction = 0.0
    fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1


class Shear(Section):
    """Shear each axis along the next by a uniform angle up to `degrees`."""

    p: Fraction = 0.0
    degrees: Annotated[float, Field(ge=0, lt=80)] = 5.0


class Shift(Section):
    """Move by a uniform share of each axis, up to `fraction`."""

    p: Fraction = 0.0
    fraction: Fraction = 0.1


class Crop(Section):
    """Cut a box whose edges are uniform in [1 - fraction, 1] of the image and enlarge it to the whole grid."""

    p: Fraction = 0.0
    fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2


class Gamma(Section):
    """Power law on the image's own range; the exponent is exp(uniform(-strength, strength))."""

    p: Fraction = 0.0
    strength: NonNegative = 0.3


class Brightness(Section):
    """Add a uniform value in [-shift, shift] (the network's grid spans about 2)."""

    p: Fraction = 0.0
    shift: NonNegative = 0.1


class Contrast(Section):
    """Multiply the distance from the image's mean by a uniform factor in [1 - fraction, 1 + fraction]."""

    p: Fraction = 0.0
    fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2


class Noise(Section):
    """Add Gaussian noise with a standard deviation uniform in [0, std]."""

    p: Fraction = 0.0
    std: NonNegative = 0.1


class Blur(Section):
    """Gaussian blur with a standard deviation uniform in [0, sigma_px] voxels."""

    p: Fraction = 0.0
    sigma_px: NonNegative = 1.0


class Cutout(Section):
    """Set a box with edges of `fraction` of each axis to the image's mean (DeVries 2017, arXiv:1708.04552)."""

    p: Fraction = 0.0
    fraction: Fraction = 0.25


class Mixup(Section):
    """Blend two cases and their targets by Beta(alpha, alpha) (Zhang 2018, arXiv:1710.09412)."""

    p: Fraction = 0.0
    alpha: Positive = 0.2


class AugmentSection(Section):
    """Random, training only, on whole batches on the device; everything is off by default."""

    flip: Flip = Flip()
    rotate: Rotate = Rotate()
    scale: Scale = Scale()
    shear: Shear = Shear()
    shift: Shift = Shift()
    crop: Crop = Crop()
    gamma: Gamma = Gamma()
    brightness: Brightness = Brightness()
    contrast: Contrast = Contrast()
    noise: Noise = Noise()
    blur: Blur = Blur()
    cutout: Cutout = Cutout()
    mixup: Mixup = Mixup()
