"""Losses of dense networks: by overlap, by voxel, and both; per case, with voxels that nobody labelled left out.

Letters: B batch, M outputs (classes that exclude each other, or regions that may overlap), S the spatial axes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from medray.sections.base import Fraction, NonNegative, Section

if TYPE_CHECKING:
    from torch import Tensor

SMOOTH = 1e-5
"""Keeps the overlap of two empty masks at 1."""


class Loss(Section):
    """What is minimised."""

    name: Literal["dice_ce", "dice", "cross_entropy", "dice_focal", "tversky", "generalized_dice"] = "dice_ce"
    """Sums with equal weights (Isensee 2021, 10.1038/s41592-020-01008-z); dice: Milletari 2016, 10.1109/3DV.2016.79;
    tversky: Salehi 2017, arXiv:1706.05721; generalized_dice: Sudre 2017, 10.1007/978-3-319-67558-9_28."""
    background: bool = False
    """Whether the first class counts in the overlap."""
    batch: bool = False
    """Overlap over all patches of a worker's batch together instead of each by itself: for structures that most
    patches do not hold."""
    gamma: NonNegative = 2.0
    """dice_focal (Lin 2017, 10.1109/ICCV.2017.324)."""
    alpha: Fraction = 0.3
    """tversky: weight of false positives; false negatives weigh 1 - alpha."""
    boundary: NonNegative = 0.0
    """Further weight in the voxel loss of voxels that touch another class (after Ronneberger 2015,
    10.1007/978-3-319-24574-4_28)."""

    @model_validator(mode="after")
    def _check(self) -> Loss:
        if self.boundary and self.name not in ("dice_ce", "cross_entropy", "dice_focal"):
            raise ValueError(f"boundary weighs the voxel loss, which {self.name} does not have")
        return self


def case_losses(cfg: Loss, logits: Tensor, target: Tensor, valid: Tensor, exclusive: bool) -> Tensor:
    """(B,) loss of each case.

    Args:
        cfg: which.
        logits: (B, M, *S) float32.
        target: (B, M, *S) in [0, 1], the share of each voxel; of exclusive classes they sum to 1 where valid.
        valid: (B, 1, *S) in [0, 1], the share that was labelled.
        exclusive: softmax, or a sigmoid per region.
    """
    log_p = logits.log_softmax(1) if exclusive else None
    p = logits.sigmoid() if log_p is None else log_p.exp()
    losses = logits.new_zeros(len(logits))
    if cfg.name in ("dice_ce", "cross_entropy", "dice_focal"):
        losses = losses + _voxel_loss(cfg, logits, log_p, target, valid)
    if cfg.name != "cross_entropy":
        first = 0 if cfg.background or not exclusive else 1
        losses = losses + 1 - _overlap(cfg, (p * valid)[:, first:], (target * valid)[:, first:])
    return losses


def _voxel_loss(cfg: Loss, logits: Tensor, log_p: Tensor | None, target: Tensor, valid: Tensor) -> Tensor:
    """(B,) mean over labelled voxels of cross-entropy, or focal loss."""
    from torch.nn import functional

    if log_p is None:
        voxel = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        if cfg.name == "dice_focal":
            p = logits.sigmoid()
            voxel = voxel * _focus(target * (1 - p) + (1 - target) * p, cfg.gamma)
        voxel = voxel.mean(1, keepdim=True)
    else:
        focus = _focus(-log_p.expm1(), cfg.gamma) if cfg.name == "dice_focal" else 1.0
        voxel = -(focus * log_p * target).sum(1, keepdim=True)
    weight = valid * (1 + cfg.boundary * _borders(target, valid)) if cfg.boundary else valid
    return (voxel * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1)


def _focus(wrong: Tensor, gamma: float) -> Tensor:
    """How much a voxel counts whose answer is off by `wrong`; at 0 the slope of a gamma below 1 would be infinite."""
    return wrong.clamp_min(1e-12) ** gamma


def _borders(target: Tensor, valid: Tensor) -> Tensor:
    """(B, 1, *S) 1 where a labelled voxel has a labelled one of another class beside it."""
    from torch.nn import functional

    pool = functional.max_pool3d if target.ndim == 5 else functional.max_pool2d
    known = (valid > 0).to(target.dtype)
    # The largest share around and 1 less the smallest; what nobody labelled says 0 to both.
    spread = pool(target * known, 3, 1, 1) + pool((1 - target) * known, 3, 1, 1) - 1
    return (spread.amax(1, keepdim=True) > 0).to(target.dtype)


def _overlap(cfg: Loss, p: Tensor, target: Tensor) -> Tensor:
    """(B,) mean overlap over outputs, of each case or, the same for all, of the batch as a whole."""
    axes = (*((0,) if cfg.batch else ()), *range(2, p.ndim))
    both, predicted, true = (p * target).sum(axes), p.sum(axes), target.sum(axes)
    if cfg.name == "generalized_dice":
        # One that is not there weighs as the smallest that is, as in MONAI; alone it weighs 1.
        weight = (true > 0) / (true * true).clamp_min(1)
        largest = weight.amax(-1, keepdim=True)
        weight = weight.where(true > 0, largest.where(largest > 0, 1.0))
        score = (2 * (weight * both).sum(-1) + SMOOTH) / ((weight * (predicted + true)).sum(-1) + SMOOTH)
        return score.expand(len(p)) if cfg.batch else score
    if cfg.name == "tversky":
        wrong = cfg.alpha * (predicted - both) + (1 - cfg.alpha) * (true - both)
        score = (both + SMOOTH) / (both + wrong + SMOOTH)
    else:
        score = (2 * both + SMOOTH) / (predicted + true + SMOOTH)
    mean = score.mean(-1)
    return mean.expand(len(p)) if cfg.batch else mean
