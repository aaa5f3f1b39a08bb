"""How cases become arrays: split and preprocess."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from medray.sections.base import Count, Positive, Section

FLOAT16_MAX = 65504.0


class SplitSection(Section):
    """How cases are dealt to train, val and test: always by subject, never torn."""

    method: Literal["auto", "given", "fraction", "kfold"] = "auto"
    """`auto` takes the dataset's own split where it has one, else fractions."""
    val: Annotated[float, Field(gt=0, lt=1)] = 0.15
    test: Annotated[float, Field(ge=0, lt=1)] = 0.15
    folds: Annotated[int, Field(ge=2)] = 5
    fold: Annotated[int, Field(ge=0)] = 0
    """With kfold: this fold validates, the others train; `test` is cut off first by fraction (0 for none)."""
    stratify: bool = True
    seed: int = 0
    join_val: bool = False
    """Train on the validation cases too: nothing chooses an epoch then, and the last one's weights are kept."""

    @model_validator(mode="after")
    def _check(self) -> SplitSection:
        if self.val + self.test >= 1:
            raise ValueError(f"val + test is {self.val + self.test:g}; nothing would be left to train on")
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} does not exist: folds is {self.folds}, so 0 to {self.folds - 1}")
        return self


class DenoiseSection(Section):
    """Smoothing before anything else sees the image."""

    method: Literal["median", "gaussian"] = "median"
    size_px: Positive = 3
    """Window edge of the median (odd), or standard deviation of the Gaussian, in voxels."""

    @model_validator(mode="after")
    def _check(self) -> DenoiseSection:
        if self.method == "median" and self.size_px % 2 != 1:
            raise ValueError(f"size_px of a median must be an odd whole number, not {self.size_px:g}")
        return self


class IntensitySection(Section):
    """How intensities become numbers around zero.

    range: [low, high] -> [-1, 1], the same for every image (lossless for integers);
    window: the same in raw units of the modality (HU for CT), clipped;
    percentile: the image's own [low %, high %] -> [-1, 1], clipped;
    zscore, zscore_nonzero: the image's own mean 0 and deviation 1 (over voxels that are not 0).
    """

    method: Literal["range", "window", "percentile", "zscore", "zscore_nonzero"] = "percentile"
    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _check(self) -> IntensitySection:
        if self.method in ("range", "window") and (self.low is None or self.high is None):
            raise ValueError(f"intensity '{self.method}' needs low and high, for example low: 0, high: 255")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """(low, high), with nnU-Net's percentiles 0.5 and 99.5 by default (Isensee 2021, 10.1038/s41592-020-01008-z)"""
        return (0.5 if self.low is None else self.low, 99.5 if self.high is None else self.high)


class SliceSection(Section):
    """One slice of each volume, for networks of two axes; with its neighbours as further channels it is 2.5D."""

    axis: Annotated[int, Field(ge=0, le=2)] = 2
    """The axis across which slices lie: of RAS+ volumes 0 sagittal, 1 coronal, 2 axial."""
    position: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Where along the axis: 0 the first slice, 1 the last."""
    neighbours: Annotated[int, Field(ge=0, le=8)] = 0
    """Slices on each side; beyond the ends the outermost is repeated."""


class PreprocessSection(Section):
    """The deterministic road from a Case to the network's grid; it travels in the bundle."""

    channels: Literal["keep", "gray", "rgb"] = "keep"
    denoise: DenoiseSection | None = None
    orientation: Literal["RAS"] | None = "RAS"
    """3D only: axes permuted and flipped to the closest RAS+ order, without resampling."""
    slice: SliceSection | None = None
    """3D only: what is taken of each volume before all that follows, which sees an image of two axes."""
    spacing_mm: tuple[Positive, ...] | None = None
    """Voxel edges after resampling, one per spatial axis."""
    crop_foreground: bool = False
    """Cut to the box of voxels above the image's minimum."""
    intensity: IntensitySection = IntensitySection()
    size: tuple[Count, ...] | None = None
    """Shape of the network's grid, one per spatial axis."""
    fit: Literal["stretch", "contain", "pad_crop"] = "contain"
    """To `size`: stretch each axis, scale keeping proportions and pad, or cut and pad without scaling."""
    dtype: Literal["float32", "float16"] = "float32"
    """How the store keeps images whose preprocessing is not lossless for integers."""

    @model_validator(mode="after")
    def _check(self) -> PreprocessSection:
        if self.slice is not None and self.slice.neighbours and self.channels != "keep":
            raise ValueError(f"channels {self.channels} would mix the neighbours of a slice: use keep")
        greatest = max(map(abs, self.intensity.bounds))
        if self.dtype == "float16" and self.intensity.method == "range" and greatest > FLOAT16_MAX:
            raise ValueError(f"float16 holds values up to {FLOAT16_MAX:g}, the range goes to {greatest:g}: use float32")
        return self
