"""Regression of numbers from a whole image: an age, a risk, a measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from medray.metrics.regression import SUMMARY, per_target, summarise
from medray.sections.base import Positive, Section, TaskSection
from medray.types import Array, Batch, Prediction

if TYPE_CHECKING:
    from torch import Tensor, nn

NUMERIC = True


class Loss(Section):
    """What is minimised, per case, in standard deviations of the training targets."""

    name: Literal["mse", "mae", "huber", "quantile"] = "mse"
    delta: Positive = 1.0
    """huber: where the square turns into a line (Huber 1964, 10.1214/aoms/1177703732)."""
    low: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    high: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """quantile: these and the median are answered (Koenker 1978, 10.2307/1913643)."""


class Config(TaskSection):
    """Settings of a regression."""

    name: Literal["regression"] = "regression"
    loss: Loss = Loss()
    centre: tuple[float, ...] | None = None
    """What the network's 0 stands for, one number per target; by default the mean of the training cases."""
    scale: tuple[Positive, ...] | None = None
    """What the network's 1 stands for; by default the standard deviation of the training cases."""

    @model_validator(mode="after")
    def _check(self) -> Config:
        if (self.centre is None) != (self.scale is None):
            raise ValueError("centre and scale go together")
        return self


@dataclass(frozen=True, slots=True)
class Regression:
    """The task on one dataset: what it measures is known, T numbers per case."""

    cfg: Config
    names: tuple[str, ...]
    centre: tuple[float, ...]
    scale: tuple[float, ...]

    dense = False
    monitor = "val/mae"
    metrics = (*SUMMARY, "loss")

    @property
    def settled(self) -> Config:
        """The settings with what the training cases decided: a bundle's own."""
        return self.cfg.model_copy(update={"centre": self.centre, "scale": self.scale})

    @property
    def decision(self) -> dict[str, float] | str:
        """Nothing is decided."""
        return "the number itself"

    @property
    def levels(self) -> int:
        """Numbers that are answered per target: itself, or low, median and high."""
        return 3 if self.cfg.loss.name == "quantile" else 1

    @property
    def outputs(self) -> int:
        """Length of the network's output."""
        return self.levels * len(self.names)

    @property
    def columns(self) -> int:
        """The answers, and the loss."""
        return self.outputs + 1

    def step(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Losses of one batch; `loss` is the sum of case losses weighted by `batch.weight`."""
        output = network(batch.image).float()
        return {"loss": (self.case_losses(output, batch.target) * batch.weight).sum()}

    def predict(self, network: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, outputs) raw output, and the numbers in their own units: (B, T), or (B, 3 T), all lows first."""
        output = network(image).float()
        centre, scale = (output.new_tensor(values).repeat(self.levels) for values in (self.centre, self.scale))
        return output, output * scale + centre

    def case_losses(self, output: Tensor, target: Tensor) -> Tensor:
        """(B,) mean loss over targets, from raw output and targets (B, T) in their own units."""
        from torch.nn import functional

        loss = self.cfg.loss
        wanted = (target - target.new_tensor(self.centre)) / target.new_tensor(self.scale)
        if loss.name == "quantile":
            error = wanted.repeat(1, 3) - output
            level = output.new_tensor([loss.low, 0.5, loss.high]).repeat_interleave(len(self.names))
            return (level * error).maximum((level - 1) * error).mean(1)
        if loss.name == "huber":
            return functional.huber_loss(output, wanted, reduction="none", delta=loss.delta).mean(1)
        error = output - wanted
        return (error.abs() if loss.name == "mae" else error**2).mean(1)

    def measure(self, output: Tensor, scores: Tensor, target: Tensor) -> Tensor:
        """(B, columns) the numbers and the loss of each case."""
        import torch

        return torch.cat([scores, self.case_losses(output, target)[:, None]], 1).float()

    def point(self, rows: Array) -> Array:
        """(N, T) the number itself, the median of quantiles."""
        count = len(self.names)
        return rows[:, count : 2 * count] if self.levels == 3 else rows

    def decode(self, case_id: str, scores: Array, warnings: tuple[str, ...] = ()) -> Prediction:
        """The answer for one case from its numbers (outputs,); quantiles that cross are put in order."""
        intervals = {}
        values = scores
        if self.levels == 3:
            ordered = np.sort(scores.reshape(3, -1), axis=0)
            values = ordered[1]
            ends = zip(self.names, ordered[0].tolist(), ordered[2].tolist(), strict=True)
            intervals = {name: (low, high) for name, low, high in ends}
        return Prediction(case_id, self.names, values, (), warnings, intervals=intervals)

    def summarise(self, rows: Array, targets: Array) -> dict[str, float]:
        """Mean figures over targets (mae, rmse, r2, ...) of the cases' rows."""
        return {name: value for name, value in summarise(self.point(rows), targets).items() if name in SUMMARY}

    def headline(self, rows: Array, targets: Array) -> float:
        """Mean absolute error."""
        return float(np.abs(self.point(rows) - targets).mean())

    def per_class(self, rows: Array, targets: Array) -> dict[str, dict[str, float]]:
        """The figures of each target."""
        return per_target(self.point(rows), targets, self.names)

    def case_weights(self, targets: Array, weights: Array) -> Array:  # noqa: ARG002
        """(n,) the dataset's own."""
        return weights

    def case_chances(self, targets: Array) -> Array | None:  # noqa: ARG002
        """None: every case as often as the others."""
        return None


def build(cfg: Config, classes: tuple[str, ...], multilabel: bool, targets: Array) -> Regression:  # noqa: ARG001
    """The task for a dataset whose numbers are called `classes`; `targets` (n, T) are those of the training cases."""
    centre, scale = cfg.centre, cfg.scale
    if centre is None or scale is None:
        centre = tuple(float(value) for value in targets.mean(0))
        scale = tuple(float(value) or 1.0 for value in targets.std(0))
    return Regression(cfg, classes, centre, scale)
