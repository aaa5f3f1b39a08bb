"""One loop for every task: a generator of events that knows neither Ray nor MLflow.

    for event in fit(Training(...)): ...

A step per batch, an epoch at a time, the best epoch's weights at the end. Whoever listens decides what
to print, report and save.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from medray.imaging.preprocess import normalise
from medray.pipeline.augment import augment_pair
from medray.pipeline.loader import eval_batches, look_ahead, train_batches
from medray.training.learner import Learner
from medray.training.optim import l1_penalty, set_rates
from medray.types import Array, Batch


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient is NaN or infinite; no weights were changed by that step."""


@dataclass(frozen=True, slots=True)
class StepDone:
    """After every optimiser step."""

    step: int
    """Counted from 0 over the whole run."""
    loss: torch.Tensor
    """This worker's part of the loss, on the device; the mean over workers is the batch's loss."""


@dataclass(frozen=True, slots=True)
class EpochDone:
    """After every epoch and its validation; the same on every worker."""

    epoch: int
    """Counted from 1."""
    metrics: dict[str, float]
    best: bool
    """Whether this is the best epoch so far."""


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """After the last epoch, with the best epoch's weights in place."""

    reason: str
    metrics: dict[str, float]
    """best_epoch, and val/... and test/... of the best epoch's weights."""
    scores: dict[str, Array]
    """(n, K) probabilities of each of val and test, in the order of the split's rows; of a dense task the counts that
    its metrics are made of."""
    state: dict[str, Any]
    """Where the last epoch left the training: to go on from, unlike the best weights."""


Event = StepDone | EpochDone | Finished


def fit(learner: Learner) -> Iterator[Event]:
    """Train to the end of the experiment, from wherever `learner` stands.

    Raises:
        NonFiniteLoss: naming epoch and step.
    """
    train = learner.experiment.train
    deadline = math.inf if train.max_minutes is None else time.monotonic() + 60 * train.max_minutes
    reason = "all epochs done"
    while learner.epoch < train.epochs:
        started = time.monotonic()
        loss = yield from _train_epoch(learner)
        trained = time.monotonic() - started
        metrics = {"epoch": learner.epoch + 1.0, "lr": learner.optimizer.param_groups[0]["lr"], "train/loss": loss}
        learner.synchronise_buffers()
        val, _ = evaluate(learner, "val")
        metrics |= val
        metrics["samples_per_s"] = learner.steps_per_epoch * train.batch_size / trained
        metrics["epoch_s"] = time.monotonic() - started
        if learner.scaler.is_enabled() or learner.skipped_steps:
            metrics["skipped_steps"] = float(learner.skipped_steps)
        best = learner.close_epoch(metrics)
        yield EpochDone(learner.epoch, metrics, best)
        if train.patience is not None and learner.epochs_since_best >= train.patience:
            reason = f"no better {learner.monitor} in {train.patience} epochs"
            break
        if learner.world.any(time.monotonic() > deadline):
            reason = f"train.max_minutes={train.max_minutes:g} reached"
            break
    yield _finish(learner, reason)


def _train_epoch(learner: Learner) -> Generator[StepDone, None, float]:
    """One pass over the training cases; returns the mean loss over the world."""
    train, world = learner.experiment.train, learner.world
    learner.begin_epoch()
    batches = train_batches(learner.feed, learner.rows["train"], learner.sampling, learner.epoch, world.share)
    total = torch.zeros((), device=world.device)
    for batch in look_ahead(batches, pin=world.device.type == "cuda"):
        set_rates(learner.optimizer, learner.schedule.factor(learner.step))
        ready = to_network(learner, batch)
        loss = _backward(learner, ready)
        _check_finite(learner, loss)
        learner.update(train.clip_norm)
        total += loss
        yield StepDone(learner.step, loss)
        learner.step += 1
    return float(world.sum(total)) / world.size / learner.steps_per_epoch


def to_network(learner: Learner, batch: Batch) -> Batch:
    """A stored batch on the device, as numbers around zero, augmented, in the network's memory order."""
    experiment = learner.experiment
    moved = batch.to(learner.world.device)
    image = normalise(moved.image.float(), experiment.preprocess)
    label = moved.target if learner.task.dense else None
    image, label = augment_pair(image, label, experiment.augment, experiment.seed, learner.epoch, batch.index.numpy())
    return Batch(learner.ordered(image), moved.target if label is None else label, moved.weight, moved.index)


def _backward(learner: Learner, batch: Batch) -> torch.Tensor:
    """Add the batch's gradients, in as many parts as the experiment says; returns this worker's loss."""
    # From the world's batch: all workers go through the network equally often.
    count = min(learner.experiment.train.accumulate, max(1, learner.smallest_share))
    l1 = learner.experiment.optimizer.l1
    total = torch.zeros((), device=learner.world.device)
    for part in range(count):
        piece = batch if count == 1 else Batch(*(getattr(batch, name)[part::count] for name in Batch.__slots__))
        with learner.gradient_sync(last=part == count - 1):
            with learner.autocast():
                loss = learner.task.step(learner.parallel, piece)["loss"]
            if l1 and part == count - 1:
                loss = loss + l1 * l1_penalty(learner.network)
            learner.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return total


def _check_finite(learner: Learner, loss: torch.Tensor) -> None:
    """Stop before a NaN reaches the weights.

    The head's gradient is looked at because, with several workers, it is already averaged: all of them see
    the same and stop at the same step. Infinite fp16 gradients are the scaler's to skip and count.
    """
    if learner.scaler.is_enabled():
        finite = torch.isfinite(loss)
    else:
        gradient = learner.head.grad
        finite = torch.isfinite(loss if gradient is None else gradient.sum() + (loss if learner.world.size == 1 else 0))
    if not bool(finite):
        raise NonFiniteLoss(
            f"the loss is not finite at step {learner.step} (epoch {learner.epoch + 1}); "
            "lower optimizer.lr, set train.clip_norm=1, or train.precision=fp32"
        )


@torch.no_grad()
def evaluate(learner: Learner, split: str) -> tuple[dict[str, float], Array]:
    """Metrics of one split and its cases' rows (n, columns - 1), exact over the workers: every case counts once."""
    rows, world, task = learner.rows[split], learner.world, learner.task
    if len(rows) == 0:
        return {}, np.zeros((0, task.columns - 1), np.float32)
    network = learner.averaged or learner.network
    network.eval()
    found = []
    for batch in look_ahead(eval_batches(learner.feed, rows, learner.eval_batch, world.share), pin=False):
        moved = batch.to(world.device)
        image = normalise(moved.image.float(), learner.experiment.preprocess)
        with learner.autocast():
            output, scores = learner.answer(network, image)
        found.append(task.measure(output, scores, moved.target))
    dtype = torch.float64 if task.dense else torch.float32
    mine = torch.cat(found) if found else torch.zeros((0, task.columns), device=world.device, dtype=dtype)
    table = world.interleave(mine, len(rows)).cpu().numpy()
    scores_all = table[:, :-1]
    targets = learner.feed.targets[torch.from_numpy(rows)].numpy()
    metrics = task.summarise(scores_all, targets)
    metrics["loss"] = float(table[:, -1].mean())
    return {f"{split}/{name}": value for name, value in metrics.items()}, scores_all


def _finish(learner: Learner, reason: str) -> Finished:
    """Put the best epoch's weights in place and measure them."""
    state = learner.state()
    learner.restore_best()
    # The figures of the card are those of the saved weights as they will be served: in float32.
    learner.precision, learner.reading = "fp32", learner.experiment.window
    metrics: dict[str, float] = {"best_epoch": float(learner.best_epoch)}
    scores = {}
    for split in ("val", "test"):
        found, scores[split] = evaluate(learner, split)
        metrics |= found
    return Finished(reason, metrics, scores, state)
