"""Segmentation of 2D and 3D images: classes that exclude each other, or regions that may overlap."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from medray.config import ConfigError, nearest
from medray.metrics.overlap import dice, summarise
from medray.sections.base import Fraction, Positive, TaskSection
from medray.tasks.overlap_loss import Loss, case_losses
from medray.types import IGNORED, Array, Batch, Prediction

if TYPE_CHECKING:
    from torch import Tensor, nn


DENSE = True


class Config(TaskSection):
    """Settings of a segmentation."""

    name: Literal["segmentation"] = "segmentation"
    loss: Loss = Loss()
    foreground: Fraction = 1 / 3
    """Share of the training patches that are put on a class other than the first, each as likely as the others
    (Isensee 2021, 10.1038/s41592-020-01008-z)."""
    regions: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] = Field(default_factory=dict)
    """Region -> the classes that it is made of, where regions may overlap: {whole: [edema, core], core: [core]}."""
    threshold: Fraction = 0.5
    """Regions: from this probability on a voxel belongs to it."""
    tolerance_mm: Positive = 1.0
    """How far a surface may be off in the normalised surface Dice (Nikolov 2021, 10.2196/26151)."""


@dataclass(frozen=True)
class Segmentation:
    """The task on one dataset: its classes are known, the first is the background."""

    cfg: Config
    classes: tuple[str, ...]

    dense = True
    monitor = "val/dice"

    @property
    def exclusive(self) -> bool:
        """Whether each voxel has one class; else it may be in several regions."""
        return not self.cfg.regions

    @property
    def structures(self) -> tuple[str, ...]:
        """What is found: the classes but the background, or the regions."""
        return self.classes[1:] if self.exclusive else tuple(self.cfg.regions)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Means over structures, and the Dice of each."""
        each = tuple(f"dice/{name}" for name in self.structures)
        return ("dice", "iou", *(each if len(each) > 1 else ()), "loss")

    @property
    def settled(self) -> Config:
        """The settings themselves."""
        return self.cfg

    @property
    def decision(self) -> dict[str, float] | str:
        """How probabilities become a mask."""
        return "the likeliest class" if self.exclusive else dict.fromkeys(self.structures, self.cfg.threshold)

    @property
    def outputs(self) -> int:
        """Channels of the network's output."""
        return len(self.classes) if self.exclusive else len(self.cfg.regions)

    @property
    def columns(self) -> int:
        """Intersection, predicted and true voxels of each structure, and the loss."""
        return 3 * len(self.structures) + 1

    @cached_property
    def membership(self) -> Array:
        """(outputs, 256) float32, 1 where a label value belongs to an output; no output has IGNORED."""
        table = np.zeros((self.outputs, IGNORED + 1), np.float32)
        for position in range(self.outputs):
            if self.exclusive:
                table[position, position] = 1
            else:
                names = self.cfg.regions[self.structures[position]]
                table[position, [self.classes.index(name) for name in names]] = 1
        return table

    def step(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Losses of one batch; `loss` is the sum of case losses weighted by `batch.weight`.

        Coarser heads (deep supervision) are held to the share of each class in their voxels, and weigh half as much
        as the next finer one (Isensee 2021).
        """
        output = network(batch.image)
        heads = output if isinstance(output, list) else [output]
        target, valid = self.shares(batch.target)
        total = heads[0].new_zeros((), dtype=target.dtype)
        for depth, head in enumerate(heads):
            fine, known = (target, valid) if depth == 0 else _pooled(target, valid, head)
            losses = case_losses(self.cfg.loss, head.float(), fine, known, self.exclusive)
            total = total + (losses * batch.weight).sum() * 0.5**depth
        return {"loss": total / sum(0.5**depth for depth in range(len(heads)))}

    def shares(self, label: Tensor) -> tuple[Tensor, Tensor]:
        """(B, outputs, *S) float, 1 where a voxel belongs, and (B, 1, *S) float, 1 where it was labelled."""
        import torch

        table = torch.from_numpy(self.membership).to(label.device)
        return table[:, label[:, 0].long()].movedim(0, 1), (label != IGNORED).to(table.dtype)

    def predict(self, network: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, outputs, *S) raw output and probabilities of images (B, C, *S)."""
        output = network(image).float()
        return output, output.softmax(1) if self.exclusive else output.sigmoid()

    def measure(self, output: Tensor, scores: Tensor, target: Tensor) -> Tensor:  # noqa: ARG002
        """(B, columns) voxels of each structure (both, predicted, true), and the loss; float64 counts exactly."""
        import torch

        truth, valid = self.shares(target)
        logits = scores.clamp_min(1e-7).log() if self.exclusive else torch.logit(scores, 1e-7)
        losses = case_losses(self.cfg.loss, logits, truth, valid, self.exclusive)
        found = self.masks(scores) & (target != IGNORED)
        true = truth.bool()
        if self.exclusive:
            found, true = found[:, 1:], true[:, 1:]
        counts = torch.stack([(found & true).flatten(2).sum(2), found.flatten(2).sum(2), true.flatten(2).sum(2)], 2)
        return torch.cat([counts.flatten(1).double(), losses[:, None].double()], 1)

    def masks(self, scores: Tensor) -> Tensor:
        """(B, outputs, *S) bool, what the decision makes of probabilities."""
        import torch

        if not self.exclusive:
            return scores >= self.cfg.threshold
        winner = scores.argmax(1, keepdim=True)
        order = torch.arange(self.outputs, device=scores.device)
        return winner == order.view(1, -1, *[1] * (scores.ndim - 2))

    def decode(self, case_id: str, scores: Array, warnings: tuple[str, ...] = ()) -> Prediction:
        """The answer for one case from its probabilities (outputs, *S) on the patient's grid."""
        mask: Array = scores.argmax(0).astype(np.uint8) if self.exclusive else np.asarray(scores >= self.cfg.threshold)
        return self.answer(case_id, mask, warnings)

    def voxels(self, mask: Array) -> dict[str, int]:
        """Structure -> its voxels in a mask as the decision makes it: (*S) of class indices, or (regions, *S) bool."""
        if self.exclusive:
            counts = np.bincount(mask.ravel(), minlength=len(self.classes))[1:]
        else:
            counts = np.count_nonzero(mask.reshape(len(mask), -1), 1)
        return dict(zip(self.structures, counts.tolist(), strict=True))

    def answer(self, case_id: str, mask: Array, warnings: tuple[str, ...] = ()) -> Prediction:
        """The answer whose mask is known."""
        labels = tuple(name for name, voxels in self.voxels(mask).items() if voxels)
        return Prediction(case_id, self.classes, np.zeros(0, np.float32), labels, warnings, mask=mask)

    def summarise(self, rows: Array, targets: Array) -> dict[str, float]:  # noqa: ARG002
        """Dice and IoU of the cases' rows (N, columns - 1): the mean over structures of the mean over cases.

        A case that neither holds a structure nor was said to is left out of its mean.
        """
        figures = summarise(self._counts(rows), self.structures, background=None)
        return {name: figures[name] for name in self.metrics if name != "loss"}

    def headline(self, rows: Array, targets: Array) -> float:  # noqa: ARG002
        """Mean Dice."""
        values = self.case_dice(rows)
        defined = [column[~np.isnan(column)] for column in values.T]
        return float(np.mean([column.mean() for column in defined if len(column)] or [np.nan]))

    def per_class(self, rows: Array, targets: Array) -> dict[str, dict[str, float]]:  # noqa: ARG002
        """Mean Dice and IoU of each structure, and in how many cases it occurs."""
        counts = self._counts(rows)
        figures = summarise(counts, self.structures, background=None)
        support = (counts[:, :, 2] > 0).sum(0).tolist()
        return {
            name: {**{key: figures[f"{key}/{name}"] for key in ("dice", "iou")}, "support": float(cases)}
            for name, cases in zip(self.structures, support, strict=True)
        }

    def case_dice(self, rows: Array) -> Array:
        """(N, structures) Dice of each case, NaN where nothing is there and nothing was found."""
        return np.asarray(dice(self._counts(rows)))

    def _counts(self, rows: Array) -> Array:
        return np.asarray(rows).reshape(len(rows), len(self.structures), 3)

    def case_weights(self, targets: Array, weights: Array) -> Array:  # noqa: ARG002
        """(n,) the dataset's own."""
        return weights

    def case_chances(self, targets: Array) -> Array | None:  # noqa: ARG002
        """None: every case as often as the others; classes are balanced by where patches lie."""
        return None


def _pooled(target: Tensor, valid: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
    """Shares (B, M, *S) of the labelled part of the coarser voxels of `head`, and how much of them was labelled."""
    from torch.nn import functional

    pool = functional.adaptive_avg_pool3d if target.ndim == 5 else functional.adaptive_avg_pool2d
    grid = tuple(head.shape[2:])
    known = pool(valid, grid)  # type: ignore[arg-type]
    # Where nobody labelled no output has a share, so the sums are those of the labelled voxels.
    return pool(target, grid) / known.clamp_min(1e-6), known  # type: ignore[arg-type]


def build(cfg: Config, classes: tuple[str, ...], multilabel: bool, targets: Array) -> Segmentation:  # noqa: ARG001
    """The task for a dataset with these classes, the background first.

    Raises:
        ConfigError: fewer than two classes, more than a label can hold, or regions of classes that do not exist.
    """
    mistakes = []
    if not 2 <= len(classes) <= IGNORED:
        mistakes.append(
            f"task: a segmentation needs 2 to {IGNORED} classes, background first; there are {len(classes)}"
        )
    for region, names in cfg.regions.items():
        unknown = [name for name in names if name not in classes]
        mistakes += [f"task.regions.{region}: no class '{name}'{nearest(name, classes)}" for name in unknown]
    if mistakes:
        raise ConfigError(mistakes)
    return Segmentation(cfg, classes)
