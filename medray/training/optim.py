"""Optimisers and learning-rate schedules: the schedule is a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn

from medray.networks.build import parameter_groups
from medray.sections.training import OptimizerSection, ScheduleSection


def build_optimizer(cfg: OptimizerSection, network: nn.Module, loaded: Collection[str]) -> torch.optim.Optimizer:
    """The optimiser over what `network` trains.

    Args:
        cfg: settings.
        network: the network, not wrapped.
        loaded: names of the parameters that came from `network.weights`: their rate is lr * backbone_factor.
    """
    # Fused: one pass over weights, gradients and moments, where each operation would make its own. Not SGD: where its
    # first step is skipped for infinite fp16 gradients, torch 2.15 goes on from a momentum that was never filled.
    groups = parameter_groups(network, loaded, cfg.lr, cfg.weight_decay, cfg.backbone_factor)
    match cfg.name:
        case "sgd":
            return torch.optim.SGD(groups, lr=cfg.lr, momentum=cfg.momentum, nesterov=cfg.nesterov)
        case "adagrad":
            return torch.optim.Adagrad(groups, lr=cfg.lr)
        case "rmsprop":
            return torch.optim.RMSprop(groups, lr=cfg.lr, momentum=cfg.momentum)
        case "adam":
            return torch.optim.Adam(groups, lr=cfg.lr, betas=cfg.betas, fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, fused=True)


def l1_penalty(network: nn.Module) -> torch.Tensor:
    """Sum of absolute weights, biases and norms left out as in weight decay."""
    return torch.stack([p.abs().sum() for p in network.parameters() if p.requires_grad and p.ndim > 1]).sum()


@dataclass(frozen=True, slots=True)
class Schedule:
    """The learning rate's factor at each step of a run."""

    cfg: ScheduleSection
    steps_per_epoch: int
    total_steps: int

    def factor(self, step: int) -> float:
        """Factor of optimizer.lr at `step`, counted from 0."""
        cfg = self.cfg
        if cfg.name == "onecycle":
            return self._onecycle(step)
        warm = cfg.warmup_epochs * self.steps_per_epoch
        if step < warm:
            return (step + 1) / (warm + 1)
        epoch = (step - warm) / self.steps_per_epoch
        progress = min(1.0, (step - warm) / max(1.0, self.total_steps - warm))
        match cfg.name:
            case "step":
                return float(cfg.gamma ** math.floor(epoch / cfg.step_epochs))
            case "exponential":
                return float(cfg.gamma**epoch)
            case "inverse_time":
                return 1 / (1 + cfg.gamma * epoch)
            case "cosine":
                return _cosine(progress, cfg.floor)
            case "warm_restarts":
                return _cosine(self._cycle_progress(epoch), cfg.floor)
            case "polynomial":
                return float(max(cfg.floor, (1 - progress) ** cfg.power))
        return 1.0

    def _onecycle(self, step: int) -> float:
        """Cosine rise from 1/25, cosine fall to 1/250,000 (Smith 2018, arXiv:1708.07120, as in torch's OneCycleLR)."""
        last = max(1, self.total_steps - 1)
        top = self.cfg.rise * last
        low, end = 1 / 25, 1 / 25 / 1e4
        if step <= top:
            return low + (1 - low) * (1 - math.cos(math.pi * step / max(top, 1e-9))) / 2
        return _cosine(min(1.0, (step - top) / max(1e-9, last - top)), end)

    def _cycle_progress(self, epoch: float) -> float:
        """Share of the present cycle that is over."""
        length = self.cfg.step_epochs
        while epoch >= length:
            epoch -= length
            length *= self.cfg.cycle_growth
        return epoch / length


def _cosine(progress: float, floor: float) -> float:
    """From 1 to `floor` along half a cosine."""
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to its own base rate times `factor`."""
    for group in optimizer.param_groups:
        group.setdefault("base_lr", group["lr"])
        group["lr"] = group["base_lr"] * factor
