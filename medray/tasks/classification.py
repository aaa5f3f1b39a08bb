"""Classification of a whole image: binary, multi-class, multi-label, ordinal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from medray.config import ConfigError
from medray.metrics.classification import SUMMARY, decide, macro_auroc, per_class, summarise
from medray.sections.base import Fraction, NonNegative, Section, TaskSection
from medray.types import Array, Batch, Prediction

if TYPE_CHECKING:
    from torch import Tensor, nn

Mode = Literal["binary", "multiclass", "multilabel", "ordinal"]


class Loss(Section):
    """What is minimised, per case."""

    name: Literal["cross_entropy", "focal", "bce", "mse"] = "cross_entropy"
    """bce treats each class on its own; mse compares probabilities (Brier 1950)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """cross_entropy (Szegedy 2016, 10.1109/CVPR.2016.308)."""
    gamma: NonNegative = 2.0
    """focal (Lin 2017, 10.1109/ICCV.2017.324)."""

    @model_validator(mode="after")
    def _check(self) -> Loss:
        if self.label_smoothing and self.name != "cross_entropy":
            raise ValueError(f"label_smoothing belongs to cross_entropy, not to {self.name}")
        if "gamma" in self.model_fields_set and self.name != "focal" and self.gamma != 2.0:
            raise ValueError(f"gamma belongs to focal, not to {self.name}")
        return self


class Config(TaskSection):
    """Settings of a classification."""

    name: Literal["classification"] = "classification"
    mode: Literal["auto"] | Mode = "auto"
    """`auto`: what the dataset says, multilabel, binary (two classes) or multiclass; ordinal has to be asked for."""
    loss: Loss = Loss()
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: each class counts the same in the loss, by its share of the training cases."""
    sampling: Literal["natural", "balanced"] = "natural"
    """balanced: each class is drawn equally often, with replacement."""
    threshold: Fraction = 0.5
    """Multi-label: from this probability on a class is said to be present."""

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.mode in ("multilabel", "ordinal") and self.loss.name == "cross_entropy" and self.loss.label_smoothing:
            raise ValueError(f"label_smoothing is not defined for mode {self.mode}")
        return self


@dataclass(frozen=True, slots=True)
class Classification:
    """The task on one dataset: its classes are known."""

    cfg: Config
    classes: tuple[str, ...]
    mode: Mode
    positive_weights: tuple[float, ...] = ()
    """Multi-label with balanced class weights: weight of each class's positives in the loss."""

    dense = False
    monitor = "val/auroc"
    metrics = (*SUMMARY, "loss")

    @property
    def settled(self) -> Config:
        """The settings themselves."""
        return self.cfg

    @property
    def decision(self) -> dict[str, float] | str:
        """How scores become labels."""
        thresholds = self._thresholds()
        return "the likeliest class" if thresholds is None else dict(zip(self.classes, thresholds, strict=True))

    @property
    def outputs(self) -> int:
        """Length of the network's output: one per class; one fewer where order or exclusion says the rest."""
        return len(self.classes) - 1 if self.mode in ("binary", "ordinal") else len(self.classes)

    def step(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Losses of one batch; `loss` is the sum of case losses weighted by `batch.weight`."""
        output = network(batch.image).float()
        return {"loss": (self.case_losses(output, batch.target) * batch.weight).sum()}

    def predict(self, network: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, outputs) raw output and (B, K) probabilities of a batch of images (B, C, *S)."""
        output = network(image).float()
        return output, self.probabilities(output)

    @property
    def columns(self) -> int:
        """The probabilities, and the loss."""
        return len(self.classes) + 1

    def measure(self, output: Tensor, scores: Tensor, target: Tensor) -> Tensor:
        """(B, K + 1) probabilities and loss of each case."""
        import torch

        return torch.cat([scores, self.case_losses(output, target)[:, None]], 1).float()

    def case_losses(self, output: Tensor, target: Tensor) -> Tensor:
        """(B,) loss of each case from raw output (B, outputs) and target (B, K)."""
        from torch.nn import functional

        loss = self.cfg.loss
        if loss.name == "mse":
            return ((self.probabilities(output) - target) ** 2).sum(1)
        if self.mode in ("multilabel", "ordinal") or loss.name == "bce":
            return self._binary_losses(output, target)
        logits = self._logits(output)
        if loss.name == "focal":
            log_p = logits.log_softmax(1)
            return -((1 - log_p.exp()).clamp_min(1e-12) ** loss.gamma * log_p * target).sum(1)
        return functional.cross_entropy(logits, target, label_smoothing=loss.label_smoothing, reduction="none")

    def _binary_losses(self, output: Tensor, target: Tensor) -> Tensor:
        """(B,) sum over outputs of binary losses: per class, or per threshold between ordered classes."""
        import torch
        from torch.nn import functional

        if self.mode == "ordinal":  # P(class > k), from Frank 2001, 10.1007/3-540-44795-4_13
            target = target.flip(1).cumsum(1).flip(1)[:, 1:]
        elif self.mode == "binary":
            target = target[:, 1:]
        weights = output.new_tensor(self.positive_weights) if self.positive_weights else None
        losses = functional.binary_cross_entropy_with_logits(output, target, pos_weight=weights, reduction="none")
        if self.cfg.loss.name == "focal":
            p = torch.sigmoid(output)
            losses = losses * (target * (1 - p) + (1 - target) * p) ** self.cfg.loss.gamma
        return losses.sum(1)

    def _logits(self, output: Tensor) -> Tensor:
        """(B, K) logits of exclusive classes; a binary network gives only the second one's."""
        import torch

        return torch.cat([torch.zeros_like(output), output], 1) if self.mode == "binary" else output

    def probabilities(self, output: Tensor) -> Tensor:
        """(B, K) probabilities from raw output (B, outputs); exclusive classes sum to 1."""
        import torch

        if self.mode == "multilabel":
            return output.sigmoid()
        if self.mode == "ordinal":
            one = torch.ones_like(output[:, :1])
            # Thresholds may cross early in training; the running minimum keeps every probability >= 0.
            above = torch.cat([one, output.sigmoid().cummin(1).values, torch.zeros_like(one)], 1)
            return above[:, :-1] - above[:, 1:]
        return self._logits(output).softmax(1)

    def decode(self, case_id: str, scores: Array, warnings: tuple[str, ...] = ()) -> Prediction:
        """The answer for one case from its probabilities (K,)."""
        picked = decide(scores[None], self.mode == "multilabel", self._thresholds())[0]
        chosen = [name for name, one in zip(self.classes, picked, strict=True) if one]
        return Prediction(case_id, self.classes, scores, tuple(chosen), warnings)

    def summarise(self, rows: Array, targets: Array) -> dict[str, float]:
        """Metrics of probabilities (N, K) against targets (N, K)."""
        return summarise(rows, targets, self.mode == "multilabel", self._thresholds())

    def headline(self, rows: Array, targets: Array) -> float:
        """Macro AUROC."""
        return macro_auroc(rows, targets, self.mode == "multilabel")

    def per_class(self, rows: Array, targets: Array) -> dict[str, dict[str, float]]:
        """Metrics of each class, against the rest."""
        return per_class(rows, targets, self.classes, self.mode == "multilabel", self._thresholds())

    def _thresholds(self) -> list[float] | None:
        """Probability from which on each class is said to be present; exclusive classes have none."""
        return [self.cfg.threshold] * len(self.classes) if self.mode == "multilabel" else None

    def case_weights(self, targets: Array, weights: Array) -> Array:
        """(n,) weights in the loss: `weights`, times the inverse share of the class where that is asked for.

        Args:
            targets: (n, K) of the training cases.
            weights: (n,) the dataset's own.
        """
        if self.mode == "multilabel" or self.cfg.class_weights == "none":
            return weights
        return np.asarray(weights * (targets @ _inverse_shares(targets)), weights.dtype)

    def case_chances(self, targets: Array) -> Array | None:
        """(n,) relative chance of each training case to be drawn, or None for a plain permutation."""
        if self.cfg.sampling == "natural":
            return None
        # A multi-label case counts by its rarest class; one without any by the share of such cases.
        none = (targets.sum(1) == 0).astype(targets.dtype)[:, None]
        columns = np.concatenate([targets, none], 1)
        return np.asarray((columns * _inverse_shares(columns)).max(1))


def build(cfg: Config, classes: tuple[str, ...], multilabel: bool, targets: Array) -> Classification:
    """The task for a dataset.

    Args:
        cfg: settings.
        classes: names, in the order of the target's columns.
        multilabel: whether the dataset's classes may come together.
        targets: (n, K) of the training cases alone: class weights must not see the others.

    Raises:
        ConfigError: if the mode does not go with the dataset.
    """
    mode = cfg.mode
    if mode == "auto":
        mode = "multilabel" if multilabel else "binary" if len(classes) == 2 else "multiclass"
    if multilabel and mode != "multilabel":
        fact = "cases of this dataset may have several classes; use multilabel"
        raise ConfigError([f"task.mode: is {mode}, but {fact}"])
    if mode == "binary" and len(classes) != 2:
        raise ConfigError([f"task.mode: is binary, but the dataset has {len(classes)} classes; use multiclass"])
    weights: tuple[float, ...] = ()
    if mode == "multilabel" and cfg.class_weights == "balanced":
        positive = targets.sum(0)
        weights = tuple(float(w) for w in (len(targets) - positive) / np.maximum(positive, 1))
    return Classification(cfg, classes, mode, weights)


def _inverse_shares(targets: Array) -> Array:
    """(K,) what makes every class count the same, with a mean weight of 1 over the cases."""
    counts = targets.sum(0)
    return np.where(counts > 0, len(targets) / (np.maximum(counts, 1) * max(1, int((counts > 0).sum()))), 0.0)
