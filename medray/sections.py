"""The sections of an Experiment: frozen, typed, unknown keys refused. Plug-ins bring their own by name.

Units are in the names; a probability is `p`; epochs may be fractional where a step can end a phase.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A frozen group of settings; an unknown key is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Plugin(Section):
    """Settings of a plug-in: `name` is the file in the plug-in's folder."""

    name: str


class DatasetSection(Plugin):
    """What every dataset layout can be told."""

    max_bad_fraction: Fraction = 0.01
    """Unreadable cases are listed and left out up to this share; beyond it the run refuses to start."""


class NetworkSection(Plugin):
    """What every network family can be told."""

    dropout: Fraction = 0.0
    """Dropout before the last linear layer."""
    init: Literal["default", "xavier", "he"] = "default"
    """Weights of convolutions and linear layers: the family's own, Glorot 2010, or He 2015 (10.1109/ICCV.2015.123)."""
    weights: Path | None = None
    """A .safetensors file or a bundle to start from; layers of another shape are left at their initial values."""
    freeze: bool = False
    """Train only what `weights` did not fill (usually the head)."""


class TaskSection(Plugin):
    """What every task can be told."""


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
        """(low, high) with the percentile's defaults 0.5 and 99.5 filled in (Isensee 2021, 10.1038/s41592-020-01008-z)."""
        return (0.5 if self.low is None else self.low, 99.5 if self.high is None else self.high)


class PreprocessSection(Section):
    """The deterministic road from a Case to the network's grid; it travels in the bundle."""

    channels: Literal["keep", "gray", "rgb"] = "keep"
    denoise: DenoiseSection | None = None
    orientation: Literal["RAS"] | None = "RAS"
    """3D only: axes permuted and flipped to the closest RAS+ order, without resampling."""
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


class OptimizerSection(Section):
    """The update rule."""

    name: Literal["sgd", "adagrad", "rmsprop", "adam", "adamw"] = "adamw"
    lr: Positive = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """sgd and rmsprop."""
    nesterov: bool = False
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """adam and adamw."""
    weight_decay: NonNegative = 1e-4
    """L2 (decoupled in adamw), not on biases and norms."""
    l1: NonNegative = 0.0
    """L1 penalty on weights, not on biases and norms."""
    backbone_factor: NonNegative = 1.0
    """Learning rate of layers filled from `network.weights`, relative to lr."""

    @model_validator(mode="after")
    def _check(self) -> OptimizerSection:
        if self.nesterov and (self.name != "sgd" or self.momentum == 0):
            raise ValueError("nesterov needs name: sgd and a momentum above 0")
        return self


class ScheduleSection(Section):
    """The learning rate over the run, as a factor of optimizer.lr."""

    name: Literal[
        "constant", "step", "exponential", "inverse_time", "cosine", "warm_restarts", "onecycle", "polynomial"
    ] = "onecycle"
    warmup_epochs: NonNegative = 0.0
    """Linear from 0; not for onecycle, which has its own rise."""
    step_epochs: Positive = 10.0
    """step: epochs between drops; warm_restarts: length of the first cycle."""
    gamma: Positive = 0.1
    """step, exponential: factor per drop or per epoch; inverse_time: decay per epoch."""
    power: Positive = 0.9
    """polynomial (Isensee 2021, 10.1038/s41592-020-01008-z)."""
    cycle_growth: Annotated[int, Field(ge=1)] = 1
    """warm_restarts: each cycle is this many times the one before (Loshchilov 2017, arXiv:1608.03983)."""
    rise: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """onecycle: share of the run in which the rate rises (Smith 2018, arXiv:1708.07120)."""
    floor: Fraction = 0.0
    """cosine, warm_restarts, polynomial: lowest factor."""


class TrainSection(Section):
    """The loop."""

    epochs: Count = 20
    batch_size: Count = 64
    """Cases per optimiser step over all workers, so that the curve does not depend on their number."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto`: bf16 where the hardware has it, else fp32; weights stay float32."""
    accumulate: Count = 1
    """Parts into which a worker cuts its share of a batch, to save memory."""
    clip_norm: Positive | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay per step of the moving average of weights that is validated and kept."""
    monitor: str | None = None
    """Metric that chooses the best epoch; by default the task's."""
    mode: Literal["max", "min"] | None = None
    """Whether more of `monitor` is better; by default known from its name."""
    patience: Count | None = None
    """Stop after this many epochs without a better `monitor`."""
    max_minutes: Positive | None = None
    """Stop at the end of the epoch in which this is reached."""
    compile: bool = False
    channels_last: bool = True
    """Memory order of 2D and 3D activations; the numbers do not change."""


class ScalingSection(Section):
    """What a training takes from the cluster."""

    workers: Count | Literal["auto"] = "auto"
    """`auto`: one per GPU of the cluster, or one on a cluster without GPUs."""
    gpu: bool | Literal["auto"] = "auto"
    cpus_per_worker: Positive | Literal["auto"] = "auto"
    """`auto` shares the CPUs of the cluster evenly; torch gets as many threads."""
    sync_batchnorm: bool = False
    max_failures: Annotated[int, Field(ge=-1)] = 0
    """Restarts from the last checkpoint after a worker is lost (-1: without end)."""


class TrackingSection(Section):
    """Where runs are recorded."""

    uri: str | None = None
    """MLflow server; by default an SQLite file in medray's home folder."""
    model: str | None = None
    """Name in the registry; by default the experiment's name."""
    register_model: bool = True


class TuneSection(Section):
    """The search."""

    trials: Count = 6
    space: dict[str, dict[str, Any]] = Field(
        default_factory=lambda: {
            "optimizer.lr": {"loguniform": [1e-4, 1e-2]},
            "optimizer.weight_decay": {"loguniform": [1e-5, 1e-1]},
        }
    )
    """Dotted key of the experiment -> one of uniform, loguniform, randint, choice with its arguments."""
    concurrent: Count = 2
    grace_epochs: Count = 2
    """ASHA: epochs before a trial can be stopped (Li 2020, arXiv:1810.05934)."""
    reduction: Annotated[int, Field(ge=2)] = 3
    seed: int = 0


class ServeSection(Section):
    """The HTTP service."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    min_replicas: Count = 1
    max_replicas: Count = 2
    target_ongoing_requests: Positive = 2.0
    max_ongoing_requests: Count = 8
    max_upload_mb: Positive = 512.0

    @model_validator(mode="after")
    def _check(self) -> ServeSection:
        if self.target_ongoing_requests > self.max_ongoing_requests:
            raise ValueError("target_ongoing_requests above max_ongoing_requests would never scale up")
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        return self
