"""How a network is trained, and searched for."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from medray.sections.base import Count, Fraction, NonNegative, Positive, Section

RHYTHM = re.compile(r"(\d+(?:\.\d+)?) ?(s|min|h|steps?|epochs?)")
SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}
Unit = Literal["s", "step", "epoch"]


def rhythm_of(every: str) -> tuple[float, Unit] | None:
    """How often: a number of seconds, steps or epochs; None for `never`.

    Raises:
        ValueError: it says neither.
    """
    if every == "never":
        return None
    match = RHYTHM.fullmatch(every)
    if match is None or float(match[1]) == 0:
        raise ValueError("write 30 s, 5 min, 2 h, 500 steps, 1 epoch or never")
    count, unit = float(match[1]), match[2].removesuffix("s") or "s"
    if unit in SECONDS:
        return count * SECONDS[unit], "s"
    if count != int(count):
        raise ValueError("steps and epochs are whole numbers")
    return count, "step" if unit == "step" else "epoch"


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
    steps_per_epoch: Count | None = None
    """By default one pass over the training cases; dense tasks draw as many patches as that takes."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Cross-validate: one training per fold, recorded under one parent run with mean and spread."""
    batch_size: Count = 64
    """Cases per optimiser step over all workers, so that the curve does not depend on their number."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto`: bf16 where the hardware has it (not for volumes on a CPU), else fp32; weights stay float32."""
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
    checkpoint_every: str = "1 min"
    """`30 s`, `5 min`, `2 h`, `500 steps`, `1 epoch`, or `never` before the end. What a lost worker had done since is
    done again, to the same weights."""
    profile: bool = False
    """Time the parts of a few early steps and trace some more, into shared/profile of the run's folder."""
    compile: bool = False
    channels_last: bool = True
    """Memory order of 2D and 3D activations; the numbers do not change."""

    @field_validator("checkpoint_every")
    @classmethod
    def _rhythm(cls, every: str) -> str:
        rhythm_of(every)
        return every


class ScalingSection(Section):
    """What a training takes from the cluster."""

    workers: Count | tuple[Count, Count] | Literal["auto"] = "auto"
    """`auto`: one per GPU of the cluster, or one on a cluster without GPUs. `[2, 8]`: as many as there are, from 2 on;
    the run goes on with fewer when nodes are lost, and with more when they are back."""
    gpu: bool | Literal["auto"] = "auto"
    cpus_per_worker: Positive | Literal["auto"] = "auto"
    """`auto` shares the CPUs of the cluster evenly; torch gets as many threads."""
    sync_batchnorm: bool = False
    max_failures: Annotated[int, Field(ge=-1)] | Literal["auto"] = "auto"
    """Restarts from the last checkpoint after a worker is lost (-1: without end); `auto`: 3, and none in a search."""
    hang_minutes: Positive = 30.0
    """A worker that makes no step for so long writes down where it stands, and its training starts again."""
    storage_minutes: Positive = 5.0
    """How long a disk that does not answer is tried again before a checkpoint is given up."""

    @field_validator("workers")
    @classmethod
    def _range(cls, workers: object) -> object:
        if isinstance(workers, tuple) and workers[0] > workers[1]:
            raise ValueError("[least, most]: the first is above the second")
        return workers
